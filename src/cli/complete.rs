//! `meshd completions`.

use super::{Failure, command, print};

/// Arguments of `meshd completions`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  meshd completions bash > /etc/bash_completion.d/meshd
  meshd completions zsh > /usr/local/share/zsh/site-functions/_meshd
  meshd completions fish > ~/.config/fish/completions/meshd.fish")]
pub struct Args {
    /// The shell
    shell: clap_complete::Shell,
}

/// Runs the command.
pub fn run(args: Args) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command(), "meshd", &mut script);
    print(&String::from_utf8_lossy(&script))
}
