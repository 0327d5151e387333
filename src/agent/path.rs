//! IPv6 paths that swallow full packets and do not say so.
//!
//! No router may fragment IPv6, so where packet-too-big messages are dropped all hangs on the sender. The agent asks another
//! agent whose endpoint is an IPv6 address for an answer, in a packet as long as the tunnel's MTU and in a small one. When
//! only the small one is answered, it tells its kernel what the router did not, and the kernel sends fragments. Each side
//! does so for what it sends.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::future::join;
use futures_util::stream::FuturesUnordered;

use super::running::Running;
use crate::channel::Kind;
use crate::control::Agent as _;
use crate::doctor::exam::Request;
use crate::host;
use crate::key::PublicKey;
use crate::tunnel::PeerState;

/// How often the peers' paths are looked at, and the kernel is told again of those that are small: it forgets.
const LOOK: Duration = Duration::from_secs(1);
/// Between two tests of a path that carried full packets.
const AGAIN: Duration = Duration::from_secs(10);
/// Bytes sent since the last test without which there is no other: more than a test takes itself.
const WORTH: u64 = 8 << 10;
/// For an answer; its request is sent four times meanwhile.
const PATIENCE: Duration = Duration::from_millis(1200);
/// How often in a row only the small packet is to come through.
const ROUNDS: usize = 2;
/// What every IPv6 path carries (RFC 8200, section 5).
const LEAST: u32 = 1280;

/// What is known of the paths to peers with an IPv6 endpoint.
#[derive(Default)]
pub(super) struct Paths(Mutex<HashMap<PublicKey, Known>>);

struct Known {
    /// Our address and the peer's.
    way: (Ipv6Addr, Ipv6Addr),
    tested: Instant,
    /// Bytes that had been sent then.
    sent: u64,
    /// It swallows what is longer than [`LEAST`]. Believed until the way changes: a test would arrive, in fragments.
    small: bool,
}

impl Paths {
    fn known(&self) -> MutexGuard<'_, HashMap<PublicKey, Known>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Running {
    /// Watches the paths to IPv6 endpoints, until it is dropped.
    pub(super) async fn watch_paths(&self) {
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut tests = FuturesUnordered::new();
        loop {
            tokio::select! {
                _ = look.tick() => tests.extend(self.look_at_paths().into_iter().map(|peer| self.test_path(peer))),
                Some(()) = tests.next() => {}
            }
        }
    }

    /// For `status`, one line for each path that is small.
    pub(super) fn path_warnings(&self) -> Vec<String> {
        let known = self.paths.known();
        known.iter().filter(|(_, known)| known.small).map(|(peer, _)| self.path_warning(peer)).collect()
    }

    fn path_warning(&self, peer: &PublicKey) -> String {
        let name = self.name_of(peer);
        format!("the IPv6 path to {name} swallows packets above {LEAST} bytes in silence: longer ones go in fragments")
    }

    /// Tells the kernel again of what it may have forgotten; whose path is to be tested comes back.
    fn look_at_paths(&self) -> Vec<PublicKey> {
        let now = Instant::now();
        let peers = self.device.peers(now);
        let mut paths = self.paths.known();
        paths.retain(|key, _| peers.iter().any(|peer| peer.settings.public_key == *key));
        let mut due = Vec::new();
        for peer in peers.iter().filter(|peer| peer.state == PeerState::Up) {
            let (key, sent) = (peer.settings.public_key, peer.tx_bytes);
            let Some((from, to)) = self.ipv6_path(&key) else {
                paths.remove(&key);
                continue;
            };
            let way = (*from.ip(), *to.ip());
            match paths.get(&key).filter(|known| known.way == way) {
                Some(known) if known.small => {
                    // An error was logged the first time.
                    let _ = host::too_big(from, to, LEAST);
                    continue;
                }
                // Others than agents do not answer: they are asked once.
                Some(known) if !peer.agent || now - known.tested < AGAIN || known.sent.abs_diff(sent) < WORTH => {
                    continue;
                }
                _ => {}
            }
            paths.insert(key, Known { way, tested: now, sent, small: false });
            due.push(key);
        }
        due
    }

    async fn test_path(&self, peer: PublicKey) {
        let before = self.ipv6_path(&peer);
        let mtu = self.config().host.mtu;
        for _ in 0..ROUNDS {
            let (small, full) = join(self.arrives(peer, 0), self.arrives(peer, mtu)).await;
            if full || !small {
                return;
            }
        }
        // It may have moved meanwhile.
        let Some((from, to)) = self.ipv6_path(&peer).filter(|path| Some(*path) == before) else { return };
        if let Some(known) = self.paths.known().get_mut(&peer) {
            known.small = true;
        }
        tracing::warn!("{}", self.path_warning(&peer));
        if let Err(error) = host::too_big(from, to, LEAST) {
            tracing::error!(%error, "cannot tell the kernel of a small path");
        }
    }

    /// Whether a peer's agent gets a packet of `size` bytes; its answer is small.
    async fn arrives(&self, peer: PublicKey, size: u16) -> bool {
        let Ok(body) = serde_json::to_vec(&Request::Echo(0)) else { return false };
        matches!(tokio::time::timeout(PATIENCE, self.ask_in(size, peer, Kind::Doctor, body)).await, Ok(Some(_)))
    }

    /// From where to where what is for this peer goes, if over IPv6 and through routers.
    fn ipv6_path(&self, peer: &PublicKey) -> Option<(SocketAddrV6, SocketAddrV6)> {
        let path = self.device.path(peer)?;
        let (SocketAddr::V6(to), IpAddr::V6(from)) = (path.remote, path.local?) else { return None };
        let routed = !to.ip().is_unicast_link_local();
        routed.then(|| (SocketAddrV6::new(from, self.listen_port(), 0, 0), to))
    }
}
