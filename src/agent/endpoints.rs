//! Peers' endpoints as addresses: DNS names are looked up at the start, and again while the peer does not answer.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use futures_util::future::join_all;

use crate::config::{Config, Endpoint, Peer};
use crate::express::{Ability, Reason};
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
pub(super) struct Endpoints {
    known: HashMap<Name, Lookup>,
}

type Name = (String, u16);

struct Lookup {
    addr: Option<SocketAddr>,
    asked: Instant,
}

impl Endpoints {
    /// The settings of every peer for the tunnel, with endpoints looked up where that was not done before.
    pub(super) async fn settings(&mut self, config: &Config) -> Vec<PeerSettings> {
        let unknown = config.peers.iter().filter_map(name).filter(|name| self.addr(name).is_none());
        self.look_up(unknown.collect()).await;
        let ability = express(config);
        let settings = |peer: &Peer| PeerSettings {
            public_key: peer.public_key,
            preshared_key: peer.preshared_key.clone(),
            endpoint: match peer.endpoint.as_ref() {
                Some(Endpoint::Addr(addr)) => Some(*addr),
                Some(Endpoint::Name(..)) => name(peer).and_then(|name| self.addr(&name)),
                None => None,
            },
            persistent_keepalive: peer.persistent_keepalive,
            allowed_ips: config.allowed_ips(peer),
            deliver: peer.trusted(),
            via: peer.via.as_ref().and_then(|name| Some(config.peer(name)?.public_key)),
            next: peer.next.clone(),
            express: if peer.express { ability } else { Ability::Unable(Reason::Off) },
        };
        config.peers.iter().map(settings).collect()
    }

    /// Takes a peer's name to mean this address, until the peer is silent.
    pub(super) fn assume(&mut self, peer: &Peer, addr: SocketAddr) {
        let now = Instant::now();
        if let Some(name) = name(peer) {
            let asked = now.checked_sub(INTERVAL).unwrap_or(now);
            self.known.insert(name, Lookup { addr: Some(addr), asked });
        }
    }

    /// Looks the names of silent peers up again, and sends their next handshakes to where they point now.
    pub(super) async fn refresh(&mut self, config: &Config, device: &Device) {
        let now = Instant::now();
        let silent: Vec<_> = device
            .peers(now)
            .iter()
            .filter_map(|snapshot| {
                let key = snapshot.settings.public_key;
                let name = config.peers.iter().find(|peer| peer.public_key == key).and_then(name)?;
                let never = snapshot.settings.endpoint.is_none();
                let wait = if never { RETRY } else { INTERVAL };
                let asked = self.known.get(&name).map(|lookup| lookup.asked);
                let due = asked.is_none_or(|asked| now - asked >= wait);
                (due && (never || snapshot.unanswered >= SILENCE)).then_some((key, name))
            })
            .collect();
        self.look_up(silent.iter().map(|(_, name)| name.clone()).collect()).await;
        for (key, name) in silent {
            if let Some(addr) = self.addr(&name) {
                device.set_endpoint(&key, addr);
            }
        }
    }

    fn addr(&self, name: &Name) -> Option<SocketAddr> {
        self.known.get(name).and_then(|lookup| lookup.addr)
    }

    /// Asks the resolver for all names at once. A failed look-up keeps what was known.
    async fn look_up(&mut self, names: Vec<Name>) {
        let answers = join_all(names.iter().map(ask)).await;
        for (name, answer) in names.into_iter().zip(answers) {
            let lookup = self.known.entry(name).or_insert(Lookup { addr: None, asked: Instant::now() });
            lookup.asked = Instant::now();
            lookup.addr = answer.or(lookup.addr);
        }
    }
}

/// Whether this host has express sessions.
pub(super) fn express(config: &Config) -> Ability {
    if config.host.express { Ability::of_this_cpu() } else { Ability::Unable(Reason::Off) }
}

fn name(peer: &Peer) -> Option<Name> {
    match peer.endpoint.as_ref()? {
        Endpoint::Name(host, port) => Some((host.clone(), *port)),
        Endpoint::Addr(_) => None,
    }
}

async fn ask((host, port): &Name) -> Option<SocketAddr> {
    match tokio::time::timeout(PATIENCE, tokio::net::lookup_host((host.as_str(), *port))).await {
        Ok(Ok(mut addrs)) => addrs.next(),
        Ok(Err(error)) => {
            tracing::warn!(host, %error, "the endpoint's name does not resolve; will try again");
            None
        }
        Err(_) => {
            tracing::warn!(host, "no answer from the name server; will try again");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::config::{Files, SourceFile, parse};
    use crate::key::PrivateKey;

    #[test]
    fn express_sessions_are_off_where_either_file_says_so() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let key = |seed| PrivateKey::from_bytes([seed; 32]);
        let file = |path: &str, text: String| SourceFile { path: path.to_owned(), text: text.into_bytes() };
        let off = |off: bool| if off { "express = \"off\"\n" } else { "" };
        for (here, for_vps) in [(false, false), (false, true), (true, false), (true, true)] {
            let host = format!("name = \"home\"\naddresses = [\"10.88.0.2/24\"]\n{}", off(here));
            let vps = format!("public_key = \"{}\"\n{}", key(1).public_key(), off(for_vps));
            let config = parse(&Files {
                host: file("meshd.toml", host),
                private_key: file("private.key", key(2).expose_base64()),
                peers: vec![("vps".to_owned(), file("peers/vps.toml", vps))],
                preshared_keys: BTreeMap::new(),
            })
            .unwrap();
            let settings = runtime.block_on(Endpoints::default().settings(&config));
            let expected = if here || for_vps { Ability::Unable(Reason::Off) } else { Ability::of_this_cpu() };
            assert_eq!(settings[0].express, expected, "{here} {for_vps}");
        }
    }
}
