//! The text of UAPI: what wg(8) writes, and the answer to `get=1`.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::str::FromStr;
use std::time::UNIX_EPOCH;

use ipnet::IpNet;
use nix::errno::Errno;
use zeroize::Zeroizing;

use crate::key::{PresharedKey, PrivateKey, PublicKey};
use crate::tunnel::PeerSnapshot;

/// One message of a client.
#[derive(Debug, PartialEq, Eq)]
pub enum Request {
    /// `get=1`.
    Get,
    /// `set=1`.
    Set(Edits),
}

/// What a `set=1` asks for. What is `None` stays as it is.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Edits {
    /// The device's identity.
    pub private_key: Option<PrivateKey>,
    /// The UDP port; 0 picks one.
    pub listen_port: Option<u16>,
    /// Forgets all peers first.
    pub replace_peers: bool,
    /// In the message's order; a key may come more than once.
    pub peers: Vec<PeerEdit>,
}

/// What a `set=1` asks for one peer.
#[derive(Debug, PartialEq, Eq)]
pub struct PeerEdit {
    /// The peer.
    pub public_key: PublicKey,
    /// Forgets it.
    pub remove: bool,
    /// Does nothing when there is no such peer.
    pub update_only: bool,
    /// `Some(None)` removes it.
    pub preshared_key: Option<Option<PresharedKey>>,
    /// Where to reach it.
    pub endpoint: Option<SocketAddr>,
    /// Seconds; 0 is off.
    pub persistent_keepalive: Option<u16>,
    /// In the message's order.
    pub allowed_ips: Vec<AllowedIpEdit>,
}

/// One change of a peer's allowed IPs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AllowedIpEdit {
    /// `replace_allowed_ips=true`.
    Clear,
    /// `allowed_ip=NET`: also takes it from another peer.
    Add(IpNet),
    /// `allowed_ip=-NET`.
    Remove(IpNet),
}

/// Parses one message, given without the empty line that ends it. Nothing is half accepted.
pub fn parse(message: &str) -> Result<Request, Errno> {
    let mut lines = message.lines();
    match lines.next() {
        Some("get=1") if lines.next().is_none() => Ok(Request::Get),
        Some("set=1") => lines.try_fold(Edits::default(), edit).map(Request::Set),
        _ => Err(Errno::EINVAL),
    }
}

fn edit(mut edits: Edits, line: &str) -> Result<Edits, Errno> {
    let (key, value) = line.split_once('=').ok_or(Errno::EINVAL)?;
    if key == "public_key" {
        let public_key = PublicKey::from_bytes(*hex(value)?).map_err(|_| Errno::EINVAL)?;
        edits.peers.push(PeerEdit::new(public_key));
        return Ok(edits);
    }
    if let Some(peer) = edits.peers.last_mut() {
        peer.edit(key, value)?;
        return Ok(edits);
    }
    match key {
        // All zeros would take the identity away, and meshd has no tunnel without one.
        "private_key" => edits.private_key = Some(secret(value)?.map(PrivateKey::from_bytes).ok_or(Errno::EINVAL)?),
        "listen_port" => edits.listen_port = Some(number(value)?),
        // The routes select by where packets come from, so there is no mark to set; wg setconf always sends 0.
        "fwmark" if number::<u32>(value)? != 0 => return Err(Errno::EOPNOTSUPP),
        "fwmark" => {}
        "replace_peers" if value == "true" => edits.replace_peers = true,
        _ => return Err(Errno::EINVAL),
    }
    Ok(edits)
}

impl PeerEdit {
    /// One that changes nothing, but adds the peer.
    pub fn new(public_key: PublicKey) -> Self {
        Self {
            public_key,
            remove: false,
            update_only: false,
            preshared_key: None,
            endpoint: None,
            persistent_keepalive: None,
            allowed_ips: Vec::new(),
        }
    }

    fn edit(&mut self, key: &str, value: &str) -> Result<(), Errno> {
        match key {
            "remove" if value == "true" => self.remove = true,
            "update_only" if value == "true" => self.update_only = true,
            "preshared_key" => self.preshared_key = Some(secret(value)?.map(PresharedKey::from_bytes)),
            "endpoint" => self.endpoint = Some(value.parse().map_err(|_| Errno::EINVAL)?),
            "persistent_keepalive_interval" => self.persistent_keepalive = Some(number(value)?),
            "replace_allowed_ips" if value == "true" => self.allowed_ips.push(AllowedIpEdit::Clear),
            "allowed_ip" => self.allowed_ips.push(match value.strip_prefix('-') {
                Some(net) => AllowedIpEdit::Remove(network(net)?),
                None => AllowedIpEdit::Add(network(value)?),
            }),
            "protocol_version" if value == "1" => {}
            _ => return Err(Errno::EINVAL),
        }
        Ok(())
    }
}

/// The answer to `get=1`, without the `errno` that ends it.
pub fn render(private_key: &PrivateKey, listen_port: u16, peers: &[PeerSnapshot]) -> Zeroizing<String> {
    // Enough from the start: a buffer that grows would leave copies of the keys behind.
    let nets: usize = peers.iter().map(|peer| peer.settings.allowed_ips.len()).sum();
    let mut text = Zeroizing::new(String::with_capacity(256 + 512 * peers.len() + 64 * nets));
    push_key(&mut text, "private_key", private_key.expose_bytes());
    let _ = writeln!(text, "listen_port={listen_port}");
    for peer in peers {
        push_peer(&mut text, peer);
    }
    text
}

fn push_peer(text: &mut String, peer: &PeerSnapshot) {
    let settings = &peer.settings;
    push_key(text, "public_key", settings.public_key.as_bytes());
    push_key(text, "preshared_key", settings.preshared_key.as_ref().map_or(&[0; 32], PresharedKey::expose_bytes));
    let _ = writeln!(text, "protocol_version=1");
    if let Some(endpoint) = settings.endpoint {
        let _ = writeln!(text, "endpoint={endpoint}");
    }
    let handshake = peer.latest_handshake.and_then(|at| at.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
    let _ = writeln!(text, "last_handshake_time_sec={}", handshake.as_secs());
    let _ = writeln!(text, "last_handshake_time_nsec={}", handshake.subsec_nanos());
    let _ = writeln!(text, "tx_bytes={}", peer.tx_bytes);
    let _ = writeln!(text, "rx_bytes={}", peer.rx_bytes);
    let _ = writeln!(text, "persistent_keepalive_interval={}", settings.persistent_keepalive.unwrap_or(0));
    for net in &settings.allowed_ips {
        let _ = writeln!(text, "allowed_ip={net}");
    }
}

fn push_key(text: &mut String, name: &str, key: &[u8; 32]) {
    let _ = write!(text, "{name}=");
    for byte in key {
        let _ = write!(text, "{byte:02x}");
    }
    text.push('\n');
}

fn hex(text: &str) -> Result<Zeroizing<[u8; 32]>, Errno> {
    let mut key = Zeroizing::new([0; 32]);
    // from_str_radix alone would take a sign.
    if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(Errno::EINVAL);
    }
    for (index, byte) in key.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * index..2 * index + 2], 16).map_err(|_| Errno::EINVAL)?;
    }
    Ok(key)
}

/// A key that all zeros take away.
fn secret(text: &str) -> Result<Option<[u8; 32]>, Errno> {
    let key = hex(text)?;
    Ok((*key != [0; 32]).then_some(*key))
}

fn number<T: FromStr>(text: &str) -> Result<T, Errno> {
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(Errno::EINVAL);
    }
    text.parse().map_err(|_| Errno::EINVAL)
}

fn network(text: &str) -> Result<IpNet, Errno> {
    text.parse().map(|net: IpNet| net.trunc()).map_err(|_| Errno::EINVAL)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use proptest::prelude::*;

    use super::*;
    use crate::control::fake::{hex_of, peer_key};
    use crate::express::{Ability, Reason};
    use crate::key::NextKeys;
    use crate::tunnel::{Cipher, PeerSettings, PeerState};

    fn set(lines: &str) -> Result<Edits, Errno> {
        match parse(&format!("set=1\n{lines}")) {
            Ok(Request::Set(edits)) => Ok(edits),
            Ok(Request::Get) => panic!("taken for get=1"),
            Err(errno) => Err(errno),
        }
    }

    #[test]
    fn the_example_of_the_specification_parses() {
        // https://www.wireguard.com/xplatform/#example-dialog
        let edits = set("private_key=e84b5a6d2717c1003a13b431570353dbaca9146cf150c5f8575680feba52027a\n\
             fwmark=0\n\
             listen_port=12912\n\
             replace_peers=true\n\
             public_key=b85996fecc9c7f1fc6d2572a76eda11d59bcd20be8e543b15ce4bd85a8e75a33\n\
             preshared_key=188515093e952f5f22e865cef3012e72f8b5f0b598ac0309d5dacce3b70fcf52\n\
             replace_allowed_ips=true\n\
             allowed_ip=192.168.4.4/32\n\
             endpoint=[abcd:23::33%2]:51820\n\
             public_key=58402e695ba1772b1cc9309755f043251ea77fdcf10fbe63989ceb7e19321376\n\
             replace_allowed_ips=true\n\
             allowed_ip=192.168.4.6/32\n\
             persistent_keepalive_interval=111\n\
             endpoint=182.122.22.19:3233\n\
             public_key=662e14fd594556f522604703340351258903b64f35553763f19426ab2a515c58\n\
             remove=true\n")
        .unwrap();
        assert_eq!(edits.private_key.unwrap().expose_bytes()[..2], [0xe8, 0x4b]);
        assert_eq!((edits.listen_port, edits.replace_peers, edits.peers.len()), (Some(12912), true, 3));
        let [first, second, third] = &edits.peers[..] else { panic!() };
        assert_eq!(first.endpoint.unwrap().to_string(), "[abcd:23::33%2]:51820");
        assert_eq!(first.preshared_key.as_ref().unwrap().as_ref().unwrap().expose_bytes()[..2], [0x18, 0x85]);
        assert_eq!(second.persistent_keepalive, Some(111));
        let net = "192.168.4.6/32".parse().unwrap();
        assert_eq!(second.allowed_ips, [AllowedIpEdit::Clear, AllowedIpEdit::Add(net)]);
        assert!(third.remove && !second.remove);
    }

    #[test]
    fn what_is_wrong_anywhere_refuses_all() {
        let peer = format!("public_key={}", hex_of(peer_key(1).as_bytes()));
        for (lines, errno) in [
            ("nonsense".to_owned(), Errno::EINVAL),
            ("listen_port=65536".to_owned(), Errno::EINVAL),
            ("listen_port=+1".to_owned(), Errno::EINVAL),
            ("listen_port=".to_owned(), Errno::EINVAL),
            ("replace_peers=false".to_owned(), Errno::EINVAL),
            ("private_key=00".to_owned(), Errno::EINVAL),
            (format!("private_key={}", "+1".repeat(32)), Errno::EINVAL),
            (format!("private_key={}", "é".repeat(32)), Errno::EINVAL),
            (format!("private_key={}", "0".repeat(64)), Errno::EINVAL),
            (format!("public_key={}", "0".repeat(64)), Errno::EINVAL),
            ("fwmark=51820".to_owned(), Errno::EOPNOTSUPP),
            ("allowed_ip=10.0.0.0/8".to_owned(), Errno::EINVAL),
            (format!("{peer}\nlisten_port=1"), Errno::EINVAL),
            (format!("{peer}\nallowed_ip=10.0.0.0"), Errno::EINVAL),
            (format!("{peer}\nallowed_ip=10.0.0.0/33"), Errno::EINVAL),
            (format!("{peer}\nallowed_ip=--10.0.0.0/8"), Errno::EINVAL),
            (format!("{peer}\nendpoint=vps.example.net:51820"), Errno::EINVAL),
            (format!("{peer}\npersistent_keepalive_interval=65536"), Errno::EINVAL),
            (format!("{peer}\nprotocol_version=2"), Errno::EINVAL),
            (format!("{peer}\nremove=1"), Errno::EINVAL),
            (format!("{peer}\n\nremove=true"), Errno::EINVAL),
        ] {
            assert_eq!(set(&format!("listen_port=1\n{lines}")), Err(errno), "{lines}");
        }
        for message in ["", "\n", "get=2", "get=1\nx=y", "set=2", "set=1 ", "GET / HTTP/1.1\r\n"] {
            assert_eq!(parse(message), Err(Errno::EINVAL), "{message:?}");
        }
        assert_eq!(parse("get=1"), Ok(Request::Get));
        assert_eq!(set(""), Ok(Edits::default()));
    }

    #[test]
    fn host_bits_are_cut_off_and_zeros_remove_the_preshared_key() {
        let key = hex_of(peer_key(1).as_bytes());
        let edits = set(&format!(
            "public_key={key}\npreshared_key={}\nallowed_ip=10.1.2.3/8\nallowed_ip=-fd00::1/64\nupdate_only=true",
            "0".repeat(64)
        ))
        .unwrap();
        let expected = PeerEdit {
            update_only: true,
            preshared_key: Some(None),
            allowed_ips: vec![
                AllowedIpEdit::Add("10.0.0.0/8".parse().unwrap()),
                AllowedIpEdit::Remove("fd00::/64".parse().unwrap()),
            ],
            ..PeerEdit::new(peer_key(1))
        };
        assert_eq!(edits.peers, [expected]);
    }

    #[test]
    fn the_answer_to_get_is_that_of_wireguard_go() {
        let key = PrivateKey::from_bytes([0xab; 32]);
        let peers = [
            PeerSnapshot {
                settings: PeerSettings {
                    public_key: peer_key(1),
                    preshared_key: Some(PresharedKey::from_bytes([0xcd; 32])),
                    endpoint: Some("[2001:db8::1]:51820".parse().unwrap()),
                    persistent_keepalive: Some(25),
                    allowed_ips: vec!["10.0.0.0/8".parse().unwrap(), "::/0".parse().unwrap()],
                    deliver: false,
                    via: None,
                    next: NextKeys::default(),
                    express: Ability::Unable(Reason::Off),
                },
                latest_handshake: Some(SystemTime::UNIX_EPOCH + Duration::new(1_700_000_000, 7)),
                rx_bytes: 11,
                unanswered: std::time::Duration::ZERO,
                heard: None,
                cipher: Cipher::default(),
                express: crate::express::Snapshot::default(),
                agent: false,
                relayed: None,
                tx_bytes: u64::MAX,
                state: PeerState::Up,
            },
            PeerSnapshot {
                settings: PeerSettings {
                    public_key: peer_key(2),
                    preshared_key: None,
                    endpoint: None,
                    persistent_keepalive: None,
                    allowed_ips: vec![],
                    deliver: false,
                    via: None,
                    next: NextKeys::default(),
                    express: Ability::Unable(Reason::Off),
                },
                latest_handshake: None,
                rx_bytes: 0,
                unanswered: std::time::Duration::ZERO,
                heard: None,
                cipher: Cipher::default(),
                express: crate::express::Snapshot::default(),
                agent: false,
                relayed: None,
                tx_bytes: 0,
                state: PeerState::Down,
            },
        ];
        let (one, two) = (hex_of(peer_key(1).as_bytes()), hex_of(peer_key(2).as_bytes()));
        let (ab, cd, zeros) = ("ab".repeat(32), "cd".repeat(32), "0".repeat(64));
        assert_eq!(
            *render(&key, 51820, &peers),
            format!(
                "private_key={ab}\nlisten_port=51820\n\
                 public_key={one}\npreshared_key={cd}\nprotocol_version=1\nendpoint=[2001:db8::1]:51820\n\
                 last_handshake_time_sec=1700000000\nlast_handshake_time_nsec=7\n\
                 tx_bytes=18446744073709551615\nrx_bytes=11\npersistent_keepalive_interval=25\n\
                 allowed_ip=10.0.0.0/8\nallowed_ip=::/0\n\
                 public_key={two}\npreshared_key={zeros}\nprotocol_version=1\n\
                 last_handshake_time_sec=0\nlast_handshake_time_nsec=0\n\
                 tx_bytes=0\nrx_bytes=0\npersistent_keepalive_interval=0\n"
            )
        );
    }

    proptest! {
        #[test]
        fn garbage_never_panics(message in "(set=1\n)?([a-z_]{0,30}=?[ -~é]{0,70}\n){0,8}") {
            let _ = parse(&message);
        }

        #[test]
        fn what_is_rendered_can_be_set(seed in 1u8..200, port: u16, keepalive in proptest::option::of(1u16..), psk: [u8; 32],
                                       nets in proptest::collection::btree_set((any::<[u8; 4]>(), 0u8..=32), 0..20)) {
            let mut nets: Vec<IpNet> = nets
                .into_iter()
                .map(|(addr, len)| IpNet::new(std::net::IpAddr::from(addr), len).unwrap().trunc())
                .collect();
            nets.sort();
            nets.dedup();
            let settings = PeerSettings {
                public_key: peer_key(seed),
                preshared_key: Some(psk).filter(|psk| *psk != [0; 32]).map(PresharedKey::from_bytes),
                endpoint: Some("192.0.2.1:7".parse().unwrap()),
                persistent_keepalive: keepalive,
                allowed_ips: nets,
                deliver: false,
                via: None,
                next: NextKeys::default(),
                express: Ability::Unable(Reason::Off),
            };
            let snapshot = PeerSnapshot {
                settings: settings.clone(),
                latest_handshake: None,
                rx_bytes: 0,
                unanswered: std::time::Duration::ZERO,
                heard: None,
                cipher: Cipher::default(),
                express: crate::express::Snapshot::default(),
                agent: false,
                relayed: None,
                tx_bytes: 0,
                state: PeerState::Down,
            };
            let key = PrivateKey::from_bytes([255; 32]);
            let text = render(&key, port, &[snapshot]);
            // These three kinds of line are for reading only.
            let lines: Vec<&str> = text
                .lines()
                .filter(|line| !["last_", "rx_", "tx_"].iter().any(|prefix| line.starts_with(prefix)))
                .collect();
            let edits = set(&lines.join("\n")).unwrap();
            prop_assert_eq!(edits.listen_port, Some(port));
            prop_assert_eq!(super::super::edit::apply(&edits, &[], &key.public_key(), settings.express), vec![settings]);
        }
    }
}
