//! Knowing a probe again, also after a NAT, a proxy or a resolver had it.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};

use super::neighbour::Neighbour;
use super::packet::{ICMP, ICMPV6, TCP, UDP, ports, transport};
use super::{Control, Leg, Marked, Probe, Run};

/// Knows the probes of one run.
#[derive(Debug)]
pub struct Recogniser {
    run: Run,
    legs: HashMap<IpAddr, usize>,
    /// Leg of each probe.
    numbers: Vec<usize>,
    /// By protocol, destination and port; the probe's number.
    ports: HashMap<(u8, IpAddr, u16), u16>,
    /// By address, where nobody else has a reason to ask for it.
    unused: HashMap<IpAddr, u16>,
    /// Answers to TCP probes: remote address, our port.
    replies: HashMap<(IpAddr, u16), u16>,
    answerable: HashSet<u16>,
}

/// What a captured packet is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    /// Sent by this host on purpose.
    Control(Control),
    /// A probe, or something that came of one.
    Probe {
        /// Whose leg it came from.
        leg: usize,
        /// Which one; unknown when it is known by its source alone.
        number: Option<u16>,
        /// How it was recognised.
        by: &'static str,
    },
}

impl Recogniser {
    /// For these legs and probes, both as numbered.
    pub fn new(run: Run, legs: &[Leg], probes: &[Probe]) -> Self {
        let numbered = || (0u16..).zip(probes);
        let ports = numbered().filter_map(|(number, probe)| {
            probe.port.map(|(protocol, port)| ((protocol, probe.way.destination, port), number))
        });
        let unused = numbered().filter_map(|(number, probe)| Some((probe.unused?, number)));
        let replies = numbered().filter_map(|(number, probe)| Some(((probe.way.destination, probe.reply?), number)));
        Self {
            run,
            legs: legs.iter().enumerate().map(|(at, leg)| (leg.address, at)).collect(),
            numbers: probes.iter().map(|probe| probe.leg).collect(),
            ports: ports.collect(),
            unused: unused.collect(),
            replies: replies.collect(),
            answerable: numbered().filter(|(_, probe)| probe.answer).map(|(number, _)| number).collect(),
        }
    }

    /// Looks at what leaves by an interface; `packet` begins after the link's own header.
    pub fn look(&self, ethertype: u16, packet: &[u8]) -> Option<Seen> {
        match self.run.find(packet) {
            Some(Marked::Control(control)) => return Some(Seen::Control(control)),
            Some(Marked::Probe(number)) => return Some(self.probe(number, "marker")),
            None => {}
        }
        if let Some(neighbour) = Neighbour::parse_body(ethertype, packet, [0; 6]) {
            if let Some(&leg) = self.legs.get(&neighbour.sender) {
                return Some(Seen::Probe { leg, number: None, by: "source" });
            }
            let asked = self.unused.get(&neighbour.target).filter(|_| !neighbour.answer);
            return asked.map(|&number| self.probe(number, "neighbour"));
        }
        let (protocol, way, rest) = transport(packet)?;
        if let Some(&leg) = self.legs.get(&way.source) {
            return Some(Seen::Probe { leg, number: None, by: "source" });
        }
        let (_, destination) = ports(rest).filter(|_| matches!(protocol, TCP | UDP))?;
        let number = self.ports.get(&(protocol, way.destination, destination))?;
        Some(self.probe(*number, "destination"))
    }

    /// Looks at what comes to the leg: the number of the probe that it answers, when that proves something.
    pub fn answered(&self, packet: &[u8]) -> Option<u16> {
        let (protocol, way, rest) = transport(packet)?;
        let marked = || match self.run.find(rest) {
            Some(Marked::Probe(number)) => Some(number),
            _ => None,
        };
        let number = match (protocol, rest.first()?) {
            (ICMP, 0) | (ICMPV6, 129) | (UDP, _) => marked()?,
            (TCP, _) => *self.replies.get(&(way.source, ports(rest)?.1))?,
            _ => return None,
        };
        self.answerable.contains(&number).then_some(number)
    }

    fn probe(&self, number: u16, by: &'static str) -> Seen {
        // The tag is this run's, so a number that is not can only be damage; it is a probe all the same.
        let leg = self.numbers.get(usize::from(number)).copied();
        Seen::Probe { leg: leg.unwrap_or(0), number: leg.map(|_| number), by }
    }
}

/// A packet in a line, as tcpdump would have it.
pub fn describe(ethertype: u16, packet: &[u8]) -> String {
    if let Some(neighbour) = Neighbour::parse_body(ethertype, packet, [0; 6]) {
        return format!("{} asks who has {}", neighbour.sender, neighbour.target);
    }
    let length = packet.len();
    let Some((protocol, way, rest)) = transport(packet) else {
        return format!("ethertype {ethertype:#06x}, {length} bytes");
    };
    let name = match protocol {
        ICMP => "ICMP".to_owned(),
        ICMPV6 => "ICMPv6".to_owned(),
        TCP => "TCP".to_owned(),
        UDP => "UDP".to_owned(),
        other => format!("protocol {other}"),
    };
    match ports(rest).filter(|_| matches!(protocol, TCP | UDP)) {
        Some((from, to)) => {
            let [from, to] = [(way.source, from), (way.destination, to)].map(SocketAddr::from);
            format!("{name} {from} > {to}, {length} bytes")
        }
        None => format!("{name} {} > {}, {length} bytes", way.source, way.destination),
    }
}
