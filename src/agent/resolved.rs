//! Split DNS for this host itself: systemd-resolved asks the agent for the names of the mesh, and others as before.
//!
//! It is told by resolvectl(1), its own client on D-Bus, that the tunnel's interface has name servers and which domains are theirs.
//! It forgets that with the interface, so nothing is to be undone.

use std::path::Path;

use crate::config::Config;
use crate::host::{self, Programs, Refusal};
use crate::names::routing_domains;

/// Where it keeps what it knows, while it runs.
const RUNTIME: &str = "/run/systemd/resolve";

/// What it was told.
#[derive(Default)]
pub(super) struct Resolved {
    programs: Programs,
    told: Option<Commands>,
}

/// The tunnel's number, and the arguments.
type Commands = (u32, Vec<Vec<String>>);

impl Resolved {
    /// Tells it what has changed. What kept it from being told: names of the mesh are then unknown to this host's own programs, and
    /// nothing else.
    pub(super) async fn follow(&mut self, config: &Config) -> Result<(), String> {
        let off = config.host.names.is_none() && self.told.is_none();
        if off || !Path::new(RUNTIME).exists() || !in_its_namespace() {
            return Ok(());
        }
        let interface = &config.host.interface;
        let Ok(interfaces) = host::interfaces() else { return Ok(()) };
        let Some((index, addresses)) = interfaces.get(interface) else { return Ok(()) };
        let mine = |addr: &&std::net::IpAddr| config.host.addresses.iter().any(|net| net.addr() == **addr);
        let servers: Vec<String> = addresses.iter().filter(mine).map(ToString::to_string).collect();
        let served = config.host.names.is_some() && !servers.is_empty();
        if !served && self.told.is_none() {
            return Ok(());
        }
        let commands = (*index, if served { commands(config, servers) } else { vec![words(&["revert", interface])] });
        if self.told.as_ref() == Some(&commands) {
            return Ok(());
        }
        for arguments in &commands.1 {
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            self.programs.run("resolvectl", &arguments, "").await.map_err(|refusal| match refusal {
                Refusal::NotRun(error) => error.to_string(),
                Refusal::Said(said) => said,
            })?;
        }
        self.told = Some(commands).filter(|_| served);
        Ok(())
    }
}

/// Whether this is the network of the machine, which systemd-resolved serves: it is told numbers of interfaces, and they are others'
/// in another network namespace. An agent that may not look is a service of the machine.
fn in_its_namespace() -> bool {
    let namespace = |process: &str| std::fs::read_link(format!("/proc/{process}/ns/net"));
    match (namespace("self"), namespace("1")) {
        (Ok(own), Ok(machine)) => own == machine,
        _ => true,
    }
}

fn commands(config: &Config, servers: Vec<String>) -> Vec<Vec<String>> {
    let interface = config.host.interface.as_str();
    // `~` sends names there without completing any by them.
    let domains = routing_domains(config).into_iter().map(|domain| format!("~{domain}"));
    vec![
        words(&["dns", interface]).into_iter().chain(servers).collect(),
        words(&["domain", interface]).into_iter().chain(domains).collect(),
        words(&["default-route", interface, "false"]),
    ]
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(ToString::to_string).collect()
}
