//! `meshd join`: redeems a token of `meshd peer add` on another host.

mod files;
mod token;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::show::all_of;
use super::{Dirs, Failure, ask, print, running};
use crate::agent::join::{self, Refused, Step};
use crate::clock::unix_now;
use crate::config::list_of_names;
use crate::control::client::Client;
use crate::enroll::accept::Unfit;
use crate::enroll::fingerprint;
use crate::enroll::token::Token;
use files::{Joined, OwnKey};

/// For the running agent's handshake with the inviter.
const HANDSHAKE: Duration = Duration::from_secs(8);
/// Between two looks at it.
const LOOK: Duration = Duration::from_millis(100);

/// Arguments of `meshd join`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Takes the token from standard input, or asks for it on a terminal. Writes
the inviter and those behind it into peers/, and what meshd.toml lacks: name
and addresses, the bridge, its egress. Without meshd.toml it makes one, as
`meshd init` does. The fingerprint that it shows is the one that the inviter
shows. A token that is no good leaves no trace (exit code 4); a join that was
interrupted is repeated with the same token.

Examples:
  meshd join                        asks for the token
  meshd join - < token.txt
  meshd join --file token.txt && meshd up --detach
  ssh vps meshd peer add home --subnet 10.89.2.0/24 --egress | meshd join -")]
pub struct Args {
    /// `-` for standard input, which is the default
    #[arg(value_name = "TOKEN|-")]
    token: Option<String>,
    /// Read the token from this file
    #[arg(long, value_name = "FILE", conflicts_with = "token")]
    file: Option<PathBuf>,
    /// The token itself: every user of this host can see it there, and the shell's history keeps it
    #[arg(long, value_name = "TOKEN", hide = true, conflicts_with_all = ["token", "file"])]
    token_on_command_line: Option<String>,
}

/// Runs the command.
pub fn run(args: Args, dirs: &Dirs) -> Result<(), Failure> {
    let token = token::read(args.token.as_deref(), args.file.as_deref(), args.token_on_command_line)?;
    join(&token, dirs, running::reload)
}

/// Redeems the token and writes what comes of it.
pub fn join(token: &Token, dirs: &Dirs, reload: impl running::Reload) -> Result<(), Failure> {
    token::check(token, dirs)?;
    let mut own = OwnKey::new(dirs);
    let have = || {
        let key = own.have()?.public_key();
        eprintln!("fingerprint {}, as the inviter shows it", fingerprint(&token.inviter, &key));
        Ok(key)
    };
    let redeemed = match join::redeem(token, have, tell) {
        Ok(redeemed) => redeemed,
        Err(Refused::Bound(failure)) => return Err(failure),
        Err(Refused::Unbound(failure)) => {
            own.forget();
            return Err(failure);
        }
    };
    let (key, since) = (own.have()?, unix_now());
    let joined = files::write(token, &redeemed, &key, dirs, reload)?;
    let up = match (&joined.reloaded, joined.preshared_key()) {
        // Without a change the session stands, and no other begins.
        (Some(_), _) => handshake_of_the_agent(dirs, token, if joined.written.is_empty() { 0 } else { since }),
        (None, Some(preshared_key)) => join::confirm(&key, token.inviter, preshared_key, redeemed.remote),
        (None, None) => false,
    };
    print(&said(&joined, &dirs.config))?;
    ask::warn(&joined.reloaded.as_ref().map_or_else(Vec::new, |reloaded| reloaded.warnings.clone()));
    ask::warn(&joined.notes);
    if !up {
        ask::warn(&[format!("no handshake with {} yet; see meshd doctor {0}", joined.inviter.name)]);
    }
    print(match joined.reloaded {
        Some(_) if up => "traffic flows\n",
        Some(_) => "the running agent has it\n",
        None => "next: meshd up --detach\n",
    })
}

/// Whether the running agent has a session with the inviter before long.
fn handshake_of_the_agent(dirs: &Dirs, token: &Token, since: u64) -> bool {
    let deadline = Instant::now() + HANDSHAKE;
    let latest = || {
        let status = Client::connect(&dirs.run).and_then(|mut client| client.status()).ok()?;
        status.peers.iter().find(|peer| peer.public_key == token.inviter)?.latest_handshake
    };
    loop {
        if latest().is_some_and(|latest| latest >= since) {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(LOOK);
    }
}

fn said(joined: &Joined, dir: &Path) -> String {
    let Joined { name, addresses, bridges, inviter, members, written, .. } = joined;
    let mut text = format!("joined the mesh of {} as {name}\n", inviter.name);
    text.push_str(&format!("  addresses  {}\n", all_of(addresses)));
    for bridge in bridges {
        text.push_str(&format!(
            "  bridge     {}  {}, egress {}\n",
            bridge.name,
            all_of(&bridge.subnets),
            bridge.egress
        ));
    }
    if *members > 0 {
        text.push_str(&format!("  hosts      {members} more through {}\n", inviter.name));
    }
    let files = written.iter().filter_map(|path| path.strip_prefix(dir).ok()).map(Path::display);
    if !written.is_empty() {
        text.push_str(&format!("  wrote      {} in {}\n", list_of_names(files), dir.display()));
    }
    text
}

/// On standard error, as it takes its time.
fn tell(step: Step<'_>) {
    match step {
        Step::Asking(endpoints) => eprintln!("asking {} …", list_of_names(endpoints)),
        Step::Waiting => eprintln!("waiting until the inviter's operator confirms the fingerprint …"),
    }
}

fn refused(unfit: Unfit) -> Failure {
    Failure { code: 4, errors: vec![format!("join: {}", unfit.why)], remedy: unfit.remedy }
}
