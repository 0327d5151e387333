//! The fixed fields of WireGuard's four messages (whitepaper, section 5.4).

/// First message of a handshake.
pub(super) const HANDSHAKE_INITIATION: u8 = 1;
/// Second message of a handshake.
pub(super) const HANDSHAKE_RESPONSE: u8 = 2;
/// Asks for proof of the source address.
pub(super) const COOKIE_REPLY: u8 = 3;
/// Transport data.
pub(super) const DATA: u8 = 4;
/// None of WireGuard's: a bare probe of a measurement ([`crate::bench`]), which other programs ignore.
pub(super) const PROBE: u8 = 0x6d;

/// The message type; `None` when a reserved byte is set or the header is short.
pub(super) fn kind(datagram: &[u8]) -> Option<u8> {
    match datagram {
        [kind, 0, 0, 0, _, _, _, _, ..] => Some(*kind),
        _ => None,
    }
}

/// What the outer header of a message of this kind bears where no packet inside says otherwise: AF41 for handshakes, as the
/// kernel's WireGuard has it (`HANDSHAKE_DSCP` in drivers/net/wireguard/messages.h), so that they pass a queue of data.
pub(super) fn traffic_class(kind: u8) -> u8 {
    match kind {
        HANDSHAKE_INITIATION | HANDSHAKE_RESPONSE => 0x88,
        _ => 0,
    }
}

/// The receiver index of all messages but an initiation.
pub(super) fn receiver(datagram: &[u8]) -> Option<u32> {
    let at = if *datagram.first()? == HANDSHAKE_RESPONSE { 8 } else { 4 };
    word(datagram, at)
}

/// The sender index of an initiation or a response.
pub(super) fn sender(datagram: &[u8]) -> Option<u32> {
    word(datagram, 4)
}

fn word(datagram: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*datagram.get(at..)?.first_chunk()?))
}
