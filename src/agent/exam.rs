//! What this agent finds out about its peers for `meshd doctor`, and what it says about itself when one of them asks.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use futures_util::future::{join, join_all};

use super::running::Running;
use crate::channel::{Kind, Letter};
use crate::config::{Bridge, Config, Peer};
use crate::control::api;
use crate::doctor::exam::{Answer, Examined, Facts, MAX_INTERNET, PeerExam, Request, SIZES, Size};
use crate::doctor::{self, Agent, Seen, Target, exit};
use crate::host::{survey, tries};
use crate::key::PublicKey;
use crate::plan::nft::is_public;
use crate::tunnel::PeerState;

/// For a peer that may have to shake hands first, and then to look at itself.
const PATIENCE: Duration = Duration::from_secs(4);
/// For one packet size: an answer takes a round trip, and is asked for three times.
const SIZE_PATIENCE: Duration = Duration::from_millis(900);
/// Sizes that are tried at once: as many letters as a peer may send at once, with their repetitions.
const SIZES_AT_ONCE: usize = 5;
/// Peers that are asked at once: of each there are two questions under way, and there is an end to those (`MAX_ASKED`).
const PEERS_AT_ONCE: usize = 64;
/// Whoever asked does not wait much longer: the others are not called then.
const ENOUGH: Duration = Duration::from_secs(20);
/// A look at this host runs nft(8), iptables-save(8) and two echoes an address.
const BETWEEN_LOOKS: Duration = Duration::from_millis(50);
/// What one peer may have: a look in so long, and so many at once.
const LOOK: Duration = Duration::from_secs(2);
const LOOKS: Duration = Duration::from_secs(6);
/// For an address on the internet.
const ECHO: Duration = Duration::from_millis(800);
/// Seconds by which this agent's word about its clock is wrong. For tests alone.
const CLOCK_OFFSET: &str = "MESHD_TEST_CLOCK_OFFSET";

impl Running {
    /// Calls these peers, or all, and asks their agents.
    pub(super) async fn examine_peers(&self, request: &api::DoctorRequest) -> Examined {
        if request.reconcile {
            self.tend(crate::host::News::default()).await;
        }
        let config = self.config();
        let named = |peer: &&Peer| request.peers.as_ref().is_none_or(|names| names.contains(&peer.name));
        let named: Vec<&Peer> = config.peers.iter().filter(named).collect();
        let mut peers = BTreeMap::new();
        let begun = Instant::now();
        for some in named.chunks(PEERS_AT_ONCE).take_while(|_| begun.elapsed() < ENOUGH) {
            peers.extend(join_all(some.iter().map(|peer| self.exam(&config, peer, &request.internet))).await);
        }
        let now = Instant::now();
        let exits = self.exits();
        let active = |bridge: &Bridge| (bridge.name.clone(), exits.status(&bridge.egress, now).active);
        let exits = self.config().host.bridges.iter().map(active).collect();
        Examined { peers, knocks: self.device.knocks(now), exits }
    }

    async fn exam(&self, config: &Config, peer: &Peer, internet: &[IpAddr]) -> (String, PeerExam) {
        let key = peer.public_key;
        let (mut agent, mut facts, mut clock_ahead, mut size) = (false, None, None, None);
        if self.device.path(&key).is_some() {
            let hello = tokio::time::timeout(PATIENCE, self.ask(key, Kind::Hello, Vec::new()));
            let (hello, found) = join(hello, self.ask_facts(key, internet)).await;
            agent = matches!(hello, Ok(Some(_))) || found.is_some();
            clock_ahead = found.as_ref().map(|(_, ahead)| *ahead);
            facts = found.map(|(facts, _)| facts);
            if facts.is_some() {
                size = Some(self.size(key, config.host.mtu).await);
            }
        }
        let snapshots = self.device.peers(Instant::now());
        let snapshot = snapshots.iter().find(|snapshot| snapshot.settings.public_key == key);
        let age = |time: SystemTime| SystemTime::now().duration_since(time).unwrap_or_default().as_secs();
        let exam = PeerExam {
            public_key: key,
            relay: snapshot.and_then(|snapshot| snapshot.relayed).map(|relay| self.name_of(&relay)),
            endpoint: snapshot.and_then(|snapshot| snapshot.settings.endpoint),
            state: snapshot.map_or(PeerState::Down, |snapshot| snapshot.state),
            handshake_age: snapshot.and_then(|snapshot| snapshot.latest_handshake).map(age),
            agent,
            facts,
            clock_ahead,
            size,
            express: snapshot.map(|snapshot| snapshot.express.standing),
        };
        (peer.name.clone(), exam)
    }

    /// What its agent says of itself, and by how many milliseconds its clock is ahead.
    async fn ask_facts(&self, key: PublicKey, internet: &[IpAddr]) -> Option<(Facts, i64)> {
        let internet = internet.iter().copied().take(MAX_INTERNET).collect();
        let body = serde_json::to_vec(&Request::Facts { internet }).ok()?;
        let before = clock();
        let answer = tokio::time::timeout(PATIENCE, self.ask(key, Kind::Doctor, body)).await.ok()??;
        let Answer::Facts(facts) = serde_json::from_slice(&answer).ok()? else { return None };
        // It said so somewhere between question and answer.
        let (theirs, after) = (i64::try_from(facts.clock).ok()?, clock());
        let ahead = if theirs > after { theirs - after } else { theirs.saturating_sub(before).min(0) };
        Some((facts, ahead))
    }

    /// The largest packet that comes there and back.
    async fn size(&self, key: PublicKey, full: u16) -> Size {
        if self.passes(key, full).await {
            return Size { full, passed: Some(full) };
        }
        let smaller: Vec<u16> = SIZES.into_iter().filter(|size| *size < full).collect();
        for some in smaller.chunks(SIZES_AT_ONCE) {
            let answered = join_all(some.iter().map(|&size| self.passes(key, size))).await;
            let passed = some.iter().zip(answered).find(|(_, answered)| *answered).map(|(size, _)| *size);
            if passed.is_some() {
                return Size { full, passed };
            }
        }
        Size { full, passed: None }
    }

    async fn passes(&self, key: PublicKey, size: u16) -> bool {
        let Ok(body) = serde_json::to_vec(&Request::Echo(size)) else { return false };
        let answer = tokio::time::timeout(SIZE_PATIENCE, self.ask_in(size, key, Kind::Doctor, body)).await;
        matches!(answer, Ok(Some(_)))
    }

    /// The answer to a peer's question, and how long its packet is to be. None to what cannot be read.
    pub(super) async fn examined(&self, letter: &Letter) -> Option<(u16, Vec<u8>)> {
        match serde_json::from_slice(&letter.body).ok()? {
            // Never more than it came with.
            Request::Echo(size) => Some((size.min(letter.size), Answer::Echo.encode()?)),
            Request::Facts { internet } => {
                let config = self.config();
                let peer = config.peers.iter().find(|peer| peer.public_key == letter.peer);
                let exit = peer.is_some_and(|peer| exit::carries(&config, peer));
                let mut faults = Vec::new();
                if let (true, Some(peer)) = (exit, peer) {
                    if let Err(wait) = self.mail.take_look(letter.peer, LOOK, LOOKS) {
                        tokio::time::sleep(wait).await;
                        self.mail.take_look(letter.peer, LOOK, LOOKS).ok()?;
                    }
                    let internet = internet.into_iter().take(MAX_INTERNET).collect();
                    let seen = self.look_at_exit(&config, peer, internet).await;
                    faults = exit::steps(&config, &seen, &[peer]);
                    faults.retain(doctor::Step::is_fault);
                }
                let endpoint = self.device.path(&letter.peer).map(|path| path.remote);
                let version = env!("CARGO_PKG_VERSION").to_owned();
                let clock = u64::try_from(clock() + offset()).unwrap_or_default();
                let facts = Facts { version, clock, endpoint, exit, faults };
                Some((0, Answer::Facts(facts).encode()?))
            }
        }
    }

    /// This host as an exit.
    async fn look_at_exit(&self, config: &Config, peer: &Peer, internet: Vec<IpAddr>) -> Seen {
        // One look at a time, and not one after the other, whoever asks how often.
        let _looking = self.mail.looking.lock().await;
        tokio::time::sleep(BETWEEN_LOOKS).await;
        let agent = Agent::Running { version: String::new() };
        // A peer does not have this host ask where it may not go itself.
        let internet = internet.into_iter().filter(|addr| is_public(*addr)).collect();
        let mut seen = Seen { agent, internet, ..Seen::default() };
        let target = Target::Exit(peer.name.clone());
        if let Err(error) = survey::look(config, &target, &mut seen).await {
            tracing::debug!(%error, "cannot look at this host");
        }
        let (addresses, internet) = (&seen.addresses, &mut seen.internet);
        internet.retain(|addr| !addresses.iter().any(|(_, net)| net.contains(addr)));
        let tried = internet.clone();
        let echoes = tokio::task::spawn_blocking(move || tries::echoes(&tried, ECHO));
        if let Ok(plan) = self.changing.lock().await.reconciler.plan(config).await {
            let differences = plan.changes.iter().map(|change| (change.kind().to_owned(), change.to_string()));
            seen.differences = Some(differences.collect());
        }
        // Without CAP_NET_RAW it cannot be told.
        let reached = echoes.await.ok().and_then(Result::ok);
        let answered = |tried: Vec<(IpAddr, bool)>| tried.into_iter().filter(|(_, answered)| *answered);
        seen.reached = reached.map(|tried| answered(tried).map(|(addr, _)| addr).collect());
        seen
    }
}

/// Milliseconds since 1970.
fn clock() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_millis()).unwrap_or(i64::MAX)
}

fn offset() -> i64 {
    let seconds = std::env::var(CLOCK_OFFSET).ok().and_then(|text| text.parse::<i64>().ok());
    seconds.unwrap_or_default().saturating_mul(1000)
}
