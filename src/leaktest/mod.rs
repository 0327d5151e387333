//! Proving that an egress bridge leaves only by its exit. Pure: packets as bytes in, a verdict out.
//!
//! 1. A [`Run`] has a tag of its own, which every packet that it sends bears as text.
//! 2. [`probes()`] writes what a container might send astray from each [`Leg`]: an unused address on a bridge.
//! 3. A [`Recogniser`] looks at what leaves this host beside the tunnel: by its tag, and also as rewritten by a NAT, taken up by
//!    a proxy, or asked for by ARP, it knows a probe again.
//! 4. Marked frames that the host itself sends out of each watched interface (*controls*) show that they would be seen.
//! 5. [`Report`] holds what came of it, and the [`Verdict`].

mod neighbour;
mod packet;
mod probes;
mod recognise;
mod report;
#[cfg(test)]
mod tests;

use std::net::IpAddr;

use ipnet::IpNet;

pub use neighbour::{Mac, Neighbour, multicast};
pub use packet::{ETHERTYPE_ARP, ethertype, reset};
pub use probes::{Effort, Probe, Target, probes, targets};
pub use recognise::{Recogniser, Seen, describe};
pub use report::{Answer, CaptureReport, Leak, LegReport, Report, Verdict};

/// What each run's tag begins with, for whoever finds one in a capture of his own.
const TAG: &[u8; 4] = b"leak";
/// The tag in bytes: four letters and 20 hexadecimal digits.
const TAG_LEN: usize = 24;
/// Tag and number.
const MARKER_LEN: usize = TAG_LEN + 4;
/// Controls are numbered from here on, probes below.
const FIRST_CONTROL: u16 = 0x8000;

/// An unused address on a bridge, where probes come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leg {
    /// The bridge.
    pub bridge: String,
    /// The address, which is nobody else's.
    pub address: IpAddr,
    /// The bridge's own address.
    pub gateway: IpAddr,
    /// That address with its prefix.
    pub subnet: IpNet,
}

/// One run of the test, told from all others, and from all other traffic, by its tag.
#[derive(Debug, Clone, Copy)]
pub struct Run {
    tag: [u8; TAG_LEN],
    random: u64,
}

/// A frame that this host itself sent, to show that the capture works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Control {
    /// Counts the watched interfaces.
    pub interface: u16,
    /// There is one round before the probes and one after.
    pub after: bool,
    /// IPv4 otherwise.
    pub ipv6: bool,
}

/// What a marker says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Marked {
    Probe(u16),
    Control(Control),
}

impl Run {
    /// From random bytes.
    pub fn new(random: [u8; 18]) -> Self {
        let mut tag = [0; TAG_LEN];
        tag[..TAG.len()].copy_from_slice(TAG);
        for (pair, byte) in tag[TAG.len()..].chunks_exact_mut(2).zip(random) {
            pair.copy_from_slice(&hex(byte));
        }
        let mut rest = [0; 8];
        rest.copy_from_slice(&random[10..]);
        Self { tag, random: u64::from_ne_bytes(rest) }
    }

    /// The tag as text.
    pub fn tag(&self) -> String {
        String::from_utf8_lossy(&self.tag).into_owned()
    }

    /// An IP packet for the host to send, that nobody takes: from no address to one of the documentation's, for one hop.
    pub fn control(&self, control: Control) -> Vec<u8> {
        packet::control(control.ipv6, &self.marker(number(control)))
    }

    /// A random number, the same for the same `salt`.
    fn random(&self, salt: u64) -> u64 {
        // splitmix64
        let mut x = self.random.wrapping_add(salt.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// A port of the probe's own: neither well-known nor one that this kernel gives to clients by default.
    fn port(&self, number: u16) -> u16 {
        let base = 16_000 + (self.random(0) % 8000) as u16;
        base + number % 8000
    }

    /// An address in `net` for the `attempt`th attempt to find a free one; none when there can be none. In IPv4 it is in the
    /// upper half, for container engines give addresses out from below.
    pub fn candidate(&self, net: IpNet, attempt: u32) -> Option<IpAddr> {
        address_in(net, self.random(0x1000 + u64::from(attempt)), true)
    }

    fn marker(&self, number: u16) -> [u8; MARKER_LEN] {
        let mut marker = [0; MARKER_LEN];
        marker[..TAG_LEN].copy_from_slice(&self.tag);
        let [high, low] = number.to_be_bytes();
        marker[TAG_LEN..TAG_LEN + 2].copy_from_slice(&hex(high));
        marker[TAG_LEN + 2..].copy_from_slice(&hex(low));
        marker
    }

    /// Finds a marker anywhere. Upper and lower case are one: resolvers mix them (draft-vixie-dnsext-dns0x20).
    fn find(&self, bytes: &[u8]) -> Option<Marked> {
        let starts = |at: &usize| bytes[*at] | 0x20 == TAG[0] && bytes[*at + 1] | 0x20 == TAG[1];
        let candidates = (0..(bytes.len() + 1).saturating_sub(MARKER_LEN)).filter(starts);
        candidates.map(|at| &bytes[at..at + MARKER_LEN]).find_map(|found| {
            let (tag, digits) = found.split_at(TAG_LEN);
            let digits = std::str::from_utf8(digits).ok().filter(|_| tag.eq_ignore_ascii_case(&self.tag))?;
            let number = u16::from_str_radix(digits, 16).ok()?;
            Some(if number < FIRST_CONTROL { Marked::Probe(number) } else { Marked::Control(control(number)) })
        })
    }
}

fn number(control: Control) -> u16 {
    FIRST_CONTROL | (control.interface << 2) | (u16::from(control.after) << 1) | u16::from(control.ipv6)
}

fn control(number: u16) -> Control {
    let number = number & !FIRST_CONTROL;
    Control { interface: number >> 2, after: number & 2 != 0, ipv6: number & 1 != 0 }
}

fn hex(byte: u8) -> [u8; 2] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]
}

/// A host's address in `net`, not the network's own nor, in IPv4, the broadcast address; `upper` keeps to the upper half.
fn address_in(net: IpNet, random: u64, upper: bool) -> Option<IpAddr> {
    let bits = net.max_prefix_len() - net.prefix_len();
    match net.trunc() {
        IpNet::V4(net) => {
            let size = 1u64.checked_shl(bits.into())?;
            let (low, high) = if upper && bits > 3 { (size / 2, size - 1) } else { (1, size.checked_sub(1)?) };
            let span = high.checked_sub(low).filter(|span| *span > 0)?;
            let offset = u32::try_from(low + random % span).ok()?;
            Some(IpAddr::V4(u32::from(net.addr()).wrapping_add(offset).into()))
        }
        IpNet::V6(net) => {
            // Above the numbers that people and engines count with, as far as the prefix has room.
            let mask = 1u128.checked_shl(bits.into()).map_or(u128::MAX, |size| size - 1);
            let offset = ((u128::from(random) | 1 << 62) & mask).max(1);
            (mask > 1).then(|| IpAddr::V6((u128::from(net.addr()) | offset).into()))
        }
    }
}
