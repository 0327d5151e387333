//! `meshd man`.

use std::path::{Path, PathBuf};

use clap::builder::Resettable;

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
    let mut command = command()
        .disable_help_subcommand(true)
        .mut_subcommand("peer", |peer| peer.disable_help_subcommand(true))
        .mut_subcommand("guard", |guard| guard.disable_help_subcommand(true));
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

/// A page: what clap knows of the command, then the text under its help, whose lines stay as they are.
fn page(command: &clap::Command) -> Result<String, Failure> {
    let name = command.get_display_name().unwrap_or("meshd").to_owned();
    let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
    let bare = command.clone().after_help(Resettable::Reset);
    let mut roff = Vec::new();
    clap_mangen::Man::new(bare)
        .title(name.to_uppercase())
        .section("8")
        .manual("meshd")
        .render(&mut roff)
        .map_err(|error| Failure::new(1, format!("man: {error}")))?;
    let mut page = String::from_utf8_lossy(&roff).into_owned();

    let (notes, examples) = help.split_once("Examples:\n").unwrap_or((&help, ""));
    for (heading, text) in [("NOTES", notes), ("EXAMPLES", examples)] {
        if !text.trim().is_empty() {
            page.push_str(&section(heading, text.trim_end()));
        }
    }
    if name == "meshd" {
        page.extend(MAIN_PAGE.map(|(heading, text)| section(heading, text)));
    }
    Ok(page)
}

const MAIN_PAGE: [(&str, &str); 2] = [
    (
        "FILES",
        "\
/etc/meshd/meshd.toml       this host
/etc/meshd/private.key      its private key
/etc/meshd/peers/NAME.toml  the other hosts, one file each

private.key and a preshared_key_file must be regular files of root or of
the user who runs meshd, no symbolic links, and readable by nobody else:
mode 0600, or they are refused. A peer's file that holds a preshared_key
and that others may read earns a warning. A relative preshared_key_file
starts at /etc/meshd. Hidden files and files that do not end in .toml
are no peers.",
    ),
    (
        "ENVIRONMENT",
        "\
MESHD_DIR        as --dir
MESHD_RUN_DIR    as --run-dir
MESHD_STATE_DIR  as --state-dir
MESHD_LOG        what the agent logs: error, warn, info (default), debug or
                 trace, or a filter such as info,meshd::tunnel=debug
MESHD_NO_OFFLOAD offloads that `meshd up` leaves alone, of tso, uso, udp-gso
                 and udp-gro, with commas between them
NO_COLOR         no colours when set",
    ),
];

/// A section whose lines are kept, escaped as `groff_char(7)` says.
fn section(heading: &str, text: &str) -> String {
    let lines = text.lines().map(|line| format!("\\&{}\n", line.replace('\\', "\\e").replace('-', "\\-")));
    format!(".SH {heading}\n.nf\n{}.fi\n", lines.collect::<String>())
}
