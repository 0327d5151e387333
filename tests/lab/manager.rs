//! The part of a service manager that a restart needs: it is notified, keeps descriptors, and passes them to the next process, as
//! systemd does (sd_notify(3), sd_listen_fds(3)).

use std::fs::{self, File};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sendfd::RecvWithFd as _;

use super::host::Host;
use super::{secs, wait_for};

/// The first descriptor that is passed (SD_LISTEN_FDS_START).
const FIRST: RawFd = 3;
/// Above all that a test has open.
const ABOVE: RawFd = 500;

/// Runs `meshd up` of one host.
pub struct Manager<'h> {
    host: &'h Host,
    socket: UnixDatagram,
    path: PathBuf,
    /// What it keeps, with names. A test may put into it what it likes.
    pub kept: Vec<(String, OwnedFd)>,
    child: Option<Child>,
    /// As WATCHDOG_USEC.
    pub watchdog: Option<Duration>,
}

impl<'h> Manager<'h> {
    /// Has started nothing yet.
    pub fn of(host: &'h Host) -> Self {
        let path = host.config("../notify");
        let socket = UnixDatagram::bind(&path).expect("a socket for notifications");
        Self { host, socket, path, kept: Vec::new(), child: None, watchdog: None }
    }

    /// Starts the agent with what is kept, and waits until it is ready.
    pub fn start(&mut self) {
        let log = File::options().create(true).append(true).open(self.host.run_file("meshd.log")).expect("a log");
        // A shell knows the process's number before the program runs.
        let script = "export LISTEN_PID=$$ WATCHDOG_PID=$$; exec \"$0\" \"$@\"";
        let mut command = self.host.meshd_through(script, &["up"]);
        command.env("NOTIFY_SOCKET", &self.path).stdout(Stdio::null()).stderr(log);
        command.env("LISTEN_FDS", self.kept.len().to_string()).env("LISTEN_FDNAMES", self.names().join(":"));
        if let Some(limit) = self.watchdog {
            command.env("WATCHDOG_USEC", limit.as_micros().to_string());
        }
        let fds: Vec<RawFd> = self.kept.iter().map(|(_, fd)| fd.as_raw_fd()).collect();
        // SAFETY: between fork and exec only fcntl(2) and dup2(2) are called, which take no lock and allocate nothing.
        unsafe {
            command.pre_exec(move || pass(&fds));
        }
        self.child = Some(command.spawn().expect("sh"));
        let deadline = Instant::now() + secs(10);
        while !self.hears("READY=1") {
            assert!(Instant::now() < deadline, "{} is not ready\n{}", self.host.name, self.host.log());
        }
    }

    /// Ends the agent by a signal and goes on without waiting for more than that; what is kept stays.
    pub fn end(&mut self, signal: Signal) -> ExitStatus {
        let mut child = self.child.take().expect("a running agent");
        kill(Pid::from_raw(child.id().cast_signed()), signal).expect("kill");
        let status = child.wait().expect("wait");
        while self.receive(Duration::from_millis(1)).is_some() {}
        status
    }

    /// `systemctl restart`.
    pub fn restart(&mut self, signal: Signal) {
        self.end(signal);
        self.start();
    }

    /// What an agent that ends by itself says with its exit code; then nothing is kept, as for a service that is stopped.
    pub fn stopped(&mut self) -> ExitStatus {
        let mut child = self.child.take().expect("a running agent");
        let status = wait_for("the agent ends", secs(10), || child.try_wait().expect("wait"));
        self.kept.clear();
        status
    }

    /// The names of what is kept, in order.
    pub fn names(&self) -> Vec<&str> {
        self.kept.iter().map(|(name, _)| name.as_str()).collect()
    }

    /// Whether the next message, if one comes within a second, has this line.
    pub fn hears(&mut self, line: &str) -> bool {
        self.receive(secs(1)).is_some_and(|message| message.lines().any(|other| other == line))
    }

    /// Takes in all messages that have come.
    pub fn catch_up(&mut self) {
        while self.receive(Duration::from_millis(1)).is_some() {}
    }

    /// The next message, done as it says.
    pub fn receive(&mut self, patience: Duration) -> Option<String> {
        self.socket.set_read_timeout(Some(patience)).expect("timeout");
        let (mut bytes, mut fds) = ([0; 4096], [-1; 64]);
        let (length, count) = self.socket.recv_with_fd(&mut bytes, &mut fds).ok()?;
        // SAFETY: the kernel has just made these descriptors for this process.
        let fds = fds[..count].iter().map(|fd| unsafe { OwnedFd::from_raw_fd(*fd) });
        // The copies alone are not inherited by what a test starts.
        let fds: Vec<OwnedFd> = fds.map(|fd| fd.try_clone().expect("dup")).collect();
        let message = String::from_utf8_lossy(&bytes[..length]).into_owned();
        let name = message.lines().find_map(|line| line.strip_prefix("FDNAME=")).unwrap_or("stored");
        if message.lines().any(|line| line == "FDSTORE=1") {
            assert!(message.contains("FDPOLL=0"), "{message}");
            self.kept.extend(fds.into_iter().map(|fd| (name.to_owned(), fd)));
        } else if message.lines().any(|line| line == "FDSTOREREMOVE=1") {
            self.kept.retain(|(other, _)| other != name);
        }
        Some(message)
    }
}

impl Drop for Manager<'_> {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = fs::remove_file(&self.path);
    }
}

/// Has these descriptors from [`FIRST`] on, and open in the next program.
fn pass(fds: &[RawFd]) -> std::io::Result<()> {
    let check = |result: libc::c_int| if result < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) };
    for (from, to) in fds.iter().zip(ABOVE..) {
        // SAFETY: integers only, and nothing is open under the new number.
        check(unsafe { libc::dup3(*from, to, libc::O_CLOEXEC) })?;
    }
    for (from, to) in (ABOVE..).zip(FIRST..).take(fds.len()) {
        // SAFETY: integers only. What the new number means to the test it would cease to mean at the exec that follows.
        check(unsafe { libc::dup2(from, to) })?;
    }
    Ok(())
}
