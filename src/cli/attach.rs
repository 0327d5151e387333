//! `meshd attach` and `meshd detach`.

mod hook;
mod runtime;

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::process::Command;

use clap::Args as ClapArgs;

use self::hook::ResolvConf;
use super::{Dirs, Failure, print, print_json};
use crate::attach::{self, Opening};
use crate::config::quote;
use crate::control::api::Problem;
use crate::control::handover::{self, Answer, Listed, Request};
use crate::host::inside;
use crate::host::port::ContainerNamespace;
use crate::host::process;

/// Put a running container on a bridge
#[derive(Debug, Default, ClapArgs)]
#[command(after_help = EXAMPLES)]
#[allow(clippy::struct_excessive_bools, reason = "switches that have nothing to do with each other")]
pub struct Args {
    /// podman:NAME, docker:NAME, the number of a process in it, or the path of a network namespace
    #[arg(value_name = "CONTAINER", required_unless_present_any = ["list", "oci_hook", "oci_runtime"])]
    container: Option<String>,
    /// What it is called in the mesh [default: its own name]
    #[arg(long)]
    name: Option<String>,
    /// The bridge [default: the only one that you may use]
    #[arg(long)]
    bridge: Option<String>,
    /// An address of the bridge's subnets; once for each family [default: the one that it had, or a free one]
    #[arg(long, value_name = "IP")]
    address: Vec<IpAddr>,
    /// A port of this host that is to lead to it: tcp/443, or tcp/443:8443 where it listens on another
    #[arg(long, value_name = "PORT")]
    publish: Vec<Opening>,
    /// What the interface in the container is called
    #[arg(long, default_value = "eth0")]
    interface: String,
    /// Leave /etc/resolv.conf in the container as it is
    #[arg(long)]
    no_resolver: bool,
    /// Show what is attached instead
    #[arg(long, conflicts_with_all = ["container", "name", "bridge", "address", "publish"])]
    list: bool,
    /// Act as a hook of an OCI runtime: read the container's state from standard input
    #[arg(long, conflicts_with_all = ["container", "name", "bridge", "address", "publish", "list"])]
    oci_hook: bool,
    /// Act as an OCI runtime, for engines that know no hooks: runc, and what it creates is attached
    #[arg(long, value_name = "ARG", num_args = 0.., allow_hyphen_values = true)]
    oci_runtime: Option<Vec<OsString>>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "\
Root attaches anything; a user what runs in a user namespace of theirs, as
rootless Podman's and Docker's containers do, where [bridge.users] in
meshd.toml names them. The container leaves the bridge when its process ends,
and has the same addresses when it is attached again.

Examples:
  podman run -d --name nextcloud --network none IMAGE
  meshd attach podman:nextcloud
  meshd attach podman:nextcloud --bridge br0 --address 10.89.2.10
  meshd attach podman:web --publish tcp/443:8443
  meshd attach 4711 --name build
  meshd attach /run/user/1001/netns/cloud --name cloud
  podman --hooks-dir /usr/share/meshd/hooks.d run --network none \\
      --annotation org.meshd.name=nextcloud IMAGE    (as it starts)
  docker run --runtime meshd --network none \\
      --hostname nextcloud IMAGE    (the same; see docs/containers.md)
  meshd attach --list";

/// Take a container off its bridge, and give its addresses back
#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:\n  meshd detach nextcloud")]
pub struct DetachArgs {
    /// What it is called in the mesh
    name: String,
}

/// What is to be attached.
struct Target {
    namespace: ContainerNamespace,
    /// With whose end it is gone.
    process: Option<OwnedFd>,
    name: Option<String>,
}

pub fn run(mut args: Args, dirs: &Dirs) -> Result<(), Failure> {
    if let Some(args) = &args.oci_runtime {
        return Err(runtime::run(args, &dirs.run));
    }
    let mut resolv_conf = None;
    if args.oci_hook {
        let state = hook::read(io::stdin().lock())?;
        let spec = state.spec()?;
        resolv_conf = Some(state.resolv_conf(&spec));
        state.fill(spec, &mut args)?;
    }
    let Some(container) = args.container.as_deref().filter(|_| !args.list) else { return list(dirs, args.json) };
    let target = target(container)?;
    let name = args.name.or(target.name).ok_or_else(|| {
        Failure::new(2, format!("attach: {container}: has no name of its own")).try_this("--name NAME".to_owned())
    })?;
    let request =
        attach::Request { name: name.clone(), bridge: args.bridge, addresses: args.address, publish: args.publish };
    let fds: Vec<BorrowedFd<'_>> =
        std::iter::once(target.namespace.as_fd()).chain(target.process.iter().map(|fd| fd.as_fd())).collect();
    let answer = ask(dirs, "attach", &Request::Attach { request, interface: args.interface }, &fds)?;
    let Answer::Attached(inside) = answer else { return Err(unexpected("attach")) };
    if let Err(why) = set_up(&target.namespace, &inside) {
        // It would be of no use to anybody.
        let _ = ask(dirs, "attach", &Request::Detach { name }, &[]);
        return Err(Failure::new(1, format!("attach: {container}: {why}")));
    }
    if let Some(resolver) = inside.resolver.as_ref().filter(|_| !args.no_resolver) {
        let written = match (&resolv_conf, &target.process) {
            // Its process has no root of its own yet: what it sees is the host's.
            (Some(ResolvConf::Mounted(file)), _) => resolver.write_over(file).map(|()| true),
            (Some(ResolvConf::Below(root)), _) => File::open(root).and_then(|root| resolver.write_below(&root)),
            (None, Some(process)) => resolver.write_into(&target.namespace, process),
            (Some(ResolvConf::Given), _) | (None, None) => Ok(false),
        };
        if let Err(error) = written {
            eprintln!("meshd: attach: {container}: /etc/resolv.conf: {error}: names of the mesh are not known there");
        }
    }
    if args.json {
        print_json(&inside)
    } else {
        let addresses: Vec<String> = inside.addresses.iter().map(|net| net.addr().to_string()).collect();
        print(&format!("{name} has {} on {}\n", addresses.join(" and "), inside.interface))
    }
}

pub fn detach(args: DetachArgs, dirs: &Dirs) -> Result<(), Failure> {
    match ask(dirs, "detach", &Request::Detach { name: args.name }, &[])? {
        Answer::Detached => Ok(()),
        _ => Err(unexpected("detach")),
    }
}

fn list(dirs: &Dirs, json: bool) -> Result<(), Failure> {
    let Answer::List(all) = ask(dirs, "attach", &Request::List, &[])? else { return Err(unexpected("attach")) };
    if json {
        return print_json(&all);
    }
    let line = |Listed { name, bridge, addresses, publish, attached, .. }: &Listed| {
        let ports: String = publish.iter().map(|opening| format!("  {opening}")).collect();
        let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
        let state = if *attached { "" } else { "  (not attached; kept for it)" };
        format!("{name}  {bridge}  {}{ports}{state}\n", addresses.join(", "))
    };
    print(&all.iter().map(line).collect::<String>())
}

fn set_up(namespace: &ContainerNamespace, inside: &inside::Inside) -> Result<(), String> {
    // From here on this process is in the container's network, for good; it has one thread.
    inside::enter(namespace).map_err(|error| format!("cannot enter its network namespace: {error}"))?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| error.to_string())?;
    runtime.block_on(inside::set_up(inside)).map_err(|error| error.to_string())
}

fn target(container: &str) -> Result<Target, Failure> {
    let failed = |what: &str, why: String| Failure::new(1, format!("attach: {what}: {why}"));
    for (prefix, program) in [("podman:", "podman"), ("docker:", "docker")] {
        if let Some(name) = container.strip_prefix(prefix) {
            let pid = pid_of(program, name)?;
            return of_process(pid, Some(name.to_owned())).map_err(|error| failed(container, error.to_string()));
        }
    }
    if let Ok(pid) = container.parse() {
        return of_process(pid, None).map_err(|error| failed(&format!("process {pid}"), error.to_string()));
    }
    if !container.contains('/') {
        return Err(Failure::new(2, format!("attach: {}: no container, process or path", quote(container)))
            .try_this(format!("meshd attach podman:{container}")));
    }
    let namespace = File::open(container).and_then(|file| ContainerNamespace::new(file.into()));
    let namespace = namespace.map_err(|error| failed(container, error.to_string()))?;
    let name = container.rsplit('/').next().filter(|name| crate::config::value::name(name).is_ok()).map(str::to_owned);
    Ok(Target { namespace, process: None, name })
}

fn of_process(pid: i32, name: Option<String>) -> io::Result<Target> {
    // The descriptor first: with it alive, the number is still its.
    let process = process::open(pid)?;
    let namespace = ContainerNamespace::new(File::open(format!("/proc/{pid}/ns/net"))?.into())?;
    process::Process::of(&process)?;
    Ok(Target { namespace, process: Some(process), name })
}

/// The first process of a container.
fn pid_of(program: &str, name: &str) -> Result<i32, Failure> {
    let output = Command::new(program).args(["inspect", "--format", "{{.State.Pid}}", "--", name]).output();
    let output = output.map_err(|error| Failure::new(1, format!("attach: {program}: {error}")))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let line = said.lines().last().unwrap_or("says no").trim();
        return Err(Failure::new(1, format!("attach: {program}: {}", crate::config::printable(line))));
    }
    match String::from_utf8_lossy(&output.stdout).trim().parse() {
        Ok(pid) if pid > 0 => Ok(pid),
        _ => Err(Failure::new(1, format!("attach: {program}: container {} does not run", quote(name)))
            .try_this(format!("{program} start {name}"))),
    }
}

fn ask(dirs: &Dirs, what: &str, request: &Request, fds: &[BorrowedFd<'_>]) -> Result<Answer, Failure> {
    match handover::ask(&dirs.run, request, fds) {
        Ok(Answer::Problem(Problem { refused, errors, remedy })) => Err(Failure {
            code: if refused { 4 } else { 1 },
            errors: errors.into_iter().map(|error| format!("{what}: {error}")).collect(),
            remedy,
        }),
        Ok(answer) => Ok(answer),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            Err(Failure::new(3, format!("{what}: the agent is not running")).try_this("meshd up"))
        }
        Err(error) => Err(Failure::new(1, format!("{what}: {}: {error}", dirs.run.join(handover::SOCKET).display()))),
    }
}

fn unexpected(what: &str) -> Failure {
    Failure::new(1, format!("{what}: the agent answered something else; it may be of another version"))
}
