//! What crosses an interface, recorded by tcpdump(8) and read by tshark(1).

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::netns::Namespace;
use super::{PORT, secs, wait_for};

/// What tshark is asked for.
const FIELDS: [&str; 8] = [
    "frame.protocols",
    "ip.src",
    "udp.length",
    "wg.type",
    "wg.receiver",
    "wg.counter",
    "_ws.malformed",
    "_ws.expert.severity",
];
/// Of the header of a pcap file, which tcpdump writes when it listens.
const HEADER: u64 = 24;
/// Of tshark's severities; below are remarks, on keepalives for one.
const WARNING: u64 = 0x60_0000;
/// Of a UDP header.
const UDP: usize = 8;

/// A datagram as tshark sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// The protocols found in it, from the outermost.
    pub protocols: String,
    /// The sender's address.
    pub source: String,
    /// Bytes of UDP payload.
    pub length: usize,
    /// Message type (whitepaper, section 5.4).
    pub kind: Option<u8>,
    /// Of a response, a cookie or transport data.
    pub receiver: Option<u32>,
    /// Of transport data.
    pub counter: Option<u64>,
    /// Whether tshark finds something wrong with it.
    pub flawed: bool,
}

/// A running record of the tunnel's datagrams.
pub struct Dump {
    tcpdump: Child,
    path: PathBuf,
}

impl Dump {
    /// Begins on an interface, which must not segment behind tcpdump's back.
    pub fn start(namespace: &Namespace, interface: &str, path: PathBuf) -> Self {
        let tcpdump = namespace
            .command("tcpdump")
            .args(["-i", interface, "-U", "-Z", "root", "-w"])
            .arg(&path)
            .args(["udp", "port", &PORT.to_string()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("tcpdump");
        wait_for("tcpdump listens", secs(10), || {
            std::fs::metadata(&path).is_ok_and(|file| file.len() >= HEADER).then_some(())
        });
        Self { tcpdump, path }
    }

    /// Ends and reads it.
    pub fn finish(mut self) -> Vec<Message> {
        kill(Pid::from_raw(self.tcpdump.id().cast_signed()), Signal::SIGINT).expect("kill");
        assert!(self.tcpdump.wait().expect("wait").success(), "tcpdump failed");
        let mut tshark = Command::new("tshark");
        tshark.arg("-r").arg(&self.path).args(["-n", "-T", "fields", "-E", "occurrence=f"]);
        for field in FIELDS {
            tshark.args(["-e", field]);
        }
        let output = tshark.output().expect("tshark is missing: run scripts/test");
        let text = String::from_utf8(output.stdout).expect("text");
        assert!(output.status.success(), "tshark: {}", String::from_utf8_lossy(&output.stderr));
        text.lines().map(message).collect()
    }
}

fn message(line: &str) -> Message {
    let fields: Vec<_> = line.split('\t').collect();
    let [protocols, source, length, kind, receiver, counter, malformed, expert] = fields[..] else {
        panic!("tshark said {line:?}")
    };
    Message {
        protocols: protocols.to_owned(),
        source: source.to_owned(),
        length: number(length).map_or(0, |length| length as usize).saturating_sub(UDP),
        kind: number(kind).map(|kind| kind as u8),
        receiver: number(receiver).map(|receiver| receiver as u32),
        counter: number(counter),
        flawed: !malformed.is_empty() || number(expert).is_some_and(|severity| severity >= WARNING),
    }
}

/// Decimal, or hexadecimal where it begins so; `None` when there is none.
fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}
