//! The configuration folder on disk: `meshd.toml`, `private.key`, `peers/NAME.toml`.
//!
//! Reading: a key file has to be a regular file of root, of the current user or, for root, of the folder's owner, that nobody else may read. Every file is read up to [`MAX_FILE`] and without waiting, whatever it turns out to be.
//!
//! Writing: the text goes to a hidden file in the same folder, which is synced and then takes its name in one step, so
//! that a crash or a full disk leaves the old state or the new one. Hidden files are never read.

mod edit;
pub mod invitations;
pub mod news;

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};

use crate::config::{self, Config, Files, MAX_FILE, Problem, Psk, SourceFile, printable};
use crate::key::PrivateKey;
use crate::owner;
pub use edit::{Edit, Undo};

/// Why the folder could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such file.
    #[error("{0}: not there")]
    NotThere(String),
    /// There is one already.
    #[error("{0}: exists already")]
    Exists(String),
    /// Permissions or kind forbid its use.
    #[error("{path}: {why}")]
    Refused {
        /// The file.
        path: String,
        /// What is wrong with it.
        why: String,
        /// A command that corrects it.
        remedy: String,
    },
    /// What the files say is wrong.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Invalid(Vec<Problem>),
    /// The kernel says no.
    #[error("{0}: {1}")]
    Io(String, #[source] io::Error),
}

impl Error {
    /// True for invalid configuration and missing permission: exit code 4.
    pub fn refused(&self) -> bool {
        match self {
            Self::Exists(_) | Self::Refused { .. } | Self::Invalid(_) => true,
            Self::NotThere(_) => false,
            Self::Io(_, error) => error.kind() == io::ErrorKind::PermissionDenied,
        }
    }

    /// Lines `what: why`.
    pub fn errors(&self) -> Vec<String> {
        self.to_string().lines().map(str::to_owned).collect()
    }

    /// What the operator can do about it.
    pub fn remedy(&self) -> Option<String> {
        match self {
            Self::Refused { remedy, .. } => Some(remedy.clone()),
            Self::NotThere(path) if path.ends_with("meshd.toml") => Some("meshd init".into()),
            Self::NotThere(path) if path.ends_with("private.key") => {
                Some(format!("(umask 077; meshd genkey > {path})"))
            }
            Self::Io(path, error) if error.kind() == io::ErrorKind::PermissionDenied => {
                let folder = Path::new(path).parent().map(Path::display)?;
                Some(format!("the same as root; for an agent that is not root: chown --reference={folder} {path}"))
            }
            _ => None,
        }
    }
}

/// The three folders of the contract, by flag, environment or default.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Folders")]
pub struct Dirs {
    /// Configuration: meshd.toml, private.key and peers/
    #[arg(
        long = "dir",
        value_name = "PATH",
        global = true,
        env = "MESHD_DIR",
        hide_env_values = true,
        default_value = "/etc/meshd"
    )]
    pub config: PathBuf,
    /// Sockets and the pid
    #[arg(
        long = "run-dir",
        value_name = "PATH",
        global = true,
        env = "MESHD_RUN_DIR",
        hide_env_values = true,
        default_value = "/run/meshd"
    )]
    pub run: PathBuf,
    /// State that outlives the agent
    #[arg(
        long = "state-dir",
        value_name = "PATH",
        global = true,
        env = "MESHD_STATE_DIR",
        hide_env_values = true,
        default_value = "/var/lib/meshd"
    )]
    pub state: PathBuf,
}

/// The paths in a configuration folder.
#[derive(Debug, Clone, Copy)]
pub struct Layout<'a>(pub &'a Path);

impl Layout<'_> {
    /// `meshd.toml`.
    pub fn host(self) -> PathBuf {
        self.0.join("meshd.toml")
    }

    /// `private.key`.
    pub fn private_key(self) -> PathBuf {
        self.0.join("private.key")
    }

    /// `private.key.next`, while a rotation is under way.
    pub fn next_private_key(self) -> PathBuf {
        self.0.join("private.key.next")
    }

    /// `peers/`.
    pub fn peers(self) -> PathBuf {
        self.0.join("peers")
    }

    /// `peers/NAME.toml`.
    pub fn peer(self, name: &str) -> PathBuf {
        self.0.join("peers").join(format!("{name}.toml"))
    }
}

/// Reads and checks the whole folder.
///
/// # Errors
/// When a file is missing, must not be used, or says something wrong.
pub fn load(dir: &Path) -> Result<Config, Error> {
    config::parse(&read(dir)?).map_err(Error::Invalid)
}

/// True when the folder holds a host's configuration, sound or not, or when that cannot be told.
pub fn is_configured(dir: &Path) -> bool {
    let looked = Layout(dir).host().symlink_metadata();
    !looked.is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
}

/// The private key alone, when there is one: before there is a `meshd.toml` it may have been put there by hand, or by an
/// `init` that did not live to the end.
///
/// # Errors
/// When it must not be used or is none.
pub fn private_key(dir: &Path) -> Result<Option<PrivateKey>, Error> {
    key_at(&Layout(dir).private_key())
}

/// The key that is to take the place of the private key, when there is one.
///
/// # Errors
/// When it must not be used or is none.
pub fn next_private_key(dir: &Path) -> Result<Option<PrivateKey>, Error> {
    key_at(&Layout(dir).next_private_key())
}

/// Has the next private key take the place of the present one, in one step.
///
/// # Errors
/// As the kernel gives; then all stands as it was.
pub fn rotate_private_key(dir: &Path) -> Result<(), Error> {
    let path = Layout(dir).private_key();
    fs::rename(Layout(dir).next_private_key(), &path)
        .and_then(|()| sync_parent(&path))
        .map_err(|error| io_error(&path, error))
}

fn key_at(path: &Path) -> Result<Option<PrivateKey>, Error> {
    let source = match source(path.parent().unwrap_or(path), path, Kind::Secret) {
        Ok(source) => source,
        Err(Error::NotThere(_)) => return Ok(None),
        Err(error) => return Err(error),
    };
    let key = String::from_utf8_lossy(&source.text).parse::<PrivateKey>();
    key.map(Some).map_err(|error| {
        Error::Invalid(vec![Problem { path: source.path.clone(), line: 1, message: error.to_string() }])
    })
}

/// Reads the folder's files without a look at what they say.
///
/// # Errors
/// When a file is missing or must not be used.
pub fn read(dir: &Path) -> Result<Files, Error> {
    read_and(dir, None)
}

/// Reads the folder's files as they would be with one more peer.
///
/// # Errors
/// When a file is missing or must not be used.
pub fn read_with(dir: &Path, peer: (String, SourceFile)) -> Result<Files, Error> {
    read_and(dir, Some(peer))
}

/// Reads the folder's files as they would be with this `meshd.toml`.
fn read_beside(dir: &Path, host: SourceFile) -> Result<Files, Error> {
    read_all(dir, host, None)
}

fn read_and(dir: &Path, new: Option<(String, SourceFile)>) -> Result<Files, Error> {
    read_all(dir, source(dir, &Layout(dir).host(), Kind::Plain)?, new)
}

fn read_all(dir: &Path, host: SourceFile, new: Option<(String, SourceFile)>) -> Result<Files, Error> {
    let layout = Layout(dir);
    let private_key = source(dir, &layout.private_key(), Kind::Secret)?;
    let mut peers = read_peers(dir)?;
    peers.extend(new);
    let mut preshared_keys = BTreeMap::new();
    for (_, peer) in &peers {
        if let Some(Psk::File(written)) = config::psk_of(peer) {
            let path = preshared_key_path(dir, &written);
            let key = source(dir, &path, Kind::Secret).map_err(|error| match error.remedy() {
                Some(remedy) => format!("{error}; {remedy}"),
                None => error.to_string(),
            });
            preshared_keys.insert(written, key);
        }
    }
    Ok(Files { host, private_key, peers, preshared_keys })
}

/// Where a `preshared_key_file` is: a relative path starts at the configuration folder.
pub fn preshared_key_path(dir: &Path, written: &str) -> PathBuf {
    dir.join(written)
}

/// Reads `peers/`, in the order of names. An editor's leftovers and hidden files are no peers.
///
/// # Errors
/// When a file cannot be read.
pub fn read_peers(dir: &Path) -> Result<Vec<(String, SourceFile)>, Error> {
    let folder = Layout(dir).peers();
    let entries = match fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(io_error(&folder, error)),
    };
    let mut peers = Vec::new();
    for entry in entries {
        let path = entry.map_err(|error| io_error(&folder, error))?.path();
        let Some(file_name) = path.file_name().map(|name| name.to_string_lossy().into_owned()) else { continue };
        let Some(name) = file_name.strip_suffix(".toml").filter(|_| !file_name.starts_with('.')) else { continue };
        let (source, metadata) = open(&folder, &path, Kind::Plain)?;
        if config::psk_of(&source) == Some(Psk::Inline) {
            // The folder is 0700 as `init` makes it, so this is wg-quick's case: a word, not a refusal.
            if let Err(error) = secret(&folder, &path, &metadata, "holds a preshared_key and ") {
                tracing::warn!("{error}");
            }
        }
        peers.push((name.to_owned(), source));
    }
    peers.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(peers)
}

/// Makes the folder and its parents where they are missing; the folder itself for its owner only.
///
/// # Errors
/// As the kernel gives.
pub fn create_dir(dir: &Path) -> Result<(), Error> {
    if dir.is_dir() {
        return Ok(());
    }
    if let Some(parent) = dir.parent() {
        fs::create_dir_all(parent).map_err(|error| io_error(parent, error))?;
    }
    fs::DirBuilder::new()
        .mode(0o700)
        .create(dir)
        .and_then(|()| owner::give(File::open(dir)?, dir.parent().unwrap_or(dir)))
        .map_err(|error| io_error(dir, error))
}

/// Writes a file that must not exist yet.
///
/// # Errors
/// [`Error::Exists`], or as the kernel gives; then there is no trace of it.
pub fn create(path: &Path, text: &str, mode: u32) -> Result<(), Error> {
    // A hard link, unlike a rename, fails when the name is taken, so that of two writers one loses.
    put(path, text, mode, |temporary| {
        fs::hard_link(temporary, path)?;
        fs::remove_file(temporary)
    })
}

/// Writes a file in the place of what is there.
///
/// # Errors
/// As the kernel gives; then the old file stands.
pub fn replace(path: &Path, text: &str, mode: u32) -> Result<(), Error> {
    put(path, text, mode, |temporary| fs::rename(temporary, path))
}

/// Deletes a file, if there is one.
///
/// # Errors
/// As the kernel gives; then it stands.
pub fn remove(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error(path, error)),
        _ => sync_parent(path).map_err(|error| io_error(path, error)),
    }
}

/// A file that was taken out of use and can be put back with its owner and mode.
#[derive(Debug)]
#[must_use]
pub struct SetAside {
    path: PathBuf,
    hidden: PathBuf,
}

/// Takes a file out of use.
///
/// # Errors
/// As the kernel gives; then it stands.
pub fn set_aside(path: &Path) -> Result<SetAside, Error> {
    let hidden = beside(path, "removed");
    fs::rename(path, &hidden).and_then(|()| sync_parent(path)).map_err(|error| io_error(path, error))?;
    Ok(SetAside { path: path.to_owned(), hidden })
}

impl SetAside {
    /// Puts it back.
    ///
    /// # Errors
    /// As the kernel gives.
    pub fn restore(self) -> Result<(), Error> {
        fs::rename(&self.hidden, &self.path)
            .and_then(|()| sync_parent(&self.path))
            .map_err(|error| io_error(&self.path, error))
    }

    /// Deletes it.
    ///
    /// # Errors
    /// As the kernel gives.
    pub fn delete(self) -> Result<(), Error> {
        fs::remove_file(&self.hidden)
            .and_then(|()| sync_parent(&self.path))
            .map_err(|error| io_error(&self.path, error))
    }
}

/// Held while a command checks the folder and changes it, so that two of them do not each add what the other would
/// have clashed with.
///
/// # Errors
/// As the kernel gives.
pub fn lock(dir: &Path) -> Result<Flock<File>, Error> {
    // Without the folder there is no meshd.toml either, which is what the operator can do something about.
    let folder = File::open(dir).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => io_error(&Layout(dir).host(), error),
        _ => io_error(dir, error),
    })?;
    Flock::lock(folder, FlockArg::LockExclusive).map_err(|(_, errno)| io_error(dir, errno.into()))
}

/// The same without waiting: `None` while another has it.
///
/// # Errors
/// As the kernel gives.
pub fn try_lock(dir: &Path) -> Result<Option<Flock<File>>, Error> {
    let folder = File::open(dir).map_err(|error| io_error(dir, error))?;
    match Flock::lock(folder, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(Some(lock)),
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => Ok(None),
        Err((_, errno)) => Err(io_error(dir, errno.into())),
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Plain,
    Secret,
}

/// `folder` is the one whose owner counts as the file's: see [`owner`].
fn source(folder: &Path, path: &Path, kind: Kind) -> Result<SourceFile, Error> {
    open(folder, path, kind).map(|(source, _)| source)
}

fn open(folder: &Path, path: &Path, kind: Kind) -> Result<(SourceFile, fs::Metadata), Error> {
    // O_NONBLOCK: opening a FIFO must not hang the agent. O_NOFOLLOW: whoever may place a symlink must not choose what
    // a privileged process reads as its key.
    let no_follow = if kind == Kind::Secret { libc::O_NOFOLLOW } else { 0 };
    let file = match OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | no_follow).open(path) {
        Ok(file) => file,
        Err(error) if error.raw_os_error() == Some(libc::ELOOP) => {
            return Err(refused(path, "a symbolic link; a key has to be a regular file", |shown| {
                format!("cp --remove-destination \"$(readlink -f {shown})\" {shown}")
            }));
        }
        Err(error) => return Err(io_error(path, error)),
    };
    let metadata = file.metadata().map_err(|error| io_error(path, error))?;
    if !metadata.is_file() {
        return Err(refused(path, "not a regular file", |shown| format!("ls -l {shown}")));
    }
    if kind == Kind::Secret {
        secret(folder, path, &metadata, "")?;
    } else if metadata.permissions().mode() & 0o002 != 0 {
        // Whoever may write it decides where this host's traffic goes.
        return Err(refused(path, "every user may write it", |shown| format!("chmod o-w {shown}")));
    }
    let mut text = Vec::with_capacity(usize::try_from(metadata.len()).unwrap_or(MAX_FILE).min(MAX_FILE) + 1);
    file.take(MAX_FILE as u64 + 1).read_to_end(&mut text).map_err(|error| io_error(path, error))?;
    Ok((SourceFile { path: show(path), text }, metadata))
}

/// Refuses a secret that somebody else may read or may have written.
fn secret(folder: &Path, path: &Path, metadata: &fs::Metadata, what: &str) -> Result<(), Error> {
    let (mode, owner) = (metadata.permissions().mode() & 0o7777, metadata.uid());
    if mode & 0o077 != 0 {
        let why = format!("{what}mode {mode:04o} lets others at a key; 0600 would be right");
        return Err(refused(path, &why, |shown| format!("chmod 600 {shown}")));
    }
    if owner::trusted(owner, folder) {
        return Ok(());
    }
    let user = nix::unistd::geteuid();
    let why = format!("{what}belongs to user {owner}; expected root or user {user}");
    Err(refused(path, &why, |shown| format!("chown {user} {shown}")))
}

fn put(path: &Path, text: &str, mode: u32, publish: impl FnOnce(&Path) -> io::Result<()>) -> Result<(), Error> {
    let temporary = beside(path, "new");
    // Left by a crashed process that had this one's number.
    let _ = fs::remove_file(&temporary);
    let written = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&temporary)
        .and_then(|mut file| {
            owner::give(&file, path.parent().unwrap_or(path))?;
            file.write_all(text.as_bytes())?;
            file.sync_all()
        })
        .and_then(|()| publish(&temporary))
        .and_then(|()| sync_parent(path));
    written.map_err(|error| {
        // Best effort: what is left is hidden and never read.
        let _ = fs::remove_file(&temporary);
        io_error(path, error)
    })
}

/// The names of files survive a crash once their folder is synced.
fn sync_parent(path: &Path) -> io::Result<()> {
    let folder = File::open(path.parent().unwrap_or(Path::new("/")))?;
    nix::unistd::fsync(folder.as_fd()).map_err(io::Error::from)
}

/// A hidden name in the same folder, of this process alone.
fn beside(path: &Path, what: &str) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.{what}-{}", std::process::id()))
}

fn refused(path: &Path, why: &str, remedy: impl Fn(&str) -> String) -> Error {
    Error::Refused { path: show(path), why: why.to_owned(), remedy: remedy(&show(path)) }
}

fn io_error(path: &Path, error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::NotFound => Error::NotThere(show(path)),
        io::ErrorKind::AlreadyExists => Error::Exists(show(path)),
        _ => Error::Io(show(path), error),
    }
}

fn show(path: &Path) -> String {
    printable(&path.to_string_lossy())
}

#[cfg(test)]
mod tests;
