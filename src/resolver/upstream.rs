//! Queries to other name servers, each from a socket of its own: the kernel draws its port, and hands it nothing that comes from
//! anywhere but that server (RFC 5452, section 9).

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, UdpSocket};
use tokio::time::timeout;

use crate::key::random_bytes;
use crate::names::{Forward, Transport, Way};

/// For one server. Three such tries are over before glibc asks again (5 seconds).
const PATIENCE: Duration = Duration::from_millis(1500);
const TRIES: usize = 3;

/// Which server answered last.
#[derive(Default)]
pub(super) struct Upstream {
    preferred: AtomicUsize,
}

impl Upstream {
    /// The answer of the first server that has one, beginning with the one that answered last. `None` when none has.
    pub(super) async fn ask(&self, ways: &[Way], forward: &Forward, transport: Transport) -> Option<Vec<u8>> {
        let first = self.preferred.load(Ordering::Relaxed);
        let mut poor = None;
        for number in 0..TRIES.max(ways.len().min(2 * TRIES)) {
            let at = first.wrapping_add(number) % ways.len().max(1);
            let way = ways.get(at)?;
            let asked = async {
                match transport {
                    Transport::Udp => by_udp(way, forward).await,
                    Transport::Tcp => by_tcp(way, forward).await,
                }
            };
            match timeout(PATIENCE, asked).await {
                Ok(Ok(answer)) if Forward::is_worth_another_try(&answer) && number + 1 < ways.len() => {
                    poor = Some(answer);
                }
                Ok(Ok(answer)) => {
                    self.preferred.store(at, Ordering::Relaxed);
                    return Some(answer);
                }
                // No way there, or nobody there.
                Ok(Err(error)) => tracing::trace!(%error, "a name server cannot be asked"),
                Err(_) => {}
            }
        }
        poor
    }
}

async fn by_udp(way: &Way, forward: &Forward) -> io::Result<Vec<u8>> {
    let socket = UdpSocket::bind(local(way)).await?;
    socket.bind_device(way.device.as_ref().map(String::as_bytes))?;
    socket.connect(way.server).await?;
    let id = u16::from_be_bytes(random_bytes()?);
    socket.send(&forward.query(id)).await?;
    // One byte more tells what is too long.
    let mut answer = vec![0; forward.limit() + 1];
    loop {
        let len = socket.recv(&mut answer).await?;
        if forward.is_answered_by(id, &answer[..len]) {
            answer.truncate(len);
            return Ok(answer);
        }
    }
}

async fn by_tcp(way: &Way, forward: &Forward) -> io::Result<Vec<u8>> {
    let socket = if way.server.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.bind_device(way.device.as_ref().map(String::as_bytes))?;
    socket.bind(local(way))?;
    let mut stream = socket.connect(way.server).await?;
    let id = u16::from_be_bytes(random_bytes()?);
    let query = forward.query(id);
    let len = u16::try_from(query.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    stream.write_all(&[&len.to_be_bytes(), &query[..]].concat()).await?;
    let mut answer = vec![0; stream.read_u16().await?.into()];
    stream.read_exact(&mut answer).await?;
    if forward.is_answered_by(id, &answer) { Ok(answer) } else { Err(io::ErrorKind::InvalidData.into()) }
}

fn local(way: &Way) -> SocketAddr {
    let any = if way.server.is_ipv4() { IpAddr::from(Ipv4Addr::UNSPECIFIED) } else { Ipv6Addr::UNSPECIFIED.into() };
    SocketAddr::new(way.source.unwrap_or(any), 0)
}
