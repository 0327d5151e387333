//! Home with two bridges and two exits: what leaves by whom, and who may bring what.

use super::*;

const HOME: usize = 0;
const ONE: usize = 1;
const TWO: usize = 2;
/// A container on each of home's bridges.
const BLOG: Ipv4Addr = Ipv4Addr::new(10, 89, 2, 10);
const VAULT: Ipv4Addr = Ipv4Addr::new(10, 89, 3, 10);
/// Strangers.
const WEB: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 80);
const CLIENT: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 5);

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

impl Network {
    fn key(&self, host: usize) -> PublicKey {
        self.hosts[host].key.public_key()
    }

    /// The settings of home: the first bridge leaves through `exits`, the second through TWO.
    fn home(&self, exits: &[usize]) -> Settings {
        let keys = |hosts: &[usize]| hosts.iter().map(|&host| self.key(host)).collect();
        let bridges = vec![net("10.89.2.0/24"), net("10.89.3.0/24")];
        let first = Egress { source: bridges[0], exits: keys(exits) };
        let second = Egress { source: bridges[1], exits: keys(&[TWO]) };
        let egress = if exits.is_empty() { vec![second] } else { vec![first, second] };
        let addresses = vec![self.hosts[HOME].inner.into()];
        Settings { peers: vec![self.settings(ONE), self.settings(TWO)], local: Local { egress, bridges, addresses } }
    }

    fn set(&self, settings: &Settings) {
        let Host { device, key, .. } = &self.hosts[HOME];
        device.configure(key, settings, self.now());
    }

    /// Two exits that carry home's containers, and sessions with both.
    fn with_exits(exits: &[usize]) -> Self {
        let mut network = Self::new(3);
        network.set(&network.home(exits));
        for exit in [ONE, TWO] {
            let mut home = network.settings(HOME);
            home.allowed_ips.extend([net("10.89.2.0/24"), net("10.89.3.0/24")]);
            network.configure(exit, &[home]);
            network.send(HOME, exit, 0);
        }
        network.run(SECOND);
        network.forget();
        network
    }

    fn forget(&mut self) {
        self.hosts.iter_mut().for_each(|host| host.received.clear());
    }

    /// Sends one packet and tells who received it.
    fn where_to(&mut self, src: Ipv4Addr, dst: Ipv4Addr) -> Option<usize> {
        self.forget();
        self.inject(HOME, &packet(src, dst, 1));
        self.run(SECOND);
        (0..self.hosts.len()).find(|&host| !self.hosts[host].received.is_empty())
    }

    /// Straight to home, wherever the sender's own table would send it.
    fn inject_to_home(&mut self, from: usize, packet: &[u8]) {
        let (key, now) = (self.key(HOME), self.now());
        let Host { device, outbox, .. } = &mut self.hosts[from];
        device.table.load().peers[&key].lock().say(packet, outbox, now);
        self.transmit(from);
        self.run(SECOND);
    }

    /// Whether home takes a packet from this peer.
    fn takes(&mut self, from: usize, src: Ipv4Addr, dst: Ipv4Addr) -> bool {
        self.forget();
        let spoofed = self.drops(HOME)[3];
        self.inject_to_home(from, &packet(src, dst, 1));
        let taken = !self.hosts[HOME].received.is_empty();
        assert_eq!(self.drops(HOME)[3] - spoofed, u64::from(!taken), "what is not taken is counted");
        taken
    }
}

#[test]
fn each_bridge_leaves_by_its_own_exit() {
    let mut network = Network::with_exits(&[ONE]);
    assert_eq!(network.where_to(BLOG, WEB), Some(ONE));
    assert_eq!(network.where_to(VAULT, WEB), Some(TWO));
    assert_eq!(network.where_to(VAULT, network.hosts[ONE].inner), Some(ONE), "allowed IPs go before");
    assert_eq!(network.where_to(Ipv4Addr::new(10, 89, 4, 1), WEB), None, "of no bridge");
    assert_eq!(network.drops(HOME)[0], 1);
    let shown = |network: &Network, peer| network.peer(HOME, peer).settings.allowed_ips;
    for exit in [ONE, TWO] {
        let own = IpNet::from(IpAddr::V4(network.hosts[exit].inner));
        assert_eq!(shown(&network, exit), [net("0.0.0.0/0"), own, net("::/0")]);
    }
}

#[test]
fn answers_come_by_the_exit_alone() {
    let mut network = Network::with_exits(&[ONE]);
    assert!(network.takes(ONE, WEB, BLOG));
    assert!(network.takes(TWO, WEB, VAULT));
    assert!(!network.takes(TWO, WEB, BLOG) && !network.takes(ONE, WEB, VAULT), "the other's");
    assert!(network.takes(ONE, Ipv4Addr::new(10, 0, 0, 1), BLOG), "a router on the exit's side");
    let home = network.hosts[HOME].inner;
    let other = network.hosts[TWO].inner;
    for src in [Ipv4Addr::LOCALHOST, Ipv4Addr::UNSPECIFIED, Ipv4Addr::new(224, 0, 0, 1), home, VAULT, BLOG, other] {
        assert!(!network.takes(ONE, src, BLOG), "from {src}");
    }
}

#[test]
fn who_delivers_gets_the_answers_and_nothing_else() {
    let mut network = Network::with_exits(&[ONE]);
    let mut settings = network.home(&[ONE]);
    settings.peers[1].deliver = true;
    network.set(&settings);
    assert!(network.takes(TWO, CLIENT, BLOG));
    assert_eq!(network.where_to(BLOG, CLIENT), Some(TWO), "the answer");
    assert_eq!(network.where_to(BLOG, WEB), Some(ONE), "other packets of the container");
    assert!(!network.takes(TWO, Ipv4Addr::new(192, 168, 1, 1), BLOG), "no stranger");
    assert!(!network.takes(TWO, CLIENT, network.hosts[HOME].inner), "no container");
    assert!(!network.takes(TWO, CLIENT, Ipv4Addr::new(10, 89, 9, 1)), "no container of ours");
    assert!(!network.takes(TWO, network.hosts[ONE].inner, BLOG), "another peer's address");
    // The same client by way of the exit: the answers go there again.
    assert!(network.takes(ONE, CLIENT, BLOG));
    assert_eq!(network.where_to(BLOG, CLIENT), Some(ONE));
}

#[test]
fn a_container_without_an_exit_answers_who_delivers() {
    let mut network = Network::with_exits(&[]);
    let mut settings = network.home(&[]);
    settings.peers.iter_mut().for_each(|peer| peer.deliver = true);
    network.set(&settings);
    // Two publish it; each client is answered by where it came from.
    assert!(network.takes(ONE, CLIENT, BLOG) && network.takes(TWO, WEB, BLOG));
    assert_eq!((network.where_to(BLOG, CLIENT), network.where_to(BLOG, WEB)), (Some(ONE), Some(TWO)));
    assert_eq!(network.where_to(BLOG, Ipv4Addr::new(203, 0, 113, 6)), None, "who did not ask");
    // Who is no peer any more is not answered.
    assert!(network.hosts[HOME].device.remove_peer(&network.key(TWO), network.now()));
    assert_eq!(network.where_to(BLOG, WEB), None);
}

#[test]
fn what_is_of_no_bridge_has_the_exit_of_everything() {
    let mut network = Network::with_exits(&[ONE]);
    let mut settings = network.home(&[]);
    let everything = Egress { source: net("0.0.0.0/0"), exits: vec![network.key(ONE)] };
    let none = Egress { source: net("10.89.2.0/24"), exits: Vec::new() };
    settings.local.egress.extend([everything, none]);
    network.set(&settings);
    let home = network.hosts[HOME].inner;
    assert_eq!((network.where_to(home, WEB), network.where_to(VAULT, WEB)), (Some(ONE), Some(TWO)));
    assert!(network.takes(ONE, WEB, home) && !network.takes(TWO, WEB, home));
    assert_eq!(network.where_to(BLOG, WEB), None, "a bridge without exits");
    assert!(!network.takes(ONE, WEB, BLOG));
}

#[test]
fn another_exit_takes_over_at_once_and_sessions_stay() {
    let mut network = Network::with_exits(&[ONE, TWO]);
    assert_eq!(network.where_to(BLOG, WEB), Some(ONE));
    let handshakes = network.sent_of(message::HANDSHAKE_INITIATION, HOME);
    let egress = network.home(&[TWO, ONE]).local.egress;
    network.hosts[HOME].device.set_egress(&egress, network.now());
    assert_eq!(network.where_to(BLOG, WEB), Some(TWO));
    assert_eq!(network.sent_of(message::HANDSHAKE_INITIATION, HOME), handshakes);
    // What the first one still answers stays with it.
    assert!(network.takes(ONE, CLIENT, BLOG));
    assert_eq!((network.where_to(BLOG, CLIENT), network.where_to(BLOG, WEB)), (Some(ONE), Some(TWO)));
}

#[test]
fn what_an_exit_publishes_stays_with_it() {
    let mut network = Network::with_exits(&[ONE, TWO]);
    let mut syn = packet(CLIENT, BLOG, 1);
    (syn[9], syn[33]) = (6, 2);
    network.inject_to_home(ONE, &syn);
    let egress = network.home(&[TWO, ONE]).local.egress;
    network.hosts[HOME].device.set_egress(&egress, network.now());
    network.forget();
    let mut answer = packet(BLOG, CLIENT, 1);
    (answer[9], answer[33]) = (6, 0x12);
    network.inject(HOME, &answer);
    network.run(SECOND);
    assert_eq!((network.hosts[ONE].received.len(), network.hosts[TWO].received.len()), (1, 0));

    // The same port begins a connection of its own: it leaves by the exit, and stays with it.
    let mut own = answer.clone();
    own[33] = 2;
    network.forget();
    network.inject(HOME, &own);
    network.run(SECOND);
    syn[33] = 0x12;
    network.inject_to_home(TWO, &syn);
    own[33] = 0x10;
    network.inject(HOME, &own);
    network.run(SECOND);
    assert_eq!((network.hosts[ONE].received.len(), network.hosts[TWO].received.len()), (0, 2));
}

#[test]
fn a_former_exit_keeps_nothing() {
    let mut network = Network::with_exits(&[ONE]);
    let mut settings = network.home(&[TWO]);
    settings.peers[0].deliver = true;
    network.set(&settings);
    // A later change of something else forgets nothing.
    network.set(&settings);
    assert!(network.takes(ONE, WEB, BLOG), "a late answer");
    assert_eq!(network.where_to(BLOG, WEB), Some(TWO));
    network.run(10 * SECOND);
    assert!(network.takes(ONE, CLIENT, BLOG), "by now it is what it publishes");
    assert_eq!(network.where_to(BLOG, CLIENT), Some(ONE));
}

#[test]
fn no_exit_left_means_nothing_leaves() {
    let mut network = Network::with_exits(&[ONE]);
    // Somebody else has 0.0.0.0/0 of itself, as by wg(8): it is none of the bridge's exits.
    let mut wide = network.settings(ONE);
    wide.public_key = PrivateKey::from_bytes([9; 32]).public_key();
    wide.allowed_ips = vec![net("0.0.0.0/0")];
    network.hosts[HOME].device.set_peer(wide.clone(), network.now());
    assert_eq!(network.where_to(BLOG, WEB), Some(ONE));
    assert!(network.hosts[HOME].device.remove_peer(&network.key(ONE), network.now()));
    assert_eq!(network.where_to(BLOG, WEB), None);
    assert_eq!(network.drops(HOME)[0], 1);
    assert_eq!(network.hosts[HOME].device.owner(WEB.into()), Some(wide.public_key));
    // What is of no bridge goes there, as ever.
    assert_eq!(network.where_to(Ipv4Addr::new(10, 89, 4, 1), WEB), None);
    assert_eq!(network.drops(HOME)[0], 1);
    // And the exit, once it is back, is one again.
    network.hosts[HOME].device.set_peer(network.settings(ONE), network.now());
    assert_eq!(network.where_to(BLOG, WEB), Some(ONE));
}
