//! Where a peer stands, in words for people.

use std::fmt;

use super::{Reason, Standing};

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (reason, place) = match self {
            Self::On => return f.write_str("agreed"),
            Self::Idle => return f.write_str("little has flowed since the last handshake"),
            Self::Asking | Self::Proving => return f.write_str("being agreed on"),
            Self::Unanswered => return f.write_str("without an answer"),
            Self::Here(reason) => (reason, "here"),
            Self::There(reason) => (reason, "there"),
        };
        match reason {
            Reason::Off => write!(f, "switched off {place}"),
            Reason::NoHardware => write!(f, "the CPU {place} has no instructions for AES"),
            Reason::Version => f.write_str("the agents' versions differ"),
            Reason::Doubt => write!(f, "messages came {place} that did not open"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Counts, Snapshot};
    use super::*;

    #[test]
    fn what_stands_in_json_is_as_documented_and_read_again() {
        let reasons = [Reason::Off, Reason::NoHardware, Reason::Version, Reason::Doubt];
        let names = ["configured", "no_hardware", "version", "doubt"];
        let mut all = vec![
            (Standing::On, "on", None),
            (Standing::Idle, "idle", None),
            (Standing::Asking, "asking", None),
            (Standing::Proving, "proving", None),
            (Standing::Unanswered, "unanswered", None),
        ];
        for (reason, name) in reasons.into_iter().zip(names) {
            all.push((Standing::Here(reason), "off_here", Some(name)));
            all.push((Standing::There(reason), "off_there", Some(name)));
        }
        for (standing, state, reason) in all {
            let counts = Counts { tx_packets: 1, tx_bytes: 2, rx_packets: 3, rx_bytes: 4 };
            let snapshot = Snapshot { standing, counts, sessions: 5 };
            let json = serde_json::to_value(snapshot).unwrap();
            assert_eq!((json["state"].as_str(), json["reason"].as_str()), (Some(state), reason));
            let numbers =
                ["tx_packets", "tx_bytes", "rx_packets", "rx_bytes", "sessions"].map(|key| json[key].as_u64());
            assert_eq!(numbers, [1, 2, 3, 4, 5].map(Some));
            assert_eq!(serde_json::from_value::<Snapshot>(json).unwrap(), snapshot);
        }
    }

    #[test]
    fn each_reason_says_where_it_lies() {
        for (standing, words) in [
            (Standing::Here(Reason::Off), "switched off here"),
            (Standing::There(Reason::NoHardware), "the CPU there has no instructions for AES"),
            (Standing::There(Reason::Doubt), "messages came there that did not open"),
        ] {
            assert_eq!(standing.to_string(), words);
        }
    }
}
