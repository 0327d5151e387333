//! What a run found, and what follows from it. The fields are those of `meshd leaktest --json`, which is stable.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::Serialize;

/// What a run proves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Nothing left beside the tunnel, and it would have been seen.
    Closed,
    /// Something did.
    Leak,
    /// Nothing was seen, but something might have gone unseen or unsent.
    Inconclusive,
    /// No bridge is to be closed.
    Nothing,
}

/// `meshd leaktest --json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Over all.
    pub verdict: Verdict,
    /// What every probe of this run holds as text.
    pub tag: String,
    /// Whether the agent ran.
    pub agent: bool,
    /// The tunnel's interface.
    pub interface: String,
    /// How long probes were sent.
    pub seconds: u32,
    /// The interfaces that were watched.
    pub captures: Vec<CaptureReport>,
    /// Frames that the capture was too slow for.
    pub missed: u32,
    /// One for each bridge and subnet.
    pub bridges: Vec<LegReport>,
    /// What the operator should know.
    pub warnings: Vec<String>,
}

/// One watched interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CaptureReport {
    /// Its name.
    pub interface: String,
    /// Marked frames that this host sent there.
    pub controls: u32,
    /// How many of them were seen.
    pub seen: u32,
    /// All frames that were looked at.
    pub frames: u64,
}

/// One bridge and subnet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LegReport {
    /// The bridge.
    pub name: String,
    /// A peer's name, or `none`.
    pub egress: String,
    /// Of the bridge's own address; none where the bridge is missing.
    pub subnet: Option<IpNet>,
    /// Where probes came from.
    pub address: Option<IpAddr>,
    /// For this bridge and subnet.
    pub verdict: Verdict,
    /// Why nothing was proved.
    pub problem: Option<String>,
    /// Probes that were sent.
    pub probes: u32,
    /// How many packets of them went into the tunnel.
    pub tunnel: u32,
    /// Answers that came back.
    pub answers: Vec<Answer>,
    /// What left beside the tunnel.
    pub leaks: Vec<Leak>,
}

/// An answer to a probe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Answer {
    /// Who was asked.
    pub from: IpAddr,
    /// The probe, as `icmp` or `tcp 443`.
    pub probe: String,
    /// From the probe to the answer, in microseconds.
    pub latency_us: u64,
}

/// Packets of one kind that left beside the tunnel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Leak {
    /// By which interface.
    pub interface: String,
    /// When the first did, in Unix seconds.
    pub time: u64,
    /// How many did.
    pub count: u32,
    /// The probe, as `udp` or `tcp 443`.
    pub probe: Option<String>,
    /// What it was sent to.
    pub target: Option<String>,
    /// Of the probe.
    pub destination: Option<IpAddr>,
    /// The first as it was seen on the interface.
    pub packet: String,
    /// What gave it away: `marker`, `source`, `destination` or `neighbour`.
    pub recognised_by: String,
}

/// A question to it is answered by this host, which may ask others in turn.
pub(super) const NAME_SERVER: &str = "the host's name server";
/// How many leaks of one leg are kept apart; more are as good as these.
const MAX_LEAKS: usize = 256;

impl CaptureReport {
    /// Whether all that was sent to be seen was seen.
    pub fn works(&self) -> bool {
        self.seen >= self.controls
    }
}

impl LegReport {
    /// Counts a leak beside those of its kind.
    pub fn add(&mut self, leak: Leak) {
        let kind =
            |leak: &Leak| (leak.interface.clone(), leak.probe.clone(), leak.destination, leak.recognised_by.clone());
        let known = self.leaks.iter().position(|known| kind(known) == kind(&leak));
        match known {
            Some(at) => self.leaks[at].count += leak.count,
            None if self.leaks.len() < MAX_LEAKS => self.leaks.push(leak),
            None => {}
        }
    }
}

impl Report {
    /// What the operator can do about it.
    pub fn remedy(&self) -> Option<&'static str> {
        let mut leaks = self.bridges.iter().flat_map(|leg| &leg.leaks).peekable();
        leaks.peek()?;
        if leaks.all(|leak| leak.target.as_deref() == Some(NAME_SERVER)) {
            return Some(
                "give its containers a name server that is reached through the tunnel: podman run --dns ADDRESS",
            );
        }
        Some(if self.agent { "meshd plan, which shows what is missing" } else { "meshd up" })
    }

    /// Draws the conclusions.
    #[must_use]
    pub fn judged(mut self) -> Self {
        let watched = self.missed == 0
            && self.captures.iter().any(|capture| capture.controls > 0)
            && self.captures.iter().all(CaptureReport::works);
        for leg in &mut self.bridges {
            leg.verdict = match () {
                () if !leg.leaks.is_empty() => Verdict::Leak,
                () if leg.problem.is_some() || leg.probes == 0 || !watched => Verdict::Inconclusive,
                () => Verdict::Closed,
            };
        }
        let any = |verdict| self.bridges.iter().any(|leg| leg.verdict == verdict);
        self.verdict = match () {
            () if self.bridges.is_empty() => Verdict::Nothing,
            () if any(Verdict::Leak) => Verdict::Leak,
            () if any(Verdict::Inconclusive) => Verdict::Inconclusive,
            () => Verdict::Closed,
        };
        self
    }
}
