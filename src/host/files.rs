//! Files of the state folder: read with suspicion, written whole or not at all.
//!
//! What is written goes to another name, is synced, takes its name in one step, and its folder is synced. A crash or a full
//! disk leaves the old file or the new one.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use crate::owner;

/// A journal names each interface once or twice, in some hundred bytes.
const MAX_FILE: u64 = 16 << 20;

/// Why there is nothing to read.
#[derive(Debug)]
pub enum Unusable {
    /// The kernel says no.
    Io(io::Error),
    /// It is not a file that we wrote, for this reason.
    NotOurs(String),
}

/// Reads a file that this program wrote; `None` when there is none. Never waits, whatever has the name.
pub fn read(path: &Path) -> Result<Option<Vec<u8>>, Unusable> {
    let not_ours = |why: String| Err(Unusable::NotOurs(why));
    // Opening a FIFO waits for a writer, and a link could lead to anything that root may read.
    let flags = libc::O_NONBLOCK | libc::O_NOFOLLOW;
    let file = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) if error.raw_os_error() == Some(libc::ELOOP) => return not_ours("a symbolic link".to_owned()),
        // A socket.
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => return not_ours("not a regular file".to_owned()),
        Err(error) => return Err(Unusable::Io(error)),
    };
    let metadata = file.metadata().map_err(Unusable::Io)?;
    if !metadata.is_file() {
        return not_ours("not a regular file".to_owned());
    }
    let (owner, mode) = (metadata.uid(), metadata.mode() & 0o7777);
    if !owner::trusted(owner, path.parent().unwrap_or(path)) {
        return not_ours(format!("belongs to user {owner}"));
    }
    if mode & 0o022 != 0 {
        return not_ours(format!("mode {mode:04o} lets others write to it"));
    }
    let mut text = Vec::new();
    file.take(MAX_FILE + 1).read_to_end(&mut text).map_err(Unusable::Io)?;
    if text.len() as u64 > MAX_FILE {
        return not_ours(format!("larger than {} MiB", MAX_FILE >> 20));
    }
    Ok(Some(text))
}

/// Makes `text` what the file holds. On failure the old file stands.
pub fn replace(path: &Path, text: &[u8]) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let temporary = beside(path, "new");
    // Left by a crash.
    let _ = fs::remove_file(&temporary);
    let written = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temporary)
        .and_then(|mut file| {
            owner::give(&file, path.parent().unwrap_or(path))?;
            file.write_all(text)?;
            file.sync_all()
        })
        .and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        // A full disk has no room for half a file.
        let _ = fs::remove_file(&temporary);
    }
    written.and_then(|()| sync_folder(path))
}

/// Removes a file, and what a crash left of writing it; that there is none is no error.
pub fn remove(path: &Path) -> io::Result<()> {
    let _ = fs::remove_file(beside(path, "new"));
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(()) => sync_folder(path),
    }
}

/// Keeps what has this name, a file or not, under one that is free.
pub fn set_aside(path: &Path) -> io::Result<PathBuf> {
    let name = |number: u32| beside(path, &format!("damaged-{number}"));
    let backup = (1..=u32::MAX).map(name).find(|path| fs::symlink_metadata(path).is_err()).unwrap_or_else(|| name(0));
    fs::rename(path, &backup)?;
    sync_folder(path)?;
    Ok(backup)
}

fn beside(path: &Path, what: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{what}"));
    path.with_file_name(name)
}

/// A rename is durable only when its folder is.
fn sync_folder(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn what_is_not_a_file_of_ours_is_named_and_never_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal.json");
        let why = || match read(&path) {
            Err(Unusable::NotOurs(why)) => why,
            other => panic!("{other:?}"),
        };
        assert!(read(&path).unwrap().is_none());
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRUSR).unwrap();
        assert_eq!(why(), "not a regular file");
        fs::remove_file(&path).unwrap();
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        assert_eq!(why(), "not a regular file");
        drop(listener);
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", &path).unwrap();
        assert_eq!(why(), "a symbolic link");
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert_eq!(why(), "not a regular file");
        fs::remove_dir(&path).unwrap();
        File::create(&path).unwrap().set_len(MAX_FILE + 1).unwrap();
        assert_eq!(why(), "larger than 16 MiB");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
        assert_eq!(why(), "mode 0666 lets others write to it");
    }

    #[test]
    fn a_write_takes_the_place_of_a_link_and_of_a_leftover() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("guard.nft");
        let precious = folder.path().join("precious");
        fs::write(&precious, "precious").unwrap();
        for name in ["guard.nft", "guard.nft.new"] {
            std::os::unix::fs::symlink(&precious, folder.path().join(name)).unwrap();
        }
        replace(&path, b"text").unwrap();
        assert_eq!(read(&path).unwrap().unwrap(), b"text");
        assert_eq!(fs::read(&precious).unwrap(), b"precious");
        let backups = [set_aside(&path).unwrap(), {
            replace(&path, b"again").unwrap();
            set_aside(&path).unwrap()
        }];
        assert_eq!(backups.map(|path| fs::read(path).unwrap()), [b"text".to_vec(), b"again".to_vec()]);
        replace(&path, b"text").unwrap();
        fs::write(beside(&path, "new"), "half").unwrap();
        remove(&path).unwrap();
        remove(&path).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 3);
    }
}
