//! The sockets of the name server. What is answered, and how, [`names`](crate::names) decides.
//!
//! A listener for each [`Place`] has a UDP and a TCP socket, a task for each, and bounds of its own: what containers of one bridge
//! ask for does not take from another's share. They run on the agent's own runtime, of one thread.

mod serve;
mod upstream;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwapOption;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, listen, setsockopt, socket, sockopt,
};
use tokio::task::JoinHandle;

use crate::names::{Flights, Gate, Place, Zone};
use serve::{Connections, Waiter};
use upstream::Upstream;

/// Of name servers.
const PORT: u16 = 53;
/// Connections that wait to be taken.
const BACKLOG: i32 = 64;

/// The name server.
#[derive(Default)]
pub struct Resolver {
    zone: Arc<ArcSwapOption<Zone>>,
    listeners: BTreeMap<Key, Running>,
}

/// What a socket is bound to.
type Key = (IpAddr, u32);

/// A place that is served; no more once this is dropped.
struct Running {
    listener: Arc<Listener>,
    tasks: [JoinHandle<()>; 2],
}

/// What the sockets of a place share.
struct Listener {
    zone: Arc<ArcSwapOption<Zone>>,
    place: Mutex<Arc<Place>>,
    gate: Mutex<Gate>,
    flights: Mutex<Flights<Waiter>>,
    connections: Mutex<Connections>,
    upstream: Upstream,
}

/// Where it could not be answered.
#[derive(Debug)]
pub struct Refused {
    /// The place.
    pub place: Place,
    /// Why.
    pub error: io::Error,
}

impl Resolver {
    /// Answers from this zone from now on.
    pub fn set_zone(&self, zone: Zone) {
        self.zone.store(Some(Arc::new(zone)));
    }

    /// Serves these places and no others. What is served already goes on. Those that cannot be served come back.
    ///
    /// To call inside a tokio runtime with I/O enabled.
    pub fn follow(&mut self, places: Vec<Place>) -> Vec<Refused> {
        self.listeners.retain(|key, _| places.iter().any(|place| key_of(place) == *key));
        let mut refused = Vec::new();
        for place in places {
            if let Some(running) = self.listeners.get(&key_of(&place)) {
                running.listener.set_place(place);
                continue;
            }
            match Running::start(&self.zone, place.clone()) {
                Ok(running) => {
                    tracing::debug!(address = %place.address, device = place.device, "answers who asks for names");
                    self.listeners.insert(key_of(&place), running);
                }
                Err(error) => refused.push(Refused { place, error }),
            }
        }
        refused
    }

    /// The addresses and interfaces that are served.
    pub fn places(&self) -> impl Iterator<Item = (IpAddr, String)> {
        self.listeners.values().map(|running| {
            let place = running.listener.place();
            (place.address, place.device.clone())
        })
    }
}

fn key_of(place: &Place) -> Key {
    (place.address, place.index)
}

impl Running {
    fn start(zone: &Arc<ArcSwapOption<Zone>>, place: Place) -> io::Result<Self> {
        let udp = tokio::net::UdpSocket::from_std(UdpSocket::from(open(&place, SockType::Datagram)?))?;
        let tcp = tokio::net::TcpListener::from_std(TcpListener::from(open(&place, SockType::Stream)?))?;
        let listener = Arc::new(Listener {
            zone: Arc::clone(zone),
            place: Mutex::new(Arc::new(place)),
            gate: Mutex::default(),
            flights: Mutex::default(),
            connections: Mutex::default(),
            upstream: Upstream::default(),
        });
        let tasks = [
            tokio::spawn(serve::udp(Arc::clone(&listener), Arc::new(udp))),
            tokio::spawn(serve::tcp(Arc::clone(&listener), tcp)),
        ];
        Ok(Self { listener, tasks })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl Listener {
    fn place(&self) -> Arc<Place> {
        Arc::clone(&lock(&self.place))
    }

    fn set_place(&self, place: Place) {
        *lock(&self.place) = Arc::new(place);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Bound to the interface first: sockets on one address that are bound to different interfaces do not get in each other's way
/// (`inet_rcv_saddr_equal` and `udp_lib_lport_inuse` in net/ipv4).
fn open(place: &Place, kind: SockType) -> io::Result<OwnedFd> {
    let family = if place.address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let fd = socket(family, kind, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)?;
    setsockopt(&fd, sockopt::BindToDevice, &OsString::from(&place.device))?;
    if kind == SockType::Stream {
        // Connections of the process before this one may still be closing.
        setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    }
    bind(fd.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(place.address, PORT)))?;
    if kind == SockType::Stream {
        listen(&fd, Backlog::new(BACKLOG)?)?;
    }
    Ok(fd)
}
