//! `GET /metrics`: the status as Prometheus text (exposition format 0.0.4).

use std::fmt::{Display, Write as _};

use super::api::{Cipher, DIRECT, Guard, PeerStatus, Status};
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
    express(&mut page, peers);
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

/// The same bytes by cipher, and what is known of express sessions.
fn express<'a, P>(page: &mut Page, peers: impl Fn() -> P)
where
    P: Iterator<Item = (&'a PeerStatus, [(&'a str, &'a str); 2])>,
{
    page.family("meshd_peer_express", "gauge", "1 while data to the peer leaves under AES-256-GCM.");
    for (peer, labels) in peers() {
        page.sample("meshd_peer_express", &labels, u8::from(peer.cipher == Cipher::Aes256Gcm));
    }
    for (name, help, of) in EXPRESS {
        page.family(name, "counter", help);
        for (peer, labels) in peers() {
            page.sample(name, &labels, of(peer));
        }
    }
    for (name, help, of) in BYTES {
        page.family(name, "counter", help);
        for ((peer, [name_of, key]), cipher) in peers().flat_map(|peer| Cipher::ALL.map(|cipher| (peer, cipher))) {
            page.sample(name, &[name_of, key, ("cipher", &cipher.to_string())], of(peer, cipher));
        }
    }
}

type OfPeer = fn(&PeerStatus) -> u64;
type ByCipher = fn(&PeerStatus, Cipher) -> u64;

const EXPRESS: [(&str, &str, OfPeer); 3] = [
    (
        "meshd_peer_express_sessions_total",
        "How often data to the peer has come to leave under new keys of an express session.",
        |peer| peer.express.sessions,
    ),
    ("meshd_peer_express_receive_packets_total", "Messages opened in express sessions.", |peer| {
        peer.express.counts.rx_packets
    }),
    ("meshd_peer_express_transmit_packets_total", "Messages sealed in express sessions.", |peer| {
        peer.express.counts.tx_packets
    }),
];

const BYTES: [(&str, &str, ByCipher); 2] = [
    (
        "meshd_peer_cipher_receive_bytes_total",
        "Authenticated bytes of UDP payload from the peer, by cipher.",
        |peer, cipher| by(cipher, peer.rx_bytes, peer.express.counts.rx_bytes),
    ),
    ("meshd_peer_cipher_transmit_bytes_total", "Bytes of UDP payload to the peer, by cipher.", |peer, cipher| {
        by(cipher, peer.tx_bytes, peer.express.counts.tx_bytes)
    }),
];

fn by(cipher: Cipher, all: u64, express: u64) -> u64 {
    match cipher {
        Cipher::Aes256Gcm => express,
        Cipher::ChaCha20Poly1305 => all.saturating_sub(express),
    }
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
        assert_eq!(declared.len(), 16);
    }

    #[test]
    fn the_samples_say_what_the_status_says() {
        let text = render(&status(), 1_700_000_100);
        let vps = format!("{{peer=\"vps\",public_key=\"{}\"}}", status().peers[0].public_key);
        let under = |cipher: &str| vps.replace('}', &format!(",cipher=\"{cipher}\"}}"));
        for line in [
            format!("meshd_peer_up{vps} 1"),
            format!("meshd_peer_receive_bytes_total{vps} 1234567"),
            format!("meshd_peer_transmit_bytes_total{vps} 89"),
            format!("meshd_peer_express{vps} 1"),
            format!("meshd_peer_express_sessions_total{vps} 2"),
            format!("meshd_peer_express_receive_packets_total{vps} 900"),
            format!("meshd_peer_express_transmit_packets_total{vps} 1"),
            format!("meshd_peer_cipher_receive_bytes_total{} 1234000", under("aes-256-gcm")),
            format!("meshd_peer_cipher_receive_bytes_total{} 567", under("chacha20-poly1305")),
            format!("meshd_peer_cipher_transmit_bytes_total{} 48", under("aes-256-gcm")),
            format!("meshd_peer_cipher_transmit_bytes_total{} 41", under("chacha20-poly1305")),
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
