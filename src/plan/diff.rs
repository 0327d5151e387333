//! The changes that lead from one state to another, in a safe order.
//!
//! All that is added comes before all that is removed, so that no packet falls between the two. On the way up the guard is
//! first and the rules come after the tables that they lead into, `unreachable` default first of all; forwarding is switched
//! on last, behind the filter. On the way down the order is the reverse, and the guard is last.

use std::collections::BTreeSet;
use std::fmt;

use ipnet::IpNet;

use super::firewalls::{self, Exception, Position};
use super::{
    ActualState, DesiredState, Family, LinkSetting, NextHop, NftActual, NftTable, Route, Rule, Sysctl, SysctlKey,
    TABLE_MAIN,
};

/// One change of the kernel's state.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Change {
    /// Puts the table there in one transaction, in the place of one of the same name.
    ArmGuard(NftTable),
    DisarmGuard {
        name: String,
    },
    /// As `ArmGuard`.
    AddNft(NftTable),
    RemoveNft {
        family: &'static str,
        name: String,
    },
    SetLink {
        interface: String,
        setting: LinkSetting,
    },
    AddAddress {
        interface: String,
        address: IpNet,
    },
    RemoveAddress {
        interface: String,
        address: IpNet,
    },
    AddRoute(Route),
    /// Takes the place of another with the same key at once.
    ReplaceRoute(Route),
    RemoveRoute(Route),
    AddRule(Rule),
    RemoveRule(Rule),
    /// Into a chain of another firewall.
    AddException {
        exception: Exception,
        position: Position,
    },
    RemoveException(Exception),
    /// Into firewalld's zone [`firewalls::ZONE`]. Recorded in the journal first.
    PlaceInZone {
        interface: String,
    },
    TakeFromZone {
        interface: String,
    },
    /// Recorded in the journal first.
    SetSysctl {
        key: SysctlKey,
        value: String,
    },
    /// Back to what it was before us.
    RestoreSysctl {
        key: SysctlKey,
        value: String,
    },
}

/// What leads from `actual` to `desired`; empty when nothing does.
pub fn diff(desired: &DesiredState, actual: &ActualState) -> Vec<Change> {
    let interface = &desired.interface;
    let mut changes = Vec::new();

    changes.extend(missing(desired.guard.as_ref(), &actual.nft.guard).map(Change::ArmGuard));
    changes.extend(missing(desired.filter.as_ref(), &actual.nft.filter).map(Change::AddNft));
    changes.extend(missing(desired.ports.as_ref(), &actual.nft.ports).map(Change::AddNft));
    let settings = desired.link.difference(&actual.link);
    changes.extend(settings.map(|&setting| Change::SetLink { interface: interface.clone(), setting }));
    let addresses = desired.addresses.difference(&actual.addresses);
    changes.extend(addresses.map(|&address| Change::AddAddress { interface: interface.clone(), address }));
    changes.extend(added_routes(desired, actual));
    changes.extend(desired.rules.difference(&actual.rules).cloned().map(Change::AddRule));
    changes.extend(opened_firewalls(desired, actual));
    changes.extend(set_sysctls(desired, actual));

    changes.extend(restored_sysctls(desired, actual));
    changes.extend(closed_firewalls(desired, actual));
    changes.extend(actual.rules.difference(&desired.rules).cloned().map(Change::RemoveRule));
    changes.extend(removed_routes(desired, actual));
    let addresses = actual.addresses.difference(&desired.addresses);
    changes.extend(addresses.map(|&address| Change::RemoveAddress { interface: interface.clone(), address }));
    if desired.ports.is_none() && actual.nft.ports != NftActual::Absent {
        changes.push(Change::RemoveNft { family: "bridge", name: super::nft::ports_name(interface) });
    }
    if desired.filter.is_none() && actual.nft.filter != NftActual::Absent {
        changes.push(Change::RemoveNft { family: "inet", name: super::nft::filter_name(interface) });
    }
    if desired.guard.is_none() && actual.nft.guard != NftActual::Absent {
        changes.push(Change::DisarmGuard { name: super::nft::guard_name(interface) });
    }
    changes
}

fn missing(desired: Option<&NftTable>, actual: &NftActual) -> Option<NftTable> {
    desired.filter(|table| *actual != NftActual::Intact(table.fingerprint())).cloned()
}

/// `unreachable` before what could be used without it. Main takes no replacement: what has the key there is not ours.
fn added_routes(desired: &DesiredState, actual: &ActualState) -> Vec<Change> {
    let taken: BTreeSet<_> = actual.routes.iter().map(Route::key).collect();
    let mut routes: Vec<&Route> = desired.routes.difference(&actual.routes).collect();
    routes.sort_by_key(|route| !matches!(route.next_hop, NextHop::Unreachable | NextHop::Blackhole));
    let change = |route: &Route| {
        let replaces = route.table != TABLE_MAIN && taken.contains(&route.key());
        if replaces { Change::ReplaceRoute(route.clone()) } else { Change::AddRoute(route.clone()) }
    };
    routes.into_iter().map(change).collect()
}

/// A route whose key is about to be replaced needs no removal; a second one of a key that is there already does.
fn removed_routes(desired: &DesiredState, actual: &ActualState) -> Vec<Change> {
    let replaced = desired.routes.difference(&actual.routes).map(Route::key);
    let replaced: BTreeSet<_> = replaced.filter(|(table, ..)| *table != TABLE_MAIN).collect();
    let gone = actual.routes.difference(&desired.routes).filter(|route| !replaced.contains(&route.key()));
    gone.cloned().map(Change::RemoveRoute).collect()
}

/// `accept_ra` first: `forwarding` makes the kernel forget the routers of an interface that has 1 there
/// (`addrconf_fixup_forwarding` in net/ipv6/addrconf.c).
fn set_sysctls(desired: &DesiredState, actual: &ActualState) -> Vec<Change> {
    let differs = |key: &SysctlKey, value: &String| actual.sysctls.get(key).is_none_or(|now| now.value != *value);
    let mut wanted: Vec<_> = desired.sysctls.iter().filter(|(key, value)| differs(key, value)).collect();
    wanted.sort_by_key(|(key, _)| key.name != "accept_ra");
    wanted.into_iter().map(|(key, value)| Change::SetSysctl { key: key.clone(), value: value.clone() }).collect()
}

/// `all` first, because writing it overwrites the others; `accept_ra` last.
fn restored_sysctls(desired: &DesiredState, actual: &ActualState) -> Vec<Change> {
    let ours = |(key, now): (&SysctlKey, &Sysctl)| Some((key.clone(), now.original.clone()?));
    let mut gone: Vec<_> =
        actual.sysctls.iter().filter(|(key, _)| !desired.sysctls.contains_key(key)).filter_map(ours).collect();
    gone.sort_by_key(|(key, _)| (key.name == "accept_ra", key.link != "all"));
    gone.into_iter().map(|(key, value)| Change::RestoreSysctl { key, value }).collect()
}

fn opened_firewalls(desired: &DesiredState, actual: &ActualState) -> Vec<Change> {
    let absent = desired.exceptions.iter().filter(|(exception, _)| actual.exceptions.get(exception) != Some(&true));
    let exceptions =
        absent.map(|(exception, &position)| Change::AddException { exception: exception.clone(), position });
    let zones = desired.zones.difference(&actual.zones).cloned();
    exceptions.chain(zones.map(|interface| Change::PlaceInZone { interface })).collect()
}

fn closed_firewalls(desired: &DesiredState, actual: &ActualState) -> Vec<Change> {
    let gone = actual.exceptions.keys().filter(|exception| !desired.exceptions.contains_key(exception));
    let zones = actual.zones.difference(&desired.zones).cloned();
    let gone = gone.cloned().map(Change::RemoveException);
    gone.chain(zones.map(|interface| Change::TakeFromZone { interface })).collect()
}

impl Change {
    /// `add` or `remove`.
    pub fn action(&self) -> &'static str {
        match self {
            Self::ArmGuard(_)
            | Self::AddNft(_)
            | Self::SetLink { .. }
            | Self::AddAddress { .. }
            | Self::AddRoute(_)
            | Self::ReplaceRoute(_)
            | Self::AddRule(_)
            | Self::AddException { .. }
            | Self::PlaceInZone { .. }
            | Self::SetSysctl { .. } => "add",
            Self::DisarmGuard { .. }
            | Self::RemoveNft { .. }
            | Self::RemoveAddress { .. }
            | Self::RemoveRoute(_)
            | Self::RemoveRule(_)
            | Self::RemoveException(_)
            | Self::TakeFromZone { .. }
            | Self::RestoreSysctl { .. } => "remove",
        }
    }

    /// `guard`, `link`, `address`, `route`, `rule`, `nft`, `firewall` or `sysctl`.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::ArmGuard(_) | Self::DisarmGuard { .. } => "guard",
            Self::AddNft(_) | Self::RemoveNft { .. } => "nft",
            Self::SetLink { .. } => "link",
            Self::AddAddress { .. } | Self::RemoveAddress { .. } => "address",
            Self::AddRoute(_) | Self::ReplaceRoute(_) | Self::RemoveRoute(_) => "route",
            Self::AddRule(_) | Self::RemoveRule(_) => "rule",
            Self::AddException { .. }
            | Self::RemoveException(_)
            | Self::PlaceInZone { .. }
            | Self::TakeFromZone { .. } => "firewall",
            Self::SetSysctl { .. } | Self::RestoreSysctl { .. } => "sysctl",
        }
    }
}

impl Change {
    /// One line, for logs.
    pub fn summary(&self) -> String {
        match self {
            Self::ArmGuard(table) | Self::AddNft(table) => format!("nft table inet {}", table.name),
            other => other.to_string(),
        }
    }
}

impl fmt::Display for Change {
    /// As a person would type it. A new nft table takes several lines.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let address = |verb: &str, interface: &str, net: &IpNet| {
            let flag = if Family::of(net) == Family::V6 { " -6" } else { "" };
            format!("ip{flag} address {verb} {net} dev {interface}")
        };
        let zone = |verb: &str, interface: &str| {
            format!("firewall-cmd {}", firewalls::zone_arguments(verb, interface).join(" "))
        };
        let text = match self {
            Self::ArmGuard(table) | Self::AddNft(table) => format!("nft -f - <<'EOF'\n{}EOF", table.text),
            Self::DisarmGuard { name } => format!("nft delete table inet {name}"),
            Self::RemoveNft { family, name } => format!("nft delete table {family} {name}"),
            Self::SetLink { interface, setting } => format!("ip link set {interface} {setting}"),
            Self::AddAddress { interface, address: net } => address("add", interface, net),
            Self::RemoveAddress { interface, address: net } => address("del", interface, net),
            Self::AddRoute(route) => route.command("add"),
            Self::ReplaceRoute(route) => route.command("replace"),
            Self::RemoveRoute(route) => route.command("del"),
            Self::AddRule(rule) => rule.command("add"),
            Self::RemoveRule(rule) => rule.command("del"),
            Self::AddException { exception, position } => {
                format!("{} {}", exception.program(), exception.added_at(*position).join(" "))
            }
            Self::RemoveException(exception) => format!("{} {}", exception.program(), exception.removed().join(" ")),
            Self::PlaceInZone { interface } => zone("add", interface),
            Self::TakeFromZone { interface } => zone("remove", interface),
            Self::SetSysctl { key, value } | Self::RestoreSysctl { key, value } => format!("sysctl -w {key}={value}"),
        };
        f.write_str(&text)
    }
}
