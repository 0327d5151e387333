//! A host that is killed and started again, beside one that has noticed nothing.

use super::*;

impl Network {
    /// Host 1 has a session with host 0, which has no endpoint for it. Then host 0 begins anew.
    fn restarted() -> Self {
        let mut network = Self::mesh(2);
        network.configure(0, &[network.nameless(1)]);
        network.send(1, 0, 1);
        network.run(SECOND);
        assert_eq!(network.bodies(0), [1]);
        network.restart(0);
        network
    }

    /// A peer whose settings do not say where it is.
    fn nameless(&self, host: usize) -> PeerSettings {
        PeerSettings { endpoint: None, ..self.settings(host) }
    }

    fn restart(&mut self, host: usize) {
        let peers: Vec<_> =
            self.hosts[host].device.peers(self.now()).into_iter().map(|peer| peer.settings.public_key).collect();
        let settings: Vec<_> = (0..self.hosts.len())
            .filter(|&peer| peers.contains(&self.hosts[peer].key.public_key()))
            .map(|peer| self.nameless(peer))
            .collect();
        self.hosts[host].device = Device::new(self.hosts[host].key.clone(), 1420, self.now());
        self.configure(host, &settings);
        self.wire.clear();
    }

    fn recall(&self, host: usize, peer: usize, call: bool) {
        let path = Path { remote: self.hosts[peer].addr, local: Some(self.hosts[host].addr.ip()) };
        self.hosts[host].device.recall(&self.hosts[peer].key.public_key(), path, call, self.now());
    }

    fn calls(&self) -> usize {
        self.sent_of(message::HANDSHAKE_INITIATION, 0)
    }
}

#[test]
fn a_host_that_begins_anew_is_reached_again_at_once() {
    let mut network = Network::restarted();
    network.send(1, 0, 2);
    network.run(14 * SECOND);
    assert_eq!(network.bodies(0), [1], "without a call the other side notices by silence alone");

    let mut network = Network::restarted();
    network.recall(0, 1, true);
    network.run(TICK);
    for host in 0..2 {
        network.send(host, 1 - host, 3);
    }
    network.run(STEP);
    assert_eq!((network.bodies(0), network.bodies(1)), (vec![1, 3], vec![3]));
    network.run(30 * SECOND);
    assert_eq!(network.calls(), 1);
}

#[test]
fn two_that_begin_anew_together_meet() {
    let mut network = Network::restarted();
    network.restart(1);
    network.recall(0, 1, true);
    network.recall(1, 0, true);
    network.run(2 * TICK);
    for host in 0..2 {
        network.send(host, 1 - host, 3);
    }
    network.run(STEP);
    assert_eq!((network.bodies(0), network.bodies(1)), (vec![1, 3], vec![3]));
}

#[test]
fn a_lost_call_is_repeated_soon() {
    let mut network = Network::restarted();
    network.recall(0, 1, true);
    network.loss_percent = 100;
    network.run(SECOND);
    network.loss_percent = 0;
    network.run(SECOND);
    network.send(1, 0, 2);
    network.run(STEP);
    assert_eq!(network.bodies(0), [1, 2]);
}

#[test]
fn a_path_that_loses_a_twentieth_delays_it_by_two_seconds_at_most() {
    for seed in 1..=100 {
        let mut network = Network::restarted();
        network.random = 0x9e37_79b9_7f4a_7c15 ^ seed;
        network.loss_percent = 5;
        network.recall(0, 1, true);
        for body in 2..42 {
            network.send(0, 1, body);
            network.send(1, 0, body);
            network.run(STEP);
        }
        assert!(!network.bodies(1).is_empty() && network.bodies(0).len() > 1, "seed {seed}");
    }
}

#[test]
fn a_peer_that_sleeps_is_left_alone_until_something_waits_for_it() {
    let mut network = Network::restarted();
    network.recall(0, 1, true);
    let at = std::mem::replace(&mut network.hosts[1].addr, ([192, 0, 2, 99], 9).into());
    network.run(60 * SECOND);
    assert_eq!((network.calls(), network.peer(0, 1).state), (3, PeerState::Down));
    network.send(0, 1, 2);
    network.run(SECOND);
    assert_eq!((network.calls(), network.peer(0, 1).state), (4, PeerState::Connecting));
    // From here on it is boringtun's to repeat, and to give up.
    network.run(20 * SECOND);
    assert!((7..9).contains(&network.calls()), "{}", network.calls());
    network.hosts[1].addr = at;
    network.run(6 * SECOND);
    assert_eq!(network.bodies(1), [2], "it was where it had been");

    let mut network = Network::restarted();
    network.recall(0, 1, true);
    network.hosts[1].addr = ([192, 0, 2, 99], 9).into();
    network.run(3600 * SECOND);
    assert_eq!((network.calls(), network.peer(0, 1).state), (3, PeerState::Down));
    network.send(0, 1, 2);
    network.run(SECOND);
    assert_eq!((network.calls(), network.peer(0, 1).state), (4, PeerState::Connecting));
}

#[test]
fn a_peer_without_a_session_is_reached_where_it_was_and_not_called() {
    let mut network = Network::restarted();
    network.recall(0, 1, false);
    network.run(60 * SECOND);
    assert_eq!(network.wire, []);
    network.send(0, 1, 2);
    network.run(SECOND);
    assert_eq!(network.bodies(1), [2]);
}

#[test]
fn what_the_settings_say_is_called_too_and_stays_where_nobody_answers() {
    let elsewhere: SocketAddr = ([192, 0, 2, 99], 9).into();
    let mut network = Network::restarted();
    network.configure(0, &[PeerSettings { endpoint: Some(elsewhere), ..network.settings(1) }]);
    network.recall(0, 1, true);
    network.run(TICK);
    let called: Vec<_> = network.wire.iter().filter(|(_, src, ..)| *src == network.hosts[0].addr).take(2).collect();
    assert_eq!([called[0].2, called[1].2], [network.hosts[1].addr, elsewhere]);
    assert_eq!(network.peer(0, 1).settings.endpoint, Some(network.hosts[1].addr), "there it answers");

    let mut network = Network::restarted();
    network.configure(0, &[PeerSettings { endpoint: Some(elsewhere), ..network.settings(1) }]);
    network.recall(0, 1, true);
    network.hosts[1].addr = ([192, 0, 2, 77], 7).into();
    network.run(5 * SECOND);
    assert_eq!(network.peer(0, 1).settings.endpoint, Some(elsewhere));
}

#[test]
fn a_peer_with_a_relay_is_not_called() {
    let mut network = Network::new(3);
    let relay = network.hosts[2].key.public_key();
    network.configure(0, &[network.settings(2), PeerSettings { via: Some(relay), ..network.nameless(1) }]);
    network.recall(0, 1, true);
    network.run(60 * SECOND);
    assert_eq!((network.calls(), network.peer(0, 1).settings.endpoint), (0, None));
}
