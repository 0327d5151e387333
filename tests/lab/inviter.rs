//! An inviter that says what a test wants it to, where a real one would say what is right.

use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use meshd::config::value;
use meshd::enroll::exchange::Redeem;
use meshd::enroll::token::Token;
use meshd::enroll::{preshared_key, throwaway_key};
use meshd::key::PrivateKey;
use meshd::tunnel::{Datagrams, Device, Inbox, Outbox, Path};

use super::netns::Namespace;

/// Answers redeems on a UDP port until it is dropped.
pub struct Inviter {
    token: Token,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Inviter {
    /// Starts it on this port of a host, which has `addr` there. Each redeem is answered with the body that `say` makes of
    /// it; none at all with `None`.
    pub fn start(
        host: &Namespace,
        key: PrivateKey,
        addr: &str,
        port: u16,
        say: impl FnMut(Redeem) -> Option<Vec<u8>> + Send + 'static,
    ) -> Self {
        let expires = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock").as_secs() + 600;
        let token = Token {
            inviter: key.public_key(),
            secret: Token::new_secret().expect("random numbers"),
            expires,
            networks: ["10.88.0.0/24", "fd88::/64"].map(|net| net.parse().expect("a network")).into(),
            endpoints: vec![value::endpoint(&format!("{addr}:{port}")).expect("an endpoint")],
        };
        let socket = host.within(|| UdpSocket::bind(("0.0.0.0", port)).expect("a free port"));
        socket.set_read_timeout(Some(Duration::from_millis(20))).expect("a timeout");
        let stop = Arc::new(AtomicBool::new(false));
        let (invitation, stopped) = (token.clone(), Arc::clone(&stop));
        let thread = std::thread::spawn(move || serve(&socket, key, &invitation, &stopped, say));
        Self { token, stop, thread: Some(thread) }
    }

    /// What it invites with.
    pub fn token(&self) -> &Token {
        &self.token
    }
}

impl Drop for Inviter {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(
    socket: &UdpSocket,
    key: PrivateKey,
    token: &Token,
    stop: &AtomicBool,
    mut say: impl FnMut(Redeem) -> Option<Vec<u8>>,
) {
    let device = Device::new(key, 1420, Instant::now());
    let guest = throwaway_key(&token.secret, &token.inviter).public_key();
    device.invite([(guest, preshared_key(&token.secret, &token.inviter))]);
    let (mut outbox, mut inbox, mut buffer) = (Outbox::new(), Inbox::new(), [0; 2048]);
    let mut context = Context::from_waker(Waker::noop());
    while !stop.load(Ordering::Relaxed) {
        let (now, wall) = (Instant::now(), SystemTime::now());
        if let Ok((len, remote)) = socket.recv_from(&mut buffer) {
            let path = Path { remote, local: None };
            let datagrams = Datagrams { bytes: &buffer[..len], segment: len, path, traffic_class: 0 };
            if device.open(datagrams, &mut inbox, &mut outbox, now, wall) {
                while device.answer(&mut outbox, now, wall, |_| {}) {}
            }
            inbox.clear();
        }
        while let Poll::Ready(letter) = device.guests.poll_letter(&mut context) {
            if let Some(body) = say(Redeem::parse(&letter.body).expect("a redeem")) {
                device.answer_guest(&letter.from, letter.id, &body, &mut outbox, now);
            }
        }
        outbox.flush(|run| {
            for datagram in run.datagrams() {
                let _ = socket.send_to(datagram, run.path.remote);
            }
        });
    }
}
