//! How agents talk to each other inside the tunnel. Pure: no I/O, and `now` is an argument.
//!
//! A [`Message`] travels as one IPv6/UDP packet between two addresses that follow from the two public keys
//! ([`address`]). No kernel ever sees such a packet: [`tunnel::Device`](crate::tunnel::Device) seals it straight to its
//! peer, and hands what arrives to the control side, if its source is the address of the peer that sealed it. Any other
//! WireGuard program drops it by its allowed IPs, so that who does not answer is no agent.
//!
//! [`Exchange`] makes requests and answers of single messages: it repeats a request until it is answered, gives up
//! after a few seconds, and answers a repeated request as it did the first time. [`Allowance`] bounds what one peer may
//! ask for.
//!
//! Nothing is to be believed because it came this way, but what a peer says about itself.

pub mod address;
mod allowance;
mod exchange;
mod message;

pub use allowance::Allowance;
pub use exchange::{Due, Exchange, Letter, Received};
pub use message::{HEADER, Kind, MAX_BODY, Message, OVERHEAD};
