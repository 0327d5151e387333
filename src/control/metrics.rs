//! `GET /metrics`: the status as Prometheus text (exposition format 0.0.4).

use std::fmt::{Display, Write as _};

use super::api::{DIRECT, Guard, Status};
use crate::tunnel::PeerState;

/// The media type of [`render`]'s text.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The metrics of one moment; `now` in Unix seconds.
pub fn render(status: &Status, now: u64) -> String {
    let mut page = Page(String::new());
    page.family("meshd_info", "gauge", "This agent; always 1.");
    let public_key = status.public_key.to_string();
    let info = [
        ("name", status.name.as_str()),
        ("interface", status.interface.as_str()),
        ("version", status.version.as_str()),
        ("public_key", public_key.as_str()),
    ];
    page.sample("meshd_info", &info, 1);
    page.family("meshd_warnings", "gauge", "Warnings that `meshd status` shows.");
    page.sample("meshd_warnings", &[], status.warnings.len());

    let keys: Vec<String> = status.peers.iter().map(|peer| peer.public_key.to_string()).collect();
    let peers = || {
        let named = status.peers.iter().zip(&keys);
        named.map(|(peer, key)| (peer, [("peer", peer.name.as_str()), ("public_key", key.as_str())]))
    };
    page.family("meshd_peer_up", "gauge", "1 while a session with the peer stands.");
    for (peer, labels) in peers() {
        page.sample("meshd_peer_up", &labels, u8::from(peer.state == PeerState::Up));
    }
    page.family(
        "meshd_peer_direct",
        "gauge",
        "1 while packets go straight to the peer, 0 while another one relays them.",
    );
    for (peer, labels) in peers() {
        page.sample("meshd_peer_direct", &labels, u8::from(peer.path == DIRECT));
    }
    page.family("meshd_peer_receive_bytes_total", "counter", "Authenticated bytes of UDP payload from the peer.");
    for (peer, labels) in peers() {
        page.sample("meshd_peer_receive_bytes_total", &labels, peer.rx_bytes);
    }
    page.family("meshd_peer_transmit_bytes_total", "counter", "Bytes of UDP payload to the peer.");
    for (peer, labels) in peers() {
        page.sample("meshd_peer_transmit_bytes_total", &labels, peer.tx_bytes);
    }
    let completed = || peers().filter_map(|(peer, labels)| Some((peer.latest_handshake?, labels)));
    page.family(
        "meshd_peer_latest_handshake_timestamp_seconds",
        "gauge",
        "When the latest handshake completed, in Unix time; absent before the first.",
    );
    for (at, labels) in completed() {
        page.sample("meshd_peer_latest_handshake_timestamp_seconds", &labels, at);
    }
    page.family(
        "meshd_peer_handshake_age_seconds",
        "gauge",
        "Time since the latest handshake; absent before the first.",
    );
    for (at, labels) in completed() {
        page.sample("meshd_peer_handshake_age_seconds", &labels, now.saturating_sub(at));
    }

    page.family("meshd_dropped_packets_total", "counter", "Packets that went nowhere, by cause.");
    for (cause, _, packets) in status.drops.causes() {
        page.sample("meshd_dropped_packets_total", &[("cause", cause)], packets);
    }

    page.family("meshd_bridge_guard_armed", "gauge", "1 while the guard holds the bridge.");
    for bridge in &status.bridges {
        let labels = [("bridge", bridge.name.as_str()), ("egress", bridge.egress.as_str())];
        page.sample("meshd_bridge_guard_armed", &labels, u8::from(bridge.guard == Guard::Armed));
    }
    page.0
}

struct Page(String);

impl Page {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        self.0.push_str(name);
        for (index, (label, text)) in labels.iter().enumerate() {
            let _ = write!(self.0, "{}{label}=\"{}\"", if index == 0 { '{' } else { ',' }, escape(text));
        }
        let _ = writeln!(self.0, "{} {value}", if labels.is_empty() { "" } else { "}" });
    }
}

fn escape(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::fake::status;

    #[test]
    fn every_family_is_declared_before_its_samples() {
        let text = render(&status(), 1_700_000_100);
        let mut declared = Vec::new();
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                declared.push(rest.split(' ').next().unwrap());
            } else if !line.starts_with('#') {
                assert_eq!(line.split(['{', ' ']).next(), declared.last().copied(), "{line}");
            }
        }
        assert_eq!(declared.len(), 10);
    }

    #[test]
    fn the_samples_say_what_the_status_says() {
        let text = render(&status(), 1_700_000_100);
        let vps = format!("{{peer=\"vps\",public_key=\"{}\"}}", status().peers[0].public_key);
        for line in [
            format!("meshd_peer_up{vps} 1"),
            format!("meshd_peer_receive_bytes_total{vps} 1234567"),
            format!("meshd_peer_transmit_bytes_total{vps} 89"),
            format!("meshd_peer_latest_handshake_timestamp_seconds{vps} 1700000088"),
            format!("meshd_peer_handshake_age_seconds{vps} 12"),
            "meshd_bridge_guard_armed{bridge=\"br0\",egress=\"vps\"} 1".to_owned(),
            "meshd_warnings 1".to_owned(),
            "meshd_dropped_packets_total{cause=\"spoofed\"} 3".to_owned(),
            "meshd_dropped_packets_total{cause=\"unsent\"} 0".to_owned(),
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
        // The second peer never completed a handshake.
        assert_eq!(text.matches("\nmeshd_peer_handshake_age_seconds{").count(), 1);
    }

    #[test]
    fn labels_cannot_break_out() {
        let mut status = status();
        status.peers[0].name = "a\"} 1\nmeshd_peer_up{x=\"\\".to_owned();
        let text = render(&status, 0);
        assert!(text.contains(r#"meshd_peer_up{peer="a\"} 1\nmeshd_peer_up{x=\"\\",public_key="#), "{text}");
    }
}
