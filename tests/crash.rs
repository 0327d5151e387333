//! SIGKILL before one system call after the other, while the agent starts, reloads, goes down, and while others clean up
//! after it: it converges, leaks nothing and leaves nothing.
//!
//! A part of the calls each time; `MESHD_CRASH=every` tries them all, `MESHD_CRASH=sendto:17` one.

mod lab;
#[path = "crash/strace.rs"]
mod strace;

use std::process::{Output, Stdio};
use std::time::Duration;

use lab::capture::Capture;
use lab::host::describe;
use lab::snapshot::Snapshot;
use lab::traffic::{MARKER, Probes, seen_by};
use lab::{ISP, Lab, PROXY, WEB, secs, wait_for};
use nix::sys::signal::Signal;
use strace::{Mode, Point};

/// What is interrupted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// `meshd up`.
    Up,
    /// The agent, at `meshd reload`, to and fro.
    Reload,
    /// The agent, at `meshd down`.
    Down,
    /// `meshd down` after an agent was killed.
    Clean,
    /// `meshd guard arm`, and `disarm`.
    Guard,
}

/// Another configuration than that of `peers/home`: egress, bridges, subnets, MTU, and with `allow` sysctls.
const OTHER: &str = r#"
name = "home"
addresses = ["10.88.0.2/24", "fd88::2/64", "10.88.0.22/32"]
mtu = 1400

[[bridge]]
name = "br0"
subnets = ["10.89.2.0/24", "fd89:2::/64"]
egress = "none"
allow = ["192.168.1.0/24"]

[[bridge]]
name = "br1"
subnets = ["10.89.3.0/24"]
egress = "vps"
"#;

struct Trials {
    lab: Lab,
    phase: Phase,
    /// The worked example's.
    usual: String,
    /// With the guard armed before and after, and probes that look for a way out all the time.
    guarded: bool,
}

impl Trials {
    fn new(phase: Phase) -> Self {
        let lab = Lab::new();
        lab.masquerade_at_home_like_podman();
        lab.vps.up();
        let usual = lab.home.read("meshd.toml");
        Self { lab, phase, usual, guarded: false }
    }

    /// Brings the host to where the phase begins, and runs it under strace.
    fn interrupt(&self, mode: &Mode, back: bool) {
        let home = &self.lab.home;
        let (from, to) = if back { (OTHER, self.usual.as_str()) } else { (self.usual.as_str(), OTHER) };
        match self.phase {
            Phase::Up => {
                strace::around(home, &["up", "--ready-on-stdout"], mode).ready(mode);
            }
            Phase::Reload => {
                home.write("meshd.toml", from);
                home.up();
                home.write("meshd.toml", to);
                self.attached(mode, &["reload"]);
            }
            Phase::Down => {
                home.up();
                self.attached(mode, self.down());
            }
            Phase::Clean => {
                home.up();
                home.end(Signal::SIGKILL);
                strace::around(home, self.down(), mode).wait(mode);
            }
            Phase::Guard => {
                let verb = if back && !self.guarded { "disarm" } else { "arm" };
                home.write("meshd.toml", if self.guarded { OTHER } else { &self.usual });
                if verb == "disarm" {
                    home.meshd(&["guard", "arm"]);
                }
                strace::around(home, &["guard", verb], mode).wait(mode);
            }
        }
    }

    /// Ends what the phase began.
    fn finish(&self) -> Output {
        // "Not running" is as good when it died before it did anything.
        let down = self.lab.home.try_meshd(self.down());
        self.lab.home.write("meshd.toml", &self.usual);
        down
    }

    /// Has strace look on while the running agent does what it is asked for.
    fn attached(&self, mode: &Mode, args: &[&str]) {
        let strace = strace::attach(&self.lab.home, mode);
        let mut client = self.lab.home.meshd_command(args);
        // Its failure is that of the agent, which the point brings about.
        let mut client = client.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("meshd");
        while client.try_wait().expect("meshd").is_none() && !strace.dead() {
            std::thread::sleep(Duration::from_millis(5));
        }
        strace.let_go(mode);
        client.wait().expect("meshd");
    }

    /// Whether the agent lives, once that is settled.
    fn goes_on(&self) -> bool {
        let home = &self.lab.home;
        wait_for("an agent that answers, or none", secs(5), || {
            let answers = || self.phase != Phase::Down && home.try_meshd(&["status"]).status.success();
            if home.agent().is_none() { Some(false) } else { answers().then_some(true) }
        })
    }

    fn down(&self) -> &'static [&'static str] {
        if self.guarded { &["down", "--keep-guard"] } else { &["down"] }
    }

    /// One crash, and one of two ways out of it: on with an agent, or down at once.
    fn trial(&self, number: usize, point: &Point, before: &Snapshot) {
        let home = &self.lab.home;
        let what = format!("{:?}, MESHD_CRASH={point}, guarded: {}", self.phase, self.guarded);
        self.interrupt(&Mode::Kill(point), number % 4 >= 2);
        if number.is_multiple_of(2) {
            // It may have been nft(8) that was killed, and the agent that tells so.
            let on = if self.goes_on() { &["reload"][..] } else { &["up", "--detach"] };
            let output = home.try_meshd(on);
            assert!(output.status.success(), "{what}: {on:?}: {}", describe(&output));
            assert_eq!(home.meshd(&["plan"]), "nothing to change\n", "{what}");
            assert!(self.lab.nextcloud.ping(PROXY), "{what}");
        }
        let down = self.finish();
        assert!(matches!(down.status.code(), Some(0 | 3)), "{what}: {}", describe(&down));
        if self.guarded {
            home.meshd(&["guard", "arm"]);
        }
        before.assert_same(&Snapshot::of(home), &what);
    }
}

fn everywhere(phase: Phase, sample: usize) {
    let mut trials = Trials::new(phase);
    let home = &trials.lab.home;
    let before = Snapshot::of(home);
    let counted = trials.lab.path("counted");
    trials.interrupt(&Mode::Count(&counted), false);
    trials.finish();
    before.assert_same(&Snapshot::of(home), "without a crash");
    let all = strace::points(&counted);
    let count = all.len();
    let points = strace::chosen(all, sample);
    eprintln!("{phase:?}: {} of {count} points", points.len());
    let (open, guarded): (Vec<_>, Vec<_>) = points.iter().enumerate().partition(|(index, _)| index % 2 == 0);

    for (number, (_, point)) in open.into_iter().enumerate() {
        trials.trial(number, point, &before);
    }

    // The oracle sees plaintext as long as nothing is armed.
    let oracle = Capture::start(&trials.lab.home, "eth0", MARKER);
    let probes = Probes::start(&trials.lab.nextcloud);
    assert_eq!(seen_by(&trials.lab.nextcloud, WEB).expect("a leak before the guard"), ISP);
    wait_for("the oracle sees plaintext", secs(5), || (oracle.seen().marked > 0).then_some(()));
    drop(probes);
    assert!(!oracle.finish().leaks.is_empty());

    trials.lab.home.meshd(&["guard", "arm"]);
    let armed = Snapshot::of(&trials.lab.home);
    trials.guarded = true;
    let oracle = Capture::start(&trials.lab.home, "eth0", MARKER);
    let probes = Probes::start(&trials.lab.nextcloud);
    for (number, (_, point)) in guarded.into_iter().enumerate() {
        trials.trial(number, point, &armed);
        let seen = oracle.seen();
        assert!(seen.leaks.is_empty() && seen.marked == 0, "{phase:?}, {point}: beside the tunnel: {seen:?}");
    }
    drop(probes);
    let seen = oracle.finish();
    assert!(seen.leaks.is_empty() && seen.marked == 0, "{phase:?}: beside the tunnel: {seen:?}");
    trials.lab.home.down();
    before.assert_same(&Snapshot::of(&trials.lab.home), "after all of it");
}

#[test]
fn while_it_starts() {
    everywhere(Phase::Up, 12);
}

#[test]
fn while_it_reloads() {
    everywhere(Phase::Reload, 10);
}

#[test]
fn while_it_goes_down() {
    everywhere(Phase::Down, 10);
}

#[test]
fn while_another_cleans_up() {
    everywhere(Phase::Clean, 10);
}

#[test]
fn while_the_guard_is_armed_alone() {
    everywhere(Phase::Guard, 10);
}
