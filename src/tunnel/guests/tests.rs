//! A device that invites, and devices that come.

use std::net::IpAddr;
use std::time::SystemTime;

use nix::time::{ClockId, clock_gettime};

use super::*;
use crate::channel::Letter;
use crate::express::{Ability, Reason};
use crate::key::{NextKeys, PrivateKey};
use crate::tunnel::{Datagrams, Inbox, Path, Settings};

/// One end of the wire.
struct Host {
    key: PrivateKey,
    addr: SocketAddr,
    device: Device,
    outbox: Outbox,
}

impl Host {
    fn new(seed: u8, addr: SocketAddr) -> Self {
        let key = PrivateKey::from_bytes([seed; 32]);
        let device = Device::new(key.clone(), 1420, Instant::now());
        Self { key, addr, device, outbox: Outbox::new() }
    }

    /// A holder of the throwaway key of this seed, who knows the inviter.
    fn guest(seed: u8, port: u16, inviter: &Self) -> Self {
        let guest = Self::new(seed, ([192, 0, 2, 9], port).into());
        let settings = PeerSettings {
            public_key: inviter.key.public_key(),
            preshared_key: Some(psk()),
            endpoint: Some(inviter.addr),
            persistent_keepalive: None,
            allowed_ips: Vec::new(),
            deliver: false,
            via: None,
            next: NextKeys::default(),
            express: Ability::Unable(Reason::Off),
        };
        let settings = Settings { peers: vec![settings], ..Settings::default() };
        guest.device.configure(&guest.key, &settings, Instant::now());
        guest
    }

    fn sent(&mut self) -> Vec<Vec<u8>> {
        let mut sent = Vec::new();
        self.outbox.flush(|run| sent.extend(run.datagrams().map(<[u8]>::to_vec)));
        sent
    }

    /// How many packets came out for the TUN device.
    fn take(&mut self, from: SocketAddr, datagrams: &[Vec<u8>]) -> usize {
        let (mut inbox, now, wall) = (Inbox::new(), Instant::now(), SystemTime::now());
        for bytes in datagrams {
            let path = Path { remote: from, local: None };
            let datagrams = Datagrams { bytes, segment: bytes.len(), path, traffic_class: 0 };
            if self.device.open(datagrams, &mut inbox, &mut self.outbox, now, wall) {
                while self.device.answer(&mut self.outbox, now, wall, |_| {}) {}
            }
        }
        inbox.packets.len()
    }

    fn ask(&mut self, to: &PublicKey, kind: Kind, answer: bool, body: &[u8]) {
        let message = Message { kind, answer, id: 7, body };
        self.device.say(to, &message, &mut self.outbox, Instant::now());
    }

    fn letter(&self) -> Option<GuestLetter> {
        match self.device.guests.poll_letter(&mut Context::from_waker(std::task::Waker::noop())) {
            Poll::Ready(letter) => Some(letter),
            Poll::Pending => None,
        }
    }

    fn answer(&self) -> Option<Letter> {
        match self.device.agents.poll_letter(&mut Context::from_waker(std::task::Waker::noop())) {
            Poll::Ready(letter) => Some(letter),
            Poll::Pending => None,
        }
    }
}

fn psk() -> PresharedKey {
    PresharedKey::from_bytes([5; 32])
}

fn inviting(keys: &[u8]) -> Host {
    let inviter = Host::new(1, ([192, 0, 2, 1], 51820).into());
    inviter.device.invite(keys.iter().map(|&seed| (PrivateKey::from_bytes([seed; 32]).public_key(), psk())));
    inviter
}

/// Carries what is sent until nothing is; the packets for the inviter's TUN device come back.
fn settle(inviter: &mut Host, guest: &mut Host) -> usize {
    let mut packets = 0;
    loop {
        let (there, back) = (guest.sent(), inviter.sent());
        if there.is_empty() && back.is_empty() {
            return packets;
        }
        packets += inviter.take(guest.addr, &there);
        assert_eq!(guest.take(inviter.addr, &back), 0);
    }
}

#[test]
fn holders_of_one_token_are_answered_each_in_its_session() {
    let mut inviter = inviting(&[2]);
    let mut guests = [Host::guest(2, 1001, &inviter), Host::guest(2, 1002, &inviter)];
    let key = inviter.key.public_key();
    let letters = guests.each_mut().map(|guest| {
        guest.ask(&key, Kind::Enroll, false, b"let me in");
        settle(&mut inviter, guest);
        inviter.letter().unwrap()
    });
    assert_ne!(letters[0].from, letters[1].from);
    // The first one's session was not ended by the second's.
    for (letter, guest) in letters.iter().zip(&mut guests) {
        assert_eq!((letter.from.key, letter.id, &letter.body[..]), (guest.key.public_key(), 7, &b"let me in"[..]));
        let body = guest.addr.to_string();
        assert!(inviter.device.answer_guest(&letter.from, 7, body.as_bytes(), &mut inviter.outbox, Instant::now()));
        settle(&mut inviter, guest);
        assert_eq!(guest.answer().unwrap().body, body.as_bytes());
    }
    // Who is no more invited is gone.
    inviter.device.invite([]);
    assert!(!inviter.device.answer_guest(&letters[0].from, 7, b"", &mut inviter.outbox, Instant::now()));
    guests[0].ask(&key, Kind::Enroll, false, b"");
    settle(&mut inviter, &mut guests[0]);
    assert_eq!(inviter.letter(), None);
}

#[test]
fn a_guest_says_nothing_else_and_a_peer_does_not_say_that() {
    let mut inviter = inviting(&[2]);
    let mut guest = Host::guest(2, 1001, &inviter);
    let key = inviter.key.public_key();
    for kind in [Kind::Hello, Kind::Bench, Kind::Probe, Kind::Doctor, Kind::News, Kind::Direct, Kind::Rotate] {
        guest.ask(&key, kind, false, b"");
    }
    guest.ask(&key, Kind::Enroll, true, b"");
    // Of the guest's own choice, as an exit's peer sends it.
    let mut packet = [0; 28];
    packet[0] = 0x45;
    packet[3] = 28;
    packet[12..20].copy_from_slice(&[10, 88, 0, 2, 10, 89, 1, 10]);
    let peer = PeerSettings {
        allowed_ips: vec!["10.89.1.0/24".parse().unwrap()],
        ..guest.device.peers(Instant::now())[0].settings.clone()
    };
    guest.device.set_peer(peer, Instant::now());
    let mut buffer = [0; 64];
    buffer[..28].copy_from_slice(&packet);
    let header = crate::packet::VnetHeader::default();
    guest.device.seal(header, &mut buffer, 28, &mut guest.outbox, Instant::now());
    assert_eq!(settle(&mut inviter, &mut guest), 0);
    assert_eq!((inviter.letter(), inviter.answer()), (None, None));

    // As a peer it may say all that, but not ask for more.
    let peer = PeerSettings {
        public_key: guest.key.public_key(),
        preshared_key: Some(psk()),
        endpoint: None,
        persistent_keepalive: None,
        allowed_ips: Vec::new(),
        deliver: false,
        via: None,
        next: NextKeys::default(),
        express: Ability::Unable(Reason::Off),
    };
    inviter.device.set_peer(peer, Instant::now());
    let mut guest = Host::guest(2, 1002, &inviter);
    guest.ask(&key, Kind::Enroll, false, b"");
    guest.ask(&key, Kind::Hello, false, b"");
    settle(&mut inviter, &mut guest);
    assert_eq!(inviter.letter(), None);
    assert_eq!(inviter.answer().unwrap().kind, Kind::Hello);
}

#[test]
fn a_copied_initiation_takes_no_second_session_and_of_too_many_the_first_goes() {
    let mut inviter = inviting(&[2]);
    let mut first = Host::guest(2, 1, &inviter);
    let key = inviter.key.public_key();
    first.ask(&key, Kind::Enroll, false, b"");
    let initiation = first.sent();
    inviter.take(first.addr, &initiation);
    assert_eq!(inviter.sent().len(), 1);
    for port in [1, 2, 3] {
        inviter.take(([192, 0, 2, 9], port).into(), &initiation);
        assert!(inviter.sent().is_empty(), "an answer to port {port}");
    }
    assert_eq!(inviter.device.guests.indices().len(), 1);
    let of_first = inviter.device.guests.indices()[0];
    let now = Instant::now();
    let taken = |inviter: &Host| {
        let table = inviter.device.table.load();
        let guests = &inviter.device.guests;
        for port in 0..GUESTS as u16 {
            let mac1 = [&[0; 116][..], &port.to_be_bytes()[..], &[0; 30]].concat();
            let remote = (IpAddr::from([198, 51, 100, 1]), port).into();
            let key = PrivateKey::from_bytes([2; 32]).public_key();
            assert_eq!(guests.admit(&table, key, (&mac1, remote), now + Duration::from_secs(1), |_| true), Some(true));
        }
    };
    taken(&inviter);
    let indices = inviter.device.guests.indices();
    assert_eq!(indices.len(), GUESTS);
    assert!(!indices.contains(&of_first));
    inviter.device.guests.tick(now + SILENCE);
    assert_eq!(inviter.device.guests.indices().len(), GUESTS, "none is silent for so long");
    inviter.device.guests.tick(now + SILENCE + Duration::from_secs(1));
    assert!(inviter.device.guests.indices().is_empty());
}

/// A flood of those that no invitation is for costs less than as many handshakes.
#[test]
fn who_is_not_invited_costs_less_than_a_handshake() {
    const COUNT: u16 = 150;
    let mut inviter = inviting(&[2]);
    let key = inviter.key.public_key();
    let initiations = |seed: u8| -> Vec<(SocketAddr, Vec<Vec<u8>>)> {
        (0..COUNT)
            .map(|port| {
                let mut guest = Host::guest(seed, port, &inviter);
                guest.ask(&key, Kind::Enroll, false, b"");
                (guest.addr, guest.sent())
            })
            .collect()
    };
    let (guests, strangers) = (initiations(2), initiations(3));
    // The gate is not what is measured: each round has a second of its own. The thread's processor time, because other
    // tests run beside this one.
    let cpu = || Duration::from(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap());
    let mut cost = |messages: &[(SocketAddr, Vec<Vec<u8>>)]| {
        std::thread::sleep(Duration::from_millis(1010));
        let start = cpu();
        for (from, message) in messages {
            inviter.take(*from, message);
        }
        (cpu().saturating_sub(start), inviter.sent().len())
    };
    let ((bad, none), (good, answers)) = (cost(&strangers), cost(&guests));
    let (copies, no_more) = cost(&guests);
    eprintln!("{COUNT} of strangers {bad:?}, of guests {good:?}, copies of those {copies:?}");
    assert_eq!((none, answers, no_more), (0, COUNT.into(), 0));
    assert!(bad < good / 2 && copies < good, "strangers {bad:?}, guests {good:?}, copies {copies:?}");
}
