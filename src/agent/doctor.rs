//! `meshd doctor`: makes the observations, with the agent and without one, and has the core make findings of them.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use futures_util::future::join_all;
use ipnet::IpNet;

use super::{require_privilege, runtime};
use crate::config::{Config, Egress, Endpoint};
use crate::control::api::DoctorRequest;
use crate::control::client::{Client, ClientError};
use crate::doctor::{self, Agent, ContainerSeen, Probed, Report, Seen, State, Step, Target, Udp};
use crate::failure::Failure;
use crate::host::{self, Reconciler, Visitor, survey, tries};
use crate::store::{self, Dirs};

/// A difference to the plan that is older than this nobody brings back.
const SETTLES: Duration = Duration::from_millis(1500);
/// For an agent that is ending, and takes no questions any more.
const ENDS: Duration = Duration::from_millis(500);
/// For an answer from the internet.
const ANSWER: Duration = Duration::from_millis(1200);
/// For an ICMP error of a peer's host.
const ICMP: Duration = Duration::from_millis(500);
/// For a name server.
const NAMES: Duration = Duration::from_secs(3);

/// What is to be looked at.
#[derive(Debug, Clone)]
pub struct DoctorOptions {
    /// A bridge, a peer or a container's address; everything without it.
    pub target: Option<String>,
    /// Addresses on the internet to try.
    pub internet: Vec<IpAddr>,
    /// Name servers on the internet to try.
    pub name_servers: Vec<IpAddr>,
    /// Do what is safe about it.
    pub fix: bool,
}

/// Looks at this host; with `fix`, does what is safe about what it found, and looks again.
///
/// # Errors
/// When nothing can be looked at: no permission, no such target.
pub fn doctor(dirs: &Dirs, options: &DoctorOptions) -> Result<Report, Failure> {
    require_privilege("doctor")?;
    let config = match store::load(&dirs.config) {
        Ok(config) => config,
        Err(error) => return Ok(unreadable(&error)),
    };
    let target = match &options.target {
        None => Target::Everything,
        Some(word) => Target::find(&config, word).map_err(|why| Failure::new(2, format!("doctor: {why}")))?,
    };
    let report = look(dirs, &config, &target, options)?;
    if !options.fix || report.healthy {
        return Ok(report);
    }
    let fixed = fix(dirs, &report);
    if fixed.is_empty() {
        return Ok(report);
    }
    std::thread::sleep(Duration::from_millis(200));
    Ok(Report { fixed, ..look(dirs, &config, &target, options)? })
}

/// Without a configuration there is nothing else to say.
fn unreadable(error: &store::Error) -> Report {
    let step = |line: &String| {
        let remedy = error
            .remedy()
            .map_or_else(|| doctor::Remedy::note("correct that line"), |command| doctor::Remedy::run([command]));
        Step::fault("config", None, line.clone(), remedy)
    };
    Report::new("", error.errors().iter().map(step).collect())
}

fn look(dirs: &Dirs, config: &Config, target: &Target, options: &DoctorOptions) -> Result<Report, Failure> {
    let failed = |error: &host::Error| super::failure("doctor", error);
    let mut seen = Seen {
        config_dir: dirs.config.display().to_string(),
        internet: options.internet.clone(),
        name_servers: options.name_servers.clone(),
        tun_device: std::path::Path::new("/dev/net/tun").exists(),
        ..Seen::default()
    };
    let mut client = ask_agent(dirs, &mut seen)?;
    if seen.agent == Agent::NotRunning {
        seen.port_taken = port_taken(config.host.listen_port);
    }
    seen.differences = differences(dirs, config, client.as_mut(), &seen.agent);
    let runtime = runtime()?;
    seen.resolved = runtime.block_on(resolve(config, target));
    runtime.block_on(survey::look(config, target, &mut seen)).map_err(|error| failed(&error))?;
    if let Target::Container { addr, .. } = target {
        let mac = runtime.block_on(survey::hardware_address(*addr)).unwrap_or_default();
        let (enter, gateway) = mac.as_ref().and_then(|mac| host::containers::find(*addr, mac)).unzip();
        seen.container = Some(ContainerSeen { answers: mac.is_some(), enter, gateway });
    }
    let exits = config.host.exit.is_some() && *target == Target::Everything && seen.agent_lives();
    // All that waits for others, at once.
    let (examined, probes, ports, reached) = std::thread::scope(|scope| {
        let probes = scope.spawn(|| if seen.agent_lives() { probe(config, target, &seen) } else { BTreeMap::new() });
        let ports = scope.spawn(|| ports(config, target, &seen));
        let reached = scope.spawn(|| exits.then(|| tries::echoes(&seen.internet, ANSWER).ok()));
        let names = config.peers.iter().map(|peer| peer.name.clone()).filter(|name| target.peer(config, name));
        let request = DoctorRequest { peers: Some(names.collect()), internet: seen.internet.clone(), reconcile: false };
        let examined = client.as_mut().and_then(|client| client.doctor(&request).ok());
        (examined, probes.join(), ports.join(), reached.join())
    });
    seen.examined = examined;
    seen.probed = probes.unwrap_or_default();
    seen.udp = ports.unwrap_or_default();
    let answered = |tried: Vec<(IpAddr, bool)>| tried.into_iter().filter(|(_, well)| *well).map(|(addr, _)| addr);
    seen.reached = reached.ok().flatten().flatten().map(|tried| answered(tried).collect());
    Ok(Report::new(&config.host.name, doctor::diagnose(config, &seen, target)))
}

fn ask_agent(dirs: &Dirs, seen: &mut Seen) -> Result<Option<Client>, Failure> {
    let process = crate::control::running(&dirs.run).and_then(|agent| agent.pid);
    if let Some(pid) = process.filter(|pid| is_stopped(*pid)) {
        // To wait for its answer would be in vain.
        seen.agent = Agent::NotAnswering { pid: Some(pid), stopped: true };
        return Ok(None);
    }
    let status = Client::connect(&dirs.run).and_then(|mut client| Ok((client.status()?, client)));
    match status {
        Ok((status, client)) => {
            seen.agent = Agent::Running { version: status.version };
            Ok(Some(client))
        }
        Err(ClientError::NotRunning) => {
            seen.agent = Agent::NotRunning;
            Ok(None)
        }
        Err(error @ ClientError::PermissionDenied { .. }) => {
            Err(Failure::new(4, format!("doctor: {error}")).try_this("sudo meshd doctor"))
        }
        Err(error) => {
            // The kernel may be taking a killed one's interface down still.
            if crate::control::running(&dirs.run).is_none_or(|agent| agent.wait(ENDS)) {
                seen.agent = Agent::NotRunning;
                return Ok(None);
            }
            let pid = match error {
                ClientError::NotAnswering { pid } => pid,
                _ => process,
            };
            seen.agent = Agent::NotAnswering { pid, stopped: false };
            Ok(None)
        }
    }
}

/// State `T` or `t` of proc_pid_stat(5).
fn is_stopped(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with(['T', 't']))
}

fn port_taken(port: u16) -> Option<String> {
    UdpSocket::bind(("::", port)).or_else(|_| UdpSocket::bind(("0.0.0.0", port))).err().map(|error| error.to_string())
}

/// What differs from the plan and stays so.
fn differences(
    dirs: &Dirs,
    config: &Config,
    mut client: Option<&mut Client>,
    agent: &Agent,
) -> Option<Vec<(String, String)>> {
    let mut read = || -> Option<Vec<(String, String)>> {
        if let Some(client) = client.as_deref_mut() {
            let changes = client.plan().ok()?.changes.into_iter();
            return Some(changes.map(|change| (change.kind, change.command)).collect());
        }
        let runtime = runtime().ok()?;
        let plan = runtime.block_on(async { Reconciler::new(&dirs.state, &config.host.interface)?.plan(config).await });
        let changes = plan.ok()?.changes;
        Some(changes.iter().map(|change| (change.kind().to_owned(), change.to_string())).collect())
    };
    let first = read()?;
    if first.is_empty() || *agent == Agent::NotRunning {
        return Some(first);
    }
    std::thread::sleep(SETTLES);
    let second = read()?;
    Some(first.into_iter().filter(|difference| second.contains(difference)).collect())
}

/// The addresses of peers whose endpoint is a name.
async fn resolve(config: &Config, target: &Target) -> BTreeMap<String, Vec<IpAddr>> {
    let names = config.peers.iter().filter(|peer| target.peer(config, &peer.name));
    let names = names.filter_map(|peer| match &peer.endpoint {
        Some(Endpoint::Name(host, port)) => Some((peer.name.clone(), host.clone(), *port)),
        _ => None,
    });
    let look_up = names.map(|(peer, host, port)| async move {
        let found = tokio::time::timeout(NAMES, tokio::net::lookup_host((host, port))).await;
        let addrs = found.ok().and_then(Result::ok).map(|addrs| addrs.map(|addr| addr.ip()).collect());
        (peer, addrs.unwrap_or_default())
    });
    join_all(look_up).await.into_iter().collect()
}

/// What a datagram meets at the port of each peer that has an endpoint.
fn ports(config: &Config, target: &Target, seen: &Seen) -> BTreeMap<SocketAddr, Udp> {
    let peers = config.peers.iter().filter(|peer| target.peer(config, &peer.name));
    let mut endpoints: Vec<SocketAddr> = Vec::new();
    for peer in peers {
        match &peer.endpoint {
            Some(Endpoint::Addr(addr)) => endpoints.push(*addr),
            Some(Endpoint::Name(_, port)) => {
                let addrs = seen.resolved.get(&peer.name).into_iter().flatten();
                endpoints.extend(addrs.map(|addr| SocketAddr::new(*addr, *port)));
            }
            None => {}
        }
    }
    std::thread::scope(|scope| {
        let knock = |addr: SocketAddr| match tries::knock(addr, ICMP) {
            Ok(()) => Udp::Silent,
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Udp::Refused,
            Err(_) => Udp::Unsent,
        };
        let threads: Vec<_> = endpoints.iter().map(|&addr| (addr, scope.spawn(move || knock(addr)))).collect();
        let join =
            |(addr, thread): (SocketAddr, std::thread::ScopedJoinHandle<'_, Udp>)| Some((addr, thread.join().ok()?));
        threads.into_iter().filter_map(join).collect()
    })
}

/// Puts a throwaway container on each egress bridge and lets it ask the internet.
fn probe(config: &Config, target: &Target, seen: &Seen) -> BTreeMap<String, Result<Probed, String>> {
    let bridges = config.host.bridges.iter().filter(|bridge| target.bridge(&bridge.name));
    let bridges = bridges.filter(|bridge| matches!(bridge.egress, Egress::Peers(_)));
    let one = |bridge: &crate::config::Bridge| -> Result<Probed, String> {
        let own = seen.addresses.iter().filter(|(link, _)| *link == bridge.name).map(|(_, net)| *net);
        let gateways: Vec<IpNet> =
            own.filter(|own| bridge.subnets.iter().any(|net| net.contains(&own.addr()))).collect();
        let runtime = runtime().map_err(|failure| failure.errors.join("; "))?;
        runtime.block_on(async {
            let visitor = Visitor::on(&bridge.name, &gateways).await.map_err(|error| error.to_string())?;
            let has = |addr: &IpAddr| visitor.gateways.iter().any(|gateway| gateway.is_ipv4() == addr.is_ipv4());
            let internet: Vec<IpAddr> = seen.internet.iter().copied().filter(has).collect();
            let servers: Vec<IpAddr> = seen.name_servers.iter().copied().filter(has).collect();
            let probed = visitor.within(|| {
                std::thread::scope(|scope| {
                    // Threads are in the namespace of the one that starts them.
                    let echo = scope.spawn(|| tries::echoes(&internet, ANSWER));
                    let dns = scope.spawn(|| tries::queries(&servers, ANSWER));
                    let gateway = tries::echoes(&visitor.gateways, ANSWER)?;
                    let panicked = |_| io::Error::other("the thread that asks panicked");
                    Ok(Probed { gateway, echo: echo.join().map_err(panicked)??, dns: dns.join().map_err(panicked)?? })
                })
            });
            visitor.leave().await;
            probed.map_err(|error| error.to_string())
        })
    };
    bridges.map(|bridge| (bridge.name.clone(), one(bridge))).collect()
}

/// Does what is safe; says what it did.
fn fix(dirs: &Dirs, report: &Report) -> Vec<String> {
    let fixable =
        |step: &&Step| step.state == State::Fault && step.remedy.as_ref().is_some_and(|remedy| remedy.fixable);
    let steps: Vec<&Step> = report.steps.iter().filter(fixable).collect();
    if steps.is_empty() {
        return Vec::new();
    }
    let request = DoctorRequest { peers: Some(Vec::new()), reconcile: true, ..DoctorRequest::default() };
    let answers = !report.steps.iter().any(|step| step.step == "agent" && step.about.is_none() && step.is_fault());
    if answers && Client::connect(&dirs.run).is_ok_and(|mut client| client.doctor(&request).is_ok()) {
        return vec!["had the agent compare the kernel with the plan".to_owned()];
    }
    // An agent that hangs has forwarding in its journal already, so writing it again loses no old value.
    let commands = steps.iter().filter_map(|step| step.remedy.as_ref()).flat_map(|remedy| &remedy.commands);
    let sysctls = commands.filter(|command| command.starts_with("sysctl -w ") && command.ends_with("forwarding=1"));
    let mut done: Vec<String> = sysctls.filter(|command| host::set_sysctl(command).is_ok()).cloned().collect();
    done.dedup();
    done
}
