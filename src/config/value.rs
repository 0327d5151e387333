//! The single values: names, networks, addresses, endpoints. Each parser says what would be right.
//!
//! The command line uses the same parsers, so that a flag and a file accept the same text.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::problem::quote;
use super::{Endpoint, PortRange, Protocol};

/// The name of a host or a peer: one DNS label, so that it is a sound file name and, later, a sound host name.
pub fn name(text: &str) -> Result<String, String> {
    if text == "direct" || text == "none" {
        return Err("means something else as an egress; take another name".into());
    }
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if (1..=63).contains(&text.len()) && text.chars().all(allowed) && !text.starts_with('-') && !text.ends_with('-') {
        Ok(text.to_owned())
    } else {
        Err("expected 1 to 63 of a-z, 0-9 and -, with no - at either end".into())
    }
}

/// A user of this host: a name as useradd(8) allows it, or a number.
pub fn user(text: &str) -> Result<String, String> {
    let first = |c: char| c.is_ascii_lowercase() || c == '_';
    let name = text.starts_with(first) && text.chars().all(|c| first(c) || c.is_ascii_digit() || c == '-');
    if text == "root" || text == "0" {
        Err("may attach anything anywhere; leave it out".into())
    } else if text.len() <= 32 && name || text.parse::<u32>().is_ok() {
        Ok(text.to_owned())
    } else {
        Err("no user's name; expected one as in /etc/passwd, or a number".into())
    }
}

/// Whether express sessions are agreed on.
pub fn express(text: &str) -> Result<bool, String> {
    match text {
        "auto" => Ok(true),
        "off" => Ok(false),
        _ => Err("expected \"auto\" or \"off\"".into()),
    }
}

/// As [`express`] reads it.
pub fn express_word(express: bool) -> &'static str {
    if express { "auto" } else { "off" }
}

/// What names in the mesh end in: one or more labels.
pub fn domain(text: &str) -> Result<String, String> {
    if text.len() <= 190 && text.split('.').all(|label| name(label).is_ok()) {
        Ok(text.to_owned())
    } else {
        Err("expected a domain such as mesh or mesh.example.net".into())
    }
}

/// The name of a network interface: the rules of the kernel's `dev_valid_name()`, and no character that nft(8) or a
/// shell would read as something else.
pub fn interface(text: &str) -> Result<String, String> {
    if text.len() > 15 {
        return Err(format!("{} bytes long; the kernel allows 15", text.len()));
    }
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._-@+=".contains(c);
    if text.is_empty() || text == "." || text == ".." || text.starts_with('-') || !text.chars().all(allowed) {
        return Err("expected an interface name: 1 to 15 letters, digits and . _ -".into());
    }
    if matches!(text, "lo" | "all" | "default") {
        return Err("means something else to the kernel; take another name".into());
    }
    Ok(text.to_owned())
}

/// A container network or one behind a peer.
pub fn subnet(text: &str) -> Result<IpNet, String> {
    let net = network(text)?;
    if let Some((_, what)) = SPECIAL.iter().find(|(special, _)| overlap(special, &net)) {
        return Err(format!("{what}; expected a network of hosts such as 10.89.2.0/24"));
    }
    Ok(net)
}

/// A peer's subnet: as [`subnet`], and never everything.
pub fn peer_subnet(text: &str) -> Result<IpNet, String> {
    match text.parse::<IpNet>() {
        Ok(net) if net.prefix_len() == 0 => {
            Err("would take all traffic; to leave through a peer write egress = \"NAME\" in a [[bridge]]".into())
        }
        _ => subnet(text),
    }
}

/// A network that an egress bridge may reach directly.
pub fn allowed_network(text: &str) -> Result<IpNet, String> {
    match text.parse::<IpNet>() {
        Ok(net) if net.prefix_len() == 0 => {
            Err("would let everything out directly; write egress = \"direct\" for that".into())
        }
        _ => network(text),
    }
}

/// This host's address with the prefix of the mesh network.
pub fn host_address(text: &str) -> Result<IpNet, String> {
    let Ok(net) = text.parse::<IpNet>() else {
        return Err(match text.parse::<IpAddr>() {
            Ok(IpAddr::V4(addr)) => format!("no prefix length; write {addr}/24 or whatever the mesh network has"),
            Ok(IpAddr::V6(addr)) => format!("no prefix length; write {addr}/64 or whatever the mesh network has"),
            Err(_) => "expected ADDRESS/PREFIX such as 10.88.0.2/24 or fd88::2/64".into(),
        });
    };
    if net.prefix_len() < 8 {
        return Err("a mesh network that large; expected a prefix length of at least 8".into());
    }
    let host_bits = net.max_prefix_len() - net.prefix_len();
    // RFC 3021 and RFC 6164 allow every address of a /31 and a /127.
    if host_bits > 1 {
        if net.addr() == net.network() {
            let first = match net.addr() {
                IpAddr::V4(addr) => IpAddr::V4(Ipv4Addr::from_bits(addr.to_bits() + 1)),
                IpAddr::V6(addr) => IpAddr::V6(Ipv6Addr::from_bits(addr.to_bits() + 1)),
            };
            return Err(format!("is the network itself; {first}/{} is an address in it", net.prefix_len()));
        }
        if net.addr().is_ipv4() && net.addr() == net.broadcast() {
            return Err("is the network's broadcast address; take another".into());
        }
    }
    host(net.addr()).map(|()| net)
}

/// A peer's address inside the mesh.
pub fn address(text: &str) -> Result<IpAddr, String> {
    let addr = text.parse::<IpAddr>().map_err(|_| match text.parse::<IpNet>() {
        Ok(net) => format!("a single address has no prefix length; write {}", net.addr()),
        Err(_) => "expected an address such as 10.88.0.1 or fd88::1".into(),
    })?;
    host(addr).map(|()| addr)
}

/// A name server for what is not of the mesh.
pub fn name_server(text: &str) -> Result<IpAddr, String> {
    let addr = text.parse::<IpAddr>().map_err(|_| "expected an address such as 9.9.9.9 or 2620:fe::fe".to_owned())?;
    if addr.is_loopback() {
        // It would ask under this host's own address, whatever the bridge's egress is.
        return Err("is this host itself; write the name server that it asks".into());
    }
    match SPECIAL.iter().find(|(special, _)| special.contains(&addr)) {
        Some((_, what)) => Err(format!("{what}; expected an address such as 9.9.9.9 or 2620:fe::fe")),
        None => Ok(addr),
    }
}

/// `HOST:PORT`.
pub fn endpoint(text: &str) -> Result<Endpoint, String> {
    const EXAMPLE: &str = "expected HOST:PORT such as vps.example.net:51820";
    if let Ok(addr) = text.parse::<SocketAddr>() {
        return if addr.port() == 0 {
            Err("port 0 cannot be reached; WireGuard's usual one is 51820".into())
        } else if addr.ip().is_unspecified() || addr.ip().is_multicast() || addr.ip() == Ipv4Addr::BROADCAST {
            Err("is no host's address".into())
        } else {
            Ok(Endpoint::Addr(addr))
        };
    }
    if let Ok(addr) = text.parse::<IpAddr>() {
        return Err(format!("no port; write {}", SocketAddr::new(addr, 51820)));
    }
    let Some((host, port)) = text.rsplit_once(':') else {
        return Err(if dns_name(text) { format!("no port; write {text}:51820") } else { EXAMPLE.into() });
    };
    if host.parse::<Ipv6Addr>().is_ok() {
        return Err(format!("an IPv6 address before a port stands in brackets; write [{host}]:{port}"));
    }
    if !dns_name(host) {
        return Err(EXAMPLE.into());
    }
    match port.parse::<u16>() {
        Ok(port) if port > 0 => Ok(Endpoint::Name(host.to_owned(), port)),
        _ => Err(format!("{} is no port; expected 1 to 65535", quote(port))),
    }
}

/// `443` or `8000-8010`.
pub fn ports(text: &str) -> Result<PortRange, String> {
    let port = |text: &str| text.parse::<u16>().ok().filter(|&port| port > 0);
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (Some(first), Some(last)) = (port(first), port(last)) else {
        let range = text.contains('-');
        let rule = if range { "expected FIRST-LAST, each 1 to 65535" } else { "expected 1 to 65535" };
        return Err(rule.into());
    };
    if last < first {
        return Err(format!("runs backwards; write {last}-{first}"));
    }
    Ok(PortRange { first, last })
}

/// `tcp` or `udp`.
pub fn protocol(text: &str) -> Result<Protocol, String> {
    match text {
        "tcp" => Ok(Protocol::Tcp),
        "udp" => Ok(Protocol::Udp),
        _ => Err("expected \"tcp\" or \"udp\"".into()),
    }
}

/// Where a published port leads.
pub fn target(text: &str) -> Result<SocketAddr, String> {
    let Ok(addr) = text.parse::<SocketAddr>() else {
        return Err(match text.parse::<IpAddr>() {
            Ok(addr) => format!("no port; write {}", SocketAddr::new(addr, 443)),
            Err(_) => "expected ADDRESS:PORT such as 10.89.2.10:443 or [fd89:2::10]:443".into(),
        });
    };
    if addr.port() == 0 { Err("port 0 cannot be reached; expected 1 to 65535".into()) } else { Ok(addr) }
}

/// True when two networks share an address.
pub fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(&b.network()) || b.contains(&a.network())
}

/// A network without host bits.
fn network(text: &str) -> Result<IpNet, String> {
    let net = text.parse::<IpNet>().map_err(|_| match text.parse::<IpAddr>() {
        Ok(addr) => format!("no prefix length; write {} for this one address", IpNet::from(addr)),
        Err(_) => "expected NETWORK/PREFIX such as 10.89.2.0/24 or fd89:2::/64".to_owned(),
    })?;
    if net.prefix_len() == 0 {
        return Err("is every address there is; expected a network such as 10.89.2.0/24".into());
    }
    if net != net.trunc() {
        return Err(format!("has host bits set; {} would be right", net.trunc()));
    }
    Ok(net)
}

fn host(addr: IpAddr) -> Result<(), String> {
    match SPECIAL.iter().find(|(special, _)| special.contains(&addr)) {
        Some((_, what)) => Err(format!("{what}; expected one host's address such as 10.88.0.2 or fd88::2")),
        None => Ok(()),
    }
}

/// RFC 1035's letters, digits and hyphens, and the underscore that exists in practice. A name of digits and dots only is
/// a mistyped address.
fn dns_name(text: &str) -> bool {
    let text = text.strip_suffix('.').unwrap_or(text);
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
    };
    text.len() <= 253
        && text.split('.').all(label)
        && !text.rsplit('.').next().is_some_and(|last| last.chars().all(|c| c.is_ascii_digit()))
}

/// What no mesh may carry or route (RFC 6890): a peer that claims these would speak as this host's own loopback or link.
const SPECIAL: [(IpNet, &str); 9] = [
    (v4(0, 0, 8), "0.0.0.0/8 is no host's network"),
    (v4(127, 0, 8), "127.0.0.0/8 is each host's own loopback"),
    (v4(169, 254, 16), "169.254.0.0/16 is link-local"),
    (v4(224, 0, 4), "224.0.0.0/4 is multicast"),
    (v4(240, 0, 4), "240.0.0.0/4 is reserved"),
    // ::/96 holds the unspecified address, the loopback and the long-gone IPv4-compatible ones.
    (v6(0, 0, 96), "::/96 is each host's own loopback"),
    (v6(0, 0xffff, 96), "::ffff:0:0/96 stands for IPv4; write the IPv4 network"),
    (v6(0xfe80, 0, 10), "fe80::/10 is link-local"),
    (v6(0xff00, 0, 8), "ff00::/8 is multicast"),
];

const fn v4(first: u8, second: u8, prefix: u8) -> IpNet {
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(first, second, 0, 0), prefix))
}

const fn v6(first: u16, sixth: u16, prefix: u8) -> IpNet {
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(first, 0, 0, 0, 0, sixth, 0, 0), prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows of text and what is said about it; nothing said is accepted.
    fn table<T>(parse: impl Fn(&str) -> Result<T, String>, rows: &[(&str, &str)]) {
        for (text, expected) in rows {
            let said = parse(text).err().unwrap_or_default();
            assert_eq!(said, *expected, "{text:?}");
        }
    }

    #[test]
    fn names() {
        let rule = "expected 1 to 63 of a-z, 0-9 and -, with no - at either end";
        let long = "a".repeat(64);
        table(
            name,
            &[
                ("home", ""),
                ("a", ""),
                ("web-2", ""),
                ("", rule),
                ("-home", rule),
                ("home-", rule),
                ("Home", rule),
                ("..", rule),
                ("../home", rule),
                ("a/b", rule),
                ("h\u{1b}", rule),
                (&long, rule),
                ("direct", "means something else as an egress; take another name"),
                ("none", "means something else as an egress; take another name"),
            ],
        );
    }

    #[test]
    fn interfaces() {
        let rule = "expected an interface name: 1 to 15 letters, digits and . _ -";
        let special = "means something else to the kernel; take another name";
        table(
            interface,
            &[
                ("mesh0", ""),
                ("eth0.100", ""),
                ("123456789012345", ""),
                ("1234567890123456", "16 bytes long; the kernel allows 15"),
                ("", rule),
                ("..", rule),
                ("a b", rule),
                ("a/b", rule),
                ("a:b", rule),
                ("mesh%d", rule),
                ("br*", rule),
                ("lo", special),
                ("all", special),
            ],
        );
    }

    #[test]
    fn port_ranges() {
        let (one, range) = ("expected 1 to 65535", "expected FIRST-LAST, each 1 to 65535");
        table(
            ports,
            &[
                ("443", ""),
                ("8000-8010", ""),
                ("443-443", ""),
                ("1-65535", ""),
                ("0", one),
                ("65536", one),
                ("http", one),
                ("", one),
                ("8000-", range),
                ("-1", range),
                ("0-10", range),
                ("1-2-3", range),
                ("8010-8000", "runs backwards; write 8000-8010"),
            ],
        );
        assert_eq!(ports("443-443").unwrap().to_string(), "443");
        assert_eq!(ports("8000-8010").unwrap().to_string(), "8000-8010");
    }

    #[test]
    fn subnets() {
        table(
            peer_subnet,
            &[
                ("10.89.2.0/24", ""),
                ("fd89:2::/64", ""),
                ("10.89.2.10/32", ""),
                ("10.89.2.7/24", "has host bits set; 10.89.2.0/24 would be right"),
                ("10.89.2.7", "no prefix length; write 10.89.2.7/32 for this one address"),
                ("10.89.2.0/33", "expected NETWORK/PREFIX such as 10.89.2.0/24 or fd89:2::/64"),
                (
                    "0.0.0.0/0",
                    "would take all traffic; to leave through a peer write egress = \"NAME\" in a [[bridge]]",
                ),
                ("::/0", "would take all traffic; to leave through a peer write egress = \"NAME\" in a [[bridge]]"),
                (
                    "127.0.0.0/8",
                    "127.0.0.0/8 is each host's own loopback; expected a network of hosts such as 10.89.2.0/24",
                ),
                // The two halves of everything, with which wg-quick users write a default route.
                ("0.0.0.0/1", "0.0.0.0/8 is no host's network; expected a network of hosts such as 10.89.2.0/24"),
                ("128.0.0.0/1", "169.254.0.0/16 is link-local; expected a network of hosts such as 10.89.2.0/24"),
                ("8000::/1", "fe80::/10 is link-local; expected a network of hosts such as 10.89.2.0/24"),
                ("ff02::/16", "ff00::/8 is multicast; expected a network of hosts such as 10.89.2.0/24"),
            ],
        );
        table(
            allowed_network,
            &[
                ("192.168.1.0/24", ""),
                ("0.0.0.0/0", "would let everything out directly; write egress = \"direct\" for that"),
                ("192.168.1.9/24", "has host bits set; 192.168.1.0/24 would be right"),
            ],
        );
    }

    #[test]
    fn addresses() {
        table(
            host_address,
            &[
                ("10.88.0.2/24", ""),
                ("fd88::2/64", ""),
                ("10.88.0.2/32", ""),
                ("10.88.0.0/31", ""),
                ("10.88.0.0/24", "is the network itself; 10.88.0.1/24 is an address in it"),
                ("fd88::/64", "is the network itself; fd88::1/64 is an address in it"),
                ("10.88.0.255/24", "is the network's broadcast address; take another"),
                ("10.88.0.2", "no prefix length; write 10.88.0.2/24 or whatever the mesh network has"),
                ("10.88.0.2/4", "a mesh network that large; expected a prefix length of at least 8"),
                (
                    "169.254.1.1/16",
                    "169.254.0.0/16 is link-local; expected one host's address such as 10.88.0.2 or fd88::2",
                ),
                ("ten", "expected ADDRESS/PREFIX such as 10.88.0.2/24 or fd88::2/64"),
            ],
        );
        table(
            address,
            &[
                ("10.88.0.1", ""),
                ("fd88::1", ""),
                ("10.88.0.1/24", "a single address has no prefix length; write 10.88.0.1"),
                (
                    "127.0.0.1",
                    "127.0.0.0/8 is each host's own loopback; expected one host's address such as 10.88.0.2 or fd88::2",
                ),
                ("vps", "expected an address such as 10.88.0.1 or fd88::1"),
            ],
        );
    }

    #[test]
    fn endpoints() {
        let example = "expected HOST:PORT such as vps.example.net:51820";
        table(
            endpoint,
            &[
                ("203.0.113.10:51820", ""),
                ("[2001:db8::1]:51820", ""),
                ("vps.example.net:51820", ""),
                ("vps.example.net.:51820", ""),
                ("vps:1", ""),
                ("vps.example.net", "no port; write vps.example.net:51820"),
                ("203.0.113.10", "no port; write 203.0.113.10:51820"),
                ("2001:db8::1", "no port; write [2001:db8::1]:51820"),
                ("203.0.113.10:0", "port 0 cannot be reached; WireGuard's usual one is 51820"),
                ("vps:0", "\"0\" is no port; expected 1 to 65535"),
                ("vps:65536", "\"65536\" is no port; expected 1 to 65535"),
                ("203.0.113.400:51820", example),
                ("0.0.0.0:51820", "is no host's address"),
                ("", example),
                ("https://vps:1", example),
                ("v\u{1b}ps:1", example),
            ],
        );
        table(
            target,
            &[
                ("10.89.2.10:443", ""),
                ("[fd89:2::10]:443", ""),
                ("10.89.2.10", "no port; write 10.89.2.10:443"),
                ("10.89.2.10:0", "port 0 cannot be reached; expected 1 to 65535"),
                ("nextcloud:443", "expected ADDRESS:PORT such as 10.89.2.10:443 or [fd89:2::10]:443"),
            ],
        );
    }

    #[test]
    fn name_servers() {
        table(
            name_server,
            &[
                ("9.9.9.9", ""),
                ("2620:fe::fe", ""),
                ("10.89.1.53", ""),
                ("127.0.0.53", "is this host itself; write the name server that it asks"),
                ("::1", "is this host itself; write the name server that it asks"),
                ("9.9.9.9:53", "expected an address such as 9.9.9.9 or 2620:fe::fe"),
                ("fe80::1", "fe80::/10 is link-local; expected an address such as 9.9.9.9 or 2620:fe::fe"),
            ],
        );
    }
}
