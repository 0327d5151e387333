//! WireGuard's cross-platform UAPI (<https://www.wireguard.com/xplatform/>) on `/var/run/wireguard/INTERFACE.sock`, so that
//! wg(8) works on the agent unchanged.
//!
//! A message is read whole, up to its empty line, before anything is made of it: [`message`] turns text into edits,
//! [`edit`] applies them to the peers as plain data, and only the difference reaches the tunnel. So a message with one
//! wrong line changes nothing, and `wg setconf` with what stands already disturbs no session. What is set here lasts
//! until the next reload.

pub mod edit;
pub mod message;

use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use zeroize::Zeroizing;

use self::message::{Edits, Request};
use super::socket::{BindError, Listener};
use super::{Agent, connections};
use crate::express::Ability;
use crate::key::{PrivateKey, PublicKey};
use crate::tunnel::{PeerSettings, PeerSnapshot};

/// Where wg(8) looks.
pub const DIRECTORY: &str = "/var/run/wireguard";

const MAX_CONNECTIONS: usize = 16;
/// 130,560 allowed IPs on one peer, which the kernel's own test sets, take half of it.
const MAX_MESSAGE_BYTES: usize = 8 * 1024 * 1024;
/// For a message once it began, and for its answer.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(30);

/// What the socket does to the tunnel.
pub trait Tunnel: Send + Sync + 'static {
    /// All peers.
    fn peers(&self) -> Vec<PeerSnapshot>;
    /// As [`crate::tunnel::Device::set_peer`].
    fn set_peer(&self, settings: PeerSettings);
    /// As [`crate::tunnel::Device::remove_peer`].
    fn remove_peer(&self, key: &PublicKey);
    /// The identity.
    fn private_key(&self) -> PrivateKey;
    /// Changes the identity.
    fn set_private_key(&self, key: PrivateKey);
    /// Whether a peer that is added may have express sessions.
    fn express(&self) -> Ability;
    /// The UDP port in use.
    fn listen_port(&self) -> u16;
    /// Moves to another UDP port.
    fn set_listen_port(&self, port: u16) -> io::Result<()>;
}

impl<A: Agent> Tunnel for A {
    fn peers(&self) -> Vec<PeerSnapshot> {
        self.device().peers(Instant::now())
    }

    fn set_peer(&self, settings: PeerSettings) {
        self.device().set_peer(settings, Instant::now());
    }

    fn remove_peer(&self, key: &PublicKey) {
        self.device().remove_peer(key, Instant::now());
    }

    fn private_key(&self) -> PrivateKey {
        self.device().private_key()
    }

    fn set_private_key(&self, key: PrivateKey) {
        Agent::set_private_key(self, key);
    }

    fn express(&self) -> Ability {
        Agent::express(self)
    }

    fn listen_port(&self) -> u16 {
        Agent::listen_port(self)
    }

    fn set_listen_port(&self, port: u16) -> io::Result<()> {
        Agent::set_listen_port(self, port)
    }
}

/// Where wg(8) looks for an interface.
pub fn path(interface: &str) -> PathBuf {
    Path::new(DIRECTORY).join(format!("{interface}.sock"))
}

/// Listens on `path`, for root alone. [`BindError::InUse`] when another program serves an interface of this name, as
/// network namespaces share `/run`: worth a warning, and the agent goes on without.
pub fn bind(path: &Path) -> Result<Listener, BindError> {
    Listener::bind(path, 0o600, None)
}

/// Answers until `shutdown` resolves.
pub async fn serve<T: Tunnel>(
    tunnel: Arc<T>,
    listener: Listener,
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    connections::serve(listener, MAX_CONNECTIONS, shutdown, |stream, mut caller| {
        let tunnel = tunnel.clone();
        async move {
            tokio::select! {
                result = converse(stream, &*tunnel) => {
                    if let Err(error) = result {
                        tracing::trace!(%error, "UAPI: connection");
                    }
                }
                _ = caller.closing.wait_for(|closing| *closing) => {}
            }
        }
    })
    .await
}

/// Message after message, until the client goes or does not keep to the protocol.
async fn converse<T: Tunnel>(mut stream: UnixStream, tunnel: &T) -> io::Result<()> {
    let mut buffer = Zeroizing::new(Vec::new());
    loop {
        if buffer.is_empty() && stream.read_buf(&mut *buffer).await? == 0 {
            return Ok(());
        }
        let end = match tokio::time::timeout(MESSAGE_TIMEOUT, read_message(&mut stream, &mut buffer)).await? {
            Ok(Some(end)) => end,
            Ok(None) => return Ok(()),
            Err(errno) => return send(&mut stream, &status(Err(errno))).await,
        };
        let answer = match std::str::from_utf8(&buffer[..end]) {
            Ok(message) => answer(tunnel, message),
            Err(_) => Zeroizing::new(status(Err(Errno::EINVAL))),
        };
        buffer.drain(..end + TERMINATOR.len());
        send(&mut stream, &answer).await?;
    }
}

const TERMINATOR: &[u8] = b"\n\n";

/// Where the message at the start of the buffer ends. None when the client went before that.
async fn read_message(stream: &mut UnixStream, buffer: &mut Vec<u8>) -> Result<Option<usize>, Errno> {
    let mut searched: usize = 0;
    loop {
        // The terminator may straddle two reads.
        let from = searched.saturating_sub(1);
        if let Some(at) = buffer[from..].windows(TERMINATOR.len()).position(|window| window == TERMINATOR) {
            return Ok(Some(from + at));
        }
        searched = buffer.len();
        if searched > MAX_MESSAGE_BYTES {
            return Err(Errno::EMSGSIZE);
        }
        match stream.read_buf(buffer).await {
            Ok(0) | Err(_) => return Ok(None),
            Ok(_) => {}
        }
    }
}

async fn send(stream: &mut UnixStream, text: &str) -> io::Result<()> {
    tokio::time::timeout(MESSAGE_TIMEOUT, stream.write_all(text.as_bytes())).await?
}

/// The answer to one message, given without its empty line.
pub fn answer<T: Tunnel>(tunnel: &T, message: &str) -> Zeroizing<String> {
    match message::parse(message) {
        Err(errno) => Zeroizing::new(status(Err(errno))),
        Ok(Request::Set(edits)) => Zeroizing::new(status(set(tunnel, &edits))),
        Ok(Request::Get) => {
            let mut text = message::render(&tunnel.private_key(), tunnel.listen_port(), &tunnel.peers());
            text.push_str(&status(Ok(())));
            text
        }
    }
}

fn set<T: Tunnel>(tunnel: &T, edits: &Edits) -> Result<(), Errno> {
    // The one edit that can fail comes first, so that a failure leaves all as it was.
    if let Some(port) = edits.listen_port.filter(|&port| port != tunnel.listen_port()) {
        tunnel.set_listen_port(port).map_err(|error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw))?;
    }
    let private_key = edits.private_key.clone().unwrap_or_else(|| tunnel.private_key());
    let current: Vec<PeerSettings> = tunnel.peers().into_iter().map(|peer| peer.settings).collect();
    let next = edit::apply(edits, &current, &private_key.public_key(), tunnel.express());
    let (removed, changed) = edit::difference(&current, next);
    if private_key != tunnel.private_key() {
        tunnel.set_private_key(private_key);
    }
    for key in &removed {
        tunnel.remove_peer(key);
    }
    for settings in changed {
        tunnel.set_peer(settings);
    }
    Ok(())
}

/// Negative, as wireguard-go sends it: wg(8) takes the number as it stands for the negative errno.
fn status(result: Result<(), Errno>) -> String {
    format!("errno={}\n\n", result.map_or_else(|errno| -(errno as i32), |()| 0))
}

#[cfg(test)]
mod tests;
