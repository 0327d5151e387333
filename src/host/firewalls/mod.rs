//! Other firewalls of this host: what they hold, and our exceptions in them.
//!
//! They are read only when there are any: the names of nft's tables cost one exchange with the kernel, and a host whose
//! tables are all ours has no other firewall. Then one listing of nft(8) shows all; iptables-save(8) adds what nft(8)
//! cannot show of iptables' rules. A reading holds until the generation of the ruleset changes, so nothing runs
//! while nothing happens. Rules of the older x_tables have no generation; where they are in use, they are read each time.
//!
//! Changes are made by the programs that a person would use, iptables(8) and firewall-cmd(1). The latter is firewalld's own
//! client on D-Bus and comes with it; what it changes without `--permanent` is never on disk.

mod iptables;
mod nft;

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::time::{Duration, Instant};

use super::Error;
use super::nft::{Nft, generation, tables};
use super::program::{Programs, Refusal};
use crate::plan::firewalls::{Chain, Exception, Firewalls, Maker, Position, zone_arguments};
use crate::plan::{self, Change, Family};

/// A reload takes others' chains away and puts them back one after the other.
const RELOAD: Duration = Duration::from_secs(2);
/// firewalld's own client.
const FIREWALL_CMD: &str = "firewall-cmd";
/// Tables of iptables that may drop forwarded packets.
const FILTERS: [&str; 3] = ["filter", "raw", "mangle"];

/// Reads them.
#[derive(Debug, Default)]
pub struct Reader {
    seen: Option<Seen>,
    /// Others' chains as they were read last, without our rules in them, and since when.
    last: Option<(Vec<Chain>, Option<Instant>)>,
}

#[derive(Debug)]
struct Seen {
    generation: u32,
    chains: Vec<Chain>,
}

impl Reader {
    /// All chains but those of the agent on `interface`; `placed` is what the journal says. What cannot be read is left
    /// out and named.
    pub async fn read(&mut self, nft: &Nft, interface: &str, placed: BTreeSet<String>) -> Firewalls {
        let legacy = legacy_tables();
        // Asked for before listing: a change in between is then seen the next time.
        let generation = generation().ok();
        let fresh = |seen: &&Seen| legacy.is_empty() && generation == Some(seen.generation);
        if let Some(seen) = self.seen.as_ref().filter(fresh) {
            return Firewalls { chains: seen.chains.clone(), placed, unread: None, settling: self.settling() };
        }
        self.seen = None;
        let (chains, unread) = match list(nft, interface, &legacy).await {
            Ok(chains) => (chains, None),
            Err(error) => (Vec::new(), Some(error.to_string())),
        };
        if let (Some(generation), None) = (generation, &unread) {
            self.seen = Some(Seen { generation, chains: chains.clone() });
        }
        let mut firewalls = Firewalls { chains, placed, unread, settling: false };
        let theirs = firewalls.theirs(interface);
        match &mut self.last {
            None => self.last = Some((theirs, None)),
            Some((before, _)) if *before == theirs => {}
            Some(last) => *last = (theirs, Some(Instant::now())),
        }
        firewalls.settling = self.settling();
        firewalls
    }

    /// Whether others have just changed something.
    fn settling(&self) -> bool {
        self.last.as_ref().and_then(|(_, changed)| *changed).is_some_and(|changed| changed.elapsed() < RELOAD)
    }
}

/// Makes a change of another firewall; `present` are its chains as they were read.
pub async fn apply(change: &Change, programs: &Programs, present: &Firewalls, interface: &str) -> Result<(), Error> {
    match change {
        Change::AddException { exception, position } => {
            // One that has come to stand behind what it is an exception to.
            if present.ours(interface).contains_key(exception) {
                remove(programs, exception).await?;
            }
            add(programs, exception, *position).await
        }
        Change::RemoveException(exception) => remove(programs, exception).await,
        Change::PlaceInZone { interface } => {
            run(programs, FIREWALL_CMD, &zone_arguments("add", interface)).await.map(drop)
        }
        Change::TakeFromZone { interface } => match run(programs, FIREWALL_CMD, &zone_arguments("remove", interface))
            .await
        {
            Err(Error::Firewall { why, .. }) if why.contains("UNKNOWN_INTERFACE") || why.contains("NOT_RUNNING") => {
                Ok(())
            }
            other => other.map(drop),
        },
        _ => Ok(()),
    }
}

async fn add(programs: &Programs, exception: &Exception, position: Position) -> Result<(), Error> {
    iptables(programs, exception, &exception.added_at(position)).await.map(drop)
}

async fn remove(programs: &Programs, exception: &Exception) -> Result<(), Error> {
    match iptables(programs, exception, &exception.removed()).await {
        // The rule is gone, or its chain.
        Err(Error::Firewall { why, .. }) if why.contains("does a matching rule exist") || why.contains("No chain") => {
            Ok(())
        }
        other => other.map(drop),
    }
}

async fn iptables(programs: &Programs, exception: &Exception, arguments: &[String]) -> Result<String, Error> {
    of_maker(programs, exception.maker, exception.family, "", arguments).await
}

/// Runs `ip[6]tables-nft` or `-legacy`, or just `ip[6]tables` where there is only one of them.
async fn of_maker(
    programs: &Programs,
    maker: Maker,
    family: Family,
    suffix: &str,
    arguments: &[String],
) -> Result<String, Error> {
    let base = if family == Family::V6 { "ip6tables" } else { "iptables" };
    let kind = if maker == Maker::Legacy { "-legacy" } else { "-nft" };
    match run(programs, &format!("{base}{kind}{suffix}"), arguments).await {
        Err(Error::FirewallProgram { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            run(programs, &format!("{base}{suffix}"), arguments).await
        }
        other => other,
    }
}

async fn list(nft: &Nft, interface: &str, legacy: &[(Family, String)]) -> Result<Vec<Chain>, Error> {
    let own = [plan::nft::guard_name(interface), plan::nft::filter_name(interface)];
    let mut chains = Vec::new();
    if tables()?.iter().any(|name| !own.contains(name)) {
        let listing = nft.ruleset().await?;
        let not_one = || Error::Nft("list ruleset: the answer is no listing".to_owned());
        chains = self::nft::parse(&listing, &own).ok_or_else(not_one)?;
    }
    for family in [Family::V4, Family::V6] {
        let of_iptables = |chain: &Chain| {
            chain.family == Some(family) && FILTERS.contains(&chain.table.as_str()) && is_builtin(&chain.name)
        };
        if !chains.iter().any(of_iptables) {
            continue;
        }
        match of_maker(nft.programs(), Maker::Iptables, family, "-save", &[]).await {
            Ok(text) => {
                let better = iptables::parse(&text, Maker::Iptables, family);
                chains.retain(|chain| {
                    chain.family != Some(family) || !better.iter().any(|other| other.table == chain.table)
                });
                chains.extend(better);
            }
            // Then nft's view has to do, and nothing can be changed.
            Err(Error::FirewallProgram { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    for (family, table) in legacy {
        let text = of_maker(nft.programs(), Maker::Legacy, *family, "-save", &["-t".to_owned(), table.clone()]).await?;
        chains.extend(iptables::parse(&text, Maker::Legacy, *family));
    }
    Ok(chains)
}

fn is_builtin(chain: &str) -> bool {
    ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"].contains(&chain)
}

/// The tables of x_tables that are in use in this network namespace. To ask for another would create it.
fn legacy_tables() -> Vec<(Family, String)> {
    let files = [(Family::V4, "ip_tables_names"), (Family::V6, "ip6_tables_names")];
    let names = |(family, file): (Family, &str)| {
        let text = fs::read_to_string(format!("/proc/thread-self/net/{file}")).unwrap_or_default();
        let names: Vec<_> = text.lines().map(|name| (family, name.to_owned())).collect();
        names
    };
    files.into_iter().flat_map(names).filter(|(_, name)| FILTERS.contains(&name.as_str())).collect()
}

async fn run(programs: &Programs, program: &str, arguments: &[String]) -> Result<String, Error> {
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    programs.run(program, &arguments, "").await.map_err(|refusal| match refusal {
        Refusal::NotRun(source) => Error::FirewallProgram { program: program.to_owned(), source },
        Refusal::Said(why) => Error::Firewall { command: format!("{program} {}", arguments.join(" ")), why },
    })
}
