//! The record of an invitation: what the inviter keeps of it. Only derived values, never the token or its secret.
//!
//! ```text
//!         redeem(key)                       confirm
//! Open ───────────────────────► Bound{key} ────────► Used{key}
//!   │  redeem(key)       approve    ▲   │
//!   └──────────────► Waiting{key} ──┘   │ revoke, or never confirmed
//!            │              │           ▼
//!            └──────────────┴───────► Ended
//! ```
//!
//! Redeeming is answered the same, however often one key asks. What has ended is kept for an hour beyond its expiry, so that
//! a joiner is told why.

use std::net::IpAddr;

use blake2::{Blake2s256, Digest as _};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::exchange::{Offer, Refusal};
use super::{Secret, preshared_key, throwaway_key};
use crate::config::{Config, Peer};
use crate::key::{PresharedKey, PublicKey, SigningKey};
use crate::mesh::{self, Member};

/// Of seconds: who was let in at the last moment has so long to make its first handshake.
const GRACE: u64 = 120;
/// Of seconds: for how long after its expiry an invitation is known.
const REMEMBERED: u64 = 3600;

/// What the inviter keeps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Invitation {
    /// Short, for people and for the record's file name.
    pub id: String,
    /// What the joiner is to be called.
    pub name: String,
    /// The public half of the throwaway key.
    pub key: PublicKey,
    #[serde(with = "base64")]
    preshared_key: PresharedKey,
    /// Those of the joiner inside the mesh.
    pub addresses: Vec<IpAddr>,
    /// What its bridges and LANs may have.
    pub subnets: Vec<IpNet>,
    /// Those of them that are LANs.
    #[serde(default)]
    pub lans: Vec<IpNet>,
    /// Whether this host carries the egress of its bridges.
    #[serde(default)]
    pub egress: bool,
    /// Whether the operator has to confirm the joiner's fingerprint.
    #[serde(default)]
    pub approve: bool,
    /// Unix seconds.
    pub expires: u64,
    /// How far it is.
    pub state: State,
}

/// How far an invitation is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "is")]
pub enum State {
    /// Nobody has redeemed it.
    Open,
    /// This key has, and the operator has to confirm it.
    Waiting {
        /// The joiner's.
        key: PublicKey,
    },
    /// This key is let in.
    Bound {
        /// The joiner's.
        key: PublicKey,
        /// Hash of the peer's file as it was written, by which an edited one is told.
        file: String,
    },
    /// The joiner was heard under its own key.
    Used {
        /// The joiner's.
        key: PublicKey,
    },
    /// Nobody is let in any more.
    Ended {
        /// Whether the operator did it; else it was too late.
        revoked: bool,
    },
}

/// What is wanted for whoever joins.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "as in Invitation")]
pub struct Terms {
    pub name: String,
    pub addresses: Vec<IpAddr>,
    pub subnets: Vec<IpNet>,
    pub lans: Vec<IpNet>,
    pub egress: bool,
    pub approve: bool,
    pub expires: u64,
}

/// What redeeming an invitation comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Redeemed {
    /// No.
    Refused(Refusal),
    /// The operator has to confirm this key; `new` when it is to be noted first.
    Waiting {
        /// Whether this is news.
        new: bool,
    },
    /// This key may be let in: see [`Invitation::bind`].
    Bind,
    /// It was let in before.
    Bound,
}

impl Invitation {
    /// A new one, from the secret that the token carries.
    pub fn new(secret: &Secret, inviter: &PublicKey, terms: Terms) -> Self {
        let key = throwaway_key(secret, inviter).public_key();
        let Terms { name, addresses, subnets, lans, egress, approve, expires } = terms;
        let (id, preshared_key) = (short(&Blake2s256::digest(key.as_bytes())[..4]), preshared_key(secret, inviter));
        Self { id, name, key, preshared_key, addresses, subnets, lans, egress, approve, expires, state: State::Open }
    }

    /// For the session of the throwaway key.
    pub fn preshared_key(&self) -> &PresharedKey {
        &self.preshared_key
    }

    /// What it comes to that the holder of `joiner` redeems it. Changes nothing but that somebody waits.
    pub fn redeem(&mut self, joiner: &PublicKey, now: u64) -> Redeemed {
        let late = now >= self.expires;
        match &self.state {
            State::Ended { revoked: true } => Redeemed::Refused(Refusal::Revoked),
            State::Ended { revoked: false } => Redeemed::Refused(Refusal::Expired),
            State::Waiting { key } | State::Bound { key, .. } | State::Used { key } if key != joiner => {
                Redeemed::Refused(Refusal::Used)
            }
            // It may have lost what it was given; who comes later is more likely to have found the token.
            State::Used { .. } if late => Redeemed::Refused(Refusal::Used),
            State::Bound { .. } if self.lapsed(now) => Redeemed::Refused(Refusal::Expired),
            State::Used { .. } | State::Bound { .. } => Redeemed::Bound,
            State::Open | State::Waiting { .. } if late => Redeemed::Refused(Refusal::Expired),
            State::Waiting { .. } => Redeemed::Waiting { new: false },
            State::Open if self.approve => {
                self.state = State::Waiting { key: *joiner };
                Redeemed::Waiting { new: true }
            }
            State::Open => Redeemed::Bind,
        }
    }

    /// Lets this key in, whose peer's file has this text.
    pub fn bind(&mut self, key: PublicKey, file: &str) {
        self.state = State::Bound { key, file: hash(file) };
    }

    /// The joiner was heard under its own key. False when that is no news.
    pub fn confirm(&mut self) -> bool {
        let State::Bound { key, .. } = self.state else { return false };
        self.state = State::Used { key };
        true
    }

    /// Lets nobody in any more. False when somebody is for good, or nobody was to be anyway.
    pub fn end(&mut self, revoked: bool) -> bool {
        let live = self.live();
        if live {
            self.state = State::Ended { revoked };
        }
        live
    }

    /// Whether it may yet let somebody in, or has and that is not settled.
    fn live(&self) -> bool {
        matches!(self.state, State::Open | State::Waiting { .. } | State::Bound { .. })
    }

    /// Whether what it has promised must not be promised again.
    pub fn pending(&self, now: u64) -> bool {
        match self.state {
            State::Open | State::Waiting { .. } => now < self.expires,
            State::Bound { .. } => !self.lapsed(now),
            State::Used { .. } | State::Ended { .. } => false,
        }
    }

    /// Whether its time is over and it is to end.
    pub fn lapsed(&self, now: u64) -> bool {
        let bound = matches!(self.state, State::Bound { .. });
        self.live() && now >= self.expires.saturating_add(if bound { GRACE } else { 0 })
    }

    /// Whether nobody needs to know of it any more.
    pub fn forgotten(&self, now: u64) -> bool {
        !self.live() && now >= self.expires.saturating_add(REMEMBERED)
    }

    /// Who has redeemed it.
    pub fn joiner(&self) -> Option<&PublicKey> {
        match &self.state {
            State::Waiting { key } | State::Bound { key, .. } | State::Used { key } => Some(key),
            State::Open | State::Ended { .. } => None,
        }
    }

    /// Whether this is the peer's file as it was written for the joiner.
    pub fn wrote(&self, file: &str) -> bool {
        matches!(&self.state, State::Bound { file: written, .. } if *written == hash(file))
    }

    /// The joiner as a peer of this host.
    pub fn peer(&self, key: PublicKey, preshared_key: Option<PresharedKey>) -> Peer {
        Peer {
            preshared_key,
            addresses: self.addresses.clone(),
            subnets: self.subnets.clone(),
            lans: self.lans.clone(),
            ..Peer::new(&self.name, key)
        }
    }

    /// What the joiner is given, once it is a peer with a preshared key.
    pub fn offer(&self, config: &Config) -> Option<Offer> {
        let joiner = config.peer(&self.name).filter(|peer| Some(&peer.public_key) == self.joiner())?;
        let preshared_key = Zeroizing::new(joiner.preshared_key.as_ref()?.expose_base64());
        let networks = &config.host.addresses;
        let with_prefix = |&addr: &IpAddr| {
            let net = networks.iter().find(|net| net.contains(&addr))?;
            IpNet::new(addr, net.prefix_len()).ok()
        };
        Some(Offer {
            name: self.name.clone(),
            addresses: joiner.addresses.iter().filter_map(with_prefix).collect(),
            subnets: joiner.subnets.clone(),
            lans: joiner.lans.clone(),
            egress: self.egress,
            mtu: config.host.mtu,
            domain: config.host.domain.clone(),
            inviter: Member::this_host(config),
            inviter_key: SigningKey::of(&config.private_key).verifying_key().to_string(),
            preshared_key,
            members: mesh::offered(config, &joiner.public_key),
        })
    }
}

impl State {
    /// In a word; `late` when the time is over.
    pub fn word(&self, late: bool) -> &'static str {
        match self {
            Self::Open | Self::Waiting { .. } if late => "expired",
            Self::Open => "open",
            Self::Waiting { .. } => "waiting",
            Self::Bound { .. } => "bound",
            Self::Used { .. } => "used",
            Self::Ended { revoked: true } => "revoked",
            Self::Ended { revoked: false } => "expired",
        }
    }
}

/// A hash that tells nothing of the secret that is in the text.
fn hash(text: &str) -> String {
    short(&Blake2s256::digest(text)[..16])
}

fn short(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

mod base64 {
    use serde::{Deserialize as _, Deserializer, Serializer};
    use zeroize::Zeroizing;

    use crate::key::PresharedKey;

    pub(super) fn serialize<S: Serializer>(key: &PresharedKey, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&Zeroizing::new(key.expose_base64()))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PresharedKey, D::Error> {
        Zeroizing::new(String::deserialize(deserializer)?).parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::PrivateKey;

    const EXPIRES: u64 = 1000;

    fn key(seed: u8) -> PublicKey {
        PrivateKey::from_bytes([seed; 32]).public_key()
    }

    fn invitation(approve: bool) -> Invitation {
        let terms = Terms {
            name: "home".into(),
            addresses: vec!["10.88.0.2".parse().unwrap()],
            subnets: vec!["10.89.2.0/24".parse().unwrap()],
            lans: Vec::new(),
            egress: true,
            approve,
            expires: EXPIRES,
        };
        Invitation::new(&Secret::new([7; 32]), &key(1), terms)
    }

    fn in_state(state: &State) -> Invitation {
        Invitation { state: state.clone(), ..invitation(false) }
    }

    #[test]
    fn every_state_meets_every_event() {
        let (a, b) = (key(2), key(3));
        let bound = State::Bound { key: a, file: hash("text") };
        let (waiting, used) = (State::Waiting { key: a }, State::Used { key: a });
        let (revoked, expired) = (State::Ended { revoked: true }, State::Ended { revoked: false });
        let no = |refusal: Refusal| Redeemed::Refused(refusal);
        let (early, late, lapsed) = (EXPIRES - 1, EXPIRES, EXPIRES + GRACE);
        for (state, now, first, second) in [
            (&State::Open, early, Redeemed::Bind, Redeemed::Bind),
            (&State::Open, late, no(Refusal::Expired), no(Refusal::Expired)),
            (&waiting, early, Redeemed::Waiting { new: false }, no(Refusal::Used)),
            (&waiting, late, no(Refusal::Expired), no(Refusal::Used)),
            (&bound, early, Redeemed::Bound, no(Refusal::Used)),
            (&bound, late, Redeemed::Bound, no(Refusal::Used)),
            (&bound, lapsed, no(Refusal::Expired), no(Refusal::Used)),
            (&used, early, Redeemed::Bound, no(Refusal::Used)),
            (&used, late, no(Refusal::Used), no(Refusal::Used)),
            (&revoked, early, no(Refusal::Revoked), no(Refusal::Revoked)),
            (&expired, early, no(Refusal::Expired), no(Refusal::Expired)),
        ] {
            for (joiner, expected) in [(a, first), (b, second)] {
                let mut invitation = in_state(state);
                assert_eq!(invitation.redeem(&joiner, now), expected, "{state:?} at {now}");
                assert_eq!(invitation.state, *state);
            }
        }
        for (state, confirmed, ended) in [
            (&State::Open, false, true),
            (&waiting, false, true),
            (&bound, true, true),
            (&used, false, false),
            (&revoked, false, false),
            (&expired, false, false),
        ] {
            let mut invitation = in_state(state);
            assert_eq!(invitation.confirm(), confirmed, "{state:?}");
            assert_eq!(invitation.state, if confirmed { used.clone() } else { state.clone() });
            let mut invitation = in_state(state);
            assert_eq!(invitation.end(true), ended, "{state:?}");
            assert_eq!(invitation.state, if ended { revoked.clone() } else { state.clone() });
        }
    }

    #[test]
    fn with_approval_the_first_key_waits_and_no_other_takes_its_place() {
        let mut invitation = invitation(true);
        assert_eq!(invitation.redeem(&key(2), 0), Redeemed::Waiting { new: true });
        assert_eq!(invitation.redeem(&key(3), 0), Redeemed::Refused(Refusal::Used));
        assert_eq!(invitation.redeem(&key(2), 0), Redeemed::Waiting { new: false });
        invitation.bind(key(2), "text");
        assert!(invitation.wrote("text") && !invitation.wrote("other"));
        assert_eq!(invitation.redeem(&key(2), 0), Redeemed::Bound);
    }

    #[test]
    fn times_run_out() {
        for (state, pending, lapses, forgotten) in [
            (State::Open, EXPIRES, Some(EXPIRES), None),
            (State::Waiting { key: key(2) }, EXPIRES, Some(EXPIRES), None),
            (State::Bound { key: key(2), file: String::new() }, EXPIRES + GRACE, Some(EXPIRES + GRACE), None),
            (State::Used { key: key(2) }, 0, None, Some(EXPIRES + REMEMBERED)),
            (State::Ended { revoked: true }, 0, None, Some(EXPIRES + REMEMBERED)),
        ] {
            let invitation = in_state(&state);
            for now in [0, EXPIRES - 1, EXPIRES, EXPIRES + GRACE - 1, EXPIRES + GRACE, EXPIRES + REMEMBERED, u64::MAX] {
                assert_eq!(invitation.pending(now), now < pending, "{state:?} at {now}");
                assert_eq!(invitation.lapsed(now), lapses.is_some_and(|at| now >= at), "{state:?} at {now}");
                assert_eq!(invitation.forgotten(now), forgotten.is_some_and(|at| now >= at), "{state:?} at {now}");
            }
        }
    }

    #[test]
    fn a_record_has_derived_values_only_and_shows_none_of_them() {
        let secret = Secret::new([7; 32]);
        let record = invitation(true);
        let text = serde_json::to_string(&record).unwrap();
        assert_eq!(serde_json::from_str::<Invitation>(&text).unwrap(), record);
        for hidden in [super::super::to_text(secret.as_slice()), throwaway_key(&secret, &key(1)).expose_base64()] {
            assert!(!text.contains(&hidden), "{text}");
        }
        assert!(!format!("{record:?}").contains(&record.preshared_key().expose_base64()));
    }
}
