//! Two and three devices against each other: what agents say arrives, and nobody else can say it.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::Ordering::Relaxed;
use std::task::Waker;
use std::time::SystemTime;

use proptest::prelude::*;

use super::*;
use crate::bench::{Direction, RunId, Terms};
use crate::channel::address;
use crate::express::{Ability, Reason};
use crate::key::{NextKeys, PrivateKey};
use crate::packet::VnetHeader;
use crate::tunnel::{Datagrams, Inbox, PeerSettings, Settings};

struct Host {
    key: PrivateKey,
    addr: SocketAddr,
    device: Device,
    outbox: Outbox,
    /// What would go to the TUN device.
    delivered: Vec<Vec<u8>>,
}

/// Hosts that reach each other at once. Each allows the others everything, as an exit does.
struct Network(Vec<Host>);

impl Network {
    fn new(hosts: u8) -> Self {
        let now = Instant::now();
        let host = |n| {
            let key = PrivateKey::from_bytes([n; 32]);
            let (device, addr) = (Device::new(key.clone(), 1420, now), ([192, 0, 2, n], 51820).into());
            Host { key, addr, device, outbox: Outbox::new(), delivered: Vec::new() }
        };
        let network = Self((1..=hosts).map(host).collect());
        for host in &network.0 {
            let peers: Vec<_> = network.0.iter().filter(|other| other.addr != host.addr).map(settings).collect();
            host.device.configure(&host.key, &Settings { peers, ..Settings::default() }, now);
        }
        network
    }

    /// Sends what is in the outboxes until there is nothing left.
    fn settle(&mut self) {
        while let Some(from) = self.0.iter().position(|host| !host.outbox.is_empty()) {
            let sender = &mut self.0[from];
            let source = sender.addr;
            let mut sent = Vec::new();
            sender.outbox.flush(|run| {
                sent.extend(run.datagrams().map(|datagram| (run.path.remote, datagram.to_vec())));
            });
            for (to, datagram) in sent {
                self.arrive(source, to, &datagram);
            }
        }
    }

    fn arrive(&mut self, from: SocketAddr, to: SocketAddr, datagram: &[u8]) {
        let Some(host) = self.0.iter_mut().find(|host| host.addr == to) else { return };
        let path = Path { remote: from, local: Some(to.ip()) };
        let (mut inbox, datagrams) =
            (Inbox::new(), Datagrams { bytes: datagram, segment: datagram.len(), path, traffic_class: 0 });
        let (now, wall) = (Instant::now(), SystemTime::now());
        if host.device.open(datagrams, &mut inbox, &mut host.outbox, now, wall) {
            while host.device.answer(&mut host.outbox, now, wall, |_| {}) {}
        }
        host.delivered.extend(inbox.packets.iter().map(|range| inbox.arena[range.clone()].to_vec()));
    }

    fn key(&self, host: usize) -> PublicKey {
        self.0[host].key.public_key()
    }

    fn agent(&self, host: usize) -> Ipv6Addr {
        address::of(&self.key(host))
    }

    fn say(&mut self, from: usize, to: usize, body: &[u8]) -> bool {
        let peer = self.key(to);
        let Host { device, outbox, .. } = &mut self.0[from];
        let message = Message { kind: Kind::Hello, answer: false, id: 7, body };
        let said = device.say(&peer, &message, outbox, Instant::now());
        self.settle();
        said
    }

    /// Seals any packet for a peer, as a peer with another program could.
    fn forge(&mut self, from: usize, to: usize, packet: &[u8]) {
        let peer = self.key(to);
        let Host { device, outbox, .. } = &mut self.0[from];
        let table = device.table.load();
        assert!(table.peers[&peer].lock().seal(packet, 0, outbox, Instant::now()).is_ok());
        drop(table);
        self.settle();
    }

    fn letters(&self, host: usize) -> Vec<Letter> {
        let mut context = Context::from_waker(Waker::noop());
        std::iter::from_fn(|| match self.0[host].device.agents.poll_letter(&mut context) {
            Poll::Ready(letter) => Some(letter),
            Poll::Pending => None,
        })
        .collect()
    }

    /// Refused and spoofed.
    fn drops(&self, host: usize) -> (u64, u64) {
        let drops = &self.0[host].device.drops;
        (drops.refused.load(Relaxed), drops.spoofed.load(Relaxed))
    }

    /// Puts the same run on two hosts; the first asks.
    fn begin(&self, asker: usize, answerer: usize, route: Route, direction: Direction) -> [Arc<Run>; 2] {
        let terms = Terms { id: RunId::random().unwrap(), route, direction, millis: 1000 };
        [(asker, answerer, true), (answerer, asker, false)].map(|(own, peer, asks)| {
            let run = Arc::new(Run::new(terms, self.key(peer), self.0[peer].addr, asks, Instant::now()));
            self.0[own].device.agents.set_run(Some(Arc::clone(&run)));
            run
        })
    }

    fn load(&mut self, from: usize, run: &Run, sequences: std::ops::Range<u64>) -> bool {
        let Host { device, outbox, .. } = &mut self.0[from];
        let now = Instant::now();
        let last = sequences.end - 1;
        let sent = device.load(run, sequences.map(|n| run.load(n, n == last, now)), outbox, now);
        self.settle();
        sent
    }
}

fn settings(host: &Host) -> PeerSettings {
    PeerSettings {
        public_key: host.key.public_key(),
        preshared_key: None,
        endpoint: Some(host.addr),
        persistent_keepalive: None,
        // Of two peers with the same networks the later has them, so the last host is the exit.
        allowed_ips: vec!["0.0.0.0/0".parse().unwrap(), "::/0".parse().unwrap()],
        deliver: false,
        via: None,
        next: NextKeys::default(),
        express: Ability::Unable(Reason::Off),
    }
}

fn packet(kind: Kind, from: Ipv6Addr, to: Ipv6Addr, body: &[u8]) -> Vec<u8> {
    let mut packet = vec![0; OVERHEAD + body.len()];
    Message { kind, answer: false, id: 1, body }.write_packet(from, to, &mut packet);
    packet
}

#[test]
fn letters_arrive_with_their_sender_and_never_at_the_tun_device() {
    let mut network = Network::new(3);
    // The first also makes the session.
    for (from, to) in [(0, 1), (1, 0), (2, 0)] {
        assert!(network.say(from, to, b"hello"));
        let letters = network.letters(to);
        let size = letters[0].size;
        assert!((OVERHEAD..OVERHEAD + b"hello".len() + PADDING).contains(&usize::from(size)), "{size}");
        let expected =
            Letter { peer: network.key(from), kind: Kind::Hello, answer: false, id: 7, body: b"hello".to_vec(), size };
        assert_eq!(letters, [expected]);
    }
    assert!(network.0.iter().all(|host| host.delivered.is_empty()));
    assert_eq!((0..3).map(|host| network.drops(host)).collect::<Vec<_>>(), [(0, 0); 3]);
}

#[test]
fn nobody_speaks_for_another_agent() {
    let mut network = Network::new(3);
    assert!(network.say(2, 0, b""));
    network.letters(0);
    let (own, other, us) = (network.agent(2), network.agent(1), network.agent(0));
    for (what, packet) in [
        ("another agent's source", packet(Kind::Hello, other, us, b"")),
        ("a source of the tunnel", packet(Kind::Hello, "fd88::2".parse().unwrap(), us, b"")),
        ("another agent's destination", packet(Kind::Hello, own, other, b"")),
        ("our own source", packet(Kind::Hello, us, us, b"")),
        ("a probe without a run", packet(Kind::Probe, own, us, &[0; PROBE_LEN])),
        ("something short", vec![0x60; 40].into_iter().chain([0; 8]).collect()),
    ] {
        let (refused, spoofed) = network.drops(0);
        network.forge(2, 0, &packet);
        let after = network.drops(0);
        assert_eq!(after.0 + after.1, refused + spoofed + 1, "{what}");
        assert_eq!(network.letters(0), [], "{what}");
    }
    // An agent's source to another destination: not to the TUN device either, though all is allowed.
    network.forge(2, 0, &packet(Kind::Hello, own, "fd88::1".parse().unwrap(), b""));
    network.forge(2, 0, &packet(Kind::Hello, "fd77::1".parse().unwrap(), "fd88::1".parse().unwrap(), b""));
    assert_eq!(network.0[0].delivered.len(), 1, "the ordinary packet, and only that");
}

#[test]
fn the_tun_device_cannot_speak_for_the_agent() {
    let mut network = Network::new(2);
    assert!(network.say(0, 1, b""));
    network.letters(1);
    let (own, peer) = (network.agent(0), network.agent(1));
    let mut buffer = packet(Kind::Hello, own, peer, b"");
    let len = buffer.len();
    buffer.resize(len + PADDING, 0);
    let Host { device, outbox, .. } = &mut network.0[0];
    device.seal(VnetHeader::default(), &mut buffer, len, outbox, Instant::now());
    assert!(outbox.is_empty());
    assert_eq!(device.drops.unroutable.load(Relaxed), 1);
}

#[test]
fn a_peer_may_write_only_so_often_and_the_box_is_bounded() {
    let mut network = Network::new(2);
    let sent = 3 * BOX;
    for _ in 0..sent {
        assert!(network.say(0, 1, b"x"));
    }
    let arrived = network.letters(1).len();
    // Twenty at once, and those that the time of the test allows.
    assert!((20..BOX).contains(&arrived), "{arrived}");
    assert_eq!(network.drops(1).0, (sent - arrived) as u64);
    let message = Message { kind: Kind::Hello, answer: false, id: 0, body: &[0; MAX_BODY + 1] };
    let Host { device, .. } = &network.0[0];
    let mut outbox = Outbox::new();
    assert!(!device.say(&network.key(1), &message, &mut outbox, Instant::now()), "too long");
}

#[test]
fn load_is_counted_and_acknowledged_by_both_routes_in_both_directions() {
    for route in [Route::Tunnel, Route::Bare] {
        for direction in [Direction::ToAnswerer, Direction::ToAsker] {
            let mut network = Network::new(2);
            assert!(network.say(0, 1, b""));
            let runs = network.begin(0, 1, route, direction);
            let from = usize::from(direction == Direction::ToAsker);
            assert!(network.load(from, &runs[from], 0..100));
            assert_eq!(runs[from].progress(), runs[1 - from].progress(), "{route:?} {direction:?}");
            let size = if route == Route::Tunnel { 1420 } else { 1420 + SEAL as u64 };
            assert_eq!(runs[from].progress(), 100 * size, "{route:?} {direction:?}");
            assert!(network.0.iter().all(|host| host.delivered.is_empty()));
            // Only who is to receive takes load, and only while there is a run.
            network.0[1 - from].device.agents.set_run(None);
            let before = network.drops(1 - from).0;
            network.load(from, &runs[from], 100..110);
            assert_eq!(network.drops(1 - from).0, before + 10);
        }
    }
}

#[test]
fn an_ordinary_run_goes_past_express_keys_both_ways() {
    let mut network = Network::new(2);
    for host in 0..2 {
        let peer = PeerSettings { express: Ability::Able, ..settings(&network.0[1 - host]) };
        network.0[host].device.set_peer(peer, Instant::now());
    }
    assert!(network.say(0, 1, b""));
    let begun = network.begin(0, 1, Route::Tunnel, Direction::ToAnswerer);
    assert!(network.load(0, &begun[0], 0..20), "worth an agreement");
    for tick in 1..5 {
        for host in 0..2 {
            let Host { device, outbox, .. } = &mut network.0[host];
            device.tick(outbox, Instant::now() + Duration::from_millis(250) * tick, |_| {});
            network.settle();
        }
    }
    let express = |network: &Network| {
        [0, 1].map(|host: usize| network.0[host].device.peers(Instant::now())[0].express.counts.tx_packets)
    };
    for (route, express_moves) in [(Route::Tunnel, true), (Route::Ordinary, false)] {
        let before = express(&network);
        let runs = network.begin(0, 1, route, Direction::ToAnswerer);
        assert!(network.load(0, &runs[0], 0..100));
        assert_eq!(runs[0].progress(), 100 * 1420, "{route:?}: acknowledged");
        let echo = runs[0].echo(route, Instant::now()).unwrap();
        let Host { device, outbox, .. } = &mut network.0[0];
        assert!(device.probe(&runs[0], route, &echo, outbox, Instant::now()));
        network.settle();
        assert_eq!(runs[0].latency(route).map(|latency| latency.lost), Some(0), "{route:?}");
        let after = express(&network);
        assert_eq!([after[0] > before[0], after[1] > before[1]], [express_moves; 2], "{route:?}");
    }
    // Whoever does not keep to it measures nothing.
    let [asker, answerer] = network.begin(0, 1, Route::Ordinary, Direction::ToAnswerer);
    let terms = Terms { route: Route::Tunnel, ..asker.terms };
    let astray = Run::new(terms, network.key(1), network.0[1].addr, true, Instant::now());
    let refused = network.drops(1).0;
    assert!(network.load(0, &astray, 0..10));
    assert_eq!((answerer.progress(), network.drops(1).0), (0, refused + 10));
}

#[test]
fn echoes_come_back_by_both_routes() {
    let mut network = Network::new(2);
    assert!(network.say(0, 1, b""));
    let [asker, _] = network.begin(0, 1, Route::Tunnel, Direction::Idle);
    for route in [Route::Tunnel, Route::Bare] {
        let now = Instant::now();
        let echo = asker.echo(route, now).unwrap();
        let Host { device, outbox, .. } = &mut network.0[0];
        assert!(device.probe(&asker, route, &echo, outbox, now));
        network.settle();
        assert_eq!(asker.latency(route).unwrap().lost, 0, "{route:?}");
    }
}

#[test]
fn bare_probes_count_only_from_where_the_peer_is() {
    let mut network = Network::new(2);
    assert!(network.say(0, 1, b""));
    let [asker, answerer] = network.begin(0, 1, Route::Bare, Direction::ToAnswerer);
    let mut probe = vec![message::PROBE, 0, 0, 0];
    let body = asker.load(0, true, Instant::now());
    let start = probe.len();
    probe.resize(start + HEADER + PROBE_LEN, 0);
    probe_message(&body).write(&mut probe[start..]);
    let (home, vps) = (network.0[0].addr, network.0[1].addr);
    for elsewhere in [SocketAddr::new(IpAddr::from([198, 51, 100, 1]), home.port()), SocketAddr::new(home.ip(), 1)] {
        network.arrive(elsewhere, vps, &probe);
        assert!(network.0[1].outbox.is_empty(), "nothing goes to {elsewhere}");
    }
    assert_eq!((answerer.progress(), network.drops(1).0), (0, 2));
    network.arrive(home, vps, &probe);
    assert_eq!(answerer.progress(), probe.len() as u64);
    assert_eq!(network.0[1].outbox.len(), 1);
}

#[test]
fn load_does_not_follow_a_peer_that_moves() {
    let mut network = Network::new(2);
    assert!(network.say(0, 1, b""));
    for route in [Route::Tunnel, Route::Bare] {
        let [_, answerer] = network.begin(0, 1, route, Direction::ToAsker);
        assert!(network.load(1, &answerer, 0..1));
        network.0[1].device.set_endpoint(&network.key(0), ([203, 0, 113, 9], 9).into());
        assert!(!network.load(1, &answerer, 1..2), "{route:?}");
        network.0[1].device.set_endpoint(&network.key(0), network.0[0].addr);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever a peer or a stranger sends in place of messages, nothing reaches the TUN device, and the next letter
    /// arrives.
    #[test]
    fn garbage_harms_nothing(
        bodies in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 1..20),
        version_and_kind: bool,
        right_run: bool,
    ) {
        let mut network = Network::new(2);
        prop_assert!(network.say(0, 1, b""));
        network.letters(1);
        let [asker, _] = network.begin(0, 1, Route::Bare, Direction::ToAnswerer);
        let (own, peer) = (network.agent(0), network.agent(1));
        let (home, vps) = (network.0[0].addr, network.0[1].addr);
        let model = asker.load(0, true, Instant::now());
        for mut body in bodies {
            if right_run && body.len() >= 32 {
                body[8..24].copy_from_slice(&model[8..24]);
            }
            let mut inner = packet(Kind::Probe, own, peer, &body);
            if !version_and_kind {
                let end = inner.len().min(OVERHEAD + 8);
                inner[OVERHEAD - HEADER..end].fill(body.first().copied().unwrap_or_default());
            }
            let mut bare = vec![message::PROBE, 0, 0, 0];
            bare.extend(&inner[OVERHEAD - HEADER..]);
            network.arrive(home, vps, &bare);
            network.settle();
            network.forge(0, 1, &inner);
        }
        prop_assert!(network.0.iter().all(|host| host.delivered.is_empty()));
        network.letters(1);
        std::thread::sleep(LETTER);
        prop_assert!(network.say(0, 1, b"still here"));
        prop_assert_eq!(network.letters(1).len(), 1);
    }
}
