//! How the agent is spoken to: HTTP+JSON on its Unix socket, and WireGuard's UAPI for wg(8).
//!
//! The agent implements [`Agent`] for the server, so that imports run one way.

pub mod api;
pub mod client;
mod connections;
#[cfg(test)]
pub(crate) mod fake;
pub mod handover;
mod lock;
pub mod metrics;
pub mod server;
mod socket;
pub mod uapi;

use std::future::Future;
use std::path::Path;
use std::sync::Arc;

pub use lock::{DEATH_LIMIT, LockError, PID_FILE, RunLock, Running, lock, running};
pub use socket::{BindError, Listener};

use tokio::sync::mpsc;

use crate::express::Ability;
use crate::key::PrivateKey;
use crate::tunnel::Device;

/// What the control sockets can ask of the running agent.
pub trait Agent: Send + Sync + 'static {
    /// For `meshd status`.
    fn status(&self) -> impl Future<Output = api::Status> + Send;
    /// Reads the files again and applies the difference. An error leaves all as it was.
    fn reload(&self) -> impl Future<Output = Result<api::Reloaded, api::Problem>> + Send;
    /// What `reload` would change in the kernel.
    fn plan(&self) -> impl Future<Output = Result<api::Plan, api::Problem>> + Send;
    /// Removes what was programmed and ends the process after the answer is sent.
    fn down(&self, keep_guard: bool) -> impl Future<Output = Result<(), api::Problem>> + Send;
    /// Asks every peer whether it is an agent.
    fn agents(&self) -> impl Future<Output = api::Agents> + Send;
    /// Calls peers and asks their agents how they are.
    fn doctor(&self, request: api::DoctorRequest) -> impl Future<Output = api::Examined> + Send;
    /// What the operator decides about an invitation.
    fn decide(&self, decision: api::Decision) -> impl Future<Output = Result<(), api::Problem>> + Send;
    /// Agrees on new keys with peers, or gives this host another one.
    fn rotate(&self, request: api::RotateRequest) -> impl Future<Output = Result<api::Rotated, api::Problem>> + Send;
    /// Measures the way to a peer; the last event says what came of it. Dropped when whoever asked has gone.
    fn bench(
        &self,
        request: api::BenchRequest,
        events: mpsc::Sender<api::BenchEvent>,
    ) -> impl Future<Output = ()> + Send;
    /// The tunnel, for UAPI.
    fn device(&self) -> Arc<Device>;
    /// Whether this host has express sessions, for peers that UAPI adds.
    fn express(&self) -> Ability;
    /// The UDP port in use, for UAPI.
    fn listen_port(&self) -> u16;
    /// Moves the tunnel to another UDP port (`wg set IF listen-port N`).
    fn set_listen_port(&self, port: u16) -> std::io::Result<()>;
    /// Changes the tunnel's key until the next reload (`wg set IF private-key FILE`).
    fn set_private_key(&self, key: PrivateKey);
}

/// Removes the sockets of an agent that was killed; those of a live one, of another namespace perhaps, stay.
pub fn remove_stale_sockets(run_dir: &Path, interface: &str) {
    for path in [run_dir.join(server::SOCKET), uapi::path(interface)] {
        if let Err(error) = socket::remove_stale(&path) {
            tracing::debug!(%error, "a socket stays");
        }
    }
}

#[cfg(test)]
mod tests;
