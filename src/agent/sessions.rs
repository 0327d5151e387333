//! Who has a session with this agent and from where, for the process that comes after it: `RUN/sessions.json`.
//!
//! A peer does not notice that this agent was killed and started again, and one behind NAT is known by its packets alone.
//! So the agent writes down where each was heard last, and the next one calls those whose sessions may still stand: both
//! sides have a new one after a round trip, not after the 15 seconds of WireGuard's timers. What a peer's file says of its
//! endpoint counts, when it was changed meanwhile, and what was remembered does not.
//!
//! It is of no use after a reboot, which takes longer than those timers: hence the run folder. Whoever could write there
//! could make this host send handshakes somewhere, and no more.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::endpoints::Endpoints;
use super::running::Running;
use crate::clock::unix_now;
use crate::config::{Config, Endpoint, Peer};
use crate::host::files::{self, Unusable};
use crate::key::PublicKey;
use crate::tunnel::{self, Device};

/// The file's name in the run folder.
const FILE: &str = "sessions.json";
const VERSION: u32 = 1;
/// How often it is looked whether there is something new to write.
const LOOK: Duration = Duration::from_secs(1);
/// REJECT_AFTER_TIME of the whitepaper: by then there is no session on the peer's side either.
const LASTS: u64 = 180;

/// What the file says, and is to say.
pub(super) struct Sessions {
    path: PathBuf,
    known: Mutex<BTreeMap<PublicKey, Session>>,
}

/// The last session with a peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Session {
    /// Where its packets came from.
    remote: SocketAddr,
    /// Which address of this host they came to.
    local: Option<IpAddr>,
    /// The endpoint in its file at that time.
    configured: Option<String>,
    /// When the last handshake completed, in Unix seconds.
    handshake: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    version: u32,
    peers: BTreeMap<PublicKey, Session>,
}

impl Session {
    /// Whether it may still stand.
    fn is_live(&self, now: u64) -> bool {
        // The clock may have been set back, too.
        now.abs_diff(self.handshake) < LASTS
    }

    fn path(&self) -> tunnel::Path {
        tunnel::Path { remote: self.remote, local: self.local }
    }
}

impl Sessions {
    /// What the process before this one knew of these peers. All goes without it, so what is wrong is only told.
    pub(super) fn load(run_dir: &Path, config: &Config) -> Self {
        let path = run_dir.join(FILE);
        let mut known = read(&path).unwrap_or_else(|why| {
            tracing::warn!("{}: {why}: peers may need 15 seconds to notice the restart", path.display());
            BTreeMap::new()
        });
        let peers = config.peers.iter().filter(|peer| peer.via.is_none());
        let same = peers.filter_map(|peer| {
            let session = known.remove(&peer.public_key)?;
            (configured(peer) == session.configured).then_some((peer.public_key, session))
        });
        Self { path, known: Mutex::new(same.collect()) }
    }

    /// Spares the look-up of names whose peers were heard a moment ago.
    pub(super) fn resolve(&self, config: &Config, endpoints: &mut Endpoints) {
        let (known, now) = (self.known(), unix_now());
        for peer in &config.peers {
            if let Some(session) = known.get(&peer.public_key).filter(|session| session.is_live(now)) {
                endpoints.assume(peer, session.remote);
            }
        }
    }

    /// Tells the tunnel where its peers were, and has those called whose sessions may stand.
    pub(super) fn recall(&self, device: &Device) {
        let (wall, now) = (unix_now(), Instant::now());
        for (peer, session) in &*self.known() {
            device.recall(peer, session.path(), session.is_live(wall), now);
        }
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<PublicKey, Session>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Running {
    /// Writes down the sessions whenever they change, until it is dropped.
    pub(super) async fn remember_sessions(&self) {
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut told = false;
        loop {
            look.tick().await;
            let result = self.write_sessions().await;
            if let (Err(error), false) = (&result, told) {
                tracing::warn!("{}: {error}", self.sessions.path.display());
            }
            told = result.is_err();
        }
    }

    /// Writes down the sessions, if they have changed.
    pub(super) async fn write_sessions(&self) -> io::Result<()> {
        let next = self.sessions_now();
        if *self.sessions.known() == next {
            return Ok(());
        }
        let (path, text) = (self.sessions.path.clone(), text(&next)?);
        // It may be a disk.
        tokio::task::spawn_blocking(move || files::replace(&path, &text)).await??;
        *self.sessions.known() = next;
        Ok(())
    }

    /// Those of this process, and of the one before where there was none in this one yet.
    fn sessions_now(&self) -> BTreeMap<PublicKey, Session> {
        let (config, mut before) = (self.config(), self.sessions.known().clone());
        let snapshots = self.device.peers(Instant::now());
        let handshakes: HashMap<_, _> =
            snapshots.iter().map(|peer| (peer.settings.public_key, peer.latest_handshake)).collect();
        let reached = config.peers.iter().filter(|peer| peer.via.is_none());
        let sessions = reached.filter_map(|peer| {
            let key = peer.public_key;
            let now = handshakes.get(&key)?.zip(self.device.path(&key)).map(|(handshake, path)| Session {
                remote: path.remote,
                local: path.local,
                configured: configured(peer),
                handshake: handshake.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
            });
            Some((key, now.or_else(|| before.remove(&key))?))
        });
        sessions.collect()
    }
}

fn configured(peer: &Peer) -> Option<String> {
    peer.endpoint.as_ref().map(Endpoint::to_string)
}

fn read(path: &Path) -> Result<BTreeMap<PublicKey, Session>, String> {
    let text = files::read(path).map_err(|unusable| match unusable {
        Unusable::Io(error) => error.to_string(),
        Unusable::NotOurs(why) => why,
    })?;
    let Some(text) = text else { return Ok(BTreeMap::new()) };
    let file: File = serde_json::from_slice(&text).map_err(|error| format!("damaged: {error}"))?;
    if file.version == VERSION { Ok(file.peers) } else { Err(format!("of version {}", file.version)) }
}

fn text(sessions: &BTreeMap<PublicKey, Session>) -> io::Result<Vec<u8>> {
    let file = File { version: VERSION, peers: sessions.clone() };
    let mut text = serde_json::to_vec_pretty(&file)?;
    text.push(b'\n');
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u8) -> PublicKey {
        crate::key::PrivateKey::from_bytes([n; 32]).public_key()
    }

    fn session(remote: &str, configured: Option<&str>, handshake: u64) -> Session {
        let local = "2001:db8::1".parse().ok();
        Session { remote: remote.parse().unwrap(), local, configured: configured.map(str::to_owned), handshake }
    }

    #[test]
    fn what_is_written_is_read_again_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE);
        assert_eq!(read(&path), Ok(BTreeMap::new()));
        let sessions = BTreeMap::from([
            (key(1), session("198.51.100.7:40000", None, 1_800_000_000)),
            (key(2), session("[2001:db8::7]:51820", Some("vps.example.net:51820"), 1)),
        ]);
        let whole = text(&sessions).unwrap();
        files::replace(&path, &whole).unwrap();
        assert_eq!(read(&path).as_ref(), Ok(&sessions));
        for length in (1..whole.len() - 1).step_by(7) {
            std::fs::write(&path, &whole[..length]).unwrap();
            assert!(read(&path).is_err(), "cut at {length}");
        }
        let other = String::from_utf8(whole).unwrap().replace("\"version\": 1", "\"version\": 2");
        std::fs::write(&path, other).unwrap();
        assert_eq!(read(&path), Err("of version 2".to_owned()));
    }

    #[test]
    fn a_session_lasts_three_minutes_and_clocks_may_be_set() {
        let session = session("198.51.100.7:40000", None, 1000);
        assert!([821, 1000, 1179].iter().all(|&now| session.is_live(now)));
        assert!([0, 820, 1180, 1 << 40].iter().all(|&now| !session.is_live(now)));
    }
}
