//! Express sessions on a clock that the test moves. Whether data is under one the wire says, not the device.

use super::*;
use crate::express::{Reason, Standing as Express};

/// So many bytes that an agreement is worth it after a few seconds.
const LEN: usize = 400;
const BEAT: Duration = Duration::from_millis(100);
const BOTH: [(usize, usize); 2] = [(0, 1), (1, 0)];
const WAYS: [&[(usize, usize)]; 3] = [&[(0, 1)], &[(1, 0)], &BOTH];
/// An empty message.
const EMPTY: usize = 32;

fn is_express(datagram: &[u8]) -> bool {
    datagram[0] == message::DATA && datagram[7] & 0x80 != 0
}

fn is_handshake(datagram: &[u8]) -> bool {
    matches!(datagram[0], message::HANDSHAKE_INITIATION | message::HANDSHAKE_RESPONSE)
}

impl Network {
    fn send_long(&mut self, from: usize, to: usize, body: u32) {
        let mut packet = packet(self.hosts[from].inner, self.hosts[to].inner, 0);
        packet.resize(LEN - 4, 0);
        packet.extend(body.to_be_bytes());
        packet[2..4].copy_from_slice(&(LEN as u16).to_be_bytes());
        self.inject(from, &packet);
    }

    /// Two hosts with a session. Where both call at once, packets that wait may wait for the one that is not used.
    fn awake() -> Self {
        let mut network = Self::mesh(2);
        network.send(0, 1, u32::MAX);
        network.run(SECOND);
        network
    }

    /// Numbered packets along each of `ways` for a while, from this number on; the next one comes back.
    fn stream(&mut self, ways: &[(usize, usize)], from: u32, time: Duration) -> u32 {
        let count = (time.as_millis() / BEAT.as_millis()) as u32;
        for body in from..from + count {
            for &(from, to) in ways {
                self.send_long(from, to, body);
            }
            self.run(BEAT);
        }
        from + count
    }

    /// Two hosts whose data has come to leave under express keys along `ways`, and the number of the next packet.
    fn fast(ways: &[(usize, usize)]) -> (Self, u32) {
        let mut network = Self::awake();
        let next = network.stream(ways, 0, 10 * SECOND);
        for &(from, to) in ways {
            assert_eq!(network.express(from, to), Express::On);
        }
        (network, next)
    }

    fn express(&self, host: usize, peer: usize) -> Express {
        self.peer(host, peer).express.standing
    }

    /// Numbers that did not arrive at `host`, of those below `count`; panics when one came twice.
    fn missing(&self, host: usize, count: u32) -> Vec<u32> {
        let bodies = self.bodies(host);
        let distinct: BTreeSet<_> = bodies.iter().copied().collect();
        assert_eq!(distinct.len(), bodies.len(), "host {host} was delivered a packet twice");
        (0..count).filter(|body| !distinct.contains(body)).collect()
    }

    fn none_missing(&mut self, ways: &[(usize, usize)], count: u32) {
        self.run(SECOND);
        for &(_, to) in ways {
            assert_eq!(self.missing(to, count), Vec::<u32>::new(), "host {to} of {count}");
        }
    }

    /// Of the data that `from` sent since `since`, how much was under express keys, in percent.
    fn share(&self, from: usize, since: Duration) -> usize {
        let src = self.hosts[from].addr;
        let data = |datagram: &[u8]| datagram[0] == message::DATA && datagram.len() >= LEN;
        let sent = self.wire.iter().filter(|(at, from, _, bytes)| *at >= since && *from == src && data(bytes));
        let (express, all) =
            sent.fold((0, 0), |(express, all), (.., bytes)| (express + usize::from(is_express(bytes)), all + 1));
        express * 100 / all.max(1)
    }

    fn count(&self, since: Duration, of: impl Fn(&[u8]) -> bool) -> usize {
        self.wire.iter().filter(|(at, .., datagram)| *at >= since && of(datagram)).count()
    }

    /// The host's program starts anew.
    fn begin_anew(&mut self, host: usize) {
        let key = self.hosts[host].key.clone();
        self.hosts[host].device = Device::new(key, 1420, self.now());
        let peer = self.settings(1 - host);
        self.configure(host, &[peer]);
    }

    fn set_express(&mut self, host: usize, express: Ability) {
        let peer = PeerSettings { express, ..self.settings(1 - host) };
        self.configure(host, &[peer]);
    }

    /// No message under express keys leaves later than 180 s after a handshake.
    fn keys_were_young(&self) {
        let mut handshake = None;
        for (at, _, _, datagram) in &self.wire {
            match datagram[0] {
                message::HANDSHAKE_RESPONSE => handshake = Some(*at),
                _ if is_express(datagram) => {
                    let age = *at - handshake.expect("keys without a handshake");
                    assert!(age < 180 * SECOND, "a message under keys of {age:?}");
                }
                _ => {}
            }
        }
    }
}

#[test]
fn hours_of_traffic_lose_nothing_at_any_switch() {
    for ways in WAYS {
        let mut network = Network::awake();
        network.jitter = Duration::from_millis(90);
        let count = network.stream(ways, 0, 3600 * SECOND);
        network.none_missing(ways, count);
        network.keys_were_young();
        for &(from, to) in ways {
            assert!(network.share(from, Duration::ZERO) >= 93, "{}% from {from}", network.share(from, Duration::ZERO));
            let sessions = network.peer(from, to).express.sessions;
            assert!((21..=31).contains(&sessions), "{sessions} sessions in an hour");
        }
        let responses = network.count(Duration::ZERO, |datagram| datagram[0] == message::HANDSHAKE_RESPONSE);
        assert!((21..=31).contains(&responses), "{responses} handshakes in an hour along {ways:?}");
    }
}

#[test]
fn loss_reordering_and_duplication_cost_no_more_than_they_take() {
    for ways in WAYS {
        let mut network = Network::awake();
        (network.loss_percent, network.duplicate_percent, network.jitter) = (5, 5, Duration::from_millis(300));
        let count = network.stream(ways, 0, 3600 * SECOND);
        network.run(SECOND);
        network.keys_were_young();
        for &(from, to) in ways {
            let missing = network.missing(to, count).len() as f64;
            assert!(missing < f64::from(count) * 0.055, "host {to} misses {missing} of {count}");
            assert!(network.share(from, Duration::ZERO) >= 85, "{}% from {from}", network.share(from, Duration::ZERO));
        }
        let responses = network.count(Duration::ZERO, |datagram| datagram[0] == message::HANDSHAKE_RESPONSE);
        assert!((21..=45).contains(&responses), "{responses} handshakes in an hour along {ways:?}");
    }
}

#[test]
fn a_side_that_starts_anew_is_not_sent_what_it_cannot_open() {
    // Seconds without a packet: who has something to say is heard at once, and who only listens is missed after 15 s.
    for restarted in 0..2 {
        let (silent, speaking) = ([(1 - restarted, restarted)], [(restarted, 1 - restarted)]);
        for (ways, outage) in [(&silent[..], 16.0), (&speaking, 0.5), (&BOTH, 0.5)] {
            let (mut network, mut next) = Network::fast(ways);
            network.jitter = Duration::from_millis(60);
            let (before, at) = (next, network.elapsed);
            network.begin_anew(restarted);
            next = network.stream(ways, next, 60 * SECOND);
            network.run(SECOND);
            for &(_, to) in ways {
                // What the old program got is not among what the new one has.
                let missing = network.missing(to, next);
                let lost = missing.iter().filter(|body| **body >= before).count() as f64 * BEAT.as_secs_f64();
                assert!(lost <= outage, "{restarted} starts anew, {ways:?}: {lost} s");
            }
            assert_eq!(network.share(ways[0].0, at + 30 * SECOND), 100);
        }
    }
}

#[test]
fn off_on_one_side_is_off() {
    for (host, reason) in [(0, Reason::Off), (1, Reason::Off), (0, Reason::NoHardware), (1, Reason::NoHardware)] {
        let mut network = Network::mesh(2);
        network.set_express(host, Ability::Unable(reason));
        let count = network.stream(&BOTH, 0, 400 * SECOND);
        network.none_missing(&BOTH, count);
        assert_eq!(network.count(Duration::ZERO, is_express), 0);
        assert_eq!(network.express(host, 1 - host), Express::Here(reason));
    }
}

#[test]
fn switched_off_and_on_under_traffic_nothing_is_lost() {
    for host in 0..2 {
        for ways in WAYS {
            let (mut network, mut next) = Network::fast(ways);
            network.jitter = Duration::from_millis(90);
            for _ in 0..10 {
                network.set_express(host, Ability::Unable(Reason::Off));
                next = network.stream(ways, next, SECOND);
                let at = network.elapsed;
                next = network.stream(ways, next, 7 * SECOND);
                assert_eq!(network.count(at, is_express), 0, "a second after the change");
                network.set_express(host, Ability::Able);
                next = network.stream(ways, next, 10 * SECOND);
                for &(from, to) in ways {
                    assert_eq!(network.express(from, to), Express::On, "{host} was off, {ways:?}");
                }
            }
            // Faster than anything can be agreed.
            for tenth in 0..50 {
                network.set_express(host, if tenth % 2 == 0 { Ability::Unable(Reason::Off) } else { Ability::Able });
                next = network.stream(ways, next, BEAT);
            }
            next = network.stream(ways, next, 20 * SECOND);
            network.none_missing(ways, next);
            assert!(ways.iter().all(|&(from, to)| network.express(from, to) == Express::On));
        }
    }
}

#[test]
fn an_idle_tunnel_falls_silent() {
    for ways in WAYS {
        let (mut network, _) = Network::fast(ways);
        network.run(30 * SECOND);
        let quiet = network.wire.len();
        network.run(3600 * SECOND);
        let said: Vec<_> = network.wire[quiet..].iter().map(|(at, _, _, bytes)| (*at, bytes[0], bytes.len())).collect();
        // boringtun renews a session under which anything was sent, also if that was long before. Then nothing is.
        let renewed = [(120 * SECOND, 1, 148), (120 * SECOND, 2, 92), (120 * SECOND, 4, EMPTY)];
        assert_eq!(said, renewed);
        for &(from, to) in ways {
            network.send_long(from, to, u32::MAX);
            network.run(SECOND);
            assert_eq!(network.bodies(to).last(), Some(&u32::MAX));
        }
    }
}

#[test]
fn a_few_packets_are_not_worth_an_agreement() {
    let mut network = Network::mesh(2);
    for body in 0..30 {
        network.send_long(0, 1, body);
        network.run(2 * SECOND);
    }
    assert_eq!(network.count(Duration::ZERO, is_express), 0);
    assert_eq!((network.express(0, 1), network.express(1, 0)), (Express::Idle, Express::Idle));
}

#[test]
fn a_dead_peer_is_called_after_fifteen_seconds() {
    for (from, to) in BOTH {
        let (mut network, next) = Network::fast(&[(from, to)]);
        let at = network.elapsed;
        network.swallows = |_, _| true;
        network.stream(&[(from, to)], next, 30 * SECOND);
        let called = network.wire.iter().find(|(sent, .., bytes)| *sent > at && is_handshake(bytes));
        let after = called.expect("nobody calls").0 - at;
        assert!((9 * SECOND..=16 * SECOND).contains(&after), "called after {after:?}");
        network.swallows = |_, _| false;
        network.run(6 * SECOND);
        network.send_long(from, to, u32::MAX);
        network.run(SECOND);
        assert_eq!(network.bodies(to).last(), Some(&u32::MAX));
    }
}

#[test]
fn without_handshakes_keys_end_with_the_session() {
    for ways in WAYS {
        let (mut network, next) = Network::fast(ways);
        network.swallows = |_, datagram| is_handshake(datagram);
        network.stream(ways, next, 300 * SECOND);
        network.keys_were_young();
        let last = network.wire.iter().rfind(|(.., bytes)| is_express(bytes)).unwrap().0;
        assert!(last > 178 * SECOND, "the keys serve as long as they may: {last:?}");
        network.swallows = |_, _| false;
        let next = network.stream(ways, 10_000, 20 * SECOND);
        for &(_, to) in ways {
            assert_eq!(network.bodies(to).last(), Some(&(next - 1)));
        }
    }
}

#[test]
fn what_the_network_does_not_let_through_is_not_sent() {
    let first: SocketAddr = ([192, 0, 2, 1], 51820).into();
    assert_eq!(Network::new(1).hosts[0].addr, first);
    type Swallows = fn(SocketAddr, &[u8]) -> bool;
    let ways: [(Swallows, [bool; 2]); 3] = [
        (|_, bytes| is_express(bytes), [false, false]),
        (|src, bytes| is_express(bytes) && src.ip() == IpAddr::from([192, 0, 2, 1]), [false, true]),
        (|src, bytes| is_express(bytes) && src.ip() == IpAddr::from([192, 0, 2, 2]), [true, false]),
    ];
    for (swallows, passes) in ways {
        let mut network = Network::awake();
        (network.swallows, network.jitter) = (swallows, Duration::from_millis(90));
        let count = network.stream(&BOTH, 0, 550 * SECOND);
        network.none_missing(&BOTH, count);
        for (host, passes) in passes.into_iter().enumerate() {
            assert_eq!(network.share(host, Duration::ZERO) > 90, passes, "{}%", network.share(host, Duration::ZERO));
            if !passes {
                assert_eq!(
                    (network.share(host, Duration::ZERO), network.express(host, 1 - host)),
                    (0, Express::Unanswered)
                );
            }
        }
        let responses = network.count(Duration::ZERO, |datagram| datagram[0] == message::HANDSHAKE_RESPONSE);
        assert!((4..=6).contains(&responses), "{responses} handshakes in ten minutes");
        let proofs = network.count(Duration::ZERO, |datagram| is_express(datagram) && datagram.len() == EMPTY);
        assert!(proofs <= 2 * 41 * 6, "{proofs} proofs");
    }
}

#[test]
fn what_the_network_lets_through_no_more_is_noticed_as_a_dead_peer_is() {
    type Swallows = fn(SocketAddr, &[u8]) -> bool;
    let both: Swallows = |_, bytes| is_express(bytes);
    let one: Swallows = |src, bytes| is_express(bytes) && src.ip() == IpAddr::from([192, 0, 2, 1]);
    for (swallows, ways) in [(both, WAYS[0]), (both, WAYS[1]), (both, WAYS[2]), (one, WAYS[0]), (one, WAYS[2])] {
        let (mut network, mut next) = Network::fast(ways);
        let before = next;
        network.swallows = swallows;
        next = network.stream(ways, next, 200 * SECOND);
        network.run(SECOND);
        for &(_, to) in ways {
            let missing = network.missing(to, next);
            let outage = missing.len() as f64 * BEAT.as_secs_f64();
            // An answer to what came before may be under way for five of them.
            assert!(outage <= 22.0 && missing.iter().all(|body| *body >= before), "{ways:?}: {outage} s to {to}");
        }
        // And not again at the next handshake.
        let last = ways.iter().filter_map(|&(_, to)| network.missing(to, next).last().copied()).max();
        assert!(last.is_none_or(|last| last < before + 220), "{last:?} of {before}");
    }
}

#[test]
fn the_endpoint_follows_messages_under_express_keys() {
    let (mut network, next) = Network::fast(&BOTH);
    let moved: SocketAddr = "[2001:db8::77]:40000".parse().unwrap();
    network.hosts[0].addr = moved;
    let next = network.stream(&[(0, 1)], next, BEAT);
    assert_eq!(network.peer(1, 0).settings.endpoint, Some(moved));
    let after = network.stream(&BOTH, next, SECOND);
    assert_eq!(network.share(1, network.elapsed - SECOND), 100);
    network.none_missing(&[(0, 1)], after);
    // A copy from elsewhere and a forgery move nothing.
    let target = network.hosts[1].addr;
    let captured =
        network.wire.iter().rfind(|(_, src, _, bytes)| *src == moved && is_express(bytes)).unwrap().3.clone();
    let mut forged = captured.clone();
    forged[8] = forged[8].wrapping_add(7);
    for datagram in [captured, forged] {
        network.deliver(([203, 0, 113, 66], 1).into(), target, &datagram);
    }
    assert_eq!(network.peer(1, 0).settings.endpoint, Some(moved));
}

#[test]
fn nothing_that_was_captured_or_altered_is_accepted_or_does_harm() {
    let (mut network, mut next) = Network::fast(&BOTH);
    let seen = network.wire.clone();
    let at = network.elapsed;
    for (n, (_, from, to, datagram)) in seen.iter().filter(|(.., bytes)| is_express(bytes)).enumerate() {
        let mut flipped = datagram.clone();
        let bit = n * 7 % (datagram.len() * 8);
        flipped[bit / 8] ^= 1 << (bit % 8);
        // As it was, altered, cut, and to the one who sent it.
        network.deliver(*from, *to, datagram);
        network.deliver(*from, *to, &flipped);
        network.deliver(*from, *to, &datagram[..datagram.len() - 1 - n % 16]);
        network.deliver(*to, *from, datagram);
        if n % 3 == 0 {
            next = network.stream(&BOTH, next, BEAT);
        }
    }
    network.none_missing(&BOTH, next);
    assert!((0..2).all(|host| network.share(host, at) == 100), "data goes on under the same keys");
    assert_eq!(network.count(at, is_handshake), 0);
}

#[test]
fn two_handshakes_at_once_lose_nothing() {
    for ways in WAYS {
        let (mut network, mut next) = Network::fast(ways);
        network.jitter = Duration::from_millis(90);
        for _ in 0..20 {
            for host in 0..2 {
                let (now, key, remote) =
                    (network.now(), network.hosts[1 - host].key.public_key(), network.hosts[1 - host].addr);
                let Host { device, outbox, .. } = &mut network.hosts[host];
                assert!(device.call(&key, &[remote], outbox, now));
                network.transmit(host);
            }
            next = network.stream(ways, next, 15 * SECOND);
        }
        let at = network.elapsed;
        next = network.stream(ways, next, 600 * SECOND);
        network.none_missing(ways, next);
        for &(from, _) in ways {
            assert!(network.share(from, at) >= 90, "{}%", network.share(from, at));
        }
    }
}

#[test]
fn a_removed_peer_and_a_changed_key_end_it_at_once() {
    let (mut network, next) = Network::fast(&BOTH);
    let key = network.hosts[0].key.public_key();
    assert!(network.hosts[1].device.remove_peer(&key, network.now()));
    let before = network.bodies(1).len();
    let next = network.stream(&[(0, 1)], next, 5 * SECOND);
    assert_eq!(network.bodies(1).len(), before);
    let peer = network.settings(0);
    network.configure(1, &[peer]);
    let next = network.stream(&BOTH, next, 30 * SECOND);
    assert_eq!((network.express(0, 1), network.express(1, 0)), (Express::On, Express::On));

    let new = PrivateKey::from_bytes([77; 32]);
    network.hosts[0].device.set_private_key(new.clone(), network.now());
    let at = network.elapsed;
    let before = network.bodies(1).len();
    let next = network.stream(&BOTH, next, 5 * SECOND);
    assert_eq!(network.bodies(1).len(), before);
    let from = network.hosts[0].addr;
    assert_eq!(
        network.wire.iter().filter(|(sent, src, _, bytes)| *sent > at && *src == from && is_express(bytes)).count(),
        0
    );
    network.hosts[0].key = new;
    let peer = network.settings(0);
    network.configure(1, &[peer]);
    network.stream(&BOTH, next, 30 * SECOND);
    assert_eq!((network.express(0, 1), network.express(1, 0)), (Express::On, Express::On));
}

#[test]
fn keys_of_hosts_change_under_express_and_nothing_is_lost() {
    for host in 0..2 {
        let (mut network, mut next) = Network::fast(&BOTH);
        network.jitter = Duration::from_millis(90);
        let other = 1 - host;
        let (old, new) = (network.hosts[host].key.public_key(), PrivateKey::from_bytes([77 * host as u8 + 3; 32]));
        let keys = NextKeys { public_key: Some(new.public_key()), ..NextKeys::default() };
        network.hosts[other].device.set_keys(&old, (old, None, keys), network.now());
        next = network.stream(&BOTH, next, 2 * SECOND);
        network.hosts[host].device.rotate_private_key(new.clone(), network.now());
        next = network.stream(&BOTH, next, 3 * SECOND);
        let done = (new.public_key(), None, NextKeys::default());
        assert!(network.hosts[other].device.set_keys(&old, done, network.now()));
        network.hosts[host].key = new;
        next = network.stream(&BOTH, next, 20 * SECOND);
        for (from, to) in BOTH {
            assert_eq!(network.express(from, to), Express::On, "{from} after {host} has another key");
        }
        next = network.stream(&BOTH, next, 400 * SECOND);
        network.none_missing(&BOTH, next);
        assert!((0..2).all(|host| network.share(host, network.elapsed - 300 * SECOND) >= 90));
    }
}
