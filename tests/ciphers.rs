//! What people see of express sessions: in the status, the metrics, `doctor` and the log; and that a reload follows
//! `express`.

mod lab;

use std::collections::BTreeMap;

use lab::host::{Host, describe};
use lab::{Lab, secs, wait_for};
use serde_json::Value;

const EXPRESS: &str = "aes-256-gcm";
const ORDINARY: &str = "chacha20-poly1305";

/// Both hosts, each with what the other is called there.
fn ends(lab: &Lab) -> [(&Host, &'static str); 2] {
    [(&lab.home, "vps"), (&lab.vps, "home")]
}

/// Waits until both send under this cipher and say so in these words, with enough traffic for an agreement.
fn wait_for_states(lab: &Lab, cipher: &str, states: [&str; 2]) {
    wait_for(format!("home and the VPS say {states:?}"), secs(5), || {
        lab.home.ping_with("10.88.0.1", "-c 8 -i 0.002 -W 1 -s 1300");
        let said = ends(lab).map(|(host, peer)| host.peer(peer));
        let agree = said.iter().zip(states).all(|(peer, state)| {
            (peer["cipher"].as_str(), peer["express"]["state"].as_str()) == (Some(cipher), Some(state))
        });
        agree.then_some(())
    });
}

/// A host's metrics of one peer: their names, with the label `cipher` behind a space where there is one.
fn metrics(host: &Host, peer: &str) -> BTreeMap<String, u64> {
    let socket = host.run_file("control.sock");
    let text = host.run(&format!("curl -sf --unix-socket {} http://localhost/metrics", socket.display()));
    let of_peer = text.lines().filter(|line| line.contains(&format!("{{peer=\"{peer}\",")));
    of_peer
        .filter_map(|line| {
            let (name, rest) = line.split_once('{')?;
            let (labels, value) = rest.rsplit_once("} ")?;
            let cipher = labels.split_once("cipher=\"").map(|(_, cipher)| format!(" {}", cipher.trim_end_matches('"')));
            Some((format!("{name}{}", cipher.unwrap_or_default()), value.parse().ok()?))
        })
        .collect()
}

/// What `doctor` says of the cipher to a peer.
fn diagnosed(host: &Host, peer: &str) -> Value {
    let output = host.try_meshd(&["doctor", peer, "--json"]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", describe(&output)));
    assert_eq!(report["healthy"], true, "a cipher is no fault: {report:#}");
    let steps = report["steps"].as_array().expect("steps");
    steps.iter().find(|step| step["step"] == "express").unwrap_or_else(|| panic!("{report:#}")).clone()
}

fn wait_for_log(host: &Host, line: &str) {
    wait_for(format!("{} logs {line:?}", host.name), secs(8), || host.log().contains(line).then_some(()));
}

#[test]
fn the_cipher_is_told_everywhere() {
    let lab = Lab::up();
    wait_for_states(&lab, EXPRESS, ["on", "on"]);
    for (host, peer) in ends(&lab) {
        let said = host.peer(peer);
        let number = |of: &Value, field: &str| of[field].as_u64().unwrap_or_else(|| panic!("{field} in {said}"));
        let express = &said["express"];
        assert_eq!((express.get("reason"), number(express, "sessions")), (None, 1), "{said}");
        let page = host.meshd(&["status"]);
        assert!(page.lines().any(|line| line.starts_with(peer) && line.contains(" up, aes ")), "{page}");

        let metrics = metrics(host, peer);
        assert_eq!((metrics["meshd_peer_express"], metrics["meshd_peer_express_sessions_total"]), (1, 1));
        for direction in ["receive", "transmit"] {
            let bytes = |cipher: &str| metrics[&format!("meshd_peer_cipher_{direction}_bytes_total {cipher}")];
            let all = metrics[&format!("meshd_peer_{direction}_bytes_total")];
            assert_eq!(bytes(EXPRESS) + bytes(ORDINARY), all, "{metrics:#?}");
            // 16 KiB flow before it is asked for, and a ping and an answer after it was agreed.
            assert!(bytes(ORDINARY) > 4096 && bytes(EXPRESS) >= 32, "{metrics:#?}");
            assert!(metrics[&format!("meshd_peer_express_{direction}_packets_total")] > 0, "{metrics:#?}");
        }
        let step = diagnosed(host, peer);
        assert_eq!((step["state"].as_str(), step["saw"].as_str()), (Some("ok"), Some("data goes under AES-256-GCM")));
    }
    for (host, peer) in ends(&lab) {
        wait_for_log(host, &format!("data to {peer} goes under AES-256-GCM"));
    }
}

#[test]
fn a_reload_follows_what_either_file_says() {
    let lab = Lab::up();
    wait_for_states(&lab, EXPRESS, ["on", "on"]);
    let (own, of_vps) = (lab.home.read("meshd.toml"), lab.home.read("peers/vps.toml"));
    let off = |text: &str| format!("express = \"off\"\n{text}");

    lab.home.write("peers/vps.toml", &off(&of_vps));
    assert_eq!(lab.home.meshd(&["reload"]), "~ peer vps\n");
    wait_for_states(&lab, ORDINARY, ["off_here", "off_there"]);
    for (host, peer) in ends(&lab) {
        assert_eq!(host.peer(peer)["express"]["reason"], "configured");
        let page = host.meshd(&["status"]);
        assert!(page.lines().any(|line| line.starts_with(peer) && line.contains(" up, chacha ")), "{page}");
        assert_eq!(metrics(host, peer)["meshd_peer_express"], 0);
    }
    assert!(
        lab.home
            .meshd(&["peer", "show", "vps"])
            .lines()
            .any(|line| line.starts_with("express") && line.ends_with("off"))
    );
    let step = diagnosed(&lab.home, "vps");
    assert_eq!(step["state"], "skipped");
    let saw = "data goes under ChaCha20-Poly1305: switched off here, by express in peers/vps.toml";
    assert_eq!(step["saw"], saw);
    let saw = "data goes under ChaCha20-Poly1305: switched off there, by express in its meshd.toml or peers/vps.toml";
    assert_eq!(diagnosed(&lab.vps, "home")["saw"], saw);
    wait_for_log(&lab.vps, "data to home goes under ChaCha20-Poly1305: switched off there");

    lab.home.write("peers/vps.toml", &of_vps);
    lab.home.meshd(&["reload"]);
    wait_for_states(&lab, EXPRESS, ["on", "on"]);

    lab.home.write("meshd.toml", &off(&own));
    assert_eq!(lab.home.meshd(&["reload"]), "~ express: off\n");
    wait_for_states(&lab, ORDINARY, ["off_here", "off_there"]);
    let saw = "data goes under ChaCha20-Poly1305: switched off here, by express in meshd.toml";
    assert_eq!(diagnosed(&lab.home, "vps")["saw"], saw);
    // Said of the files before they are applied: what is read now is not what runs.
    lab.home.write("meshd.toml", &own);
    assert_eq!(diagnosed(&lab.home, "vps")["remedy"]["commands"][0], "meshd reload");
}
