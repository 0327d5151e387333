//! `meshd leaktest`: a line for each watched interface, and for each bridge and family.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::page::{self, Colour};
use super::{Dirs, Failure, ask, print_json};
use crate::agent::{self, LeaktestOptions};
use crate::leaktest::{Answer, CaptureReport, Leak, LegReport, Report, Verdict};

/// Prove that each egress bridge leaves only through its exit.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
A throwaway container on each bridge with an egress other than `direct` sends
ICMP, UDP, TCP, DNS, fragments and spoofed packets to the internet, private
networks, this host's own networks and routers, metadata services and the
exit's own address. Whatever of it leaves this host beside the tunnel is a
leak; marked frames that the host sends itself show that it would be seen.

It is safe on a live host: 250 small packets a second from an address that
nobody has, all to addresses reserved for documentation or on this host's own
networks, so no third party is asked for anything unless --to names one. With
the agent stopped or killed, nothing may leave at all.

Exit codes: 0 nothing leaked, 1 a leak, 5 nothing could be proved.

Examples:
  meshd leaktest                         all egress bridges
  meshd leaktest br0 --to 1.1.1.1        and ask for answers through the exit
  meshd leaktest --json | jq '.bridges[].leaks'
  0 4 * * *  meshd leaktest >/var/log/leaktest 2>&1     in a crontab")]
pub struct Args {
    /// Which bridges; all that have another egress than `direct` without it
    bridge: Vec<String>,
    /// How long probes are sent
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=3600))]
    seconds: u32,
    /// Who should answer through the tunnel: ping, TCP 80 and 443, DNS
    #[arg(long, value_name = "ADDRESS")]
    to: Vec<IpAddr>,
    /// Print JSON, whose fields are stable
    #[arg(long)]
    json: bool,
}

/// Runs `meshd leaktest`.
pub fn run(args: Args, dirs: &Dirs) -> Result<(), Failure> {
    let options = LeaktestOptions { bridges: args.bridge, seconds: args.seconds, to: args.to };
    let report = agent::leaktest(dirs, &options)?;
    if args.json {
        print_json(&report)?;
    } else {
        let text = render(&report, page::coloured());
        page::print(&text).map_err(|error| ask::output_failure("leaktest", &error))?;
        ask::warn(&report.warnings);
    }
    let failure = match report.verdict {
        Verdict::Closed | Verdict::Nothing => return Ok(()),
        Verdict::Leak => Failure::new(1, format!("leaktest: packets left beside {}", report.interface)),
        Verdict::Inconclusive => Failure::new(5, "leaktest: nothing was seen to leave, but nothing is proved"),
    };
    Err(match report.remedy() {
        Some(remedy) => failure.try_this(remedy),
        None => failure,
    })
}

fn render(report: &Report, colour: bool) -> String {
    if report.verdict == Verdict::Nothing {
        return "nothing to test: no bridge has an egress other than direct\n".to_owned();
    }
    let mut text = String::new();
    for capture in &report.captures {
        let (word, line) = watched(capture);
        text.push_str(&item(word, &line, colour));
    }
    if report.captures.is_empty() {
        text.push_str(&item(
            "??",
            &format!("no interface is up beside {}: nothing to watch", report.interface),
            colour,
        ));
    }
    if report.missed > 0 {
        let line = format!("{} frames went by unseen: this host is too busy; try again", report.missed);
        text.push_str(&item("??", &line, colour));
    }
    for leg in &report.bridges {
        let word = match leg.verdict {
            Verdict::Leak => "LEAK",
            Verdict::Closed => "ok",
            _ => "??",
        };
        text.push_str(&item(word, &tested(leg, report), colour));
        for leak in &leg.leaks {
            text.push_str(&format!("{:6}- {}\n", "", page::wrap(&page::printable(&escaped(leak)), 8)));
        }
    }
    text
}

/// A line of the checklist.
fn item(word: &str, line: &str, colour: bool) -> String {
    let shade = match word {
        "ok" => Colour::Green,
        "LEAK" => Colour::Red,
        _ => Colour::Yellow,
    };
    let gap = " ".repeat(6_usize.saturating_sub(word.len()));
    format!("{}{gap}{}\n", page::paint(word, shade, colour), page::wrap(&page::printable(line), 6))
}

fn watched(capture: &CaptureReport) -> (&'static str, String) {
    let CaptureReport { interface, controls, seen, frames } = capture;
    match controls {
        0 => ("ok", format!("{interface} watched as a part of another interface, {frames} frames")),
        _ if capture.works() => {
            ("ok", format!("{interface} watched: {seen} of {controls} controls seen, {frames} frames"))
        }
        _ => ("??", format!("{interface}: {seen} of {controls} controls seen: a leak would go unseen there too")),
    }
}

fn tested(leg: &LegReport, report: &Report) -> String {
    let name = match leg.subnet {
        Some(net) => format!("{} {} {net}", leg.name, if net.addr().is_ipv4() { "IPv4" } else { "IPv6" }),
        None => leg.name.clone(),
    };
    if let Some(problem) = &leg.problem {
        return format!("{name}: {problem}");
    }
    let mut parts = vec![format!("{} probes", leg.probes)];
    parts.push(match leg.leaks.iter().map(|leak| leak.count).sum::<u32>() {
        0 => format!("none left beside {}", report.interface),
        count => format!("{count} packets left beside {}", report.interface),
    });
    if report.agent {
        parts.push(format!("{} went into it", leg.tunnel));
    } else {
        parts.push("no agent runs: closed is right".to_owned());
    }
    let mut fastest: BTreeMap<IpAddr, &Answer> = BTreeMap::new();
    for answer in &leg.answers {
        let known = fastest.entry(answer.from).or_insert(answer);
        if answer.latency_us < known.latency_us {
            *known = answer;
        }
    }
    let line = |answer: &&Answer| format!("{} answered {} in {}", answer.from, answer.probe, millis(answer.latency_us));
    parts.extend(fastest.values().map(line));
    if leg.tunnel > 0 && fastest.is_empty() {
        parts.push("nobody answered".to_owned());
    }
    format!("{name} by {}: {}", leg.egress, parts.join(", "))
}

fn millis(micros: u64) -> String {
    format!("{}.{:02} ms", micros / 1000, micros % 1000 / 10)
}

fn escaped(leak: &Leak) -> String {
    let of = match (&leak.probe, &leak.target) {
        (Some(probe), Some(target)) => format!("{probe} to {target}"),
        _ => "a probe".to_owned(),
    };
    let times = if leak.count > 1 { format!(", {} times", leak.count) } else { String::new() };
    format!("{} by {}: {}{times}", of, leak.interface, leak.packet)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leg(subnet: &str, leaks: Vec<Leak>) -> LegReport {
        let answer = |from: &str, probe: &str, latency_us| Answer {
            from: from.parse().unwrap(),
            probe: probe.to_owned(),
            latency_us,
        };
        LegReport {
            name: "br0".to_owned(),
            egress: "vps".to_owned(),
            subnet: Some(subnet.parse().unwrap()),
            address: None,
            verdict: if leaks.is_empty() { Verdict::Closed } else { Verdict::Leak },
            problem: None,
            probes: 168,
            tunnel: 140,
            answers: vec![answer("10.88.0.1", "icmp", 31_250), answer("10.88.0.1", "dns", 31_000)],
            leaks,
        }
    }

    #[test]
    fn the_page() {
        let leak = Leak {
            interface: "eth0".to_owned(),
            time: 0,
            count: 3,
            probe: Some("tcp 443".to_owned()),
            target: Some("the internet".to_owned()),
            destination: None,
            packet: "TCP 192.168.1.20:17021 > 192.0.2.1:443, 68 bytes".to_owned(),
            recognised_by: "marker".to_owned(),
        };
        let capture = |interface: &str, controls, seen| CaptureReport {
            interface: interface.to_owned(),
            controls,
            seen,
            frames: 9,
        };
        let missing = LegReport { problem: Some("it does not exist".to_owned()), subnet: None, ..leg("::/0", vec![]) };
        let report = Report {
            verdict: Verdict::Leak,
            tag: String::new(),
            agent: true,
            interface: "mesh0".to_owned(),
            seconds: 3,
            captures: vec![capture("eth0", 4, 4), capture("bond0\u{1b}[2J", 4, 1), capture("eth1", 0, 0)],
            missed: 2,
            bridges: vec![
                leg("10.89.2.0/24", vec![]),
                leg("fd89:2::/64", vec![leak]),
                LegReport { verdict: Verdict::Inconclusive, ..missing },
            ],
            warnings: Vec::new(),
        };
        assert_eq!(
            render(&report, false),
            "\
ok    eth0 watched: 4 of 4 controls seen, 9 frames
??    bond0\\u{1b}[2J: 1 of 4 controls seen: a leak would go unseen there too
ok    eth1 watched as a part of another interface, 9 frames
??    2 frames went by unseen: this host is too busy; try again
ok    br0 IPv4 10.89.2.0/24 by vps: 168 probes, none left beside mesh0, 140 went
      into it, 10.88.0.1 answered dns in 31.00 ms
LEAK  br0 IPv6 fd89:2::/64 by vps: 168 probes, 3 packets left beside mesh0, 140
      went into it, 10.88.0.1 answered dns in 31.00 ms
      - tcp 443 to the internet by eth0: TCP 192.168.1.20:17021 > 192.0.2.1:443,
        68 bytes, 3 times
??    br0: it does not exist
"
        );
        let nothing = Report { verdict: Verdict::Nothing, ..report };
        assert!(render(&nothing, true).starts_with("nothing to test"));
    }
}
