//! Devices with the stock app, and hosts that come from wg-quick: Debian's wireguard-go with the files that meshd prints.

mod lab;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use lab::host::Host;
use lab::phone::{apply, everything, wireguard_go};
use lab::services::Service;
use lab::traffic::seen_by;
use lab::{Lab, NEXTCLOUD, NEXTCLOUD6, PORT, PROXY, PROXY6, VPS, VPS6, WEB, WEB6};

/// Home's router, as a device on its LAN.
const DEVICE: &str = "192.168.1.1";
/// What the VPS gives out first: its own is 1, home has 2, the phone of the example 3.
const ADDRESS: &str = "10.88.0.4";
/// The same over IPv6.
const ADDRESS6: &str = "fd88::4";

/// A host on the internet with wireguard-go, that nobody knows yet; home shares its LAN, and both agents are up.
fn tablet(lab: &Lab) -> Host {
    let tablet = lab.add_host("tablet", 104);
    fs::remove_file(lab.vps.config("peers/tablet.toml")).expect("remove");
    lab.home.append("meshd.toml", "[[lan]]\nsubnet = \"192.168.1.0/24\"\ninterface = \"eth0\"");
    lab.vps.replace("peers/home.toml", "\"fd89:2::/64\"", "\"fd89:2::/64\", \"192.168.1.0/24\"");
    lab.vps.append("peers/home.toml", "lans = [\"192.168.1.0/24\"]");
    lab.start();
    wireguard_go(&tablet);
    tablet
}

fn private_key(conf: &str) -> &str {
    conf.lines().find_map(|line| line.strip_prefix("PrivateKey = ")).expect("a private key")
}

/// Whether a file in this folder, or below it, has this text.
fn holds(folder: &Path, text: &str) -> bool {
    fs::read_dir(folder).expect("a folder").flatten().any(|entry| {
        let path = entry.path();
        match entry.file_type().expect("a type") {
            kind if kind.is_dir() => holds(&path, text),
            kind if kind.is_file() => String::from_utf8_lossy(&fs::read(path).expect("a file")).contains(text),
            _ => false,
        }
    })
}

#[test]
fn a_client_reaches_every_bridge_and_nothing_else() {
    let lab = Lab::new();
    let tablet = tablet(&lab);
    let conf = lab.vps.meshd(&["peer", "add", "tablet", "--client"]);
    for folder in ["etc", "run", "state"] {
        let folder = lab.vps.config("").parent().expect("a folder").join(folder);
        assert!(!holds(&folder, private_key(&conf)), "the private key is in {}", folder.display());
    }
    assert!(conf.contains(&format!("Address = {ADDRESS}/32, {ADDRESS6}/128\n")), "{conf}");
    apply(&tablet, &conf);
    let (proxy, nextcloud) = (Service::start(&lab.proxy, 9000), Service::start(&lab.nextcloud, 9000));
    proxy.expect(&tablet, true, &[PROXY, PROXY6]);
    nextcloud.expect(&tablet, true, &[NEXTCLOUD, NEXTCLOUD6]);
    assert!(tablet.ping("10.88.0.1") && tablet.ping("fd88::1"), "the VPS answers a ping");

    // Whatever the device makes of its file.
    tablet.run(&format!("wg set mesh0 peer {} allowed-ips 0.0.0.0/0,::/0", lab.vps.public_key()));
    everything(&tablet, 104);
    let (at_vps, at_home, at_device) =
        (Service::start(&lab.vps, 9000), Service::start(&lab.home, 9000), Service::start(&lab.isp, 9000));
    at_device.expect(&lab.proxy, true, &[DEVICE]);
    at_vps.expect(&tablet, false, &["10.88.0.1", "fd88::1", "10.89.1.1", "fd89:1::1", VPS6]);
    at_home.expect(&tablet, false, &["10.88.0.2", "fd88::2", "10.89.2.1", "fd89:2::1"]);
    at_device.expect(&tablet, false, &[DEVICE]);
    assert!(seen_by(&tablet, WEB).is_err() && seen_by(&tablet, WEB6).is_err(), "the internet was not given");
    proxy.expect(&tablet, true, &[PROXY, PROXY6]);
}

#[test]
fn a_full_tunnel_leaves_as_the_exit_and_a_lan_is_open_where_it_was_granted() {
    let lab = Lab::new();
    let tablet = tablet(&lab);
    // What the tablet sends to a LAN comes by the VPS, under its own address.
    lab.home.replace("peers/vps.toml", "\"fd88::1\"", &format!("\"fd88::1\", \"{ADDRESS}\", \"{ADDRESS6}\""));
    lab.home.meshd(&["reload"]);
    let file = lab.path("tablet.conf");
    let path = file.to_str().expect("text");
    let before = lab.vps.read("meshd.toml");
    let out = lab.vps.meshd(&["peer", "add", "tablet", "--client", "--full-tunnel", "--lan", "home", "--out", path]);
    assert_eq!(out, "");
    assert_eq!(fs::metadata(&file).expect("a file").permissions().mode() & 0o7777, 0o600);
    assert_eq!(lab.vps.read("meshd.toml"), before.replace("\"phone\"]", "\"phone\", \"tablet\"]"));
    let conf = fs::read_to_string(&file).expect("a file");
    assert!(conf.contains("AllowedIPs = 0.0.0.0/0, ::/0\n"), "{conf}");
    apply(&tablet, &conf);
    everything(&tablet, 104);
    assert_eq!(seen_by(&tablet, WEB).expect("the exit"), VPS);
    assert_eq!(seen_by(&tablet, WEB6).expect("the exit"), VPS6);
    Service::start(&lab.isp, 9000).expect(&tablet, true, &[DEVICE]);
    Service::start(&lab.nextcloud, 9000).expect(&tablet, true, &[NEXTCLOUD, NEXTCLOUD6]);
    Service::start(&lab.vps, 9000).expect(&tablet, false, &["10.88.0.1", "fd88::1", VPS6]);
    Service::start(&lab.home, 9000).expect(&tablet, false, &["10.88.0.2", "fd88::2"]);
}

#[test]
fn what_the_agent_refuses_leaves_nothing() {
    let lab = Lab::new();
    lab.start();
    let (host, file) = (lab.vps.read("meshd.toml"), lab.path("tablet.conf"));
    let path = file.to_str().expect("text");
    // Valid in itself, and nothing that a running agent changes.
    lab.vps.write("meshd.toml", &format!("interface = \"mesh9\"\n{host}"));
    let args = ["peer", "add", "tablet", "--client", "--full-tunnel", "--out", path];
    let said = lab.vps.meshd_fails(4, &args);
    assert!(said.contains("peer tablet: not added"), "{said}");
    assert!(!file.exists() && !lab.vps.config("peers/tablet.toml").exists());
    assert_eq!(lab.vps.read("meshd.toml"), format!("interface = \"mesh9\"\n{host}"));
}

#[test]
fn a_setup_of_wg_quick_goes_on_as_one_of_meshd() {
    let lab = Lab::new();
    let (home, vps) = (lab.home.read("private.key"), lab.vps.read("private.key"));
    let (home_public, vps_public) = (lab.home.public_key(), lab.vps.public_key());
    // The VPS keeps what it has: wireguard-go, and forwarding.
    wireguard_go(&lab.vps);
    apply(
        &lab.vps,
        &format!(
            "[Interface]\nPrivateKey = {}\nAddress = 10.88.0.1/24, fd88::1/64\nListenPort = {PORT}\n[Peer]\n\
             PublicKey = {home_public}\nAllowedIPs = 10.88.0.2/32, fd88::2/128, 10.89.2.0/24, fd89:2::/64\n",
            vps.trim(),
        ),
    );
    lab.vps.run("echo 1 >/proc/sys/net/ipv4/ip_forward; echo 1 >/proc/sys/net/ipv6/conf/all/forwarding");

    let conf = lab.path("wg0.conf");
    let text = format!(
        "[Interface]\nPrivateKey = {}\nAddress = 10.88.0.2/24, fd88::2/64\nDNS = 10.88.0.1\nPostUp = iptables -t nat -A POSTROUTING \
         -o eth0 -j MASQUERADE\n\n# vps\n[Peer]\nPublicKey = {vps_public}\nEndpoint = {VPS}:{PORT}\nAllowedIPs = 10.88.0.1/32, \
         fd88::1/128, 10.89.1.0/24, fd89:1::/64\nPersistentKeepalive = 25\n",
        home.trim(),
    );
    fs::write(&conf, &text).expect("write");
    fs::remove_dir_all(lab.home.config("")).expect("remove the worked example");
    let path = conf.to_str().expect("text");
    let args = ["import", path, "--name", "home", "--bridge", "br0=10.89.2.0/24,fd89:2::/64"];
    let shown = lab.home.meshd(&args);
    assert!(!lab.home.config("").exists(), "a look writes nothing");
    assert!(!shown.contains(home.trim()) && shown.contains("+(secret)"), "{shown}");
    lab.home.meshd(&[&args[..], &["--yes"]].concat());
    assert_eq!(fs::read_to_string(&conf).expect("read"), text);
    assert_eq!(lab.home.public_key(), home_public);
    lab.home.up();
    for to in ["10.88.0.1", "fd88::1", PROXY, PROXY6] {
        assert!(lab.nextcloud.ping(to), "{to}");
    }
    assert!(lab.proxy.ping(NEXTCLOUD) && lab.proxy.ping(NEXTCLOUD6));
}
