//! Who redeems a token, honestly or not: a WireGuard session over a socket in a namespace, and letters in it.

use std::net::{Ipv6Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use boringtun::noise::{Tunn, TunnResult};
use meshd::channel::{Kind, MAX_BODY, Message, OVERHEAD, address};
use meshd::enroll::exchange::{Answer, Assembly, Offer, Progress, Redeem, Refusal};
use meshd::enroll::token::Token;
use meshd::enroll::{preshared_key, throwaway_key};
use meshd::key::{PresharedKey, PrivateKey, PublicKey};

use super::netns::Namespace;
use super::{PORT, VPS};

/// Longer than any message of the exchange.
const LONGEST: usize = 2048;

/// A session of one key with one inviter.
pub struct Joiner {
    socket: UdpSocket,
    tunn: Tunn,
    own: Ipv6Addr,
    inviter: Ipv6Addr,
    next_id: u32,
}

/// What redeeming came to.
#[derive(Debug, PartialEq)]
pub enum Outcome {
    /// A whole offer.
    Offer(Box<Offer>),
    /// The inviter's operator has to confirm.
    Waiting,
    /// No.
    Refused(Refusal),
    /// There was no answer.
    Silence,
}

impl Joiner {
    /// One with a token, which calls the VPS.
    pub fn new(at: &Namespace, token: &Token) -> Self {
        let key = throwaway_key(&token.secret, &token.inviter);
        Self::with(at, &key, token.inviter, &preshared_key(&token.secret, &token.inviter))
    }

    /// One with these keys.
    pub fn with(at: &Namespace, key: &PrivateKey, inviter: PublicKey, preshared_key: &PresharedKey) -> Self {
        let socket = at.within(|| UdpSocket::bind("0.0.0.0:0")).expect("bind");
        let to: SocketAddr = format!("{VPS}:{PORT}").parse().expect("an address");
        socket.connect(to).expect("connect");
        let psk = Some(*preshared_key.expose_bytes());
        let tunn = Tunn::new(key.to_dalek(), inviter.to_dalek(), psk, None, 1, None);
        let (own, inviter) = (address::of(&key.public_key()), address::of(&inviter));
        Self { socket, tunn, own, inviter, next_id: std::process::id() << 8 }
    }

    /// An initiation, not sent.
    pub fn initiation(&mut self) -> Vec<u8> {
        let mut buffer = [0; LONGEST];
        match self.tunn.format_handshake_initiation(&mut buffer, true) {
            TunnResult::WriteToNetwork(message) => message.to_vec(),
            _ => panic!("no initiation"),
        }
    }

    /// Sends a datagram as it is.
    pub fn send_raw(&self, datagram: &[u8]) {
        // What the other side says by ICMP comes up here.
        let _ = self.socket.send(datagram);
    }

    /// Handshakes; false when nobody answers three times.
    pub fn handshake(&mut self) -> bool {
        (0..3).any(|_| {
            let message = self.initiation();
            self.send_raw(&message);
            self.answered(Duration::from_secs(2))
        })
    }

    /// Whether a handshake is answered within this time.
    pub fn answered(&mut self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        while Instant::now() < deadline {
            if self.receive(deadline).is_some_and(|received| received == Received::Handshake) {
                return true;
            }
        }
        false
    }

    /// Seals an IP packet and sends it.
    pub fn send(&mut self, packet: &[u8]) {
        let mut buffer = [0; LONGEST];
        if let TunnResult::WriteToNetwork(datagram) = self.tunn.encapsulate(packet, &mut buffer) {
            let datagram = datagram.to_vec();
            self.send_raw(&datagram);
        }
    }

    /// Sends a letter; its id comes back.
    pub fn post(&mut self, kind: Kind, answer: bool, body: &[u8]) -> u32 {
        self.next_id += 1;
        let message = Message { kind, answer, id: self.next_id, body };
        let mut packet = [0; OVERHEAD + MAX_BODY + 16];
        let len = message.write_packet(self.own, self.inviter, &mut packet);
        self.send(&packet[..len.next_multiple_of(16)]);
        self.next_id
    }

    /// Asks; `None` without an answer within `patience`.
    pub fn ask(&mut self, kind: Kind, body: &[u8], patience: Duration) -> Option<Vec<u8>> {
        let deadline = Instant::now() + patience;
        while Instant::now() < deadline {
            let id = self.post(kind, false, body);
            let again = deadline.min(Instant::now() + Duration::from_millis(500));
            while Instant::now() < again {
                match self.receive(again) {
                    Some(Received::Letter(answered, body)) if answered == id => return Some(body),
                    _ => {}
                }
            }
        }
        None
    }

    /// Redeems the token for this key, within a session.
    pub fn redeem(&mut self, key: PublicKey, patience: Duration) -> Outcome {
        let (mut assembly, mut part) = (Assembly::default(), 0);
        loop {
            let body = Redeem { key, part, version: "test".into() }.write();
            let Some(answer) = self.ask(Kind::Enroll, &body, patience) else { return Outcome::Silence };
            match Answer::parse(&answer).expect("an answer") {
                Answer::Refused(refusal) => return Outcome::Refused(refusal),
                Answer::Waiting => return Outcome::Waiting,
                Answer::Part(piece) => match assembly.take(&piece) {
                    Progress::Ask(next) => part = next,
                    Progress::Whole(offer) => return Outcome::Offer(offer),
                    Progress::Broken(why) => panic!("{why}"),
                },
            }
        }
    }

    fn receive(&mut self, until: Instant) -> Option<Received> {
        let left = until.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        self.socket.set_read_timeout(Some(left)).expect("a timeout");
        let (mut datagram, mut buffer) = ([0; LONGEST], [0; LONGEST]);
        let len = self.socket.recv(&mut datagram).ok()?;
        match self.tunn.decapsulate(None, &datagram[..len], &mut buffer) {
            // A keepalive, which ends the handshake.
            TunnResult::WriteToNetwork(message) => {
                let message = message.to_vec();
                self.send_raw(&message);
                Some(Received::Handshake)
            }
            TunnResult::WriteToTunnelV6(packet, _) => {
                let message = Message::parse_packet(packet, self.inviter, self.own).filter(|message| message.answer)?;
                Some(Received::Letter(message.id, message.body.to_vec()))
            }
            _ => None,
        }
    }
}

#[derive(PartialEq)]
enum Received {
    Handshake,
    Letter(u32, Vec<u8>),
}
