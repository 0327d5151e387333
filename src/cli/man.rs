//! `meshd man`.

use std::path::{Path, PathBuf};

use super::{Failure, command, print};

/// Arguments of `meshd man`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  meshd man | man -l -                         read the main page
  meshd man --out /usr/local/share/man/man8    one page for each command")]
pub struct Args {
    /// Write a page for each command into this folder instead
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// Runs the command.
pub fn run(args: Args) -> Result<(), Failure> {
    // `meshd help` needs no page of its own.
    let mut command =
        command().disable_help_subcommand(true).mut_subcommand("peer", |peer| peer.disable_help_subcommand(true));
    command.build();
    let Some(folder) = args.out else { return print(&page(&command)?) };
    std::fs::create_dir_all(&folder).map_err(|error| Failure::new(1, format!("{}: {error}", folder.display())))?;
    write_all(&command, "meshd", &folder)
}

fn write_all(command: &clap::Command, name: &str, folder: &Path) -> Result<(), Failure> {
    let path = folder.join(format!("{name}.8"));
    std::fs::write(&path, page(command)?).map_err(|error| Failure::new(1, format!("{}: {error}", path.display())))?;
    command.get_subcommands().try_for_each(|sub| write_all(sub, &format!("{name}-{}", sub.get_name()), folder))
}

fn page(command: &clap::Command) -> Result<String, Failure> {
    let name = command.get_display_name().unwrap_or("meshd").to_owned();
    let man = clap_mangen::Man::new(command.clone()).title(name.to_uppercase()).section("8").manual("meshd");
    let mut roff = Vec::new();
    man.render(&mut roff).map_err(|error| Failure::new(1, format!("man: {error}")))?;
    Ok(String::from_utf8_lossy(&roff).into_owned())
}
