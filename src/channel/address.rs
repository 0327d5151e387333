//! The address of an agent: a prefix that is the same everywhere, and a hash of its public key.

use std::net::{IpAddr, Ipv6Addr};

use blake2::{Blake2s256, Digest as _};
use ipnet::{IpNet, Ipv6Net};

use crate::key::PublicKey;

/// Of all agents: a unique local prefix (RFC 4193) of 64 bits, `fd6d:6573:6864::/64`. Never configured on an interface,
/// never routed.
pub const PREFIX: [u8; 8] = [0xfd, b'm', b'e', b's', b'h', b'd', 0, 0];

/// The same as a network, which nothing else may have.
pub const NETWORK: IpNet = IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(0xfd6d, 0x6573, 0x6864, 0, 0, 0, 0, 0), 64));

/// Where a key's agent is. The hash need not resist collisions: an address is only ever compared with that of a peer
/// whose key is proven already.
pub fn of(key: &PublicKey) -> Ipv6Addr {
    let hash = Blake2s256::new().chain_update(b"meshd agent").chain_update(key.as_bytes()).finalize();
    let mut octets = [0; 16];
    octets[..8].copy_from_slice(&PREFIX);
    octets[8..].copy_from_slice(&hash[..8]);
    octets.into()
}

/// Whether this is an agent's address, and so no traffic's.
pub fn contains(addr: IpAddr) -> bool {
    matches!(addr, IpAddr::V6(v6) if v6.octets().starts_with(&PREFIX))
}

/// Whether an IP packet is addressed to an agent. Asked for every packet that arrives, so one comparison decides for
/// nearly all.
#[inline]
pub fn is_destination(packet: &[u8]) -> bool {
    packet.get(24..32) == Some(&PREFIX) && packet.len() >= 40 && packet[0] >> 4 == 6
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::PrivateKey;

    #[test]
    fn addresses_differ_by_key_and_lie_in_the_prefix() {
        let [a, b] = [1, 2].map(|seed| of(&PrivateKey::from_bytes([seed; 32]).public_key()));
        assert_ne!(a, b);
        assert_eq!(NETWORK.to_string(), "fd6d:6573:6864::/64");
        for addr in [a, b] {
            assert!(NETWORK.contains(&IpAddr::from(addr)) && contains(addr.into()));
        }
        assert!(!contains("fd6d:6573:6864:1::1".parse().unwrap()));
        assert!(!contains("10.88.0.1".parse().unwrap()));
    }

    #[test]
    fn only_ipv6_headers_have_such_a_destination() {
        let mut packet = vec![0; 40];
        packet[24..32].copy_from_slice(&PREFIX);
        packet[0] = 0x60;
        assert!(is_destination(&packet));
        assert!(!is_destination(&packet[..39]));
        packet[0] = 0x45;
        assert!(!is_destination(&packet), "the payload of an IPv4 packet");
    }
}
