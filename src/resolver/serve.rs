//! Queries in, answers out.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};

use super::{Listener, lock};
use crate::names::{Begun, Forward, MAX_QUERY, Transport, Verdict, read};

/// Between two tries after an error that may stay, such as an interface that is down.
const PAUSE: Duration = Duration::from_millis(100);
/// For a connection on which nothing is asked, or whose other end takes no answer (RFC 7766, section 6.2.3, leaves it to the server).
const IDLE: Duration = Duration::from_secs(10);
/// Connections at a time.
const CONNECTIONS: usize = 64;
const CONNECTIONS_OF_ONE: usize = 16;

/// Who waits for an answer from upstream, and what they asked.
pub(super) struct Waiter {
    forward: Box<Forward>,
    to: To,
}

enum To {
    Udp(Arc<UdpSocket>, SocketAddr),
    Tcp(oneshot::Sender<Vec<u8>>),
}

impl Waiter {
    /// Without an answer, that there is none.
    fn tell(self, answer: Option<&[u8]>) {
        let reply = answer.map_or_else(|| self.forward.failed(), |answer| self.forward.reply(answer));
        match self.to {
            // A full socket loses it, as any link does.
            To::Udp(socket, from) => drop(socket.try_send_to(&reply, from)),
            To::Tcp(sender) => drop(sender.send(reply)),
        }
    }
}

/// Open connections by where they come from.
#[derive(Default)]
pub(super) struct Connections(HashMap<IpAddr, usize>);

/// One of them.
struct Connection {
    listener: Arc<Listener>,
    source: IpAddr,
}

impl Connection {
    /// `None` when there are enough.
    fn begin(listener: &Arc<Listener>, source: IpAddr) -> Option<Self> {
        let mut open = lock(&listener.connections);
        let of_one = open.0.get(&source).copied().unwrap_or_default();
        if of_one >= CONNECTIONS_OF_ONE || open.0.values().sum::<usize>() >= CONNECTIONS {
            return None;
        }
        open.0.insert(source, of_one + 1);
        Some(Self { listener: Arc::clone(listener), source })
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let mut open = lock(&self.listener.connections);
        if let Some(count) = open.0.get_mut(&self.source) {
            *count -= 1;
            if *count == 0 {
                open.0.remove(&self.source);
            }
        }
    }
}

/// Answers datagrams until it is aborted.
pub(super) async fn udp(listener: Arc<Listener>, socket: Arc<UdpSocket>) {
    let mut buffer = [0; MAX_QUERY + 1];
    loop {
        listener.wait().await;
        match socket.recv_from(&mut buffer).await {
            Ok((len, from)) if listener.admits(from.ip()) => match listener.read(&buffer[..len], Transport::Udp) {
                Verdict::Ignore => {}
                Verdict::Reply(reply) => drop(socket.try_send_to(&reply, from)),
                Verdict::Forward(forward) => {
                    let to = To::Udp(Arc::clone(&socket), from);
                    listener.forward(Waiter { forward, to }, from.ip(), Transport::Udp);
                }
            },
            Ok(_) => {}
            Err(_) => sleep(PAUSE).await,
        }
    }
}

/// Answers connections until it is aborted; those that are open end by themselves.
pub(super) async fn tcp(listener: Arc<Listener>, socket: TcpListener) {
    loop {
        listener.wait().await;
        let Ok((stream, from)) = socket.accept().await else {
            sleep(PAUSE).await;
            continue;
        };
        if listener.admits(from.ip())
            && let Some(connection) = Connection::begin(&listener, from.ip())
        {
            tokio::spawn(async move {
                // However it ends, there is nobody to tell.
                let _ = converse(&connection, stream).await;
            });
        }
    }
}

/// One query after the other, each behind its length (RFC 1035, section 4.2.2).
async fn converse(connection: &Connection, mut stream: TcpStream) -> io::Result<()> {
    let listener = &connection.listener;
    loop {
        let len = usize::from(timeout(IDLE, stream.read_u16()).await??);
        if len > MAX_QUERY {
            return Ok(());
        }
        let mut query = vec![0; len];
        timeout(IDLE, stream.read_exact(&mut query)).await??;
        listener.wait().await;
        if !listener.admits(connection.source) {
            return Ok(());
        }
        let reply = match listener.read(&query, Transport::Tcp) {
            Verdict::Ignore => return Ok(()),
            Verdict::Reply(reply) => reply,
            Verdict::Forward(forward) => {
                let (sender, reply) = oneshot::channel();
                listener.forward(Waiter { forward, to: To::Tcp(sender) }, connection.source, Transport::Tcp);
                let Ok(reply) = reply.await else { return Ok(()) };
                reply
            }
        };
        let Ok(len) = u16::try_from(reply.len()) else { return Ok(()) };
        let framed = [&len.to_be_bytes(), &reply[..]].concat();
        timeout(IDLE, stream.write_all(&framed)).await??;
    }
}

impl Listener {
    /// Until another query may be read.
    async fn wait(&self) {
        loop {
            let ready = lock(&self.gate).ready(Instant::now());
            match ready {
                Ok(()) => return,
                Err(wait) => sleep(wait).await,
            }
        }
    }

    fn admits(&self, source: IpAddr) -> bool {
        let place = self.place();
        let known = place.from.is_empty() || place.from.iter().any(|net| net.contains(&source));
        known && lock(&self.gate).admit(source, Instant::now())
    }

    fn read(&self, query: &[u8], transport: Transport) -> Verdict {
        // Before there is a zone, nobody is answered.
        self.zone.load().as_ref().map_or(Verdict::Ignore, |zone| read(zone, query, transport))
    }

    /// Sees to it that whoever waits is told, now or later.
    fn forward(self: &Arc<Self>, waiter: Waiter, source: IpAddr, transport: Transport) {
        let place = self.place();
        if place.ways.is_empty() {
            let refused = waiter.forward.refused();
            match waiter.to {
                To::Udp(socket, from) => drop(socket.try_send_to(&refused, from)),
                To::Tcp(sender) => drop(sender.send(refused)),
            }
            return;
        }
        // What comes by TCP is asked by TCP, and may have an answer that does not fit a datagram.
        let key = [&[u8::from(transport == Transport::Tcp)], waiter.forward.key()].concat();
        let question = waiter.forward.as_ref().clone();
        let begun = lock(&self.flights).begin(&key, source, waiter);
        match begun {
            Err(waiter) => waiter.tell(None),
            Ok(Begun::Joined) => {}
            Ok(Begun::First) => {
                let listener = Arc::clone(self);
                tokio::spawn(async move {
                    let answer = listener.upstream.ask(&place.ways, &question, transport).await;
                    let waiting = lock(&listener.flights).end(&key);
                    for waiter in waiting {
                        waiter.tell(answer.as_deref());
                    }
                });
            }
        }
    }
}
