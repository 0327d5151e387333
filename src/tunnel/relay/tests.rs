//! vps, home and lab: the latter two know each other through vps.

use std::net::Ipv4Addr;
use std::sync::atomic::Ordering::Relaxed;
use std::time::SystemTime;

use ipnet::IpNet;

use super::*;
use crate::channel::{Kind, Message};
use crate::express::{Ability, Reason};
use crate::key::{NextKeys, PrivateKey};
use crate::packet::VnetHeader;
use crate::tunnel::{Datagrams, Egress, Inbox, Local, Path, PeerSettings, PeerSnapshot, PeerState, Settings, message};

const VPS: usize = 0;
const HOME: usize = 1;
const LAB: usize = 2;

struct Host {
    key: PrivateKey,
    addr: SocketAddr,
    device: Device,
    outbox: Outbox,
    /// What would go to the TUN device.
    received: Vec<Vec<u8>>,
}

struct Network {
    hosts: Vec<Host>,
    /// From, to, bytes.
    wire: Vec<(usize, usize, Vec<u8>)>,
}

impl Network {
    fn new() -> Self {
        let now = Instant::now();
        let hosts = (0..3).map(|n| {
            let key = PrivateKey::from_bytes([n + 1; 32]);
            let (device, addr) = (Device::new(key.clone(), 1420, now), ([192, 0, 2, n], 51820).into());
            Host { key, addr, device, outbox: Outbox::new(), received: Vec::new() }
        });
        let network = Self { hosts: hosts.collect(), wire: Vec::new() };
        network.configure(VPS, &[network.peer(HOME, None, true), network.peer(LAB, None, true)]);
        for (own, other) in [(HOME, LAB), (LAB, HOME)] {
            network.configure(own, &[network.peer(VPS, None, true), network.peer(other, Some(VPS), false)]);
        }
        network
    }

    fn key(&self, host: usize) -> PublicKey {
        self.hosts[host].key.public_key()
    }

    fn peer(&self, host: usize, via: Option<usize>, endpoint: bool) -> PeerSettings {
        PeerSettings {
            public_key: self.key(host),
            preshared_key: None,
            endpoint: endpoint.then_some(self.hosts[host].addr),
            persistent_keepalive: via.map(|_| 1),
            allowed_ips: vec![IpNet::new(inner(host).into(), 32).unwrap()],
            deliver: true,
            via: via.map(|relay| self.key(relay)),
            next: NextKeys::default(),
            express: Ability::Unable(Reason::Off),
        }
    }

    fn configure(&self, host: usize, peers: &[PeerSettings]) {
        let Host { device, key, .. } = &self.hosts[host];
        device.configure(key, &Settings { peers: peers.to_vec(), ..Settings::default() }, Instant::now());
    }

    /// As if the TUN device had delivered a packet; what of it arrives where goes to the TUN device there.
    fn send(&mut self, from: usize, src: Ipv4Addr, dst: Ipv4Addr) {
        let packet = packet(src, dst);
        let mut buffer = packet.clone();
        buffer.resize(packet.len() + 16, 0);
        let Host { device, outbox, .. } = &mut self.hosts[from];
        device.seal(VnetHeader::default(), &mut buffer, packet.len(), outbox, Instant::now());
        self.settle();
    }

    /// Seals any packet for a peer, as a peer with another program could.
    fn forge(&mut self, from: usize, to: usize, src: Ipv4Addr) {
        let (peer, packet) = (self.key(to), packet(src, inner(to)));
        let Host { device, outbox, .. } = &mut self.hosts[from];
        let table = device.table.load_full();
        assert!(table.peers[&peer].lock().seal(&packet, 0, outbox, Instant::now()).is_ok());
        self.settle();
    }

    fn settle(&mut self) {
        while let Some(from) = self.hosts.iter().position(|host| !host.outbox.is_empty()) {
            let mut sent = Vec::new();
            self.hosts[from].outbox.flush(|run| {
                sent.extend(run.datagrams().map(|datagram| (run.path.remote, datagram.to_vec())));
            });
            for (remote, datagram) in sent {
                let Some(to) = self.hosts.iter().position(|host| host.addr == remote) else { continue };
                self.wire.push((from, to, datagram.clone()));
                let path = Path { remote: self.hosts[from].addr, local: None };
                let datagrams = Datagrams { bytes: &datagram, segment: datagram.len(), path, traffic_class: 0 };
                let Host { device, outbox, received, .. } = &mut self.hosts[to];
                let (mut inbox, now, wall) = (Inbox::new(), Instant::now(), SystemTime::now());
                device.open(datagrams, &mut inbox, outbox, now, wall);
                while device.answer(outbox, now, wall, |_| {}) {}
                received.extend(inbox.packets.iter().map(|range| inbox.arena[range.clone()].to_vec()));
            }
        }
    }

    /// A session between lab and home, by a call.
    fn call(&mut self) {
        let (home, at) = (self.key(HOME), self.hosts[HOME].addr);
        let Host { device, outbox, .. } = &mut self.hosts[LAB];
        // The first address is nobody's.
        assert!(device.call(&home, &[([192, 0, 2, 99], 9).into(), at], outbox, Instant::now()));
        self.settle();
    }

    fn say(&mut self, from: usize, to: usize) -> bool {
        let peer = self.key(to);
        let Host { device, outbox, .. } = &mut self.hosts[from];
        let message = Message { kind: Kind::Direct, answer: false, id: 7, body: b"{}" };
        let said = device.say(&peer, &message, outbox, Instant::now());
        device.knock(&peer, &message, outbox, Instant::now());
        self.settle();
        said
    }

    /// How many packets came to `host` since the last time, and how many it took for spoofed.
    fn taken(&mut self, host: usize) -> (usize, u64) {
        let Host { device, received, .. } = &mut self.hosts[host];
        (std::mem::take(received).len(), device.drops.spoofed.swap(0, Relaxed))
    }

    /// Who sent data to whom since the last time, keepalives and letters aside.
    fn hops(&mut self) -> Vec<(usize, usize)> {
        let data = |(from, to, datagram): (usize, usize, Vec<u8>)| {
            (message::kind(&datagram) == Some(message::DATA) && datagram.len() == 32 + 48).then_some((from, to))
        };
        self.wire.drain(..).filter_map(data).collect()
    }

    fn snapshot(&self, host: usize, peer: usize) -> PeerSnapshot {
        let key = self.key(peer);
        let peers = self.hosts[host].device.peers(Instant::now());
        peers.into_iter().find(|snapshot| snapshot.settings.public_key == key).unwrap()
    }

    fn set_direct(&self, host: usize, peer: usize, direct: bool) {
        self.hosts[host].device.set_direct(&self.key(peer), direct);
    }
}

fn inner(host: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 88, 0, host as u8 + 1)
}

/// 40 bytes.
fn packet(src: Ipv4Addr, dst: Ipv4Addr) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 17, 0, 0];
    packet.extend(src.octets());
    packet.extend(dst.octets());
    packet.resize(40, 0);
    packet
}

#[test]
fn packets_take_the_relay_until_a_direct_path_is_held_good() {
    let mut network = Network::new();
    network.send(LAB, inner(LAB), inner(HOME));
    assert_eq!((network.hops(), network.taken(VPS)), (vec![(LAB, VPS)], (1, 0)));
    assert_eq!(
        (network.snapshot(LAB, HOME).state, network.snapshot(LAB, HOME).relayed),
        (PeerState::Up, Some(network.key(VPS)))
    );

    network.call();
    network.send(LAB, inner(LAB), inner(HOME));
    assert_eq!(network.hops(), [(LAB, VPS)], "a session alone says nothing about the path");
    network.set_direct(LAB, HOME, true);
    network.send(LAB, inner(LAB), inner(HOME));
    assert_eq!((network.hops(), network.taken(HOME)), (vec![(LAB, HOME)], (1, 0)));
    assert_eq!(network.snapshot(LAB, HOME).relayed, None);

    // A reload leaves it, also when the relay is another session by then.
    let relay = PeerSettings {
        preshared_key: Some("AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=".parse().unwrap()),
        ..network.peer(VPS, None, true)
    };
    network.configure(LAB, &[relay, network.peer(HOME, Some(VPS), false)]);
    network.send(LAB, inner(LAB), inner(HOME));
    assert_eq!(network.hops(), [(LAB, HOME)]);
    network.configure(LAB, &[network.peer(VPS, None, true), network.peer(HOME, Some(VPS), false)]);
    network.set_direct(LAB, HOME, false);
    network.send(LAB, inner(LAB), inner(HOME));
    assert_eq!(network.hops(), [(LAB, VPS)]);

    network.configure(LAB, &[network.peer(HOME, Some(VPS), false)]);
    network.send(LAB, inner(LAB), inner(HOME));
    assert_eq!(network.hops(), [], "a relay that is no peer");
    assert_eq!(network.snapshot(LAB, HOME).state, PeerState::Down);
}

#[test]
fn a_relay_with_another_key_is_the_same_relay() {
    let mut network = Network::new();
    network.send(LAB, inner(LAB), inner(HOME));
    network.wire.clear();
    let (old, new) = (network.key(VPS), PrivateKey::from_bytes([9; 32]).public_key());
    let next = NextKeys { public_key: Some(new), ..NextKeys::default() };
    let device = &network.hosts[LAB].device;
    assert!(device.set_keys(&old, (old, None, next), Instant::now()));
    assert!(device.set_keys(
        &old,
        (new, None, NextKeys { public_key: Some(old), ..NextKeys::default() }),
        Instant::now()
    ));
    network.send(LAB, inner(LAB), inner(HOME));
    assert_eq!(network.hops(), [(LAB, VPS)]);
    assert_eq!(network.snapshot(LAB, HOME).relayed, Some(new));
}

#[test]
fn a_source_is_taken_from_its_peer_and_from_its_relay_at_all_times() {
    let mut network = Network::new();
    network.call();
    network.send(HOME, inner(HOME), inner(VPS));
    for direct in [false, true] {
        network.set_direct(HOME, LAB, direct);
        network.taken(HOME);
        network.forge(LAB, HOME, inner(LAB));
        network.forge(VPS, HOME, inner(LAB));
        network.forge(LAB, HOME, inner(LAB));
        assert_eq!(network.taken(HOME), (3, 0), "direct: {direct}");
        network.forge(LAB, HOME, inner(VPS));
        network.forge(LAB, HOME, inner(HOME));
        assert_eq!(network.taken(HOME), (0, 2), "lab is no relay");
    }
    network.taken(VPS);
    network.forge(LAB, VPS, inner(HOME));
    network.forge(HOME, VPS, inner(LAB));
    assert_eq!(network.taken(VPS), (0, 2), "vps has both directly");
}

#[test]
fn nothing_but_a_call_begins_a_session() {
    let mut network = Network::new();
    network.send(LAB, inner(LAB), inner(HOME));
    network.wire.clear();
    assert!(!network.say(LAB, HOME), "no letter waits");
    for host in [HOME, LAB] {
        let Host { device, outbox, .. } = &mut network.hosts[host];
        device.tick(outbox, Instant::now(), |_| {});
    }
    network.settle();
    let between = |network: &Network| network.wire.iter().any(|(from, to, _)| from + to == HOME + LAB);
    assert!(!between(&network), "neither a letter nor a keepalive");
    network.call();
    assert!(between(&network) && network.say(LAB, HOME) && network.say(HOME, LAB));
}

#[test]
fn both_may_call_at_once() {
    let mut network = Network::new();
    for round in 0..3 {
        let keys = [HOME, LAB].map(|host| (network.key(host), network.hosts[host].addr));
        for (own, (peer, at)) in [(LAB, keys[0]), (HOME, keys[1])] {
            let Host { device, outbox, .. } = &mut network.hosts[own];
            assert!(device.call(&peer, &[at], outbox, Instant::now()));
        }
        network.settle();
        network.taken(HOME);
        network.taken(LAB);
        network.forge(LAB, HOME, inner(LAB));
        network.forge(HOME, LAB, inner(HOME));
        assert_eq!((network.taken(HOME), network.taken(LAB)), ((1, 0), (1, 0)), "round {round}");
    }
}

#[test]
fn what_goes_beyond_the_mesh_takes_no_relay() {
    let mut network = Network::new();
    let source = IpNet::new(inner(LAB).into(), 32).unwrap();
    let local = Local { egress: vec![Egress { source, exits: vec![network.key(HOME)] }], ..Local::default() };
    let peers = vec![network.peer(VPS, None, true), network.peer(HOME, Some(VPS), false)];
    let Host { device, key, .. } = &network.hosts[LAB];
    device.configure(key, &Settings { peers, local }, Instant::now());
    network.call();
    network.hops();
    let web = Ipv4Addr::new(192, 0, 2, 80);
    network.send(LAB, inner(LAB), web);
    assert_eq!(network.hops(), [], "the relay would let it out at its own exit");
    network.set_direct(LAB, HOME, true);
    network.send(LAB, inner(LAB), web);
    assert_eq!(network.hops(), [(LAB, HOME)]);
}
