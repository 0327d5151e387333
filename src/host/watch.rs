//! Tells when links, addresses, routes, rules, forwarding or nft tables change, so that what others take away is put back at
//! once, and a bridge is served as soon as it exists.

use std::io;
use std::time::Duration;

use futures_util::FutureExt as _;
use rtnetlink::sys::Socket;
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, sleep_until};

use super::news::News;

const NETLINK_ROUTE: isize = 0;
const NETLINK_NETFILTER: isize = 12;
/// `RTNLGRP_LINK`, `_IPV4_IFADDR`, `_IPV4_ROUTE`, `_IPV4_RULE`, `_IPV6_IFADDR`, `_IPV6_ROUTE`, `_IPV6_RULE`, `_IPV4_NETCONF` and
/// `_IPV6_NETCONF` (include/uapi/linux/rtnetlink.h). The last two tell of `forwarding`, `rp_filter` and `force_forwarding`.
const ROUTE_GROUPS: [u32; 9] = [1, 5, 7, 8, 9, 11, 19, 24, 25];
/// `NFNLGRP_NFTABLES` (include/uapi/linux/netfilter/nfnetlink.h).
const NFT_GROUPS: [u32; 1] = [7];
/// Until the last look after a change.
const AFTERMATH: Duration = Duration::from_millis(50);
/// Messages taken in one go: no error that stays, and no flood, may hold the agent up.
const MESSAGES: usize = 1024;

/// A subscription to the kernel's notifications.
pub struct Watch {
    route: AsyncFd<Socket>,
    nft: AsyncFd<Socket>,
    /// What was read and not reported yet; `None` when there is nothing to report.
    news: Option<News>,
    /// A report is to be followed by another look.
    again: bool,
    pace: Pace,
}

impl Watch {
    /// Subscribes, in this thread's network namespace.
    ///
    /// # Errors
    /// When no netlink socket can be had.
    pub fn new() -> io::Result<Self> {
        let (route, nft) = (subscribe(NETLINK_ROUTE, &ROUTE_GROUPS)?, subscribe(NETLINK_NETFILTER, &NFT_GROUPS)?);
        Ok(Self { route, nft, news: None, again: false, pace: Pace::new(Instant::now()) })
    }

    /// Waits for the next change: the first is reported at once, and those that follow closely are reported together. May be
    /// dropped and called again without losing one. Some time after the last change it is reported once more, without news:
    /// whoever looks at once may come before what a notification announces (`force_forwarding` was seen to be so).
    pub async fn changed(&mut self) -> News {
        if self.news.is_none() {
            tokio::select! {
                _ = self.route.readable() => self.again = true,
                _ = self.nft.readable() => self.again = true,
                () = sleep_until(self.pace.not_before + AFTERMATH), if self.again => self.again = false,
            }
            // At once, for who did it may be gone in a moment, and its name with it.
            self.read();
        }
        sleep_until(self.pace.not_before).await;
        self.read();
        self.pace.reported(Instant::now());
        self.news.take().unwrap_or_default()
    }

    /// Takes what is queued. What was lost to a full buffer (ENOBUFS) is a change, too.
    fn read(&mut self) {
        let news = self.news.get_or_insert_default();
        take(&self.route, |message| news.routing(message));
        take(&self.nft, |message| news.nft(message));
    }
}

fn subscribe(protocol: isize, groups: &[u32]) -> io::Result<AsyncFd<Socket>> {
    let mut socket = Socket::new(protocol)?;
    socket.bind_auto()?;
    for &group in groups {
        socket.add_membership(group)?;
    }
    socket.set_non_blocking(true)?;
    // SAFETY: the socket keeps one descriptor open for as long as it lives, and `AsyncFd` owns it from here on.
    unsafe { AsyncFd::register(socket) }.map_err(Into::into)
}

fn take(socket: &AsyncFd<Socket>, mut each: impl FnMut(&[u8])) {
    let mut buffer = [0; 4096];
    for _ in 0..MESSAGES {
        let Some(Ok(mut ready)) = socket.readable().now_or_never() else { return };
        match ready.try_io(|socket| socket.get_ref().recv(&mut &mut buffer[..], libc::MSG_TRUNC)) {
            Ok(Ok(length)) => each(&buffer[..length.min(buffer.len())]),
            Ok(Err(_)) => {}
            Err(_would_block) => return,
        }
    }
}

/// How soon after one report the next may come: soon after the first, for it takes a moment to see what was done; later and
/// later while they go on, so that whoever fights us, or a busy router, does not keep the agent busy.
#[derive(Debug)]
struct Pace {
    gap: Duration,
    not_before: Instant,
}

impl Pace {
    const LEAST: Duration = Duration::from_millis(20);
    const MOST: Duration = Duration::from_millis(250);
    /// After so long without a report the next is a first one.
    const CALM: Duration = Duration::from_secs(1);

    fn new(now: Instant) -> Self {
        Self { gap: Self::LEAST, not_before: now }
    }

    fn reported(&mut self, now: Instant) {
        let first = now >= self.not_before + Self::CALM;
        self.gap = if first { Self::LEAST } else { (self.gap * 2).min(Self::MOST) };
        self.not_before = now + self.gap;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_reported_ever_less_often_and_the_first_after_calm_at_once() {
        let start = Instant::now();
        let mut pace = Pace::new(start - Pace::CALM);
        let mut reports = 0;
        while pace.not_before < start + Duration::from_secs(10) {
            let now = pace.not_before.max(start);
            pace.reported(now);
            assert!(pace.not_before - now <= Pace::MOST);
            reports += 1;
        }
        assert!((40..=45).contains(&reports), "{reports} in ten seconds");
        let calm = pace.not_before + Pace::CALM;
        pace.reported(calm);
        assert_eq!(pace.not_before, calm + Pace::LEAST);
    }
}
