//! wg-quick(8)'s configuration files: reading, writing, and what they and meshd's own files say in each other's words.
//!
//! - `parse` takes a file apart as wg(8) and wg-quick(8) do: keys in any case, `#` comments, lists over several lines.
//!   What it does not understand is an error with its line, where wg-quick would hand it on to wg(8).
//! - `text` writes one; `qr` makes the picture of it that the stock app's camera reads.
//! - `client` makes a device's file, `export` that of a host; `take` and `import` go the other way.

mod client;
mod export;
mod import;
mod parse;
mod qr;
mod take;
#[cfg(test)]
mod tests;
mod text;

use std::net::IpAddr;

use ipnet::IpNet;

use crate::config::Endpoint;
use crate::key::{PresharedKey, PrivateKey, PublicKey};

pub use client::{Client, Identity, client};
pub use export::{export, for_peer};
pub use import::{Imported, Wanted, import};
pub use parse::parse;
pub use qr::{Qr, TooLong};
pub use take::{Taken, take};

/// A whole file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Conf {
    /// `[Interface]`, empty where there is none.
    pub interface: Interface,
    /// `[Peer]`, in their order.
    pub peers: Vec<Peer>,
}

/// `[Interface]`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Interface {
    /// `None` is written as a comment that says what belongs there.
    pub private_key: Option<PrivateKey>,
    /// Each with its prefix; without one in the file it is that of the address alone.
    pub addresses: Vec<IpNet>,
    /// Of UDP; `None` lets the kernel pick.
    pub listen_port: Option<u16>,
    /// In bytes.
    pub mtu: Option<u16>,
    /// Name servers.
    pub dns: Vec<IpAddr>,
    /// What `DNS` holds beside addresses: domains that names are completed with. As written, any text.
    pub search: Vec<String>,
    /// `off`, `auto`, a number or a name. As written, any text.
    pub table: Option<String>,
    /// 0 is `off`.
    pub fwmark: Option<u32>,
    /// Whether wg-quick rewrites the file.
    pub save_config: bool,
    /// What wg-quick runs.
    pub hooks: Vec<Hook>,
}

/// A command that wg-quick runs. As written, any text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hook {
    /// When.
    pub when: When,
    /// For bash(1).
    pub command: String,
}

/// When wg-quick runs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub enum When {
    PreUp,
    PostUp,
    PreDown,
    PostDown,
}

/// `[Peer]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// From a comment above it or in it, the first that is a sound name of a peer.
    pub name: Option<String>,
    /// Its identity.
    pub public_key: PublicKey,
    /// Mixed into the handshake.
    pub preshared_key: Option<PresharedKey>,
    /// Without host bits, as wg(8) takes them.
    pub allowed_ips: Vec<IpNet>,
    /// Where it is.
    pub endpoint: Option<Endpoint>,
    /// Seconds; `None` is off.
    pub persistent_keepalive: Option<u16>,
}

impl Peer {
    /// One of this key, of whom nothing else is known.
    pub fn new(public_key: PublicKey) -> Self {
        Self {
            name: None,
            public_key,
            preshared_key: None,
            allowed_ips: Vec::new(),
            endpoint: None,
            persistent_keepalive: None,
        }
    }
}

impl When {
    /// Each, with its key in the file.
    const ALL: [(Self, &str); 4] =
        [(Self::PreUp, "PreUp"), (Self::PostUp, "PostUp"), (Self::PreDown, "PreDown"), (Self::PostDown, "PostDown")];

    /// Its key in the file.
    pub fn key(self) -> &'static str {
        Self::ALL.iter().find(|(when, _)| *when == self).map_or("", |(_, key)| key)
    }
}
