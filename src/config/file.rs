//! The keys of `meshd.toml` and `peers/NAME.toml`.

use std::collections::BTreeMap;
use std::fmt;

use serde_spanned::Spanned;
use toml::de::{DeTable, DeValue};
use zeroize::Zeroize as _;

use super::problem::{Problem, Problems, quote};
use super::reader::{Lines, Reader, Section, table, text};
use super::{
    Bridge, Config, Egress, Exit, Host, Lan, NamedContainer, Names, Peer, Publish, User, allow, check, service, value,
};
use crate::key::{KeyError, NextKeys, PrivateKey};

/// When `meshd.toml` says nothing else.
pub const DEFAULT_INTERFACE: &str = "mesh0";
/// When `meshd.toml` says nothing else.
pub const DEFAULT_LISTEN_PORT: u16 = 51820;
/// When `meshd.toml` says nothing else.
pub const DEFAULT_DOMAIN: &str = "mesh";
/// When `meshd.toml` says nothing else: what is left of 1500 bytes with IPv6 and WireGuard around it.
pub const DEFAULT_MTU: u16 = 1420;

/// When `meshd.toml` says nothing else: one service a user.
const DEFAULT_CONTAINERS: u16 = 1;
/// Ports that a bridge has (BR_MAX_PORTS, net/bridge/br_private.h).
const MAX_CONTAINERS: u16 = 1023;

/// IPv6 works on no smaller link (RFC 8200, section 5), and jumbo frames are no larger.
const MTU: std::ops::RangeInclusive<u16> = 1280..=9000;
/// More than any machine that the kernel gives TUN queues for (MAX_TAP_QUEUES, drivers/net/tun.c, is 256) has use of.
const MAX_WORKERS: u16 = 64;

/// The bytes of one file and how it is called in errors.
#[derive(Clone)]
pub struct SourceFile {
    /// Shown before `:LINE:`.
    pub path: String,
    /// Wiped when dropped, as any of the files may hold a secret.
    pub text: Vec<u8>,
}

/// All files of a configuration.
#[derive(Debug, Clone)]
pub struct Files {
    /// `meshd.toml`.
    pub host: SourceFile,
    /// `private.key`.
    pub private_key: SourceFile,
    /// `peers/NAME.toml`, each with its NAME. Of two that clash the later one is told so.
    pub peers: Vec<(String, SourceFile)>,
    /// What stands behind each `preshared_key_file`, by the text of that key; an error is why it cannot be had.
    pub preshared_keys: BTreeMap<String, Result<SourceFile, String>>,
}

/// Where a peer's preshared key is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Psk {
    /// In the peer's file itself, so that the file is a secret.
    Inline,
    /// In the file of this name.
    File(String),
}

/// Looks into a peer's file for its preshared key before the whole is parsed, as the caller has to read the file that it
/// names. `None` as well when the file is no TOML, which [`parse`] will say.
pub fn psk_of(peer: &SourceFile) -> Option<Psk> {
    let text = std::str::from_utf8(&peer.text).ok().filter(|text| text.len() <= super::MAX_FILE)?;
    // What could be recovered counts: a secret in a file with a mistake elsewhere is still one.
    let (table, _) = DeTable::parse_recoverable(text);
    if table.get_ref().contains_key("preshared_key") {
        return Some(Psk::Inline);
    }
    match table.get_ref().get("preshared_key_file")?.get_ref() {
        DeValue::String(path) => Some(Psk::File(path.to_string())),
        _ => None,
    }
}

/// Checks all files and makes the configuration of them, or says everything that is wrong.
///
/// # Errors
/// Each problem names its file and line; there is at least one.
pub fn parse(files: &Files) -> Result<Config, Vec<Problem>> {
    let mut problems = Problems::default();
    let mut lines = BTreeMap::new();

    let host = host(&files.host, &mut lines, &mut problems);
    let private_key = private_key(&files.private_key, &mut problems);
    let peers: Vec<Option<Peer>> = files
        .peers
        .iter()
        .map(|(name, source)| peer(name, source, &files.preshared_keys, &mut lines, &mut problems))
        .collect();
    problems.into_result()?;

    // Each part is there when there was no problem.
    let (Some(host), Some(private_key)) = (host, private_key) else { return Err(Vec::new()) };
    let mut config = Config { host, private_key, peers: peers.into_iter().flatten().collect() };
    check::check(&config, files, &lines)?;
    config.peers.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(config)
}

/// The lines of each file's values, by the file's path.
pub(super) type FileLines = BTreeMap<String, Lines>;

fn host(source: &SourceFile, lines: &mut FileLines, problems: &mut Problems) -> Option<Host> {
    with_table(source, lines, problems, |reader, table| {
        let mut top = Section::top(table);
        let name = reader.required(&mut top, "name", "\"home\"", value::name);
        let interface = reader.string(&mut top, "interface", value::interface);
        let addresses = addresses(reader, &mut top);
        let listen_port = reader.integer(&mut top, "listen_port", 0..=u16::MAX, "; 0 picks one");
        let endpoint = reader.string(&mut top, "endpoint", value::endpoint);
        let mtu = reader.integer(&mut top, "mtu", MTU, "; IPv6 needs 1280");
        let workers = reader.integer(&mut top, "workers", 1..=MAX_WORKERS, "");
        let copy_dscp = reader.boolean(&mut top, "copy_dscp");
        let domain = reader.string(&mut top, "domain", value::domain);
        let express = reader.string(&mut top, "express", value::express);
        let bridges = reader.sections(&mut top, "bridge").into_iter().map(|at| bridge(reader, at)).collect::<Vec<_>>();
        let lans = reader.sections(&mut top, "lan").into_iter().map(|at| lan(reader, at)).collect::<Vec<_>>();
        let exit = reader.section(&mut top, "exit").map(|at| exit(reader, at));
        let publish =
            reader.sections(&mut top, "publish").into_iter().map(|at| publish(reader, at)).collect::<Vec<_>>();
        let names = reader.section(&mut top, "names").map(|at| names(reader, at));
        reader.finish(&top);
        Some(Host {
            name: name?,
            interface: interface.unwrap_or_else(|| DEFAULT_INTERFACE.to_owned()),
            addresses,
            listen_port: listen_port.unwrap_or(DEFAULT_LISTEN_PORT),
            endpoint,
            mtu: mtu.unwrap_or(DEFAULT_MTU),
            workers,
            copy_dscp: copy_dscp.unwrap_or(false),
            bridges: bridges.into_iter().flatten().collect(),
            lans: lans.into_iter().flatten().collect(),
            exit,
            publish: publish.into_iter().flatten().collect(),
            domain: domain.unwrap_or_else(|| DEFAULT_DOMAIN.to_owned()),
            express: express.unwrap_or(true),
            names,
        })
    })
}

fn addresses(reader: &mut Reader<'_>, top: &mut Section<'_>) -> Vec<ipnet::IpNet> {
    let written = reader.strings(top, "addresses", value::host_address);
    if written.is_none() {
        let example = "write addresses = [\"10.88.0.2/24\", \"fd88::2/64\"]";
        reader.problem(1, format!("missing addresses, those of this host inside the mesh; {example}"));
    }
    written.unwrap_or_default()
}

fn bridge(reader: &mut Reader<'_>, mut at: Section<'_>) -> Option<Bridge> {
    let name = reader.required(&mut at, "name", "\"br0\"", value::interface);
    if let Some(name) = &name {
        at.context = format!("bridge {}: ", quote(name));
    }
    let subnets = reader.strings(&mut at, "subnets", value::subnet);
    if subnets.is_none() {
        let line = at.line();
        reader.problem(line, format!("{}missing subnets; write subnets = [\"10.89.2.0/24\"]", at.context));
    }
    let egress = egress(reader, &mut at);
    let allow = reader.strings(&mut at, "allow", value::allowed_network);
    let users = reader.named_sections(&mut at, "users", "user");
    let users = users.into_iter().filter_map(|(name, at)| user(reader, &name, at)).collect();
    reader.finish(&at);
    Some(Bridge { name: name?, subnets: subnets?, egress, allow: allow.unwrap_or_default(), users })
}

fn user(reader: &mut Reader<'_>, name: &str, mut at: Section<'_>) -> Option<User> {
    let checked = value::user(name);
    if let Err(why) = &checked {
        let (line, context) = (at.line(), at.context.clone());
        reader.problem(line, format!("{context}{why}"));
    }
    let containers = reader.integer(&mut at, "containers", 0..=MAX_CONTAINERS, "");
    let addresses = reader.strings(&mut at, "addresses", value::subnet);
    let reach = reader.strings(&mut at, "reach", value::user);
    let publish = reader.strings(&mut at, "publish", service);
    reader.finish(&at);
    Some(User {
        name: checked.ok()?,
        containers: containers.unwrap_or(DEFAULT_CONTAINERS),
        addresses: addresses.unwrap_or_default(),
        reach: reach.unwrap_or_default(),
        publish: publish.unwrap_or_default(),
    })
}

/// Whether the peers are there is said by `check`, which knows the others.
fn egress(reader: &mut Reader<'_>, at: &mut Section<'_>) -> Egress {
    let Some(names) = reader.string_or_strings(at, "egress", |name| Ok(name.to_owned())) else { return Egress::Direct };
    match names.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["direct"] => return Egress::Direct,
        ["none"] => return Egress::None,
        _ => {}
    }
    let line = reader.lines.of(&at.key_of("egress"));
    let context = at.context.clone();
    if at.is_empty_list("egress") {
        reader.problem(line, format!("{context}egress: empty; write a peer's name, \"direct\" or \"none\""));
    }
    if let Some(word) = names.iter().find(|name| ["direct", "none"].contains(&name.as_str())) {
        let message = format!("{context}egress {}: stands alone or not at all, beside no peer", quote(word));
        reader.problem(line, message);
    }
    if let Some((_, name)) = names.iter().enumerate().find(|(index, name)| names[..*index].contains(name)) {
        reader.problem(line, format!("{context}egress {}: written twice", quote(name)));
    }
    Egress::Peers(names)
}

fn lan(reader: &mut Reader<'_>, mut at: Section<'_>) -> Option<Lan> {
    let subnet = reader.required(&mut at, "subnet", "\"192.168.1.0/24\"", value::subnet);
    let interface = reader.required(&mut at, "interface", "\"eth0\"", value::interface);
    let masquerade = reader.boolean(&mut at, "masquerade");
    reader.finish(&at);
    Some(Lan { subnet: subnet?, interface: interface?, masquerade: masquerade.unwrap_or(true) })
}

fn exit(reader: &mut Reader<'_>, mut at: Section<'_>) -> Exit {
    let peers = reader.strings(&mut at, "peers", |name| Ok(name.to_owned()));
    if peers.is_none() {
        let line = at.line();
        reader.problem(
            line,
            "exit: missing peers, those whose egress this host carries; write peers = [\"home\"]".into(),
        );
    }
    let interface = reader.string(&mut at, "interface", value::interface);
    let egress = egress(reader, &mut at);
    if egress == Egress::None {
        let line = reader.lines.of("exit.egress");
        let message = "exit: egress \"none\": would carry nothing; write a peer's name, or leave out [exit]";
        reader.problem(line, message.into());
    }
    reader.finish(&at);
    Exit { peers: peers.unwrap_or_default(), interface, egress }
}

fn names(reader: &mut Reader<'_>, mut at: Section<'_>) -> Names {
    let upstream = reader.strings(&mut at, "upstream", value::name_server);
    let containers = reader.sections(&mut at, "container").into_iter().map(|at| named(reader, at)).collect::<Vec<_>>();
    reader.finish(&at);
    Names { upstream: upstream.unwrap_or_default(), containers: containers.into_iter().flatten().collect() }
}

fn named(reader: &mut Reader<'_>, mut at: Section<'_>) -> Option<NamedContainer> {
    let name = reader.required(&mut at, "name", "\"nextcloud\"", value::name);
    if let Some(name) = &name {
        at.context = format!("container {}: ", quote(name));
    }
    let addresses = reader.strings(&mut at, "addresses", value::address);
    if addresses.is_none() {
        let line = at.line();
        reader.problem(line, format!("{}missing addresses; write addresses = [\"10.89.2.10\"]", at.context));
    }
    reader.finish(&at);
    Some(NamedContainer { name: name?, addresses: addresses? })
}

fn publish(reader: &mut Reader<'_>, mut at: Section<'_>) -> Option<Publish> {
    let protocol = reader.required(&mut at, "protocol", "\"tcp\"", value::protocol);
    if !at.has("port") {
        let line = at.line();
        reader.problem(line, "publish: missing port; write port = 443 or port = \"8000-8010\"".into());
    }
    let ports = reader.number_or_string(&mut at, "port", value::ports);
    let to = reader.required(&mut at, "to", "\"10.89.2.10:443\"", value::target);
    reader.finish(&at);
    Some(Publish { protocol: protocol?, ports: ports?, to: to? })
}

fn peer(
    name: &str,
    source: &SourceFile,
    preshared_keys: &BTreeMap<String, Result<SourceFile, String>>,
    lines: &mut FileLines,
    problems: &mut Problems,
) -> Option<Peer> {
    let checked_name = value::name(name);
    if let Err(why) = &checked_name {
        problems.add(&source.path, 1, format!("peer name {}: {why}", quote(name)));
    }
    with_table(source, lines, problems, |reader, table| {
        let mut top = Section::top(table);
        let public_key = reader.required(&mut top, "public_key", "\"…\", as `meshd pubkey` prints", |text| {
            text.parse().map_err(|error: KeyError| error.to_string())
        });
        let inline = key(reader, &mut top, "preshared_key");
        let from_file = reader.string(&mut top, "preshared_key_file", |path| match preshared_keys.get(path) {
            Some(Ok(file)) => key_of(file).map_err(|error| format!("holds what is {error}")),
            Some(Err(why)) => Err(why.clone()),
            None => Err("was not read".to_owned()),
        });
        if top.has("preshared_key") && top.has("preshared_key_file") {
            let line = reader.lines.of("preshared_key_file");
            reader.problem(line, "preshared_key_file: preshared_key is given too; keep one of them".into());
        }
        let endpoint = reader.string(&mut top, "endpoint", value::endpoint);
        let addresses = reader.strings(&mut top, "addresses", value::address);
        let subnets = reader.strings(&mut top, "subnets", value::peer_subnet);
        let keepalive = reader.integer(&mut top, "persistent_keepalive", 0..=u16::MAX, " seconds; 0 is off");
        let client = reader.boolean(&mut top, "client");
        let allow = reader.strings(&mut top, "allow", allow::allow);
        let lans = reader.strings(&mut top, "lans", value::subnet);
        let express = reader.string(&mut top, "express", value::express);
        let via = reader.string(&mut top, "via", |name| Ok(name.to_owned()));
        let introduced_by = reader.string(&mut top, "introduced_by", |name| Ok(name.to_owned()));
        let inviter_key = key(reader, &mut top, "inviter_key");
        let next = NextKeys {
            public_key: key(reader, &mut top, "next_public_key"),
            preshared_key: key(reader, &mut top, "next_preshared_key"),
            inviter_key: key(reader, &mut top, "next_inviter_key"),
            former: key(reader, &mut top, "former_public_key"),
        };
        reader.finish(&top);
        Some(Peer {
            name: checked_name.ok()?,
            public_key: public_key?,
            preshared_key: inline.or(from_file),
            endpoint,
            addresses: addresses.unwrap_or_default(),
            subnets: subnets.unwrap_or_default(),
            persistent_keepalive: keepalive.filter(|&seconds| seconds > 0),
            client: client.unwrap_or(false),
            allow,
            lans: lans.unwrap_or_default(),
            via,
            introduced_by,
            express: express.unwrap_or(true),
            inviter_key,
            next,
        })
    })
}

fn key<K: std::str::FromStr<Err = KeyError>>(
    reader: &mut Reader<'_>,
    section: &mut Section<'_>,
    name: &'static str,
) -> Option<K> {
    reader.string(section, name, |text| text.parse().map_err(|error: KeyError| error.to_string()))
}

fn private_key(source: &SourceFile, problems: &mut Problems) -> Option<PrivateKey> {
    match key_of(source) {
        Ok(key) => Some(key),
        Err(error) => {
            problems.add(&source.path, 1, error.to_string());
            None
        }
    }
}

fn key_of<K: std::str::FromStr<Err = KeyError>>(source: &SourceFile) -> Result<K, KeyError> {
    std::str::from_utf8(&source.text).map_err(|_| KeyError::Malformed)?.parse()
}

/// Runs `read` on a file that is TOML, and keeps the lines of its values.
fn with_table<T>(
    source: &SourceFile,
    lines: &mut FileLines,
    problems: &mut Problems,
    read: impl FnOnce(&mut Reader<'_>, &Spanned<DeTable<'_>>) -> Option<T>,
) -> Option<T> {
    let text = text(&source.path, &source.text, problems)?;
    let table = table(&source.path, text, problems)?;
    let mut reader = Reader::new(&source.path, text, problems);
    let value = read(&mut reader, &table);
    lines.insert(source.path.clone(), reader.lines);
    value
}

impl Drop for SourceFile {
    fn drop(&mut self) {
        self.text.zeroize();
    }
}

impl fmt::Debug for SourceFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SourceFile({:?}, {} bytes)", self.path, self.text.len())
    }
}
