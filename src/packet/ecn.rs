//! Explicit congestion notification across the tunnel (RFC 6040).
//!
//! On the way out the outer header takes the inner ECN field (normal mode, section 4.1). On the way in the two are
//! combined (section 4.2), so that a router that marks instead of dropping is heard by the flow inside:
//!
//! ```text
//!            outer   Not-ECT   ECT(0)    ECT(1)    CE
//! inner Not-ECT      Not-ECT   Not-ECT   Not-ECT   drop
//! inner ECT(0)       ECT(0)    ECT(0)    ECT(1)    CE
//! inner ECT(1)       ECT(1)    ECT(1)    ECT(1)    CE
//! inner CE           CE        CE        CE        CE
//! ```

use super::checksum::Sum;
use super::{IPV4_HEADER, read_u16};

/// The ECN field of a traffic class (RFC 3168, section 5); the rest is DSCP.
pub const MASK: u8 = 0b11;
const NOT_ECT: u8 = 0b00;
const ECT1: u8 = 0b01;
const ECT0: u8 = 0b10;
const CE: u8 = 0b11;

/// TOS or traffic class of a packet; 0 of what is none.
#[inline]
pub fn traffic_class(packet: &[u8]) -> u8 {
    match packet {
        [first, second, ..] if first >> 4 == 4 => *second,
        [first, second, ..] if first >> 4 == 6 => first << 4 | second >> 4,
        _ => 0,
    }
}

/// Brings what the network said about the outer packet to the inner one, which is a whole IP packet. False when it must be
/// dropped: congestion was met, and its transport would not understand a mark.
#[inline]
pub fn decapsulate(packet: &mut [u8], outer: u8) -> bool {
    // Not-ECT and ECT(0) outside never change what is inside.
    outer & ECT1 == 0 || mark(packet, outer & MASK)
}

fn mark(packet: &mut [u8], outer: u8) -> bool {
    let class = traffic_class(packet);
    let ecn = match (class & MASK, outer) {
        (NOT_ECT, CE) => return false,
        (ECT0 | ECT1, CE) => CE,
        (ECT0, ECT1) => ECT1,
        _ => return true,
    };
    let class = class & !MASK | ecn;
    if packet[0] >> 4 == 6 {
        packet[1] = packet[1] & 0x0f | class << 4;
    } else if packet.len() >= IPV4_HEADER {
        // RFC 1624, equation 3.
        let sum = Sum::default().value(!read_u16(packet, 10)).without(read_u16(packet, 0));
        packet[1] = class;
        let checksum = sum.value(read_u16(packet, 0)).complement();
        packet[10..12].copy_from_slice(&checksum);
    }
    true
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::packet::testing::{self, Sample};

    /// RFC 6040, figure 4: rows are inner, columns outer, both as Not-ECT, ECT(0), ECT(1), CE.
    const CODES: [u8; 4] = [NOT_ECT, ECT0, ECT1, CE];
    const FIGURE_4: [[Option<u8>; 4]; 4] = [
        [Some(NOT_ECT), Some(NOT_ECT), Some(NOT_ECT), None],
        [Some(ECT0), Some(ECT0), Some(ECT1), Some(CE)],
        [Some(ECT1), Some(ECT1), Some(ECT1), Some(CE)],
        [Some(CE), Some(CE), Some(CE), Some(CE)],
    ];

    proptest! {
        /// The wanted packet is built and summed by another implementation.
        #[test]
        fn every_pair_of_the_table(sample in testing::sample(200), outer_dscp in 0u8..64) {
            for (inner, row) in CODES.iter().zip(FIGURE_4) {
                for (outer, wanted) in CODES.iter().zip(row) {
                    let with = |ecn| Sample { traffic_class: sample.traffic_class & !MASK | ecn, ..sample.clone() };
                    let mut packet = with(*inner).build();
                    prop_assert_eq!(traffic_class(&packet), with(*inner).traffic_class);
                    prop_assert_eq!(decapsulate(&mut packet, outer_dscp << 2 | outer), wanted.is_some());
                    if let Some(ecn) = wanted {
                        prop_assert_eq!(packet, with(ecn).build());
                    }
                }
            }
        }

        #[test]
        fn garbage_does_not_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..60), outer in any::<u8>()) {
            decapsulate(&mut bytes, outer);
        }
    }
}
