//! One agent per run directory, and a way for others to see whether it lives.
//!
//! `meshd.pid` carries an open-file-description lock (fcntl(2), `F_OFD_SETLK`) for as long as the agent lives. Unlike
//! flock(2) it can be asked after without being taken, so that a `meshd status` never makes a starting agent fail.
//! The file is 0600: whoever can open a file for reading can put a read lock on it, and that would keep the agent out.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::socket::ensure_dir;
use crate::host::process;
use crate::owner;

/// From SIGKILL to the end of a process: its threads have to leave the kernel first.
pub const DEATH_LIMIT: Duration = Duration::from_secs(5);
/// SIGKILL in the sets of signals of proc(5).
const KILL: u64 = 1 << (libc::SIGKILL - 1);

/// The pid file's name in the run directory.
pub const PID_FILE: &str = "meshd.pid";

/// Why the run directory could not be taken.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another agent has it.
    #[error("already running{}", .pid.map(|pid| format!(", pid {pid}")).unwrap_or_default())]
    AlreadyRunning {
        /// The other agent, unless it has only just started.
        pid: Option<i32>,
    },
    /// The directory or the file is not usable.
    #[error("{path}: {source}", path = .path.display())]
    Io {
        /// What could not be used.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Proof that this process is the one agent of a run directory. Dropping it removes the pid file.
#[derive(Debug)]
pub struct RunLock {
    file: File,
    path: PathBuf,
}

/// Takes the run directory, which is created (0755) when it does not exist, and writes the pid file.
pub fn lock(run_dir: &Path) -> Result<RunLock, LockError> {
    let path = run_dir.join(PID_FILE);
    let io_error = |path: &Path, source| LockError::Io { path: path.to_owned(), source };
    ensure_dir(run_dir).map_err(|error| io_error(run_dir, error))?;
    loop {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&path)
            .map_err(|error| io_error(&path, error))?;
        match fcntl(&file, FcntlArg::F_OFD_SETLK(&write_lock())) {
            // An agent that is not root is to open it, should this process be killed.
            Ok(_) => owner::give(&file, run_dir).map_err(|error| io_error(&path, error))?,
            Err(Errno::EAGAIN | Errno::EACCES) => return Err(LockError::AlreadyRunning { pid: read_pid(&file) }),
            Err(errno) => return Err(io_error(&path, errno.into())),
        }
        // The agent that held the lock removes the file at its end: what was locked here may have no name any more.
        let locked = file.metadata().map_err(|error| io_error(&path, error))?;
        let named = std::fs::symlink_metadata(&path);
        if !named.is_ok_and(|named| (named.dev(), named.ino()) == (locked.dev(), locked.ino())) {
            continue;
        }
        let lock = RunLock { file, path };
        lock.record_pid().map_err(|error| io_error(&lock.path, error))?;
        return Ok(lock);
    }
}

impl RunLock {
    /// The directory that it holds.
    pub fn run_dir(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new(""))
    }

    /// Writes this process's id into the file; once more after a fork, which shares the lock.
    pub fn record_pid(&self) -> io::Result<()> {
        let mut file = &self.file;
        file.set_len(0)?;
        file.rewind()?;
        writeln!(file, "{}", std::process::id())
    }
}

impl Drop for RunLock {
    fn drop(&mut self) {
        // Before the lock goes with the file descriptor, so that this never removes a successor's file.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// An agent that holds the lock of a run directory.
#[derive(Debug)]
pub struct Running {
    /// Its process, unless it has only just started.
    pub pid: Option<i32>,
    process: Option<OwnedFd>,
    pid_file: File,
}

/// The agent of this run directory. None when there is none, or when this user may not know.
pub fn running(run_dir: &Path) -> Option<Running> {
    let pid_file = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(run_dir.join(PID_FILE)).ok()?;
    let pid = read_pid(&pid_file);
    let process = pid.and_then(|pid| process::open(pid).ok());
    // Only now: a lock still held means that the process above is its holder and no later bearer of the number.
    is_held(&pid_file).then_some(Running { pid, process, pid_file })
}

impl Running {
    /// Whether it was killed and has yet to let go of what it holds: all its threads have to end first.
    pub fn is_dying(&self) -> bool {
        let Some(pid) = self.pid else { return false };
        // When the process is gone altogether, a child that it had just forked has the lock until it executes its program.
        let Ok(status) = std::fs::read_to_string(format!("/proc/{pid}/status")) else { return true };
        let value = |key: &str| status.lines().find_map(|line| line.strip_prefix(key)).map(str::trim);
        let killed =
            |key| value(key).and_then(|hex| u64::from_str_radix(hex, 16).ok()).is_some_and(|set| set & KILL != 0);
        value("State:").is_some_and(|state| state.starts_with(['Z', 'X'])) || killed("SigPnd:") || killed("ShdPnd:")
    }

    /// Waits until the process has ended. False when it has not within `limit`.
    pub fn wait(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        let Some(process) = &self.process else {
            while is_held(&self.pid_file) && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(10));
            }
            return !is_held(&self.pid_file);
        };
        loop {
            // One more than the whole milliseconds, so that the last wait is not cut into many of zero.
            let left = deadline.saturating_duration_since(Instant::now()).as_millis().saturating_add(1);
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            match poll(&mut [PollFd::new(process.as_fd(), PollFlags::POLLIN)], timeout) {
                Ok(0) | Err(Errno::EINTR) if Instant::now() < deadline => {}
                Ok(0) | Err(_) => return !is_held(&self.pid_file),
                Ok(_) => return true,
            }
        }
    }
}

fn write_lock() -> libc::flock {
    // l_start and l_len of 0 span the whole file; l_pid must be 0 for the OFD commands.
    libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}

fn is_held(file: &File) -> bool {
    let mut probe = write_lock();
    fcntl(file, FcntlArg::F_OFD_GETLK(&mut probe)).is_ok() && probe.l_type != libc::F_UNLCK as libc::c_short
}

fn read_pid(file: &File) -> Option<i32> {
    let mut text = String::new();
    file.take(16).read_to_string(&mut text).ok()?;
    text.trim().parse().ok().filter(|&pid| pid > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_agent_is_told_who_is_first() {
        let dir = tempfile::tempdir().unwrap();
        let first = lock(dir.path()).unwrap();
        let error = lock(dir.path()).unwrap_err();
        assert_eq!(error.to_string(), format!("already running, pid {}", std::process::id()));
        drop(first);
        assert!(!dir.path().join(PID_FILE).exists());
        lock(dir.path()).unwrap();
    }

    #[test]
    fn the_file_of_a_killed_agent_is_no_obstacle() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(PID_FILE), "1\n").unwrap();
        assert!(running(dir.path()).is_none());
        let _lock = lock(dir.path()).unwrap();
        assert_eq!(running(dir.path()).unwrap().pid, Some(std::process::id().cast_signed()));
    }

    #[test]
    fn of_many_at_once_exactly_one_starts() {
        let dir = tempfile::tempdir().unwrap();
        for _ in 0..50 {
            let barrier = std::sync::Barrier::new(8);
            let locks: Vec<_> = std::thread::scope(|scope| {
                let threads: Vec<_> = (0..8)
                    .map(|_| {
                        scope.spawn(|| {
                            barrier.wait();
                            lock(dir.path())
                        })
                    })
                    .collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).collect()
            });
            assert_eq!(locks.iter().filter(|lock| lock.is_ok()).count(), 1, "{locks:?}");
        }
    }

    #[test]
    fn a_link_in_place_of_the_pid_file_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("target");
        std::fs::write(&target, "precious").unwrap();
        std::os::unix::fs::symlink(&target, dir.path().join(PID_FILE)).unwrap();
        assert!(matches!(lock(dir.path()), Err(LockError::Io { .. })));
        assert_eq!(std::fs::read_to_string(&target).unwrap(), "precious");
    }

    #[test]
    fn the_end_of_the_process_is_awaited() {
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let process = process::open(child.id().cast_signed()).ok();
        let running = Running { pid: None, process, pid_file: tempfile::tempfile().unwrap() };
        let dir = tempfile::tempdir().unwrap();
        let _held = lock(dir.path()).unwrap();
        let live = Running {
            pid_file: File::open(dir.path().join(PID_FILE)).unwrap(),
            process: process::open(child.id().cast_signed()).ok(),
            pid: None,
        };
        assert!(!live.wait(Duration::from_millis(20)));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(running.wait(Duration::from_secs(10)));
    }

    #[test]
    fn a_lock_that_outlives_its_process_is_awaited() {
        let dir = tempfile::tempdir().unwrap();
        let held_by_a_child = lock(dir.path()).unwrap();
        let mut dead = std::process::Command::new("true").spawn().unwrap();
        dead.wait().unwrap();
        std::fs::write(dir.path().join(PID_FILE), format!("{}\n", dead.id())).unwrap();
        let agent = running(dir.path()).unwrap();
        assert!(agent.is_dying());
        assert!(!agent.wait(Duration::from_millis(20)));
        let waiting = std::thread::spawn(move || agent.wait(Duration::from_secs(10)));
        drop(held_by_a_child);
        assert!(waiting.join().unwrap());
    }
}
