//! Express sessions: what the agents say of them, and what is seen of them on the wire.

use std::time::Duration;

use super::host::Host;
use super::{Lab, wait_for};

/// AES-256-GCM, as status names it.
pub const EXPRESS: &str = "aes-256-gcm";
/// ChaCha20-Poly1305, the ordinary one.
pub const ORDINARY: &str = "chacha20-poly1305";

/// The receiver index of a transport message, by its own bytes alone; `None` for other messages (whitepaper, 5.4.6).
pub fn receiver(message: &[u8]) -> Option<u32> {
    match message {
        [4, 0, 0, 0, a, b, c, d, ..] if message.len() >= 32 => Some(u32::from_le_bytes([*a, *b, *c, *d])),
        _ => None,
    }
}

/// Whether a message belongs to an express session: boringtun's indices never have the highest bit.
pub fn is_express(message: &[u8]) -> bool {
    receiver(message).is_some_and(|index| index >> 31 == 1)
}

/// The cipher in which a host sends to a peer.
pub fn cipher(host: &Host, peer: &str) -> String {
    host.peer(peer)["cipher"].as_str().unwrap_or_default().to_owned()
}

/// Those of the VPS to home and of home to the VPS.
pub fn ciphers(lab: &Lab) -> [String; 2] {
    [cipher(&lab.vps, "home"), cipher(&lab.home, "vps")]
}

/// Waits until both send in this one, with echo requests now and then, enough of them to make an agreement worth it.
pub fn wait_for_cipher(lab: &Lab, name: &str, limit: Duration) {
    wait_for(format!("both hosts send in {name}"), limit, || {
        lab.home.ping_with("10.88.0.1", "-c 8 -i 0.002 -W 1 -s 1300");
        (ciphers(lab) == [name, name]).then_some(())
    });
}

/// Writes the key `express` into a file of a host's configuration.
pub fn set_express(host: &Host, file: &str, value: &str) {
    let text = host.read(file);
    let rest: Vec<_> = text.lines().filter(|line| !line.starts_with("express =")).collect();
    host.write(file, &format!("express = \"{value}\"\n{}\n", rest.join("\n")));
}
