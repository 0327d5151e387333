//! Keys that change under traffic, and hosts that have not heard the same of it.

use super::*;

const OLD: u8 = 1;
const NEW: u8 = 2;

fn psk(seed: u8) -> PresharedKey {
    PresharedKey::from_bytes([seed; 32])
}

fn standing(public_key: bool, preshared_key: bool) -> Option<Standing> {
    Some(Standing { session: true, public_key, preshared_key })
}

impl Network {
    /// Two hosts whose session is under the old preshared key.
    fn keyed() -> Self {
        let mut network = Self::new(2);
        network.know([&[OLD], &[OLD]]);
        network.send(0, 1, u32::MAX);
        network.run(SECOND);
        assert_eq!(network.bodies(1), [u32::MAX]);
        network
    }

    /// What each of the two knows of preshared keys, the present one first: as after a start.
    fn know(&mut self, keys: [&[u8]; 2]) {
        for (host, keys) in keys.into_iter().enumerate() {
            let next = NextKeys { preshared_key: keys.get(1).copied().map(psk), ..NextKeys::default() };
            let peer = PeerSettings { preshared_key: Some(psk(keys[0])), next, ..self.settings(1 - host) };
            self.configure(host, &[peer]);
        }
    }

    fn psks(&self, host: usize, keys: &[u8]) {
        let next = NextKeys { preshared_key: keys.get(1).copied().map(psk), ..NextKeys::default() };
        let peer = self.key_of(1 - host);
        assert!(self.hosts[host].device.set_keys(&peer, (peer, Some(psk(keys[0])), next), self.now()));
    }

    fn key_of(&self, host: usize) -> PublicKey {
        self.hosts[host].key.public_key()
    }

    /// Packets both ways for a while, from this number on; the next one comes back.
    fn talk(&mut self, from: u32, time: Duration) -> u32 {
        let count = (time.as_millis() / STEP.as_millis()) as u32;
        for body in from..from + count {
            self.send(0, 1, body);
            self.send(1, 0, body);
            self.run(STEP);
        }
        from + count
    }

    fn all_arrived(&mut self, count: u32) {
        self.run(SECOND);
        for host in 0..2 {
            let bodies: BTreeSet<_> = self.bodies(host).into_iter().filter(|body| *body != u32::MAX).collect();
            assert_eq!(bodies.len() as u32, count, "host {host} of {count}");
        }
    }

    fn standing(&self, host: usize) -> Option<Standing> {
        let mut peers = self.hosts[host].device.peers(self.now());
        assert_eq!(peers.len(), 1);
        self.hosts[host].device.standing(&peers.remove(0).settings.public_key)
    }
}

#[test]
fn a_preshared_key_changes_under_traffic_and_no_packet_is_lost() {
    for caller in 0..2 {
        let mut network = Network::keyed();
        network.jitter = Duration::from_millis(120);
        let mut body = network.talk(0, SECOND);
        network.psks(0, &[OLD, NEW]);
        body = network.talk(body, SECOND);
        assert_eq!(network.standing(0), standing(false, false), "nobody called");
        network.psks(1, &[OLD, NEW]);
        body = network.talk(body, SECOND);
        network.hosts[caller].device.renew(&network.key_of(1 - caller));
        body = network.talk(body, SECOND);
        assert_eq!((network.standing(0), network.standing(1)), (standing(false, true), standing(false, true)));
        network.psks(0, &[NEW]);
        body = network.talk(body, SECOND);
        network.psks(1, &[NEW]);
        // Beyond a rekey and all that is kept of the old ones.
        body = network.talk(body, 300 * SECOND);
        network.all_arrived(body);
    }
}

#[test]
fn a_host_changes_its_key_under_traffic_and_no_packet_is_lost() {
    let mut network = Network::keyed();
    network.jitter = Duration::from_millis(120);
    let (old, new) = (network.key_of(0), PrivateKey::from_bytes([77; 32]));
    let next = NextKeys { public_key: Some(new.public_key()), ..NextKeys::default() };
    network.hosts[1].device.set_keys(&old, (old, Some(psk(OLD)), next), network.now());
    let mut body = network.talk(0, SECOND);
    network.hosts[0].device.rotate_private_key(new.clone(), network.now());
    body = network.talk(body, SECOND);
    assert_eq!((network.standing(0), network.standing(1)), (standing(false, false), standing(true, false)));
    let done = (new.public_key(), Some(psk(OLD)), NextKeys::default());
    assert!(network.hosts[1].device.set_keys(&old, done, network.now()));
    network.hosts[0].key = new;
    assert_eq!(network.peer(1, 0).state, PeerState::Up);
    body = network.talk(body, 300 * SECOND);
    network.all_arrived(body);
    assert_eq!(network.drops(0)[3] + network.drops(1)[3], 0, "spoofed");
}

#[test]
fn both_hosts_change_their_keys_at_once() {
    let mut network = Network::keyed();
    let new = [78, 79].map(|seed| PrivateKey::from_bytes([seed; 32]));
    for host in 0..2 {
        let peer = network.key_of(1 - host);
        let next = NextKeys { public_key: Some(new[1 - host].public_key()), ..NextKeys::default() };
        network.hosts[host].device.set_keys(&peer, (peer, Some(psk(OLD)), next), network.now());
    }
    let mut body = network.talk(0, SECOND);
    for host in 0..2 {
        network.hosts[host].device.rotate_private_key(new[host].clone(), network.now());
    }
    body = network.talk(body, SECOND);
    assert_eq!((network.standing(0), network.standing(1)), (standing(true, false), standing(true, false)));
    body = network.talk(body, 300 * SECOND);
    network.all_arrived(body);
}

#[test]
fn whoever_has_a_key_in_common_finds_a_session() {
    let known: [&[u8]; 4] = [&[OLD], &[NEW], &[OLD, NEW], &[NEW, OLD]];
    for keys in known.iter().flat_map(|a| known.map(|b| [*a, b])) {
        let common = keys[0].iter().any(|key| keys[1].contains(key));
        for from in 0..2 {
            let mut network = Network::new(2);
            network.know(keys);
            for body in 0..60 {
                network.send(from, 1 - from, body);
                network.run(2 * STEP);
            }
            assert_eq!(!network.bodies(1 - from).is_empty(), common, "{keys:?}, {from} begins");
        }
    }
}

#[test]
fn a_rotation_gets_through_loss() {
    let mut network = Network::keyed();
    network.loss_percent = 40;
    network.psks(0, &[OLD, NEW]);
    network.psks(1, &[OLD, NEW]);
    network.hosts[0].device.renew(&network.key_of(1));
    network.hosts[1].device.renew(&network.key_of(0));
    let sent = network.talk(0, 60 * SECOND);
    assert_eq!((network.standing(0), network.standing(1)), (standing(false, true), standing(false, true)));
    for host in 0..2 {
        // What the network takes, and no more.
        assert!(network.bodies(host).len() as f64 > f64::from(sent) * 0.55, "{}", network.bodies(host).len());
    }
}

#[test]
fn one_that_has_not_heard_of_the_change_is_told() {
    let mut network = Network::keyed();
    network.psks(0, &[OLD, NEW]);
    network.psks(1, &[OLD, NEW]);
    network.hosts[0].device.renew(&network.key_of(1));
    let now = network.now();
    let Host { device, outbox, .. } = &mut network.hosts[0];
    device.tick(outbox, now, |_| {});
    network.transmit(0);
    // The initiation arrives, the answer too; the keepalive that confirms it is lost.
    for _ in 0..2 {
        let (_, from, to, datagram) = network.flying.remove(0);
        network.deliver(from, to, &datagram);
        network.flying.retain(|(.., datagram)| datagram[0] != message::DATA);
    }
    while let Some((_, from, to, datagram)) = network.flying.pop() {
        if datagram[0] != message::DATA {
            network.deliver(from, to, &datagram);
        }
    }
    network.flying.clear();
    // Only the responder speaks, under the old key, for longer than that is kept.
    for body in 0..1200 {
        network.send(1, 0, body);
        network.run(2 * STEP);
    }
    assert_eq!((network.bodies(0).len(), network.standing(1)), (1200, standing(false, true)));
}

#[test]
fn a_key_that_nobody_agreed_to_ends_the_session() {
    let mut network = Network::keyed();
    network.psks(0, &[NEW]);
    network.send(0, 1, 1);
    network.run(10 * SECOND);
    assert_eq!(network.bodies(1), [u32::MAX]);
}
