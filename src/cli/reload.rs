//! `meshd reload`: applies edited files.

use std::fmt::Write as _;

use super::{Dirs, Failure, ask, page};
use crate::control::api::Reloaded;

/// Apply edited files; sessions that did not change lose no packet.
#[derive(clap::Args, Debug)]
#[command(after_help = "SIGHUP to the agent does the same.
Files with an error are refused, and all stays as it was.

Examples:
  meshd plan && meshd reload     look first
  systemctl reload meshd         the same by systemd")]
pub struct Args {}

/// Runs `meshd reload`.
pub fn run(_args: Args, dirs: &Dirs) -> Result<(), Failure> {
    let reloaded = ask::connect("reload", dirs)?.reload().map_err(|error| ask::failure("reload", error))?;
    page::print(&render(&reloaded)).map_err(|error| ask::output_failure("reload", &error))?;
    ask::warn(&reloaded.warnings);
    Ok(())
}

fn render(reloaded: &Reloaded) -> String {
    if reloaded.changes.is_empty() {
        return "nothing changed\n".to_owned();
    }
    reloaded.changes.iter().fold(String::new(), |mut text, change| {
        let _ = writeln!(text, "{}", page::printable(change));
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_says_what_changed() {
        let reloaded = Reloaded { changes: vec!["peer vps: endpoint".to_owned(), "a\nb".to_owned()], warnings: vec![] };
        assert_eq!(render(&reloaded), "peer vps: endpoint\na\\nb\n");
        assert_eq!(render(&Reloaded::default()), "nothing changed\n");
    }
}
