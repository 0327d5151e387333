//! What a `set=1` makes of the peers, by the rules of the kernel's `drivers/net/wireguard/netlink.c`, `set_peer`.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use ipnet::IpNet;

use super::message::{AllowedIpEdit, Edits, PeerEdit};
use crate::express::Ability;
use crate::key::PublicKey;
use crate::tunnel::PeerSettings;

/// The peers after the edits, in the order of their keys. `own` is the device's identity after the edits: a device is
/// never its own peer. A peer that is new gets `express`.
pub fn apply(edits: &Edits, current: &[PeerSettings], own: &PublicKey, express: Ability) -> Vec<PeerSettings> {
    let mut peers = Peers::default();
    if !edits.replace_peers {
        for settings in current {
            peers.insert(settings.clone());
        }
    }
    for edit in edits.peers.iter().filter(|edit| edit.public_key != *own) {
        peers.edit(edit, current, express);
    }
    peers.0.remove(own);
    peers.into_settings()
}

/// What leads from one set of peers to another: whom to remove, and whom to set, where those that did not change are left
/// out.
pub fn difference(old: &[PeerSettings], new: Vec<PeerSettings>) -> (Vec<PublicKey>, Vec<PeerSettings>) {
    let before: HashMap<PublicKey, &PeerSettings> = old.iter().map(|peer| (peer.public_key, peer)).collect();
    let kept: BTreeSet<PublicKey> = new.iter().map(|peer| peer.public_key).collect();
    let removed = old.iter().map(|peer| peer.public_key).filter(|key| !kept.contains(key)).collect();
    let changed = |peer: &PeerSettings| !before.get(&peer.public_key).is_some_and(|old| same(old, peer));
    (removed, new.into_iter().filter(changed).collect())
}

fn same(old: &PeerSettings, new: &PeerSettings) -> bool {
    let sorted = |peer: &PeerSettings| {
        let nets: BTreeSet<IpNet> = peer.allowed_ips.iter().copied().collect();
        PeerSettings { allowed_ips: nets.into_iter().collect(), ..peer.clone() }
    };
    sorted(old) == sorted(new)
}

/// Peers by key, and who has which allowed IP: with thousands of both, a search for each would take seconds.
#[derive(Default)]
struct Peers(BTreeMap<PublicKey, (PeerSettings, BTreeSet<IpNet>)>, HashMap<IpNet, PublicKey>);

impl Peers {
    fn insert(&mut self, settings: PeerSettings) {
        let key = settings.public_key;
        let nets: BTreeSet<IpNet> = settings.allowed_ips.iter().copied().collect();
        self.1.extend(nets.iter().map(|&net| (net, key)));
        self.0.insert(key, (settings, nets));
    }

    fn edit(&mut self, edit: &PeerEdit, before: &[PeerSettings], express: Ability) {
        let key = edit.public_key;
        if edit.remove {
            if let Some((_, nets)) = self.0.remove(&key) {
                self.1.retain(|net, _| !nets.contains(net));
            }
            return;
        }
        if !self.0.contains_key(&key) {
            if edit.update_only {
                return;
            }
            // A peer that `replace_peers` takes away and brings back stays reachable where it was last heard of.
            let known = before.iter().find(|peer| peer.public_key == key);
            self.insert(PeerSettings {
                public_key: key,
                preshared_key: None,
                endpoint: known.and_then(|peer| peer.endpoint),
                persistent_keepalive: None,
                allowed_ips: Vec::new(),
                deliver: known.is_some_and(|peer| peer.deliver),
                via: known.and_then(|peer| peer.via),
                next: known.map(|peer| peer.next.clone()).unwrap_or_default(),
                express: known.map_or(express, |peer| peer.express),
            });
        }
        if let Some((settings, _)) = self.0.get_mut(&key) {
            if let Some(preshared_key) = &edit.preshared_key {
                settings.preshared_key.clone_from(preshared_key);
            }
            settings.endpoint = edit.endpoint.or(settings.endpoint);
            if let Some(seconds) = edit.persistent_keepalive {
                settings.persistent_keepalive = Some(seconds).filter(|&seconds| seconds != 0);
            }
        }
        for &change in &edit.allowed_ips {
            self.edit_allowed_ips(key, change);
        }
    }

    fn edit_allowed_ips(&mut self, key: PublicKey, change: AllowedIpEdit) {
        match change {
            AllowedIpEdit::Clear => {
                if let Some((_, nets)) = self.0.get_mut(&key) {
                    for net in std::mem::take(nets) {
                        self.1.remove(&net);
                    }
                }
            }
            AllowedIpEdit::Add(net) => {
                if let Some(owner) = self.1.insert(net, key)
                    && let Some((_, nets)) = self.0.get_mut(&owner)
                {
                    nets.remove(&net);
                }
                if let Some((_, nets)) = self.0.get_mut(&key) {
                    nets.insert(net);
                }
            }
            AllowedIpEdit::Remove(net) => {
                if let Some((_, nets)) = self.0.get_mut(&key)
                    && nets.remove(&net)
                {
                    self.1.remove(&net);
                }
            }
        }
    }

    fn into_settings(self) -> Vec<PeerSettings> {
        let peers = self.0.into_values();
        peers.map(|(settings, nets)| PeerSettings { allowed_ips: nets.into_iter().collect(), ..settings }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::fake::hex_of;
    use crate::control::fake::peer_key;
    use crate::control::uapi::message::{Request, parse};
    use crate::key::NextKeys;

    fn peer(seed: u8, nets: &[&str]) -> PeerSettings {
        PeerSettings {
            public_key: peer_key(seed),
            preshared_key: None,
            endpoint: Some(([192, 0, 2, seed], 51820).into()),
            persistent_keepalive: Some(25),
            allowed_ips: nets.iter().map(|net| net.parse().unwrap()).collect(),
            deliver: false,
            via: None,
            next: NextKeys::default(),
            express: Ability::Able,
        }
    }

    /// `K1` stands for the first peer's key.
    fn edits(lines: &str) -> Edits {
        let mut text = format!("set=1\n{lines}");
        for seed in 1..=4 {
            text = text.replace(&format!("K{seed}"), &hex_of(peer_key(seed).as_bytes()));
        }
        match parse(&text) {
            Ok(Request::Set(edits)) => edits,
            other => panic!("{other:?}"),
        }
    }

    /// After `lines` on peers 1 and 2: seed and allowed IPs of each peer.
    fn after(lines: &str) -> Vec<PeerSettings> {
        let current = [peer(1, &["10.0.1.0/24"]), peer(2, &["10.0.2.0/24", "fd00::/64"])];
        let mut peers = apply(&edits(lines), &current, &peer_key(4), Ability::Able);
        peers.sort_by_key(|peer| (1..=4).find(|&seed| peer_key(seed) == peer.public_key));
        peers
    }

    #[test]
    fn each_key_of_a_set_does_what_wg_says() {
        let (one, two) = (peer(1, &["10.0.1.0/24"]), peer(2, &["10.0.2.0/24", "fd00::/64"]));
        let bare = PeerSettings { endpoint: None, persistent_keepalive: None, ..peer(3, &[]) };
        for (what, lines, expected) in [
            ("nothing", "", vec![one.clone(), two.clone()]),
            ("a new peer", "public_key=K3\n", vec![one.clone(), two.clone(), bare.clone()]),
            (
                "update_only of a stranger",
                "public_key=K3\nupdate_only=true\nallowed_ip=::/0\n",
                vec![one.clone(), two.clone()],
            ),
            ("remove", "public_key=K1\nremove=true\n", vec![two.clone()]),
            ("remove a stranger", "public_key=K3\nremove=true\n", vec![one.clone(), two.clone()]),
            (
                "remove and add",
                "public_key=K1\nremove=true\npublic_key=K3\nallowed_ip=10.0.1.0/24\n",
                vec![two.clone(), PeerSettings { allowed_ips: one.allowed_ips.clone(), ..bare.clone() }],
            ),
            ("replace_peers", "replace_peers=true\npublic_key=K3\n", vec![bare.clone()]),
            ("itself", "public_key=K4\nallowed_ip=10.0.1.0/24\n", vec![one.clone(), two.clone()]),
            (
                "an allowed IP more",
                "public_key=K1\nallowed_ip=10.0.9.0/24\n",
                vec![peer(1, &["10.0.1.0/24", "10.0.9.0/24"]), two.clone()],
            ),
            (
                "an allowed IP taken",
                "public_key=K1\nallowed_ip=fd00::/64\n",
                vec![peer(1, &["10.0.1.0/24", "fd00::/64"]), peer(2, &["10.0.2.0/24"])],
            ),
            (
                "taken and given back",
                "public_key=K1\nallowed_ip=fd00::/64\npublic_key=K2\nallowed_ip=fd00::/64\n",
                vec![one.clone(), two.clone()],
            ),
            (
                "replaced",
                "public_key=K2\nreplace_allowed_ips=true\nallowed_ip=10.0.2.0/25\n",
                vec![one.clone(), peer(2, &["10.0.2.0/25"])],
            ),
            ("removed", "public_key=K2\nallowed_ip=-fd00::/64\n", vec![one.clone(), peer(2, &["10.0.2.0/24"])]),
            ("removed from the wrong peer", "public_key=K1\nallowed_ip=-fd00::/64\n", vec![one.clone(), two.clone()]),
            (
                "keepalive off",
                "public_key=K1\npersistent_keepalive_interval=0\n",
                vec![PeerSettings { persistent_keepalive: None, ..one.clone() }, two.clone()],
            ),
            (
                "endpoint",
                "public_key=K1\nendpoint=[::1]:1\n",
                vec![PeerSettings { endpoint: Some("[::1]:1".parse().unwrap()), ..one.clone() }, two.clone()],
            ),
        ] {
            assert_eq!(after(lines), expected, "{what}");
        }
    }

    #[test]
    fn a_peer_that_survives_replacing_keeps_where_it_was_heard_of() {
        let peers = after("replace_peers=true\npublic_key=K1\nallowed_ip=10.0.1.0/24\n");
        assert_eq!(peers, [PeerSettings { persistent_keepalive: None, ..peer(1, &["10.0.1.0/24"]) }]);
    }

    #[test]
    fn a_new_identity_is_no_peer_of_itself() {
        let current = [peer(1, &[]), peer(2, &[])];
        assert_eq!(apply(&Edits::default(), &current, &peer_key(1), Ability::Able), [peer(2, &[])]);
    }

    #[test]
    fn only_what_changed_is_set() {
        let old = [peer(1, &["10.0.2.0/24", "10.0.1.0/24"]), peer(2, &[]), peer(3, &[])];
        let changed = PeerSettings { endpoint: None, ..peer(2, &[]) };
        let new = vec![peer(1, &["10.0.1.0/24", "10.0.2.0/24"]), changed.clone(), peer(4, &[])];
        assert_eq!(difference(&old, new), (vec![peer_key(3)], vec![changed, peer(4, &[])]));
    }
}
