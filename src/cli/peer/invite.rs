//! `meshd peer add NAME` by invitation: prints a token with which one host joins.
//!
//! What is promised is checked as if the new host were a peer already, beside those that other invitations promise. The
//! record is written before the token is shown, and the running agent knows of it by then.

use std::net::IpAddr;

use ipnet::IpNet;
use zeroize::Zeroizing;

use super::super::conf::print_once;
use super::super::{Dirs, Failure};
use super::Reload;
use super::add::{Args, said_of_flags, unknown_yet};
use crate::clock::unix_now;
use crate::config::{self, Config, Endpoint, Files, SourceFile, assign, edit, quote, value};
use crate::enroll::invitation::{Invitation, Terms};
use crate::enroll::token::Token;
use crate::store::{self, Layout, invitations};

/// Of those that are not redeemed yet.
const MAX_PENDING: usize = 100;
/// Seconds; who holds a token may join, so none is for years.
const LONGEST: u64 = 30 * 24 * 3600;

/// Arguments of `meshd peer add` that are for invitations only.
#[derive(Debug, Default, clap::Args)]
// clap would call the group by the name of the type, which the flags of devices have too.
#[group(skip)]
pub struct Flags {
    /// Invite it: this host carries the egress of its bridges
    #[arg(long, conflicts_with_all = ["public_key", "client", "from"])]
    pub(super) egress: bool,
    /// Invite it: for how long it may join, such as 90s, 15m, 2h, 7d [default: 15m]
    #[arg(long, value_name = "TIME", value_parser = duration, conflicts_with_all = ["public_key", "client", "from"])]
    expires: Option<u64>,
    /// Invite it: and let it in only when its fingerprint is confirmed here
    #[arg(long, conflicts_with_all = ["public_key", "client", "from"])]
    approve: bool,
    /// Invite it: where it reaches this host, the likeliest first [default: endpoint in meshd.toml]
    #[arg(long, value_name = "HOST:PORT", conflicts_with_all = ["public_key", "client", "from"])]
    reach: Vec<String>,
}

/// What was made for a new host.
pub struct Invited {
    pub token: Token,
    /// In seconds.
    lasts: u64,
    /// What keeps the host from joining or leaving by this one.
    warnings: Vec<String>,
}

impl Invited {
    /// Says what is in the way.
    pub fn warn(&self) {
        self.warnings.iter().for_each(|warning| eprintln!("meshd: warning: {warning}"));
    }
}

impl Flags {
    /// Whether it is said where this host is reached.
    pub fn says_where(&self) -> bool {
        !self.reach.is_empty()
    }
}

/// Runs the command.
pub fn run(args: &Args, dirs: &Dirs, reload: impl Reload) -> Result<(), Failure> {
    let invited = make(args, dirs, reload)?;
    print_once(&Zeroizing::new(format!("{}\n", *invited.token.expose_text())))?;
    eprint!("{}", hint(args, invited.lasts));
    invited.warn();
    Ok(())
}

/// Makes an invitation, and has the running agent know of it.
pub fn make(args: &Args, dirs: &Dirs, reload: impl Reload) -> Result<Invited, Failure> {
    refuse_other_flags(args)?;
    let lock = store::lock(&dirs.config)?;
    let files = store::read(&dirs.config)?;
    let config = config::parse(&files).map_err(store::Error::Invalid)?;
    unknown_yet(&args.name, &config, dirs)?;
    let now = unix_now();
    let mut pending = invitations::load(&dirs.state)?;
    pending.retain(|other| other.pending(now));
    refuse_second(&args.name, &pending)?;
    let endpoints = endpoints(args, &files, &config)?;

    let inviter = config.private_key.public_key();
    let secret = Token::new_secret().map_err(|error| Failure::new(1, format!("random numbers: {error}")))?;
    let lasts = args.invite.expires.unwrap_or(15 * 60);
    let invitation = Invitation::new(&secret, &inviter, terms(args, &config, &pending, now + lasts)?);
    check(&invitation, &pending, files, dirs)?;

    let mut networks: Vec<IpNet> = Vec::new();
    for net in config.host.addresses.iter().map(IpNet::trunc) {
        if !networks.contains(&net) {
            networks.push(net);
        }
    }
    let token = Token { inviter, secret, expires: invitation.expires, networks, endpoints };
    invitations::add(&dirs.state, &invitation)?;
    let running = reload(dirs).inspect_err(|_| {
        // The first error is the one that tells why.
        let _ = invitations::forget(&dirs.state, &invitation);
    })?;
    drop(lock);

    let idle = "the agent is not running, so nobody can join; `meshd up` starts it";
    let warnings = running.is_none().then(|| idle.to_owned()).into_iter();
    let warnings = warnings.chain(exit_warning(args.invite.egress, &config)).collect();
    Ok(Invited { token, lasts, warnings })
}

fn refuse_other_flags(args: &Args) -> Result<(), Failure> {
    for (flag, given, why) in [
        ("--endpoint", args.endpoint.is_some(), "the new host calls this one; where that is says --reach"),
        ("--allow", !args.allow.is_empty(), "who joins by a token has the mesh; edit its file afterwards"),
        ("--preshared-key-file", args.preshared_key_file.is_some(), "both get a new preshared key"),
        ("--keepalive", args.keepalive.is_some(), "the new host decides about its own"),
        ("--dry-run", args.dry_run, "a token is made once"),
    ] {
        if given {
            let failure = Failure::new(2, format!("usage: {flag} needs --public-key or --client: {why}"));
            return Err(failure.try_this("meshd peer add --help"));
        }
    }
    Ok(())
}

fn refuse_second(name: &str, pending: &[Invitation]) -> Result<(), Failure> {
    if pending.iter().any(|other| other.name == name) {
        let failure = Failure::new(4, format!("peer {}: is invited already", quote(name)));
        return Err(failure.try_this(format!("meshd peer revoke-invite {name}")));
    }
    if pending.len() >= MAX_PENDING {
        return Err(Failure::new(4, format!("{MAX_PENDING} invitations are open")).try_this("meshd peer invites"));
    }
    Ok(())
}

/// Where the new host finds this one.
fn endpoints(args: &Args, files: &Files, config: &Config) -> Result<Vec<Endpoint>, Failure> {
    if args.invite.reach.is_empty() {
        let none = || {
            let failure = Failure::new(4, "this host has no endpoint at which another could reach it");
            failure.try_this(
                "--reach HOST:PORT, or endpoint = \"HOST:PORT\" in meshd.toml; else invite from a host that has one",
            )
        };
        return config.host.endpoint.clone().map(|endpoint| vec![endpoint]).ok_or_else(none);
    }
    let checked = |text: &String| {
        let refused = |why: String| Failure::new(4, format!("--reach {}: {why}", quote(text)));
        let endpoint = value::endpoint(text).map_err(refused)?;
        let mut with = Files { host: files.host.clone(), ..files.clone() };
        let host = edit::set(&String::from_utf8_lossy(&files.host.text), "endpoint", text.as_str());
        with.host.text = host.map_err(|error| refused(error.to_string()))?.into();
        // Inside the tunnel, above all.
        let problem = config::parse(&with).err().and_then(|problems| problems.into_iter().next());
        problem.map_or(Ok(endpoint), |problem| Err(refused(problem.message)))
    };
    args.invite.reach.iter().map(checked).collect()
}

fn terms(args: &Args, config: &Config, pending: &[Invitation], expires: u64) -> Result<Terms, Failure> {
    fn each<T>(flag: &str, texts: &[String], parse: fn(&str) -> Result<T, String>) -> Result<Vec<T>, Failure> {
        let parsed =
            |text: &String| parse(text).map_err(|why| Failure::new(4, format!("--{flag} {}: {why}", quote(text))));
        texts.iter().map(parsed).collect()
    }
    let taken: Vec<IpAddr> = pending.iter().flat_map(|other| other.addresses.iter().copied()).collect();
    let addresses = match &args.addresses[..] {
        [] => assign::free_addresses(config, &taken).map_err(|full| Failure::new(4, full.to_string()))?,
        chosen => each("address", chosen, value::address)?,
    };
    let mut subnets = each("subnet", &args.subnets, value::peer_subnet)?;
    let lans = each("lan", &args.device.lans, value::peer_subnet)?;
    subnets.extend(lans.iter().filter(|lan| !subnets.contains(lan)).copied().collect::<Vec<_>>());
    let Flags { egress, approve, .. } = args.invite;
    Ok(Terms { name: args.name.clone(), addresses, subnets, lans, egress, approve, expires })
}

/// Holds it against the configuration and all that is promised.
fn check(invitation: &Invitation, pending: &[Invitation], mut files: Files, dirs: &Dirs) -> Result<(), Failure> {
    let file = |other: &Invitation| {
        let path = config::printable(&Layout(&dirs.config).peer(&other.name).to_string_lossy());
        let text = edit::peer(&other.peer(other.key, None)).into();
        (other.name.clone(), SourceFile { path, text })
    };
    for other in pending {
        if !files.peers.iter().any(|(name, _)| *name == other.name) {
            files.peers.push(file(other));
        }
    }
    // What is wrong with those that were promised before, somebody has edited since.
    let before = config::parse(&files).err().unwrap_or_default();
    files.peers.push(file(invitation));
    if invitation.egress {
        let host = edit::carry(&String::from_utf8_lossy(&files.host.text), &invitation.name);
        let host = host.map_err(|error| Failure::new(4, edit::broken(&files.host.path, &error)))?;
        files.host.text = host.into();
    }
    let mut problems = config::parse(&files).err().unwrap_or_default();
    problems.retain(|problem| !before.contains(problem));
    if problems.is_empty() {
        return Ok(());
    }
    Err(said_of_flags(store::Error::Invalid(problems), &invitation.name, dirs))
}

/// What is to be done with the token.
fn hint(args: &Args, lasts: u64) -> String {
    let name = &args.name;
    let mut hint = format!("on {name}, within {}: meshd join -\n", spelled(lasts));
    hint.push_str("then paste the token there; whoever has it may join, once\n");
    if args.invite.approve {
        hint.push_str(&format!("and here, when it waits: meshd peer approve {name}\n"));
    }
    hint
}

/// What would keep this host from carrying an egress.
fn exit_warning(egress: bool, config: &Config) -> Option<String> {
    if !egress {
        return None;
    }
    let there = |name: &str| std::path::Path::new("/sys/class/net").join(name).exists();
    match config.host.exit.as_ref().and_then(|exit| exit.interface.as_deref()) {
        Some(name) if !there(name) => Some(format!("[exit] interface {} does not exist on this host", quote(name))),
        Some(_) => None,
        None => {
            // A line for each route: the interface, then the destination (fib_route_seq_show, net/ipv4/fib_trie.c).
            let routes = std::fs::read_to_string("/proc/net/route").ok()?;
            let default = |line: &str| line.split_whitespace().nth(1) == Some("00000000");
            let why = "this host has no default route, and [exit] names no interface: egress goes nowhere";
            (!routes.lines().any(default)).then(|| why.to_owned())
        }
    }
}

/// `90s`, `15m`, `2h`, `7d`.
fn duration(text: &str) -> Result<u64, String> {
    let units = [('s', 1), ('m', 60), ('h', 3600), ('d', 24 * 3600)];
    let of = |(unit, seconds): &(char, u64)| {
        let number = text.strip_suffix(*unit)?;
        // `parse` would take a sign.
        let digits = number.chars().all(|c| c.is_ascii_digit());
        number.parse::<u64>().ok().filter(|_| digits)?.checked_mul(*seconds)
    };
    match units.iter().find_map(of) {
        Some(seconds) if (1..=LONGEST).contains(&seconds) => Ok(seconds),
        Some(_) => Err("expected 1s to 30d".into()),
        None => Err("expected a number and s, m, h or d, such as 15m".into()),
    }
}

fn spelled(seconds: u64) -> String {
    let units = [("days", 24 * 3600), ("hours", 3600), ("minutes", 60)];
    let whole = units.iter().find(|(_, unit)| seconds >= 2 * unit && seconds.is_multiple_of(*unit));
    whole.map_or_else(|| format!("{seconds} seconds"), |(word, unit)| format!("{} {word}", seconds / unit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_and_spelled() {
        for (text, seconds, words) in [
            ("90s", 90, "90 seconds"),
            ("15m", 900, "15 minutes"),
            ("2h", 7200, "2 hours"),
            ("7d", 604_800, "7 days"),
            ("1h", 3600, "60 minutes"),
        ] {
            assert_eq!(duration(text), Ok(seconds));
            assert_eq!(spelled(seconds), words);
        }
        for text in ["", "m", "15", "-1m", "+1m", "1.5h", "0s", "31d", "99999999999999999999d", "15 m", "1w", "½h"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }
}
