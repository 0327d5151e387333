//! What was observed on this host.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use super::exam::Examined;
use super::firewall::Ruleset;
use crate::plan::Family;

/// One reading of everything.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// The configuration's folder.
    pub config_dir: String,
    /// The agent's process.
    pub agent: Agent,
    /// Why nft(8) cannot be run.
    pub nft_fails: Option<String>,
    /// Whether `/dev/net/tun` is there.
    pub tun_device: bool,
    /// Why the UDP port cannot be had, when no agent has it.
    pub port_taken: Option<String>,
    /// Whether the guard's table exists; `None` when nft would not say.
    pub guard_stands: Option<bool>,
    /// Links by name.
    pub links: BTreeMap<String, LinkSeen>,
    /// Addresses of links.
    pub addresses: Vec<(String, IpNet)>,
    /// What differs from the plan and was not brought back meanwhile: kind and command. `None` when it cannot be told.
    pub differences: Option<Vec<(String, String)>>,
    /// The interface by which this host carries others' egress, where it does.
    pub exit_devices: BTreeMap<Family, String>,
    /// Policy rules of both families.
    pub rules: Vec<RuleSeen>,
    /// Destinations of routes that are not ours, in all tables.
    pub foreign: Vec<IpNet>,
    /// What the kernel said to [`questions`](super::questions).
    pub lookups: Vec<(Question, Answer)>,
    /// The stricter of `all` and the interface's own `rp_filter`.
    pub rp_filter: BTreeMap<String, u8>,
    /// The packet filter.
    pub ruleset: Ruleset,
    /// Names of endpoints by peer, and what they resolve to.
    pub resolved: BTreeMap<String, Vec<IpAddr>>,
    /// What a datagram to a peer's endpoint met.
    pub udp: BTreeMap<SocketAddr, Udp>,
    /// What the agent knows of its peers; `None` without an agent.
    pub examined: Option<Examined>,
    /// Addresses on the internet that are tried.
    pub internet: Vec<IpAddr>,
    /// Name servers on the internet that are tried; may be none.
    pub name_servers: Vec<IpAddr>,
    /// Those that answer this host itself. Only an exit looks.
    pub reached: Option<Vec<IpAddr>>,
    /// What a throwaway container on each bridge met.
    pub probed: BTreeMap<String, Result<Probed, String>>,
    /// What was seen of the container that is asked for.
    pub container: Option<ContainerSeen>,
}

/// The agent's process.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Agent {
    Running {
        version: String,
    },
    NotAnswering {
        pid: Option<i32>,
        /// By SIGSTOP or a debugger.
        stopped: bool,
    },
    #[default]
    NotRunning,
}

/// A link.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LinkSeen {
    /// Administratively.
    pub up: bool,
    /// In bytes.
    pub mtu: u32,
}

/// A policy rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleSeen {
    /// The lower one is asked first.
    pub priority: u32,
    /// Of the packets.
    pub family: Family,
    /// The interface that it asks for.
    pub iif: Option<String>,
    /// The table that it leads into.
    pub table: u32,
    /// What ip(8) takes after `rule add` or `rule del`.
    pub words: String,
}

/// What the kernel is asked to route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// The interface that it comes in by; `None` for the host's own packet.
    pub iif: Option<String>,
    /// Its source; `None` for the host's own packet.
    pub from: Option<IpAddr>,
    /// Its destination.
    pub to: IpAddr,
}

/// The kernel's answer, or its errno.
pub type Answer = Result<Way, i32>;

/// A route as it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Way {
    /// Out of which interface.
    pub device: Option<String>,
    /// Through whom.
    pub gateway: Option<IpAddr>,
    /// The route's destination.
    pub destination: IpNet,
    /// The route's table.
    pub table: u32,
    /// It is the kernel's own, of an address of this host.
    pub attached: bool,
}

/// What a datagram to a UDP port met.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Udp {
    /// ICMP said that nobody listens there.
    Refused,
    /// The kernel would not send it.
    Unsent,
    /// Nothing; so it is with WireGuard.
    Silent,
}

/// What a throwaway container met.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Probed {
    /// Whether its gateway answered, for each family that it has.
    pub gateway: Vec<(IpAddr, bool)>,
    /// Whether an address on the internet answered an echo request.
    pub echo: Vec<(IpAddr, bool)>,
    /// Whether a name server answered.
    pub dns: Vec<(IpAddr, bool)>,
}

/// A container that was asked for by its address.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ContainerSeen {
    /// Whether it answers on its bridge.
    pub answers: bool,
    /// A process in it, or the name of its network namespace: what enters it.
    pub enter: Option<String>,
    /// Its default gateway; `None` when its namespace was not found.
    pub gateway: Option<Option<IpAddr>>,
}

impl Seen {
    /// What differs of these kinds from the plan, as commands.
    pub fn missing(&self, kinds: &[&str]) -> Vec<String> {
        let all = self.differences.iter().flatten();
        all.filter(|(kind, _)| kinds.contains(&kind.as_str())).map(|(_, command)| command.clone()).collect()
    }

    /// What the kernel said.
    pub fn answer(&self, question: &Question) -> Option<&Answer> {
        self.lookups.iter().find(|(asked, _)| asked == question).map(|(_, answer)| answer)
    }

    /// Whether the agent's process is there, so that its interface should be too.
    pub fn agent_lives(&self) -> bool {
        self.agent != Agent::NotRunning
    }
}
