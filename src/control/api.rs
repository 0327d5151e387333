//! The JSON of the control socket and of `--json`. Stable: fields are added, never renamed.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

pub use crate::bench::Report;
pub use crate::doctor::exam::Examined;
use crate::express;
use crate::key::PublicKey;
pub use crate::mesh::introduce::{Introduced, Introduction};
pub use crate::tunnel::Cipher;
use crate::tunnel::PeerState;

/// `meshd status --json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Status {
    /// This host's name in the mesh.
    pub name: String,
    /// The tunnel's interface.
    pub interface: String,
    /// The agent's version.
    pub version: String,
    /// This host's identity.
    pub public_key: PublicKey,
    /// What its news of the mesh are signed with, in base64.
    #[serde(default)]
    pub inviter_key: String,
    /// The UDP port in use.
    pub listen_port: u16,
    /// Of the tunnel, in bytes.
    pub mtu: u16,
    /// This host's addresses inside the mesh.
    pub addresses: Vec<IpNet>,
    /// By name.
    pub peers: Vec<PeerStatus>,
    /// In the order of `meshd.toml`.
    pub bridges: Vec<BridgeStatus>,
    /// Packets that went nowhere.
    #[serde(default)]
    pub drops: Drops,
    /// The name server; `None` when it is off.
    #[serde(default)]
    pub names: Option<NamesStatus>,
    /// What needs the operator's eye, one line each.
    pub warnings: Vec<String>,
}

/// The name server of [`Status`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamesStatus {
    /// What the names end in.
    pub domain: String,
    /// Where it answers.
    pub listen: Vec<NamesListener>,
    /// Hosts and containers of the mesh, in the order of their names.
    pub known: Vec<KnownName>,
}

/// An address on port 53, by one interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names say it")]
pub struct NamesListener {
    pub address: IpAddr,
    pub interface: String,
}

/// A name and what it stands for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownName {
    /// Whole, without a dot at its end.
    pub name: String,
    /// Both families.
    pub addresses: Vec<IpAddr>,
}

/// Packets that went nowhere since the agent started, by cause.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[allow(missing_docs, reason = "`causes` says what each means")]
pub struct Drops {
    pub unroutable: u64,
    pub unreachable: u64,
    pub unanswered: u64,
    pub malformed: u64,
    pub refused: u64,
    pub spoofed: u64,
    pub congested: u64,
    pub overloaded: u64,
    pub unsent: u64,
    pub unwritten: u64,
    pub socket_overflow: u64,
    pub interface_overflow: u64,
}

impl Drops {
    /// Each cause: its name here, what it means, and how many packets.
    pub fn causes(&self) -> [(&'static str, &'static str, u64); 12] {
        [
            ("unroutable", "to an address in no peer's allowed IPs", self.unroutable),
            ("unreachable", "to a peer without an endpoint", self.unreachable),
            ("unanswered", "to a peer that answers no handshake", self.unanswered),
            ("malformed", "no IP packet", self.malformed),
            ("refused", "received forged, replayed or too late", self.refused),
            ("spoofed", "received from a source that is not the peer's", self.spoofed),
            ("congested", "received marked for congestion, which the flow ignores", self.congested),
            ("overloaded", "handshakes received faster than they can be answered", self.overloaded),
            ("unsent", "refused by the UDP socket", self.unsent),
            ("unwritten", "refused by the interface", self.unwritten),
            ("socket_overflow", "received too fast for the agent", self.socket_overflow),
            ("interface_overflow", "sent too fast for the agent", self.interface_overflow),
        ]
    }
}

/// One peer of [`Status`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PeerStatus {
    /// The name of its file; of a peer that wg(8) added, the start of its key.
    pub name: String,
    /// Its identity.
    pub public_key: PublicKey,
    /// Where it was last heard of.
    pub endpoint: Option<SocketAddr>,
    /// Inside the mesh.
    pub addresses: Vec<IpAddr>,
    /// Bridges and LANs behind it.
    pub subnets: Vec<IpNet>,
    /// What cryptokey routing gives it.
    pub allowed_ips: Vec<IpNet>,
    /// Unix seconds.
    pub latest_handshake: Option<u64>,
    /// Authenticated bytes of UDP payload.
    pub rx_bytes: u64,
    /// Bytes of UDP payload.
    pub tx_bytes: u64,
    /// How it fares.
    pub state: PeerState,
    /// What data to it leaves under now.
    #[serde(default)]
    pub cipher: Cipher,
    /// Its express sessions; their bytes are in the sums above, too.
    #[serde(default)]
    pub express: express::Snapshot,
    /// Seconds.
    pub persistent_keepalive: Option<u16>,
    /// How packets for it go now: `direct`, or `via NAME` of the peer that relays them.
    #[serde(default = "direct")]
    pub path: String,
}

/// [`PeerStatus::path`] of a peer that nobody relays.
pub const DIRECT: &str = "direct";

fn direct() -> String {
    DIRECT.to_owned()
}

/// One bridge of [`Status`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct BridgeStatus {
    /// The interface.
    pub name: String,
    /// Its container networks.
    pub subnets: Vec<IpNet>,
    /// The name of the peer by which it leaves now, `direct` or `none`.
    pub egress: String,
    /// Where several are configured: all of them, the preferred one first.
    #[serde(default)]
    pub exits: Vec<ExitStatus>,
    /// Where several are configured: since when it leaves by this one, in Unix seconds.
    #[serde(default)]
    pub egress_since: Option<u64>,
    /// Why it leaves by this one, when another one was used before.
    #[serde(default)]
    pub egress_reason: Option<String>,
    /// Whether the nft guard holds it.
    pub guard: Guard,
}

/// One of several exits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitStatus {
    /// The peer's name.
    pub name: String,
    /// Whether it has been heard of lately.
    pub well: bool,
}

/// The state of the nft guard for one bridge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "the names say it")]
pub enum Guard {
    Armed,
    Off,
    /// Not as configured; only `meshd guard status` says so.
    Altered,
}

/// `meshd guard status --json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuardStatus {
    /// The tunnel's interface.
    pub interface: String,
    /// Those whose egress is not `direct`.
    pub bridges: Vec<GuardedBridge>,
}

/// A bridge of [`GuardStatus`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "as in BridgeStatus")]
pub struct GuardedBridge {
    pub name: String,
    pub egress: String,
    pub guard: Guard,
}

/// The answer to a reload.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Reloaded {
    /// What changed, one line each; empty when nothing did.
    pub changes: Vec<String>,
    /// As in [`Status`].
    pub warnings: Vec<String>,
}

/// `meshd plan --json`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Plan {
    /// In the order in which they would be applied.
    pub changes: Vec<PlannedChange>,
    /// As in [`Status`].
    pub warnings: Vec<String>,
    /// What peers would bring that may not introduce others yet: `meshd peer trust`.
    #[serde(default)]
    pub introductions: Vec<Introduction>,
}

/// One change of [`Plan`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PlannedChange {
    /// `add` or `remove`.
    pub action: String,
    /// `guard`, `link`, `address`, `route`, `rule`, `nft` or `sysctl`.
    pub kind: String,
    /// As a person would type it: `ip route add …`.
    pub command: String,
}

/// What `meshd down` asks.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Down {
    /// Leaves the nft guard armed.
    pub keep_guard: bool,
}

/// Which peers run meshd.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Agents {
    /// Peers whose agent answered, by name.
    pub agents: Vec<String>,
    /// The others: other programs, and agents that cannot be reached.
    pub others: Vec<String>,
}

/// What the operator decides about an invitation: `meshd peer approve` and `meshd peer revoke-invite`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Decision {
    /// Of the invitation.
    pub id: String,
    /// Whom to let in, as the operator has seen its fingerprint; without it, nobody any more.
    #[serde(default)]
    pub approve: Option<PublicKey>,
}

/// What `meshd doctor` asks.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct DoctorRequest {
    /// Names of those to call; all without it.
    pub peers: Option<Vec<String>>,
    /// Addresses on the internet that an exit is to try.
    pub internet: Vec<IpAddr>,
    /// Compare the kernel with the plan first, and bring back what differs.
    pub reconcile: bool,
}

/// What `meshd peer rotate` asks.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct RotateRequest {
    /// A new preshared key with this peer; with all that are hosts without it.
    pub peer: Option<String>,
    /// A new key of this host instead.
    pub own: bool,
    /// Although there are peers that will not know it.
    pub force: bool,
}

/// `meshd peer rotate --json`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Rotated {
    /// This host's new identity, when that is what was asked for.
    pub public_key: Option<PublicKey>,
    /// By name.
    pub peers: Vec<RotatedPeer>,
}

/// What came of it with one peer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RotatedPeer {
    /// Its name.
    pub name: String,
    /// A session under the new key stands.
    pub done: bool,
    /// Why not.
    pub why: Option<String>,
}

/// What `meshd bench` asks.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct BenchRequest {
    /// Its name.
    pub peer: String,
    /// Of each run with load, 1 to 10.
    pub seconds: u32,
}

/// What comes of it: some progress, then a report or a problem.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "the names say it")]
pub enum BenchEvent {
    Progress(BenchProgress),
    Report(Box<Report>),
    Problem(Problem),
}

/// How far a measurement is.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct BenchProgress {
    /// Under way now, for people.
    pub what: String,
    /// Of the whole, from 0 to 1.
    pub done: f64,
    /// At this moment.
    pub bits_per_second: Option<u64>,
}

/// Why the agent did not do what it was asked.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Problem {
    /// True for invalid configuration and missing permission: exit code 4.
    pub refused: bool,
    /// Lines `what: why`.
    pub errors: Vec<String>,
    /// The remedy, where there is one.
    pub remedy: Option<String>,
}
