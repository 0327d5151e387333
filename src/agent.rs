//! The supervisor: starts the parts in the order that fails closed, and takes them down again.
//!
//! 1. The files are read and checked, the run directory is locked, the UDP port is bound: what can be refused is
//!    refused before anything is touched. What the process before this one has left is taken over (`descriptors`).
//! 2. The guard is armed, before there is an interface.
//! 3. The interface is created and the kernel reconciled: addresses, routes, rules, nft, sysctls.
//! 4. The forwarding loop starts, then the control sockets, and whoever waits is told that all is ready.
//!
//! `meshd down` undoes all of it. A signal ends the process alone: the interface and the routes through it go, unless a service
//! manager keeps them for the next process; the guard and the `unreachable` routes stay, so that an egress bridge has no way
//! out until the agent is back.

mod answer;
mod attach;
mod ciphers;
mod descriptors;
mod detach;
mod direct;
mod doctor;
mod egress;
mod endpoints;
mod enroll;
mod exam;
pub mod guard;
mod introduced;
pub mod join;
mod leaks;
mod mail;
mod measure;
mod names;
mod news;
mod path;
mod resolved;
mod rotate;
mod running;
mod sessions;
mod watchdog;

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

pub use doctor::{DoctorOptions, doctor};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Mutex as AsyncMutex, watch};
use tracing_subscriber::EnvFilter;

use crate::config::Config;
use crate::control::client::Client;
use crate::control::{self, Agent as _, LockError, RunLock, api};
use crate::dataplane::{self, Dataplane, Offloads, Sockets, Tun, Udp};
use crate::failure::Failure;
use crate::host::{self, News, Reconciler, Rivals, Watch};
use crate::store::{self, Dirs};
use crate::tunnel::{Device, Settings};
use answer::Benches;
use attach::Attachments;
use descriptors::{Fit, Inherited};
use direct::Directs;
use egress::Exits;
use endpoints::Endpoints;
use enroll::Invitations;
pub use leaks::{LeaktestOptions, leaktest};
use mail::Mail;
use names::Names;
use news::Rosters;
use path::Paths;
use rotate::Rotations;
use running::{Changing, Running, Shown};
use sessions::Sessions;

/// How often names of silent peers are looked at, and the kernel is compared with the plan though it told of no change.
const TEND: Duration = Duration::from_secs(5);
/// Seconds from one handshake to the next, for tests alone.
const REKEY_AFTER: &str = "MESHD_TEST_REKEY_AFTER";

/// How `meshd up` was asked to run.
#[derive(Debug, Clone, Copy)]
pub struct UpOptions {
    /// Return once traffic can flow and run on in the background.
    pub detach: bool,
    /// This is the process that runs on: tell the one that started it how it went.
    pub ready_on_stdout: bool,
}

/// Runs the agent until it is told to end; with `--detach`, starts it and returns.
///
/// # Errors
/// What kept it from starting.
pub fn run(dirs: &Dirs, options: UpOptions) -> Result<(), Failure> {
    if options.detach {
        require_privilege("up")?;
        drop(take_run_dir(&dirs.run).map_err(|error| Failure::new(1, format!("up: {error}")))?);
        for warning in detach::start(dirs)? {
            eprintln!("meshd: warning: {warning}");
        }
        return Ok(());
    }
    let result = run_here(dirs, options.ready_on_stdout);
    if let (Err(failure), true) = (&result, options.ready_on_stdout) {
        detach::report(Err(failure));
    }
    result
}

fn run_here(dirs: &Dirs, ready_on_stdout: bool) -> Result<(), Failure> {
    start_logging();
    let inherited = Inherited::take();
    require_privilege("up")?;
    let lock = take_run_dir(&dirs.run).map_err(|error| Failure::new(1, format!("up: {error}")))?;
    let runtime = runtime()?;
    let result = runtime.block_on(supervise(dirs, &lock, inherited, ready_on_stdout));
    // A resolver that does not answer must not hold up the end.
    runtime.shutdown_background();
    result
}

/// What `meshd up` would change, when no agent runs.
///
/// # Errors
/// When the configuration is refused or the kernel cannot be read.
pub fn plan_offline(dirs: &Dirs) -> Result<api::Plan, Failure> {
    let config = store::load(&dirs.config)?;
    require_privilege("plan")?;
    runtime()?.block_on(async {
        let mut reconciler =
            Reconciler::new(&dirs.state, &config.host.interface).map_err(|error| failure("plan", &error))?;
        reconciler.set_ports(attach::ports_left(&dirs.state, &config));
        let planned = reconciler.plan(&config).await.map(running::planned);
        let introductions = Rosters::load(&dirs.state).introductions(&config);
        planned.map(|plan| api::Plan { introductions, ..plan }).map_err(|error| failure("plan", &error))
    })
}

/// Removes what an agent that is gone has left. False when there was nothing.
///
/// # Errors
/// What could not be removed.
pub fn down_offline(dirs: &Dirs, keep_guard: bool) -> Result<bool, Failure> {
    require_privilege("down")?;
    let _lock = take_run_dir(&dirs.run).map_err(|error| Failure::new(1, format!("down: {error}")))?;
    runtime()?.block_on(async {
        // The journal knows better than files that may have changed since.
        let configured = || store::load(&dirs.config).map_or_else(|_| "mesh0".into(), |config| config.host.interface);
        let interface = Reconciler::owner(&dirs.state).unwrap_or_else(configured);
        refuse_foreign_interface("down", &interface)?;
        let mut reconciler = Reconciler::new(&dirs.state, &interface).map_err(|error| failure("down", &error))?;
        attach::clean_up(&dirs.state, &interface).await;
        let removed = reconciler.teardown(keep_guard).await.map_err(|error| failure("down", &error))?;
        control::remove_stale_sockets(&dirs.run, &interface);
        Ok(!removed.is_empty())
    })
}

async fn supervise(dirs: &Dirs, lock: &RunLock, inherited: Inherited, ready_on_stdout: bool) -> Result<(), Failure> {
    let config = Arc::new(store::load(&dirs.config)?);
    let cannot = |what: &str, error: &dyn std::fmt::Display| Failure::new(1, format!("up: {what}{error}"));
    let listener = control::server::bind(lock).map_err(|error| cannot("", &error))?;
    let containers = control::handover::bind(lock).map_err(|error| cannot("", &error))?;
    let mut events = Events::new().map_err(|error| cannot("signals and notifications: ", &error))?;
    let running = Arc::new(start(dirs, &config, inherited, &mut events).await?);
    let ended = || {
        let mut ending = running.ending.subscribe();
        async move {
            let _ = ending.wait_for(|ending| *ending).await;
        }
    };
    let server = tokio::spawn(control::server::serve(Arc::clone(&running), listener, ended()));
    let containers = {
        let running = Arc::clone(&running);
        tokio::spawn(control::handover::serve(containers, ended(), move |stream, uid| {
            Arc::clone(&running).answer_attach(stream, uid)
        }))
    };
    let uapi = match control::uapi::bind(&control::uapi::path(&config.host.interface)) {
        Ok(listener) => Some(tokio::spawn(control::uapi::serve(Arc::clone(&running), listener, ended()))),
        Err(error) => {
            tracing::warn!(%error, "wg(8) cannot see this tunnel");
            None
        }
    };
    tracing::info!(interface = config.host.interface, port = running.listen_port(), "ready");
    let warnings = running.shown().warnings.clone();
    for warning in &warnings {
        tracing::warn!("{warning}");
    }
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    if ready_on_stdout {
        detach::report(Ok(warnings));
    }
    tokio::select! {
        () = tend(&running, &mut events) => {}
        () = running.serve_mail() => {}
        () = running.follow_names() => {}
        () = running.watch_exits() => {}
        () = running.watch_paths() => {}
        () = running.watch_ciphers() => {}
        () = running.find_direct_paths() => {}
        () = running.serve_guests() => {}
        () = running.tend_invitations() => {}
        () = running.follow_rotations() => {}
        () = running.exchange_news() => {}
        () = running.follow_news() => {}
        () = running.serve_names() => {}
        () = running.tell_names() => {}
        () = running.tell_resolved() => {}
        () = running.remember_sessions() => {}
        () = running.feed_watchdog() => {}
        () = running.watch_containers() => {}
    }
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    running.ending.send_replace(true);
    let _ = server.await;
    let _ = containers.await;
    if let Some(uapi) = uapi {
        let _ = uapi.await;
    }
    // What happened since the last look. That it could not be written was told.
    let _ = running.write_sessions().await;
    drop(running.dataplane().take());
    Ok(())
}

/// Builds a running agent; when a step fails, what was done before it is undone, but for the guard.
async fn start(
    dirs: &Dirs,
    config: &Arc<Config>,
    inherited: Inherited,
    events: &mut Events,
) -> Result<Running, Failure> {
    let interface = &config.host.interface;
    let (offloads, workers) = (offloads()?, dataplane::workers(config.host.workers));
    let mut reconciler = Reconciler::new(&dirs.state, interface).map_err(|error| failure("up", &error))?;
    let Fit { tun, udp } =
        inherited.sort(&config.host, workers, offloads, &reconciler).await.map_err(|error| failure("up", &error))?;
    if tun.is_none() {
        refuse_foreign_interface("up", interface)?;
    }
    let udp = udp.map_or_else(|| bind(config.host.listen_port, workers, offloads), Ok)?;
    reconciler.set_listen_port(udp[0].port());
    let rosters = Rosters::load(&dirs.state);
    let sessions = Sessions::load(&dirs.run, config);
    let attachments = Attachments::load(&dirs.state);
    attachments.recover(config, &mut reconciler).await;
    let built = tokio::select! {
        built = build(&mut reconciler, config, tun, udp, &rosters, &sessions) => built,
        () = events.stop.asked() => Err(Failure::new(1, "up: told to stop before it was ready")),
    };
    let (device, dataplane, endpoints, exits, outcome) = match built {
        Ok(built) => built,
        Err(mut failure) => {
            // Not the guard: what was to leave through the tunnel must not leave beside it because there is none.
            if let Err(error) = reconciler.teardown(true).await {
                tracing::error!(%error, "what was begun could not be undone; `meshd down` tries again");
            }
            if reconciler.guard_stands().await.unwrap_or_default() {
                failure.errors.push("up: the guard stays armed: egress bridges are closed until `meshd down`".into());
            }
            return Err(failure);
        }
    };
    Ok(Running {
        config_dir: dirs.config.clone(),
        device,
        offloads,
        changing: AsyncMutex::new(Changing { reconciler, rivals: Rivals::default(), down: false }),
        endpoints: AsyncMutex::new(endpoints),
        exits: Mutex::new(exits),
        shown: Mutex::new(Shown { config: Arc::clone(config), warnings: outcome.warnings }),
        dataplane: Mutex::new(Some(dataplane)),
        mail: Mail::new(),
        benches: Benches::default(),
        paths: Paths::default(),
        directs: Directs::default(),
        invitations: Invitations::new(dirs.state.clone()),
        rotations: Rotations::default(),
        rosters,
        sessions,
        names: Names::new(attachments.watch()),
        attachments,
        ending: watch::channel(false).0,
    })
}

fn bind(port: u16, workers: usize, offloads: Offloads) -> Result<Sockets, Failure> {
    let sockets = Udp::bind(port, workers, offloads).map_err(|error| Failure {
        code: 1,
        errors: vec![format!("up: UDP port {port}: {error}")],
        remedy: Some("choose a free listen_port in meshd.toml, or find who has it with: ss -lunp".into()),
    })?;
    descriptors::keep_udp(&sockets);
    Ok(sockets)
}

type Built = (Arc<Device>, Dataplane, Endpoints, Exits, host::Outcome);

async fn build(
    reconciler: &mut Reconciler,
    config: &Arc<Config>,
    tun: Option<Tun>,
    udp: Sockets,
    rosters: &Rosters,
    sessions: &Sessions,
) -> Result<Built, Failure> {
    reconciler.arm_guard(config).await.map_err(|error| failure("up", &error))?;
    let tun = tun.map_or_else(|| create(&config.host.interface, &udp), Ok)?;
    let outcome = reconciler.reconcile(config).await.map_err(|error| failure("up", &error))?;
    let now = Instant::now();
    let device = Device::new(config.private_key.clone(), config.host.mtu, now);
    let rekey_after = std::env::var(REKEY_AFTER).ok().and_then(|seconds| seconds.parse().ok()).map(Duration::from_secs);
    let device = Arc::new(match rekey_after {
        Some(rekey_after) => device.rekeying_after(rekey_after),
        None => device,
    });
    device.set_copy_dscp(config.host.copy_dscp);
    let mut endpoints = Endpoints::default();
    sessions.resolve(config, &mut endpoints);
    let exits = Exits::new(Arc::clone(config), now);
    let mut peers = endpoints.settings(config).await;
    rosters.retain(config, &mut peers);
    let settings = Settings { peers, local: exits.local() };
    device.configure(&config.private_key, &settings, now);
    sessions.recall(&device);
    let dataplane = Dataplane::start(Arc::clone(&device), tun, Arc::new(udp))
        .map_err(|error| Failure::new(1, format!("up: the forwarding threads: {error}")))?;
    Ok((device, dataplane, endpoints, exits, outcome))
}

fn create(interface: &str, sockets: &[Udp]) -> Result<Tun, Failure> {
    let tun = Tun::create(interface, sockets.len(), sockets[0].offloads())
        .map_err(|error| no_interface(interface, &error))?;
    descriptors::keep_tun(&tun);
    Ok(tun)
}

/// Signals, news from the kernel, and what is due from time to time, until the end.
async fn tend(running: &Running, events: &mut Events) {
    let mut ending = running.ending.subscribe();
    let mut due = tokio::time::interval_at(tokio::time::Instant::now() + TEND, TEND);
    due.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ending.wait_for(|ending| *ending) => return,
            () = events.stop.asked() => break,
            _ = events.hangup.recv() => {
                if let Err(problem) = running.reload().await {
                    for error in &problem.errors {
                        tracing::error!("{error}");
                    }
                }
            }
            news = events.kernel.changed() => running.tend(news).await,
            _ = due.tick() => running.tend(News::default()).await,
        }
    }
    if running.config().host.bridges.iter().any(|bridge| bridge.egress != crate::config::Egress::Direct) {
        tracing::info!("stopped; egress bridges stay closed until `meshd up`, or `meshd down` opens them");
    }
}

struct Events {
    stop: Stop,
    hangup: Signal,
    kernel: Watch,
}

/// SIGTERM, as of systemd, and SIGINT, as of Ctrl-C.
struct Stop(Signal, Signal);

impl Events {
    fn new() -> io::Result<Self> {
        Ok(Self { stop: Stop::new()?, hangup: signal(SignalKind::hangup())?, kernel: Watch::new()? })
    }
}

impl Stop {
    fn new() -> io::Result<Self> {
        Ok(Self(signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?))
    }

    async fn asked(&mut self) {
        tokio::select! {
            _ = self.0.recv() => {}
            _ = self.1.recv() => {}
        }
    }
}

/// Logs to standard error, in journald's manner when it is journald that reads.
fn start_logging() {
    // boringtun reports every expired handshake as an error; `status` says the same in a way that can be read.
    let filter = EnvFilter::try_from_env("MESHD_LOG").unwrap_or_else(|_| EnvFilter::new("info,boringtun=off"));
    let to_stderr = || tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_target(false);
    let terminal = std::io::IsTerminal::is_terminal(&io::stderr());
    // A second subscriber in one process can only be a test's.
    let _ = if std::env::var_os("JOURNAL_STREAM").is_some() {
        to_stderr().with_ansi(false).without_time().try_init()
    } else {
        to_stderr().with_ansi(terminal).try_init()
    };
}

fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(1, format!("cannot start: {error}")))
}

/// Routes, nft and the TUN device need CAP_NET_ADMIN; better said at once than by whichever of them fails first.
fn require_privilege(what: &str) -> Result<(), Failure> {
    require_capabilities(what, &[(12, "CAP_NET_ADMIN")])
}

/// Refuses the command `what` without these capabilities, each by its number and name.
fn require_capabilities(what: &str, needed: &[(u32, &str)]) -> Result<(), Failure> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    // Where it cannot be told, the kernel's own answer has to do.
    let Some(bits) = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()) else { return Ok(()) };
    let missing: Vec<&str> =
        needed.iter().filter(|(number, _)| bits >> number & 1 == 0).map(|(_, name)| *name).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let why = format!("{what}: not permitted: needs {}", missing.join(", "));
    Err(Failure::new(4, why).try_this(format!("sudo meshd {what}")))
}

/// The run directory for this process alone. An agent that was just killed needs a moment to leave it, and so does an nft(8)
/// that it was about to start.
fn take_run_dir(run_dir: &Path) -> Result<RunLock, LockError> {
    let dying = || {
        // Threads that are about to end hold the socket, and so does that nft: one that takes connections need not live.
        let silent = Client::connect(run_dir).is_err();
        control::running(run_dir).is_none_or(|agent| {
            let patience = if silent || agent.is_dying() { control::DEATH_LIMIT } else { Duration::from_millis(200) };
            agent.wait(patience)
        })
    };
    let deadline = Instant::now() + control::DEATH_LIMIT;
    loop {
        match control::lock(run_dir) {
            Err(LockError::AlreadyRunning { .. }) if dying() && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(10));
            }
            other => return other,
        }
    }
}

fn offloads() -> Result<Offloads, Failure> {
    let offloads = Offloads::from_env().map_err(|error| Failure::new(2, format!("up: {error}")))?;
    if offloads != Offloads::default() {
        tracing::info!("{} leaves these offloads: {offloads}", Offloads::VARIABLE);
    }
    Ok(offloads)
}

/// A TUN interface lives as long as somebody has it open: one that exists is in use, and what stands in the kernel under
/// its name is not for us to touch.
fn refuse_foreign_interface(what: &str, name: &str) -> Result<(), Failure> {
    if nix::net::if_::if_nametoindex(name).is_err() {
        return Ok(());
    }
    Err(Failure::new(1, format!("{what}: interface {name} exists: another agent or program has it"))
        .try_this(free(name)))
}

/// How to come by an interface that is in use.
fn free(name: &str) -> String {
    format!("end the agent that has it, or choose another `interface`; look with: ip -d link show {name}")
}

fn failure(what: &str, error: &host::Error) -> Failure {
    Failure { code: 1, errors: vec![format!("{what}: {error}")], remedy: error.remedy().map(Into::into) }
}

fn no_interface(name: &str, error: &io::Error) -> Failure {
    let (code, remedy) = match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => (4, "run it as root: sudo meshd up".to_owned()),
        Some(libc::EBUSY | libc::EEXIST | libc::EINVAL) => (1, free(name)),
        Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => (1, "modprobe tun".to_owned()),
        _ => (1, "look at the kernel's log: dmesg | tail".to_owned()),
    };
    Failure { code, errors: vec![format!("up: interface {name}: {error}")], remedy: Some(remedy) }
}
