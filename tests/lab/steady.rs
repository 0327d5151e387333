//! Flows that last as long as a test: numbered blocks whose every byte is checked, and the silences between them.

use std::io::{BufReader, ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};

use super::netns::Namespace;
use super::secs;

/// Bytes of a block over TCP, and at most over UDP.
const BLOCK: usize = 1300;
/// Of a datagram, with its number.
const SMALLEST: usize = 16;
/// Shorter silences are not worth a word.
const NOTICED: Duration = Duration::from_millis(150);
/// After so long without a datagram none is under way.
const OVER: Duration = Duration::from_millis(700);
/// Between looks at the end of it.
const LOOK: Duration = Duration::from_millis(50);
/// A stream that stalls so long is dead.
const DEAD: Duration = secs(30);

/// A running flow.
pub struct Steady {
    name: String,
    stop: Arc<AtomicBool>,
    sender: JoinHandle<Sent>,
    receiver: JoinHandle<Passed>,
}

/// What became of a flow.
#[derive(Debug, Clone, Default)]
pub struct Passed {
    /// Protocol and direction.
    pub name: String,
    /// Blocks sent.
    pub sent: u64,
    /// Blocks that arrived as they were.
    pub received: u64,
    /// Of these, how many had arrived before.
    pub twice: u64,
    /// Of these, how many arrived behind a later one.
    pub late: u64,
    /// When nothing arrived.
    pub silences: Vec<Silence>,
    /// The longest time for which the sender got no processor.
    pub starved: Duration,
}

/// Nothing arrived for a while.
#[derive(Debug, Clone, Copy)]
pub struct Silence {
    /// When the last block before it arrived.
    pub since: Instant,
    /// Until the next one.
    pub length: Duration,
}

#[derive(Debug, Clone, Copy, Default)]
struct Sent {
    blocks: u64,
    starved: Duration,
}

impl Sent {
    /// Sleeps until the next block is due, one with each beat since the start.
    fn wait(&mut self, start: Instant, beat: Duration) {
        let due = start + beat * u32::try_from(self.blocks).expect("less than weeks");
        let now = Instant::now();
        if let Some(pause) = due.checked_duration_since(now) {
            std::thread::sleep(pause);
            self.starved = self.starved.max(now.elapsed().saturating_sub(pause));
        }
    }
}

impl Steady {
    /// So many datagrams a second, of all sizes.
    pub fn udp(from: &Namespace, to: &Namespace, address: &str, per_second: u32) -> Self {
        let receiver = to.within(|| UdpSocket::bind((address, 0))).expect("bind");
        setsockopt(&receiver, sockopt::RcvBufForce, &(32 << 20)).expect("SO_RCVBUFFORCE");
        let target = receiver.local_addr().expect("an address");
        let sender = from.within(|| UdpSocket::bind("0.0.0.0:0")).expect("bind");
        from.within(|| sender.connect(target)).expect("connect");
        let stop = Arc::new(AtomicBool::new(false));
        Self {
            name: format!("udp to {address}"),
            sender: std::thread::spawn({
                let stop = Arc::clone(&stop);
                move || send_datagrams(&sender, per_second, &stop)
            }),
            receiver: std::thread::spawn({
                let stop = Arc::clone(&stop);
                move || receive_datagrams(&receiver, &stop)
            }),
            stop,
        }
    }

    /// One stream of so many blocks a second, or as fast as it goes.
    pub fn tcp(from: &Namespace, to: &Namespace, address: &str, per_second: Option<u32>) -> Self {
        let listener = to.within(|| TcpListener::bind((address, 0))).expect("listen");
        let target = listener.local_addr().expect("an address");
        let sender = from.within(|| TcpStream::connect_timeout(&target, secs(5))).expect("connect");
        let (receiver, _) = listener.accept().expect("accept");
        // Little, so that the end does not wait long for what is under way.
        setsockopt(&sender, sockopt::SndBuf, &(64 << 10)).expect("SO_SNDBUF");
        sender.set_nodelay(true).expect("TCP_NODELAY");
        sender.set_write_timeout(Some(DEAD)).expect("timeout");
        receiver.set_read_timeout(Some(DEAD)).expect("timeout");
        let stop = Arc::new(AtomicBool::new(false));
        Self {
            name: format!("tcp to {address}"),
            sender: std::thread::spawn({
                let stop = Arc::clone(&stop);
                move || send_stream(sender, per_second, &stop)
            }),
            receiver: std::thread::spawn(move || receive_stream(receiver)),
            stop,
        }
    }

    /// Whether it has not ended by itself, which is by a fault.
    pub fn runs(&self) -> bool {
        !self.sender.is_finished() && !self.receiver.is_finished()
    }

    /// Ends it; panics when a byte was wrong or a stream was cut.
    pub fn finish(self) -> Passed {
        self.stop.store(true, Ordering::Relaxed);
        let (sent, passed) = (joined(self.sender), joined(self.receiver));
        Passed { name: self.name, sent: sent.blocks, starved: sent.starved, ..passed }
    }
}

fn joined<T>(thread: JoinHandle<T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// The block of this number: its number, and bytes that follow from it (xorshift).
fn fill(number: u64, block: &mut [u8]) {
    let mut state = (number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    block[..8].copy_from_slice(&number.to_be_bytes());
    for word in block[8..].chunks_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        word.copy_from_slice(&state.to_be_bytes()[..word.len()]);
    }
}

/// Panics unless this is the block of that number.
fn check(number: u64, block: &[u8]) {
    let mut expected = [0; BLOCK];
    let expected = &mut expected[..block.len()];
    fill(number, expected);
    let wrong = block.iter().zip(&*expected).position(|(here, there)| here != there);
    assert_eq!(wrong, None, "the first wrong byte of block {number}, of {}", block.len());
}

/// Datagrams of all sizes, the largest often.
fn size(number: u64) -> usize {
    (SMALLEST + (number as usize * 7919) % (2 * BLOCK)).min(BLOCK)
}

fn send_datagrams(socket: &UdpSocket, per_second: u32, stop: &AtomicBool) -> Sent {
    let mut sent = Sent::default();
    let (start, beat) = (Instant::now(), Duration::from_secs(1) / per_second);
    let mut datagram = [0; BLOCK];
    while !stop.load(Ordering::Relaxed) {
        sent.wait(start, beat);
        let size = size(sent.blocks);
        fill(sent.blocks, &mut datagram[..size]);
        // While there is no agent the kernel refuses.
        let _ = socket.send(&datagram[..size]);
        sent.blocks += 1;
    }
    sent
}

fn receive_datagrams(socket: &UdpSocket, stop: &AtomicBool) -> Passed {
    let (mut passed, mut watch) = (Passed::default(), Watch::new());
    let (mut known, mut next) = (Vec::new(), 0);
    let mut datagram = [0; BLOCK + 1];
    socket.set_read_timeout(Some(LOOK)).expect("timeout");
    while !stop.load(Ordering::Relaxed) || watch.last.elapsed() < OVER {
        let Ok(len) = socket.recv(&mut datagram) else { continue };
        let number = u64::from_be_bytes(datagram[..8].try_into().expect("eight bytes"));
        assert_eq!(len, size(number), "the size of datagram {number}");
        check(number, &datagram[..len]);
        if !stop.load(Ordering::Relaxed) {
            watch.heard();
        }
        let at = number as usize;
        if known.len() <= at {
            known.resize(at + 1, false);
        }
        passed.received += 1;
        passed.twice += u64::from(std::mem::replace(&mut known[at], true));
        passed.late += u64::from(number < next);
        next = next.max(number + 1);
    }
    Passed { silences: watch.silences, ..passed }
}

fn send_stream(mut stream: TcpStream, per_second: Option<u32>, stop: &AtomicBool) -> Sent {
    let mut sent = Sent::default();
    let (start, beat) = (Instant::now(), per_second.map(|count| Duration::from_secs(1) / count));
    let mut block = [0; BLOCK];
    while !stop.load(Ordering::Relaxed) {
        if let Some(beat) = beat {
            sent.wait(start, beat);
        }
        fill(sent.blocks, &mut block);
        stream.write_all(&block).unwrap_or_else(|error| panic!("the stream broke at block {}: {error}", sent.blocks));
        sent.blocks += 1;
    }
    stream.shutdown(std::net::Shutdown::Write).expect("shutdown");
    // Its end arrives before the socket goes.
    stream.set_read_timeout(Some(DEAD)).expect("timeout");
    assert_eq!(stream.read(&mut block).expect("the other side's end"), 0);
    sent
}

fn receive_stream(stream: TcpStream) -> Passed {
    let (mut passed, mut watch) = (Passed::default(), Watch::new());
    let mut stream = BufReader::with_capacity(1 << 16, stream);
    let mut block = [0; BLOCK];
    loop {
        match stream.read_exact(&mut block) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => break,
            Err(error) => panic!("the stream broke behind block {}: {error}", passed.received),
        }
        watch.heard();
        check(passed.received, &block);
        passed.received += 1;
    }
    Passed { silences: watch.silences, ..passed }
}

struct Watch {
    last: Instant,
    silences: Vec<Silence>,
}

impl Watch {
    fn new() -> Self {
        Self { last: Instant::now(), silences: Vec::new() }
    }

    fn heard(&mut self) {
        let now = Instant::now();
        let length = now - self.last;
        if length >= NOTICED {
            self.silences.push(Silence { since: self.last, length });
        }
        self.last = now;
    }
}
