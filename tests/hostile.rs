//! Express messages in the hands of an attacker on the path: replayed, reflected, cut, damaged and readdressed. None is
//! accepted, and none does harm.

mod lab;

use std::net::UdpSocket;
use std::time::{Duration, Instant};

use lab::capture::{Capture, Seen};
use lab::express::{EXPRESS, ciphers, is_express, wait_for_cipher};
use lab::netns::Namespace;
use lab::steady::Steady;
use lab::traffic::MARKER;
use lab::wire::{Habits, To, Wire};
use lab::{Lab, NEXTCLOUD, PORT, PROXY, VPS, secs, wait_for};

/// The UDP port to which the marked datagrams go, on which somebody listens.
const SINK: u16 = 9;
/// Of a transport message: its header.
const HEADER: usize = 16;
/// Sent so slowly that no socket overflows.
const BEAT: Duration = Duration::from_micros(100);
/// Until the hosts are back on express after a second attack in a row (the pauses of `docs/express.md`, and what it takes).
const RECOVERY: Duration = secs(8);
const ALL_LOST: Habits = Habits { lost: 1000, repeated: 0, late: 0, later: Duration::ZERO, delay: Duration::ZERO };

/// An attacker who reads and writes on the path between two hosts on express.
struct Attack {
    lab: Lab,
    wire: Wire,
    /// On other paths to the hosts: the internet, and home's own network.
    elsewhere: [UdpSocket; 2],
    _sinks: [UdpSocket; 2],
}

impl Attack {
    fn new() -> Self {
        let lab = Lab::new();
        let wire = Wire::lay(&lab);
        lab.start();
        wait_for_cipher(&lab, EXPRESS, secs(3));
        let socket = |namespace: &Namespace, from: &str, to: &str| {
            let socket = namespace.within(|| UdpSocket::bind((from, 0))).expect("bind");
            namespace.within(|| socket.connect((to, PORT))).expect("connect");
            socket
        };
        let elsewhere = [socket(&lab.internet, "203.0.113.1", VPS), socket(&lab.isp, "192.168.1.1", "192.168.1.20")];
        let sinks = [(&lab.proxy, PROXY), (&lab.nextcloud, NEXTCLOUD)]
            .map(|(namespace, address)| namespace.within(|| UdpSocket::bind((address, SINK))).expect("bind"));
        Self { lab, wire, elsewhere, _sinks: sinks }
    }

    /// Sends a message where it came from, there from another address, and back to its sender.
    fn send(&self, to: To, message: &[u8]) {
        let other = if to == To::Vps { To::Home } else { To::Vps };
        self.wire.inject(to, message);
        // The receiver may be refused; nothing depends on it.
        let _ = self.elsewhere[to as usize].send(message);
        self.wire.inject(other, message);
        std::thread::sleep(BEAT);
    }

    /// The express messages that carry a marked datagram of each of these sizes. The attacker keeps them from the receiver,
    /// so that each would be the first of its kind.
    fn caught(&self, to: To, sizes: &[usize]) -> Vec<Vec<u8>> {
        self.wire.behave(ALL_LOST);
        self.wire.take_express(to);
        self.speak(to, sizes);
        let mut caught = Vec::new();
        wait_for("the messages are caught", secs(2), || {
            caught.extend(self.wire.take_express(to).into_iter().filter(|message| message.len() > MARKER.len() + 60));
            (caught.len() >= sizes.len()).then_some(())
        });
        self.wire.behave(Habits::default());
        assert!(caught.iter().all(|message| is_express(message)));
        caught
    }

    /// Sends marked datagrams.
    fn speak(&self, to: To, sizes: &[usize]) {
        let (from, address) = if to == To::Vps { (&self.lab.nextcloud, PROXY) } else { (&self.lab.proxy, NEXTCLOUD) };
        let socket = from.within(|| UdpSocket::bind("0.0.0.0:0")).expect("bind");
        for size in sizes {
            let mut payload = MARKER.to_vec();
            payload.resize(*size, 0x55);
            socket.send_to(&payload, (address, SINK)).expect("send");
        }
    }

    /// Everything that leaves or enters the containers.
    fn captures(&self) -> [Capture; 2] {
        [&self.lab.proxy, &self.lab.nextcloud].map(|container| Capture::start(container, "eth0", MARKER))
    }

    /// Packets from a peer that were no messages of it, at both hosts.
    fn refused(&self) -> [u64; 2] {
        [&self.lab.vps, &self.lab.home].map(|host| host.status()["drops"]["refused"].as_u64().expect("a count"))
    }

    /// Each of so many that were sent ([`Self::send`]) is refused, twice where it was for and once by its sender.
    fn wait_for_refusals(&self, to: To, before: [u64; 2], sent: u64) {
        let mut expected = [sent, sent];
        expected[to as usize] *= 2;
        wait_for(format!("to {to:?}: {expected:?} more than {before:?} are refused"), secs(5), || {
            let after = self.refused();
            (0..2).all(|host| after[host] >= before[host] + expected[host]).then_some(())
        });
    }

    /// Panics when a message became a packet, an endpoint moved, or the hosts do not find back to express.
    fn was_harmless(&self, what: &str, begun: Instant) {
        assert!(self.lab.nextcloud.ping(PROXY) && self.lab.proxy.ping(NEXTCLOUD), "{what}: traffic stopped");
        let left = ciphers(&self.lab);
        wait_for_cipher(&self.lab, EXPRESS, RECOVERY);
        println!("{what}: sent in {:?}, left the hosts at {left:?}, refused {:?}", begun.elapsed(), self.refused());
        let endpoint = self.lab.vps.peer("home")["endpoint"].as_str().unwrap_or_default().to_owned();
        assert!(endpoint.starts_with(lab::WEB), "{what}: home moved to {endpoint}");
        assert_eq!(self.lab.home.peer("vps")["endpoint"], format!("{}:{PORT}", lab::WEB), "{what}");
    }
}

fn silent(seen: &Seen) -> bool {
    seen.marked == 0 && seen.leaks.is_empty()
}

/// Sends what `forge` makes of caught messages of these sizes, while the containers are silent.
fn none_is_accepted(sizes: &[usize], forge: impl Fn(&[u8]) -> Vec<Vec<u8>>) {
    let attack = Attack::new();
    for to in To::BOTH {
        let what = format!("to {to:?}");
        let caught = attack.caught(to, sizes);
        let captures = attack.captures();
        let (begun, before) = (Instant::now(), attack.refused());
        let mut sent = 0;
        for forged in caught.iter().flat_map(|message| forge(message)) {
            attack.send(to, &forged);
            sent += 1;
        }
        attack.wait_for_refusals(to, before, sent);
        for capture in captures {
            let seen = capture.finish();
            assert!(silent(&seen), "{what}: {seen:?}");
        }
        attack.was_harmless(&what, begun);
    }
}

#[test]
fn what_is_cut_or_lengthened() {
    none_is_accepted(&[40, 1300], |message| {
        // An empty datagram is not even counted.
        let cut = (1..message.len()).map(|len| message[..len].to_vec());
        let longer = [1, 15, 16, 32].map(|more| [message, &vec![0; more]].concat());
        cut.chain(longer).collect()
    });
}

#[test]
fn a_bit_flipped_anywhere() {
    none_is_accepted(&[40], |message| {
        let bits = (0..message.len() * 8).map(|bit| {
            let mut forged = message.to_vec();
            forged[bit / 8] ^= 1 << (bit % 8);
            forged
        });
        bits.collect()
    });
}

#[test]
fn a_byte_changed_anywhere() {
    none_is_accepted(&[1300], |message| {
        let bytes = (0..message.len()).map(|at| {
            let mut forged = message.to_vec();
            forged[at] = !forged[at];
            forged
        });
        bytes.collect()
    });
}

#[test]
fn another_index_or_counter() {
    none_is_accepted(&[40, 700], |message| {
        let index = u32::from_le_bytes(message[4..8].try_into().expect("four bytes"));
        let counter = u64::from_le_bytes(message[8..16].try_into().expect("eight bytes"));
        let indices = (1..=300).flat_map(|n| [index.wrapping_add(n), index.wrapping_sub(n)]);
        let far = (0..32).map(|bit| index ^ (1 << bit)).chain([0, 0x8000_0000, u32::MAX]);
        let readdressed = indices.chain(far).map(|index| [&[4, 0, 0, 0], &index.to_le_bytes(), &message[8..]].concat());
        let counters = [counter + 1, counter + 8191, counter + 8192, 1 << 39, 1 << 60, u64::MAX - 1, u64::MAX];
        let later = counters.map(|counter| [&message[..8], &counter.to_le_bytes(), &message[HEADER..]].concat());
        readdressed.chain(later).collect()
    });
}

/// The control: what was caught would have been accepted, and is, though it comes late and from elsewhere. Once.
#[test]
fn a_caught_message_is_accepted_once() {
    let attack = Attack::new();
    for to in To::BOTH {
        let caught = attack.caught(to, &[40, 700, 1300]);
        let captures = attack.captures();
        let before = attack.refused();
        for message in &caught {
            // Few enough that no side doubts the session.
            for bit in [0, 40, 70, 200] {
                let mut forged = message.clone();
                forged[bit / 8] ^= 1 << (bit % 8);
                attack.wire.inject(to, &forged);
            }
            for _ in 0..20 {
                attack.wire.inject(to, message);
            }
        }
        let container = to as usize;
        wait_for("they arrive", secs(2), || (captures[container].seen().marked >= 3).then_some(()));
        wait_for("the copies are refused", secs(2), || {
            (attack.refused()[container] >= before[container] + 3 * (4 + 19)).then_some(())
        });
        for (number, capture) in captures.into_iter().enumerate() {
            let marked = if number == container { caught.len() as u64 } else { 0 };
            assert_eq!(capture.finish().marked, marked, "to {to:?}");
        }
        assert_eq!(ciphers(&attack.lab), [EXPRESS; 2], "no reason to leave it");
    }
}

#[test]
fn what_passed_is_not_accepted_again() {
    let attack = Attack::new();
    for to in To::BOTH {
        attack.wire.take_express(to);
        attack.speak(to, &[40; 100]);
        attack.speak(to, &[1300; 100]);
        let mut passed = Vec::new();
        wait_for("they pass", secs(2), || {
            passed.extend(attack.wire.take_express(to));
            (passed.len() >= 200).then_some(())
        });
        std::thread::sleep(Duration::from_millis(200));
        let (captures, begun, before) = (attack.captures(), Instant::now(), attack.refused());
        for _ in 0..3 {
            for message in &passed {
                attack.send(to, message);
            }
        }
        attack.wait_for_refusals(to, before, 3 * passed.len() as u64);
        for capture in captures {
            let seen = capture.finish();
            assert!(silent(&seen), "to {to:?}: {seen:?}");
        }
        assert_eq!(ciphers(&attack.lab), [EXPRESS; 2], "no reason to leave it");
        attack.was_harmless(&format!("to {to:?}"), begun);
    }
}

#[test]
fn traffic_goes_on_beside_a_storm_of_forgeries() {
    let attack = Attack::new();
    let (here, there) = (&attack.lab.nextcloud, &attack.lab.proxy);
    let flows = [
        Steady::tcp(here, there, PROXY, None),
        Steady::tcp(there, here, NEXTCLOUD, None),
        Steady::udp(here, there, PROXY, 500),
        Steady::udp(there, here, NEXTCLOUD, 500),
    ];
    let begun = Instant::now();
    let (mut sent, mut number) = (0u64, 0usize);
    while begun.elapsed() < secs(8) {
        let passed = To::BOTH.map(|to| (to, attack.wire.take_express(to)));
        // What is sent again comes behind the original: the first to come decides where the peer is.
        std::thread::sleep(Duration::from_millis(30));
        for (to, messages) in passed {
            for message in messages {
                number = number.wrapping_mul(31).wrapping_add(7);
                let mut forged = message.clone();
                match number % 5 {
                    0 => {}
                    1 => forged.truncate(number % message.len()),
                    2 => forged[4 + number % 3] ^= 0x10,
                    3 => forged[8] = forged[8].wrapping_add(100),
                    _ => forged[number % message.len()] ^= 1 << (number % 8),
                }
                attack.send(to, &forged);
                sent += 1;
            }
        }
    }
    println!("{sent} forgeries, cipher during them {:?}", ciphers(&attack.lab));
    assert!(sent > 1000, "{sent}");
    for passed in flows.map(Steady::finish) {
        println!("{passed:?}");
        assert_eq!(passed.twice, 0, "{}", passed.name);
        let lost = passed.sent - passed.received;
        assert!(lost * 200 <= passed.sent, "{}: {lost} of {} lost", passed.name, passed.sent);
        let longest = passed.silences.iter().map(|silence| silence.length).max().unwrap_or_default();
        assert!(longest < secs(1) + passed.starved, "{}: silent for {longest:?}", passed.name);
    }
    attack.was_harmless("after the storm", begun);
}
