//! Tells when interfaces come, go or change, so that a bridge is served as soon as it exists.

use std::future::pending;
use std::io;
use std::time::Duration;

use futures_util::stream::{BoxStream, StreamExt as _};
use rtnetlink::{MulticastGroup, new_multicast_connection};

/// One `ip link add … up` is several notifications, and a container that starts is a dozen.
const SETTLE: Duration = Duration::from_millis(100);

/// A subscription to the kernel's notifications about links.
pub struct Watch {
    messages: BoxStream<'static, ()>,
}

impl Watch {
    /// Subscribes, in this thread's network namespace.
    ///
    /// # Errors
    /// When no netlink socket can be had.
    pub fn links() -> io::Result<Self> {
        let (connection, _, messages) = new_multicast_connection(&[MulticastGroup::Link])?;
        tokio::spawn(connection);
        Ok(Self { messages: messages.map(drop).boxed() })
    }

    /// Waits for the next change and for what follows it closely.
    pub async fn changed(&mut self) {
        if self.messages.next().await.is_none() {
            // The socket broke. The periodic comparison goes on without it.
            pending::<()>().await;
        }
        let settled = tokio::time::sleep(SETTLE);
        tokio::pin!(settled);
        loop {
            tokio::select! {
                () = &mut settled => return,
                Some(()) = self.messages.next() => {}
            }
        }
    }
}
