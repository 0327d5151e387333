//! A bounded set of connections, each a task of its own.
//!
//! When the set is full a newcomer takes the place of the oldest idle connection of the user who holds most, so that
//! neither silent connections nor one user's thousands keep others out.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};

use super::socket::Listener;

/// How long connections may take to finish once the server ends.
const GRACE: Duration = Duration::from_secs(5);

/// Who is at the other end of a connection.
#[derive(Debug, Clone)]
pub(super) struct Caller {
    /// By `SO_PEERCRED`: the user at the time of connect(2).
    pub uid: u32,
    /// True while a request runs that must get its answer.
    pub busy: Arc<AtomicBool>,
    /// Becomes true when the server ends.
    pub closing: watch::Receiver<bool>,
}

/// Accepts until `shutdown` resolves, running `handle` for each connection, at most `max` at a time; then gives those
/// that remain a moment to finish.
pub(super) async fn serve<F>(
    listener: Listener,
    max: usize,
    shutdown: impl Future<Output = ()>,
    mut handle: impl FnMut(UnixStream, Caller) -> F,
) -> io::Result<()>
where
    F: Future<Output = ()> + Send + 'static,
{
    let socket = listener.to_tokio()?;
    let (close, closing) = watch::channel(false);
    let mut connections = Connections { max, tasks: JoinSet::new(), open: Vec::new() };
    let mut shutdown = pin!(shutdown);
    loop {
        let accepted = tokio::select! {
            () = &mut shutdown => break,
            accepted = socket.accept() => accepted,
        };
        match accepted.and_then(|(stream, _)| Ok((stream.peer_cred()?.uid(), stream))) {
            Ok((uid, stream)) => {
                let caller = Caller { uid, busy: Arc::default(), closing: closing.clone() };
                connections.admit(caller.clone(), handle(stream, caller));
                // Lets the newcomer be served before the next one can take its place.
                tokio::task::yield_now().await;
            }
            Err(error) => {
                // EMFILE and the like: the connection stays in the backlog, and accept would fail again at once.
                tracing::warn!(%error, "control: cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    // Whoever comes from here on is refused instead of left waiting.
    drop((socket, listener));
    close.send_replace(true);
    let _ = tokio::time::timeout(GRACE, async { while connections.tasks.join_next().await.is_some() {} }).await;
    Ok(())
}

struct Connections {
    max: usize,
    tasks: JoinSet<()>,
    open: Vec<Slot>,
}

struct Slot {
    caller: Caller,
    task: AbortHandle,
}

impl Connections {
    fn admit(&mut self, caller: Caller, connection: impl Future<Output = ()> + Send + 'static) {
        while self.tasks.try_join_next().is_some() {}
        self.open.retain(|slot| !slot.task.is_finished());
        if self.open.len() >= self.max {
            let Some(victim) = self.victim() else { return };
            self.open.remove(victim).task.abort();
        }
        let task = self.tasks.spawn(connection);
        self.open.push(Slot { caller, task });
    }

    fn victim(&self) -> Option<usize> {
        let mut held = HashMap::new();
        for slot in &self.open {
            *held.entry(slot.caller.uid).or_insert(0) += 1;
        }
        let idle = |slot: &&Slot| !slot.caller.busy.load(Ordering::Relaxed);
        let most = self.open.iter().filter(idle).map(|slot| held[&slot.caller.uid]).max()?;
        self.open.iter().position(|slot| idle(&slot) && held[&slot.caller.uid] == most)
    }
}
