//! A container's place on a bridge: the names and addresses of its pair of interfaces.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

use super::{Lease, Leases, opening};
use crate::config::{Config, Publish, User};
use crate::plan::tables::fnv1a;

/// Linux's IFNAMSIZ, less the byte that ends it.
const LONGEST: usize = 15;
const PREFIX: &str = "c-";
/// Of the host's ends.
const OUTSIDE: [u8; 2] = [0xfe, 0xff];
/// The interface of an agent that is alone on its host.
const USUAL: &str = "mesh0";

/// An Ethernet address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mac(pub [u8; 6]);

/// A port of a bridge, and whose it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// The container's name.
    pub name: String,
    /// The bridge.
    pub bridge: String,
    /// The host's end of the pair.
    pub interface: String,
    /// The container's own Ethernet address.
    pub mac: Mac,
    /// The container's addresses.
    pub addresses: Vec<IpAddr>,
    /// Whose container it is.
    pub uid: u32,
    /// Whose containers it reaches beside those of its own user.
    pub reach: Vec<u32>,
    /// Ports of this host that lead to it.
    pub publish: Vec<Publish>,
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let octets = self.0.map(|octet| format!("{octet:02x}"));
        f.write_str(&octets.join(":"))
    }
}

impl Mac {
    /// The address that a container's kernel gives itself (modified EUI-64, RFC 4291, appendix A).
    pub fn link_local(self) -> Ipv6Addr {
        let mut octets = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0x00ff, 0xfe00, 0).octets();
        octets[8..11].copy_from_slice(&self.0[..3]);
        octets[13..].copy_from_slice(&self.0[3..]);
        octets[8] ^= 2;
        octets.into()
    }
}

impl Leases {
    /// The ports of what is attached, by name. `uid_of` looks up a user's number.
    pub fn ports(&self, config: &Config, uid_of: impl Fn(&str) -> Option<u32>) -> Vec<Port> {
        let attached = self.iter().filter(|(_, lease)| lease.vacant.is_none());
        attached.map(|(name, lease)| port(config, name, lease, &uid_of)).collect()
    }
}

fn port(config: &Config, name: &str, lease: &Lease, uid_of: impl Fn(&str) -> Option<u32>) -> Port {
    let users =
        config.host.bridges.iter().filter(|bridge| bridge.name == lease.bridge).flat_map(|bridge| &bridge.users);
    let number = |user: &str| user.parse().ok().or_else(|| uid_of(user));
    let grants: Vec<&User> = users.filter(|user| number(&user.name) == Some(lease.uid)).collect();
    Port {
        name: name.to_owned(),
        bridge: lease.bridge.clone(),
        interface: interface(&config.host.interface, name),
        mac: mac(config, name),
        addresses: lease.addresses.clone(),
        uid: lease.uid,
        reach: grants.iter().flat_map(|user| &user.reach).filter_map(|user| number(user)).collect(),
        publish: opening::published(config, lease, &grants),
    }
}

/// The name of the host's end: `c-NAME`, or as much of it as fits with a digest of the whole.
pub fn interface(tunnel: &str, name: &str) -> String {
    let whole = format!("{PREFIX}{name}");
    if tunnel == USUAL && whole.len() <= LONGEST {
        return whole;
    }
    // Several agents on a host may have containers of the same name.
    let digest = fnv1a(format!("{tunnel}/{name}").as_bytes()) & 0xffff_ffff;
    let kept = &name[..name.len().min(LONGEST - PREFIX.len() - 9)];
    format!("{PREFIX}{kept}-{digest:08x}")
}

/// The same for a name each time, so that its neighbours need not learn another.
fn mac(config: &Config, name: &str) -> Mac {
    let host = &config.host;
    let digest = fnv1a(format!("{}/{}/{name}", host.name, host.interface).as_bytes()).to_be_bytes();
    // Locally administered (IEEE 802, clause 8.4).
    Mac([0x02, digest[0], digest[1], digest[2], digest[3], digest[4]])
}

/// That of the host's end: above those of other ports, as a bridge without one of its own takes the lowest.
pub fn outside(mac: Mac) -> Mac {
    let [_, _, a, b, c, d] = mac.0;
    Mac([OUTSIDE[0], OUTSIDE[1], a, b, c, d])
}

/// Whether an interface of this name and address is the host's end of a pair that an agent made.
pub fn is_port(name: &str, mac: Mac) -> bool {
    name.starts_with(PREFIX) && mac.0.starts_with(&OUTSIDE)
}
