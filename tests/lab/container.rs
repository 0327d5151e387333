//! Containers without an engine.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use super::host::Host;
use super::netns::Namespace;
use super::{secs, wait_for};

/// A process in a network namespace of its own; a user's is in a user namespace of theirs too.
pub struct Container {
    child: Child,
    namespace: Namespace,
}

impl Container {
    /// Sleeps.
    pub fn start(host: &Host, uid: u32) -> Self {
        Self::run(host, uid, if uid == 0 { &["--net"] } else { &["--map-root-user", "--net"] }, &["sleep", "300"])
    }

    /// What it runs becomes sleep(1) once it is ready.
    pub fn run(host: &Host, uid: u32, unshare: &[&str], program: &[&str]) -> Self {
        let mut command = as_user(host, uid, "unshare");
        let child = command.args(unshare).args(program).spawn().expect("unshare");
        let path = PathBuf::from(format!("/proc/{}/ns/net", child.id()));
        wait_for("a container", secs(5), || {
            let comm = fs::read_to_string(format!("/proc/{}/comm", child.id())).ok()?;
            (comm == "sleep\n").then_some(())
        });
        Self { namespace: Namespace::open(&path), child }
    }

    /// Of its process.
    pub fn pid(&self) -> String {
        self.child.id().to_string()
    }
}

impl std::ops::Deref for Container {
    type Target = Namespace;

    fn deref(&self) -> &Namespace {
        &self.namespace
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A program that a user will run on the host.
pub fn as_user(host: &Host, uid: u32, program: impl AsRef<Path>) -> Command {
    if uid == 0 {
        return host.command(program.as_ref());
    }
    let (mut command, uid) = (host.command("setpriv"), uid.to_string());
    command.args(["--reuid", &uid, "--regid", &uid, "--clear-groups"]).arg(program.as_ref());
    command
}
