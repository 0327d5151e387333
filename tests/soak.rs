//! Express sessions for a long time, over a bad path, with everything that interrupts them: nothing is corrupted, nothing
//! arrives twice, and nothing stalls for longer than it has to.
//!
//! Half a minute by default; `MESHD_SOAK=600` makes it ten.

mod lab;

use std::time::{Duration, Instant};

use lab::express::{EXPRESS, set_express, wait_for_cipher};
use lab::host::Host;
use lab::steady::{Passed, Silence, Steady};
use lab::wire::{Habits, To, Wire};
use lab::{ISP, Lab, NEXTCLOUD, PORT, PROXY, WEB, nat, secs};
use nix::sys::signal::Signal;

/// A path that loses one datagram in twenty, each way, and mixes up the rest.
const BAD: Habits =
    Habits { lost: 50, repeated: 10, late: 100, later: Duration::from_millis(8), delay: Duration::from_millis(4) };
/// Between two events.
const PAUSE: Duration = Duration::from_millis(2500);
/// Datagrams of each flow a second.
const RATE: u32 = 300;
/// The limit: from the last packet before a kill until the first one after it.
const KILLED: Duration = secs(3);
/// A datagram flow has no reason to be silent: a hundred milliseconds of it are thirty datagrams, and no loss explains that.
const UNDISTURBED: Duration = Duration::from_millis(600);
/// What loss alone does to a TCP stream: four retransmissions of one segment in a row, after 0.2, 0.4, 0.8 and 1.6 seconds.
const UNLUCKY: Duration = secs(3);
/// A path that does nothing but take its time.
const GOOD: Habits = Habits { lost: 0, repeated: 0, late: 0, later: Duration::ZERO, delay: Duration::from_millis(4) };
/// On which a silence has no excuse but a busy machine.
const AT_ONCE: Duration = Duration::from_millis(250);
/// A handshake message that is lost is sent again after so long (`REKEY_TIMEOUT` and its jitter; whitepaper, section 6.1).
const RETRY: Duration = Duration::from_millis(5350);

/// What is done to the hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Event {
    /// Home's router gives it another port.
    Port,
    /// And another address.
    Address,
    /// SIGKILL and a start.
    KillHome,
    /// The same.
    KillVps,
    /// The same for both, one right after the other.
    KillBoth,
    /// Off, and on again half a second later, at home.
    ToggleHome,
    /// The same at the VPS.
    ToggleVps,
}

/// In this order, again and again.
const EVENTS: [Event; 9] = [
    Event::Port,
    Event::KillHome,
    Event::ToggleVps,
    Event::Address,
    Event::KillVps,
    Event::Port,
    Event::ToggleHome,
    Event::Address,
    Event::KillBoth,
];

struct Happened {
    event: Event,
    begun: Instant,
    done: Instant,
}

impl Happened {
    fn is_kill(&self) -> bool {
        matches!(self.event, Event::KillHome | Event::KillVps | Event::KillBoth)
    }
}

struct Soak {
    lab: Lab,
    wire: Wire,
    begun: Instant,
    happened: Vec<Happened>,
}

impl Soak {
    fn new() -> Self {
        let mut lab = Lab::new();
        for host in [&mut lab.vps, &mut lab.home] {
            host.set_environment("MESHD_TEST_REKEY_AFTER", "2");
        }
        let wire = Wire::lay(&lab);
        lab.start();
        wait_for_cipher(&lab, EXPRESS, secs(3));
        Self { lab, wire, begun: Instant::now(), happened: Vec::new() }
    }

    /// Streams and datagrams both ways.
    fn flows(&self, blocks_a_second: Option<u32>) -> [Steady; 4] {
        let (here, there) = (&self.lab.nextcloud, &self.lab.proxy);
        [
            Steady::tcp(here, there, PROXY, blocks_a_second),
            Steady::tcp(there, here, NEXTCLOUD, blocks_a_second),
            Steady::udp(here, there, PROXY, RATE),
            Steady::udp(there, here, NEXTCLOUD, RATE),
        ]
    }

    fn happen(&mut self, event: Event) {
        let lab = &self.lab;
        let number = self.happened.len() % 50;
        let begun = Instant::now();
        match event {
            Event::Port => nat::rebind(&lab.isp, &format!("{ISP}:{0}-{0}", 40_000 + number)),
            Event::Address => nat::rebind(&lab.isp, &format!("198.51.100.8:{0}-{0}", 41_000 + number)),
            Event::KillHome => restart(&lab.home),
            Event::KillVps => restart(&lab.vps),
            Event::KillBoth => [&lab.home, &lab.vps].into_iter().for_each(restart),
            Event::ToggleHome => toggle(&lab.home),
            Event::ToggleVps => toggle(&lab.vps),
        }
        self.happened.push(Happened { event, begun, done: Instant::now() });
    }

    /// How a silence reads in the report.
    fn describe(&self, silence: &Silence) -> String {
        let at = silence.since - self.begun;
        let end = silence.since + silence.length;
        let before = self.happened.iter().rev().find(|happened| happened.begun <= end);
        let after = before.map_or("nothing yet".to_owned(), |happened| {
            let (at, took) = (happened.begun - self.begun, happened.done - happened.begun);
            format!("{:?} at {:.2} s, which took {:.2} s", happened.event, at.as_secs_f64(), took.as_secs_f64())
        });
        format!("{:.2} s from {:.2} s on; last event {after}", silence.length.as_secs_f64(), at.as_secs_f64())
    }

    /// What a silence may last, by what happened in it.
    fn limit(&self, passed: &Passed, silence: &Silence) -> Duration {
        let end = silence.since + silence.length;
        let within = |at: Instant| silence.since <= at && at <= end;
        // One that begins right behind the restart is the kill's too.
        let of = |happened: &&Happened| happened.begun <= end && silence.since <= happened.done + secs(1);
        let killed = self.happened.iter().filter(of).any(Happened::is_kill);
        let missed =
            To::BOTH.iter().flat_map(|to| self.wire.seen(*to).lost_handshakes).filter(|at| within(*at)).count();
        let retries = if killed { RETRY * u32::try_from(missed).expect("few") } else { Duration::ZERO };
        let base = if killed { KILLED } else { UNDISTURBED };
        let loss = if passed.name.starts_with("tcp") { UNLUCKY } else { Duration::ZERO };
        base + loss + retries + passed.starved
    }

    /// Prints the report of a flow; returns what is too long in it.
    fn judge(&self, passed: &Passed) -> Vec<String> {
        println!(
            "{}: {} sent, {} received, {} late, the sender starved for {:?} at most",
            passed.name, passed.sent, passed.received, passed.late, passed.starved
        );
        let mut longest: Vec<_> = passed.silences.iter().collect();
        longest.sort_by_key(|silence| std::cmp::Reverse(silence.length));
        for silence in longest.iter().take(5) {
            println!("    {}", self.describe(silence));
        }
        let too_long = longest.into_iter().filter(|silence| silence.length > self.limit(passed, silence));
        too_long.map(|silence| format!("{}: {}", passed.name, self.describe(silence))).collect()
    }

    /// Panics unless most of it went under express, in one session after the other.
    fn was_express(&self, time: Duration) {
        for to in To::BOTH {
            let seen = self.wire.seen(to);
            let (sessions, lost) = (seen.indices.len() as u64, seen.lost_handshakes.len());
            println!(
                "to {to:?}: {} express, {} ordinary, {} handshake messages ({lost} lost), {sessions} sessions",
                seen.express, seen.ordinary, seen.handshakes
            );
            assert!(seen.express > seen.ordinary, "to {to:?}: mostly ordinary");
            assert!(sessions > time.as_secs() / 5, "to {to:?}: too few sessions agreed");
        }
    }
}

fn restart(host: &Host) {
    host.end(Signal::SIGKILL);
    host.up();
}

fn toggle(host: &Host) {
    set_express(host, "meshd.toml", "off");
    host.meshd(&["reload"]);
    std::thread::sleep(Duration::from_millis(500));
    set_express(host, "meshd.toml", "auto");
    host.meshd(&["reload"]);
}

#[test]
fn checksums_hold_and_nothing_stalls() {
    let time = std::env::var("MESHD_SOAK").map_or(25, |text| text.parse().expect("MESHD_SOAK: seconds"));
    let time = secs(time);
    let mut soak = Soak::new();
    let flows = soak.flows(None);
    soak.wire.behave(BAD);
    soak.begun = Instant::now();
    for event in EVENTS.into_iter().cycle() {
        std::thread::sleep(PAUSE);
        if soak.begun.elapsed() > time || !flows.iter().all(Steady::runs) {
            break;
        }
        soak.happen(event);
    }
    soak.wire.behave(Habits::default());
    let passed: Vec<_> = flows.into_iter().map(Steady::finish).collect();
    soak.was_express(time);
    for seen in To::BOTH.map(|to| soak.wire.seen(to)) {
        assert!(seen.lost * 1000 > (seen.express + seen.ordinary) * (BAD.lost - 15), "the path was too good: {seen:?}");
    }

    let kills = soak.happened.iter().filter(|happened| happened.is_kill());
    let dead: Duration = kills.map(|kill| kill.done - kill.begun + KILLED).sum();
    println!("{} events in {:?}", soak.happened.len(), soak.begun.elapsed());
    let mut too_long = Vec::new();
    for passed in &passed {
        too_long.extend(soak.judge(passed));
        assert_eq!(passed.twice, 0, "{}: the path's copies were taken", passed.name);
        // Beside what the path loses, only what is sent to a dead host.
        let lost = passed.sent - passed.received;
        let most = if passed.name.starts_with("tcp") { 0 } else { u64::from(RATE) * dead.as_secs() + passed.sent / 14 };
        assert!(lost <= most, "{}: {lost} of {} lost, {most} are explained", passed.name, passed.sent);
    }
    assert!(too_long.is_empty(), "{too_long:#?}");
    assert_eq!(soak.lab.home.peer("vps")["endpoint"], format!("{WEB}:{PORT}"), "it went around the path");
    wait_for_cipher(&soak.lab, EXPRESS, secs(5));
}

#[test]
fn a_switch_costs_nothing() {
    let time = secs(12);
    let mut soak = Soak::new();
    soak.wire.behave(GOOD);
    let flows = soak.flows(Some(RATE));
    soak.begun = Instant::now();
    for event in [Event::ToggleHome, Event::ToggleVps].into_iter().cycle() {
        std::thread::sleep(PAUSE);
        if soak.begun.elapsed() > time {
            break;
        }
        soak.happen(event);
    }
    let passed: Vec<_> = flows.into_iter().map(Steady::finish).collect();
    soak.was_express(time);
    for passed in &passed {
        soak.judge(passed);
        assert_eq!((passed.sent - passed.received, passed.twice, passed.late), (0, 0, 0), "{}", passed.name);
        let longest = passed.silences.iter().max_by_key(|silence| silence.length);
        let too_long = longest.filter(|silence| silence.length > AT_ONCE + passed.starved);
        assert_eq!(too_long.map(|silence| soak.describe(silence)), None, "{}", passed.name);
    }
}
