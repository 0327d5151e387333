//! Says in the log which cipher data to another agent goes under, once that is settled and each time that it changes.

use std::collections::HashMap;
use std::time::Instant;

use super::running::Running;
use crate::express::Standing;
use crate::key::PublicKey;

/// Where each agent's express sessions were seen to settle last.
#[derive(Default)]
struct Ciphers(HashMap<PublicKey, Standing>);

impl Ciphers {
    /// What is news of all agents. Each handshake puts data under WireGuard's own session for a moment, or until there is
    /// some, so what does not last says nothing.
    fn note(&mut self, agents: &[(PublicKey, Standing)]) -> Vec<(PublicKey, Standing)> {
        self.0.retain(|key, _| agents.iter().any(|(agent, _)| agent == key));
        let lasts = |standing| !matches!(standing, Standing::Idle | Standing::Asking | Standing::Proving);
        let settled = agents.iter().copied().filter(|(_, standing)| lasts(*standing));
        settled.filter(|&(key, standing)| self.0.insert(key, standing) != Some(standing)).collect()
    }
}

impl Running {
    /// Logs changes, until it is dropped.
    pub(super) async fn watch_ciphers(&self) {
        let mut ciphers = Ciphers::default();
        loop {
            tokio::time::sleep(super::TEND).await;
            let peers = self.device.peers(Instant::now());
            let agents = peers.iter().filter(|peer| peer.agent);
            let agents: Vec<_> = agents.map(|peer| (peer.settings.public_key, peer.express.standing)).collect();
            for (key, standing) in ciphers.note(&agents) {
                let peer = self.name_of(&key);
                match standing {
                    Standing::On => tracing::info!("data to {peer} goes under AES-256-GCM"),
                    why => tracing::info!("data to {peer} goes under ChaCha20-Poly1305: {why}"),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::express::Reason;
    use crate::key::PrivateKey;

    #[test]
    fn only_what_lasts_is_news_and_only_once() {
        let key = PrivateKey::from_bytes([1; 32]).public_key();
        let mut ciphers = Ciphers::default();
        let off = Standing::There(Reason::Off);
        for (standing, news) in [
            (Standing::Idle, false),
            (Standing::Asking, false),
            (Standing::On, true),
            (Standing::On, false),
            // A handshake.
            (Standing::Idle, false),
            (Standing::Proving, false),
            (Standing::On, false),
            (off, true),
            (Standing::On, true),
            (Standing::Unanswered, true),
        ] {
            let noted = ciphers.note(&[(key, standing)]);
            assert_eq!(noted == [(key, standing)], news, "{standing:?}");
        }
        assert_eq!(ciphers.note(&[]), []);
        assert_eq!(ciphers.note(&[(key, Standing::Unanswered)]).len(), 1, "a peer that is added again is another");
    }
}
