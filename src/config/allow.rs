//! What a peer may reach: the items of `allow` in its file.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use super::problem::quote;
use super::{Protocol, value};

/// One item: a place, and the ports there when not all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Allow {
    /// Where.
    pub to: Place,
    /// `None` is every protocol.
    pub ports: Option<Ports>,
}

/// Where a peer may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The services of this host itself, under any of its addresses.
    Host,
    /// What this host forwards to: containers, LANs, other peers and what is behind them.
    Net(IpNet),
}

/// Ports of one protocol, `first` to `last`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub struct Ports {
    pub protocol: Protocol,
    pub first: u16,
    pub last: u16,
}

/// `NETWORK`, `ADDRESS` or `host`, and after a space `tcp/PORT`, `udp/FIRST-LAST` or nothing.
pub fn allow(text: &str) -> Result<Allow, String> {
    let mut words = text.split_ascii_whitespace();
    let (to, ports, rest) = (words.next().unwrap_or_default(), words.next(), words.next());
    if to.is_empty() || rest.is_some() {
        return Err("expected a network, an address or host, then ports if not all, such as 10.89.2.10 tcp/443".into());
    }
    Ok(Allow { to: place(to)?, ports: ports.map(self::ports).transpose()? })
}

fn place(text: &str) -> Result<Place, String> {
    if text == "host" {
        return Ok(Place::Host);
    }
    if let Ok(addr) = text.parse::<IpAddr>() {
        return value::subnet(&IpNet::from(addr).to_string()).map(Place::Net);
    }
    match text.parse::<IpNet>() {
        Ok(net) if net.prefix_len() == 0 => {
            Err("would be everything; what has the internet through this host is named in [exit] peers".into())
        }
        Ok(_) => value::subnet(text).map(Place::Net),
        Err(_) => {
            Err(format!("{} is no place; expected a network such as 10.89.2.0/24, an address or host", quote(text)))
        }
    }
}

/// `tcp/443` or `udp/60000-61000`.
pub fn ports(text: &str) -> Result<Ports, String> {
    let wrong = || format!("{} are no ports; expected such as tcp/443 or udp/60000-61000", quote(text));
    let (protocol, range) = text.split_once('/').ok_or_else(wrong)?;
    let protocol = match protocol {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        _ => return Err(wrong()),
    };
    let (first, last) = range.split_once('-').unwrap_or((range, range));
    let port = |text: &str| text.parse::<u16>().ok().filter(|&port| port > 0);
    match (port(first), port(last)) {
        (Some(first), Some(last)) if first <= last => Ok(Ports { protocol, first, last }),
        _ => Err(wrong()),
    }
}

impl fmt::Display for Allow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.to {
            Place::Host => f.write_str("host")?,
            Place::Net(net) if net.prefix_len() == net.max_prefix_len() => net.addr().fmt(f)?,
            Place::Net(net) => net.fmt(f)?,
        }
        self.ports.iter().try_for_each(|ports| write!(f, " {ports}"))
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.protocol, self.first)?;
        if self.last == self.first { Ok(()) } else { write!(f, "-{}", self.last) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_shown_again() {
        for text in ["host", "host tcp/22", "10.89.1.0/24", "10.89.2.10 udp/60000-61000", "fd89:1::/64 tcp/443"] {
            assert_eq!(allow(text).unwrap().to_string(), text);
        }
        assert_eq!(allow("10.89.2.10/32  tcp/5-5").unwrap().to_string(), "10.89.2.10 tcp/5");
    }

    #[test]
    fn what_is_wrong_comes_with_what_is_right() {
        let shape = "expected a network, an address or host, then ports if not all, such as 10.89.2.10 tcp/443";
        let ports = |text: &str| format!("{text:?} are no ports; expected such as tcp/443 or udp/60000-61000");
        for (text, expected) in [
            ("", shape),
            ("host tcp/1 tcp/2", shape),
            ("nextcloud", "\"nextcloud\" is no place; expected a network such as 10.89.2.0/24, an address or host"),
            ("0.0.0.0/0", "would be everything; what has the internet through this host is named in [exit] peers"),
            ("10.89.2.7/24", "has host bits set; 10.89.2.0/24 would be right"),
            ("127.0.0.1", "127.0.0.0/8 is each host's own loopback; expected a network of hosts such as 10.89.2.0/24"),
            ("host 22", &ports("22")),
            ("host tcp", &ports("tcp")),
            ("host sctp/1", &ports("sctp/1")),
            ("host tcp/0", &ports("tcp/0")),
            ("host tcp/65536", &ports("tcp/65536")),
            ("host tcp/2-1", &ports("tcp/2-1")),
            ("host tcp/1-2-3", &ports("tcp/1-2-3")),
        ] {
            assert_eq!(allow(text).unwrap_err(), expected, "{text:?}");
        }
    }
}
