//! What a peer may reach: the items of `allow` in its file.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use super::problem::quote;
use super::{PortRange, Protocol, value};

/// One item: a place, and the service there when not all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Allow {
    /// Where.
    pub to: Place,
    /// `None` is every protocol.
    pub service: Option<Service>,
}

/// Where a peer may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The services of this host itself, under any of its addresses.
    Host,
    /// All that this host forwards to: containers, LANs, other peers and what is behind them.
    Mesh,
    /// A part of that.
    Net(IpNet),
}

/// Ports of one protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub struct Service {
    pub protocol: Protocol,
    pub ports: PortRange,
}

/// `NETWORK`, `ADDRESS`, `mesh` or `host`, and after a space `tcp/PORT`, `udp/FIRST-LAST` or nothing.
pub fn allow(text: &str) -> Result<Allow, String> {
    let mut words = text.split_ascii_whitespace();
    let (to, ports, rest) = (words.next().unwrap_or_default(), words.next(), words.next());
    if to.is_empty() || rest.is_some() {
        return Err(
            "expected a network, an address, mesh or host, then ports if not all, such as 10.89.2.10 tcp/443".into()
        );
    }
    Ok(Allow { to: place(to)?, service: ports.map(service).transpose()? })
}

fn place(text: &str) -> Result<Place, String> {
    match text {
        "host" => return Ok(Place::Host),
        "mesh" => return Ok(Place::Mesh),
        _ => {}
    }
    if let Ok(addr) = text.parse::<IpAddr>() {
        return value::subnet(&IpNet::from(addr).to_string()).map(Place::Net);
    }
    match text.parse::<IpNet>() {
        Ok(net) if net.prefix_len() == 0 => {
            Err("is more than the mesh; write mesh for all of that; what has the internet through this host is named in [exit] peers".into())
        }
        Ok(_) => value::subnet(text).map(Place::Net),
        Err(_) => {
            Err(format!("{} is no place; expected a network such as 10.89.2.0/24, an address, mesh or host", quote(text)))
        }
    }
}

/// `tcp/443` or `udp/60000-61000`.
pub fn service(text: &str) -> Result<Service, String> {
    let wrong = || format!("{} are no ports; expected such as tcp/443 or udp/60000-61000", quote(text));
    let (protocol, ports) = text.split_once('/').ok_or_else(wrong)?;
    let protocol = value::protocol(protocol).map_err(|_| wrong())?;
    Ok(Service { protocol, ports: value::ports(ports).map_err(|_| wrong())? })
}

impl fmt::Display for Allow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.to {
            Place::Host => f.write_str("host")?,
            Place::Mesh => f.write_str("mesh")?,
            Place::Net(net) if net.prefix_len() == net.max_prefix_len() => net.addr().fmt(f)?,
            Place::Net(net) => net.fmt(f)?,
        }
        self.service.iter().try_for_each(|service| write!(f, " {service}"))
    }
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.protocol, self.ports)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_shown_again() {
        for text in ["host", "host tcp/22", "mesh", "10.89.1.0/24", "10.89.2.10 udp/60000-61000", "fd89:1::/64 tcp/443"]
        {
            assert_eq!(allow(text).unwrap().to_string(), text);
        }
        assert_eq!(allow("10.89.2.10/32  tcp/5-5").unwrap().to_string(), "10.89.2.10 tcp/5");
    }

    #[test]
    fn what_is_wrong_comes_with_what_is_right() {
        let shape = "expected a network, an address, mesh or host, then ports if not all, such as 10.89.2.10 tcp/443";
        let ports = |text: &str| format!("{text:?} are no ports; expected such as tcp/443 or udp/60000-61000");
        for (text, expected) in [
            ("", shape),
            ("host tcp/1 tcp/2", shape),
            (
                "nextcloud",
                "\"nextcloud\" is no place; expected a network such as 10.89.2.0/24, an address, mesh or host",
            ),
            (
                "0.0.0.0/0",
                "is more than the mesh; write mesh for all of that; what has the internet through this host is named in [exit] peers",
            ),
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
