//! `meshd plan`: what would change on this host, as a diff.

use super::page::{self, Colour};
use super::{Dirs, Failure, ask};
use crate::control::api::{Introduction, Plan};
use crate::control::client::{Client, ClientError};

/// Show what would change on this host; change nothing.
#[derive(clap::Args, Debug)]
#[command(after_help = "With an agent running: what `meshd reload` would change.
Without one: what `meshd up` would.

Examples:
  meshd plan           + what would be added, - what would be removed
  meshd plan --json | jq -r '.changes[].command'")]
pub struct Args {
    /// Print JSON, whose fields are stable
    #[arg(long)]
    json: bool,
}

/// Runs `meshd plan`.
pub fn run(args: Args, dirs: &Dirs) -> Result<(), Failure> {
    let plan = match Client::connect(&dirs.run) {
        Ok(mut client) => client.plan().map_err(|error| ask::failure("plan", error))?,
        Err(ClientError::NotRunning) => crate::agent::plan_offline(dirs)?,
        Err(error) => return Err(ask::failure("plan", error)),
    };
    let text = if args.json { json(&plan)? } else { render(&plan, page::coloured()) };
    page::print(&text).map_err(|error| ask::output_failure("plan", &error))?;
    if !args.json {
        ask::warn(&plan.warnings);
    }
    Ok(())
}

fn json(plan: &Plan) -> Result<String, Failure> {
    let text = serde_json::to_string_pretty(plan);
    Ok(text.map_err(|error| ask::failure("plan", ClientError::Protocol(error.to_string())))? + "\n")
}

fn render(plan: &Plan, colour: bool) -> String {
    let introductions: String = plan.introductions.iter().map(introduction).collect();
    if plan.changes.is_empty() {
        return format!("nothing to change\n{introductions}");
    }
    let line = |change: &crate::control::api::PlannedChange| {
        let (sign, shade) = if change.action == "remove" { ('-', Colour::Red) } else { ('+', Colour::Green) };
        let lines =
            change.command.lines().map(|line| format!("{sign} {}", page::printable(&line.replace('\t', "    "))));
        lines.map(|line| page::paint(&line, shade, colour) + "\n").collect::<String>()
    };
    let changes: String = plan.changes.iter().map(line).collect();
    changes + &introductions
}

/// What waits for the operator's word, and so is neither added nor removed.
fn introduction(introduction: &Introduction) -> String {
    let line = page::printable(&introduction.describe());
    format!("? {line}; accept with: meshd peer trust {}\n", page::printable(&introduction.inviter))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::api::PlannedChange;

    #[test]
    fn it_reads_like_a_diff() {
        let change = |action: &str, command: &str| PlannedChange {
            action: action.to_owned(),
            kind: "rule".to_owned(),
            command: command.to_owned(),
        };
        let plan = Plan {
            changes: vec![change("add", "ip rule add iif br0 lookup 8820"), change("remove", "ip route del\x1b[2J")],
            ..Plan::default()
        };
        assert_eq!(render(&plan, false), "+ ip rule add iif br0 lookup 8820\n- ip route del\\u{1b}[2J\n");
        assert!(render(&plan, true).starts_with("\x1b[32m+ ip rule add iif br0 lookup 8820\x1b[0m\n\x1b[31m-"));
        assert_eq!(render(&Plan::default(), true), "nothing to change\n");
        let introductions = vec![Introduction {
            inviter: "home".into(),
            inviter_key: String::new(),
            peers: vec![crate::control::api::Introduced {
                name: "lab2".into(),
                public_key: crate::control::fake::peer_key(5),
                addresses: vec!["10.88.0.5".parse().unwrap()],
                subnets: vec!["10.89.5.0/24".parse().unwrap()],
                client: false,
            }],
        }];
        assert_eq!(
            render(&Plan { introductions, ..Plan::default() }, false),
            "nothing to change\n? home would introduce lab2 (10.88.0.5; 10.89.5.0/24); \
             accept with: meshd peer trust home\n"
        );
    }
}
