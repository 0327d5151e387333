//! `meshd peer add --ssh TARGET`: both ends of a join by one command, over ssh(1).
//!
//! Whoever has an endpoint invites, for the other has to reach it; this host, when both have. The token goes from the one
//! end to the other through ssh's pipes and is nowhere else: not on a command line, not on a terminal, not on a disk.

use std::io::Write as _;
use std::process::{Command, Output, Stdio};

use ipnet::IpNet;
use zeroize::Zeroizing;

use super::super::{Dirs, Failure, join};
use super::add::Args;
use super::{Reload, invite, invites};
use crate::config::{Config, quote, value};
use crate::enroll::token::TokenError;
use crate::store;

/// What ssh(1) ends with when it is ssh itself that failed.
const SSH_FAILED: i32 = 255;

/// Runs the command.
pub fn run(args: &Args, target: &str, dirs: &Dirs, reload: impl Reload) -> Result<(), Failure> {
    // It would be an option of ssh(1), some of which run programs.
    if target.is_empty() || target.starts_with('-') {
        let failure = Failure::new(2, format!("usage: --ssh {}: expected [USER@]HOST", quote(target)));
        return Err(failure.try_this("meshd peer add home --ssh root@home.example.net"));
    }
    let config = store::load(&dirs.config)?;
    if config.host.endpoint.is_some() || args.invite.says_where() {
        invite_it(args, target, dirs, reload)
    } else {
        join_it(args, target, &config, dirs, reload)
    }
}

/// This host invites, the other joins.
fn invite_it(args: &Args, target: &str, dirs: &Dirs, reload: impl Reload) -> Result<(), Failure> {
    if args.name.is_empty() {
        let failure = Failure::new(2, "usage: this host invites, as it has an endpoint; the other one needs a name");
        return Err(failure.try_this(format!("meshd peer add NAME --ssh {target}")));
    }
    let invited = invite::make(args, dirs, reload)?;
    invited.warn();
    let joined = hand_over(target, &invited.token.expose_text());
    if joined.is_err() {
        // The first error is the one that tells why, and who has joined all the same stays.
        let _ = invites::revoke_pending(&args.name, dirs);
    }
    joined
}

fn hand_over(target: &str, token: &str) -> Result<(), Failure> {
    let mut child = ssh(target, &["meshd", "join", "-"])
        .stdin(Stdio::piped())
        .spawn()
        .map_err(|error| Failure::new(1, format!("ssh: {error}")))?;
    if let Some(mut stdin) = child.stdin.take() {
        // When it has gone already, how it ended says why.
        let _ = stdin.write_all(token.as_bytes()).and_then(|()| stdin.write_all(b"\n"));
    }
    let status = child.wait().map_err(|error| Failure::new(1, format!("ssh: {error}")))?;
    match status.code() {
        Some(0) => Ok(()),
        code => Err(failed(target, "meshd join", code, Vec::new())),
    }
}

/// The other host invites, this one joins.
fn join_it(args: &Args, target: &str, config: &Config, dirs: &Dirs, reload: impl Reload) -> Result<(), Failure> {
    let words = invitation(args, config)?;
    let output = ssh(target, &words.iter().map(String::as_str).collect::<Vec<_>>())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .and_then(std::process::Child::wait_with_output);
    let Output { status, stdout, stderr } = output.map_err(|error| Failure::new(1, format!("ssh: {error}")))?;
    let stdout = Zeroizing::new(stdout);
    let said: Vec<String> = String::from_utf8_lossy(&stderr).lines().map(str::to_owned).collect();
    if !status.success() {
        return Err(failed(target, "meshd peer add", status.code(), said));
    }
    // What is left says what to do with the token.
    for warning in said.iter().filter(|line| line.starts_with("meshd: warning: ")) {
        eprintln!("{target}: {}", crate::config::printable(warning));
    }
    let text = String::from_utf8_lossy(&stdout);
    let token = text.parse().map_err(|error: TokenError| {
        let failure = Failure::new(1, format!("{target}: what `meshd peer add` printed there: {error}"));
        failure.try_this("one version of meshd on both hosts, and a shell there that prints nothing by itself")
    })?;
    join::join(&token, dirs, reload)
}

/// The command for the inviter. All of it is checked, so that no shell reads it otherwise.
fn invitation(args: &Args, config: &Config) -> Result<Vec<String>, Failure> {
    let host = &config.host;
    let mut words = ["meshd", "peer", "add", host.name.as_str()].map(str::to_owned).to_vec();
    let mut subnets: Vec<IpNet> = host.bridges.iter().flat_map(|bridge| bridge.subnets.iter().copied()).collect();
    for text in &args.subnets {
        let net =
            value::peer_subnet(text).map_err(|why| Failure::new(4, format!("--subnet {}: {why}", quote(text))))?;
        if !subnets.contains(&net) {
            subnets.push(net);
        }
    }
    words.extend(subnets.iter().flat_map(|net| ["--subnet".to_owned(), net.to_string()]));
    words.extend(host.lans.iter().flat_map(|lan| ["--lan".to_owned(), lan.subnet.to_string()]));
    if !config.peers.is_empty() {
        words.extend(host.addresses.iter().flat_map(|net| ["--address".to_owned(), net.addr().to_string()]));
    }
    if args.invite.egress {
        words.push("--egress".into());
    }
    Ok(words)
}

/// It may ask for a password or a host's key, on the terminal.
fn ssh(target: &str, words: &[&str]) -> Command {
    let mut command = Command::new("ssh");
    command.args(["-T", target]).args(words);
    command
}

fn failed(target: &str, what: &str, code: Option<i32>, said: Vec<String>) -> Failure {
    let line = |line: String| format!("{target}: {}", line.strip_prefix("meshd: ").unwrap_or(&line));
    let mut errors: Vec<String> = said.into_iter().map(line).collect();
    let why = match code {
        Some(SSH_FAILED) => "ssh could not connect, or was refused".to_owned(),
        Some(127) => format!("{what}: there is no meshd there"),
        Some(1..=5) => format!("{what} failed there"),
        _ => format!("{what} did not come to its end there"),
    };
    let code = code.and_then(|code| u8::try_from(code).ok()).filter(|code| (1..=5).contains(code)).unwrap_or(1);
    errors.push(format!("{target}: {why}"));
    Failure { code, errors, remedy: Some(format!("ssh {target} meshd status")) }
}
