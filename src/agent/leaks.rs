//! `meshd leaktest`: sends what may not leave, and watches what does. Runs in the process of the command.
//!
//! 1. A throwaway container on each bridge looks for an address that nobody has, and for the bridge's own.
//! 2. The capture begins. A control frame goes out by each watched interface.
//! 3. The containers send, once a second, what they are made to; what comes back to them is noted.
//! 4. A second control, a moment of patience, and the verdict.

mod station;

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::future::join_all;
use ipnet::IpNet;
use tokio::time::sleep;

use super::{Stop, failure, require_capabilities, runtime};
use crate::config::{Bridge, Config, Egress, Endpoint, list_of_names, quote};
use crate::control::api::Status;
use crate::control::client::{Client, ClientError};
use crate::failure::Failure;
use crate::host::{Capture, Container, Interface, PacketSocket, Reconciler, Surroundings};
use crate::key::random_bytes;
use crate::leaktest::{
    Answer, CaptureReport, Control, Leak, Leg, LegReport, Probe, Recogniser, Report, Run, Seen, Verdict, describe,
    ethertype, probes, targets,
};
use crate::store::{self, Dirs};
use station::{Place, Sent, Station};

/// For what is still on its way in the end.
const PATIENCE: Duration = Duration::from_millis(300);
/// Frames that are still looked at in the end.
const MAX_QUEUED: u32 = 1 << 20;
/// Longer than this no port of a bridge is waited for.
const MAX_FORWARD_DELAY: u32 = 60;

/// How `meshd leaktest` was asked to run.
#[derive(Debug, Clone)]
pub struct LeaktestOptions {
    /// Which bridges; all that have another egress than `direct` when empty.
    pub bridges: Vec<String>,
    /// For how long probes are sent.
    pub seconds: u32,
    /// Who is asked for an answer through the tunnel.
    pub to: Vec<IpAddr>,
}

/// Runs the test.
///
/// # Errors
/// When it could not be run; what it found is in the report.
pub fn leaktest(dirs: &Dirs, options: &LeaktestOptions) -> Result<Report, Failure> {
    require_capabilities("leaktest", &[(12, "CAP_NET_ADMIN"), (13, "CAP_NET_RAW"), (21, "CAP_SYS_ADMIN")])?;
    let config = store::load(&dirs.config)?;
    let bridges = chosen(&config, &options.bridges)?;
    let mut report = Report {
        verdict: Verdict::Nothing,
        tag: String::new(),
        agent: false,
        interface: config.host.interface.clone(),
        seconds: options.seconds,
        captures: Vec::new(),
        missed: 0,
        bridges: Vec::new(),
        warnings: Vec::new(),
    };
    let status = match Client::connect(&dirs.run).and_then(|mut client| client.status()) {
        Ok(status) => Some(status),
        Err(ClientError::NotRunning) => None,
        Err(error) => {
            report.warnings.push(format!("the agent does not answer: {error}"));
            None
        }
    };
    report.agent = status.is_some();
    report.warnings.extend(status.iter().flat_map(|status| edited(&bridges, status)));
    if bridges.is_empty() {
        return Ok(report.judged());
    }
    let random = random_bytes().map_err(|error| Failure::new(1, format!("leaktest: random numbers: {error}")))?;
    let run = Run::new(random);
    report.tag = run.tag();
    runtime()?.block_on(async {
        let mut stop = Stop::new().map_err(|error| Failure::new(1, format!("leaktest: signals: {error}")))?;
        let mut test = Test { config: &config, options, run, report, stations: Vec::new(), legs: Vec::new() };
        let outcome = tokio::select! {
            outcome = test.run(dirs, &bridges, status.as_ref()) => outcome,
            () = stop.asked() => Err(Failure::new(1, "leaktest: interrupted")),
        };
        for station in test.stations {
            let addresses: Vec<IpAddr> = station.places.iter().map(|place| place.address).collect();
            if let Err(error) = station.container.remove(&addresses).await {
                test.report.warnings.push(format!("left to the kernel to remove: {error}"));
            }
        }
        outcome.map(|()| test.report.judged())
    })
}

/// The bridges to test.
fn chosen<'a>(config: &'a Config, names: &[String]) -> Result<Vec<&'a Bridge>, Failure> {
    let bridges = &config.host.bridges;
    for name in names {
        if !bridges.iter().any(|bridge| bridge.name == *name) {
            let known = list_of_names(bridges.iter().map(|bridge| bridge.name.as_str()));
            let why = format!("leaktest: no bridge {} in meshd.toml; bridges are: {known}", quote(name));
            return Err(Failure::new(2, why));
        }
    }
    let asked = |bridge: &&Bridge| names.is_empty() || names.contains(&bridge.name);
    Ok(bridges.iter().filter(asked).filter(|bridge| bridge.egress != Egress::Direct).collect())
}

/// Where the running agent still works by older files.
fn edited(bridges: &[&Bridge], status: &Status) -> Vec<String> {
    let other = |bridge: &&&Bridge| {
        let same = |running: &&crate::control::api::BridgeStatus| running.name == bridge.name;
        status.bridges.iter().find(same).is_none_or(|running| running.egress != bridge.egress.to_string())
    };
    let warning = |bridge: &&Bridge| format!("{}: meshd.toml was edited and not loaded yet: meshd reload", bridge.name);
    bridges.iter().filter(other).map(warning).collect()
}

struct Test<'a> {
    config: &'a Config,
    options: &'a LeaktestOptions,
    run: Run,
    report: Report,
    stations: Vec<Station>,
    legs: Vec<Leg>,
}

/// A probe that left by an interface that is watched.
struct Escape {
    index: u32,
    leg: usize,
    number: Option<u16>,
    by: &'static str,
    packet: String,
    time: SystemTime,
}

/// What the capture saw.
#[derive(Default)]
struct Sighted {
    frames: HashMap<u32, u64>,
    controls: HashSet<(u32, u16, bool, bool)>,
    escapes: Vec<Escape>,
    /// By leg: into the tunnel.
    tunnel: HashMap<usize, u32>,
}

impl Test<'_> {
    async fn run(&mut self, dirs: &Dirs, bridges: &[&Bridge], status: Option<&Status>) -> Result<(), Failure> {
        let interface = &self.config.host.interface;
        let surroundings = surroundings().await?;
        self.settle(bridges, &surroundings).await?;
        if self.legs.is_empty() {
            return Ok(());
        }
        let mut facts = Reconciler::new(&dirs.state, interface).map_err(|error| failure("leaktest", &error))?;
        let facts = facts.facts().await.map_err(|error| failure("leaktest", &error))?;
        let endpoints = endpoints(self.config, status);
        let mut all: Vec<Probe> = Vec::new();
        for (number, leg) in self.legs.iter().enumerate() {
            let targets =
                targets(self.config, &facts, &self.run, leg, &surroundings.neighbours, &endpoints, &self.options.to);
            all.extend(probes(&self.run, number, leg, &targets, all.len()));
        }
        let recogniser = Recogniser::new(self.run, &self.legs, &all);

        // Read again, for the containers have ports now.
        let surroundings = self::surroundings().await?;
        let (watched, without) = watched(self.config, &surroundings);
        let port = status.map_or(self.config.host.listen_port, |status| status.listen_port);
        let cannot = |error| Failure::new(1, format!("leaktest: sending and watching: {error}"));
        let mut capture = Capture::everywhere(&without, port).map_err(cannot)?;
        let tunnel = surroundings.get(interface).map(|tunnel| Capture::on(tunnel.index)).transpose();
        let mut tunnel = tunnel.map_err(cannot)?;

        let mut sighted = Sighted::default();
        let sent = {
            let work = send(&mut self.stations, &watched, self.run, &recogniser, &all, self.options.seconds);
            tokio::pin!(work);
            loop {
                tokio::select! {
                    packet = capture.next() => {
                        let (from, packet) = packet.map_err(cannot)?;
                        sighted.note(&recogniser, from.index, from.ethertype, packet);
                    }
                    packet = next(tunnel.as_mut()) => {
                        let (from, packet) = packet.map_err(cannot)?;
                        sighted.note_tunnel(&recogniser, from.ethertype, packet);
                    }
                    sent = &mut work => break sent.map_err(cannot)?,
                }
            }
        };
        let mut queued = MAX_QUEUED;
        while let Some((from, packet)) = capture.queued().map_err(cannot)?.filter(|_| queued > 0) {
            sighted.note(&recogniser, from.index, from.ethertype, packet);
            queued -= 1;
        }
        // More comes than can be looked at.
        self.report.missed += u32::from(queued == 0);
        self.report.missed += capture.missed().map_err(cannot)?;
        self.conclude(&all, &watched, sent, sighted).await
    }

    /// Puts a container on each bridge and finds addresses for it.
    async fn settle(&mut self, bridges: &[&Bridge], surroundings: &Surroundings) -> Result<(), Failure> {
        for bridge in bridges {
            let problem = |why: &str| leg_report(bridge, None, Some(why.to_owned()));
            let Some(interface) = surroundings.get(&bridge.name) else {
                self.report.bridges.push(problem("it does not exist: no container can be on it"));
                continue;
            };
            let nets = nets(surroundings, interface.index);
            if nets.is_empty() {
                self.report.bridges.push(problem("it has no address: containers have no gateway there"));
                continue;
            }
            let container = Container::on(interface).await.map_err(|error| failure("leaktest", &error))?;
            let mut station = Station { container, places: Vec::new() };
            if let Some(delay) = interface.forward_delay {
                sleep(Duration::from_secs(delay.min(MAX_FORWARD_DELAY).into())).await;
            }
            for net in nets {
                let found = station.settle(&self.run, net).await;
                match found {
                    Ok((address, gateway)) => {
                        station.places.push(Place { leg: self.legs.len(), address, gateway });
                        let (bridge, gateway) = (bridge.name.clone(), net.addr());
                        self.legs.push(Leg { bridge, address, gateway, subnet: net });
                    }
                    Err(why) => self.report.bridges.push(leg_report(bridge, Some(net), Some(why))),
                }
            }
            self.stations.push(station);
        }
        // In the order of their numbers, so that a leg's report is found by it.
        let broken = std::mem::take(&mut self.report.bridges);
        for leg in &self.legs {
            let bridge = bridges.iter().find(|bridge| bridge.name == leg.bridge);
            let report = bridge.map(|bridge| leg_report(bridge, Some(leg.subnet), None));
            self.report.bridges.extend(report.map(|report| LegReport { address: Some(leg.address), ..report }));
        }
        self.report.bridges.extend(broken);
        Ok(())
    }

    async fn conclude(
        &mut self,
        probes: &[Probe],
        watched: &[Interface],
        sent: Vec<Sent>,
        sighted: Sighted,
    ) -> Result<(), Failure> {
        for (leg, count) in sent.iter().flat_map(|sent| &sent.probes) {
            self.report.bridges[*leg].probes += count;
        }
        for (number, after) in sent.iter().flat_map(|sent| &sent.answers) {
            let Some(probe) = probes.get(usize::from(*number)) else { continue };
            let latency_us = u64::try_from(after.as_micros()).unwrap_or(u64::MAX);
            let answer = Answer { from: probe.destination(), probe: probe.shape.clone(), latency_us };
            self.report.bridges[probe.leg].answers.push(answer);
        }
        for (leg, count) in &sighted.tunnel {
            self.report.bridges[*leg].tunnel += count;
        }
        for leg in &mut self.report.bridges {
            leg.answers.sort_by(|a, b| (a.from, &a.probe).cmp(&(b.from, &b.probe)));
        }
        for (at, interface) in watched.iter().enumerate() {
            let controls = if controlled(interface, watched) { CONTROLS } else { 0 };
            let of_it = |seen: &&(u32, u16, bool, bool)| seen.0 == interface.index && usize::from(seen.1) == at;
            self.report.captures.push(CaptureReport {
                interface: interface.name.clone(),
                controls,
                seen: sighted.controls.iter().filter(of_it).count() as u32,
                frames: sighted.frames.get(&interface.index).copied().unwrap_or(0),
            });
        }
        // Interfaces that came meanwhile: another container's port is no way out.
        let now = if sighted.escapes.is_empty() { Surroundings::default() } else { surroundings().await? };
        let (beside, _) = self::watched(self.config, &now);
        for escape in sighted.escapes {
            let known = watched.iter().chain(&beside).find(|interface| interface.index == escape.index);
            let name = match (known, now.by_index(escape.index)) {
                (Some(interface), _) => interface.name.clone(),
                (None, Some(_)) => continue,
                (None, None) => format!("interface {}", escape.index),
            };
            self.report.bridges[escape.leg].add(leak(escape, name, probes));
        }
        Ok(())
    }
}

fn leak(escape: Escape, interface: String, probes: &[Probe]) -> Leak {
    let probe = escape.number.and_then(|number| probes.get(usize::from(number)));
    Leak {
        interface,
        time: escape.time.duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs()),
        count: 1,
        probe: probe.map(|probe| probe.shape.clone()),
        target: probe.map(|probe| probe.what.clone()),
        destination: probe.map(Probe::destination),
        packet: escape.packet,
        recognised_by: escape.by.to_owned(),
    }
}

fn leg_report(bridge: &Bridge, subnet: Option<IpNet>, problem: Option<String>) -> LegReport {
    LegReport {
        name: bridge.name.clone(),
        egress: bridge.egress.to_string(),
        subnet: subnet.map(|net| net.trunc()),
        address: None,
        verdict: Verdict::Inconclusive,
        problem,
        probes: 0,
        tunnel: 0,
        answers: Vec::new(),
        leaks: Vec::new(),
    }
}

async fn surroundings() -> Result<Surroundings, Failure> {
    Surroundings::read().await.map_err(|error| failure("leaktest", &error))
}

/// The bridge's own addresses that containers can have neighbours of; whether configured or not, for what is not is forgotten
/// easily, such as IPv6.
fn nets(surroundings: &Surroundings, index: u32) -> Vec<IpNet> {
    let local = |net: &IpNet| matches!(net, IpNet::V6(net) if net.addr().is_unicast_link_local());
    let own = surroundings.addresses.iter().filter(|(of, net)| *of == index && !local(net)).map(|(_, net)| *net);
    own.filter(|net| net.prefix_len() < net.max_prefix_len()).collect()
}

/// Where the exits are reached beside the tunnel.
fn endpoints(config: &Config, status: Option<&Status>) -> Vec<IpAddr> {
    let configured = config.peers.iter().filter_map(|peer| match &peer.endpoint {
        Some(Endpoint::Addr(address)) => Some(address.ip()),
        _ => None,
    });
    let present = status.into_iter().flat_map(|status| &status.peers).filter_map(|peer| peer.endpoint);
    let mut endpoints: Vec<IpAddr> = configured.chain(present.map(|endpoint| endpoint.ip().to_canonical())).collect();
    endpoints.sort();
    endpoints.dedup();
    endpoints
}

/// The interfaces that a leak may leave by, and the numbers of all others: the tunnel's, loopback, the bridges and their ports.
fn watched(config: &Config, surroundings: &Surroundings) -> (Vec<Interface>, Vec<u32>) {
    let bridges = config.host.bridges.iter().filter_map(|bridge| surroundings.get(&bridge.name));
    let bridges: Vec<u32> = bridges.map(|bridge| bridge.index).collect();
    let inside = |interface: &&Interface| {
        interface.loopback
            || interface.name == config.host.interface
            || bridges.contains(&interface.index)
            || interface.controller.is_some_and(|controller| bridges.contains(&controller))
    };
    let (without, watched): (Vec<&Interface>, Vec<&Interface>) = surroundings.interfaces.iter().partition(inside);
    let running = watched.into_iter().filter(|interface| interface.running);
    (running.cloned().collect(), without.into_iter().map(|interface| interface.index).collect())
}

/// Whether a control goes out there. A part of a bond or of another bridge is left to that: a frame from it alone might
/// teach a switch the wrong port.
fn controlled(interface: &Interface, watched: &[Interface]) -> bool {
    interface.controller.is_none_or(|controller| watched.iter().all(|other| other.index != controller))
}

/// Of each watched interface: both families, before and after.
const CONTROLS: u32 = 4;

async fn next(capture: Option<&mut Capture>) -> std::io::Result<(crate::host::Received, &[u8])> {
    match capture {
        Some(capture) => capture.next().await,
        None => std::future::pending().await,
    }
}

/// The controls, the probes, the controls again.
async fn send(
    stations: &mut [Station],
    watched: &[Interface],
    run: Run,
    recogniser: &Recogniser,
    probes: &[Probe],
    seconds: u32,
) -> std::io::Result<Vec<Sent>> {
    let socket = PacketSocket::packets()?;
    let control = |after: bool| {
        for (interface, at) in watched.iter().zip(0..).filter(|(interface, _)| controlled(interface, watched)) {
            for ipv6 in [false, true] {
                let packet = run.control(Control { interface: at, after, ipv6 });
                // To the interface's own address: nobody else takes it, and a switch returns nothing to its sender. One
                // that is not sent is not seen either.
                let _ = socket.send_by(interface.index, interface.mac, ethertype(&packet), &packet);
            }
        }
    };
    control(false);
    let duration = Duration::from_secs(seconds.into());
    let sent = join_all(stations.iter_mut().map(|station| station.send(recogniser, probes, duration))).await;
    control(true);
    sleep(PATIENCE).await;
    sent.into_iter().collect()
}

impl Sighted {
    fn note(&mut self, recogniser: &Recogniser, index: u32, ethertype: u16, packet: &[u8]) {
        *self.frames.entry(index).or_default() += 1;
        match recogniser.look(ethertype, packet) {
            Some(Seen::Control(control)) => {
                self.controls.insert((index, control.interface, control.after, control.ipv6));
            }
            Some(Seen::Probe { leg, number, by }) => {
                let (packet, time) = (describe(ethertype, packet), SystemTime::now());
                self.escapes.push(Escape { index, leg, number, by, packet, time });
            }
            None => {}
        }
    }

    fn note_tunnel(&mut self, recogniser: &Recogniser, ethertype: u16, packet: &[u8]) {
        if let Some(Seen::Probe { leg, .. }) = recogniser.look(ethertype, packet) {
            *self.tunnel.entry(leg).or_default() += 1;
        }
    }
}
