//! Containers on the bridges: the agent's side of `meshd attach`.
//!
//! What is attached is in `STATE/attached.json` before it is in the kernel, and out of the kernel before it is out of the
//! file, so a crash leaves nothing that the next process does not know of. That process finds the ports that still stand,
//! and touches none of them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::unistd::{Uid, User};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncWriteExt as _, Interest};
use tokio::net::UnixStream;
use tokio::sync::{Mutex, mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};

use super::running::Running;
use crate::attach::{self, Caller, Leases, Port, Refusal};
use crate::clock::unix_now;
use crate::config::{Config, Service};
use crate::control::api::Problem;
use crate::control::handover::{self, Answer, Listed, Request};
use crate::host::files::{self, Unusable};
use crate::host::inside::Inside;
use crate::host::port::{self, ContainerNamespace};
use crate::host::process::{self, Process};
use crate::host::resolv_conf::Resolver;
use crate::host::{self, Interface, Reconciler, Surroundings};
use crate::names::Attached;

/// The file's name in the state folder.
const FILE: &str = "attached.json";
const VERSION: u32 = 1;
/// How long a client may take over its request, and the agent over the answer.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(10);

/// What is attached to the bridges of this host.
pub(super) struct Attachments {
    path: PathBuf,
    state: Mutex<State>,
    /// Processes whose end is to be waited for, each with its container and the number of the attachment.
    begun: mpsc::UnboundedSender<(String, u64, OwnedFd)>,
    news: Mutex<mpsc::UnboundedReceiver<(String, u64, OwnedFd)>>,
    /// What there is, for whoever names it.
    shown: watch::Sender<Arc<[Attached]>>,
}

#[derive(Default)]
struct State {
    file: File,
    /// Tells one attachment of a name from the next.
    serials: HashMap<String, u64>,
    last: u64,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    version: u32,
    leases: Leases,
    /// With the end of which process a container is gone.
    processes: BTreeMap<String, Process>,
}

impl Attachments {
    /// What the process before this one knew.
    pub(super) fn load(state_dir: &Path) -> Self {
        let path = state_dir.join(FILE);
        let file = read(&path).unwrap_or_else(|why| {
            tracing::warn!("{}: {why}: containers have to be attached again", path.display());
            File::default()
        });
        let (begun, news) = mpsc::unbounded_channel();
        let state = State { file, ..State::default() };
        Self { path, state: Mutex::new(state), begun, news: Mutex::new(news), shown: watch::channel(Arc::default()).0 }
    }

    /// Changes whenever something is attached or detached.
    pub(super) fn watch(&self) -> watch::Receiver<Arc<[Attached]>> {
        self.shown.subscribe()
    }

    /// Finds what still stands, and tells the reconciler of it before it looks at the kernel.
    pub(super) async fn recover(&self, config: &Config, reconciler: &mut Reconciler) {
        let mut state = self.state.lock().await;
        for Port { name, interface, .. } in state.file.leases.ports(config, uid_of) {
            let process = state.file.processes.get(&name).map(Process::open);
            match (port::index(&interface), process) {
                (Some(_), Some(Ok(process))) => self.follow(&mut state, &name, Some(process)),
                (Some(_), None) => self.follow(&mut state, &name, None),
                // It stands where something else keeps its namespace, and goes below.
                (Some(_), Some(Err(_))) | (None, _) => state.vacate(config, &name),
            }
        }
        state.file.leases.retain(config);
        self.show(&state);
        let ports = state.file.leases.ports(config, uid_of);
        if let Err(error) = port::take_others(&config.host.bridges, &ports).await {
            tracing::warn!(%error, "ports of containers that are not known any more may stand");
        }
        reconciler.set_ports(ports);
    }

    /// The ports of what is attached, under this configuration.
    pub(super) async fn ports(&self, config: &Config) -> Vec<Port> {
        self.state.lock().await.file.leases.ports(config, uid_of)
    }

    fn follow(&self, state: &mut State, name: &str, process: Option<OwnedFd>) {
        state.last += 1;
        state.serials.insert(name.to_owned(), state.last);
        if let Some(process) = process {
            // The other end is in this very structure.
            let _ = self.begun.send((name.to_owned(), state.last, process));
        }
    }

    fn show(&self, state: &State) {
        let attached = state.file.leases.iter().filter(|(_, lease)| lease.vacant.is_none());
        let all: Arc<[Attached]> = attached
            .map(|(name, lease)| Attached {
                name: name.clone(),
                bridge: lease.bridge.clone(),
                addresses: lease.addresses.clone(),
            })
            .collect();
        self.shown.send_if_modified(|shown| std::mem::replace(shown, Arc::clone(&all)) != all);
    }

    /// Without leases there is no file.
    async fn write(&self, file: &File) -> io::Result<()> {
        let (path, empty) = (self.path.clone(), file.leases.iter().next().is_none());
        let text = serde_json::to_vec_pretty(file)?;
        // It may be a disk.
        let write = move || if empty { files::remove(&path) } else { files::replace(&path, &text) };
        tokio::task::spawn_blocking(write).await?
    }
}

impl State {
    fn vacate(&mut self, config: &Config, name: &str) {
        self.file.leases.vacate(config, name, unix_now());
        self.file.processes.remove(name);
        self.serials.remove(name);
    }
}

impl Running {
    /// Notices when containers end, until it is dropped.
    pub(super) async fn watch_containers(&self) {
        let mut news = self.attachments.news.lock().await;
        let mut ends = JoinSet::new();
        // One that was detached while its process goes on is not waited for any longer.
        let mut followed: HashMap<u64, (String, AbortHandle)> = HashMap::new();
        let mut look = tokio::time::interval(super::TEND);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            if !followed.is_empty() {
                let state = self.attachments.state.lock().await;
                followed.retain(|serial, (name, task)| {
                    let stays = state.serials.get(name) == Some(serial);
                    if !stays {
                        task.abort();
                    }
                    stays
                });
            }
            let gone = tokio::select! {
                Some((name, serial, process)) = news.recv() => {
                    let container = name.clone();
                    let task = ends.spawn(async move { (container, serial, process::ended(process).await) });
                    followed.insert(serial, (name, task));
                    continue;
                }
                Some(ended) = ends.join_next() => match ended {
                    Ok((name, serial, Ok(()))) => vec![(name, serial)],
                    Ok((name, _, Err(error))) => {
                        tracing::warn!(%error, "the end of container {name} will be noticed late");
                        continue;
                    }
                    // Aborted.
                    Err(_) => continue,
                },
                _ = look.tick() => self.vanished().await,
            };
            for (name, serial) in gone {
                self.container_gone(&name, serial).await;
            }
        }
    }

    /// Containers whose port is not there any more.
    async fn vanished(&self) -> Vec<(String, u64)> {
        let (state, config) = (self.attachments.state.lock().await, self.config());
        let gone = |name: &&String| port::index(&attach::interface(&config.host.interface, name)).is_none();
        state.serials.keys().filter(gone).map(|name| (name.clone(), state.serials[name])).collect()
    }

    async fn container_gone(&self, name: &str, serial: u64) {
        let mut changing = self.changing.lock().await;
        let mut state = self.attachments.state.lock().await;
        if changing.down || state.serials.get(name) != Some(&serial) {
            return;
        }
        let config = self.config();
        let interface = attach::interface(&config.host.interface, name);
        let lease = state.file.leases.get(name).cloned();
        let (bridge, addresses) = lease.map(|lease| (lease.bridge, lease.addresses)).unwrap_or_default();
        state.vacate(&config, name);
        let ports = state.file.leases.ports(&config, uid_of);
        let result = async {
            port::take(&interface, &bridge, &addresses).await?;
            changing.reconciler.hold_ports(&config, ports).await
        };
        match result.await {
            Ok(()) => tracing::info!(container = name, "detached: it has ended"),
            Err(error) => tracing::warn!(%error, container = name, "it has ended, and is not wholly detached"),
        }
        if let Err(error) = self.attachments.write(&state.file).await {
            tracing::warn!(%error, "{}", self.attachments.path.display());
        }
        self.attachments.show(&state);
    }

    /// Answers one client of the socket for containers.
    pub(super) async fn answer_attach(self: Arc<Self>, mut stream: UnixStream, uid: u32) {
        let exchange = async {
            let read = || handover::receive(stream.as_fd());
            let (request, fds) = stream.async_io(Interest::READABLE, read).await?;
            // What is begun is done to its end, whatever becomes of the connection.
            let begun = tokio::spawn(async move { self.attach_request(uid, request, fds).await });
            let answer = begun.await?.unwrap_or_else(Answer::Problem);
            let mut line = serde_json::to_vec(&answer)?;
            line.push(b'\n');
            stream.write_all(&line).await
        };
        match tokio::time::timeout(PATIENCE, exchange).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "attach: a request of uid {uid}"),
            Err(_) => tracing::debug!("attach: uid {uid} takes too long"),
        }
    }

    async fn attach_request(&self, uid: u32, request: Request, fds: Vec<OwnedFd>) -> Result<Answer, Problem> {
        // A directory service may take its time.
        let name = tokio::task::spawn_blocking(move || User::from_uid(Uid::from_raw(uid)).ok().flatten()).await;
        let caller = Caller { uid, name: name.ok().flatten().map(|user| user.name) };
        match request {
            Request::Attach { request, interface } => {
                let mut fds = fds.into_iter();
                let namespace = fds.next().ok_or_else(|| refused("no network namespace came with the request"))?;
                let namespace = ContainerNamespace::new(namespace).map_err(|error| refused(&error.to_string()))?;
                let inside = self.attach(&caller, &request, &interface, &namespace, fds.next()).await?;
                Ok(Answer::Attached(inside))
            }
            Request::Detach { name } => self.detach(&caller, &name).await.map(|()| Answer::Detached),
            Request::List => {
                let state = self.attachments.state.lock().await;
                let theirs = state.file.leases.iter().filter(|(_, lease)| uid == 0 || lease.uid == uid);
                Ok(Answer::List(theirs.map(|(name, lease)| listed(name, lease)).collect()))
            }
        }
    }

    async fn attach(
        &self,
        caller: &Caller,
        request: &attach::Request,
        interface: &str,
        namespace: &ContainerNamespace,
        process: Option<OwnedFd>,
    ) -> Result<Inside, Problem> {
        if !namespace.belongs_to(caller.uid).map_err(|error| refused(&format!("the namespace: {error}")))? {
            return Err(refused(&format!("the container belongs to somebody else than {caller}")));
        }
        if namespace.is_here().unwrap_or(true) {
            return Err(refused("this is the host's own network namespace; the container shares it"));
        }
        crate::config::value::interface(interface)
            .map_err(|why| refused(&format!("interface {interface:?}: {why}")))?;
        let process = process.map(|fd| Process::of(&fd).map(|process| (process, fd))).transpose();
        let process = process.map_err(|error| refused(&format!("the process: {error}")))?;

        let mut changing = self.changing.lock().await;
        if changing.down {
            return Err(failed("the agent ends"));
        }
        let config = self.config();
        let mut state = self.attachments.state.lock().await;
        let mut file = File { version: VERSION, ..state.file.clone() };
        if let Some((process, _)) = &process {
            file.processes.insert(request.name.clone(), *process);
        }
        let reconciler = &mut changing.reconciler;
        let placed = async {
            let (port, bridge, inside) =
                lease(&config, reconciler, &mut file.leases, caller, request, interface).await?;
            let written = self.attachments.write(&file).await;
            written.map_err(|error| failed(&format!("{}: {error}", self.attachments.path.display())))?;
            if let Err(error) = port::put(&bridge, &port, namespace, interface).await {
                let _ = port::take(&port.interface, &port.bridge, &port.addresses).await;
                let _ = self.attachments.write(&state.file).await;
                return Err(not_put(&error, interface));
            }
            Ok(inside)
        };
        let inside = match placed.await {
            Ok(inside) => inside,
            Err(problem) => {
                let _ = changing.reconciler.hold_ports(&config, state.file.leases.ports(&config, uid_of)).await;
                return Err(problem);
            }
        };
        state.file = file;
        self.attachments.follow(&mut state, &request.name, process.map(|(_, fd)| fd));
        self.attachments.show(&state);
        tracing::info!(container = request.name, "attached for {caller}");
        Ok(inside)
    }

    async fn detach(&self, caller: &Caller, name: &str) -> Result<(), Problem> {
        let mut changing = self.changing.lock().await;
        let config = self.config();
        let mut state = self.attachments.state.lock().await;
        let mut file = state.file.clone();
        let lease = file.leases.release(caller, name).map_err(|refusal| told(&refusal))?;
        file.processes.remove(name);
        let interface = attach::interface(&config.host.interface, name);
        let taken = async {
            port::take(&interface, &lease.bridge, &lease.addresses).await?;
            changing.reconciler.hold_ports(&config, file.leases.ports(&config, uid_of)).await
        };
        taken.await.map_err(|error| failed(&error.to_string()))?;
        state.file = file;
        state.serials.remove(name);
        self.attachments.show(&state);
        tracing::info!(container = name, "detached for {caller}");
        let written = self.attachments.write(&state.file).await;
        written.map_err(|error| failed(&format!("{}: {error}", self.attachments.path.display())))
    }

    /// Takes away all ports, and keeps the leases.
    pub(super) async fn detach_all(&self) {
        let (config, mut state) = (self.config(), self.attachments.state.lock().await);
        for Port { name, .. } in state.file.leases.ports(&config, uid_of) {
            state.vacate(&config, &name);
        }
        let _ = self.attachments.write(&state.file).await;
        self.attachments.show(&state);
        remove_ports(&config.host.interface, &state.file.leases).await;
    }
}

/// Finds addresses that are free on the bridge, and has the rules for them in place.
async fn lease(
    config: &Config,
    reconciler: &mut Reconciler,
    leases: &mut Leases,
    caller: &Caller,
    request: &attach::Request,
    interface: &str,
) -> Result<(Port, Interface, Inside), Problem> {
    let around = Surroundings::read().await.map_err(|error| failed(&error.to_string()))?;
    let mut others: BTreeSet<IpAddr> = around.addresses.iter().map(|(_, net)| net.addr()).collect();
    loop {
        let mut next = leases.clone();
        let lease = next.attach(config, (caller, request), &others).map_err(|refusal| told(&refusal))?.clone();
        let bridge = around.get(&lease.bridge).ok_or_else(|| {
            let why = format!("bridge {}: there is no such interface on this host yet", lease.bridge);
            Problem { remedy: Some(format!("ip link add {} type bridge", lease.bridge)), ..failed(&why) }
        })?;
        let ports = next.ports(config, uid_of);
        let port = ports.iter().find(|port| port.name == request.name).cloned();
        let port = port.ok_or_else(|| failed("the lease is gone"))?;
        if let Some((publish, listener)) =
            port.publish.iter().find_map(|publish| Some((publish, host::listener(config, publish)?)))
        {
            let service = Service { protocol: publish.protocol, ports: publish.ports };
            return Err(told(&Refusal::PortInUse(service, listener.to_string())));
        }
        // Containers that somebody else put there are known by their answers. Rules for a port that is not there yet do no
        // harm meanwhile.
        let (taken, held) =
            tokio::join!(port::answering(bridge, &lease.addresses), reconciler.hold_ports(config, ports));
        let taken = held.and(taken).map_err(|error| failed(&error.to_string()))?;
        if !taken.is_empty() {
            others.extend(taken);
            continue;
        }
        *leases = next;
        let with_prefix = |addr: &IpAddr| {
            let mut subnets = config.host.bridges.iter().flat_map(|bridge| &bridge.subnets);
            let prefix = subnets.find(|subnet| subnet.contains(addr)).map_or(0, ipnet::IpNet::prefix_len);
            ipnet::IpNet::new_assert(*addr, prefix)
        };
        let gateways = gateways(config, &around, bridge.index, &lease);
        let addresses = lease.addresses.iter().map(with_prefix).collect();
        let search = format!("{}.{}", config.host.name, config.host.domain);
        let resolver = config.host.names.as_ref().map(|_| Resolver { servers: gateways.clone(), search });
        let inside = Inside { interface: interface.to_owned(), addresses, gateways, resolver };
        return Ok((port, bridge.clone(), inside));
    }
}

/// The ports of what is attached, as the agent that is not running left them.
pub(super) fn ports_left(state_dir: &Path, config: &Config) -> Vec<Port> {
    read(&state_dir.join(FILE)).map(|file| file.leases.ports(config, uid_of)).unwrap_or_default()
}

/// Takes away the ports of an agent that is gone.
pub(super) async fn clean_up(state_dir: &Path, interface: &str) {
    if let Ok(file) = read(&state_dir.join(FILE)) {
        remove_ports(interface, &file.leases).await;
    }
}

async fn remove_ports(interface: &str, leases: &Leases) {
    for (name, lease) in leases.iter() {
        let port = attach::interface(interface, name);
        if let Err(error) = port::take(&port, &lease.bridge, &lease.addresses).await {
            tracing::warn!(%error, "a container's port stays");
        }
    }
}

/// The bridge's own addresses in the subnets that the container is in: the first of each family.
fn gateways(config: &Config, around: &Surroundings, bridge: u32, lease: &attach::Lease) -> Vec<IpAddr> {
    let subnets =
        config.host.bridges.iter().filter(|bridge| bridge.name == lease.bridge).flat_map(|bridge| &bridge.subnets);
    let subnets: Vec<_> = subnets.filter(|net| lease.addresses.iter().any(|addr| net.contains(addr))).collect();
    let own = around.addresses.iter().filter(|(index, _)| *index == bridge).map(|(_, net)| net.addr());
    let own: Vec<IpAddr> = own.filter(|addr| subnets.iter().any(|net| net.contains(addr))).collect();
    let first = |v4: bool| own.iter().copied().find(|addr| addr.is_ipv4() == v4);
    [first(true), first(false)].into_iter().flatten().collect()
}

fn uid_of(name: &str) -> Option<u32> {
    User::from_name(name).ok().flatten().map(|user| user.uid.as_raw())
}

fn listed(name: &str, lease: &attach::Lease) -> Listed {
    Listed {
        name: name.to_owned(),
        bridge: lease.bridge.clone(),
        uid: lease.uid,
        addresses: lease.addresses.clone(),
        publish: lease.publish.clone(),
        attached: lease.vacant.is_none(),
    }
}

fn told(refusal: &Refusal) -> Problem {
    Problem { refused: true, errors: vec![refusal.to_string()], remedy: refusal.remedy() }
}

fn refused(why: &str) -> Problem {
    Problem { refused: true, errors: vec![why.to_owned()], remedy: None }
}

fn failed(why: &str) -> Problem {
    Problem { refused: false, errors: vec![why.to_owned()], remedy: None }
}

fn not_put(error: &host::Error, interface: &str) -> Problem {
    if error.errno() == Some(libc::EEXIST) {
        let why = format!("the container has an interface {interface} already");
        return Problem {
            remedy: Some("--network none for the engine, or --interface eth1".to_owned()),
            ..refused(&why)
        };
    }
    failed(&error.to_string())
}

fn read(path: &Path) -> Result<File, String> {
    let text = files::read(path).map_err(|unusable| match unusable {
        Unusable::Io(error) => error.to_string(),
        Unusable::NotOurs(why) => why,
    })?;
    let Some(text) = text else { return Ok(File::default()) };
    let file: File = serde_json::from_slice(&text).map_err(|error| format!("damaged: {error}"))?;
    if file.version == VERSION { Ok(file) } else { Err(format!("of version {}", file.version)) }
}
