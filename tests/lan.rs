//! A network behind a host, shared with the mesh.

mod lab;

use lab::capture::Capture;
use lab::phone::{self, PHONE, PHONE6};
use lab::services::Service;
use lab::traffic::{MARKER, WebServer, seen_by, transfer};
use lab::{HOME6, Lab, NEXTCLOUD, NEXTCLOUD6, PORT, PROXY, PROXY6, VPS, WEB};

/// The device on home's LAN: its router.
const DEVICE: &str = "192.168.1.1";
/// The same over IPv6, where the LAN has a public prefix.
const DEVICE6: &str = "2001:db8:168::1";
/// Home's own address on its LAN.
const HOME: &str = "192.168.1.20";

/// Home shares its LAN, the VPS knows that it does, and home that the phone is behind the VPS.
fn share(lab: &Lab, masquerade: bool) {
    for subnet in ["192.168.1.0/24", "2001:db8:168::/64"] {
        lab.home.append(
            "meshd.toml",
            &format!("[[lan]]\nsubnet = \"{subnet}\"\ninterface = \"eth0\"\nmasquerade = {masquerade}"),
        );
    }
    lab.vps.replace("peers/home.toml", "\"fd89:2::/64\"", "\"fd89:2::/64\", \"192.168.1.0/24\", \"2001:db8:168::/64\"");
    // What the phone sends to a LAN comes by the VPS, under its own address.
    lab.home.replace("peers/vps.toml", "\"fd88::1\"", &format!("\"fd88::1\", \"{PHONE}\", \"{PHONE6}\""));
}

#[test]
fn a_masqueraded_lan_needs_no_route_back() {
    let lab = Lab::new();
    share(&lab, true);
    let phone = phone::start_all(&lab, "client = true\nallow = [\"192.168.1.0/24\", \"2001:db8:168::1 tcp/80\"]");
    let _web = WebServer::start(&lab.isp, 80);
    let udp = Service::start(&lab.isp, 9000);
    for (device, home) in [(DEVICE, HOME), (DEVICE6, HOME6)] {
        for from in [&*lab.vps, &lab.proxy, &*phone] {
            assert_eq!(seen_by(from, device).unwrap_or_else(|error| panic!("{}: {error}", from.name())), home);
        }
        for from in [&*lab.vps, &lab.proxy] {
            assert!(udp.udp(from, device) && from.ping(device), "{} to {device}", from.name());
        }
    }
    assert!(udp.udp(&phone, DEVICE) && phone.ping(DEVICE), "given whole");
    assert!(!udp.udp(&phone, DEVICE6) && !phone.ping(DEVICE6), "of this, one port is given");
    // As at the exit, no client takes the tunnel's port.
    let seen = udp.udp_from(&lab.proxy, &format!("0.0.0.0:{PORT}"), DEVICE).expect("a datagram");
    assert!(seen.ip().to_string() == HOME && seen.port() != PORT, "{seen}");
    assert!(transfer(&lab.proxy, &lab.isp, DEVICE, 2).to_string() == HOME, "2 MB");

    // What is withdrawn is closed; the rest of what the phone has is not.
    phone::rewrite(&lab, &phone, "client = true\nallow = [\"2001:db8:168::1 tcp/80\"]");
    lab.vps.meshd(&["reload"]);
    assert!(seen_by(&phone, DEVICE).is_err() && !phone.ping(DEVICE), "withdrawn");
    assert_eq!(seen_by(&phone, DEVICE6).expect("still given"), HOME6);
}

#[test]
fn a_routed_lan_sees_who_calls_and_may_call_itself() {
    let lab = Lab::new();
    share(&lab, false);
    let phone = phone::start_all(&lab, "client = true\nallow = [\"192.168.1.0/24\", \"2001:db8:168::/64\"]");
    let _web = WebServer::start(&lab.isp, 80);
    assert!(seen_by(&lab.proxy, DEVICE).is_err(), "no route back");
    for (net, gateway) in [("10.88.0.0/15", HOME), ("fd88::/15", HOME6)] {
        lab.isp.run(&format!("ip route add {net} via {gateway}"));
    }
    for (device, vps, proxy, own) in [(DEVICE, "10.88.0.1", PROXY, PHONE), (DEVICE6, "fd88::1", PROXY6, PHONE6)] {
        assert_eq!(seen_by(&lab.vps, device).expect("the VPS"), vps);
        assert_eq!(seen_by(&lab.proxy, device).expect("its container"), proxy);
        assert_eq!(seen_by(&phone, device).expect("the phone"), own);
    }
    // From the LAN into the mesh.
    Service::start(&lab.proxy, 9000).expect(&lab.isp, true, &[PROXY, PROXY6]);
    // Not as somebody of the mesh.
    lab.isp.run("ip address add fd88::1/128 dev lo nodad");
    let at_home = Service::start(&lab.home, 9000);
    assert!(at_home.udp(&lab.isp, "fd88::2"), "the LAN reaches home");
    assert!(at_home.udp_from(&lab.isp, "[fd88::1]:0", "fd88::2").is_none(), "the LAN speaks as the VPS");
}

#[test]
fn an_egress_bridge_reaches_the_lan_by_allow_alone() {
    let lab = Lab::new();
    share(&lab, true);
    lab.masquerade_at_home_like_podman();
    lab.start();
    let device = Service::start(&lab.isp, 9000);
    assert_eq!(seen_by(&lab.nextcloud, WEB).expect("the exit"), VPS);
    let capture = Capture::start(&lab.home, "eth0", MARKER);
    // Not beside the tunnel, and not through it and back.
    device.expect(&lab.nextcloud, false, &[DEVICE, DEVICE6]);
    assert!(!lab.nextcloud.ping(DEVICE) && !lab.nextcloud.ping(DEVICE6));
    let seen = capture.finish();
    assert!(seen.leaks.is_empty(), "beside the tunnel: {seen:?}");
    // After the capture: the last segments of what may pass would be found in it.
    device.expect(&lab.vps, true, &[DEVICE, DEVICE6]);
    let line = "egress = \"vps\"";
    lab.home.replace("meshd.toml", line, &format!("{line}\nallow = [\"192.168.1.0/24\", \"2001:db8:168::/64\"]"));
    lab.home.meshd(&["reload"]);
    device.expect(&lab.nextcloud, true, &[DEVICE, DEVICE6]);
    assert_eq!(seen_by(&lab.nextcloud, WEB).expect("the exit"), VPS);
}

#[test]
fn a_lan_whose_interface_is_not_there_is_named_and_served_when_it_comes() {
    let lab = Lab::new();
    lab.vps.replace("peers/home.toml", "\"fd89:2::/64\"", "\"fd89:2::/64\", \"192.168.7.0/24\"");
    lab.home.append("meshd.toml", "[[lan]]\nsubnet = \"192.168.7.0/24\"\ninterface = \"lan7\"");
    lab.start();
    let warnings = || lab.home.status()["warnings"].to_string();
    let expected = "[[lan]] interface lan7 does not exist yet: 192.168.7.0/24 is shared when it does";
    assert!(warnings().contains(expected), "{}", warnings());
    let device = Service::start(&lab.isp, 9000);
    device.expect(&lab.proxy, false, &["192.168.7.1"]);
    lab.home.run(&format!(
        "ip link add lan7 type veth peer name home netns {} && ip address add 192.168.7.2/24 dev lan7 && \
         ip link set lan7 up",
        lab.isp.name()
    ));
    lab.isp.run("ip address add 192.168.7.1/24 dev home && ip link set home up");
    lab::wait_for("the LAN is shared", lab::secs(5), || device.tcp(&lab.proxy, "192.168.7.1").then_some(()));
    assert_eq!(warnings(), "[]");
    Service::start(&lab.nextcloud, 9001).expect(&lab.proxy, true, &[NEXTCLOUD, NEXTCLOUD6]);
}
