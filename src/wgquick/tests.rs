//! What is written is read again, what is wrong is named, and nothing makes the parser panic.

use proptest::prelude::*;

use super::*;
use crate::config::{Problem, SourceFile, value};

const KEY: &str = "yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=";
const VPS: &str = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=";
const PHONE: &str = "TrMvSoP4jYQlY6RIzBgbssQqY3vxI2Pi+y71lOWWXX0=";

fn source(text: impl AsRef<[u8]>) -> SourceFile {
    SourceFile { path: "wg0.conf".into(), text: text.as_ref().to_vec() }
}

fn parsed(text: &str) -> Conf {
    parse(&source(text)).unwrap()
}

#[track_caller]
fn says(text: &str, expected: &[&str]) {
    let problems = parse(&source(text)).map_or_else(|problems| problems, |_| Vec::new());
    assert_eq!(problems.iter().map(ToString::to_string).collect::<Vec<_>>(), expected);
}

#[test]
fn a_file_as_people_write_it_is_read_as_wg_quick_reads_it() {
    let text = format!(
        "\u{feff}# my server\r\n[interface] # here\r\nprivatekey={KEY}\r\n ADDRESS = 10.88.0.2/24,fd88::2/64\r\nAddress=10.99.0.2\r\n\
         DNS = 10.88.0.1, example.net fd88::1\r\nMTU=1400\r\nTable = off\r\nFwMark = 0xca6c\r\nSaveConfig = True\r\n\
         PostUp = iptables -t nat -A POSTROUTING -o eth0 -j MASQUERADE # NAT\r\nPreDown = echo a=b\r\n\r\n\
         # vps\r\n[PEER]\r\nPublicKey = {VPS}\r\nPresharedKey={KEY}\r\nAllowedIPs = 10.88.0.1/24\r\nAllowedIPs = 10.89.1.0/24, ::/0\r\n\
         Endpoint = vps.example.net:51820\r\nPersistentKeepalive = off\r\n#Endpoint = 1.2.3.4:5\r\n# Name = Phone\r\n[Peer]\r\nPublicKey={PHONE}"
    );
    let conf = parsed(&text);
    let net = |text: &str| text.parse::<IpNet>().unwrap();
    let interface = &conf.interface;
    assert_eq!(interface.private_key.as_ref().unwrap().expose_base64(), KEY);
    assert_eq!(interface.addresses, ["10.88.0.2/24", "fd88::2/64", "10.99.0.2/32"].map(net));
    assert_eq!((interface.dns.len(), interface.search.as_slice()), (2, &["example.net".to_owned()][..]));
    assert_eq!((interface.mtu, interface.fwmark, interface.save_config), (Some(1400), Some(0xca6c), true));
    assert_eq!(interface.hooks[0].command, "iptables -t nat -A POSTROUTING -o eth0 -j MASQUERADE");
    assert_eq!((interface.hooks[1].when, interface.hooks[1].command.as_str()), (When::PreDown, "echo a=b"));
    let [vps, phone] = &conf.peers[..] else { panic!("{conf:?}") };
    assert_eq!(vps.name.as_deref(), Some("vps"));
    assert_eq!(vps.allowed_ips, ["10.88.0.0/24", "10.89.1.0/24", "::/0"].map(net));
    assert_eq!((vps.persistent_keepalive, vps.endpoint.as_ref().unwrap().port()), (None, 51820));
    assert_eq!(phone.name.as_deref(), Some("phone"), "a comment above a section is about that one");
    assert!(!format!("{conf:?}").contains(KEY), "a secret shows");
}

#[test]
fn names_come_from_sound_comments_only() {
    for (text, name) in [
        ("[Peer] # phone\n", Some("phone")),
        ("[Peer]\n# phone\n", Some("phone")),
        ("# friendly_name = phone\n[Peer]\n", Some("phone")),
        ("# phone\n\n[Peer]\n", Some("phone")),
        ("[Peer]\n# the phone of Anna\n# anna\n", Some("anna")),
        ("# ../../etc/passwd\n[Peer]\n", None),
        ("# \u{1b}[2Jphone\n[Peer]\n", None),
        ("# direct\n[Peer]\n", None),
    ] {
        let conf = parsed(&format!("{text}PublicKey = {VPS}\n"));
        assert_eq!(conf.peers[0].name.as_deref(), name, "{text:?}");
    }
}

#[test]
fn every_mistake_is_named_with_its_line_and_no_secret() {
    let secret = &KEY[..40];
    says(
        &format!(
            "Address = 10.88.0.1\n[Interface]\nPrivateKey = {secret}\nAddress = ten\nListenPort = 70000\nMTU = big\n\
             DNS = 1.2.3\nFwMark = red\nSaveConfig = yes\nColour = red\nnonsense\n[Peer]\nPublicKey = abc\n\
             PresharedKey = {secret}\nAllowedIPs = 10.0.0.0/33\nEndpoint = vps\nPersistentKeepalive = often\n[Pear]\n"
        ),
        &[
            "wg0.conf:1: \"Address\" stands in neither [Interface] nor [Peer]",
            "wg0.conf:3: PrivateKey: not a key: expected 44 characters of base64",
            "wg0.conf:4: Address \"ten\": \"ten\" is no network; expected such as 10.88.0.2/32 or fd88::/64",
            "wg0.conf:5: ListenPort \"70000\": expected a number from 0 to 65535",
            "wg0.conf:6: MTU \"big\": expected a number from 0 to 65535",
            "wg0.conf:7: DNS \"1.2.3\": \"1.2.3\" is no address",
            "wg0.conf:8: FwMark \"red\": expected off, a number or 0x and hexadecimal digits",
            "wg0.conf:9: SaveConfig \"yes\": expected true or false",
            "wg0.conf:10: unknown key \"Colour\" in [Interface]; known keys: PrivateKey, Address, ListenPort, DNS, MTU, \
             Table, FwMark, SaveConfig, PreUp, PostUp, PreDown, PostDown, IncludedApplications, ExcludedApplications",
            "wg0.conf:11: expected KEY = VALUE, [Interface] or [Peer]",
            "wg0.conf:13: PublicKey \"abc\": not a key: expected 44 characters of base64",
            "wg0.conf:14: PresharedKey: not a key: expected 44 characters of base64",
            "wg0.conf:15: AllowedIPs \"10.0.0.0/33\": \"10.0.0.0/33\" is no network; expected such as 10.88.0.2/32 or fd88::/64",
            "wg0.conf:16: Endpoint \"vps\": no port; write vps:51820",
            "wg0.conf:17: PersistentKeepalive \"often\": expected a number from 0 to 65535",
            "wg0.conf:18: section \"[Pear]\": expected [Interface] or [Peer]",
        ],
    );
    says("[Interface]\n\n[Peer]\nAllowedIPs = ::/0\n", &["wg0.conf:3: [Peer] without PublicKey; write the peer's"]);
    let low_order = "[Peer]\nPublicKey = AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n";
    let line = parse(&source(low_order)).unwrap_err()[0].to_string();
    assert!(line.starts_with("wg0.conf:2: PublicKey ") && line.contains("low-order"), "{line}");
    let line = |bytes: &[u8]| -> Vec<Problem> { parse(&source(bytes)).unwrap_err() };
    assert_eq!(line(b"\n\n\xff")[0].line, 3);
    assert!(line(&vec![b'#'; 10 << 20])[0].message.starts_with("larger than 1024 KiB"));
    assert!(line("x\n".repeat(100_000).as_bytes()).len() <= 50, "errors are bounded");
}

#[test]
fn a_compact_file_says_the_same() {
    let mut conf = parsed(&format!(
        "[Interface]\nPrivateKey = {KEY}\nAddress = 10.88.0.3/32, fd88::3/128\nPostUp = a, b = c\n[Peer]\nPublicKey = {VPS}\n# vps\n\
         AllowedIPs = 0.0.0.0/0, ::/0\n"
    ));
    conf.peers[0].name = None;
    let compact = conf.expose_compact();
    assert!(!compact.contains(" = \n") && compact.len() < conf.expose_text().len(), "{}", *compact);
    assert_eq!(parsed(&compact), conf);
}

prop_compose! {
    fn net()(v6: bool, bits: u128, prefix in 0_u8..=128) -> IpNet {
        if v6 {
            IpNet::new(IpAddr::V6(bits.into()), prefix).unwrap()
        } else {
            IpNet::new(IpAddr::V4(((bits >> 96) as u32).into()), prefix % 33).unwrap()
        }
    }
}

fn private_key() -> impl Strategy<Value = PrivateKey> {
    any::<[u8; 32]>().prop_map(PrivateKey::from_bytes)
}

fn endpoint() -> impl Strategy<Value = Endpoint> {
    let text = prop_oneof![
        "[a-z]{1,9}\\.example:[1-9][0-9]{0,3}",
        (1_u8..224, any::<[u8; 3]>(), 1_u16..).prop_map(|(a, [b, c, d], port)| format!("{a}.{b}.{c}.{d}:{port}")),
        (any::<u64>(), 1_u16..).prop_map(|(low, port)| format!("[2001:db8::{:x}]:{port}", low % 0xffff)),
    ];
    text.prop_map(|text| value::endpoint(&text).unwrap())
}

prop_compose! {
    fn interface()(
        private_key in proptest::option::of(private_key()),
        addresses in proptest::collection::vec(net(), 0..5),
        listen_port in proptest::option::of(1_u16..),
        mtu in proptest::option::of(any::<u16>()),
        dns in proptest::collection::vec(any::<std::net::Ipv4Addr>().prop_map(IpAddr::V4), 0..3),
        search in proptest::collection::vec("[a-z]{2,9}\\.[a-z]{2,5}", 0..3),
        table in proptest::option::of("off|auto|[1-9][0-9]{0,4}"),
        fwmark in proptest::option::of(any::<u32>()),
        save_config: bool,
        hooks in proptest::collection::vec(
            (0_usize..4, "[!-\"$-~]([ -\"$-~]{0,30}[!-\"$-~])?").prop_map(|(at, command)| {
                Hook { when: When::ALL[at].0, command }
            }),
            0..4,
        ),
    ) -> Interface {
        Interface { private_key, addresses, listen_port, mtu, dns, search, table, fwmark, save_config, hooks }
    }
}

prop_compose! {
    fn peer()(
        name in proptest::option::of("[a-z]([a-z0-9-]{0,20}[a-z0-9])?".prop_filter("sound", |name| value::name(name).is_ok())),
        key in private_key(),
        preshared_key in proptest::option::of(any::<[u8; 32]>().prop_map(PresharedKey::from_bytes)),
        allowed_ips in proptest::collection::vec(net().prop_map(|net| net.trunc()), 0..8),
        endpoint in proptest::option::of(endpoint()),
        persistent_keepalive in proptest::option::of(1_u16..),
    ) -> Peer {
        Peer { name, public_key: key.public_key(), preshared_key, allowed_ips, endpoint, persistent_keepalive }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn what_is_written_is_read_again(
        interface in interface(),
        peers in proptest::collection::vec(peer(), 0..4),
    ) {
        let conf = Conf { interface, peers };
        let text = conf.expose_text();
        prop_assert_eq!(&parse(&source(text.as_str())).unwrap(), &conf);
        // As an editor on Windows leaves it.
        prop_assert_eq!(&parse(&source(text.replace('\n', "\r\n"))).unwrap(), &conf);
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = parse(&source(bytes));
    }

    #[test]
    fn damaged_files_never_panic_and_say_a_line_that_exists(
        conf in (interface(), proptest::collection::vec(peer(), 0..3)),
        at in any::<prop::sample::Index>(),
        byte: u8,
    ) {
        let conf = Conf { interface: conf.0, peers: conf.1 };
        let mut bytes = conf.expose_text().as_bytes().to_vec();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        let lines = bytes.split(|byte| *byte == b'\n').count();
        for problem in parse(&source(bytes)).err().unwrap_or_default() {
            prop_assert!((1..=lines).contains(&problem.line), "{problem}");
            prop_assert!(!problem.message.chars().any(char::is_control), "{problem}");
        }
    }
}
