//! What the inviter's operator hands to the joiner's: one line of text.
//!
//! ```text
//! meshd-<base64url of>
//!    1  version: 1
//!    2  length of the whole in bytes: a token that was cut is told from one that was altered
//!   32  the inviter's public key
//!   32  secret
//!    8  expiry, Unix seconds
//!    1  how many networks of the mesh, each: 1 prefix length, with the highest bit set for IPv6; 4 or 16 address
//!    1  how many endpoints of the inviter, each: 1 length, HOST:PORT
//!    4  checksum: the first bytes of BLAKE2s of all before
//! ```
//!
//! All numbers are big-endian.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use blake2::{Blake2s256, Digest as _};
use ipnet::IpNet;
use zeroize::Zeroizing;

use super::{Secret, from_text, to_text};
use crate::config::{Endpoint, value};
use crate::key::{PublicKey, random_bytes};

/// What every token begins with.
pub const PREFIX: &str = "meshd-";
/// No token is longer, in characters.
pub const MAX_TEXT: usize = 4096;
/// Of networks and of endpoints.
const MAX_ITEMS: usize = 8;
const VERSION: u8 = 1;
const CHECKSUM: usize = 4;
/// Bytes without which there is nothing to look at.
const SHORTEST: usize = 3 + CHECKSUM;
const IPV6: u8 = 0x80;

/// An invitation as it travels.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// Whom the joiner has to reach.
    pub inviter: PublicKey,
    /// What only the two sides know.
    pub secret: Secret,
    /// Until when it may be redeemed, in Unix seconds.
    pub expires: u64,
    /// Of the mesh, by which a host that is in another one notices.
    pub networks: Vec<IpNet>,
    /// Where the inviter is reached, the likeliest first; at least one.
    pub endpoints: Vec<Endpoint>,
}

/// Why a text is no token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// It does not begin as one.
    #[error("not a token: expected one line that begins with {PREFIX}")]
    NotOne,
    /// Something is missing at its end.
    #[error("truncated: {0} of {1} characters; copy the whole line")]
    Truncated(usize, usize),
    /// A character of it is another.
    #[error("altered: its checksum does not match; copy the line again")]
    Altered,
    /// Of a later version of meshd.
    #[error("version {0} of tokens, which this meshd does not know; update it")]
    Version(u8),
    /// The checksum is right and what it says is not.
    #[error("no inviter can have made it: {0}")]
    Malformed(&'static str),
}

impl Token {
    /// A new secret from the kernel's random numbers.
    ///
    /// # Errors
    /// When the kernel has none to give.
    pub fn new_secret() -> std::io::Result<Secret> {
        random_bytes().map(Zeroizing::new)
    }

    /// The token as text. Whoever has it may join: it is printed once and kept nowhere.
    pub fn expose_text(&self) -> Zeroizing<String> {
        let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_TEXT));
        bytes.extend([VERSION, 0, 0]);
        bytes.extend(self.inviter.as_bytes());
        bytes.extend(self.secret.as_slice());
        bytes.extend(self.expires.to_be_bytes());
        bytes.push(self.networks.len().min(MAX_ITEMS) as u8);
        for net in self.networks.iter().take(MAX_ITEMS) {
            match net.network() {
                IpAddr::V4(addr) => {
                    bytes.push(net.prefix_len());
                    bytes.extend(addr.octets());
                }
                IpAddr::V6(addr) => {
                    bytes.push(net.prefix_len() | IPV6);
                    bytes.extend(addr.octets());
                }
            }
        }
        bytes.push(self.endpoints.len().min(MAX_ITEMS) as u8);
        for endpoint in self.endpoints.iter().take(MAX_ITEMS) {
            // A host name has 253 characters at most.
            let text = endpoint.to_string();
            bytes.push(text.len() as u8);
            bytes.extend(text.bytes());
        }
        let len = (bytes.len() + CHECKSUM) as u16;
        bytes[1..3].copy_from_slice(&len.to_be_bytes());
        let sum = checksum(&bytes);
        bytes.extend(sum);
        Zeroizing::new(format!("{PREFIX}{}", *Zeroizing::new(to_text(&bytes))))
    }
}

impl FromStr for Token {
    type Err = TokenError;

    /// Reads a token; spaces and line breaks around and within it, as terminals and mail programs put them there, do not
    /// matter.
    fn from_str(text: &str) -> Result<Self, TokenError> {
        if text.len() > 2 * MAX_TEXT {
            return Err(TokenError::NotOne);
        }
        let text = Zeroizing::new(text.split_whitespace().collect::<String>());
        let encoded = text.strip_prefix(PREFIX).ok_or(TokenError::NotOne)?;
        let known = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if !encoded.chars().all(known) {
            return Err(TokenError::Altered);
        }
        // Whole groups of four characters, so that what was cut anywhere can be looked at.
        let bytes = Zeroizing::new(from_text(&encoded[..encoded.len() / 4 * 4]).ok_or(TokenError::Altered)?);
        let length = bytes.get(1..3).map_or(SHORTEST, |length| usize::from(u16::from_be_bytes([length[0], length[1]])));
        let expected = PREFIX.len() + (length * 4).div_ceil(3);
        if bytes.first().is_none_or(|&version| version == VERSION) && text.len() < expected {
            return Err(TokenError::Truncated(text.len(), expected));
        }
        let bytes = Zeroizing::new(from_text(encoded).ok_or(TokenError::Altered)?);
        let (body, sum) = bytes.split_last_chunk::<CHECKSUM>().ok_or(TokenError::Altered)?;
        if *sum != checksum(body) || bytes.len() < SHORTEST {
            return Err(TokenError::Altered);
        }
        if body[0] != VERSION {
            return Err(TokenError::Version(body[0]));
        }
        parse(&body[3..])
    }
}

fn parse(body: &[u8]) -> Result<Token, TokenError> {
    let mut rest = Fields(body);
    let inviter = rest.array().and_then(|key| PublicKey::from_bytes(key).ok());
    let inviter = inviter.ok_or(TokenError::Malformed("its public key is none"))?;
    let secret = Zeroizing::new(rest.array().ok_or(TokenError::Malformed("it has no secret"))?);
    let expires = rest.array().map(u64::from_be_bytes).ok_or(TokenError::Malformed("it has no expiry"))?;
    let networks = rest.list(Fields::network).filter(|list| !list.is_empty());
    let networks = networks.ok_or(TokenError::Malformed("its networks are none"))?;
    let endpoints = rest.list(Fields::endpoint).filter(|list| !list.is_empty());
    let endpoints = endpoints.ok_or(TokenError::Malformed("its endpoints are none"))?;
    if !rest.0.is_empty() {
        return Err(TokenError::Malformed("it goes on after its end"));
    }
    Ok(Token { inviter, secret, expires, networks, endpoints })
}

/// What is left to read.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (array, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*array)
    }

    fn byte(&mut self) -> Option<u8> {
        self.array().map(|[byte]| byte)
    }

    fn list<T>(&mut self, read: impl Fn(&mut Self) -> Option<T>) -> Option<Vec<T>> {
        let count = usize::from(self.byte()?);
        if count > MAX_ITEMS {
            return None;
        }
        (0..count).map(|_| read(self)).collect()
    }

    fn network(&mut self) -> Option<IpNet> {
        let prefix = self.byte()?;
        let addr =
            if prefix & IPV6 == 0 { IpAddr::from(self.array::<4>()?) } else { IpAddr::from(self.array::<16>()?) };
        let prefix = if addr.is_ipv4() { prefix } else { prefix & !IPV6 };
        let net = IpNet::new(addr, prefix).ok()?;
        (net.trunc() == net).then_some(net)
    }

    fn endpoint(&mut self) -> Option<Endpoint> {
        let (text, rest) = self.0.get(1..)?.split_at_checked(usize::from(*self.0.first()?))?;
        self.0 = rest;
        value::endpoint(std::str::from_utf8(text).ok()?).ok()
    }
}

fn checksum(bytes: &[u8]) -> [u8; CHECKSUM] {
    let hash = Blake2s256::new().chain_update(b"meshd token").chain_update(bytes).finalize();
    let mut sum = [0; CHECKSUM];
    sum.copy_from_slice(&hash[..CHECKSUM]);
    sum
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token(of {}, until {}; redacted)", self.inviter, self.expires)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::key::PrivateKey;

    fn token() -> Token {
        Token {
            inviter: PrivateKey::from_bytes([1; 32]).public_key(),
            secret: Zeroizing::new([7; 32]),
            expires: 1_800_000_000,
            networks: ["10.88.0.0/24", "fd88::/64"].map(|net| net.parse().unwrap()).into(),
            endpoints: ["vps.example.net:51820", "[2001:db8::1]:51820"].map(|at| value::endpoint(at).unwrap()).into(),
        }
    }

    #[test]
    fn a_token_is_one_line_that_survives_the_clipboard() {
        let text = token().expose_text();
        assert!(text.len() < 260 && !text.contains(char::is_whitespace), "{} characters", text.len());
        assert_eq!(text.parse(), Ok(token()));
        let (a, b) = text.split_at(80);
        assert_eq!(format!("  {a}\r\n{b}\n").parse(), Ok(token()), "as a terminal breaks it");
        assert!(!format!("{:?}", token()).contains("7, 7"));
    }

    #[test]
    fn what_was_cut_is_told_from_what_was_altered() {
        let text = token().expose_text();
        for len in PREFIX.len()..text.len() {
            let error = text[..len].parse::<Token>().unwrap_err();
            assert!(matches!(error, TokenError::Truncated(..)), "{len} characters: {error}");
        }
        assert_eq!(text[..PREFIX.len() - 1].parse::<Token>(), Err(TokenError::NotOne));
        assert_eq!("".parse::<Token>(), Err(TokenError::NotOne));
        for at in PREFIX.len()..text.len() {
            let other = if &text[at..=at] == "A" { "B" } else { "A" };
            let altered = format!("{}{other}{}", &text[..at], &text[at + 1..]);
            assert!(altered.parse::<Token>().is_err(), "character {at}");
        }
        assert_eq!(format!("{}A", *text).parse::<Token>(), Err(TokenError::Altered), "one too many");
    }

    #[test]
    fn a_later_version_is_told_so() {
        let mut bytes = from_text(&token().expose_text()[PREFIX.len()..]).unwrap();
        bytes.truncate(bytes.len() - CHECKSUM);
        bytes[0] = 2;
        let sum = checksum(&bytes);
        bytes.extend(sum);
        assert_eq!(format!("{PREFIX}{}", to_text(&bytes)).parse::<Token>(), Err(TokenError::Version(2)));
    }

    proptest! {
        #[test]
        fn garbage_is_no_token(bytes in prop::collection::vec(any::<u8>(), 0..300), text in "\\PC*") {
            let mut body = bytes.clone();
            let _ = text.parse::<Token>();
            let _ = format!("{PREFIX}{text}").parse::<Token>();
            // With a right checksum, so that it is looked at.
            if body.len() >= 3 {
                let len = (body.len() + CHECKSUM) as u16;
                body[0] = VERSION;
                body[1..3].copy_from_slice(&len.to_be_bytes());
                let sum = checksum(&body);
                body.extend(sum);
                if let Ok(token) = format!("{PREFIX}{}", to_text(&body)).parse::<Token>() {
                    prop_assert_eq!(token.expose_text().parse::<Token>(), Ok(token));
                }
            }
        }
    }
}
