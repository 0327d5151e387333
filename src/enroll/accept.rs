//! What a joiner makes of a token and of an offer: what speaks against them, and what its files say then. Pure.
//!
//! The inviter decides the joiner's name, addresses and subnets; the joiner decides which of its bridges take part, and
//! nothing that it has written itself is changed but name and addresses, while it has no peers yet. What single values an
//! offer may have is checked here; how they fit together, and with what the joiner has, [`crate::config::parse`] says.

use std::fmt;

use ipnet::IpNet;
use toml_edit::TomlError;

use super::exchange::{Offer, within};
use super::token::Token;
use crate::config::{
    Bridge, Config, DEFAULT_DOMAIN, DEFAULT_MTU, Endpoint, Peer, Place, edit, list_of_names, quote, value,
};
use crate::key::{KeyError, PresharedKey, PublicKey};
use crate::mesh::Member;

/// The inviter is not told where this host is reached, so this host keeps the way open.
const KEEPALIVE: u16 = 25;

/// Why a token or an offer is not for this host, and what can be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unfit {
    /// In one line.
    pub why: String,
    /// Where there is one.
    pub remedy: Option<String>,
}

/// A bridge interface of this host and its networks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The interface.
    pub name: String,
    /// Without host bits.
    pub subnets: Vec<IpNet>,
}

/// What an offer makes of the files, besides `meshd.toml`.
#[derive(Debug)]
pub struct Accepted {
    /// The inviter.
    pub inviter: Peer,
    /// Whom it introduces.
    pub members: Vec<Peer>,
    /// What was left out, and why.
    pub notes: Vec<String>,
}

/// A text of `meshd.toml` and what the operator should know about it.
#[derive(Debug, PartialEq, Eq)]
pub struct Text {
    /// The file.
    pub text: String,
    /// One line each.
    pub notes: Vec<String>,
}

/// Whether the token is for a host with this key, these files and this clock (Unix seconds).
pub fn check(token: &Token, own: Option<&PublicKey>, config: Option<&Config>, now: u64) -> Result<(), Unfit> {
    if own == Some(&token.inviter) {
        return Err(Unfit::new("the token is this host's own invitation").or("meshd join on the other host"));
    }
    if now >= token.expires {
        let (then, now) = (Utc(token.expires), Utc(now));
        let why = format!("the token has expired: it was valid until {then}, and this host's clock says {now}");
        return Err(Unfit::new(why).or("another token from the inviter, or set the clock that is wrong"));
    }
    let Some(host) = config.filter(|config| !config.peers.is_empty()).map(|config| &config.host) else { return Ok(()) };
    if !host.addresses.iter().any(|own| within(&token.networks, own.addr())) {
        let (ours, theirs) = (list_of_names(host.addresses.iter().map(IpNet::trunc)), list_of_names(&token.networks));
        let why = format!("the token is for another mesh: its network is {theirs}, this host's is {ours}");
        return Err(Unfit::new(why).or("another --dir, --run-dir and --state-dir for a second mesh on this host"));
    }
    Ok(())
}

/// The peers that an offer brings. `endpoint` is where the inviter answered; `known` is the inviter as this host knows it
/// already.
pub fn peers(token: &Token, offer: &Offer, endpoint: &Endpoint, known: Option<&Peer>) -> Result<Accepted, Unfit> {
    single_values(token, offer).map_err(|why| Unfit::new(format!("the offer: {why}")))?;
    let inviter = inviter(token, offer, endpoint, known).map_err(|why| Unfit::new(format!("the offer: {why}")))?;
    let (mut members, mut notes) = (Vec::new(), Vec::new());
    for member in &offer.members {
        match introduced(member, &inviter.name, offer) {
            Ok(peer) => members.push(peer),
            Err(why) => notes.push(format!("left out {}: {why}", quote(&member.name))),
        }
    }
    Ok(Accepted { inviter, members, notes })
}

fn single_values(token: &Token, offer: &Offer) -> Result<(), String> {
    value::name(&offer.name).map_err(|why| format!("name {}: {why}", quote(&offer.name)))?;
    if offer.addresses.is_empty() {
        return Err("it has no address for this host".into());
    }
    for net in &offer.addresses {
        value::host_address(&net.to_string()).map_err(|why| format!("address {net}: {why}"))?;
        if !within(&token.networks, net.addr()) {
            return Err(format!("address {net} is outside the token's {}", list_of_names(&token.networks)));
        }
    }
    for net in &offer.subnets {
        value::peer_subnet(&net.to_string()).map_err(|why| format!("subnet {net}: {why}"))?;
    }
    value::domain(&offer.domain).map_err(|why| format!("domain {}: {why}", quote(&offer.domain)))?;
    Ok(())
}

fn inviter(token: &Token, offer: &Offer, endpoint: &Endpoint, known: Option<&Peer>) -> Result<Peer, String> {
    let member = &offer.inviter;
    if member.public_key != token.inviter {
        return Err("it is of another host than the token".into());
    }
    if member.client || member.addresses.is_empty() {
        return Err("its inviter is no host of a mesh".into());
    }
    let peer = member.peer()?;
    let key = offer.preshared_key.parse::<PresharedKey>().map_err(|error| format!("preshared key: {error}"))?;
    let signs = offer.inviter_key.parse().map_err(|error: KeyError| format!("key of its news: {error}"))?;
    Ok(Peer {
        preshared_key: Some(key),
        endpoint: Some(endpoint.clone()),
        persistent_keepalive: known.and_then(|known| known.persistent_keepalive).or(Some(KEEPALIVE)),
        // What this host lets it do is this host's to say.
        allow: known.and_then(|known| known.allow.clone()),
        express: known.is_none_or(|known| known.express),
        inviter_key: Some(signs),
        ..peer
    })
}

/// A host or a client behind the inviter.
fn introduced(member: &Member, inviter: &str, offer: &Offer) -> Result<Peer, String> {
    if member.name == offer.name || member.name == inviter {
        return Err("its name is taken".into());
    }
    let mut peer = member.peer()?;
    // The services of this host itself are not an inviter's to give.
    if let Some(allow) = &mut peer.allow {
        allow.retain(|item| item.to != Place::Host);
    }
    let signs = member.inviter_key.as_deref().map(str::parse).transpose();
    let inviter_key = signs.map_err(|error: KeyError| format!("key of its news: {error}"))?;
    Ok(Peer { via: Some(inviter.into()), introduced_by: Some(inviter.into()), inviter_key, ..peer })
}

/// `meshd.toml` with name and addresses as offered. A host with peers has them already, or cannot join.
pub fn identity(text: &str, config: &Config, offer: &Offer) -> Result<Text, Unfit> {
    let (host, fresh, mut notes) = (&config.host, config.peers.is_empty(), Vec::new());
    let mut text = text.to_owned();
    if fresh {
        text = edit::set(&text, "name", offer.name.as_str()).map_err(broken)?;
        text = edit::set_addresses(&text, &offer.addresses).map_err(broken)?;
    } else {
        same_addresses(config, offer)?;
        if host.name != offer.name {
            notes.push(format!(
                "{} calls this host {}; it keeps its name {}",
                offer.inviter.name, offer.name, host.name
            ));
        }
    }
    // What `init` writes is no choice of the operator's, and what stands there beside peers is.
    let free = |key, default: bool| !edit::is_written(&text, key) || (fresh && default);
    let (mtu, domain) = (free("mtu", host.mtu == DEFAULT_MTU), free("domain", host.domain == DEFAULT_DOMAIN));
    if mtu && host.mtu != offer.mtu {
        text = edit::set(&text, "mtu", i64::from(offer.mtu)).map_err(broken)?;
    } else if host.mtu != offer.mtu {
        notes.push(format!("mtu stays {}; that of {} is {}", host.mtu, offer.inviter.name, offer.mtu));
    }
    if domain && host.domain != offer.domain {
        text = edit::set(&text, "domain", offer.domain.as_str()).map_err(broken)?;
    } else if host.domain != offer.domain {
        notes.push(format!("domain stays {}; that of {} is {}", host.domain, offer.inviter.name, offer.domain));
    }
    Ok(Text { text, notes })
}

fn same_addresses(config: &Config, offer: &Offer) -> Result<(), Unfit> {
    let sorted = |nets: &[IpNet]| {
        let mut addrs: Vec<_> = nets.iter().map(IpNet::addr).collect();
        addrs.sort();
        addrs
    };
    let (ours, offered) = (sorted(&config.host.addresses), sorted(&offer.addresses));
    if ours == offered {
        return Ok(());
    }
    let why = format!(
        "this host is {} to the peers that it has, and the token makes it {}",
        list_of_names(&ours),
        list_of_names(&offered)
    );
    Err(Unfit::new(why).or(again(offer, "--address", &ours)))
}

/// `meshd.toml` with the bridges and the egress that the offer has and it has not. `text` is that of `config`; `found`
/// are the bridge interfaces of this host.
pub fn networks(text: &str, config: &Config, offer: &Offer, found: &[Found]) -> Result<Text, Unfit> {
    let host = &config.host;
    nothing_more(config, offer)?;
    let (mut text, mut notes) = (text.to_owned(), Vec::new());
    let own = |net: &IpNet| {
        let bridges = host.bridges.iter().flat_map(|bridge| &bridge.subnets);
        bridges.chain(host.lans.iter().map(|lan| &lan.subnet)).any(|own| net.contains(own))
    };
    let (lans, missing): (Vec<IpNet>, Vec<IpNet>) =
        offer.subnets.iter().filter(|net| !own(net)).partition(|net| offer.lans.contains(net));
    if !lans.is_empty() {
        // Who may reach this host's own network is not the inviter's to say.
        notes.push(format!("to share {} write a [[lan]] into meshd.toml", list_of_names(&lans)));
    }
    match &host.bridges[..] {
        _ if missing.is_empty() => {}
        [] => {
            let bridge = new_bridge(&missing, found, &mut notes);
            let comment = format!("As {} offered it to this host.", offer.inviter.name);
            text = edit::add_bridge(&text, &bridge, &missing, &comment).map_err(broken)?;
        }
        [Bridge { name, .. }] => text = edit::widen_bridge(&text, name, &missing).map_err(broken)?,
        _ => notes.push(format!("{} is offered and on no [[bridge]] of meshd.toml yet", list_of_names(&missing))),
    }
    if offer.egress {
        text = edit::default_egress(&text, &offer.inviter.name).map_err(broken)?;
    }
    Ok(Text { text, notes })
}

/// Bridges that leave otherwise than by the inviter though it offers to carry them, with all files as they will be.
pub fn other_egress(config: &Config, offer: &Offer) -> Vec<String> {
    let name = &offer.inviter.name;
    let others = config.host.bridges.iter().filter(|bridge| offer.egress && !bridge.egress.exits().contains(name));
    others
        .map(|bridge| {
            format!("bridge {}: its egress stays {}, though {name} would carry it", bridge.name, bridge.egress)
        })
        .collect()
}

/// Nothing here may claim what was not offered: others would not send it here, and drop what comes from there.
fn nothing_more(config: &Config, offer: &Offer) -> Result<(), Unfit> {
    let host = &config.host;
    let bridges = host
        .bridges
        .iter()
        .flat_map(|bridge| bridge.subnets.iter().map(move |net| (format!("bridge {}", bridge.name), net)));
    let lans = host.lans.iter().map(|lan| ("a [[lan]]".to_owned(), &lan.subnet));
    let all: Vec<(String, &IpNet)> = bridges.chain(lans).collect();
    let Some((whose, net)) = all.iter().find(|(_, net)| !offer.subnets.iter().any(|offered| offered.contains(*net)))
    else {
        return Ok(());
    };
    let offered = if offer.subnets.is_empty() { "none".into() } else { list_of_names(&offer.subnets) };
    let why = format!("{whose} has {net}, which the token does not offer: its subnets are {offered}");
    let nets: Vec<&IpNet> = all.iter().map(|(_, net)| *net).collect();
    Err(Unfit::new(why).or(again(offer, "--subnet", &nets)))
}

/// The bridge that is to have these subnets: one that has exactly them now, else br0.
fn new_bridge(subnets: &[IpNet], found: &[Found], notes: &mut Vec<String>) -> String {
    const USUAL: &str = "br0";
    let sorted = |nets: &[IpNet]| {
        let mut nets = nets.to_vec();
        nets.sort();
        nets
    };
    let same: Vec<&Found> = found.iter().filter(|found| sorted(&found.subnets) == sorted(subnets)).collect();
    if let Some(found) = same.iter().find(|found| found.name == USUAL).or(same.first().filter(|_| same.len() == 1)) {
        return found.name.clone();
    }
    match found.iter().find(|found| found.name == USUAL) {
        Some(found) => {
            notes.push(format!("{USUAL} has {} now; see that its containers fit", list_of_names(&found.subnets)));
        }
        None => notes.push(format!("there is no {USUAL} yet; make it, or write another name into [[bridge]]")),
    }
    USUAL.into()
}

/// The command that gives a token that fits, for the inviter's operator: with this flag for each value.
fn again<T: fmt::Display>(offer: &Offer, flag: &str, values: &[T]) -> String {
    let egress = if offer.egress { " --egress" } else { "" };
    let (inviter, name) = (&offer.inviter.name, &offer.name);
    let flags: Vec<String> = values.iter().map(|value| format!("{flag} {value}")).collect();
    let flags = flags.join(" ");
    format!("on {inviter}: meshd peer remove {name}; meshd peer add {name} {flags}{egress}; and join with its token")
}

#[allow(clippy::needless_pass_by_value, reason = "`map_err` takes it as it is")]
fn broken(error: TomlError) -> Unfit {
    Unfit::new(edit::broken("meshd.toml", &error))
}

impl Unfit {
    fn new(why: impl Into<String>) -> Self {
        Self { why: why.into(), remedy: None }
    }

    fn or(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }
}

/// A time as `2026-01-31 23:59:59 UTC`, from Unix seconds.
struct Utc(u64);

impl fmt::Display for Utc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // No year beyond 9999, as a token may have any number here.
        let seconds = self.0.min(253_402_300_799);
        let (mut days, second) = (seconds / 86_400, seconds % 86_400);
        let leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
        let mut year = 1970;
        while days >= 365 + u64::from(leap(year)) {
            days -= 365 + u64::from(leap(year));
            year += 1;
        }
        let lengths = [31, 28 + u64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
        let mut month = 0;
        while days >= lengths[month] {
            days -= lengths[month];
            month += 1;
        }
        let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
        write!(f, "{year:04}-{:02}-{:02} {hour:02}:{minute:02}:{second:02} UTC", month + 1, days + 1)
    }
}

#[cfg(test)]
mod tests;
