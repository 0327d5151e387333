//! The agent's side of the channel to other agents: letters in, letters out, and what is repeated.

use std::collections::HashMap;
use std::future::{pending, poll_fn};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{Mutex as AsyncMutex, Notify, oneshot};

use super::running::Running;
use crate::channel::{Allowance, Due, Exchange, Kind, Letter, Received};
use crate::key::PublicKey;
use crate::tunnel::Outbox;

/// Requests that take a while, such as those of `meshd doctor`, that are answered at a time.
const MAX_SLOW: usize = 64;
const MAX_SLOW_OF_ONE: usize = 20;

/// What is under way between this agent and others.
pub(super) struct Mail {
    exchange: Mutex<Exchange>,
    /// Who waits for which answer.
    waiting: Mutex<HashMap<u32, oneshot::Sender<Vec<u8>>>>,
    outbox: Mutex<Outbox>,
    /// Requests that take a while and are being answered.
    slow: Mutex<Vec<(PublicKey, u32)>>,
    /// Held while this host is looked at.
    pub(super) looking: AsyncMutex<()>,
    /// How often a peer has had this host looked at.
    looks: Mutex<HashMap<PublicKey, Allowance>>,
    /// Something is due earlier than before.
    asked: Notify,
}

impl Mail {
    pub(super) fn new() -> Self {
        Self {
            exchange: Mutex::default(),
            waiting: Mutex::default(),
            outbox: Mutex::default(),
            slow: Mutex::default(),
            looking: AsyncMutex::default(),
            looks: Mutex::default(),
            asked: Notify::new(),
        }
    }

    /// False when this one is under way already, or as many as may be.
    fn begin_slow(&self, letter: &Letter) -> bool {
        let mut slow = self.slow.lock().unwrap_or_else(PoisonError::into_inner);
        let of_one = slow.iter().filter(|(peer, _)| *peer == letter.peer).count();
        let free = slow.len() < MAX_SLOW && of_one < MAX_SLOW_OF_ONE && !slow.contains(&(letter.peer, letter.id));
        if free {
            slow.push((letter.peer, letter.id));
        }
        free
    }

    fn end_slow(&self, letter: &Letter) {
        let mut slow = self.slow.lock().unwrap_or_else(PoisonError::into_inner);
        slow.retain(|one| *one != (letter.peer, letter.id));
    }

    /// One look at this host for a peer; an error says how long it has to wait.
    pub(super) fn take_look(&self, peer: PublicKey, cost: Duration, depth: Duration) -> Result<(), Duration> {
        let now = Instant::now();
        let mut looks = self.looks.lock().unwrap_or_else(PoisonError::into_inner);
        looks.retain(|_, allowance| !allowance.is_full(now));
        looks.entry(peer).or_default().take(cost, depth, now)
    }

    /// For a message that waits for no answer.
    pub(super) fn id(&self) -> u32 {
        self.exchange().id()
    }

    fn exchange(&self) -> MutexGuard<'_, Exchange> {
        self.exchange.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<u32, oneshot::Sender<Vec<u8>>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Running {
    /// Asks a peer's agent; `None` when there was no answer after several tries, as from a program that is no agent.
    pub(super) async fn ask(&self, peer: PublicKey, kind: Kind, body: Vec<u8>) -> Option<Vec<u8>> {
        self.ask_in(0, peer, kind, body).await
    }

    /// The same in a packet of `size` bytes at least.
    pub(super) async fn ask_in(&self, size: u16, peer: PublicKey, kind: Kind, body: Vec<u8>) -> Option<Vec<u8>> {
        let (answered, answer) = oneshot::channel();
        let id = self.tell_in(size, peer, kind, body)?;
        self.mail.waiting().insert(id, answered);
        answer.await.ok()
    }

    /// Asks without waiting for the answer; the request is repeated all the same. `None` when too many are under way.
    pub(super) fn tell(&self, peer: PublicKey, kind: Kind, body: Vec<u8>) -> Option<u32> {
        self.tell_in(0, peer, kind, body)
    }

    fn tell_in(&self, size: u16, peer: PublicKey, kind: Kind, body: Vec<u8>) -> Option<u32> {
        let letter = self.mail.exchange().ask_in(size, peer, kind, body, Instant::now())?.clone();
        self.post(&letter);
        self.mail.asked.notify_one();
        Some(letter.id)
    }

    /// Takes letters and repeats what is due, until it is dropped.
    pub(super) async fn serve_mail(&self) {
        // What takes longer than an answer from memory; the letters go on meanwhile.
        let mut slow = FuturesUnordered::new();
        loop {
            let due = self.mail.exchange().next_due();
            let due = async {
                match due {
                    Some(due) => tokio::time::sleep_until(due.into()).await,
                    None => pending().await,
                }
            };
            tokio::select! {
                letter = poll_fn(|context| self.device.agents.poll_letter(context)) => {
                    if let Some(letter) = self.receive(letter)
                        && self.mail.begin_slow(&letter)
                    {
                        slow.push(self.answer_slowly(letter));
                    }
                }
                Some(()) = slow.next() => {}
                () = due => self.repeat(),
                () = self.mail.asked.notified() => {}
            }
        }
    }

    /// A request that takes a while to answer comes back.
    fn receive(&self, letter: Letter) -> Option<Letter> {
        let received = self.mail.exchange().receive(&letter.peer, &letter.message());
        match received {
            Received::Answer(id) => {
                if let Some(waiting) = self.mail.waiting().remove(&id) {
                    // Whoever asked may have gone.
                    let _ = waiting.send(letter.body.clone());
                }
            }
            Received::Request if letter.kind == Kind::Direct && self.take_check(&letter) => {}
            Received::Request if letter.kind.takes_a_while() => return Some(letter),
            Received::Request => {
                if let Some(body) = self.answer(&letter) {
                    let answer = self.mail.exchange().answer(letter.peer, letter.kind, letter.id, body).clone();
                    self.post(&answer);
                }
            }
            Received::Again(answer) => self.post(&answer),
            Received::Stray => {}
        }
        None
    }

    async fn answer_slowly(&self, letter: Letter) {
        let answer = match letter.kind {
            Kind::Doctor => self.examined(&letter).await,
            Kind::Direct => self.directed(&letter).await.map(|body| (0, body)),
            Kind::Rotate => self.rotated(&letter).await,
            Kind::News => self.take_news(&letter).map(|body| (0, body)),
            _ => None,
        };
        if let Some((size, body)) = answer {
            let answer = self.mail.exchange().answer_in(size, letter.peer, letter.kind, letter.id, body).clone();
            self.post(&answer);
        }
        self.mail.end_slow(&letter);
    }

    fn repeat(&self) {
        let due = self.mail.exchange().due(Instant::now());
        for due in due {
            match due {
                Due::Send(letter) => self.post(&letter),
                Due::GaveUp(id) => drop(self.mail.waiting().remove(&id)),
            }
        }
    }

    pub(super) fn post(&self, letter: &Letter) {
        self.send(|outbox, now| self.device.post(letter, outbox, now));
    }

    /// Sends what `fill` puts into an outbox. What cannot be sent is lost, as on any link.
    pub(super) fn send(&self, fill: impl FnOnce(&mut Outbox, Instant) -> bool) {
        let mut outbox = self.mail.outbox.lock().unwrap_or_else(PoisonError::into_inner);
        if fill(&mut outbox, Instant::now())
            && let Some(dataplane) = &*self.dataplane()
        {
            dataplane.send(&mut outbox);
        }
        outbox.clear();
    }
}
