//! `meshd status`: peers, endpoints, handshakes, traffic, egress and guards.

use std::fmt::Write as _;
use std::io::{self, IsTerminal as _};
use std::time::Duration;

use super::page::{self, Cell, Colour, Column, Table};
use super::{Dirs, Failure, ask};
use crate::clock::unix_now;
use crate::control::api::{self, Cipher, Drops, Guard, PeerStatus, Status};
use crate::control::client::{Client, ClientError};
use crate::tunnel::PeerState;

/// Show peers, endpoints, handshakes, traffic and guards.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  meshd status                   a page for people
  meshd status --watch           the same, each second, until Ctrl-C
  meshd status --json | jq -r '.peers[] | select(.state != \"up\").name'
  meshd status --json --watch    one JSON object a line, each second

\"up, aes\" is a peer to which data leaves under AES-256-GCM, in an express
session; \"up, chacha\" one to which it leaves in WireGuard's own. Why a peer is
not on an express session, `meshd doctor NAME` says.")]
pub struct Args {
    /// Print JSON, whose fields are stable
    #[arg(long)]
    json: bool,
    /// Show it again each second, until Ctrl-C
    #[arg(long)]
    watch: bool,
}

/// Runs `meshd status`.
pub fn run(args: Args, dirs: &Dirs) -> Result<(), Failure> {
    let mut client = ask::connect("status", dirs)?;
    let mut status = client.status();
    loop {
        let text = match status {
            Ok(status) if args.json => json(&status, !args.watch)?,
            Ok(status) => render(&status, unix_now(), page::coloured()),
            // Someone who watches wants to see the agent come back.
            Err(error @ (ClientError::NotRunning | ClientError::NotAnswering { .. } | ClientError::Io { .. }))
                if args.watch && !args.json =>
            {
                format!("meshd: {error}\n")
            }
            Err(error) => return Err(ask::failure("status", error)),
        };
        let text = if args.watch && !args.json { frame(&text, io::stdout().is_terminal()) } else { text };
        let heard = page::print(&text).map_err(|error| ask::output_failure("status", &error))?;
        if !args.watch || !heard {
            return Ok(());
        }
        std::thread::sleep(Duration::from_secs(1));
        status = Client::connect(&dirs.run).and_then(|mut client| client.status());
    }
}

fn json(status: &Status, pretty: bool) -> Result<String, Failure> {
    let text = if pretty { serde_json::to_string_pretty(status) } else { serde_json::to_string(status) };
    let text = text.map_err(|error| ask::failure("status", ClientError::Protocol(error.to_string())))?;
    Ok(text + "\n")
}

/// A page over the one before. Each line is cleared as it is written, so that nothing flickers.
fn frame(text: &str, terminal: bool) -> String {
    if !terminal {
        return format!("{text}\n");
    }
    format!("\x1b[H{}\x1b[J", text.replace('\n', "\x1b[K\n"))
}

/// The page; `now` in Unix seconds.
pub fn render(status: &Status, now: u64, colour: bool) -> String {
    let mut text = page::wrap(&headline(status), 0) + "\n";
    let _ = writeln!(text, "  public key  {}", status.public_key);
    let addresses = listed(&status.addresses);
    let _ = writeln!(text, "  addresses   {}", page::wrap(&addresses, 14));
    text.push('\n');
    text.push_str(&peers(status, now, colour));
    if !status.bridges.is_empty() {
        text.push('\n');
        text.push_str(&bridges(status, now, colour));
    }
    text.push_str(&drops(&status.drops, colour));
    for (index, warning) in status.warnings.iter().enumerate() {
        let _ = writeln!(
            text,
            "{}{} {}",
            if index == 0 { "\n" } else { "" },
            page::paint("warning:", Colour::Yellow, colour),
            page::wrap(&page::printable(warning), 9)
        );
    }
    text
}

fn headline(status: &Status) -> String {
    format!(
        "{} on {}, UDP port {}, MTU {}, meshd {}",
        page::printable(&status.name),
        page::printable(&status.interface),
        status.listen_port,
        status.mtu,
        page::printable(&status.version)
    )
}

fn peers(status: &Status, now: u64, colour: bool) -> String {
    if status.peers.is_empty() {
        return "no peers; add one with meshd peer add NAME\n".to_owned();
    }
    let column = |title, widest| Column { title, widest, right: false };
    let number = |title| Column { title, widest: 8, right: true };
    // Together with the gaps these are 80 columns. The longest IPv6 endpoint, 47, ends before that too.
    let mut table = Table::new(&[
        column("PEER", 13),
        column("STATE", 10),
        column("ENDPOINT", 21),
        column("HANDSHAKE", 10),
        number("RECEIVED"),
        number("SENT"),
    ]);
    for peer in &status.peers {
        let (state, shade) = match peer.state {
            PeerState::Up if peer.cipher == Cipher::Aes256Gcm => ("up, aes", Colour::Green),
            PeerState::Up => ("up, chacha", Colour::Green),
            PeerState::Connecting => ("connecting", Colour::Yellow),
            PeerState::Down => ("down", Colour::Red),
        };
        table.row(vec![
            Cell::new(&peer.name),
            Cell::coloured(state, shade),
            Cell::new(&where_to(peer)),
            Cell::new(&page::ago(peer.latest_handshake, now)),
            Cell::new(&page::bytes(peer.rx_bytes)),
            Cell::new(&page::bytes(peer.tx_bytes)),
        ]);
    }
    table.render(colour)
}

/// Its endpoint, or who relays what is for it.
fn where_to(peer: &PeerStatus) -> String {
    match peer.endpoint {
        _ if peer.path != api::DIRECT => peer.path.clone(),
        Some(endpoint) => endpoint.to_string(),
        None => "-".to_owned(),
    }
}

/// Nothing where nothing was dropped.
fn drops(drops: &Drops, colour: bool) -> String {
    let mut table = Table::new(&[
        Column { title: "DROPPED", widest: 20, right: true },
        Column { title: "PACKETS", widest: usize::MAX, right: false },
    ]);
    let seen: Vec<_> = drops.causes().into_iter().filter(|(.., packets)| *packets > 0).collect();
    for (_, meaning, packets) in &seen {
        table.row(vec![Cell::new(&packets.to_string()), Cell::new(meaning)]);
    }
    if seen.is_empty() { String::new() } else { format!("\n{}", table.render(colour)) }
}

fn bridges(status: &Status, now: u64, colour: bool) -> String {
    let column = |title, widest| Column { title, widest, right: false };
    let mut table =
        Table::new(&[column("BRIDGE", 15), column("EGRESS", 17), column("GUARD", 5), column("SUBNETS", usize::MAX)]);
    for bridge in &status.bridges {
        let guard = match bridge.guard {
            Guard::Armed => Cell::coloured("armed", Colour::Green),
            Guard::Off if bridge.egress == "direct" => Cell::new("off"),
            Guard::Off => Cell::coloured("off", Colour::Red),
            Guard::Altered => Cell::coloured("altered", Colour::Red),
        };
        table.row(vec![Cell::new(&bridge.name), Cell::new(&bridge.egress), guard, Cell::new(&listed(&bridge.subnets))]);
    }
    let mut text = table.render(colour);
    for bridge in &status.bridges {
        if let Some(reason) = &bridge.egress_reason {
            let (name, egress, since) = (&bridge.name, &bridge.egress, page::ago(bridge.egress_since, now));
            let line = page::printable(&format!("{name} leaves by {egress}, changed {since}: {reason}"));
            let _ = writeln!(text, "{}", page::wrap(&line, 2));
        }
    }
    text
}

fn listed(nets: &[ipnet::IpNet]) -> String {
    nets.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::fake;

    #[test]
    fn a_relay_stands_where_the_endpoint_would() {
        let mut status = fake::status();
        status.peers[1].path = "via vps".to_owned();
        (status.peers[1].endpoint, status.peers[1].state) = (status.peers[0].endpoint, PeerState::Up);
        let page = render(&status, 1_700_000_100, false);
        assert!(page.contains("\nphone  up, chacha  via vps             never"), "{page}");
    }

    #[test]
    fn the_page_of_the_worked_example() {
        assert_eq!(
            render(&fake::status(), 1_700_000_100, false),
            format!(
                "\
home on mesh0, UDP port 51820, MTU 1420, meshd 0.1.0
  public key  {}
  addresses   10.88.0.2/24, fd88::2/64

PEER   STATE    ENDPOINT            HANDSHAKE  RECEIVED  SENT
vps    up, aes  203.0.113.10:51820  12 s ago   1.18 MiB  89 B
phone  down     -                   never           0 B   0 B

BRIDGE  EGRESS  GUARD  SUBNETS
br0     vps     armed  10.89.2.0/24, fd89:2::/64

DROPPED  PACKETS
      3  received from a source that is not the peer's
  12345  received too fast for the agent

warning: peer phone: has no endpoint and was never heard of
",
                fake::peer_key(100)
            )
        );
    }

    #[test]
    fn another_exit_is_explained() {
        let mut status = fake::status();
        let bridge = &mut status.bridges[0];
        bridge.egress = "vps2".into();
        (bridge.egress_since, bridge.egress_reason) = (Some(1_700_000_090), Some("vps was silent for 10 s".into()));
        let page = render(&status, 1_700_000_100, false);
        assert!(page.contains("\nbr0 leaves by vps2, changed 10 s ago: vps was silent for 10 s\n"), "{page}");
    }

    fn crowded() -> Status {
        let mut status = fake::status();
        status.name = "n".repeat(63);
        status.addresses = (0..20).map(|n| format!("fd88:1234:5678:9abc::{n:x}/64").parse().unwrap()).collect();
        let mut long = status.peers[0].clone();
        long.name = "p".repeat(63);
        long.endpoint = Some("[2001:db8:1111:2222:3333:4444:5555:6666]:51820".parse().unwrap());
        long.rx_bytes = u64::MAX;
        long.tx_bytes = 1023 * 1024;
        long.latest_handshake = Some(1_700_000_100 - 59 * 60);
        let mut middling = long.clone();
        middling.name = "p".repeat(13);
        middling.state = PeerState::Connecting;
        middling.endpoint = Some("203.113.113.110:51820".parse().unwrap());
        status.peers.extend([long, middling]);
        let mut bridge = status.bridges[0].clone();
        bridge.egress = "p".repeat(63);
        bridge.subnets = status.addresses.clone();
        status.bridges.push(bridge);
        status.drops = Drops { congested: u64::MAX, spoofed: 1, ..Drops::default() };
        status.warnings = vec!["words ".repeat(40)];
        status
    }

    #[test]
    fn everything_is_shown_within_eighty_columns() {
        let status = crowded();
        let page = render(&status, 1_700_000_100, false);
        for line in page.lines() {
            assert!(line.chars().count() <= page::WIDTH, "{line}\nof\n{page}");
            assert_eq!(line, line.trim_end());
        }
        for peer in &status.peers {
            assert!(page.contains(&peer.name), "{page}");
            assert!(peer.endpoint.is_none_or(|endpoint| page.contains(&endpoint.to_string())), "{page}");
        }
        for address in &status.addresses {
            assert_eq!(page.matches(&format!("{address}")).count(), 2, "{address} in\n{page}");
        }
    }

    #[test]
    fn nothing_of_a_peer_reaches_the_terminal_raw() {
        let mut status = fake::status();
        for text in [&mut status.name, &mut status.interface, &mut status.version, &mut status.peers[0].name] {
            text.push_str("\x1b[J\n");
        }
        status.bridges[0].egress = "\x1b[2J".to_owned();
        status.warnings.push("\x1b[31m\u{202e}".to_owned());
        let page = render(&status, 0, false);
        assert!(page.chars().all(|c| c == '\n' || !c.is_control()), "{page:?}");
        assert_eq!(page.matches(r"\u{1b}[J\n").count(), 4, "shown as text: {page}");
    }

    #[test]
    fn colours_change_nothing_but_colours() {
        let coloured = render(&fake::status(), 1_700_000_100, true);
        assert!(coloured.contains("\x1b[32mup, aes\x1b[0m") && coloured.contains("\x1b[31mdown\x1b[0m"));
        let mut bare = coloured;
        for code in ["31", "32", "33", "0"] {
            bare = bare.replace(&format!("\x1b[{code}m"), "");
        }
        assert_eq!(bare, render(&fake::status(), 1_700_000_100, false));
    }

    #[test]
    fn watched_json_is_one_line() {
        let text = json(&fake::status(), false).unwrap();
        assert_eq!(text.lines().count(), 1);
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["peers"][1]["latest_handshake"], serde_json::Value::Null);
        assert_eq!((&value["peers"][0]["state"], &value["bridges"][0]["guard"]), (&"up".into(), &"armed".into()));
        assert_eq!(
            (&value["peers"][0]["cipher"], &value["peers"][0]["express"]["state"]),
            (&"aes-256-gcm".into(), &"on".into())
        );
        assert_eq!(
            (&value["peers"][1]["cipher"], &value["peers"][1]["express"]["sessions"]),
            (&"chacha20-poly1305".into(), &0.into())
        );
    }

    #[test]
    fn a_frame_leaves_nothing_of_the_one_before() {
        assert_eq!(frame("a\nb\n", true), "\x1b[Ha\x1b[K\nb\x1b[K\n\x1b[J");
        assert_eq!(frame("a\n", false), "a\n\n");
    }

    #[test]
    fn without_an_agent_it_says_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let dirs = Dirs { config: dir.path().into(), run: dir.path().into(), state: dir.path().into() };
        for watch in [false, true] {
            let failure = run(Args { json: false, watch }, &dirs).unwrap_err();
            assert_eq!((failure.code, failure.remedy.as_deref()), (3, Some("meshd up")));
            assert_eq!(failure.errors, ["status: the agent is not running"]);
        }
    }
}
