//! Two or three devices against each other on a clock that the test moves, over a network that loses, reorders and
//! duplicates. boringtun reads the same clock (its `mock-instant`), so hours pass in milliseconds.

mod egress;
mod express;
mod recall;
mod rotation;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant, SystemTime};

use mock_instant::MockClock;

use super::*;
use crate::express::Ability;

const STEP: Duration = Duration::from_millis(50);
const TICK: Duration = Duration::from_millis(250);

struct Host {
    device: Device,
    key: PrivateKey,
    addr: SocketAddr,
    inner: Ipv4Addr,
    outbox: Outbox,
    received: Vec<Vec<u8>>,
}

struct Network {
    hosts: Vec<Host>,
    started: Instant,
    elapsed: Duration,
    flying: Vec<(Duration, SocketAddr, SocketAddr, Vec<u8>)>,
    /// Every datagram that was sent: when, from, to, bytes.
    wire: Vec<(Duration, SocketAddr, SocketAddr, Vec<u8>)>,
    loss_percent: u64,
    duplicate_percent: u64,
    jitter: Duration,
    /// What the network takes and does not deliver, by sender and bytes.
    swallows: fn(SocketAddr, &[u8]) -> bool,
    random: u64,
}

impl Network {
    fn new(hosts: u8) -> Self {
        let started = Instant::now();
        let hosts = (1..=hosts)
            .map(|n| {
                let key = PrivateKey::from_bytes([n; 32]);
                Host {
                    device: Device::new(key.clone(), 1420, started),
                    key,
                    addr: ([192, 0, 2, n], 51820).into(),
                    inner: Ipv4Addr::new(10, 88, 0, n),
                    outbox: Outbox::new(),
                    received: Vec::new(),
                }
            })
            .collect();
        Self {
            hosts,
            started,
            elapsed: Duration::ZERO,
            flying: Vec::new(),
            wire: Vec::new(),
            loss_percent: 0,
            duplicate_percent: 0,
            jitter: Duration::ZERO,
            swallows: |_, _| false,
            random: 0x9e37_79b9_7f4a_7c15,
        }
    }

    /// Every host knows every other, with its endpoint.
    fn mesh(hosts: u8) -> Self {
        let mut network = Self::new(hosts);
        for host in 0..hosts.into() {
            let peers: Vec<_> =
                (0..hosts.into()).filter(|&peer| peer != host).map(|peer| network.settings(peer)).collect();
            network.configure(host, &peers);
        }
        network
    }

    fn settings(&self, host: usize) -> PeerSettings {
        let Host { key, addr, inner, .. } = &self.hosts[host];
        PeerSettings {
            public_key: key.public_key(),
            preshared_key: None,
            endpoint: Some(*addr),
            persistent_keepalive: None,
            allowed_ips: vec![IpNet::from(IpAddr::V4(*inner))],
            deliver: false,
            via: None,
            next: NextKeys::default(),
            express: Ability::Able,
        }
    }

    fn configure(&mut self, host: usize, peers: &[PeerSettings]) {
        let now = self.now();
        let Host { device, key, .. } = &self.hosts[host];
        device.configure(key, &Settings { peers: peers.to_vec(), ..Settings::default() }, now);
    }

    fn now(&self) -> Instant {
        self.started + self.elapsed
    }

    fn wall(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + self.elapsed
    }

    /// A number below 100, the same in every run.
    fn dice(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % 100
    }

    fn send(&mut self, from: usize, to: usize, body: u32) {
        let (src, dst) = (self.hosts[from].inner, self.hosts[to].inner);
        self.inject(from, &packet(src, dst, body));
    }

    /// As if the TUN device of `from` had delivered `packet`.
    fn inject(&mut self, from: usize, packet: &[u8]) {
        let now = self.now();
        let mut buffer = packet.to_vec();
        buffer.resize(packet.len() + 16, 0xaa);
        let Host { device, outbox, .. } = &mut self.hosts[from];
        device.seal(VnetHeader::default(), &mut buffer, packet.len(), outbox, now);
        self.transmit(from);
    }

    fn transmit(&mut self, from: usize) {
        let src = self.hosts[from].addr;
        let mut sent = Vec::new();
        self.hosts[from].outbox.flush(|run| {
            sent.extend(run.datagrams().map(|datagram| (run.path.remote, datagram.to_vec())));
        });
        for (dst, datagram) in sent {
            self.wire.push((self.elapsed, src, dst, datagram.clone()));
            if self.dice() < self.loss_percent || (self.swallows)(src, &datagram) {
                continue;
            }
            let copies = if self.dice() < self.duplicate_percent { 2 } else { 1 };
            for _ in 0..copies {
                let delay = self.jitter * self.dice() as u32 / 100;
                self.flying.push((self.elapsed + delay, src, dst, datagram.clone()));
            }
        }
    }

    fn deliver(&mut self, from: SocketAddr, to: SocketAddr, datagram: &[u8]) {
        self.flood(std::iter::once(from), to, datagram);
    }

    /// The same datagram from many addresses, before the first one is answered.
    fn flood(&mut self, from: impl Iterator<Item = SocketAddr>, to: SocketAddr, datagram: &[u8]) {
        let (now, wall) = (self.now(), self.wall());
        let Some(host) = self.hosts.iter().position(|host| host.addr == to) else { return };
        let Host { device, outbox, received, .. } = &mut self.hosts[host];
        let mut inbox = Inbox::new();
        for remote in from {
            let path = Path { remote, local: Some(to.ip()) };
            let datagrams = Datagrams { bytes: datagram, segment: datagram.len(), path, traffic_class: 0 };
            device.open(datagrams, &mut inbox, outbox, now, wall);
        }
        while device.answer(outbox, now, wall, |_| {}) {}
        received.extend(inbox.packets.iter().map(|range| inbox.arena[range.clone()].to_vec()));
        self.transmit(host);
    }

    /// Lets all that is due arrive, without moving the clock.
    fn settle(&mut self) {
        // The earliest first, and of those due together the first sent: `min_by_key` keeps it.
        while let Some(next) = (0..self.flying.len()).min_by_key(|&n| self.flying[n].0) {
            if self.flying[next].0 > self.elapsed {
                break;
            }
            let (_, from, to, datagram) = self.flying.remove(next);
            self.deliver(from, to, &datagram);
        }
    }

    fn run(&mut self, time: Duration) {
        let end = self.elapsed + time;
        self.settle();
        while self.elapsed < end {
            self.elapsed += STEP;
            MockClock::advance(STEP);
            if self.elapsed.as_millis().is_multiple_of(TICK.as_millis()) {
                for host in 0..self.hosts.len() {
                    let now = self.now();
                    let Host { device, outbox, .. } = &mut self.hosts[host];
                    device.tick(outbox, now, |_| panic!("a handful of messages fits"));
                    self.transmit(host);
                }
            }
            self.settle();
        }
    }

    fn bodies(&self, host: usize) -> Vec<u32> {
        self.hosts[host].received.iter().map(|packet| u32::from_be_bytes(*packet.last_chunk().unwrap())).collect()
    }

    fn peer(&self, host: usize, peer: usize) -> PeerSnapshot {
        let key = self.hosts[peer].key.public_key();
        let peers = self.hosts[host].device.peers(self.now());
        peers.into_iter().find(|snapshot| snapshot.settings.public_key == key).unwrap()
    }

    fn sent_of(&self, kind: u8, from: usize) -> usize {
        let from = self.hosts[from].addr;
        self.wire.iter().filter(|(_, src, _, datagram)| *src == from && datagram[0] == kind).count()
    }

    fn drops(&self, host: usize) -> [u64; 4] {
        let drops = &self.hosts[host].device.drops;
        [&drops.unroutable, &drops.unreachable, &drops.refused, &drops.spoofed].map(|n| n.load(Ordering::Relaxed))
    }
}

/// A minimal IPv4 packet of UDP's protocol number that ends in `body`.
fn packet(src: Ipv4Addr, dst: Ipv4Addr, body: u32) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 17, 0, 0];
    packet.extend(src.octets());
    packet.extend(dst.octets());
    packet.resize(36, 0);
    packet.extend(body.to_be_bytes());
    packet
}

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn the_first_packets_wait_for_the_handshake_and_arrive_in_order() {
    let mut network = Network::mesh(2);
    for body in 0..5 {
        network.send(0, 1, body);
    }
    assert_eq!(network.sent_of(message::HANDSHAKE_INITIATION, 0), 1);
    network.run(SECOND);
    assert_eq!(network.bodies(1), [0, 1, 2, 3, 4]);
    assert_eq!(network.peer(0, 1).state, PeerState::Up);
    assert_eq!(network.peer(1, 0).state, PeerState::Up);
    assert!(network.peer(0, 1).latest_handshake.is_some() && network.peer(1, 0).latest_handshake.is_some());
}

#[test]
fn packets_that_wait_in_vain_are_counted() {
    let mut network = Network::mesh(2);
    network.loss_percent = 100;
    let unanswered = |network: &Network| network.hosts[0].device.drops.unanswered.load(Ordering::Relaxed);
    for body in 0..300 {
        network.send(0, 1, body);
    }
    assert_eq!(unanswered(&network), 300 - 256);
    // REKEY_ATTEMPT_TIME is 90 seconds.
    network.run(95 * SECOND);
    assert_eq!(unanswered(&network), 300);
    network.loss_percent = 0;
    network.send(0, 1, 300);
    network.run(SECOND);
    assert_eq!((network.bodies(1), unanswered(&network)), (vec![300], 300));
}

#[test]
fn a_responder_with_packets_of_its_own_sends_them_once_confirmed() {
    let mut network = Network::mesh(2);
    // Host 1's initiation is lost; host 0's then completes.
    network.loss_percent = 100;
    network.send(1, 0, 7);
    network.run(TICK);
    network.loss_percent = 0;
    network.send(0, 1, 8);
    network.run(SECOND);
    assert_eq!((network.bodies(0), network.bodies(1)), (vec![7], vec![8]));
}

#[test]
fn traffic_survives_loss_reordering_duplication_and_several_rekeys() {
    let mut network = Network::mesh(2);
    (network.loss_percent, network.duplicate_percent, network.jitter) = (5, 5, Duration::from_millis(300));
    let rounds = 7000;
    for body in 0..rounds {
        network.send(0, 1, body);
        network.send(1, 0, body);
        network.run(2 * STEP);
    }
    network.run(SECOND);
    for host in 0..2 {
        let bodies = network.bodies(host);
        let distinct: BTreeSet<_> = bodies.iter().collect();
        assert_eq!(distinct.len(), bodies.len(), "host {host} was delivered a packet twice");
        // The loss is 5%; a tenth of a percent more is for what a lost rekey may cost.
        assert!(bodies.len() as f64 > f64::from(rounds) * 0.94, "host {host} got {} of {rounds}", bodies.len());
    }
    // 700 s: five rekeys at least (REKEY_AFTER_TIME is 120 s), each answered.
    let responses = network.sent_of(message::HANDSHAKE_RESPONSE, 0) + network.sent_of(message::HANDSHAKE_RESPONSE, 1);
    assert!((6..40).contains(&responses), "{responses} responses");
}

#[test]
fn traffic_one_way_survives_rekeys_in_that_direction() {
    for (from, to) in [(0, 1), (1, 0)] {
        let mut network = Network::mesh(2);
        network.send(0, 1, u32::MAX);
        network.run(SECOND);
        let before = network.bodies(to).len();
        for body in 0..4000 {
            network.send(from, to, body);
            network.run(2 * STEP);
        }
        assert_eq!(network.bodies(to).len() - before, 4000, "from {from}");
    }
}

#[test]
fn an_idle_session_falls_silent_and_wakes_up_again() {
    let mut network = Network::mesh(2);
    network.send(0, 1, 1);
    network.run(30 * SECOND);
    let quiet = network.wire.len();
    network.run(3600 * SECOND);
    assert_eq!(network.wire.len(), quiet, "an idle tunnel sends nothing");
    assert_eq!(network.peer(0, 1).state, PeerState::Down);
    assert!(network.peer(0, 1).latest_handshake.is_some(), "when the last handshake was stays known");
    network.send(1, 0, 2);
    network.run(SECOND);
    assert_eq!(network.bodies(0), [2]);
}

#[test]
fn counters_agree_with_the_wire() {
    let mut network = Network::mesh(2);
    for body in 0..50 {
        network.send(0, 1, body);
        network.send(1, 0, body);
        network.run(5 * SECOND);
    }
    for (host, peer) in [(0, 1), (1, 0)] {
        let addr = network.hosts[host].addr;
        let sent: usize =
            network.wire.iter().filter(|(_, src, ..)| *src == addr).map(|(.., datagram)| datagram.len()).sum();
        assert_eq!(network.peer(host, peer).tx_bytes, sent as u64);
        assert_eq!(network.peer(peer, host).rx_bytes, sent as u64);
    }
}

#[test]
fn the_endpoint_follows_authenticated_packets_and_nothing_else() {
    let mut network = Network::mesh(2);
    network.send(0, 1, 1);
    network.run(SECOND);
    let moved: SocketAddr = "[2001:db8::77]:40000".parse().unwrap();
    network.hosts[0].addr = moved;
    network.send(0, 1, 2);
    network.run(SECOND);
    assert_eq!(network.peer(1, 0).settings.endpoint, Some(moved));
    network.send(1, 0, 3);
    network.run(SECOND);
    assert_eq!(network.bodies(0), [3], "the answer goes to the new address");

    // A replay from elsewhere and a forgery move nothing.
    let elsewhere: SocketAddr = ([203, 0, 113, 66], 1).into();
    let target = network.hosts[1].addr;
    let captured = network.wire.iter().rfind(|(_, src, ..)| *src == moved).unwrap().3.clone();
    let mut forged = captured.clone();
    forged[8] = forged[8].wrapping_add(1);
    for datagram in [captured, forged] {
        network.deliver(elsewhere, target, &datagram);
    }
    assert_eq!(network.peer(1, 0).settings.endpoint, Some(moved));
    assert_eq!(network.bodies(1), [1, 2]);
    assert_eq!(network.drops(1), [0, 0, 2, 0]);
}

#[test]
fn every_captured_message_replayed_is_refused() {
    let mut network = Network::mesh(2);
    for body in 0..20 {
        network.send(0, 1, body);
        network.send(1, 0, body);
        network.run(SECOND);
    }
    let before = (network.bodies(0), network.bodies(1));
    let elsewhere: SocketAddr = ([203, 0, 113, 66], 1).into();
    for (_, _, to, datagram) in network.wire.clone() {
        network.deliver(elsewhere, to, &datagram);
    }
    network.run(SECOND);
    assert_eq!((network.bodies(0), network.bodies(1)), before);
    assert_eq!(network.peer(1, 0).settings.endpoint, Some(network.hosts[0].addr));
    network.send(0, 1, 99);
    network.run(SECOND);
    assert_eq!(network.bodies(1).last(), Some(&99), "the session is intact");
}

#[test]
fn a_peer_sends_only_from_its_own_allowed_ips() {
    let mut network = Network::mesh(3);
    let (a, b, c) = (network.hosts[0].inner, network.hosts[1].inner, network.hosts[2].inner);
    // Host 1 gives host 0 the whole network, but host 2 keeps its more specific address.
    let mut wide = network.settings(0);
    wide.allowed_ips.push("10.88.0.0/24".parse().unwrap());
    let narrow = network.settings(2);
    network.configure(1, &[wide, narrow]);
    network.send(0, 1, 1);
    network.inject(0, &packet(Ipv4Addr::new(10, 88, 0, 77), b, 2));
    network.inject(0, &packet(c, b, 3));
    network.inject(0, &packet(Ipv4Addr::LOCALHOST, b, 4));
    network.run(SECOND);
    assert_eq!(network.bodies(1), [1, 2]);
    assert_eq!(network.drops(1), [0, 0, 0, 2]);
    // And the way out follows the more specific prefix too.
    network.inject(1, &packet(b, c, 5));
    network.inject(1, &packet(b, a, 6));
    network.run(SECOND);
    assert_eq!((network.bodies(2), network.bodies(0)), (vec![5], vec![6]));
}

#[test]
fn a_packet_to_nobody_or_to_a_peer_without_endpoint_is_counted() {
    let mut network = Network::mesh(2);
    network.inject(0, &packet(Ipv4Addr::new(10, 88, 0, 1), Ipv4Addr::new(8, 8, 8, 8), 1));
    let mut nowhere = network.settings(1);
    nowhere.endpoint = None;
    let mut quiet = Network::new(2);
    quiet.configure(0, &[nowhere]);
    quiet.send(0, 1, 1);
    assert_eq!((network.drops(0), quiet.drops(0)), ([1, 0, 0, 0], [0, 1, 0, 0]));
    assert!(quiet.wire.is_empty());
}

#[test]
fn a_keepalive_opens_the_session_holds_it_and_never_gives_up() {
    let mut network = Network::mesh(2);
    let mut settings = network.settings(1);
    settings.persistent_keepalive = Some(25);
    network.configure(0, &[settings]);
    network.run(SECOND);
    assert_eq!(network.peer(0, 1).state, PeerState::Up, "without a packet from the TUN device");
    let before = network.sent_of(message::DATA, 0);
    network.run(100 * SECOND);
    assert_eq!(network.sent_of(message::DATA, 0) - before, 4, "every 25 s");

    // The peer is gone for ten minutes: long past REKEY_ATTEMPT_TIME, and then comes back.
    network.loss_percent = 100;
    network.run(600 * SECOND);
    assert_eq!(network.peer(0, 1).state, PeerState::Connecting);
    assert!(network.peer(0, 1).unanswered > 30 * SECOND, "long enough for the agent to look the name up again");
    network.loss_percent = 0;
    network.run(6 * SECOND);
    assert_eq!(network.peer(0, 1).state, PeerState::Up);
    assert_eq!(network.peer(0, 1).unanswered, Duration::ZERO);
}

#[test]
fn preshared_keys_must_agree() {
    let mut network = Network::mesh(2);
    let psk = |byte| Some(PresharedKey::from_bytes([byte; 32]));
    // Both wait for a session; the second try sends both.
    for (byte, delivered) in [(8, 0), (7, 2)] {
        let (mut one, mut other) = (network.settings(1), network.settings(0));
        (one.preshared_key, other.preshared_key) = (psk(7), psk(byte));
        network.configure(0, &[one]);
        network.configure(1, &[other]);
        network.send(0, 1, 1);
        network.run(6 * SECOND);
        assert_eq!(network.bodies(1).len(), delivered);
    }
}

#[test]
fn reconfiguring_keeps_unchanged_sessions_and_roamed_endpoints() {
    let mut network = Network::mesh(3);
    network.send(0, 1, 1);
    network.run(SECOND);
    network.hosts[0].addr = ([198, 51, 100, 9], 4444).into();
    network.send(0, 1, 2);
    network.run(SECOND);

    let mut known = network.settings(0);
    known.endpoint = Some(([192, 0, 2, 1], 51820).into());
    known.persistent_keepalive = Some(5);
    known.allowed_ips.push("10.89.0.0/16".parse().unwrap());
    network.configure(1, &[known]);
    let handshakes = network.sent_of(message::HANDSHAKE_INITIATION, 1);
    network.send(1, 0, 3);
    network.run(SECOND);
    assert_eq!(network.bodies(0), [3]);
    assert_eq!(network.sent_of(message::HANDSHAKE_INITIATION, 1), handshakes, "no new handshake");
    assert_eq!(network.hosts[1].device.peers(network.now()).len(), 1, "host 2 is forgotten");

    let key = network.hosts[0].key.public_key();
    assert!(network.hosts[1].device.remove_peer(&key, network.now()));
    network.send(0, 1, 4);
    network.run(SECOND);
    assert_eq!(network.bodies(1), [1, 2], "a removed peer is cut off at once");
}

/// So many addresses that are nobody's.
fn spoofed(count: u16) -> impl Iterator<Item = SocketAddr> {
    (0..count).map(|n| SocketAddr::from(([198, 51, (n >> 8) as u8, n as u8], 1000)))
}

#[test]
fn under_load_a_handshake_needs_a_cookie_and_still_completes() {
    let mut network = Network::mesh(2);
    network.send(0, 1, 1);
    let initiation = network.wire[0].3.clone();
    network.flying.clear();
    let target = network.hosts[1].addr;
    // The same valid mac1 from many spoofed sources: under load each gets a 64-byte cookie and no handshake work.
    network.flood(spoofed(600), target, &initiation);
    assert!(network.sent_of(message::COOKIE_REPLY, 1) >= 590, "{} cookies", network.sent_of(message::COOKIE_REPLY, 1));
    // Host 0 retries after 5 s, and the flood goes on: it is told a cookie, and uses it on the next try.
    for _ in 0..40 {
        network.flood(spoofed(600), target, &initiation);
        network
            .flying
            .retain(|(_, _, to, _)| to.ip() == IpAddr::from([192, 0, 2, 1]) || to.ip() == IpAddr::from([192, 0, 2, 2]));
        network.run(TICK * 2);
    }
    assert_eq!(network.bodies(1), [1]);
}

#[test]
fn a_flood_from_one_source_costs_few_cookies() {
    let mut network = Network::mesh(2);
    network.send(0, 1, 1);
    let initiation = network.wire[0].3.clone();
    network.flying.clear();
    let (source, target) = (([198, 51, 100, 1], 1000).into(), network.hosts[1].addr);
    network.flood(spoofed(600), target, &initiation);
    let before = network.sent_of(message::COOKIE_REPLY, 1);
    network.flood(std::iter::repeat_n(source, 20_000), target, &initiation);
    // Fewer where one of the many before shares its bucket, as one flood in forty does.
    let cookies = network.sent_of(message::COOKIE_REPLY, 1) - before;
    assert!((3..=5).contains(&cookies), "{cookies} cookies");
    // Others are asked for a cookie in the same second.
    network.flood(spoofed(900).skip(890), target, &initiation);
    assert!(network.sent_of(message::COOKIE_REPLY, 1) >= before + cookies + 9);
}

#[test]
fn malformed_messages_of_every_length_are_refused() {
    let mut network = Network::mesh(2);
    network.send(0, 1, 1);
    network.run(SECOND);
    let (from, to) = (network.hosts[0].addr, network.hosts[1].addr);
    let before = network.peer(1, 0).rx_bytes;
    for kind in 0..=5u8 {
        for len in (0..200).chain([1452, 65_507]) {
            let mut datagram = vec![kind; len];
            datagram.iter_mut().skip(1).take(3).for_each(|reserved| *reserved = 0);
            network.deliver(from, to, &datagram);
        }
    }
    for (.., mut datagram) in network.wire.clone() {
        datagram[2] = 1;
        network.deliver(from, to, &datagram);
    }
    assert_eq!(network.peer(1, 0).rx_bytes, before);
    assert_eq!(network.bodies(1), [1]);
}
