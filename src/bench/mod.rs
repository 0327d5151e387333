//! Measuring the way to another agent: what is agreed, sent, counted and made of it. Pure: no I/O, and `now` is an
//! argument.
//!
//! A measurement is a row of [`Run`]s, each a few seconds on one [`Route`] in one [`Direction`]:
//!
//! 1. The asker makes a [`Run`] of [`Terms`] with a random [`RunId`] and sends the terms as a [`Request`] over the agent
//!    channel. The answerer's [`Answerer`] admits or refuses it.
//! 2. Whoever sends the load asks its [`Window`] how much may be under way and sends [`Probe::Data`], in the tunnel or
//!    beside it. Whoever receives it counts, and acknowledges now and then; both happen where packets are opened, by
//!    [`Run::take`].
//! 3. Meanwhile the asker sends [`Probe::Echo`] every few milliseconds, and [`Run::latency`] says how long they took.
//! 4. The asker ends the run; the answer says what the other side measured. [`Report`] holds it all and names what
//!    limits the tunnel.
//!
//! **What a run cannot be used for.** Only a peer can begin one, over its session. Load goes only to the address where
//! that peer is heard of, and no more than a first window of ten packets unless it arrives: an acknowledgement must
//! carry the [`proof`](Probe::Ack::proof) of the packet that it is for, which nobody can know who has not received it. An answer
//! is never longer than what it answers. There is one run at a time, of ten seconds at most, and a peer has two minutes
//! of them in ten.

mod answerer;
mod probe;
mod report;
mod run;
mod window;

use serde::{Deserialize, Serialize};

use crate::key::random_bytes;

pub use answerer::{Answerer, Refusal};
pub use probe::{PROBE_LEN, Probe};
pub use report::{Both, Bottleneck, Cpu, Flow, Idle, Latency, Measured, Report};
pub use run::{Run, Taken};
pub use window::Window;

/// The longest run.
pub const MAX_SECONDS: u32 = 10;

/// Names a run; nobody else can guess it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RunId([u8; 16]);

impl RunId {
    /// A new one.
    ///
    /// # Errors
    /// When the kernel has no random numbers to give.
    pub fn random() -> std::io::Result<Self> {
        random_bytes().map(Self)
    }
}

/// Which way packets take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Route {
    /// Sealed, as all traffic of the tunnel.
    Tunnel,
    /// Plain UDP datagrams between the same two sockets.
    Bare,
    /// Sealed under WireGuard's own session, while other traffic goes under express keys. Agents that know nothing of
    /// those do not know this either.
    Ordinary,
}

/// Who sends load.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// Nobody: echoes alone, on both routes.
    Idle,
    /// The asker.
    ToAnswerer,
    /// The answerer.
    ToAsker,
}

/// What a run is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terms {
    /// Its name.
    pub id: RunId,
    /// Where the load goes.
    pub route: Route,
    /// Who sends it.
    pub direction: Direction,
    /// How long.
    pub millis: u32,
}

/// The body of a [`Kind::Hello`](crate::channel::Kind::Hello) answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Of the agent.
    pub version: String,
}

/// The body of a [`Kind::Bench`](crate::channel::Kind::Bench) request, as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Begin a run.
    Start(Terms),
    /// End it, and say what was measured.
    Finish(RunId),
}

/// The body of the answer to a [`Request`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// It runs.
    Started,
    /// It is over.
    Finished {
        /// What the answerer's side cost it.
        cpu: Cpu,
        /// What of its load arrived, when it sent.
        flow: Option<Flow>,
    },
    /// It will not be.
    Refused(Refusal),
}
