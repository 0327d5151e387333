//! What agents say to each other about express sessions: the bodies of [`Kind::Express`](crate::channel::Kind).
//!
//! ```text
//!  0         1     2        3     4
//!  +---------+-----+--------+-----+----------------+----------------------------------------
//!  | version | op  | reason |  0  | index          | by op
//!  +---------+-----+--------+-----+----------------+----------------------------------------
//!  Ask        1       0             the asker's      contribution (32)
//!  Agree      2       0             the asker's      the answerer's index (4), contribution (32)
//!  Decline    3       why           the asker's
//!  Stop       4       why           of who says so
//!  Opened     5       0             of who says so
//! ```
//!
//! Indices stand as in the header of transport data: little-endian.

use super::keys::Contribution;
use super::{INDEX, Reason};

const VERSION: u8 = 1;
const ASK: u8 = 1;
const AGREE: u8 = 2;
const DECLINE: u8 = 3;
const STOP: u8 = 4;
const OPENED: u8 = 5;
const HEAD: usize = 8;

/// The longest.
pub const LONGEST: usize = 44;

/// One message.
pub enum Message {
    /// Keys are wanted.
    Ask {
        /// Under which the asker will receive.
        index: u32,
        /// The asker's.
        contribution: Contribution,
    },
    /// There are keys.
    Agree {
        /// That of the message which is answered.
        asked: u32,
        /// Under which the answerer receives.
        index: u32,
        /// The answerer's.
        contribution: Contribution,
    },
    /// There will be none in this session of WireGuard.
    Decline {
        /// That of the message which is answered; 0 when nothing was asked.
        asked: u32,
        /// Why.
        reason: Reason,
    },
    /// Nothing more is opened under an index.
    Stop {
        /// Of who says so.
        index: u32,
        /// Why.
        reason: Reason,
    },
    /// An empty message has been opened under an index.
    Opened {
        /// Of who says so.
        index: u32,
    },
}

/// What cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unreadable {
    /// An Ask of another version.
    Version {
        /// The asker's index, if it still stands where it did.
        asked: u32,
    },
    /// Anything else.
    Malformed,
}

impl Message {
    /// Reads one; bytes behind it are not looked at.
    ///
    /// # Errors
    /// When it is of another version or malformed.
    pub fn parse(body: &[u8]) -> Result<Self, Unreadable> {
        let malformed = Unreadable::Malformed;
        let (&[version, op, reason, reserved, index @ ..], rest) = body.split_first_chunk::<HEAD>().ok_or(malformed)?;
        if version != VERSION {
            let asked = u32::from_le_bytes(index);
            return Err(if op == ASK { Unreadable::Version { asked } } else { malformed });
        }
        if reserved != 0 || matches!(op, ASK | AGREE | OPENED) && reason != 0 {
            return Err(malformed);
        }
        let index = u32::from_le_bytes(index);
        let contribution = |bytes: &[u8]| bytes.first_chunk().map(|bytes| Contribution::from_bytes(*bytes));
        let express = |index: u32| if index & INDEX != 0 { Ok(index) } else { Err(malformed) };
        Ok(match op {
            ASK => Self::Ask { index: express(index)?, contribution: contribution(rest).ok_or(malformed)? },
            AGREE => {
                let (own, rest) = rest.split_first_chunk().ok_or(malformed)?;
                let (own, contribution) = (u32::from_le_bytes(*own), contribution(rest).ok_or(malformed)?);
                Self::Agree { asked: express(index)?, index: express(own)?, contribution }
            }
            DECLINE => Self::Decline { asked: index, reason: Reason::of(reason).ok_or(malformed)? },
            STOP => Self::Stop { index: express(index)?, reason: Reason::of(reason).ok_or(malformed)? },
            OPENED => Self::Opened { index: express(index)? },
            _ => return Err(malformed),
        })
    }

    /// Writes it to the start of `to`; its length comes back.
    pub fn write(&self, to: &mut [u8; LONGEST]) -> usize {
        let (op, reason, first) = match self {
            Self::Ask { index, .. } => (ASK, 0, index),
            Self::Agree { asked, .. } => (AGREE, 0, asked),
            Self::Decline { asked, reason } => (DECLINE, *reason as u8, asked),
            Self::Stop { index, reason } => (STOP, *reason as u8, index),
            Self::Opened { index } => (OPENED, 0, index),
        };
        to[..4].copy_from_slice(&[VERSION, op, reason, 0]);
        to[4..HEAD].copy_from_slice(&first.to_le_bytes());
        match self {
            Self::Ask { contribution, .. } => {
                to[HEAD..HEAD + 32].copy_from_slice(contribution.expose_bytes());
                HEAD + 32
            }
            Self::Agree { index, contribution, .. } => {
                to[HEAD..HEAD + 4].copy_from_slice(&index.to_le_bytes());
                to[HEAD + 4..].copy_from_slice(contribution.expose_bytes());
                LONGEST
            }
            Self::Decline { .. } | Self::Stop { .. } | Self::Opened { .. } => HEAD,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn written(message: &Message) -> Vec<u8> {
        let mut to = [0xaa; LONGEST];
        let len = message.write(&mut to);
        to[..len].to_vec()
    }

    fn messages() -> impl Strategy<Value = Vec<u8>> {
        let index = any::<u32>().prop_map(|index| index | INDEX);
        let reason = prop::sample::select(vec![Reason::Off, Reason::NoHardware, Reason::Version, Reason::Doubt]);
        (0..5, index.clone(), index, any::<[u8; 32]>(), reason).prop_map(|(op, asked, index, bytes, reason)| {
            let contribution = Contribution::from_bytes(bytes);
            written(&match op {
                0 => Message::Ask { index, contribution },
                1 => Message::Agree { asked, index, contribution },
                2 => Message::Decline { asked, reason },
                3 => Message::Stop { index, reason },
                _ => Message::Opened { index },
            })
        })
    }

    #[test]
    fn the_bytes_are_those_of_the_specification() {
        let contribution = || Contribution::from_bytes([0xcc; 32]);
        let (asked, index) = (0x8012_3456, 0x8065_4321);
        let ask = [&[1, 1, 0, 0, 0x21, 0x43, 0x65, 0x80][..], &[0xcc; 32]].concat();
        assert_eq!(written(&Message::Ask { index, contribution: contribution() }), ask);
        let agree = [&[1, 2, 0, 0, 0x56, 0x34, 0x12, 0x80, 0x21, 0x43, 0x65, 0x80][..], &[0xcc; 32]].concat();
        assert_eq!(written(&Message::Agree { asked, index, contribution: contribution() }), agree);
        let decline = Message::Decline { asked: 0, reason: Reason::NoHardware };
        assert_eq!(written(&decline), [1, 3, 2, 0, 0, 0, 0, 0]);
        let stop = Message::Stop { index, reason: Reason::Doubt };
        assert_eq!(written(&stop), [1, 4, 4, 0, 0x21, 0x43, 0x65, 0x80]);
        assert_eq!(written(&Message::Opened { index }), [1, 5, 0, 0, 0x21, 0x43, 0x65, 0x80]);
    }

    #[test]
    fn an_ask_of_another_version_is_told_apart() {
        let of = |bytes: &[u8]| Message::parse(bytes).err();
        assert_eq!(of(&[2, 1, 9, 9, 1, 0, 0, 0x80]), Some(Unreadable::Version { asked: 0x8000_0001 }));
        assert_eq!(of(&[2, 2, 0, 0, 1, 0, 0, 0x80]), Some(Unreadable::Malformed));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(bytes in messages()) {
            let read = Message::parse(&bytes).ok().map(|message| written(&message));
            prop_assert_eq!(read, Some(bytes.clone()));
            // Cut anywhere it is nothing.
            for len in 0..bytes.len() {
                prop_assert!(Message::parse(&bytes[..len]).is_err());
            }
        }

        #[test]
        fn whatever_comes_is_read_as_it_would_be_written_or_not_at_all(
            bytes in proptest::collection::vec(any::<u8>(), 0..60),
            start in prop::sample::select(vec![[1, 1, 0], [1, 2, 0], [1, 3, 1], [1, 4, 4], [1, 5, 0], [1, 6, 0], [0, 1, 0]]),
        ) {
            for bytes in [bytes.clone(), [&start[..], &bytes].concat()] {
                if let Ok(message) = Message::parse(&bytes) {
                    let again = written(&message);
                    prop_assert_eq!(&bytes[..again.len()], again);
                }
            }
        }
    }
}
