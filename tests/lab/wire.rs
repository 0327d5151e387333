//! A program as the path between home and the VPS: it delays, reorders, loses and repeats datagrams, counts what passed,
//! and keeps some of it for who wants to send it again.
//!
//! Home knows it as the endpoint of the VPS. Each address under which home is seen becomes a port of it towards the VPS, so
//! that roaming passes through. It has no segmentation offload, so each message is one datagram.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, VecDeque};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{setsockopt, sockopt};

use super::express::{is_express, receiver};
use super::{Lab, PORT, VPS, WEB};

/// Messages that are kept, of each direction.
const KEPT: usize = 256;
/// Datagrams that are read before the others have their turn.
const TURN: usize = 64;

/// Where a message goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum To {
    /// From home.
    Vps,
    /// From the VPS.
    Home,
}

impl To {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::Vps, Self::Home];
}

/// What the path does to messages; by default it passes them as they come.
#[derive(Debug, Clone, Copy, Default)]
pub struct Habits {
    /// Of a thousand, those that are lost.
    pub lost: u64,
    /// Of a thousand, those that arrive twice.
    pub repeated: u64,
    /// Of a thousand, those that arrive later than others, by up to [`Self::later`].
    pub late: u64,
    /// See there.
    pub later: Duration,
    /// Of all.
    pub delay: Duration,
}

/// What passed in one direction.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// Handshake messages and cookies.
    pub handshakes: u64,
    /// Transport data of ordinary sessions.
    pub ordinary: u64,
    /// Transport data of express sessions.
    pub express: u64,
    /// Receiver indices of express sessions.
    pub indices: BTreeSet<u32>,
    /// Messages that were lost.
    pub lost: u64,
    /// When handshake messages were.
    pub lost_handshakes: Vec<Instant>,
}

/// The path.
pub struct Wire {
    shared: Arc<Shared>,
    listener: Arc<UdpSocket>,
    thread: Option<JoinHandle<()>>,
}

impl Wire {
    /// Between the hosts of a lab that is not started yet.
    pub fn lay(lab: &Lab) -> Self {
        let place = format!("{WEB}:{PORT}");
        lab.home.replace("peers/vps.toml", &format!("{VPS}:{PORT}"), &place);
        let listener = Arc::new(lab.internet.within(|| UdpSocket::bind(&place)).expect("bind"));
        set_up(&listener);
        let shared = Arc::new(Shared::default());
        let carrier = Carrier {
            shared: Arc::clone(&shared),
            listener: Arc::clone(&listener),
            ways: Vec::new(),
            held: BinaryHeap::new(),
            number: 0,
        };
        Self { shared, listener, thread: Some(lab.internet.spawn(|| carrier.run())) }
    }

    /// From now on.
    pub fn behave(&self, habits: Habits) {
        self.shared.state().habits = habits;
    }

    /// What passed so far.
    pub fn seen(&self, to: To) -> Seen {
        self.shared.state().seen[to as usize].clone()
    }

    /// The latest express messages, those that were lost among them, the oldest first; forgets them.
    pub fn take_express(&self, to: To) -> Vec<Vec<u8>> {
        self.shared.state().kept[to as usize].drain(..).collect()
    }

    /// Sends as the other side would: from the address and port that the receiver knows.
    pub fn inject(&self, to: To, message: &[u8]) {
        let (home, socket) = self.shared.state().latest.clone().expect("home was heard");
        // Refusals are the receiver's: nothing depends on the result.
        let _ = match to {
            To::Vps => socket.send(message),
            To::Home => self.listener.send_to(message, home),
        };
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    state: Mutex<State>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic under this lock")
    }
}

#[derive(Default)]
struct State {
    habits: Habits,
    seen: [Seen; 2],
    kept: [VecDeque<Vec<u8>>; 2],
    /// Home as it was heard last, and its port towards the VPS.
    latest: Option<(SocketAddr, Arc<UdpSocket>)>,
    dice: u64,
}

impl State {
    /// Whether it happens, at so many of a thousand (splitmix64).
    fn happens(&mut self, of_a_thousand: u64) -> bool {
        self.dice = self.dice.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.dice;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % 1000 < of_a_thousand
    }

    /// Notes a message and decides when copies of it are due.
    fn fate(&mut self, to: To, message: &[u8], now: Instant) -> [Option<Instant>; 2] {
        let habits = self.habits;
        let lost = self.happens(habits.lost);
        let seen = &mut self.seen[to as usize];
        let transport = receiver(message);
        match transport {
            Some(index) if is_express(message) => {
                seen.express += 1;
                seen.indices.insert(index);
                let kept = &mut self.kept[to as usize];
                kept.push_back(message.to_vec());
                if kept.len() > KEPT {
                    kept.pop_front();
                }
            }
            Some(_) => seen.ordinary += 1,
            None => seen.handshakes += 1,
        }
        if lost {
            seen.lost += 1;
            if transport.is_none() {
                seen.lost_handshakes.push(now);
            }
            return [None; 2];
        }
        let mut due = now + habits.delay;
        if self.happens(habits.late) {
            due += habits.later;
        }
        let again = self.happens(habits.repeated).then(|| due + habits.later);
        [Some(due), again]
    }
}

/// One address of home, and the port that it is to the VPS.
struct Way {
    home: SocketAddr,
    socket: Arc<UdpSocket>,
}

struct Carrier {
    shared: Arc<Shared>,
    listener: Arc<UdpSocket>,
    ways: Vec<Way>,
    /// By when they are due; with a number, so that what is due at once keeps its order.
    held: BinaryHeap<Reverse<(Instant, u64, Held)>>,
    number: u64,
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Held {
    home: bool,
    way: usize,
    message: Vec<u8>,
}

impl Carrier {
    fn run(mut self) {
        let mut buffer = vec![0; 1 << 16];
        while !self.shared.stop.load(Ordering::Relaxed) {
            self.wait();
            let now = Instant::now();
            for _ in 0..TURN {
                let Ok((len, from)) = self.listener.recv_from(&mut buffer) else { break };
                let way = self.way(from);
                self.take(To::Vps, way, &buffer[..len], now);
            }
            for way in 0..self.ways.len() {
                for _ in 0..TURN {
                    let Ok(len) = self.ways[way].socket.recv(&mut buffer) else { break };
                    self.take(To::Home, way, &buffer[..len], now);
                }
            }
            self.release(Instant::now());
        }
    }

    /// For a datagram, or for what is due next.
    fn wait(&self) {
        let now = Instant::now();
        let most = Duration::from_millis(20);
        let pause = self.held.peek().map_or(most, |Reverse((due, ..))| due.saturating_duration_since(now).min(most));
        let sockets = std::iter::once(&self.listener).chain(self.ways.iter().map(|way| &way.socket));
        let mut sockets: Vec<_> = sockets.map(|socket| PollFd::new(socket.as_fd(), PollFlags::POLLIN)).collect();
        let timeout = PollTimeout::try_from(pause.as_micros().div_ceil(1000)).expect("a short time");
        // Interrupted is as good as timed out.
        let _ = poll(&mut sockets, timeout);
    }

    fn way(&mut self, home: SocketAddr) -> usize {
        let way = self.ways.iter().position(|way| way.home == home).unwrap_or_else(|| {
            let socket = UdpSocket::bind((WEB, 0)).expect("bind");
            socket.connect((VPS, PORT)).expect("connect");
            set_up(&socket);
            self.ways.push(Way { home, socket: Arc::new(socket) });
            self.ways.len() - 1
        });
        self.shared.state().latest = Some((home, Arc::clone(&self.ways[way].socket)));
        way
    }

    fn take(&mut self, to: To, way: usize, message: &[u8], now: Instant) {
        let fate = self.shared.state().fate(to, message, now);
        for due in fate.into_iter().flatten() {
            self.number += 1;
            let held = Held { home: to == To::Home, way, message: message.to_vec() };
            self.held.push(Reverse((due, self.number, held)));
        }
    }

    fn release(&mut self, now: Instant) {
        while self.held.peek().is_some_and(|Reverse((due, ..))| *due <= now) {
            let Some(Reverse((.., Held { home, way, message }))) = self.held.pop() else { return };
            let way = &self.ways[way];
            // A host whose agent is dead refuses, which the next call on the socket would tell.
            let _ = if home { self.listener.send_to(&message, way.home) } else { way.socket.send(&message) };
        }
    }
}

fn set_up(socket: &UdpSocket) {
    socket.set_nonblocking(true).expect("O_NONBLOCK");
    setsockopt(socket, sockopt::RcvBufForce, &(32 << 20)).expect("SO_RCVBUFFORCE");
}
