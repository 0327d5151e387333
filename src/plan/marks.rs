//! The marks of what is published, by which its answers find the way back.
//!
//! Packets are selected by where they come from, and an answer comes from the container like all else that it sends; only
//! conntrack knows that it is one. So the first packet of such a flow gives the flow a mark, and the packets of a marked
//! flow bear it too and go by a rule of their own ([`PRIORITY_MARK`](super::PRIORITY_MARK)). A container cannot give marks.
//!
//! The upper eight bits are ours and no others are touched: wg-quick and NetBird use the lower 16, Tailscale 0xff0000,
//! netavark and CNI 0x2000, kube-proxy 0x4000 and 0x8000.

use super::tables::fnv1a;

/// The bits that are ours.
pub const MASK: u32 = 0xff00_0000;

/// Of the agent with this interface, so that several can share a network namespace.
pub fn back_into_tunnel(interface: &str) -> u32 {
    let number = 1 + fnv1a(interface.as_bytes()) % 127;
    u32::try_from(number).unwrap_or_default() << 24
}

/// As [`back_into_tunnel`], for flows that came from outside of the mesh to a port that this host itself publishes.
pub fn back_by_main(interface: &str) -> u32 {
    back_into_tunnel(interface) | 1 << 31
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_differ_stay_in_their_bits_and_are_never_none() {
        for interface in ["mesh0", "mesh1", "wg-home"] {
            let (tunnel, main) = (back_into_tunnel(interface), back_by_main(interface));
            assert!(tunnel != main && tunnel != 0);
            assert_eq!((tunnel & !MASK, main & !MASK), (0, 0));
        }
        assert_ne!(back_into_tunnel("mesh0"), back_into_tunnel("mesh1"));
    }
}
