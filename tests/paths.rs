//! Hosts behind NATs that reach each other through the VPS, and directly where their NATs allow it.

mod lab;

use std::time::{Duration, Instant};

use lab::phone::{self, PHONE, PHONE6};
use lab::third::{RUNNER, RUNNER6, Third};
use lab::traffic::{Ping, WebServer, seen_at};
use lab::{Lab, NEXTCLOUD, NEXTCLOUD6, secs, wait_for};
use nix::sys::signal::Signal;

/// Until a path that went silent is given up, with the time that status and a busy machine take.
const GIVEN_UP: u64 = 7;

/// A hundred requests a second from lab's container to home's, in both families.
fn pings(third: &Third, seconds: u64) -> [Ping; 2] {
    let options = format!("-i 0.01 -W 2 -c {}", 100 * seconds);
    [NEXTCLOUD, NEXTCLOUD6].map(|to| Ping::start(&third.runner, to, &options))
}

fn lost(pings: [Ping; 2]) -> [u64; 2] {
    pings.map(|ping| ping.finish().lost())
}

/// Lab's and home's bridges reach each other in both families.
fn flows(third: &Third) -> bool {
    let home = &third.rest.nextcloud;
    [NEXTCLOUD, NEXTCLOUD6].iter().all(|to| third.runner.ping(to)) && [RUNNER, RUNNER6].iter().all(|to| home.ping(to))
}

fn wait_for_flow(third: &Third) {
    wait_for("lab and home reach each other", secs(5), || flows(third).then_some(()));
}

#[test]
fn a_direct_path_is_found_within_ten_seconds_and_outlives_the_relay() {
    let third = Third::new();
    third.rest.start();
    let begun = Instant::now();
    third.lab.up();
    third.wait_for_path("direct", 10);
    println!("direct after {:?}", begun.elapsed());
    assert!(flows(&third));
    let endpoint = third.lab.peer("home")["endpoint"].as_str().unwrap_or_default().to_owned();
    assert!(endpoint.starts_with(lab::ISP), "{endpoint}");

    let pings = pings(&third, 12);
    third.rest.vps.end(Signal::SIGKILL);
    std::thread::sleep(secs(4));
    assert_eq!(third.path_of_lab(), "direct");
    assert_eq!(third.lab.peer("home")["state"], "up");
    third.rest.vps.up();
    assert_eq!(lost(pings), [0, 0], "the relay's restart is not noticed");
    third.wait_for_path("direct", 1);
}

#[test]
fn neighbours_behind_one_router_stay_on_their_networks() {
    let third = Third::neighbour();
    third.start();
    third.wait_for_path("direct", 10);
    assert!(flows(&third));
    // The router leads no packet back that it sent out itself.
    assert_eq!(third.lab.peer("home")["endpoint"], "192.168.1.20:51820");
    assert_eq!(third.rest.home.peer("lab")["endpoint"], "192.168.9.20:51820");
}

#[test]
fn the_change_to_the_direct_path_loses_nothing() {
    let third = Third::new();
    third.cut(true, true);
    third.start();
    wait_for_flow(&third);
    assert_eq!((third.path_of_lab(), third.path_of_home()), ("via vps".into(), "via vps".into()));
    assert_eq!(third.lab.peer("home")["state"], "up", "its relay is");
    let text = third.lab.meshd(&["status"]);
    assert!(text.lines().any(|line| line.starts_with("home") && line.contains("via vps")), "{text}");
    let doctor = third.lab.try_meshd(&["doctor", "home"]);
    let doctor = String::from_utf8_lossy(&doctor.stdout);
    assert!(doctor.contains("via vps") && !doctor.contains("FAULT"), "{doctor}");

    let pings = pings(&third, 25);
    third.mend();
    third.wait_for_path("direct", 20);
    assert_eq!(lost(pings), [0, 0]);
}

#[test]
fn behind_symmetric_nats_all_goes_through_the_vps_and_nothing_is_lost() {
    let third = Third::new();
    third.make_symmetric();
    third.start();
    wait_for_flow(&third);
    let pings = pings(&third, 20);
    let until = Instant::now() + secs(20);
    while Instant::now() < until {
        assert_eq!((third.path_of_lab(), third.path_of_home()), ("via vps".into(), "via vps".into()));
        std::thread::sleep(secs(1));
    }
    assert_eq!(lost(pings), [0, 0]);
}

#[test]
fn a_direct_path_that_is_cut_towards_lab_is_given_up_and_found_again() {
    cut_and_mend(true, false);
}

#[test]
fn a_direct_path_that_is_cut_towards_home_is_given_up_and_found_again() {
    cut_and_mend(false, true);
}

#[test]
fn a_direct_path_that_is_cut_both_ways_is_given_up_and_found_again() {
    cut_and_mend(true, true);
}

fn cut_and_mend(to_lab: bool, to_home: bool) {
    let third = Third::new();
    third.start();
    third.wait_for_path("direct", 10);
    let silent = pings(&third, 8);
    third.cut(to_lab, to_home);
    let begun = Instant::now();
    third.wait_for_path("via vps", GIVEN_UP);
    println!("given up after {:?}", begun.elapsed());
    assert_eq!(lost(pings(&third, 2)), [0, 0], "by way of the VPS");
    let silent = lost(silent);
    println!("lost {silent:?}");
    assert!(silent.iter().all(|lost| (1..100 * GIVEN_UP).contains(lost)), "{silent:?}");

    let back = pings(&third, 12);
    third.mend();
    let begun = Instant::now();
    third.wait_for_path("direct", 30);
    println!("found again after {:?}", begun.elapsed());
    assert_eq!(lost(back), [0, 0], "on the way back");
}

#[test]
fn a_killed_agent_finds_its_paths_again() {
    let third = Third::new();
    third.start();
    third.wait_for_path("direct", 10);
    third.lab.end(Signal::SIGKILL);
    third.lab.up();
    let begun = Instant::now();
    wait_for_flow(&third);
    println!("flows after {:?}", begun.elapsed());
    third.wait_for_path("direct", 10);
    assert!(flows(&third));
    assert!(begun.elapsed() < secs(12));
}

#[test]
fn a_client_is_reached_through_the_vps_and_held_to_what_each_host_allows() {
    let lab = Lab::new();
    let phone = phone::start_all(&lab, "client = true\nallow = [\"10.89.2.0/24\", \"fd89:2::/64\"]");
    let file = format!(
        "public_key = \"{}\"\naddresses = [\"{PHONE}\", \"{PHONE6}\"]\nclient = true\nvia = \"vps\"\nallow = [\"10.89.2.10 tcp/80\"]\n",
        phone.public_key()
    );
    let _web = WebServer::start(&lab.nextcloud, 80);
    let _other = WebServer::start(&lab.nextcloud, 81);
    let at = |port: u16| seen_at(&phone, std::net::SocketAddr::new(NEXTCLOUD.parse().expect("an address"), port));
    wait_for("the phone reaches home", secs(10), || at(81).ok());
    lab.home.write("peers/phone.toml", &file);
    lab.home.meshd(&["reload"]);
    assert_eq!(at(80).expect("home allows it"), PHONE);
    assert!(at(81).is_err() && !phone.ping(NEXTCLOUD), "home does not allow it");
    assert!(!phone.ping(NEXTCLOUD6));
    assert_eq!(lab.home.peer("phone")["path"], "via vps");
    std::thread::sleep(Duration::from_secs(1));
    assert!(lab.home.peer("phone")["endpoint"].is_null(), "nobody calls it");
}
