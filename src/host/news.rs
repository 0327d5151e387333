//! What a netlink notification says about who made the change.
//!
//! The kernel stamps a notification of rtnetlink with the port of the socket that asked for the change: the process ID for a
//! process's first socket (`netlink_autobind`), the process ID in the lower 22 bits for users of libnl, and a negative
//! number that tells nothing for any other. What the kernel does by itself has port 0. nft says it outright: the generation
//! message carries the process ID and name of whoever committed it (`nf_tables_fill_gen_info`).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// Who changed what since the last report, as far as the kernel tells.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct News {
    /// By kind of thing, as [`Change::kind`](crate::plan::Change::kind) names it.
    by: BTreeMap<&'static str, BTreeSet<Actor>>,
}

/// A process.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Actor {
    /// `None` when it ended before it could be asked.
    pub name: Option<String>,
    /// Its ID.
    pub pid: u32,
}

impl News {
    /// Those who changed things of this kind.
    pub fn by(&self, kind: &str) -> impl Iterator<Item = &Actor> {
        // A link that goes takes addresses and routes with it, and of those the kernel names nobody.
        let link = if matches!(kind, "route" | "address") { "link" } else { "" };
        let kind = if matches!(kind, "guard" | "firewall") { "nft" } else { kind };
        let of = |kind: &str| self.by.get(kind).filter(|actors| !actors.is_empty());
        of(kind).or_else(|| of(link)).into_iter().flatten()
    }

    /// Leaves out processes that are our own.
    pub fn retain(&mut self, keep: impl Fn(&Actor) -> bool) {
        self.by.values_mut().for_each(|actors| actors.retain(&keep));
    }

    /// Takes a datagram of the socket of rtnetlink.
    pub(super) fn routing(&mut self, datagram: &[u8]) {
        for message in messages(datagram) {
            let kind = match message.kind {
                16 | 17 => "link",    // RTM_NEWLINK, RTM_DELLINK
                20 | 21 => "address", // RTM_NEWADDR, RTM_DELADDR
                24 | 25 => "route",   // RTM_NEWROUTE, RTM_DELROUTE
                32 | 33 => "rule",    // RTM_NEWRULE, RTM_DELRULE
                _ => continue,
            };
            let Some(pid) = process_of(message.port) else { continue };
            let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).ok();
            self.add(kind, name.as_deref().map(str::trim_end), pid);
        }
    }

    /// Takes a datagram of the socket of nfnetlink.
    pub(super) fn nft(&mut self, datagram: &[u8]) {
        const NEWGEN: u16 = (10 << 8) | 15; // NFNL_SUBSYS_NFTABLES, NFT_MSG_NEWGEN
        const PROC_PID: u16 = 2;
        const PROC_NAME: u16 = 3;
        for message in messages(datagram).filter(|message| message.kind == NEWGEN) {
            // Behind struct nfgenmsg.
            let attributes: BTreeMap<u16, &[u8]> = attributes(message.payload.get(4..).unwrap_or_default()).collect();
            let pid = attributes.get(&PROC_PID).and_then(|value| <[u8; 4]>::try_from(*value).ok());
            let name = attributes.get(&PROC_NAME).and_then(|value| std::str::from_utf8(value).ok());
            if let Some(pid) = pid {
                self.add("nft", name.map(|name| name.trim_end_matches('\0')), u32::from_be_bytes(pid));
            }
        }
    }

    pub(super) fn add(&mut self, kind: &'static str, name: Option<&str>, pid: u32) {
        /// Of one kind between two reports; more names help nobody.
        const MOST: usize = 8;
        let actors = self.by.entry(kind).or_default();
        if pid != std::process::id() && actors.len() < MOST {
            actors.insert(Actor { name: name.map(str::to_owned), pid });
        }
    }
}

impl fmt::Display for Actor {
    /// `nft (pid 1234)`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            Some(name) => write!(f, "{} (pid {})", name.escape_debug(), self.pid),
            None => write!(f, "pid {}, which has ended", self.pid),
        }
    }
}

/// The process behind a port, see the top.
fn process_of(port: u32) -> Option<u32> {
    let pid = port & 0x003f_ffff;
    (port >> 31 == 0 && pid != 0).then_some(pid)
}

pub(super) struct Message<'d> {
    pub(super) kind: u16,
    port: u32,
    pub(super) payload: &'d [u8],
}

/// `struct nlmsghdr`: length, type, flags, sequence, port. Stops at what is cut off.
pub(super) fn messages(mut datagram: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let (header, _) = datagram.split_first_chunk::<16>()?;
        let word = |at: usize| u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let length = word(0) as usize;
        let payload = datagram.get(16..length.min(datagram.len()))?;
        datagram = datagram.get(length.next_multiple_of(4).max(16)..).unwrap_or_default();
        Some(Message { kind: u16::from_ne_bytes([header[4], header[5]]), port: word(12), payload })
    })
}

/// `struct nlattr`: length, type, value.
pub(super) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let (&[l0, l1, t0, t1], _) = bytes.split_first_chunk::<4>()?;
        let length = usize::from(u16::from_ne_bytes([l0, l1]));
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_ne_bytes([t0, t1]), value))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, port: u32, payload: &[u8]) -> Vec<u8> {
        let length = 16 + u32::try_from(payload.len()).unwrap();
        let mut bytes = [length.to_ne_bytes(), [0; 4], [0; 4], port.to_ne_bytes()].concat();
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes.extend(payload);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let length = 4 + u16::try_from(value.len()).unwrap();
        let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn names(news: &News, kind: &str) -> Vec<String> {
        news.by(kind).map(Actor::to_string).collect()
    }

    #[test]
    fn the_port_is_a_process_where_it_can_be_one() {
        let (init, libnl, negative) = (1, 1 | 5 << 22, 0x8000_1234);
        for (port, pid) in [(init, Some(1)), (libnl, Some(1)), (0, None), (negative, None)] {
            assert_eq!(process_of(port), pid, "{port:#x}");
        }
        let comm = std::fs::read_to_string("/proc/1/comm").unwrap();
        let mut news = News::default();
        let datagram = [message(25, 1, b"route"), message(33, 0, b""), message(33, std::process::id(), b"")].concat();
        news.routing(&datagram);
        assert_eq!(names(&news, "route"), [format!("{} (pid 1)", comm.trim_end())]);
        assert_eq!(names(&news, "rule"), [""; 0], "the kernel and the agent itself are nobody");
        news.routing(&message(17, 0x003f_fffe, b""));
        assert_eq!(names(&news, "address"), ["pid 4194302, which has ended"], "with its link");
        news.retain(|actor| actor.name.is_some());
        assert_eq!(names(&news, "address"), [""; 0]);
    }

    #[test]
    fn nft_names_who_committed() {
        let mut payload = vec![0; 4];
        payload.extend([attribute(1, &[0, 0, 0, 9]), attribute(2, &[0, 0, 4, 210]), attribute(3, b"nft\0")].concat());
        let mut news = News::default();
        news.nft(&message(2575, 0, &payload));
        assert_eq!(names(&news, "guard"), ["nft (pid 1234)"]);
        for length in 0..payload.len() {
            News::default().nft(&message(2575, 0, &payload[..length]));
            News::default().nft(&message(2575, 0, &payload)[..length]);
        }
    }
}
