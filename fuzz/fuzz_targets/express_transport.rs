//! Datagrams for a device under express keys: any at all, and messages of the peer's that are cut, joined, altered, repeated
//! and sent back. What was sealed is accepted once, and nothing else.
#![no_main]

use std::cell::RefCell;
use std::collections::HashSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime};

use libfuzzer_sys::fuzz_target;
use meshd::express::{Ability, Standing};
use meshd::key::{NextKeys, PrivateKey};
use meshd::packet::virtio::VnetHeader;
use meshd::tunnel::{Datagrams, Device, Inbox, Outbox, Path, PeerSettings, Settings};

struct Pair {
    devices: [Device; 2],
    addrs: [SocketAddr; 2],
    outboxes: [Outbox; 2],
    inbox: Inbox,
    now: Instant,
    next: u64,
}

impl Pair {
    /// Two whose data goes under express keys. Their clock then stands still, and so they stay.
    fn new() -> Self {
        let (keys, now) = ([1, 2].map(|seed| PrivateKey::from_bytes([seed; 32])), Instant::now());
        let addrs = [1, 2].map(|n| SocketAddr::from(([192, 0, 2, n], 51820)));
        let devices = [0, 1].map(|at: usize| {
            let device = Device::new(keys[at].clone(), 1420, now);
            let peer = PeerSettings {
                public_key: keys[1 - at].public_key(),
                preshared_key: None,
                endpoint: Some(addrs[1 - at]),
                persistent_keepalive: None,
                allowed_ips: vec![format!("10.88.0.{}/32", 2 - at).parse().unwrap()],
                deliver: false,
                via: None,
                next: NextKeys::default(),
                express: Ability::Able,
            };
            device.configure(&keys[at], &Settings { peers: vec![peer], ..Settings::default() }, now);
            device
        });
        let outboxes = [Outbox::new(), Outbox::new()];
        let mut pair = Self { devices, addrs, outboxes, inbox: Inbox::new(), now, next: 0 };
        for _ in 0..100 {
            for at in 0..2 {
                (0..20).for_each(|_| drop(pair.seal(at, 1000)));
                pair.carry();
            }
            pair.now += Duration::from_millis(250);
            for at in 0..2 {
                pair.devices[at].tick(&mut pair.outboxes[at], pair.now, |_| {});
                pair.carry();
            }
            if (0..2).all(|at| pair.devices[at].peers(pair.now)[0].express.standing == Standing::On) {
                return pair;
            }
        }
        panic!("no agreement");
    }

    /// Puts a packet of its own kind into the outbox, and returns it.
    fn seal(&mut self, from: usize, len: usize) -> Vec<u8> {
        let len = len.clamp(28, 1420);
        let mut packet = vec![0x45, 0, (len >> 8) as u8, len as u8, 0, 0, 0x40, 0, 64, 17, 0, 0];
        packet.extend([10, 88, 0, from as u8 + 1, 10, 88, 0, 2 - from as u8]);
        self.next += 1;
        packet.extend(self.next.to_be_bytes());
        packet.resize(len, 0x5a);
        let mut buffer = packet.clone();
        buffer.resize(len + 16, 0);
        self.devices[from].seal(VnetHeader::default(), &mut buffer, len, &mut self.outboxes[from], self.now);
        packet
    }

    fn take_out(&mut self, from: usize) -> Vec<Vec<u8>> {
        let mut datagrams = Vec::new();
        self.outboxes[from].flush(|run| datagrams.extend(run.datagrams().map(<[u8]>::to_vec)));
        datagrams
    }

    /// What comes out of one read of these datagrams, back to back.
    fn open(&mut self, at: usize, bytes: &[u8], segment: usize) -> Vec<Vec<u8>> {
        let path = Path { remote: self.addrs[1 - at], local: None };
        let datagrams = Datagrams { bytes, segment, path, traffic_class: 0 };
        self.inbox.clear();
        self.devices[at].open(datagrams, &mut self.inbox, &mut self.outboxes[at], self.now, SystemTime::UNIX_EPOCH);
        while self.devices[at].answer(&mut self.outboxes[at], self.now, SystemTime::UNIX_EPOCH, |_| {}) {}
        self.inbox.packets.iter().map(|range| self.inbox.arena[range.clone()].to_vec()).collect()
    }

    fn carry(&mut self) {
        while let Some(from) = (0..2).find(|&from| !self.outboxes[from].is_empty()) {
            for datagram in self.take_out(from) {
                self.open(1 - from, &datagram, datagram.len());
            }
        }
    }
}

thread_local! {
    static PAIR: RefCell<Pair> = RefCell::new(Pair::new());
}

fn fuzz(pair: &mut Pair, bytes: &[u8]) {
    let [count, size, rest @ ..] = bytes else { return };
    let mut unopened = HashSet::new();
    for n in 0..usize::from(count % 8) + 1 {
        unopened.insert(pair.seal(0, usize::from(*size) * (n + 1)));
    }
    let messages = pair.take_out(0);
    assert!(messages.len() == unopened.len() && messages.iter().all(|message| message[7] & 0x80 != 0), "not under express keys");

    let mut rest = rest;
    let accept = |pair: &mut Pair, at: usize, bytes: &[u8], segment: usize, unopened: &mut HashSet<Vec<u8>>| {
        for packet in pair.open(at, bytes, segment) {
            assert!(at == 1 && unopened.remove(&packet), "accepted what nobody sealed, or a second time");
        }
        // Neither an empty message nor a word of the agents' was among them.
        assert!(pair.outboxes[at].is_empty(), "answered");
    };
    while let [op, which, low, high, more @ ..] = rest {
        rest = more;
        let mut message = messages[usize::from(*which) % messages.len()].clone();
        let at = usize::from(u16::from_le_bytes([*low, *high])) % message.len();
        match op % 8 {
            // As it is, or to who sent it.
            0 => accept(pair, 1, &message, message.len(), &mut unopened),
            1 => accept(pair, 0, &message, message.len(), &mut unopened),
            2 => {
                message[at] ^= (op >> 3).max(1);
                let before = unopened.len();
                accept(pair, 1, &message, message.len(), &mut unopened);
                assert_eq!(unopened.len(), before, "an altered message opened");
            }
            3 => accept(pair, 1, &message[..at], at.max(1), &mut unopened),
            4 => {
                let (tail, more) = rest.split_at(rest.len().min(usize::from(*low)));
                rest = more;
                message.extend(tail);
                accept(pair, 1, &message, message.len(), &mut unopened);
            }
            // The header of one before the rest of another.
            5 => {
                let other = &messages[usize::from(*high) % messages.len()];
                message = [&message[..16.min(at)], &other[16.min(at)..]].concat();
                accept(pair, 1, &message, message.len(), &mut unopened);
            }
            // Many in one read, not cut where they should be.
            6 => accept(pair, 1, &messages.concat(), at + 1, &mut unopened),
            _ => {
                let (any, more) = rest.split_at(rest.len().min(usize::from(*low)));
                rest = more;
                let header = &message[..usize::from(*high % 17)];
                message = [header, any].concat();
                accept(pair, 1, &message, message.len().max(1), &mut unopened);
            }
        }
    }
    // None of it kept the others from being opened.
    for message in &messages {
        accept(pair, 1, message, message.len(), &mut unopened);
        accept(pair, 1, message, message.len(), &mut unopened);
    }
    assert!(unopened.is_empty(), "lost");
}

fuzz_target!(|bytes: &[u8]| PAIR.with_borrow_mut(|pair| fuzz(pair, bytes)));
