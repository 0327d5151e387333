//! What this process keeps to itself, and other processes by descriptor.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd as _, OwnedFd};

use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};
use serde::{Deserialize, Serialize};
use tokio::io::unix::AsyncFd;

/// Keeps this process's memory, which has keys in it, out of core files and from other processes of its user. What it starts
/// writes no core files either. Best effort: without it all else works.
pub fn keep_secrets() {
    let _ = setrlimit(Resource::RLIMIT_CORE, 0, 0);
    let _ = prctl::set_dumpable(false);
}

/// A process of this host, told from whichever has its number later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Process {
    pid: i32,
    /// When it started, in the kernel's ticks since boot (field 22 of proc_pid_stat(5)).
    started: u64,
}

impl Process {
    /// The one behind a pidfd.
    ///
    /// # Errors
    /// When it is no pidfd, or the process has ended.
    pub fn of(pidfd: &impl AsRawFd) -> io::Result<Self> {
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd()))?;
        let pid = info.lines().find_map(|line| line.strip_prefix("Pid:")).and_then(|pid| pid.trim().parse().ok());
        let pid: i32 =
            pid.filter(|pid| *pid > 0).ok_or_else(|| io::Error::other("no process, or one that has ended"))?;
        Ok(Self { pid, started: started(pid)? })
    }

    /// Its number.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// A pidfd of it.
    ///
    /// # Errors
    /// When it has ended.
    pub fn open(&self) -> io::Result<OwnedFd> {
        let process = open(self.pid)?;
        // Only now: the number may have gone to another before, and cannot any more.
        if started(self.pid)? == self.started { Ok(process) } else { Err(io::ErrorKind::NotFound.into()) }
    }
}

/// A pidfd of the process with this number.
///
/// # Errors
/// When there is none.
pub fn open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: pidfd_open(2) takes two integers and touches no memory of this process.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a new descriptor that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Waits until the process of a pidfd has ended. Must be called inside a tokio runtime.
///
/// # Errors
/// When it cannot be waited for.
pub async fn ended(process: OwnedFd) -> io::Result<()> {
    // SAFETY: the descriptor stays open for as long as `AsyncFd`, which owns it, lives.
    unsafe { AsyncFd::register(process)? }.readable().await.map(drop)
}

fn started(pid: i32) -> io::Result<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name, in parentheses, may hold anything; the state behind it is field 3.
    let ticks = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(22 - 3)?.parse().ok());
    ticks.ok_or_else(|| io::Error::other("unknown form of /proc/PID/stat"))
}
