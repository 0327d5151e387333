//! What can go wrong with the kernel, each with its remedy.

use std::fmt;
use std::io;
use std::path::PathBuf;

use crate::plan::Change;

/// Why the kernel is not as it should be.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused a netlink request.
    #[error("{what}: {source}")]
    Netlink {
        /// The request.
        what: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// nft(8) could not be started.
    #[error("nft: cannot be run: {0}")]
    NftMissing(io::Error),
    /// nft(8) refused.
    #[error("nft: {0}")]
    Nft(String),
    /// A program of another firewall could not be started.
    #[error("{program}: cannot be run: {source}")]
    FirewallProgram {
        /// Its name.
        program: String,
        /// Why.
        source: io::Error,
    },
    /// A program of another firewall refused.
    #[error("{command}: {why}")]
    Firewall {
        /// As a person would type it.
        command: String,
        /// What it said.
        why: String,
    },
    /// A sysctl could not be read or written.
    #[error("{path}: {source}", path = path.display())]
    Sysctl {
        /// Its file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The journal could not be read or written.
    #[error("journal {path}: {source}", path = path.display())]
    Journal {
        /// Its file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The journal is not one. It was moved out of the way.
    #[error("journal {path}: damaged: {why}; kept as {backup}; sysctls that it recorded cannot be put back",
        path = path.display(), backup = backup.display())]
    JournalDamaged {
        /// Its file.
        path: PathBuf,
        /// Where it is now.
        backup: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The guard that is kept for a boot without a configuration could not be read or written.
    #[error("kept guard {path}: {why}", path = path.display())]
    KeptGuard {
        /// Its file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// The state folder is that of an agent with another interface.
    #[error("journal {path}: the state folder belongs to interface {owner}, not {interface}", path = path.display())]
    JournalForeign {
        /// Its file.
        path: PathBuf,
        /// Whose it is.
        owner: String,
        /// Who wanted it.
        interface: String,
    },
    /// The guard is not in place, and so nothing that needs it was done.
    #[error("guard not armed: {0}")]
    Guard(Box<Error>),
    /// Some changes failed; all others were made.
    #[error("{}", Lines(.failed))]
    Incomplete {
        /// What was done.
        applied: Vec<Change>,
        /// What was not, and why.
        failed: Vec<Failure>,
    },
}

/// A step that failed.
#[derive(Debug)]
pub struct Failure {
    /// As a person would type it; its first line.
    pub step: String,
    /// Why.
    pub error: Error,
}

impl Error {
    /// What the operator can do.
    pub fn remedy(&self) -> Option<&'static str> {
        match self {
            Self::NftMissing(error) if error.kind() == io::ErrorKind::NotFound => Some("apt install nftables"),
            Self::JournalForeign { .. } => Some("meshd down, when that agent is gone; else another --state-dir"),
            Self::JournalDamaged { .. } => {
                Some("compare sysctl -a with /etc/sysctl.d, then start again to go on without it")
            }
            Self::Journal { source, .. } => match source.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                    Some("make room on the disk of --state-dir")
                }
                io::ErrorKind::ReadOnlyFilesystem => {
                    Some("mount the disk of --state-dir for writing, or choose another")
                }
                io::ErrorKind::PermissionDenied => Some("the same as root"),
                io::ErrorKind::InvalidData => Some("meshd up or meshd down moves it aside and goes on without it"),
                _ => None,
            },
            Self::Guard(error) => error.remedy(),
            Self::Incomplete { failed, .. } => failed.iter().find_map(|failure| failure.error.remedy()),
            Self::Netlink { source, .. } | Self::Sysctl { source, .. }
                if matches!(source.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem) =>
            {
                Some("run as root, or with CAP_NET_ADMIN and a writable /proc/sys")
            }
            _ => None,
        }
    }

    /// Whether it concerns another firewall only: what meshd itself programs is in place.
    pub(super) fn is_of_another_firewall(&self) -> bool {
        matches!(self, Self::FirewallProgram { .. } | Self::Firewall { .. })
    }

    /// Of a netlink request.
    pub(super) fn netlink(what: impl Into<String>, error: rtnetlink::Error) -> Self {
        let source = match error {
            rtnetlink::Error::NetlinkError(message) => message.to_io(),
            other => io::Error::other(other.to_string()),
        };
        Self::Netlink { what: what.into(), source }
    }

    /// Of the operating system, where there is one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Netlink { source, .. } => source.raw_os_error(),
            _ => None,
        }
    }
}

impl Failure {
    pub(super) fn new(step: impl fmt::Display, error: Error) -> Self {
        let step = step.to_string();
        Self { step: step.lines().next().unwrap_or_default().to_owned(), error }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.step, self.error)
    }
}

struct Lines<'a>(&'a [Failure]);

impl fmt::Display for Lines<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<String> = self.0.iter().map(Failure::to_string).collect();
        f.write_str(&lines.join("; "))
    }
}
