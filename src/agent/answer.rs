//! What this agent does when another agent asks.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::running::Running;
use crate::bench::{Answer, Answerer, Cpu, Direction, Hello, Refusal, Request, Route, Run, RunId, Terms};
use crate::channel::{Kind, Letter};
use crate::host::CpuUsage;
use crate::key::PublicKey;

/// Runs that this agent takes part in.
#[derive(Default)]
pub(super) struct Benches {
    answerer: Mutex<Answerer>,
    /// The run that a peer asked for last.
    answering: Mutex<Option<Answering>>,
}

struct Answering {
    run: Arc<Run>,
    cpu: Observed,
}

/// What the CPUs did, once that is known.
pub(super) type Observed = Arc<Mutex<Option<Cpu>>>;

impl Benches {
    pub(super) fn answerer(&self) -> MutexGuard<'_, Answerer> {
        self.answerer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answering(&self) -> MutexGuard<'_, Option<Answering>> {
        self.answering.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Running {
    /// The answer to a request; none to what cannot be read, so that the other side takes us for what we are: deaf to it.
    pub(super) fn answer(&self, letter: &Letter) -> Option<Vec<u8>> {
        match letter.kind {
            Kind::Hello => serde_json::to_vec(&Hello { version: env!("CARGO_PKG_VERSION").to_owned() }).ok(),
            Kind::Bench => {
                let answer = match serde_json::from_slice(&letter.body).ok()? {
                    Request::Start(terms) => self.begin(letter.peer, terms),
                    Request::Finish(id) => self.finish(&letter.peer, id),
                };
                serde_json::to_vec(&answer).ok()
            }
            Kind::Names => self.take_names(letter),
            // The others take longer (see `mail`), or are no requests.
            _ => None,
        }
    }

    fn begin(&self, peer: PublicKey, terms: Terms) -> Answer {
        let now = Instant::now();
        let (name, millis) = (self.name_of(&peer), terms.millis);
        if let Err(refusal) = self.benches.answerer().admit(peer, &terms, now) {
            tracing::info!(peer = name, ?refusal, "a peer wants to measure and is refused");
            return Answer::Refused(refusal);
        }
        let Some(path) = self.device.path(&peer) else { return Answer::Refused(Refusal::Unable) };
        let run = Arc::new(Run::new(terms, peer, path.remote, false, now));
        self.device.agents.set_run(Some(Arc::clone(&run)));
        if let Err(error) = self.begin_load(&run) {
            tracing::error!(%error, "cannot send what a peer wants to measure");
            self.device.agents.set_run(None);
            return Answer::Refused(Refusal::Unable);
        }
        tracing::info!(peer = name, what = what(&terms), millis, "a peer measures the way to this host");
        let cpu = observe(Duration::from_millis(millis.into()));
        *self.benches.answering() = Some(Answering { run, cpu });
        Answer::Started
    }

    fn finish(&self, peer: &PublicKey, id: RunId) -> Answer {
        let finished =
            self.benches.answering().take_if(|answering| answering.run.peer == *peer && answering.run.id() == id);
        let Some(Answering { run, cpu }) = finished else { return Answer::Refused(Refusal::Unable) };
        // The peer may be late, and another run under way.
        self.device.agents.end_run(&run);
        self.benches.answerer().finished(*peer, Instant::now());
        let flow = run.sends.then(|| run.sent_flow()).flatten();
        Answer::Finished { cpu: observed(&cpu), flow }
    }

    /// Sends the load of a run, if it is ours to send.
    pub(super) fn begin_load(&self, run: &Arc<Run>) -> std::io::Result<()> {
        match &mut *self.dataplane() {
            Some(dataplane) if run.sends => dataplane.load(Arc::clone(run)),
            Some(_) => Ok(()),
            None => Err(std::io::ErrorKind::NotConnected.into()),
        }
    }
}

/// Watches the CPUs through the part of a run that counts.
pub(super) fn observe(length: Duration) -> Observed {
    let observed = Observed::default();
    let result = Arc::clone(&observed);
    tokio::spawn(async move {
        tokio::time::sleep(length / 4).await;
        let before = CpuUsage::now();
        // Before the load's thread ends.
        tokio::time::sleep(length * 13 / 20).await;
        let cpu = CpuUsage::now().since(&before);
        *result.lock().unwrap_or_else(PoisonError::into_inner) = Some(cpu);
    });
    observed
}

/// Nothing, when the run ended before its time.
pub(super) fn observed(observed: &Observed) -> Cpu {
    let nothing = Cpu { agent: 0.0, thread: 0.0, machine: 0.0 };
    observed.lock().unwrap_or_else(PoisonError::into_inner).unwrap_or(nothing)
}

fn what(terms: &Terms) -> &'static str {
    match (terms.direction, terms.route) {
        (Direction::Idle, _) => "latency",
        (Direction::ToAnswerer, Route::Tunnel) => "to here by the tunnel",
        (Direction::ToAnswerer, Route::Ordinary) => "to here by the tunnel, without express keys",
        (Direction::ToAnswerer, Route::Bare) => "to here beside the tunnel",
        (Direction::ToAsker, Route::Tunnel) => "from here by the tunnel",
        (Direction::ToAsker, Route::Ordinary) => "from here by the tunnel, without express keys",
        (Direction::ToAsker, Route::Bare) => "from here beside the tunnel",
    }
}
