//! Peers' endpoints as addresses: DNS names are looked up at the start, and again while the peer does not answer.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::config::{Config, Endpoint, Peer};
use crate::tunnel::{Device, PeerSettings};

/// A name server that does not answer must not hold up the start: the peer is called once it does.
const PATIENCE: Duration = Duration::from_secs(2);
/// For how long a handshake stays unanswered before the name is looked up again: two tries and a bit.
const SILENCE: Duration = Duration::from_secs(12);
/// Between two look-ups of one name.
const INTERVAL: Duration = Duration::from_secs(30);
/// Between two look-ups of a name that never resolved.
const RETRY: Duration = Duration::from_secs(5);

/// What names resolved to last, and when they were asked for.
#[derive(Default)]
pub struct Endpoints {
    known: HashMap<(String, u16), Lookup>,
}

struct Lookup {
    addr: Option<SocketAddr>,
    asked: Instant,
}

impl Endpoints {
    /// The settings of every peer for the tunnel, with endpoints looked up where that was not done before.
    pub async fn settings(&mut self, config: &Config) -> Vec<PeerSettings> {
        let mut settings = Vec::with_capacity(config.peers.len());
        for peer in &config.peers {
            settings.push(PeerSettings {
                public_key: peer.public_key,
                preshared_key: peer.preshared_key.clone(),
                endpoint: self.first(peer).await,
                persistent_keepalive: peer.persistent_keepalive,
                allowed_ips: config.allowed_ips(peer),
            });
        }
        settings
    }

    async fn first(&mut self, peer: &Peer) -> Option<SocketAddr> {
        match peer.endpoint.as_ref()? {
            Endpoint::Addr(addr) => Some(*addr),
            Endpoint::Name(host, port) => match self.known.get(&(host.clone(), *port)) {
                Some(Lookup { addr: Some(addr), .. }) => Some(*addr),
                _ => self.look_up(host, *port).await,
            },
        }
    }

    /// Looks the names of silent peers up again, and sends their next handshakes to where they point now.
    pub async fn refresh(&mut self, config: &Config, device: &Device) {
        let now = Instant::now();
        for snapshot in device.peers(now) {
            let key = snapshot.settings.public_key;
            let Some(peer) = config.peers.iter().find(|peer| peer.public_key == key) else { continue };
            let Some(Endpoint::Name(host, port)) = &peer.endpoint else { continue };
            let never = snapshot.settings.endpoint.is_none();
            let wait = if never { RETRY } else { INTERVAL };
            let asked = self.known.get(&(host.clone(), *port)).map(|lookup| lookup.asked);
            if !(never || snapshot.unanswered >= SILENCE) || asked.is_some_and(|asked| now - asked < wait) {
                continue;
            }
            if let Some(addr) = self.look_up(host, *port).await {
                device.set_endpoint(&key, addr);
            }
        }
    }

    /// Asks the resolver. A failed look-up keeps what was known.
    async fn look_up(&mut self, host: &str, port: u16) -> Option<SocketAddr> {
        let answer = tokio::time::timeout(PATIENCE, tokio::net::lookup_host((host, port))).await;
        let addr = match answer {
            Ok(Ok(mut addrs)) => addrs.next(),
            Ok(Err(error)) => {
                tracing::warn!(host, %error, "the endpoint's name does not resolve; will try again");
                None
            }
            Err(_) => {
                tracing::warn!(host, "no answer from the name server; will try again");
                None
            }
        };
        let lookup = self.known.entry((host.into(), port)).or_insert(Lookup { addr: None, asked: Instant::now() });
        lookup.asked = Instant::now();
        lookup.addr = addr.or(lookup.addr);
        lookup.addr
    }
}
