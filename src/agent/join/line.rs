//! One address of the inviter: a connected socket and a WireGuard device with one peer.

use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::pin;
use std::time::{Duration, Instant, SystemTime};

use futures_util::future::{Either, select, select_all};
use tokio::net::UdpSocket;
use tokio::time::{sleep, timeout};

use crate::channel::{Kind, Letter, Message};
use crate::config::DEFAULT_MTU;
use crate::express::{Ability, Reason};
use crate::key::{NextKeys, PresharedKey, PrivateKey, PublicKey, random_bytes};
use crate::tunnel::{Datagrams, Device, Inbox, Outbox, Path, PeerSettings, Settings};

/// Between two looks at the device's timers.
const TICK: Duration = Duration::from_millis(250);
/// Between the tries of one question.
const TRIES: [Duration; 7] = [
    Duration::from_millis(250),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(1),
    Duration::from_secs(1),
    Duration::from_secs(1),
    Duration::from_secs(1),
];
/// An agent that is being restarted is there again after this many tries.
const CLOSED: usize = 2;
/// Longer than any packet that carries a message.
const LONGEST: usize = 2048;

/// Who is called.
pub(super) struct Peer {
    pub(super) key: PublicKey,
    pub(super) preshared_key: PresharedKey,
}

/// A way to the inviter.
pub(super) struct Line {
    /// The number of its endpoint in the token.
    pub(super) at: usize,
    pub(super) remote: SocketAddr,
    /// How often its host has said that nothing listens there.
    pub(super) closed: usize,
    peer: PublicKey,
    socket: UdpSocket,
    device: Device,
    next_id: u32,
}

/// What is used for one datagram after the other.
pub(super) struct Buffers {
    outbox: Outbox,
    inbox: Inbox,
    datagram: Vec<u8>,
}

impl Buffers {
    pub(super) fn new() -> Self {
        Self { outbox: Outbox::new(), inbox: Inbox::new(), datagram: vec![0; LONGEST] }
    }
}

impl Line {
    /// A line on which nothing was sent yet.
    pub(super) async fn open(at: usize, remote: SocketAddr, key: &PrivateKey, peer: &Peer) -> io::Result<Self> {
        let any = if remote.is_ipv4() { IpAddr::from(Ipv4Addr::UNSPECIFIED) } else { Ipv6Addr::UNSPECIFIED.into() };
        let socket = UdpSocket::bind((any, 0)).await?;
        // So that the kernel hands on what it is told by ICMP, and nothing of strangers.
        socket.connect(remote).await?;
        let device = Device::new(key.clone(), DEFAULT_MTU, Instant::now());
        let settings = PeerSettings {
            public_key: peer.key,
            preshared_key: Some(peer.preshared_key.clone()),
            endpoint: Some(remote),
            persistent_keepalive: None,
            allowed_ips: Vec::new(),
            deliver: false,
            via: None,
            next: NextKeys::default(),
            express: Ability::Unable(Reason::Off),
        };
        let settings = Settings { peers: vec![settings], ..Settings::default() };
        device.configure(key, &settings, Instant::now());
        let next_id = u32::from_be_bytes(random_bytes()?);
        Ok(Self { at, remote, closed: 0, peer: peer.key, socket, device, next_id })
    }

    /// Begins a handshake.
    pub(super) async fn call(&mut self, buffers: &mut Buffers) {
        let message = Message { kind: Kind::Enroll, answer: false, id: self.next_id, body: &[] };
        self.device.knock(&self.peer, &message, &mut buffers.outbox, Instant::now());
        self.flush(buffers).await;
    }

    /// Whether the handshake is over.
    fn answered(&self) -> bool {
        self.device.peers(Instant::now()).iter().any(|peer| peer.latest_handshake.is_some())
    }

    /// Asks until there is an answer; `None` when there is none after several tries.
    pub(super) async fn ask(&mut self, body: Vec<u8>, buffers: &mut Buffers) -> Option<Vec<u8>> {
        self.ask_for(Kind::Enroll, body, buffers).await
    }

    /// Until the inviter's agent has answered under this key.
    pub(super) async fn greet(&mut self, buffers: &mut Buffers) {
        while self.ask_for(Kind::Hello, Vec::new(), buffers).await.is_none() {}
    }

    async fn ask_for(&mut self, kind: Kind, body: Vec<u8>, buffers: &mut Buffers) -> Option<Vec<u8>> {
        let id = self.next_id;
        self.next_id = id.wrapping_add(1);
        for wait in TRIES {
            let message = Message { kind, answer: false, id, body: &body };
            self.device.say(&self.peer, &message, &mut buffers.outbox, Instant::now());
            self.flush(buffers).await;
            let ours = |letter: &Letter| letter.answer && letter.id == id && letter.kind == kind;
            if let Ok(letter) = timeout(wait, self.letter(ours, buffers)).await {
                return Some(letter.body);
            }
        }
        None
    }

    /// The next letter of this sort; others are dropped.
    async fn letter(&mut self, wanted: impl Fn(&Letter) -> bool, buffers: &mut Buffers) -> Letter {
        loop {
            while let Some(letter) = self.take_letter().await {
                if wanted(&letter) {
                    return letter;
                }
            }
            self.turn(buffers).await;
        }
    }

    async fn take_letter(&self) -> Option<Letter> {
        poll_fn(|context| {
            std::task::Poll::Ready(match self.device.agents.poll_letter(context) {
                std::task::Poll::Ready(letter) => Some(letter),
                std::task::Poll::Pending => None,
            })
        })
        .await
    }

    /// Keeps the session alive for a while.
    pub(super) async fn idle(&mut self, time: Duration, buffers: &mut Buffers) {
        let _ = timeout(time, async {
            loop {
                self.turn(buffers).await;
            }
        })
        .await;
    }

    /// Waits for a datagram or the next look at the timers, and does what follows from it.
    async fn turn(&mut self, buffers: &mut Buffers) {
        let arrived = timeout(TICK, self.socket.readable()).await.is_ok();
        if arrived {
            self.receive(buffers);
        }
        self.tick(buffers).await;
    }

    /// Notes what ICMP has told the kernel.
    fn failed(&mut self, error: &io::Error) {
        self.closed += usize::from(error.kind() == io::ErrorKind::ConnectionRefused);
    }

    /// Runs the timers. An error that came since is not told by what waits for datagrams.
    async fn tick(&mut self, buffers: &mut Buffers) {
        if let Ok(Some(error)) = self.socket.take_error() {
            self.failed(&error);
        }
        self.device.tick(&mut buffers.outbox, Instant::now(), Outbox::clear);
        self.flush(buffers).await;
    }

    /// Takes all datagrams that are there.
    fn receive(&mut self, buffers: &mut Buffers) {
        let Buffers { outbox, inbox, datagram } = buffers;
        loop {
            let len = match self.socket.try_recv(datagram) {
                Ok(len) => len,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => return self.failed(&error),
            };
            let path = Path { remote: self.remote, local: None };
            let datagrams = Datagrams { bytes: &datagram[..len], segment: len, path, traffic_class: 0 };
            let (now, wall) = (Instant::now(), SystemTime::now());
            if self.device.open(datagrams, inbox, outbox, now, wall) {
                while self.device.answer(outbox, now, wall, |_| {}) {}
            }
            // There is no interface to write them to.
            inbox.clear();
        }
    }

    /// Sends what is in the outbox. What cannot be sent is lost, as on any link.
    async fn flush(&mut self, buffers: &mut Buffers) {
        let mut datagrams = Vec::new();
        buffers.outbox.flush(|run| datagrams.extend(run.datagrams().map(<[u8]>::to_vec)));
        for datagram in datagrams {
            if let Err(error) = self.socket.send(&datagram).await {
                self.failed(&error);
            }
        }
    }
}

/// The number of the first line whose handshake is over; `None` when nothing listens anywhere, and did not when it was
/// tried again either.
pub(super) async fn first(lines: &mut [Line], buffers: &mut Buffers) -> Option<usize> {
    loop {
        let readable = select_all(lines.iter().map(|line| Box::pin(line.socket.readable())));
        let arrived = match select(pin!(readable), pin!(sleep(TICK))).await {
            Either::Left(((_, at, _), _)) => Some(at),
            Either::Right(_) => None,
        };
        for (at, line) in lines.iter_mut().enumerate() {
            if arrived == Some(at) {
                line.receive(buffers);
            }
            line.tick(buffers).await;
            if line.answered() {
                return Some(at);
            }
        }
        if lines.iter().all(|line| line.closed >= CLOSED) {
            return None;
        }
    }
}
