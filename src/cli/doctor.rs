//! `meshd doctor`: what blocks traffic, and the exact remedy.

use std::io::{self, IsTerminal as _, Write as _};
use std::net::IpAddr;

use super::page::{self, Colour};
use super::{Dirs, Failure, ask, print_json};
use crate::agent::{DoctorOptions, doctor};
use crate::doctor::{Remedy, Report, State, Step};

/// Find what blocks traffic and say the exact remedy.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Walks the way of a packet, from a container by bridge, rule, table, guard,
tunnel, handshake and exit to the internet and back. It asks the kernel, the
agents at both ends and, from a throwaway container, the internet. Nothing is
changed without --fix, and a foreign firewall never is.
Exit codes: 0 healthy, 1 found a fault.

Examples:
  meshd doctor                 everything
  meshd doctor br0             one bridge and its exit
  meshd doctor 10.89.2.10      one container
  meshd doctor vps             one peer
  meshd doctor --fix           do what is safe, then look again
  meshd doctor --json | jq '.steps[] | select(.state == \"fault\")'")]
pub struct Args {
    /// A bridge, a container's address or a peer; everything without it
    #[arg(value_name = "BRIDGE|ADDRESS|PEER")]
    target: Option<String>,
    /// Do what is safe about it: bring back what meshd itself manages
    #[arg(long)]
    fix: bool,
    /// An address on the internet to try instead of 1.1.1.1, 9.9.9.9 and theirs
    #[arg(long, value_name = "ADDRESS")]
    internet: Vec<IpAddr>,
    /// A name server on the internet to try; by default the same addresses
    #[arg(long, value_name = "ADDRESS")]
    dns: Vec<IpAddr>,
    /// Print JSON, whose fields are stable
    #[arg(long)]
    json: bool,
}

/// Public resolvers that answer echo requests too: of Cloudflare and Quad9.
const INTERNET: [&str; 4] = ["1.1.1.1", "9.9.9.9", "2606:4700:4700::1111", "2620:fe::fe"];

/// Runs `meshd doctor`.
pub fn run(args: Args, dirs: &Dirs) -> Result<(), Failure> {
    let default = || INTERNET.iter().filter_map(|addr| addr.parse().ok()).collect::<Vec<IpAddr>>();
    let named = !args.internet.is_empty();
    // Whoever names addresses need not have a name server there.
    let name_servers = if args.dns.is_empty() && !named { default() } else { args.dns };
    let internet = if named { args.internet } else { default() };
    let options = DoctorOptions { target: args.target, internet, name_servers, fix: args.fix };
    let terminal = io::stderr().is_terminal();
    if terminal {
        // It takes seconds only where somebody does not answer.
        let _ = write!(io::stderr().lock(), "looking, and asking peers and the internet …");
    }
    let report = doctor(dirs, &options);
    if terminal {
        let _ = write!(io::stderr().lock(), "\r\x1b[K");
    }
    let report = report?;
    if args.json {
        print_json(&report)?;
    } else {
        let text = render(&report, page::coloured());
        page::print(&text).map_err(|error| ask::output_failure("doctor", &error))?;
    }
    // What was found is said already.
    if report.healthy { Ok(()) } else { Err(Failure { code: 1, errors: Vec::new(), remedy: None }) }
}

fn render(report: &Report, colour: bool) -> String {
    let mut text: String = report.fixed.iter().map(|done| format!("fixed: {}\n", page::printable(done))).collect();
    text.extend(report.steps.iter().map(|step| line(step, colour)));
    let faults = report.steps.iter().filter(|step| step.is_fault()).count();
    text.push_str(&match faults {
        0 => "\nhealthy\n".to_owned(),
        1 => "\n1 fault\n".to_owned(),
        more => format!("\n{more} faults; begin with the first\n"),
    });
    text
}

/// One line for a step; below a fault what to do.
fn line(step: &Step, colour: bool) -> String {
    let (sign, shade) = match step.state {
        State::Ok => ("✓", Some(Colour::Green)),
        State::Fault => ("✗", Some(Colour::Red)),
        State::Skipped => ("–", None),
    };
    let about = step.about.as_ref().map(|about| format!(" {about}")).unwrap_or_default();
    let name = format!("{:<22}", format!("{}{about}", step.step));
    let saw = page::wrap(&page::printable(&step.saw), 2 + name.chars().count() + 1);
    let line = format!("{sign} {} {saw}", page::printable(&name));
    let line = shade.map_or_else(|| line.clone(), |shade| page::paint(&line, shade, colour)) + "\n";
    line + &step.remedy.as_ref().map(remedy).unwrap_or_default()
}

fn remedy(remedy: &Remedy) -> String {
    let host = remedy.host.as_ref().map(|host| format!("on {host}: ")).unwrap_or_default();
    let mut text = String::new();
    for command in &remedy.commands {
        // As it is typed: never broken, so that it can be copied.
        let lines: Vec<String> = command.lines().map(|line| page::printable(&line.replace('\t', "    "))).collect();
        text.push_str(&format!("    try: {host}{}\n", lines.join("\n    ")));
    }
    if let Some(note) = &remedy.note {
        let host = if remedy.commands.is_empty() { host } else { String::new() };
        // Its further lines stand deeper than a command, so that no word of another host's passes for one.
        text.push_str(&format!("    {}\n", page::wrap(&page::printable(&format!("{host}{note}")), 6)));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_reads_like_a_checklist() {
        let drop = Remedy::run(["nft 'insert rule inet filter forward iifname \"br0\" accept'".to_owned()]);
        let report = Report::new(
            "home",
            vec![
                Step::ok("bridge", Some("br0"), "up, gateway 10.89.2.1"),
                Step::fault(
                    "firewall",
                    Some("br0"),
                    "nft table inet filter, chain forward: policy drop",
                    drop.on("vps"),
                ),
                Step::skipped("exit", Some("vps"), "first the \x1b[2Jfirewall"),
            ],
        );
        assert_eq!(
            render(&report, false),
            "\
✓ bridge br0             up, gateway 10.89.2.1
✗ firewall br0           nft table inet filter, chain forward: policy drop
    try: on vps: nft 'insert rule inet filter forward iifname \"br0\" accept'
– exit vps               first the \\u{1b}[2Jfirewall

1 fault
"
        );
        assert!(render(&report, true).contains("\x1b[31m✗ firewall br0"));
    }
}
