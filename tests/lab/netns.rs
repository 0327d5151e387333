//! One namespace of the lab: run code or programs in it.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::thread::JoinHandle;

use nix::sched::{CloneFlags, setns};

use super::traffic::{Ping, Pinged};

/// A network namespace; of a host, with the mount namespace that holds its own `/run/wireguard`.
pub struct Namespace {
    name: String,
    net: File,
    mnt: Option<File>,
}

impl Namespace {
    /// Opens a name in `/run/netns`.
    pub fn open(path: &Path) -> Self {
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        let net = File::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        Self { name, net, mnt: None }
    }

    /// Adds the mount namespace of a process.
    pub fn with_mounts_of(mut self, pid: i32) -> Self {
        self.mnt = Some(File::open(format!("/proc/{pid}/ns/mnt")).expect("the holder's mount namespace"));
        self
    }

    /// As `ip netns` knows it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs `f` on a thread in the network namespace. Sockets that it opens stay there, whoever uses them.
    pub fn within<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(&self.net, CloneFlags::CLONE_NEWNET).expect("setns");
                f()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Starts a thread that stays in the network namespace.
    pub fn spawn<T: Send + 'static>(&self, f: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
        let net = self.net.try_clone().expect("dup");
        std::thread::spawn(move || {
            setns(&net, CloneFlags::CLONE_NEWNET).expect("setns");
            f()
        })
    }

    /// A program that will run here.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let net = self.net.try_clone().expect("dup");
        let mnt = self.mnt.as_ref().map(|mnt| mnt.try_clone().expect("dup"));
        let mut command = Command::new(program);
        // SAFETY: between fork and exec only setns(2) is called, which takes no lock and allocates nothing.
        unsafe {
            command.pre_exec(move || {
                if let Some(mnt) = &mnt {
                    setns(mnt, CloneFlags::CLONE_NEWNS)?;
                }
                setns(&net, CloneFlags::CLONE_NEWNET)?;
                Ok(())
            });
        }
        command.current_dir("/").stdin(Stdio::null());
        command
    }

    /// Runs a shell command line and tells how it went.
    pub fn try_run(&self, line: &str) -> Output {
        self.command("sh").args(["-c", line]).output().expect("sh")
    }

    /// Runs a shell command line, which must succeed; returns its standard output.
    pub fn run(&self, line: &str) -> String {
        let output = self.try_run(line);
        let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}$ {line}\n{stdout}{stderr}{}", self.name, output.status);
        stdout
    }

    /// One echo request; whether it was answered within two seconds.
    pub fn ping(&self, to: &str) -> bool {
        self.ping_with(to, "-c 1 -W 2").received == 1
    }

    /// ping(8) to its end.
    pub fn ping_with(&self, to: &str, options: &str) -> Pinged {
        Ping::start(self, to, options).finish()
    }
}
