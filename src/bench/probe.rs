//! The packets of a run. Their layout is the same in the tunnel and beside it, all numbers big-endian:
//!
//! ```text
//!  0      1      8        24         32      40      44       48        56      64
//!  +------+------+--------+----------+-------+-------+--------+---------+-------+---------
//!  | kind | flag | run id | sequence | proof | stamp | micros | packets | bytes | padding
//!  +------+------+--------+----------+-------+-------+--------+---------+-------+---------
//! ```

use super::RunId;

/// The bytes of a probe without padding.
pub const PROBE_LEN: usize = 64;

const DATA: u8 = 1;
const ACK: u8 = 2;
const ECHO: u8 = 3;
const ECHOED: u8 = 4;

/// One packet of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Probe {
    /// Load.
    Data {
        /// Counted from 0.
        sequence: u64,
        /// What nobody knows who does not receive this.
        proof: u64,
        /// The sender's time.
        stamp: u32,
        /// The sender waits: acknowledge at once.
        urgent: bool,
    },
    /// What of the load has arrived.
    Ack {
        /// Of the packet that this is for.
        sequence: u64,
        /// Of that packet.
        proof: u64,
        /// Of that packet.
        stamp: u32,
        /// The receiver's time, in microseconds.
        micros: u32,
        /// How many have arrived.
        packets: u64,
        /// The bytes of these.
        bytes: u64,
    },
    /// To be sent back as [`Probe::Echoed`].
    Echo {
        /// Counted from 0.
        sequence: u64,
    },
    /// Sent back.
    Echoed {
        /// Of the echo.
        sequence: u64,
    },
}

impl Probe {
    /// As it is sent, without padding.
    pub fn bytes(&self, run: RunId) -> [u8; PROBE_LEN] {
        let mut bytes = [0; PROBE_LEN];
        bytes[8..24].copy_from_slice(&run.0);
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        match *self {
            Self::Data { sequence, proof, stamp, urgent } => {
                put(0, &[DATA, urgent.into()]);
                put(24, &sequence.to_be_bytes());
                put(32, &proof.to_be_bytes());
                put(40, &stamp.to_be_bytes());
            }
            Self::Ack { sequence, proof, stamp, micros, packets, bytes } => {
                put(0, &[ACK]);
                put(24, &sequence.to_be_bytes());
                put(32, &proof.to_be_bytes());
                put(40, &stamp.to_be_bytes());
                put(44, &micros.to_be_bytes());
                put(48, &packets.to_be_bytes());
                put(56, &bytes.to_be_bytes());
            }
            Self::Echo { sequence } | Self::Echoed { sequence } => {
                put(0, &[if matches!(self, Self::Echo { .. }) { ECHO } else { ECHOED }]);
                put(24, &sequence.to_be_bytes());
            }
        }
        bytes
    }

    /// Reads a probe of a run; `None` for anything else. Only data may be padded.
    pub fn parse(bytes: &[u8], run: RunId) -> Option<Self> {
        let (probe, padding) = bytes.split_first_chunk::<PROBE_LEN>()?;
        if probe[8..24] != run.0 || !padding.is_empty() && probe[0] != DATA {
            return None;
        }
        let long = |at: usize| probe[at..].first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes));
        let word = |at: usize| probe[at..].first_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes));
        let (sequence, proof, stamp) = (long(24), long(32), word(40));
        Some(match probe[0] {
            DATA => Self::Data { sequence, proof, stamp, urgent: probe[1] != 0 },
            ACK => Self::Ack { sequence, proof, stamp, micros: word(44), packets: long(48), bytes: long(56) },
            ECHO => Self::Echo { sequence },
            ECHOED => Self::Echoed { sequence },
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn probes_survive_the_wire(kind in 0..4, a: u64, b: u64, c: u32, d: u32, urgent: bool, padding in 0usize..100) {
            let probe = match kind {
                0 => Probe::Data { sequence: a, proof: b, stamp: c, urgent },
                1 => Probe::Ack { sequence: a, proof: b, stamp: c, micros: d, packets: a ^ b, bytes: a.wrapping_add(b) },
                2 => Probe::Echo { sequence: a },
                _ => Probe::Echoed { sequence: a },
            };
            let (run, other) = (RunId([7; 16]), RunId([8; 16]));
            let mut bytes = probe.bytes(run).to_vec();
            prop_assert_eq!(Probe::parse(&bytes, run), Some(probe));
            prop_assert_eq!(Probe::parse(&bytes, other), None);
            prop_assert_eq!(Probe::parse(&bytes[..63], run), None);
            bytes.resize(PROBE_LEN + padding, 0);
            prop_assert_eq!(Probe::parse(&bytes, run).is_some(), kind == 0 || padding == 0);
        }

        #[test]
        fn garbage_does_not_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..130), right: bool) {
            if right && bytes.len() >= 24 {
                bytes[8..24].fill(7);
            }
            let _ = Probe::parse(&bytes, RunId([7; 16]));
        }
    }
}
