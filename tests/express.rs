//! Express sessions between real agents: that they come, stay away where they are not wanted, look like WireGuard's own
//! on the wire, and are nobody else's business.

mod lab;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use lab::dump::{Dump, Message};
use lab::express::{EXPRESS, ORDINARY, ciphers, set_express, wait_for_cipher};
use lab::host::Host;
use lab::other::Other;
use lab::sequence::{Arrived, flows};
use lab::traffic::{Ping, transfer};
use lab::wire::{To, Wire};
use lab::{Lab, NEXTCLOUD, PORT, PROXY, VPS, nat, secs};
use meshd::key::{PrivateKey, PublicKey};

/// Until agents that have something to say to each other are on express.
const SOON: Duration = secs(5);
/// Ciphertext of a packet that fills the MTU, with header and tag.
const FULL: usize = 1420 + 32;

#[test]
fn two_agents_come_to_it_by_themselves() {
    let lab = Lab::new();
    let wire = Wire::lay(&lab);
    lab.start();
    let begun = Instant::now();
    wait_for_cipher(&lab, EXPRESS, SOON);
    println!("express after {:?}", begun.elapsed());
    let before = To::BOTH.map(|to| wire.seen(to));
    assert_eq!(transfer(&lab.nextcloud, &lab.proxy, PROXY, 5).to_string(), NEXTCLOUD);
    assert_eq!(transfer(&lab.proxy, &lab.nextcloud, NEXTCLOUD, 5).to_string(), PROXY);
    for (to, before) in To::BOTH.into_iter().zip(before) {
        let after = wire.seen(to);
        let (express, ordinary) = (after.express - before.express, after.ordinary - before.ordinary);
        println!("{to:?}: {express} express messages, {ordinary} ordinary");
        assert!(express > 3000 && ordinary < 20, "{to:?}: {express} express messages, {ordinary} ordinary");
        assert_eq!(after.indices.len(), 1, "{to:?}");
    }
}

#[test]
fn what_waits_while_nothing_is_sent_stays_silent() {
    let lab = Lab::new();
    let wire = Wire::lay(&lab);
    lab.start();
    wait_for_cipher(&lab, EXPRESS, SOON);
    // Every timer that answers the last packet has run out by then (whitepaper, section 6.5).
    std::thread::sleep(secs(11));
    let messages = || To::BOTH.map(|to| wire.seen(to)).map(|seen| seen.ordinary + seen.express + seen.handshakes);
    let before = messages();
    std::thread::sleep(secs(8));
    let after = messages();
    println!("{before:?} {after:?}");
    // At most a persistent keepalive, which comes each 25 s, and its answer.
    assert!(after.iter().zip(before).all(|(after, before)| after - before <= 2), "{before:?}, then {after:?}");
    assert!(lab.proxy.ping(NEXTCLOUD), "the VPS still reaches home");
}

fn stays_ordinary(forbid: impl FnOnce(&Lab)) {
    let lab = Lab::new();
    let wire = Wire::lay(&lab);
    forbid(&lab);
    lab.start();
    assert!(lab.nextcloud.ping(PROXY));
    assert_eq!(Ping::start(&lab.nextcloud, PROXY, "-c 200 -i 0.02 -W 2").finish().lost(), 0);
    transfer(&lab.nextcloud, &lab.proxy, PROXY, 2);
    assert_eq!(ciphers(&lab), [ORDINARY; 2]);
    for to in To::BOTH {
        let seen = wire.seen(to);
        assert!(seen.express == 0 && seen.ordinary > 200, "{to:?}: {seen:?}");
    }
}

#[test]
fn off_at_the_vps_keeps_both_on_ordinary() {
    stays_ordinary(|lab| set_express(&lab.vps, "meshd.toml", "off"));
}

#[test]
fn off_at_home_keeps_both_on_ordinary() {
    stays_ordinary(|lab| set_express(&lab.home, "meshd.toml", "off"));
}

#[test]
fn off_for_home_keeps_both_on_ordinary() {
    stays_ordinary(|lab| set_express(&lab.vps, "peers/home.toml", "off"));
}

#[test]
fn off_for_the_vps_keeps_both_on_ordinary() {
    stays_ordinary(|lab| set_express(&lab.home, "peers/vps.toml", "off"));
}

/// Numbered datagrams both ways while `during` runs, which must end before they do.
fn flood(lab: &Lab, time: Duration, during: impl FnOnce()) -> Vec<Arrived> {
    std::thread::scope(|scope| {
        let there = scope.spawn(|| flows(&lab.nextcloud, &lab.proxy, PROXY, 2, 20, time));
        let back = scope.spawn(|| flows(&lab.proxy, &lab.nextcloud, NEXTCLOUD, 2, 20, time));
        let begun = Instant::now();
        during();
        assert!(begun.elapsed() < time, "it took {:?}, longer than the flood", begun.elapsed());
        [there, back].into_iter().flat_map(|flood| flood.join().expect("a flood")).collect()
    })
}

fn toggled_under_a_flood(workers: usize) {
    let lab = Lab::new();
    for host in [&lab.vps, &lab.home] {
        host.write("meshd.toml", &format!("workers = {workers}\n{}", host.read("meshd.toml")));
    }
    lab.start();
    wait_for_cipher(&lab, EXPRESS, SOON);
    let toggle = |host: &Host, file: &str, value: &str, then: &str| {
        set_express(host, file, value);
        host.meshd(&["reload"]);
        wait_for_cipher(&lab, then, secs(4));
    };
    let arrived = flood(&lab, secs(12), || {
        for (host, file) in [
            (&lab.home, "meshd.toml"),
            (&lab.vps, "meshd.toml"),
            (&lab.home, "peers/vps.toml"),
            (&lab.vps, "peers/home.toml"),
        ] {
            let begun = Instant::now();
            toggle(host, file, "off", ORDINARY);
            let off = begun.elapsed();
            toggle(host, file, "auto", EXPRESS);
            println!("{} {file}: off after {off:?}, on again after {:?}", host.name, begun.elapsed());
        }
    });
    let overflowed = overflowed(&lab);
    println!("{overflowed} found a queue full; {arrived:?}");
    for Arrived { sent, received, late } in arrived {
        assert!(late == 0 && sent - received <= overflowed, "{late} late, {} lost of {sent}", sent - received);
        assert!(sent > 10_000, "{sent} are too few to tell");
    }
}

/// Packets for which a queue of the hosts was too full: a busy machine's doing, and no cipher's.
fn overflowed(lab: &Lab) -> u64 {
    let of = |host: &Host| {
        let drops = &host.status()["drops"];
        ["interface_overflow", "socket_overflow"]
            .map(|cause| drops[cause].as_u64().expect("a count"))
            .iter()
            .sum::<u64>()
    };
    of(&lab.vps) + of(&lab.home)
}

#[test]
fn a_reload_that_toggles_it_under_a_flood_loses_nothing() {
    toggled_under_a_flood(1);
}

#[test]
fn a_reload_that_toggles_it_under_a_flood_loses_nothing_with_two_workers() {
    toggled_under_a_flood(2);
}

/// Has the kernel cut what the agents send as one before tcpdump sees it.
fn without_segmentation_offload(lab: &Lab) {
    lab.vps.run("ethtool -K eth0 tx-udp-segmentation off");
    lab.internet.run("ethtool -K vps tx-udp-segmentation off");
}

fn is_express(message: &Message) -> bool {
    message.receiver.is_some_and(|index| index >> 31 == 1)
}

#[test]
fn tshark_reads_it_as_wireguard_before_during_and_after() {
    let lab = Lab::new();
    without_segmentation_offload(&lab);
    let dump = Dump::start(&lab.vps, "eth0", lab.path("wire.pcap"));
    set_express(&lab.home, "meshd.toml", "off");
    lab.start();
    let traffic = || {
        transfer(&lab.nextcloud, &lab.proxy, PROXY, 1);
        transfer(&lab.proxy, &lab.nextcloud, NEXTCLOUD, 1);
        for bytes in [0, 1, 15, 16, 17, 700] {
            assert_eq!(Ping::start(&lab.home, "10.88.0.1", &format!("-c 2 -i 0.02 -s {bytes}")).finish().lost(), 0);
        }
    };
    traffic();
    set_express(&lab.home, "meshd.toml", "auto");
    lab.home.meshd(&["reload"]);
    wait_for_cipher(&lab, EXPRESS, secs(4));
    traffic();
    set_express(&lab.home, "meshd.toml", "off");
    lab.home.meshd(&["reload"]);
    wait_for_cipher(&lab, ORDINARY, SOON);
    traffic();
    looks_like_wireguard(&dump.finish());
}

fn looks_like_wireguard(messages: &[Message]) {
    let mut nonces = BTreeSet::new();
    for message in messages {
        assert!(message.protocols.ends_with(":udp:wg") && !message.flawed, "{message:?}");
        if message.kind != Some(4) {
            assert!(matches!(message.kind, Some(1..=3)), "{message:?}");
            continue;
        }
        assert!(message.length % 16 == 0 || message.length == FULL, "{message:?}");
        let (Some(receiver), Some(counter)) = (message.receiver, message.counter) else { panic!("{message:?}") };
        assert!(nonces.insert((message.source.clone(), receiver, counter)), "a nonce twice: {message:?}");
    }
    let transport: Vec<_> = messages.iter().filter(|message| message.kind == Some(4)).collect();
    let first = transport.iter().position(|message| is_express(message)).expect("express messages");
    let last = transport.iter().rposition(|message| is_express(message)).expect("express messages");
    let express = transport[first..=last].iter().filter(|message| is_express(message)).count();
    println!("{first} ordinary before, {express} express, {} ordinary after", transport.len() - last - 1);
    assert!(first > 1000 && express > 1000 && transport.len() - last > 1000, "too few to tell");
    // What one side sends counts from zero, without a gap.
    for source in [VPS, "198.51.100.7"] {
        let sent = transport.iter().filter(|message| is_express(message) && message.source == source);
        let counters: BTreeSet<_> = sent.filter_map(|message| message.counter).collect();
        assert_eq!(counters.first(), Some(&0), "{source}");
        assert_eq!(counters.last().map(|last| last + 1), Some(counters.len() as u64), "{source}");
    }
}

/// Bytes of UDP payload that a host of the lab's received from its peers, as wg(8) counts.
fn received(host: &Host) -> u64 {
    host.wg_show("transfer").values().map(|row| row[0].parse::<u64>().expect("a count")).sum()
}

/// What the VPS asks of a new peer, which does not answer: eight letters of the channel's own, whatever they are about, and
/// two about express sessions.
const LETTERS: usize = 8 + 2;
/// Of UDP payload, the longest of them.
const LETTER: u64 = 192;

/// A stock peer of the VPS beside home, which is on express with it: 10.88.0.100.
fn beside(other: Other) {
    let lab = Lab::new();
    let stock = lab.add_host("stock", 100);
    let_the_vps_ask(&lab, &stock);
    lab.start();
    wait_for_cipher(&lab, EXPRESS, SOON);
    other.start(&stock, &lab.vps, &format!("Endpoint = {VPS}:{PORT}"));
    assert!(stock.ping("10.88.0.1"));
    let counted = quietly_pinged(&stock);
    // A hundred answers of 84 bytes, each padded to 96; boringtun counts what is in them.
    let answers = 100 * (96 + 32);
    println!("{other:?}: {counted} bytes received, {answers} of them answers");
    assert!(counted <= answers + LETTERS as u64 * LETTER, "{counted}, of which {answers} are answers");

    std::thread::scope(|scope| {
        let express = scope.spawn(|| {
            transfer(&lab.nextcloud, &lab.proxy, PROXY, 10);
            transfer(&lab.proxy, &lab.nextcloud, NEXTCLOUD, 10);
        });
        let ping = Ping::start(&stock, "10.88.0.1", "-c 100 -i 0.02 -W 2");
        let back = Ping::start(&lab.vps, "10.88.0.100", "-c 100 -i 0.02 -W 2");
        transfer(&stock, &lab.vps, "10.88.0.1", 5);
        transfer(&lab.vps, &stock, "10.88.0.100", 5);
        // Beside streams that fill every queue there is.
        let lost = [ping, back].map(|ping| ping.finish().lost());
        assert!(lost.iter().all(|lost| *lost <= 5), "{lost:?} of 100");
        express.join().expect("home's traffic");
    });
    assert_eq!(ciphers(&lab), [EXPRESS; 2]);
    assert_eq!(lab::express::cipher(&lab.vps, "stock"), ORDINARY);
    let log = stock.log();
    let dropped = log.lines().filter(|line| line.contains("disallowed source")).count();
    println!("{other:?}: {dropped} packets dropped by its allowed IPs");
    assert!(dropped <= LETTERS, "{log}");
}

/// Gives the stock peer a key above that of the VPS: the side with the lower one asks.
fn let_the_vps_ask(lab: &Lab, stock: &Host) {
    let vps: PublicKey = lab.vps.public_key().parse().expect("a key");
    let keys = std::iter::repeat_with(|| PrivateKey::generate().expect("a key"));
    let key = { keys }.find(|key| key.public_key() > vps).expect("one in two");
    lab.vps.replace("peers/stock.toml", &stock.public_key(), &key.public_key().to_string());
    stock.write("private.key", &key.expose_base64());
}

/// A hundred echo requests one after the other; what was received meanwhile.
fn quietly_pinged(stock: &Host) -> u64 {
    let before = received(stock);
    assert_eq!(stock.ping_with("10.88.0.1", "-c 100 -i 0.05 -W 2").lost(), 0);
    received(stock) - before
}

#[test]
fn wireguard_go_beside_notices_nothing() {
    beside(Other::WireguardGo);
}

#[test]
fn boringtun_beside_notices_nothing() {
    beside(Other::Boringtun);
}

#[test]
fn gotatun_beside_notices_nothing() {
    beside(Other::Gotatun);
}

#[test]
fn it_follows_a_peer_that_roams() {
    let lab = Lab::up();
    wait_for_cipher(&lab, EXPRESS, SOON);
    let ping = Ping::start(&lab.nextcloud, PROXY, "-c 150 -i 0.02 -W 2");
    for port in [40_000, 41_000, 42_000] {
        std::thread::sleep(Duration::from_millis(500));
        nat::rebind(&lab.isp, &format!("198.51.100.8:{port}-{}", port + 100));
    }
    let pinged = ping.finish();
    assert!(pinged.lost() <= 3, "at most one packet each time: {pinged:?}");
    let endpoint = lab.vps.peer("home")["endpoint"].as_str().unwrap_or_default().to_owned();
    assert!(endpoint.starts_with("198.51.100.8:42"), "{endpoint}");
    assert_eq!(ciphers(&lab), [EXPRESS; 2], "no reason to leave it");
}
