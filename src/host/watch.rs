//! Tells when links, routes, rules or nft tables change, so that what others take away is put back at once, and a bridge is
//! served as soon as it exists.

use std::io;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::stream::{BoxStream, StreamExt as _};
use rtnetlink::sys::Socket;
use rtnetlink::{MulticastGroup, new_multicast_connection};
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, sleep_until};

/// Between two reports: one `ip link add … up` is several notifications, our own changes among them.
const INTERVAL: Duration = Duration::from_millis(100);
const NETLINK_NETFILTER: isize = 12;
/// include/uapi/linux/netfilter/nfnetlink.h
const NFNLGRP_NFTABLES: u32 = 7;

/// A subscription to the kernel's notifications.
pub struct Watch {
    routing: BoxStream<'static, ()>,
    nft: AsyncFd<Socket>,
    /// Something has changed that was not reported yet.
    due: bool,
    not_before: Instant,
}

impl Watch {
    /// Subscribes, in this thread's network namespace.
    ///
    /// # Errors
    /// When no netlink socket can be had.
    pub fn new() -> io::Result<Self> {
        let groups = [
            MulticastGroup::Link,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
            MulticastGroup::Ipv4Rule,
            MulticastGroup::Ipv6Rule,
        ];
        let (connection, _, messages) = new_multicast_connection(&groups)?;
        tokio::spawn(connection);
        let mut nft = Socket::new(NETLINK_NETFILTER)?;
        nft.bind_auto()?;
        nft.add_membership(NFNLGRP_NFTABLES)?;
        nft.set_non_blocking(true)?;
        // SAFETY: the socket keeps one descriptor open for as long as it lives, and `AsyncFd` owns it from here on.
        let nft = unsafe { AsyncFd::register(nft)? };
        Ok(Self { routing: messages.map(drop).boxed(), nft, due: false, not_before: Instant::now() })
    }

    /// Waits for the next change: reported at once, and those that follow it closely together. May be dropped and called
    /// again without losing one.
    pub async fn changed(&mut self) {
        if !self.due {
            tokio::select! {
                Some(()) = self.routing.next() => {}
                _ = self.nft.readable() => {}
            }
            self.due = true;
        }
        sleep_until(self.not_before).await;
        while let Some(Some(())) = self.routing.next().now_or_never() {}
        self.forget_nft();
        self.due = false;
        self.not_before = Instant::now() + INTERVAL;
    }

    /// What changed in nft is seen by its generation; the messages only wake. An overrun (ENOBUFS) is one of them.
    fn forget_nft(&self) {
        let mut message = [0; 4096];
        // Bounded, so that no error that stays can hold the agent up.
        for _ in 0..1024 {
            let Some(Ok(mut ready)) = self.nft.readable().now_or_never() else { return };
            if ready.try_io(|nft| nft.get_ref().recv(&mut &mut message[..], libc::MSG_TRUNC)).is_err() {
                return;
            }
        }
    }
}
