//! The agent's side of the channel to other agents: letters in, letters out, and what is repeated.

use std::collections::HashMap;
use std::future::{pending, poll_fn};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::{Notify, oneshot};

use super::running::Running;
use crate::channel::{Due, Exchange, Kind, Letter, Received};
use crate::key::PublicKey;
use crate::tunnel::Outbox;

/// What is under way between this agent and others.
pub(super) struct Mail {
    exchange: Mutex<Exchange>,
    /// Who waits for which answer.
    waiting: Mutex<HashMap<u32, oneshot::Sender<Vec<u8>>>>,
    outbox: Mutex<Outbox>,
    /// Something is due earlier than before.
    asked: Notify,
}

impl Mail {
    pub(super) fn new() -> Self {
        Self { exchange: Mutex::default(), waiting: Mutex::default(), outbox: Mutex::default(), asked: Notify::new() }
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
        let (answered, answer) = oneshot::channel();
        let id = self.tell(peer, kind, body)?;
        self.mail.waiting().insert(id, answered);
        answer.await.ok()
    }

    /// Asks without waiting for the answer; the request is repeated all the same. `None` when too many are under way.
    pub(super) fn tell(&self, peer: PublicKey, kind: Kind, body: Vec<u8>) -> Option<u32> {
        let letter = self.mail.exchange().ask(peer, kind, body, Instant::now())?.clone();
        self.post(&letter);
        self.mail.asked.notify_one();
        Some(letter.id)
    }

    /// Takes letters and repeats what is due, until it is dropped.
    pub(super) async fn serve_mail(&self) {
        loop {
            let due = self.mail.exchange().next_due();
            let due = async {
                match due {
                    Some(due) => tokio::time::sleep_until(due.into()).await,
                    None => pending().await,
                }
            };
            tokio::select! {
                letter = poll_fn(|context| self.device.agents.poll_letter(context)) => self.receive(&letter),
                () = due => self.repeat(),
                () = self.mail.asked.notified() => {}
            }
        }
    }

    fn receive(&self, letter: &Letter) {
        let received = self.mail.exchange().receive(&letter.peer, &letter.message());
        match received {
            Received::Answer(id) => {
                if let Some(waiting) = self.mail.waiting().remove(&id) {
                    // Whoever asked may have gone.
                    let _ = waiting.send(letter.body.clone());
                }
            }
            Received::Request => {
                if let Some(body) = self.answer(letter) {
                    let answer = self.mail.exchange().answer(letter.peer, letter.kind, letter.id, body).clone();
                    self.post(&answer);
                }
            }
            Received::Again(answer) => self.post(&answer),
            Received::Stray => {}
        }
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

    fn post(&self, letter: &Letter) {
        self.send(|outbox, now| self.device.say(&letter.peer, &letter.message(), outbox, now));
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
