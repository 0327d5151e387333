//! The interfaces of this host and their addresses, as they are now.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;

use nix::ifaddrs::getifaddrs;
use nix::net::if_::if_nametoindex;
use nix::sys::socket::SockaddrStorage;

/// By name: number and addresses. Those that go while they are read are left out.
///
/// # Errors
/// When the kernel does not tell.
pub fn interfaces() -> io::Result<BTreeMap<String, (u32, Vec<IpAddr>)>> {
    let mut interfaces = BTreeMap::new();
    for entry in getifaddrs()? {
        let Ok(index) = if_nametoindex(entry.interface_name.as_str()) else { continue };
        let (_, addresses) = interfaces.entry(entry.interface_name).or_insert_with(|| (index, Vec::new()));
        addresses.extend(entry.address.as_ref().and_then(ip));
    }
    Ok(interfaces)
}

fn ip(address: &SockaddrStorage) -> Option<IpAddr> {
    let v4 = address.as_sockaddr_in().map(|address| address.ip().into());
    v4.or_else(|| address.as_sockaddr_in6().map(|address| address.ip().into()))
}
