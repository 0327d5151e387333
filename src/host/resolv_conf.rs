//! `/etc/resolv.conf` of a container, written from outside.

use std::fmt;
use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sched::{CloneFlags, setns};
use nix::sys::stat::Mode;
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};
use serde::{Deserialize, Serialize};

use super::port::ContainerNamespace;
use super::process::Process;

const PATH: &str = "etc/resolv.conf";

/// Whom a container asks for names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resolver {
    /// The bridge's own addresses.
    pub servers: Vec<IpAddr>,
    /// Where names without a dot are looked for: this host's part of the mesh.
    pub search: String,
}

impl fmt::Display for Resolver {
    /// As resolv.conf(5) has it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "# Written by meshd as the container was attached.\nsearch {}", self.search)?;
        self.servers.iter().try_for_each(|server| writeln!(f, "nameserver {server}"))
    }
}

impl Resolver {
    /// Writes it for a running container; whether that has a file of its own, beside the host's. This process acts as the
    /// container's owner from here on, for what the paths in it lead to is up to them; it must have one thread only.
    ///
    /// # Errors
    /// When the container has ended, or its owner may not write the file.
    pub fn write_into(&self, namespace: &ContainerNamespace, process: &OwnedFd) -> io::Result<bool> {
        let pid = Process::of(process)?.pid();
        become_owner(namespace)?;
        let root = File::open(format!("/proc/{pid}/root"))?;
        // Only now: until then the number could have come to be another's.
        Process::of(process)?;
        self.write_below(&root)
    }

    /// Writes it below a container's root; whether that has a file of its own, beside the host's.
    ///
    /// # Errors
    /// When this process may not write it.
    pub fn write_below(&self, root: &File) -> io::Result<bool> {
        let identity = |metadata: Metadata| (metadata.dev(), metadata.ino());
        // Nothing holds a named pipe's opener up.
        let mut flags = OFlag::O_WRONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC | OFlag::O_NOCTTY;
        if root.metadata().map(identity)? != std::fs::metadata("/").map(identity)? {
            flags |= OFlag::O_CREAT;
        }
        let mode = if flags.contains(OFlag::O_CREAT) { Mode::from_bits_truncate(0o644) } else { Mode::empty() };
        // A symbolic link leads to where it leads within the container.
        let how = OpenHow::new().resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        let open = |flags, mode| openat2(root.as_fd(), PATH, how.flags(flags).mode(mode)).map(File::from);
        let file = open(flags, mode);
        // Who may not write it may still see whose it is.
        let looked = file.is_err().then(|| open(OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()));
        let there = looked.as_ref().unwrap_or(&file).as_ref().ok().and_then(|file| file.metadata().map(identity).ok());
        if there.is_some() && there == std::fs::metadata(Path::new("/").join(PATH)).map(identity).ok() {
            return Ok(false);
        }
        self.write(file?).map(|()| true)
    }

    /// Writes it over a file that a container engine mounts there.
    ///
    /// # Errors
    /// When the file is not there, or not one.
    pub fn write_over(&self, path: &Path) -> io::Result<()> {
        self.write(OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(path)?)
    }

    /// In place, for a mount stays with the file that it was made of.
    fn write(&self, mut file: File) -> io::Result<()> {
        if !file.metadata()?.is_file() {
            return Err(io::Error::other("no regular file"));
        }
        file.set_len(0)?;
        file.write_all(self.to_string().as_bytes())
    }
}

/// Root's rights would take a symbolic link of the container's making through its mounts to files that its owner may not write.
fn become_owner(namespace: &ContainerNamespace) -> io::Result<()> {
    let (users, own) = (File::from(namespace.users()?), File::open("/proc/self/ns/user")?);
    if users.metadata()?.ino() == own.metadata()?.ino() {
        return Ok(());
    }
    setns(&users, CloneFlags::CLONE_NEWUSER)?;
    // Where the engine forbids it (setgroups is "deny") there is nothing to drop either.
    let _ = setgroups(&[]);
    setresgid(Gid::from_raw(0), Gid::from_raw(0), Gid::from_raw(0))?;
    setresuid(Uid::from_raw(0), Uid::from_raw(0), Uid::from_raw(0))?;
    Ok(())
}
