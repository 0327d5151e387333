//! Finding a container's network namespace by its address, among those of all processes and of ip-netns(8).

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use futures_util::TryStreamExt as _;
use nix::sched::{CloneFlags, setns};
use rtnetlink::packet_route::link::LinkAttribute;
use rtnetlink::packet_route::route::RouteAttribute;

use super::netlink::{self, Netlink};
use crate::plan::{Family, TABLE_MAIN};

/// What runs a command in the namespace that has this address on an interface with this hardware address, and its default
/// gateway.
pub fn find(addr: IpAddr, mac: &[u8]) -> Option<(String, Option<IpAddr>)> {
    let mut known: BTreeSet<u64> = fs::metadata("/proc/self/ns/net").map(|own| own.ino()).into_iter().collect();
    candidates().find_map(|(path, enter)| {
        let inode = fs::metadata(&path).ok()?.ino();
        let file = File::open(&path).ok().filter(|_| known.insert(inode))?;
        let looked = std::thread::scope(|scope| scope.spawn(|| look(&file, addr, mac)).join());
        let Here { gateway } = looked.ok()?.ok()??;
        Some((enter, gateway))
    })
}

/// Namespaces with a name, then those of processes.
fn candidates() -> impl Iterator<Item = (PathBuf, String)> {
    let entries = |dir: &str| fs::read_dir(dir).into_iter().flatten().flatten();
    let named = entries("/run/netns").map(|entry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        (entry.path(), format!("ip netns exec {name}"))
    });
    let processes = entries("/proc").filter_map(|entry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        Some((entry.path().join("ns/net"), format!("nsenter -t {pid} -n")))
    });
    named.chain(processes)
}

/// What is known of the container that is there.
struct Here {
    gateway: Option<IpAddr>,
}

/// Whether the address is in a namespace. On a thread of its own, for it goes there.
fn look(namespace: &File, addr: IpAddr, mac: &[u8]) -> io::Result<Option<Here>> {
    setns(namespace, CloneFlags::CLONE_NEWNET)?;
    let other = |error: super::Error| io::Error::other(error.to_string());
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let netlink = Netlink::open().map_err(other)?;
        let addresses = netlink.addresses().await.map_err(other)?;
        let Some(own) = addresses.iter().find(|own| own.net.addr() == addr) else { return Ok(None) };
        let mut links = netlink.handle().link().get().match_index(own.index).execute();
        let link = links.try_next().await.map_err(|error| io::Error::other(error.to_string()))?;
        let same = |attribute: &LinkAttribute| matches!(attribute, LinkAttribute::Address(bytes) if bytes == mac);
        if !link.is_some_and(|link| link.attributes.iter().any(same)) {
            return Ok(None);
        }
        let routes = netlink.table(TABLE_MAIN, Family::of(&addr.into())).await.map_err(other)?;
        let default = routes.iter().find(|route| route.header.destination_prefix_length == 0);
        let gateway = default.and_then(|route| {
            route.attributes.iter().find_map(|attribute| match attribute {
                RouteAttribute::Gateway(gateway) => netlink::ip(gateway),
                _ => None,
            })
        });
        Ok(Some(Here { gateway }))
    })
}
