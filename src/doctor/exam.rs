//! What one agent tells another, and this host's `doctor`, about itself.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use super::{State, Step};
use crate::channel::MAX_BODY;
use crate::express::Standing;
use crate::key::PublicKey;
use crate::tunnel::{Knock, PeerState};

/// The body of a [`Kind::Doctor`](crate::channel::Kind::Doctor) request, as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// How are you?
    Facts {
        /// Addresses on the internet; tried only for those whose egress is carried.
        internet: Vec<IpAddr>,
    },
    /// Answer in a packet of so many bytes.
    Echo(u16),
}

/// The body of the answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// To [`Request::Facts`].
    Facts(Facts),
    /// To [`Request::Echo`].
    Echo,
}

/// What an agent says about itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// Of the agent.
    pub version: String,
    /// Its clock, in milliseconds since 1970.
    pub clock: u64,
    /// Where it reaches the one who asks.
    pub endpoint: Option<SocketAddr>,
    /// Whether it is an exit for the one who asks.
    pub exit: bool,
    /// Faults of its part as an exit; as many as fit one message.
    pub faults: Vec<Step>,
}

/// Most internet addresses in one request.
pub const MAX_INTERNET: usize = 4;

impl Answer {
    /// As it travels. Faults that do not fit are left out, the last first.
    pub fn encode(mut self) -> Option<Vec<u8>> {
        loop {
            let body = serde_json::to_vec(&self).ok()?;
            if body.len() <= MAX_BODY {
                return Some(body);
            }
            let Self::Facts(facts) = &mut self else { return None };
            facts.faults.pop()?;
        }
    }
}

impl Facts {
    /// What the peer says about itself, so that nothing in it can pass for more than a fault.
    pub fn faults(&self) -> impl Iterator<Item = &Step> {
        self.faults.iter().filter(|step| step.state == State::Fault)
    }
}

/// What this host's agent found out about its peers.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Examined {
    /// By name.
    pub peers: BTreeMap<String, PeerExam>,
    /// Handshakes that came to nothing, lately.
    pub knocks: Vec<Knock>,
    /// The exit that each bridge leaves through now, by bridge.
    #[serde(default)]
    pub exits: BTreeMap<String, String>,
}

/// One peer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PeerExam {
    /// Its identity.
    pub public_key: PublicKey,
    /// The peer that relays what is for it, while there is no direct path.
    #[serde(default)]
    pub relay: Option<String>,
    /// Where it is reached.
    pub endpoint: Option<SocketAddr>,
    /// How it fares, after it was called.
    pub state: PeerState,
    /// Seconds since the last handshake.
    pub handshake_age: Option<u64>,
    /// Whether an agent answered.
    pub agent: bool,
    /// What it says about itself; `None` of an older agent.
    pub facts: Option<Facts>,
    /// How many milliseconds its clock is ahead.
    pub clock_ahead: Option<i64>,
    /// Whether full packets pass.
    pub size: Option<Size>,
    /// Where the express session with it stands.
    #[serde(default)]
    pub express: Option<Standing>,
}

/// What packets pass between two agents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Size {
    /// The tunnel's MTU, tried first.
    pub full: u16,
    /// The largest that came back; `None` when none did.
    pub passed: Option<u16>,
}

/// Tunnel MTUs that are tried when full packets do not pass: each a common path's, less WireGuard's 60 or 80 bytes.
pub const SIZES: [u16; 15] = [1420, 1412, 1400, 1380, 1372, 1360, 1340, 1320, 1300, 1280, 1240, 1220, 1200, 1120, 1000];
