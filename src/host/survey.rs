//! One look at all that decides about packets on this host, whoever made it, for `meshd doctor`.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::process::Stdio;
use std::time::Duration;

use futures_util::TryStreamExt as _;
use ipnet::IpNet;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::route::{RouteAttribute, RouteFlags, RouteMessage, RouteProtocol, RouteType};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage};
use tokio::process::Command;

use super::Error;
use super::netlink::{self, Links, Netlink};
use super::snapshot::Snapshot;
use super::sysctl;
use super::visitor;
use crate::config::Config;
use crate::doctor::firewall::{Ruleset, Tool, iptables, nft};
use crate::doctor::{Answer, LinkSeen, Question, RuleSeen, Seen, Target, Way, questions};
use crate::plan::{Family, LinkSetting, ROUTE_PROTOCOL, SysctlKey, TABLE_MAIN, nft as names};

/// A listing of a large rule set takes its time.
const PATIENCE: Duration = Duration::from_secs(10);
/// `RT_TABLE_LOCAL`.
const TABLE_LOCAL: u32 = 255;

/// Looks at links, addresses, rules, routes and the packet filter, then asks the kernel what the core wants to know.
///
/// # Errors
/// When the kernel does not answer. Programs that fail are part of what is seen.
pub async fn look(config: &Config, target: &Target, seen: &mut Seen) -> Result<(), Error> {
    let netlink = Netlink::open()?;
    let snapshot = Snapshot::read(&netlink).await?;
    let facts = snapshot.facts();
    let links = &snapshot.links;
    for (name, link) in links.iter() {
        let mtu = link.settings.iter().find_map(|setting| match setting {
            LinkSetting::Mtu(mtu) => Some(*mtu),
            _ => None,
        });
        seen.links.insert(name.clone(), LinkSeen { up: link.up, mtu: mtu.unwrap_or_default() });
        let strict = |link: &str| sysctl::read(&SysctlKey::new(Family::V4, link, "rp_filter")).ok().flatten();
        let value = [strict("all"), strict(name)].into_iter().flatten().filter_map(|value| value.parse::<u8>().ok());
        seen.rp_filter.extend(value.max().map(|value| (name.clone(), value)));
    }
    let addresses = netlink.addresses().await?;
    let named = addresses.iter().filter_map(|address| Some((links.name(address.index)?.clone(), address.net)));
    seen.addresses = named.collect();
    for family in [Family::V4, Family::V6].into_iter().filter(|family| facts.ipv6 || *family == Family::V4) {
        seen.rules.extend(netlink.rules(family).await?.iter().filter_map(rule));
        let foreign = netlink.table(0, family).await?;
        seen.foreign
            .extend(foreign.iter().filter(|message| !is_ours(message)).filter_map(|message| net(message, family)));
        if let Some(exit) = &config.host.exit {
            let by_default = facts.default_device(family).filter(|name| *name != config.host.interface);
            let device = exit.interface.as_deref().or(by_default);
            seen.exit_devices.extend(device.map(|device| (family, device.to_owned())));
        }
    }
    seen.foreign.sort();
    seen.foreign.dedup();
    match ruleset().await {
        Ok(ruleset) => {
            let guard = names::guard_name(&config.host.interface);
            seen.guard_stands = Some(ruleset.chains.iter().any(|chain| chain.table == guard));
            seen.ruleset = ruleset;
        }
        Err(why) => seen.nft_fails = Some(why),
    }
    for question in questions(config, seen, target) {
        let answer = lookup(&netlink, links, &question).await;
        seen.lookups.push((question, answer));
    }
    Ok(())
}

/// The hardware address of whoever on this host's links has this address.
///
/// # Errors
/// When the kernel does not answer.
pub async fn hardware_address(addr: IpAddr) -> Result<Option<Vec<u8>>, Error> {
    visitor::neighbour(&Netlink::open()?, addr).await
}

/// Writes a sysctl in the words of `sysctl -w net.ipv4.conf.br0.forwarding=1`.
///
/// # Errors
/// When it is none of an interface, or the kernel refuses.
pub fn set_sysctl(command: &str) -> Result<(), Error> {
    let words = command.strip_prefix("sysctl -w net.").and_then(|words| words.split_once('='));
    let key = words.and_then(|(key, value)| Some((SysctlKey::from_path(&key.replace('.', "/"))?, value)));
    let source = std::io::ErrorKind::InvalidInput.into();
    let (key, value) = key.ok_or(Error::Sysctl { path: command.into(), source })?;
    sysctl::write(&key, value)
}

fn is_ours(message: &RouteMessage) -> bool {
    message.header.protocol == RouteProtocol::Other(ROUTE_PROTOCOL)
}

fn net(message: &RouteMessage, family: Family) -> Option<IpNet> {
    let table = table(message);
    let destination = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(addr) => {
            IpNet::new(netlink::ip(addr)?, message.header.destination_prefix_length).ok()
        }
        _ => None,
    });
    (table != TABLE_LOCAL).then(|| destination.unwrap_or(family.everything()))
}

fn table(message: &RouteMessage) -> u32 {
    let own = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Table(table) => Some(*table),
        _ => None,
    });
    own.unwrap_or(message.header.table.into())
}

/// `ip route get fibmatch`: the route that the kernel takes, as it stands in its table.
async fn lookup(netlink: &Netlink, links: &Links, question: &Question) -> Answer {
    let Question { iif, from, to } = question;
    let mut message = RouteMessage::default();
    let header = &mut message.header;
    header.address_family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let full = if to.is_ipv4() { 32 } else { 128 };
    header.destination_prefix_length = full;
    header.flags |= RouteFlags::FibMatch;
    if to.is_ipv4() {
        // Else the answer is always "main"; IPv6 tells the table anyway, and refuses the flag.
        header.flags |= RouteFlags::LookupTable;
    }
    message.attributes.push(RouteAttribute::Destination((*to).into()));
    if let Some(from) = from {
        message.header.source_prefix_length = full;
        message.attributes.push(RouteAttribute::Source((*from).into()));
    }
    if let Some(iif) = iif {
        let link = links.get(iif).ok_or(libc::ENODEV)?;
        message.attributes.push(RouteAttribute::Iif(link.index));
    }
    let found = netlink.handle().route().get(message).execute().try_next().await;
    let errno = |error: rtnetlink::Error| Error::netlink("ip route get", error).errno().unwrap_or(libc::EIO);
    let found = found.map_err(errno)?.ok_or(libc::ESRCH)?;
    let refused = match found.header.kind {
        RouteType::Unreachable => Some(libc::EHOSTUNREACH),
        RouteType::BlackHole => Some(libc::EINVAL),
        RouteType::Prohibit => Some(libc::EACCES),
        _ => None,
    };
    if let Some(errno) = refused {
        return Err(errno);
    }
    let family = if to.is_ipv4() { Family::V4 } else { Family::V6 };
    let mut way = Way {
        device: None,
        gateway: None,
        destination: net(&found, family).unwrap_or(family.everything()),
        table: table(&found),
        attached: found.header.protocol == RouteProtocol::Kernel,
    };
    for attribute in &found.attributes {
        match attribute {
            RouteAttribute::Oif(index) => way.device = links.name(*index).cloned(),
            RouteAttribute::Gateway(addr) => way.gateway = netlink::ip(addr),
            RouteAttribute::MultiPath(hops) => {
                way.device = hops.first().and_then(|hop| links.name(hop.interface_index)).cloned();
            }
            _ => {}
        }
    }
    Ok(way)
}

/// A rule that leads into a table, in the words of ip(8). Those with something that has no words here are left out: to
/// delete a rule by less than all of it could hit another.
fn rule(message: &RuleMessage) -> Option<RuleSeen> {
    let family = match message.header.family {
        AddressFamily::Inet => Family::V4,
        AddressFamily::Inet6 => Family::V6,
        _ => return None,
    };
    if message.header.action != RuleAction::ToTable {
        return None;
    }
    let mut seen =
        RuleSeen { priority: 0, family, iif: None, table: message.header.table.into(), words: String::new() };
    let (mut from, mut to, mut iif, mut rest) = ("all".to_owned(), String::new(), String::new(), String::new());
    let mut mark = None;
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Priority(number) => seen.priority = *number,
            RuleAttribute::Table(number) => seen.table = *number,
            RuleAttribute::Source(addr) => from = format!("{addr}/{}", message.header.src_len),
            RuleAttribute::Destination(addr) => to = format!(" to {addr}/{}", message.header.dst_len),
            RuleAttribute::Iifname(name) => {
                iif = format!(" iif {name}");
                seen.iif = Some(name.clone());
            }
            RuleAttribute::Oifname(name) => _ = write!(rest, " oif {name}"),
            RuleAttribute::FwMark(number) => mark = Some((*number, u32::MAX)),
            RuleAttribute::FwMask(bits) => mark = mark.map(|(number, _)| (number, *bits)),
            RuleAttribute::SuppressPrefixLen(length) if *length != u32::MAX => {
                let _ = write!(rest, " suppress_prefixlength {length}");
            }
            _ => {}
        }
    }
    let not = if message.header.flags.contains(RuleFlags::Invert) { "not " } else { "" };
    let mark = mark.map(|(number, mask)| format!(" fwmark {number:#x}/{mask:#x}")).unwrap_or_default();
    let (priority, table) = (seen.priority, seen.table);
    let lookup = if table == TABLE_MAIN { "main".to_owned() } else { table.to_string() };
    seen.words = format!("pref {priority} {not}from {from}{to}{iif}{mark}{rest} lookup {lookup}");
    Some(seen)
}

/// All that filters packets: nft's tables, and those of iptables as its own tools tell them.
async fn ruleset() -> Result<Ruleset, String> {
    let (json, text) =
        tokio::join!(run("nft", &["-j", "-t", "list", "ruleset"]), run("nft", &["-a", "-t", "list", "ruleset"]));
    let json = serde_json::from_str(&json?).map_err(|error| format!("nft: {error}"))?;
    let mut ruleset = nft::parse(&json, &text.unwrap_or_default());
    // What nft cannot say of a rule of iptables (`xt`), iptables can. Without nf_tables it has none.
    let compat = json.to_string().contains("\"xt\"");
    for (family, program, legacy) in
        [("ip", "iptables-nft-save", "iptables-legacy-save"), ("ip6", "ip6tables-nft-save", "ip6tables-legacy-save")]
    {
        let tables = ["filter", "raw", "mangle", "nat", "security"];
        let managed = ruleset.chains.iter().any(|chain| {
            chain.family == family
                && tables.contains(&chain.table.as_str())
                && chain.name.chars().all(|c| !c.is_lowercase())
        });
        if (compat || managed)
            && let Ok(text) = run(program, &[]).await
        {
            let own = iptables::parse(&text, family, Tool::Iptables);
            let known: BTreeSet<String> = own.chains.iter().map(|chain| chain.table.clone()).collect();
            ruleset.chains.retain(|chain| chain.family != family || !known.contains(&chain.table));
            ruleset.chains.extend(own.chains);
        }
        // Its tables are there only when somebody used it; to ask would load the module otherwise.
        let file = if family == "ip" { "ip_tables_names" } else { "ip6_tables_names" };
        let used = std::fs::read_to_string(format!("/proc/net/{file}")).is_ok_and(|names| !names.trim().is_empty());
        if used && let Ok(text) = run(legacy, &[]).await {
            ruleset.chains.extend(iptables::parse(&text, family, Tool::IptablesLegacy).chains);
        }
    }
    Ok(ruleset)
}

async fn run(program: &str, arguments: &[&str]) -> Result<String, String> {
    let mut command = Command::new(program);
    command.args(arguments).env("LC_ALL", "C").stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(PATIENCE, command.output()).await;
    let output = output.map_err(|_| format!("{program}: no end after {PATIENCE:?}"))?;
    let output = output.map_err(|error| format!("{program}: cannot be run: {error}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(format!("{program}: {}", String::from_utf8_lossy(&output.stderr).trim()))
}
