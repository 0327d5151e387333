//! Who on this host listens on a published port, and so is no longer reached from outside.

use std::fmt;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::config::{Config, Protocol, Publish, printable};

/// A socket on a published port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listener {
    address: SocketAddr,
    inode: u64,
}

/// States of a socket in `include/net/tcp_states.h`; an unconnected UDP socket is "closed".
const LISTEN: &str = "0A";
const CLOSE: &str = "07";

/// The first socket that waits for what `publish` takes, if any: on one of its ports, for every address or for one that is
/// neither loopback nor of the mesh or a bridge. Sockets of the calling thread's network namespace.
pub fn listener(config: &Config, publish: &Publish) -> Option<Listener> {
    let (files, state): ([&str; 2], _) = match publish.protocol {
        Protocol::Tcp => (["tcp", "tcp6"], LISTEN),
        Protocol::Udp => (["udp", "udp6"], CLOSE),
    };
    let concerns = |listener: &Listener| {
        let (ip, port) = (listener.address.ip(), listener.address.port());
        // Whether `::` takes IPv4 too is not said here; by default it does.
        let family = ip.is_ipv4() == publish.to.is_ipv4() || (ip.is_unspecified() && ip.is_ipv6());
        publish.ports.contains(port) && family && !own(config, ip)
    };
    files.into_iter().find_map(|file| {
        let file = File::open(format!("/proc/thread-self/net/{file}")).ok()?;
        let sockets = BufReader::new(file).lines().skip(1).map_while(Result::ok);
        // TCP's listeners come first (`tcp_seq_start` in net/ipv4/tcp_ipv4.c): thousands of connections need not be read.
        let waiting = sockets.map_while(|line| match parse(&line) {
            Some((_, found)) if found != state && state == LISTEN => None,
            other => Some(other),
        });
        waiting.flatten().filter(|(_, found)| found == state).map(|(listener, _)| listener).find(concerns)
    })
}

/// What the operator should know about published ports: one line for each that a local process waits on in vain.
pub fn warnings(config: &Config) -> Vec<String> {
    let taken = |publish: &Publish| {
        let listener = listener(config, publish)?;
        Some(format!("publish {publish}: {listener}, but what comes from outside goes to {}", publish.to))
    };
    config.host.publish.iter().filter_map(taken).collect()
}

/// What is never published: loopback, the mesh, the bridges.
fn own(config: &Config, ip: IpAddr) -> bool {
    let subnets = config.host.bridges.iter().flat_map(|bridge| &bridge.subnets);
    ip.is_loopback() || config.host.addresses.iter().chain(subnets).any(|net| net.contains(&ip))
}

/// A line of proc_net_tcp(5), and the state in it.
fn parse(line: &str) -> Option<(Listener, String)> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let (address, port) = words.get(1)?.split_once(':')?;
    let address = SocketAddr::new(ip(address)?, u16::from_str_radix(port, 16).ok()?);
    Some((Listener { address, inode: words.get(9)?.parse().ok()? }, (*words.get(3)?).to_owned()))
}

/// One or four words of 32 bits, each in the byte order of this machine.
fn ip(hex: &str) -> Option<IpAddr> {
    let word = |at: usize| Some(u32::from_str_radix(hex.get(at * 8..at * 8 + 8)?, 16).ok()?.to_ne_bytes());
    if hex.len() == 8 {
        return Some(Ipv4Addr::from(word(0)?).into());
    }
    let mut octets = [0; 16];
    for (at, chunk) in octets.chunks_exact_mut(4).enumerate() {
        chunk.copy_from_slice(&word(at)?);
    }
    Some(IpAddr::from(Ipv6Addr::from(octets)).to_canonical())
}

impl Listener {
    /// Its program and number, as far as this process may see them.
    fn process(&self) -> Option<(String, u32)> {
        let socket = format!("socket:[{}]", self.inode);
        fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let mut files = fs::read_dir(entry.path().join("fd")).ok()?.flatten();
            files.find(|file| fs::read_link(file.path()).is_ok_and(|link| link.as_os_str() == socket.as_str()))?;
            let name = fs::read_to_string(entry.path().join("comm")).ok()?;
            Some((printable(name.trim_end()), pid))
        })
    }
}

impl fmt::Display for Listener {
    /// `nginx (pid 812) listens on 0.0.0.0:443`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.process() {
            Some((name, pid)) => write!(f, "{name} (pid {pid})")?,
            None => f.write_str("a process of this host")?,
        }
        write!(f, " listens on {}", self.address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_all_four_files_are_understood() {
        let of =
            |line: &str| parse(line).map(|(listener, state)| (listener.address.to_string(), listener.inode, state));
        let row = |address: &str, inode, state: &str| Some((address.to_owned(), inode, state.to_owned()));
        // As a little-endian machine writes them.
        if cfg!(target_endian = "little") {
            let line = "   0: 0100007F:0035 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0 100 0 0 10 0";
            assert_eq!(of(line), row("127.0.0.1:53", 4711, "0A"));
            let line = "  19: 00000000000000000000000000000000:01BB 00000000000000000000000000000000:0000 07 00000000:00000000 00:00000000 00000000  1000        0 99 2 0 0";
            assert_eq!(of(line), row("[::]:443", 99, "07"));
            let line = "   1: 0000000000000000FFFF00000A710ACB:1F90 0:0 0A 0 0 0 0 0 5";
            assert_eq!(of(line), row("203.10.113.10:8080", 5, "0A"));
        }
        assert_eq!(of("  sl  local_address rem_address   st"), None);
        assert_eq!(of(""), None);
    }
}
