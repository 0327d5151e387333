//! A mesh that grows by tokens alone: three hosts behind NATs of all kinds and a device, from nothing, and shrinks again.

mod lab;

use std::fs;
use std::time::{Duration, Instant};

use lab::join::{init, invite, joined};
use lab::phone::{apply, wireguard_go};
use lab::services::Service;
use lab::third::{RUNNER, RUNNER6, Third};
use lab::traffic::seen_by;
use lab::{NEXTCLOUD, NEXTCLOUD6, PROXY, PROXY6, VPS, VPS6, WEB, WEB6, secs, wait_for};

/// From `meshd join` until all is as it should be.
const SOON: Duration = Duration::from_secs(3);

/// The three hosts after `meshd init`, home in the mesh.
fn two_of_three(third: &Third) {
    for host in [&third.rest.vps, &third.rest.home, &third.lab] {
        fs::remove_dir_all(host.config("")).expect("remove the worked example");
        init(host);
    }
    third.rest.vps.up();
    joined(&third.rest.home, &invite(&third.rest.vps, &["--egress"]));
    third.rest.home.up();
}

/// Lab joins by one token from the VPS; how long until its bridge reaches the others' and leaves as the VPS.
fn join_lab(third: &Third) -> Duration {
    let subnets = ["--subnet", "10.89.3.0/24", "--subnet", "fd89:3::/64", "--egress"];
    let token = third.rest.vps.meshd(&[&["peer", "add", "lab"], &subnets[..]].concat());
    let begun = Instant::now();
    joined(&third.lab, token.trim());
    third.lab.up();
    wait_for("lab's bridge reaches all others", secs(10), || {
        let from_lab = [PROXY, PROXY6, NEXTCLOUD, NEXTCLOUD6].iter().all(|to| third.runner.ping(to));
        let to_lab = [RUNNER, RUNNER6].iter().all(|to| third.rest.nextcloud.ping(to) && third.rest.proxy.ping(to));
        (from_lab && to_lab).then_some(())
    });
    for (web, vps) in [(WEB, VPS), (WEB6, VPS6)] {
        assert_eq!(seen_by(&third.runner, web).expect("the exit"), vps);
    }
    begun.elapsed()
}

#[test]
fn a_third_host_joins_by_one_token_and_finds_the_direct_path() {
    let third = Third::new();
    two_of_three(&third);
    let took = join_lab(&third);
    println!("all bridges after {took:?}");
    assert!(took < SOON, "{took:?}");
    third.wait_for_path("direct", 10);

    // A device that the VPS lets in is known at home, whose bridge goes its own way to the internet.
    third.rest.home.replace("meshd.toml", "egress = \"vps\"", "egress = \"direct\"");
    third.rest.home.meshd(&["reload"]);
    let phone = third.rest.add_host("phone", 103);
    fs::remove_file(third.rest.vps.config("peers/phone.toml")).expect("remove");
    wireguard_go(&phone);
    apply(&phone, &third.rest.vps.meshd(&["peer", "add", "phone", "--client"]));
    let file = wait_for("home hears of the phone", secs(3), || {
        fs::read_to_string(third.rest.home.config("peers/phone.toml")).ok()
    });
    assert!(file.contains("client = true") && file.contains("via = \"vps\""), "{file}");
    wait_for("home lets the phone in", secs(3), || phone.ping(NEXTCLOUD).then_some(()));
    for (container, addresses) in [(&third.rest.nextcloud, [NEXTCLOUD, NEXTCLOUD6]), (&third.runner, [RUNNER, RUNNER6])]
    {
        Service::start(container, 9000).expect(&phone, true, &addresses);
    }
    Service::start(&third.rest.home, 9001).expect(&phone, false, &["10.88.0.2", "10.89.2.1", "fd89:2::1"]);

    // The others hear of a removal from the VPS, and what is direct ends too.
    third.rest.vps.meshd(&["peer", "remove", "lab"]);
    wait_for("lab is cut off", secs(2), || {
        (!third.rest.nextcloud.ping(RUNNER) && !third.runner.ping(PROXY)).then_some(())
    });
    assert!(!third.rest.home.config("peers/lab.toml").exists());
    assert!(seen_by(&third.runner, WEB).is_err(), "its egress stays closed");
}

#[test]
fn behind_symmetric_nats_a_third_host_stays_with_the_relay() {
    let third = Third::new();
    third.make_symmetric();
    two_of_three(&third);
    let took = join_lab(&third);
    println!("all bridges after {took:?}");
    assert!(took < SOON, "{took:?}");
    std::thread::sleep(secs(10));
    assert_eq!((third.path_of_lab().as_str(), third.path_of_home().as_str()), ("via vps", "via vps"));
    assert!(third.runner.ping(NEXTCLOUD) && third.rest.nextcloud.ping(RUNNER6));
}
