//! Takes a file apart as `parse_options()` of wg-quick(8) and `config_read_line()` of wg(8) do.

use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;

use super::{Conf, Hook, Interface, Peer, When};
use crate::config::{Endpoint, MAX_FILE, Problem, Problems, SourceFile, quote, value};
use crate::key::{KeyError, PresharedKey, PublicKey};

/// The keys of `[Interface]`, for errors. The last two are the Android app's own.
const INTERFACE: &str = "PrivateKey, Address, ListenPort, DNS, MTU, Table, FwMark, SaveConfig, PreUp, PostUp, PreDown, \
                         PostDown, IncludedApplications, ExcludedApplications";
/// The keys of `[Peer]`, for errors.
const PEER: &str = "PublicKey, PresharedKey, AllowedIPs, Endpoint, PersistentKeepalive";

/// Reads a whole file.
///
/// # Errors
/// Everything that is wrong with it, each with its line: what wg(8) or wg-quick(8) would refuse, and what this host could
/// do nothing with.
pub fn parse(source: &SourceFile) -> Result<Conf, Vec<Problem>> {
    let problem = |line, message| vec![Problem { path: source.path.clone(), line, message }];
    if source.text.len() > MAX_FILE {
        return Err(problem(1, format!("larger than {} KiB; no configuration is", MAX_FILE >> 10)));
    }
    let text = std::str::from_utf8(&source.text).map_err(|error| {
        let line = source.text[..error.valid_up_to()].split(|byte| *byte == b'\n').count();
        problem(line, "not UTF-8; expected a text as wg-quick has it".into())
    })?;
    let mut problems = Problems::default();
    let mut reader = Reader::default();
    // An editor on Windows begins a file with a byte order mark.
    for (at, line) in text.trim_start_matches('\u{feff}').lines().enumerate() {
        reader.at = at + 1;
        if let Err(message) = reader.line(line) {
            problems.add(&source.path, at + 1, message);
        }
    }
    reader.end_of_section();
    // What a section lacks may well be what one of its lines has wrong.
    problems.into_result()?;
    match reader.nameless {
        Some(line) => Err(problem(line, "[Peer] without PublicKey; write the peer's".into())),
        None => Ok(reader.conf),
    }
}

#[derive(Default)]
struct Reader {
    conf: Conf,
    /// The line, counted from 1.
    at: usize,
    section: Section,
    /// Comments since the last line of another kind, each that is a sound name.
    names: Vec<String>,
    /// Where a section without a key begins.
    nameless: Option<usize>,
}

#[derive(Default)]
enum Section {
    #[default]
    None,
    Interface,
    Peer(Unfinished),
}

/// A `[Peer]` while its lines come.
#[derive(Default)]
struct Unfinished {
    line: usize,
    /// Whether a key has come: a comment below may be about the next peer.
    begun: bool,
    name: Option<String>,
    public_key: Option<PublicKey>,
    preshared_key: Option<PresharedKey>,
    allowed_ips: Vec<IpNet>,
    endpoint: Option<Endpoint>,
    persistent_keepalive: Option<u16>,
}

impl Reader {
    fn line(&mut self, line: &str) -> Result<(), String> {
        let (stripped, comment) = line.split_once('#').map_or((line, None), |(line, comment)| (line, Some(comment)));
        self.names.extend(comment.and_then(sound_name));
        let stripped = stripped.trim();
        if stripped.is_empty() {
            return Ok(());
        }
        if stripped.starts_with('[') {
            return self.section(stripped);
        }
        self.name_peer();
        let Some((key, value)) = stripped.split_once('=') else {
            return Err("expected KEY = VALUE, [Interface] or [Peer]".into());
        };
        let (key, value) = (key.trim(), value.trim());
        match &mut self.section {
            Section::None => Err(format!("{} stands in neither [Interface] nor [Peer]", quote(key))),
            Section::Interface => interface_line(&mut self.conf.interface, key, value),
            Section::Peer(peer) => {
                peer.begun = true;
                peer_line(peer, key, value)
            }
        }
    }

    fn section(&mut self, header: &str) -> Result<(), String> {
        self.end_of_section();
        let names = std::mem::take(&mut self.names);
        if header.eq_ignore_ascii_case("[Interface]") {
            self.section = Section::Interface;
        } else if header.eq_ignore_ascii_case("[Peer]") {
            let name = names.into_iter().next_back();
            self.section = Section::Peer(Unfinished { line: self.at, name, ..Unfinished::default() });
        } else {
            return Err(format!("section {}: expected [Interface] or [Peer]", quote(header)));
        }
        Ok(())
    }

    /// What comments above a key said is about the peer that they stand in, unless it had a key before them.
    fn name_peer(&mut self) {
        let name = self.names.drain(..).next();
        if let Section::Peer(peer) = &mut self.section
            && !peer.begun
        {
            peer.name = peer.name.take().or(name);
        }
    }

    fn end_of_section(&mut self) {
        let Section::Peer(peer) = std::mem::take(&mut self.section) else { return };
        match peer.public_key {
            None => self.nameless = self.nameless.or(Some(peer.line)),
            Some(public_key) => self.conf.peers.push(Peer {
                name: peer.name,
                public_key,
                preshared_key: peer.preshared_key,
                allowed_ips: peer.allowed_ips,
                endpoint: peer.endpoint,
                persistent_keepalive: peer.persistent_keepalive,
            }),
        }
    }
}

/// `# phone`, as people write it, and `# Name = phone`, as programs do.
fn sound_name(comment: &str) -> Option<String> {
    let named = comment.rsplit_once('=').filter(|(key, _)| key.trim().to_ascii_lowercase().ends_with("name"));
    let name = named.map_or(comment, |(_, name)| name).trim().to_ascii_lowercase();
    value::name(&name).ok()
}

fn interface_line(interface: &mut Interface, key: &str, text: &str) -> Result<(), String> {
    let of = |why: String| format!("{key} {}: {why}", quote(text));
    match key.to_ascii_lowercase().as_str() {
        // Not shown: a key with a slip of the pen in it is still most of a secret.
        "privatekey" => interface.private_key = Some(secret(key, text)?),
        "address" => interface.addresses.extend(list(text, address).map_err(of)?),
        "listenport" => interface.listen_port = Some(number(text).map_err(of)?).filter(|&port| port > 0),
        "mtu" => interface.mtu = Some(number(text).map_err(of)?),
        "dns" => {
            for item in items(text) {
                match item.parse::<IpAddr>() {
                    Ok(addr) => interface.dns.push(addr),
                    // The rule of wg-quick: what looks like an address is one.
                    Err(_) if item.contains(':') || item.chars().all(|c| c.is_ascii_digit() || c == '.') => {
                        return Err(of(format!("{} is no address", quote(item))));
                    }
                    Err(_) => interface.search.push(item.to_owned()),
                }
            }
        }
        "table" => interface.table = Some(text.to_owned()),
        "fwmark" => interface.fwmark = Some(mark(text).map_err(of)?),
        "saveconfig" => {
            interface.save_config = match text.to_ascii_lowercase().as_str() {
                "true" => true,
                "false" => false,
                _ => return Err(of("expected true or false".into())),
            }
        }
        "includedapplications" | "excludedapplications" => {}
        other => match When::ALL.iter().find(|(_, name)| name.eq_ignore_ascii_case(other)) {
            Some(&(when, _)) => interface.hooks.push(Hook { when, command: text.to_owned() }),
            None => return Err(format!("unknown key {} in [Interface]; known keys: {INTERFACE}", quote(key))),
        },
    }
    Ok(())
}

fn peer_line(peer: &mut Unfinished, key: &str, text: &str) -> Result<(), String> {
    let of = |why: String| format!("{key} {}: {why}", quote(text));
    match key.to_ascii_lowercase().as_str() {
        "publickey" => {
            peer.public_key = Some(text.parse().map_err(|error: KeyError| of(error.to_string()))?);
        }
        "presharedkey" => peer.preshared_key = Some(secret(key, text)?),
        "allowedips" => {
            peer.allowed_ips.extend(list(text, address).map_err(of)?.iter().map(IpNet::trunc));
        }
        "endpoint" => peer.endpoint = Some(value::endpoint(text).map_err(of)?),
        "persistentkeepalive" => {
            let seconds = if text.eq_ignore_ascii_case("off") { 0 } else { number(text).map_err(of)? };
            peer.persistent_keepalive = Some(seconds).filter(|&seconds| seconds > 0);
        }
        _ => return Err(format!("unknown key {} in [Peer]; known keys: {PEER}", quote(key))),
    }
    Ok(())
}

fn secret<K: FromStr<Err = KeyError>>(key: &str, text: &str) -> Result<K, String> {
    text.parse().map_err(|error: KeyError| format!("{key}: {error}"))
}

fn items(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| c == ',' || c.is_ascii_whitespace()).filter(|item| !item.is_empty())
}

fn list<T>(text: &str, parse: impl Fn(&str) -> Result<T, String>) -> Result<Vec<T>, String> {
    items(text).map(parse).collect()
}

/// With a prefix or without, with host bits or without.
fn address(text: &str) -> Result<IpNet, String> {
    let net = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
    net.map_err(|_| format!("{} is no network; expected such as 10.88.0.2/32 or fd88::/64", quote(text)))
}

fn number(text: &str) -> Result<u16, String> {
    text.parse().map_err(|_| "expected a number from 0 to 65535".to_owned())
}

fn mark(text: &str) -> Result<u32, String> {
    if text.eq_ignore_ascii_case("off") {
        return Ok(0);
    }
    let hex = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X"));
    let number = hex.map_or_else(|| text.parse(), |hex| u32::from_str_radix(hex, 16));
    number.map_err(|_| "expected off, a number or 0x and hexadecimal digits".to_owned())
}
