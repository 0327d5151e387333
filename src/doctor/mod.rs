//! What keeps a packet from arriving: findings from facts. Pure.
//!
//! The shell makes the observations, in this order, and nothing here asks the kernel:
//!
//! 1. [`questions`] lists the routes that the kernel is to look up, from the configuration and the host's addresses.
//! 2. The answers and everything else that was seen go into [`Seen`].
//! 3. [`diagnose`] walks the way of a packet (container, bridge, rule, table, guard, tunnel, handshake, exit, masquerade,
//!    return) and makes one [`Step`] of each stage. What could not work because of an earlier fault is skipped, so that
//!    one fault makes one finding.
//!
//! Between agents go [`exam`]'s messages: an exit tells those whose egress it carries what [`exit::steps`] finds there.

mod bridge;
pub mod exam;
pub mod exit;
mod express;
pub mod firewall;
mod packets;
mod peer;
mod report;
mod seen;
#[cfg(test)]
mod tests;
mod ways;

use std::collections::BTreeSet;
use std::net::IpAddr;

pub use report::{Remedy, Report, State, Step};
pub use seen::{Agent, Answer, ContainerSeen, LinkSeen, Probed, Question, RuleSeen, Seen, Udp, Way};
pub use ways::{away, container, questions};

use crate::config::{Config, Egress};

/// Which part of the host is looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// All bridges and peers.
    Everything,
    /// One bridge, and the peer that carries its egress.
    Bridge(String),
    /// The same of one container.
    Container {
        /// Its bridge.
        bridge: String,
        /// Its address.
        addr: IpAddr,
    },
    /// One peer.
    Peer(String),
    /// This host's part as the exit of a peer.
    Exit(String),
}

impl Target {
    /// What a word on the command line means.
    ///
    /// # Errors
    /// When it is nothing of this host's configuration.
    pub fn find(config: &Config, word: &str) -> Result<Self, String> {
        let bridges = &config.host.bridges;
        if bridges.iter().any(|bridge| bridge.name == word) {
            return Ok(Self::Bridge(word.to_owned()));
        }
        if config.peer(word).is_some() {
            return Ok(Self::Peer(word.to_owned()));
        }
        if let Ok(addr) = word.parse::<IpAddr>() {
            let on = |bridge: &&crate::config::Bridge| bridge.subnets.iter().any(|net| net.contains(&addr));
            let bridge = bridges.iter().find(on).map(|bridge| bridge.name.clone());
            return bridge
                .map(|bridge| Self::Container { bridge, addr })
                .ok_or_else(|| format!("{addr} is in no subnet of this host's bridges"));
        }
        let bridges = bridges.iter().map(|bridge| bridge.name.as_str());
        let known: Vec<&str> = bridges.chain(config.peers.iter().map(|peer| peer.name.as_str())).collect();
        Err(format!("{word:?} is no bridge, peer or container address; there are: {}", known.join(", ")))
    }

    /// Whether a bridge is looked at.
    pub fn bridge(&self, name: &str) -> bool {
        match self {
            Self::Everything => true,
            Self::Bridge(bridge) | Self::Container { bridge, .. } => bridge == name,
            Self::Peer(_) | Self::Exit(_) => false,
        }
    }

    /// Whether a peer is looked at: named, or the egress of a bridge that is.
    pub fn peer(&self, config: &Config, name: &str) -> bool {
        match self {
            Self::Everything => true,
            Self::Peer(peer) => peer == name,
            Self::Exit(_) => false,
            Self::Bridge(_) | Self::Container { .. } => config
                .host
                .bridges
                .iter()
                .any(|bridge| self.bridge(&bridge.name) && bridge.egress.exits().iter().any(|exit| exit == name)),
        }
    }

    /// The container that stands for all of a bridge's.
    fn container(&self, bridge: &str) -> Option<IpAddr> {
        match self {
            Self::Container { bridge: own, addr } if own == bridge => Some(*addr),
            _ => None,
        }
    }
}

/// Walks the way of a packet. The steps come in the order in which a packet meets them.
pub fn diagnose(config: &Config, seen: &Seen, target: &Target) -> Vec<Step> {
    let peers = config.peers.len();
    let peers = format!("sound, {peers} {}", if peers == 1 { "peer" } else { "peers" });
    let mut steps = vec![Step::ok("config", None, peers)];
    steps.extend(agent(config, seen));
    let bridges: Vec<_> = config.host.bridges.iter().filter(|bridge| target.bridge(&bridge.name)).collect();
    for bridge in &bridges {
        steps.extend(bridge::steps(config, seen, target, bridge));
    }
    steps.extend(bridge::tunnel(config, seen));
    for peer in config.peers.iter().filter(|peer| target.peer(config, &peer.name)) {
        steps.extend(peer::steps(config, seen, peer));
    }
    if *target == Target::Everything {
        steps.extend(peer::strangers(config, seen));
        let clients: Vec<_> = config.peers.iter().filter(|peer| exit::carries(config, peer)).collect();
        steps.extend(exit::steps(config, seen, &clients));
    }
    for bridge in bridges {
        steps.extend(exit::beyond(config, seen, bridge, &steps));
    }
    // One cause may be in the way of several peers.
    let mut said = BTreeSet::new();
    steps.retain(|step| {
        let commands =
            step.remedy.as_ref().map(|remedy| remedy.commands.clone()).filter(|commands| !commands.is_empty());
        !step.is_fault() || said.insert((step.step.clone(), commands.unwrap_or_else(|| vec![step.saw.clone()])))
    });
    steps
}

/// Whether the agent is there, and what it needs to be.
fn agent(config: &Config, seen: &Seen) -> Vec<Step> {
    let mut steps = Vec::new();
    let stopped = match &seen.agent {
        Agent::Running { version } => {
            steps.push(Step::ok("agent", None, format!("running, meshd {version}")));
            false
        }
        Agent::NotAnswering { pid, stopped } => {
            let pid = pid.map(|pid| pid.to_string());
            let who = pid.as_ref().map(|pid| format!(" (pid {pid})")).unwrap_or_default();
            let remedy = match (pid, stopped) {
                (Some(pid), true) => Remedy::run([format!("kill -CONT {pid}")]),
                (Some(pid), false) => Remedy::run([format!("kill {pid}"), "meshd up --detach".to_owned()]),
                (None, _) => Remedy::note("end its process, then: meshd up"),
            };
            let saw = if *stopped { "is stopped by a signal" } else { "runs but does not answer" };
            steps.push(Step::fault("agent", None, format!("the agent{who} {saw}"), remedy));
            false
        }
        Agent::NotRunning => {
            let remedy = Remedy::run(["meshd up --detach".to_owned()]);
            steps.push(Step::fault("agent", None, "not running: try meshd up", remedy));
            true
        }
    };
    if let Some(why) = &seen.nft_fails {
        let remedy = Remedy::run(["apt install nftables".to_owned()]);
        steps.push(Step::fault("nft", None, why.clone(), remedy));
    }
    if stopped && !seen.tun_device {
        let remedy = Remedy::run(["modprobe tun".to_owned()]);
        steps.push(Step::fault("tun", None, "there is no /dev/net/tun", remedy));
    }
    if let (true, Some(why)) = (stopped, &seen.port_taken) {
        let port = config.host.listen_port;
        let note = format!("find who has it with: ss -lunp 'sport = :{port}'; or choose another listen_port");
        steps.push(Step::fault("port", None, format!("UDP port {port}: {why}"), Remedy::note(note)));
    }
    if let (true, Some(mut guarded)) = (stopped, seen.guard_stands) {
        guarded |= config.host.bridges.iter().all(|bridge| bridge.egress == Egress::Direct);
        steps.push(if guarded {
            Step::ok("guard", None, "armed without the agent: egress bridges stay closed")
        } else {
            let remedy = Remedy::run(["meshd up --detach".to_owned()]);
            Step::fault("guard", None, "not armed: egress bridges are as open as without meshd", remedy)
        });
    }
    steps
}
