//! Listening Unix sockets in a shared directory.
//!
//! The socket is bound and given its owner and mode under a name of its own and only then renamed, so that nobody can
//! connect before the mode is right, and nobody sees a socket that does not listen: wg(8) deletes such.

use std::fs::DirBuilder;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, connect, listen, socket};
use nix::sys::stat::{Mode, fchmod};
use nix::unistd::{Gid, Uid, chown};

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Somebody answers on it.
    #[error("{}: another agent already listens there", .0.display())]
    InUse(PathBuf),
    /// `sun_path` of unix(7) holds 108 bytes.
    #[error("{}: the path is too long for a Unix socket; choose a shorter directory", .0.display())]
    TooLong(PathBuf),
    /// What is there is not for this program to delete.
    #[error("{}: exists and is not a socket", .0.display())]
    NotASocket(PathBuf),
    /// Anything else.
    #[error("{path}: {source}", path = .path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// A listening socket whose name goes away with it.
#[derive(Debug)]
pub struct Listener {
    inner: UnixListener,
    path: PathBuf,
    id: (u64, u64),
}

impl Listener {
    /// Listens on `path` with the given mode and group. The socket of a dead process is replaced, that of a live one
    /// is [`BindError::InUse`].
    pub fn bind(path: &Path, mode: u32, group: Option<Gid>) -> Result<Self, BindError> {
        let io_error = |source: io::Error| BindError::Io { path: path.to_owned(), source };
        let errno = |errno: Errno| match errno {
            Errno::ENAMETOOLONG => BindError::TooLong(path.to_owned()),
            errno => io_error(errno.into()),
        };
        let directory = path.parent().ok_or_else(|| io_error(io::ErrorKind::InvalidInput.into()))?;
        ensure_dir(directory).map_err(io_error)?;
        remove_stale(path)?;

        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let temporary = directory.join(format!(".{name}.{}", std::process::id()));
        let _ = std::fs::remove_file(&temporary);
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None).map_err(errno)?;
        // bind(2) gives the file the mode of the socket's inode (net/unix/af_unix.c, unix_bind_bsd), less the umask.
        fchmod(&fd, Mode::S_IRUSR | Mode::S_IWUSR).map_err(errno)?;
        bind(fd.as_raw_fd(), &UnixAddr::new(&temporary).map_err(errno)?).map_err(errno)?;
        let publish = || {
            if group.is_some() {
                chown(&temporary, None, group).map_err(errno)?;
            }
            std::fs::set_permissions(&temporary, PermissionsExt::from_mode(mode)).map_err(io_error)?;
            listen(&fd, Backlog::MAXCONN).map_err(errno)?;
            let metadata = std::fs::symlink_metadata(&temporary).map_err(io_error)?;
            match renameat2(AT_FDCWD, &temporary, AT_FDCWD, path, RenameFlags::RENAME_NOREPLACE) {
                Ok(()) => Ok((metadata.dev(), metadata.ino())),
                Err(Errno::EEXIST) => Err(BindError::InUse(path.to_owned())),
                Err(other) => Err(errno(other)),
            }
        };
        let id = publish().inspect_err(|_| {
            let _ = std::fs::remove_file(&temporary);
        })?;
        Ok(Self { inner: UnixListener::from(fd), path: path.to_owned(), id })
    }

    /// For tokio, which wants to be asked inside its runtime.
    pub(super) fn to_tokio(&self) -> io::Result<tokio::net::UnixListener> {
        tokio::net::UnixListener::from_std(self.inner.try_clone()?)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let named = std::fs::symlink_metadata(&self.path);
        if named.is_ok_and(|named| (named.dev(), named.ino()) == self.id) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Creates a directory (0755) for sockets, or refuses one in which others could replace them.
pub(super) fn ensure_dir(directory: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o755).create(directory)?;
    let metadata = std::fs::metadata(directory)?;
    let owner = Uid::from_raw(metadata.uid());
    // Root's commands also work beside an agent with a user of its own.
    let theirs = !owner.is_root() && owner != Uid::effective() && !Uid::effective().is_root();
    if !theirs && metadata.mode() & 0o022 == 0 {
        return Ok(());
    }
    Err(io::Error::other(format!(
        "others may write in {} (owner {owner}, mode {:04o}); it must be root's and 0755",
        directory.display(),
        metadata.mode() & 0o7777
    )))
}

/// Removes the socket of a dead process.
pub(super) fn remove_stale(path: &Path) -> Result<(), BindError> {
    let io_error = |source: io::Error| BindError::Io { path: path.to_owned(), source };
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(io_error(error)),
        Ok(metadata) if !metadata.file_type().is_socket() => return Err(BindError::NotASocket(path.to_owned())),
        Ok(_) => {}
    }
    let address = UnixAddr::new(path).map_err(|_| BindError::TooLong(path.to_owned()))?;
    // Without blocking: a live agent with a full backlog says EAGAIN.
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None).map_err(|errno| io_error(errno.into()))?;
    match connect(fd.as_raw_fd(), &address) {
        Err(Errno::ECONNREFUSED) => std::fs::remove_file(path).map_err(io_error),
        Err(Errno::ENOENT) => Ok(()),
        Ok(()) | Err(Errno::EAGAIN) => Err(BindError::InUse(path.to_owned())),
        Err(errno) => Err(io_error(errno.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dead_agents_socket_is_replaced_and_a_live_ones_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sock");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let live = Listener::bind(&path, 0o660, None).unwrap();
        assert_eq!(path.metadata().unwrap().mode() & 0o7777, 0o660);
        assert!(matches!(Listener::bind(&path, 0o660, None), Err(BindError::InUse(_))));
        drop(live);
        assert_eq!(dir.path().read_dir().unwrap().count(), 0);
    }

    #[test]
    fn only_the_own_socket_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sock");
        let old = Listener::bind(&path, 0o600, None).unwrap();
        std::fs::remove_file(&path).unwrap();
        let _new = Listener::bind(&path, 0o600, None).unwrap();
        drop(old);
        assert!(path.exists());
    }

    #[test]
    fn what_is_no_socket_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sock");
        std::fs::write(&path, "x").unwrap();
        assert!(matches!(Listener::bind(&path, 0o600, None), Err(BindError::NotASocket(_))));
        assert_eq!(std::fs::read(&path).unwrap(), b"x");
    }

    #[test]
    fn a_directory_that_others_can_write_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o777)).unwrap();
        let error = Listener::bind(&dir.path().join("a.sock"), 0o600, None).unwrap_err();
        assert!(error.to_string().contains("mode 0777"), "{error}");
    }

    #[test]
    fn a_path_that_does_not_fit_is_said_to_be_too_long() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("d".repeat(100)).join("a.sock");
        assert!(matches!(Listener::bind(&path, 0o600, None), Err(BindError::TooLong(_))));
    }
}
