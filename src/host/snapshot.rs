//! One reading of links, addresses, rules and the main table, from which both the facts and the actual state come.

use std::collections::BTreeSet;

use super::Error;
use super::journal::{Journal, Original};
use super::netlink::{self, Address, Links, Netlink, OtherRoute};
use super::sysctl;
use crate::plan::{
    ActualState, DesiredState, Family, HostFacts, Link, NftTables, PRIORITY_FROM, Route, Rule, Selector, Sysctl,
    SysctlKey, TABLE_MAIN, marks, tables,
};
use rtnetlink::packet_route::route::RouteMessage;

/// Priorities that rules of ours may have; 0 is that of `local`.
const OURS: std::ops::RangeInclusive<u32> = 1..=PRIORITY_FROM;

/// The reading.
pub struct Snapshot {
    pub links: Links,
    addresses: Vec<Address>,
    /// Those that have our form.
    rules: Vec<Rule>,
    rule_before: Option<u32>,
    without_main: Vec<Family>,
    main: Vec<RouteMessage>,
    families: Vec<Family>,
}

impl Snapshot {
    pub async fn read(netlink: &Netlink) -> Result<Self, Error> {
        let families = if sysctl::has_ipv6() { vec![Family::V4, Family::V6] } else { vec![Family::V4] };
        let (links, addresses) = (netlink.links().await?, netlink.addresses().await?);
        let (rules, main, without_main) = Default::default();
        let mut snapshot = Self { links, addresses, rules, rule_before: None, without_main, main, families };
        for &family in &snapshot.families {
            let rules = netlink.rules(family).await?;
            snapshot.rules.extend(rules.iter().filter_map(netlink::parse_rule));
            // Those by mark lead to main too, and are an agent's.
            let by_mark =
                |rule: &&_| matches!(netlink::parse_rule(rule), Some(Rule { selector: Selector::Mark(_), .. }));
            let outlines = || rules.iter().filter(|rule| !by_mark(rule)).map(netlink::rule_outline);
            let others = outlines().filter(|(_, table)| !table.is_some_and(tables::is_an_agents));
            let before = others.map(|(priority, _)| priority).filter(|priority| OURS.contains(priority)).min();
            snapshot.rule_before = [snapshot.rule_before, before].into_iter().flatten().min();
            if !outlines().any(|(_, table)| table == Some(TABLE_MAIN)) {
                snapshot.without_main.push(family);
            }
            snapshot.main.extend(netlink.table(TABLE_MAIN, family).await?);
        }
        Ok(snapshot)
    }

    /// The number of an interface; 0 for `all` and `default`.
    pub fn index(&self, name: &str) -> u32 {
        self.links.get(name).map_or(0, |link| link.index)
    }

    /// What the plan needs.
    pub fn facts(&self) -> HostFacts {
        let others: Vec<OtherRoute> =
            self.main.iter().filter_map(|route| netlink::other_route(route, &self.links)).collect();
        let link = |(name, state): (&String, &netlink::LinkState)| {
            let by_ra = others.iter().any(|other| other.from_ra && other.route.device.as_ref() == Some(name));
            let leased = |address: &Address| address.index == state.index && !address.permanent;
            let global = |address: &Address| matches!(address.net, ipnet::IpNet::V6(net) if !is_link_local(net.addr()));
            let autoconfigured = by_ra || self.addresses.iter().any(|address| leased(address) && global(address));
            // Nothing is routed by way of a bridge's port, of which there may be hundreds.
            let read = |key: &str| {
                let key = (!state.enslaved).then(|| SysctlKey::new(Family::V6, name, key))?;
                sysctl::read(&key).ok().flatten()
            };
            let ipv6 = read("disable_ipv6").is_some_and(|value| value == "0");
            let accept_ra = read("accept_ra").and_then(|value| value.parse().ok());
            (name.clone(), Link { index: state.index, up: state.up, ipv6, accept_ra, autoconfigured })
        };
        let links = self.links.iter().map(link).collect();
        let forced = SysctlKey::new(Family::V6, "default", "force_forwarding");
        HostFacts {
            links,
            main: others.into_iter().map(|other| other.route).collect(),
            rule_before: self.rule_before,
            without_main: self.without_main.clone(),
            ipv6: self.families.contains(&Family::V6),
            force_forwarding: sysctl::read(&forced).ok().flatten().is_some(),
            claimed: self.rules.iter().filter_map(claim).collect(),
            ..HostFacts::default()
        }
    }

    /// What is ours.
    pub async fn actual(
        &self,
        netlink: &Netlink,
        interface: &str,
        desired: &DesiredState,
        journal: &Journal,
        nft: NftTables,
    ) -> Result<ActualState, Error> {
        let tables = self.own_tables(interface, desired, journal);
        let ours = |rule: &&Rule| match rule.selector {
            Selector::Mark(mark) => {
                let led = rule.table == TABLE_MAIN || tables.contains(&rule.table);
                OURS.contains(&rule.priority) && own_marks(interface).contains(&mark) && led
            }
            _ => OURS.contains(&rule.priority) && tables.contains(&rule.table),
        };
        let rules = self.rules.iter().filter(ours).cloned().collect();

        let own_main = |message| netlink::own_main_route(message, &self.links, interface);
        let mut routes: BTreeSet<Route> = self.main.iter().filter_map(own_main).collect();
        for &family in &self.families {
            for &table in &tables {
                let messages = netlink.table(table, family).await?;
                routes.extend(messages.iter().filter_map(|message| netlink::own_route(message, &self.links)));
            }
        }
        let link = self.links.get(interface);
        let on_tunnel = |address: &&Address| link.is_some_and(|link| address.index == link.index);
        let kept = |net: &ipnet::IpNet| match net {
            // The kernel makes the link-local one itself.
            ipnet::IpNet::V6(v6) => !is_link_local(v6.addr()) || desired.addresses.contains(net),
            ipnet::IpNet::V4(_) => true,
        };
        let addresses = self.addresses.iter().filter(on_tunnel).map(|address| address.net).filter(kept).collect();
        Ok(ActualState {
            link: link.map(|link| link.settings.clone()).unwrap_or_default(),
            addresses,
            routes,
            rules,
            nft,
            sysctls: self.sysctls(desired, journal)?,
            ..ActualState::default()
        })
    }

    /// Those of the configuration, those in the journal, and, should the journal be lost, those that a rule leads into
    /// under the number that this interface and that bridge, or this interface alone, have.
    fn own_tables(&self, interface: &str, desired: &DesiredState, journal: &Journal) -> BTreeSet<u32> {
        let by_rule = self.rules.iter().filter_map(|rule| match &rule.selector {
            Selector::Iif(bridge) if tables::number(interface, bridge) == rule.table => Some(rule.table),
            Selector::Mark(_) | Selector::From(_) if tables::number(interface, interface) == rule.table => {
                Some(rule.table)
            }
            _ => None,
        });
        desired.tables.keys().copied().chain(journal.tables.iter().copied()).chain(by_rule).collect()
    }

    fn sysctls(
        &self,
        desired: &DesiredState,
        journal: &Journal,
    ) -> Result<std::collections::BTreeMap<SysctlKey, Sysctl>, Error> {
        let written = journal.sysctls.iter().filter(|(_, original)| original.with.is_none());
        let keys = written.filter_map(|(path, _)| SysctlKey::from_path(path)).chain(desired.sysctls.keys().cloned());
        let mut sysctls = std::collections::BTreeMap::new();
        for key in keys {
            let Some(value) = sysctl::read(&key)? else { continue };
            let original = journal.sysctls.get(&key.path());
            // An interface that went and came back starts anew; what the journal says is about its former life.
            let original = original.filter(|original| original.index == self.index(&key.link));
            let original = original.filter(|original| original.with.is_none());
            let original = original.map(|original| value_to_restore(&key, original)).transpose()?;
            sysctls.insert(key, Sysctl { value, original });
        }
        Ok(sysctls)
    }
}

/// A bridge and its table, whichever agent's.
fn claim(rule: &Rule) -> Option<(String, u32)> {
    let Selector::Iif(bridge) = &rule.selector else { return None };
    tables::is_an_agents(rule.table).then(|| (bridge.clone(), rule.table))
}

fn own_marks(interface: &str) -> [u32; 2] {
    [marks::back_into_tunnel(interface), marks::back_by_main(interface)]
}

/// The value before ours; the present one of all interfaces when somebody, as Docker at its start, has set that since.
fn value_to_restore(key: &SysctlKey, original: &Original) -> Result<String, Error> {
    let all = sysctl::switch_of_all(key).map_or(Ok(None), |all| sysctl::read(&all))?;
    let changed = original.all.is_some() && original.all != all;
    Ok(all.filter(|_| changed).unwrap_or_else(|| original.value.clone()))
}

/// `fe80::/10` (RFC 4291, section 2.5.6).
fn is_link_local(addr: std::net::Ipv6Addr) -> bool {
    addr.segments()[0] & 0xffc0 == 0xfe80
}
