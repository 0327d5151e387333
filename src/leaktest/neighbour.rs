//! Who has an address: ARP (RFC 826, RFC 5227) and neighbour discovery (RFC 4861), as whole Ethernet frames.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::packet::{ETHERTYPE_ARP, ICMPV6, IPV6, Way, transport};

/// An Ethernet address.
pub type Mac = [u8; 6];

const BROADCAST: Mac = [0xff; 6];
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
/// Neighbour discovery that went through a router is none (RFC 4861, 7.1).
const HOP_LIMIT: u8 = 255;

/// A question or an answer about one address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Neighbour {
    /// An answer; otherwise a question.
    pub answer: bool,
    /// The address asked for, or spoken for.
    pub target: IpAddr,
    /// Of the sender; unspecified while it asks whether the address is free.
    pub sender: IpAddr,
    /// Of the sender.
    pub mac: Mac,
}

impl Neighbour {
    /// The frame; an answer goes to `to` alone, a question to all.
    pub fn frame(&self, to: Option<(Mac, IpAddr)>) -> Vec<u8> {
        match (self.target, self.sender) {
            (IpAddr::V4(target), IpAddr::V4(sender)) => self.arp(target, sender, to),
            (IpAddr::V6(target), IpAddr::V6(sender)) => self.discovery(target, sender, to),
            _ => Vec::new(),
        }
    }

    fn arp(&self, target: Ipv4Addr, sender: Ipv4Addr, to: Option<(Mac, IpAddr)>) -> Vec<u8> {
        let (mac, asker) = match to {
            Some((mac, IpAddr::V4(asker))) => (mac, asker),
            _ => ([0; 6], target),
        };
        let mut frame = header(to.map_or(BROADCAST, |(mac, _)| mac), self.mac, ETHERTYPE_ARP);
        frame.extend([0, 1, 0x08, 0, 6, 4, 0, 1 + u8::from(self.answer)]);
        frame.extend(self.mac);
        frame.extend(if self.answer { target } else { sender }.octets());
        frame.extend(mac);
        frame.extend(asker.octets());
        frame
    }

    fn discovery(&self, target: Ipv6Addr, sender: Ipv6Addr, to: Option<(Mac, IpAddr)>) -> Vec<u8> {
        let group = solicited_node(target);
        let (mac, destination) = to.unwrap_or((multicast_v6(group), group.into()));
        let (kind, source, flags, option) = if self.answer {
            // Solicited, and overriding what was known.
            (ADVERTISEMENT, target, 0x60, 2)
        } else {
            (SOLICITATION, sender, 0, 1)
        };
        let mut message = vec![kind, 0, 0, 0, flags, 0, 0, 0];
        message.extend(target.octets());
        if !source.is_unspecified() {
            message.extend([option, 1]);
            message.extend(self.mac);
        }
        let way = Way { source: source.into(), destination };
        let mut frame = header(mac, self.mac, IPV6);
        frame.extend(way.headed(ICMPV6, HOP_LIMIT, 0, &way.summed(message, ICMPV6, 2)));
        frame
    }

    /// Reads a frame.
    pub fn parse(frame: &[u8]) -> Option<Self> {
        let (header, body) = frame.split_at_checked(14)?;
        let mac = header[6..12].try_into().ok()?;
        Self::parse_body(u16::from_be_bytes([header[12], header[13]]), body, mac)
    }

    /// Reads what follows an Ethernet header.
    pub fn parse_body(ethertype: u16, body: &[u8], mac: Mac) -> Option<Self> {
        let v4 = |at: usize| body.get(at..at + 4).map(|bytes| Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3]));
        if ethertype == ETHERTYPE_ARP {
            if body.get(..6) != Some(&[0, 1, 0x08, 0, 6, 4]) {
                return None;
            }
            let (sender, asked) = (v4(14)?, v4(24)?);
            // Whoever names itself as sender speaks for its address, whether it answers or asks.
            let answer = body[7] == 2;
            let mac = body.get(8..14)?.try_into().ok()?;
            return Some(Self {
                answer,
                target: if answer { sender } else { asked }.into(),
                sender: sender.into(),
                mac,
            });
        }
        if ethertype != IPV6 {
            return None;
        }
        let (protocol, way, message) = transport(body)?;
        let target = <[u8; 16]>::try_from(message.get(8..24)?).ok()?;
        let answer = match message[0] {
            _ if protocol != ICMPV6 => return None,
            SOLICITATION => false,
            ADVERTISEMENT => true,
            _ => return None,
        };
        Some(Self { answer, target: Ipv6Addr::from(target).into(), sender: way.source, mac })
    }
}

/// The Ethernet address of a multicast group (RFC 1112, 6.4; RFC 2464, 7); none for other addresses.
pub fn multicast(address: IpAddr) -> Option<Mac> {
    match address {
        IpAddr::V4(address) => address.is_multicast().then(|| {
            let [_, b, c, d] = address.octets();
            [0x01, 0, 0x5e, b & 0x7f, c, d]
        }),
        IpAddr::V6(address) => address.is_multicast().then(|| multicast_v6(address)),
    }
}

fn multicast_v6(group: Ipv6Addr) -> Mac {
    let [.., a, b, c, d] = group.octets();
    [0x33, 0x33, a, b, c, d]
}

/// RFC 4291, 2.7.1.
fn solicited_node(address: Ipv6Addr) -> Ipv6Addr {
    let [.., high, low] = address.segments();
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | (high & 0xff), low)
}

fn header(to: Mac, from: Mac, ethertype: u16) -> Vec<u8> {
    [&to[..], &from, &ethertype.to_be_bytes()].concat()
}
