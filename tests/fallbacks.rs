//! Without one offload or another the same traffic arrives, only slower.

mod lab;

use lab::host::{Host, describe};
use lab::traffic::{iperf, transfer};
use lab::{Lab, NEXTCLOUD, NEXTCLOUD6, PROXY, PROXY6};

const WITHOUT: &str = "MESHD_NO_OFFLOAD";

/// Both agents run without what `words` name; TCP and UDP cross both ways, in both families.
fn traffic_without(words: &str) -> Lab {
    let lab = Lab::new();
    for host in [&lab.vps, &lab.home] {
        // More than one, for what is switched off must be so on every queue and socket.
        host.write("meshd.toml", &format!("workers = 2\n{}", host.read("meshd.toml")));
        let output = host.meshd_command(&["up", "--detach"]).env(WITHOUT, words).output().expect("meshd");
        assert!(output.status.success(), "{}", describe(&output));
        assert!(host.log().contains("leaves these offloads"), "{}", host.log());
        // Super-packets of the tunnel's datagrams on their way out, before the device cuts them.
        host.run(
            "nft 'table inet large { chain out { type filter hook output priority filter; \
             udp sport 51820 meta length > 2000 counter; }; }'",
        );
    }
    assert!(lab.nextcloud.ping(PROXY));
    for (proxy, nextcloud) in [(PROXY, NEXTCLOUD), (PROXY6, NEXTCLOUD6)] {
        transfer(&lab.nextcloud, &lab.proxy, proxy, 10);
        transfer(&lab.proxy, &lab.nextcloud, nextcloud, 10);
        for direction in ["", "-R"] {
            let end = iperf(&lab.nextcloud, &lab.proxy, proxy, &format!("-u -b 20M -l 1200 -t 1 {direction}"));
            let lost = end["sum"]["lost_percent"].as_f64().expect("a percentage");
            assert!(lost < 2.0, "{lost}% lost {direction}: {end}");
        }
    }
    lab
}

fn feature(host: &Host, name: &str) -> bool {
    let features = host.run("ethtool -k mesh0");
    let line = features.lines().find(|line| line.trim().starts_with(&format!("{name}:")));
    line.unwrap_or_else(|| panic!("no {name} in {features}")).contains(": on")
}

fn sent_super_packets(host: &Host) -> bool {
    !host.run("nft list table inet large").contains("packets 0 ")
}

#[test]
fn without_tso() {
    let lab = traffic_without("tso");
    assert!(!feature(&lab.home, "tcp-segmentation-offload") && !feature(&lab.home, "tx-udp-segmentation"));
}

#[test]
fn without_uso() {
    let lab = traffic_without("uso");
    assert!(feature(&lab.home, "tcp-segmentation-offload") && !feature(&lab.home, "tx-udp-segmentation"));
    assert!(sent_super_packets(&lab.home));
}

#[test]
fn without_segmentation_on_the_socket() {
    let lab = traffic_without("udp-gso");
    assert!(feature(&lab.home, "tcp-segmentation-offload"));
    assert!(!sent_super_packets(&lab.home) && !sent_super_packets(&lab.vps));
}

#[test]
fn without_gathering_on_the_socket() {
    traffic_without("udp-gro");
}

#[test]
fn without_any() {
    let lab = traffic_without("tso,uso,udp-gso,udp-gro");
    assert!(!feature(&lab.home, "tcp-segmentation-offload"));
    assert!(!sent_super_packets(&lab.home));
}

#[test]
fn an_unknown_offload_is_refused_before_anything_is_touched() {
    let lab = Lab::new();
    for args in [&["up"][..], &["up", "--detach"]] {
        let output = lab.home.meshd_command(args).env(WITHOUT, "tso,lro").output().expect("meshd");
        assert_eq!(output.status.code(), Some(2), "{}", describe(&output));
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(text.contains("meshd: up: MESHD_NO_OFFLOAD names \"lro\""), "{text}");
    }
    assert!(!lab.home.try_run("ip link show mesh0").status.success());
}
