//! The joiner's side of an invitation: redeems a token over a UDP socket of its own, in the process of `meshd join`.
//!
//! 1. All addresses of the inviter are called at once with the throwaway key of the token (`reach`); the first that
//!    answers is asked from then on, the others are forgotten.
//! 2. The offer is asked for in parts, and for as long as the inviter's operator takes to approve (`Line::offer`).
//! 3. When all is written and no agent runs here, a handshake of the real key tells the inviter so ([`confirm`]).
//!
//! A killed join leaves nothing but what it wrote: the inviter gives the same key the same offer again.

mod line;

use std::net::SocketAddr;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::{Instant, timeout, timeout_at};

use super::runtime;
use crate::clock::unix_now;
use crate::config::{Endpoint, list_of_names};
use crate::enroll::exchange::{Answer, Assembly, Offer, Progress, Redeem, Refusal};
use crate::enroll::token::Token;
use crate::enroll::{preshared_key, throwaway_key};
use crate::failure::Failure;
use crate::key::{PresharedKey, PrivateKey, PublicKey};
use line::{Buffers, Line, Peer};

/// For the first answer: three tries of WireGuard's, each REKEY_TIMEOUT (5 s) after the last.
const PATIENCE: Duration = Duration::from_secs(15);
/// Without an answer for so long, the operator is told who is asked.
const SILENCE: Duration = Duration::from_secs(1);
/// For a name server.
const LOOKUP: Duration = Duration::from_secs(5);
/// Between two questions whether the operator has approved.
const POLL: Duration = Duration::from_secs(1);
/// Sessions that an inviter may lose, as when its agent is restarted, before it counts as one that does not answer.
const RECONNECTS: usize = 3;
/// For the handshake of the real key.
const CONFIRMATION: Duration = Duration::from_secs(6);
/// Addresses of the inviter that are called.
const MAX_LINES: usize = 16;

/// What the operator is told meanwhile.
#[derive(Debug, Clone, Copy)]
pub enum Step<'a> {
    /// These are asked and have not answered yet.
    Asking(&'a [String]),
    /// The inviter has answered; its operator may have to confirm.
    Waiting,
}

/// A redeemed token.
#[derive(Debug)]
pub struct Redeemed {
    /// What the inviter offers.
    pub offer: Offer,
    /// The one of the token's endpoints that answered.
    pub endpoint: Endpoint,
    /// Its address.
    pub remote: SocketAddr,
}

/// Redeems a token. `own` is asked for this host's public key once the inviter has answered: from then on the token is for
/// that key only. `tell` is called as things take their time.
///
/// # Errors
/// When the inviter does not answer, or refuses (exit code 4); then the token is not bound to this host's key.
pub fn redeem(
    token: &Token,
    own: impl FnOnce() -> Result<PublicKey, Failure>,
    mut tell: impl FnMut(Step<'_>),
) -> Result<Redeemed, Refused> {
    runtime().map_err(Refused::Unbound)?.block_on(async {
        let mut buffers = Buffers::new();
        let mut line = reach(token, &mut buffers, &mut tell).await.map_err(Refused::Unbound)?;
        let own = own().map_err(Refused::Unbound)?;
        for _ in 0..RECONNECTS {
            match line.offer(own, token.expires, &mut buffers, &mut tell).await {
                Ok(Some(offer)) => {
                    return Ok(Redeemed { offer, endpoint: token.endpoints[line.at].clone(), remote: line.remote });
                }
                Ok(None) => line = reach(token, &mut buffers, &mut tell).await.map_err(Refused::Bound)?,
                Err(refused) => return Err(refused),
            }
        }
        let failure = Failure::new(1, format!("join: the agent at {} answers no more", line.remote));
        Err(Refused::Bound(failure.try_this("the same again; see `meshd status` at the inviter")))
    })
}

/// Why a token was not redeemed.
#[derive(Debug)]
pub enum Refused {
    /// The inviter knows nothing of this host's key, or wants nothing of it.
    Unbound(Failure),
    /// The token may be bound to this host's key by now: the same key may try again.
    Bound(Failure),
}

/// A handshake of the real key, by which the inviter knows that all is written. False when it did not come about.
pub fn confirm(key: &PrivateKey, inviter: PublicKey, preshared_key: PresharedKey, remote: SocketAddr) -> bool {
    let Ok(runtime) = runtime() else { return false };
    runtime.block_on(async {
        let peer = Peer { key: inviter, preshared_key };
        let Ok(mut line) = Line::open(0, remote, key, &peer).await else { return false };
        timeout(CONFIRMATION, line.greet(&mut Buffers::new())).await.is_ok()
    })
}

/// Calls all addresses of the inviter; the first that answers comes back.
async fn reach(token: &Token, buffers: &mut Buffers, tell: &mut impl FnMut(Step<'_>)) -> Result<Line, Failure> {
    let key = throwaway_key(&token.secret, &token.inviter);
    let peer = Peer { key: token.inviter, preshared_key: preshared_key(&token.secret, &token.inviter) };
    let begun = Instant::now();
    let (mut lines, mut errors) = (Vec::new(), Vec::new());
    for (at, remote) in addresses(token, &mut errors).await {
        match Line::open(at, remote, &key, &peer).await {
            Ok(line) => lines.push(line),
            // Most hosts have no IPv6: the other addresses count.
            Err(error) => errors.push(format!("{remote}: {error}")),
        }
    }
    if lines.is_empty() {
        let errors = errors.into_iter().map(|error| format!("join: {error}")).collect();
        return Err(Failure { code: 1, errors, remedy: Some("see that this host is online".into()) });
    }
    for line in &mut lines {
        line.call(buffers).await;
    }
    if let Ok(Some(at)) = timeout_at(begun + SILENCE, line::first(&mut lines, buffers)).await {
        return Ok(lines.swap_remove(at));
    }
    let asked: Vec<String> = token.endpoints.iter().map(ToString::to_string).collect();
    tell(Step::Asking(&asked));
    if let Ok(Some(at)) = timeout_at(begun + PATIENCE, line::first(&mut lines, buffers)).await {
        return Ok(lines.swap_remove(at));
    }
    Err(unanswered(token, &lines, errors))
}

/// The addresses of all endpoints, each once, with the number of its endpoint.
async fn addresses(token: &Token, errors: &mut Vec<String>) -> Vec<(usize, SocketAddr)> {
    let look_up = |endpoint: &Endpoint| {
        let endpoint = endpoint.clone();
        async move {
            match endpoint {
                Endpoint::Addr(addr) => Ok(vec![addr]),
                Endpoint::Name(host, port) => {
                    match timeout(LOOKUP, tokio::net::lookup_host((host.as_str(), port))).await {
                        Ok(Ok(addrs)) => Ok(addrs.collect()),
                        Ok(Err(error)) => Err(format!("{host}: {error}")),
                        Err(_) => Err(format!("{host}: the name server does not answer")),
                    }
                }
            }
        }
    };
    let mut found: Vec<(usize, SocketAddr)> = Vec::new();
    for (at, answer) in join_all(token.endpoints.iter().map(look_up)).await.into_iter().enumerate() {
        match answer {
            Ok(addrs) => {
                for addr in addrs {
                    if found.iter().all(|(_, other)| *other != addr) && found.len() < MAX_LINES {
                        found.push((at, addr));
                    }
                }
            }
            Err(error) => errors.push(error),
        }
    }
    found
}

fn unanswered(token: &Token, lines: &[Line], errors: Vec<String>) -> Failure {
    let asked = list_of_names(token.endpoints.iter().map(Endpoint::to_string));
    let mut errors: Vec<String> = errors.into_iter().map(|error| format!("join: {error}")).collect();
    let closed = lines.iter().all(|line| line.closed > 0);
    if closed {
        errors.push(format!("join: {asked}: nothing listens on this UDP port"));
        return Failure { code: 1, errors, remedy: Some("at the inviter: meshd up --detach".into()) };
    }
    errors.push(format!("join: {asked} does not answer"));
    let remedy =
        "at the inviter: meshd peer invites (is it still there?), meshd status (does the agent run?), and see \
                  that this UDP port is open"
            .to_owned();
    Failure { code: 1, errors, remedy: Some(remedy) }
}

impl Line {
    /// Asks for all parts of the offer. `None` when the inviter fell silent, as when its agent was restarted.
    async fn offer(
        &mut self,
        own: PublicKey,
        expires: u64,
        buffers: &mut Buffers,
        tell: &mut impl FnMut(Step<'_>),
    ) -> Result<Option<Offer>, Refused> {
        let (mut assembly, mut part, mut told) = (Assembly::default(), 0, false);
        loop {
            let redeem = Redeem { key: own, part, version: env!("CARGO_PKG_VERSION").into() };
            let Some(body) = self.ask(redeem.write(), buffers).await else { return Ok(None) };
            match Answer::parse(&body) {
                Some(Answer::Part(answer)) => match assembly.take(&answer) {
                    Progress::Ask(next) => part = next,
                    Progress::Whole(offer) => return Ok(Some(*offer)),
                    Progress::Broken(why) => return Err(Refused::Bound(nonsense(&why))),
                },
                Some(Answer::Waiting) => {
                    if !told {
                        tell(Step::Waiting);
                        told = true;
                    }
                    let now = unix_now();
                    if now >= expires {
                        let failure = Failure::new(4, "join: the token has expired before it was approved");
                        return Err(Refused::Unbound(failure.try_this("another token from the inviter")));
                    }
                    self.idle(POLL, buffers).await;
                }
                Some(Answer::Refused(refusal)) => return Err(refused(&refusal)),
                None => return Err(Refused::Bound(nonsense("it is of another version"))),
            }
        }
    }
}

fn refused(refusal: &Refusal) -> Refused {
    let failure = Failure::new(4, format!("join: the inviter refuses the token: {refusal}"));
    match refusal {
        Refusal::Failed(_) => Refused::Bound(failure.try_this("what it says, corrected there; then the same again")),
        Refusal::Key(_) => Refused::Unbound(failure),
        _ => Refused::Unbound(failure.try_this("another token from the inviter: meshd peer add NAME …")),
    }
}

fn nonsense(why: &str) -> Failure {
    Failure::new(4, format!("join: the inviter's answer cannot be read: {why}")).try_this("one version on both hosts")
}
