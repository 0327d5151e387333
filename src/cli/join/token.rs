//! Where the token comes from, and what is looked at before any packet is sent.

use std::fs::File;
use std::io::{self, BufRead as _, IsTerminal as _, Read};
use std::path::Path;

use zeroize::Zeroizing;

use super::super::{Dirs, Failure};
use super::refused;
use crate::clock::unix_now;
use crate::enroll::accept;
use crate::enroll::token::{MAX_TEXT, Token, TokenError};
use crate::store;

/// More is no token, however it is broken into lines.
const LONGEST: u64 = 2 * MAX_TEXT as u64;

/// Reads the token from where the arguments say.
pub fn read(argument: Option<&str>, file: Option<&Path>, shown: Option<String>) -> Result<Token, Failure> {
    let text = match (shown.map(Zeroizing::new), file, argument) {
        (Some(text), ..) => text,
        (None, Some(path), _) => {
            let failed = |error| Failure::new(1, format!("join: {}: {error}", path.display()));
            all_of(File::open(path).map_err(failed)?).map_err(failed)?
        }
        (None, None, Some("-") | None) => {
            standard_input().map_err(|error| Failure::new(1, format!("join: standard input: {error}")))?
        }
        (None, None, Some(_)) => {
            let why = "usage: join: a token on the command line can be seen by every user, and the history keeps it";
            return Err(
                Failure::new(2, why).try_this("meshd join, and paste it; or --token-on-command-line all the same")
            );
        }
    };
    text.parse().map_err(|error: TokenError| {
        let failure = Failure::new(4, format!("join: the token: {error}"));
        match error {
            TokenError::Version(_) => failure,
            _ => failure.try_this("the whole line that `meshd peer add` printed at the inviter"),
        }
    })
}

/// One line of a terminal, everything of a pipe.
fn standard_input() -> io::Result<Zeroizing<String>> {
    let stdin = io::stdin();
    if !stdin.is_terminal() {
        return all_of(stdin.lock());
    }
    eprint!("paste the token, then Enter: ");
    let mut line = Zeroizing::new(String::with_capacity(MAX_TEXT));
    stdin.lock().take(LONGEST).read_line(&mut line)?;
    Ok(line)
}

fn all_of(from: impl Read) -> io::Result<Zeroizing<String>> {
    // With room from the start: a text that grows leaves copies behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(LONGEST as usize + 1));
    from.take(LONGEST).read_to_end(&mut bytes)?;
    Ok(Zeroizing::new(String::from_utf8_lossy(&bytes).into_owned()))
}

/// Whether the token is for this host, as far as its own files and clock tell.
pub fn check(token: &Token, dirs: &Dirs) -> Result<(), Failure> {
    let configured = store::is_configured(&dirs.config);
    let config = configured.then(|| store::load(&dirs.config)).transpose()?;
    let own = store::private_key(&dirs.config)?.map(|key| key.public_key());
    accept::check(token, own.as_ref(), config.as_ref(), unix_now()).map_err(refused)
}
