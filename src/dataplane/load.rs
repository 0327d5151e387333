//! The load of a measurement: a thread that seals and sends as fast as the run's window lets it, and nothing else.

use std::sync::Arc;
use std::time::Instant;

use super::Shared;
use super::forward::send;
use crate::bench::{Run, Window};
use crate::tunnel::Outbox;

/// Packets between two looks at the window: what one `sendmsg` with `UDP_SEGMENT` carries at an MTU of 1420.
const BURST: u64 = 45;

/// Sends the load of `run` until it is over.
pub(super) fn generate(shared: &Shared, run: &Run) {
    let mut outbox = Outbox::new();
    let mut now = Instant::now();
    let mut window = Window::new(now);
    while !shared.stopping() && !run.over(now) {
        let allowed = window.allowance(run, now);
        let burst = allowed.min(BURST);
        // The last packet before the window is full asks for an answer at once.
        let probes = (1..=burst).map(|n| run.load(window.leave(), n == allowed, now));
        if !shared.device.load(run, probes, &mut outbox, now) {
            // The peer is gone or has moved: what was measured is not what is there now.
            return run.stop();
        }
        send(shared, &mut outbox);
        if burst == allowed {
            std::thread::sleep(window.pause());
        }
        now = Instant::now();
    }
}

impl super::Dataplane {
    /// Sends the load of a run in the background. Another one that is still being sent is stopped.
    ///
    /// # Errors
    /// When the system has no thread left.
    pub fn load(&mut self, run: Arc<Run>) -> std::io::Result<()> {
        self.stop_load();
        let shared = Arc::clone(&self.shared);
        let body = {
            let run = Arc::clone(&run);
            move || generate(&shared, &run)
        };
        let thread = std::thread::Builder::new().name("load".into()).spawn(body)?;
        self.load = Some((run, thread));
        Ok(())
    }

    /// Ends the load; its thread leaves within milliseconds.
    pub(super) fn stop_load(&mut self) {
        if let Some((run, thread)) = self.load.take() {
            run.stop();
            if thread.join().is_err() {
                tracing::error!("the thread that sends load had ended by a panic");
            }
        }
    }

    /// Sends what is in `outbox` and empties it.
    pub fn send(&self, outbox: &mut Outbox) {
        send(&self.shared, outbox);
    }
}
