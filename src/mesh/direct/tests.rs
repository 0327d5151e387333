//! Two sides on a clock that the test moves, each behind a router that lets in only answers, over a network that loses,
//! delays and reorders.

use proptest::prelude::*;

use super::*;

const STEP: Duration = Duration::from_millis(10);

#[derive(Clone, Copy)]
enum Packet {
    Initiation,
    Response,
    Check(Check),
    /// The relay's word, which is never lost: it is repeated until it arrives.
    Told,
    Refused,
}

struct World {
    now: Instant,
    ways: [Direct; 2],
    /// What each uses, as `Act::Use` said.
    direct: [bool; 2],
    /// When each changed it.
    changes: [Vec<(Instant, bool)>; 2],
    flying: Vec<(Instant, usize, Packet)>,
    /// Whether the way from each side is cut.
    cut: [bool; 2],
    /// Routers that choose another port for each destination: nobody can tell where to send.
    symmetric: bool,
    relay: bool,
    /// Each has sent something: its router lets the other in.
    opened: [bool; 2],
    session: bool,
    calls: usize,
    meetings: usize,
    loss: u8,
    jitter: u64,
    dice: u64,
}

impl World {
    fn new() -> Self {
        let now = Instant::now();
        Self {
            now,
            ways: [Direct::new(1, now), Direct::new(2, now)],
            direct: [false; 2],
            changes: [const { Vec::new() }; 2],
            flying: Vec::new(),
            cut: [false; 2],
            symmetric: false,
            relay: true,
            opened: [false; 2],
            session: false,
            calls: 0,
            meetings: 0,
            loss: 0,
            jitter: 0,
            dice: 0x9e37_79b9_7f4a_7c15,
        }
    }

    /// The same numbers in every run.
    fn dice(&mut self, below: u64) -> u64 {
        self.dice ^= self.dice << 13;
        self.dice ^= self.dice >> 7;
        self.dice ^= self.dice << 17;
        self.dice % below.max(1)
    }

    fn address(side: usize) -> SocketAddr {
        ([198, 51, 100, side as u8], 51820).into()
    }

    fn send(&mut self, from: usize, packet: Packet) {
        self.opened[from] = true;
        let (lost, delay) = (self.dice(100) < self.loss.into(), 20 + self.dice(self.jitter + 1));
        if !lost && !self.cut[from] && !self.symmetric && self.opened[1 - from] {
            self.flying.push((self.now + Duration::from_millis(delay), 1 - from, packet));
        }
    }

    fn carry_out(&mut self, side: usize, acts: Vec<Act>) {
        for act in acts {
            match act {
                Act::Meet => {
                    self.meetings += 1;
                    let tell = |after, to, packet| (self.now + Duration::from_millis(after), to, packet);
                    let told = if self.relay {
                        vec![tell(20, 1 - side, Packet::Told), tell(60, side, Packet::Told)]
                    } else {
                        vec![tell(6000, side, Packet::Refused)]
                    };
                    self.flying.extend(told);
                }
                Act::Call(at) => {
                    assert_eq!(at, [Self::address(1 - side)]);
                    self.calls += 1;
                    self.send(side, Packet::Initiation);
                }
                // Without a session nothing is sent.
                Act::Check(check) if self.session => self.send(side, Packet::Check(check)),
                Act::Check(_) => {}
                Act::Use(direct) => {
                    assert_ne!(self.direct[side], direct, "a change");
                    self.direct[side] = direct;
                    self.changes[side].push((self.now, direct));
                }
            }
        }
    }

    fn run(&mut self, seconds: u64) {
        self.run_until(seconds, |_| false);
    }

    /// Until this holds, for so many seconds at most; how long it took.
    fn run_until(&mut self, seconds: u64, reached: impl Fn(&Self) -> bool) -> Duration {
        let begun = self.now;
        while self.now < begun + Duration::from_secs(seconds) && !reached(self) {
            self.now += STEP;
            while let Some(at) = self.flying.iter().position(|(due, ..)| *due <= self.now) {
                let (_, to, packet) = self.flying.swap_remove(at);
                self.arrive(to, packet);
            }
            for side in 0..2 {
                if self.ways[side].next_due() <= self.now {
                    let acts = self.ways[side].due(self.now);
                    self.carry_out(side, acts);
                    assert!(self.ways[side].next_due() > self.now, "{:?} would spin", self.ways[side]);
                }
            }
        }
        self.now - begun
    }

    fn arrive(&mut self, to: usize, packet: Packet) {
        let now = self.now;
        let acts = match packet {
            Packet::Initiation => {
                self.send(to, Packet::Response);
                Vec::new()
            }
            Packet::Response => {
                self.session = true;
                Vec::new()
            }
            Packet::Check(check) => self.ways[to].heard(&check, now),
            Packet::Told => self.ways[to].call(vec![Self::address(1 - to)], now),
            Packet::Refused => {
                self.ways[to].refused(now);
                Vec::new()
            }
        };
        self.carry_out(to, acts);
    }

    fn both(&self, direct: bool) -> bool {
        self.direct == [direct; 2]
    }

    fn found() -> Self {
        let mut world = Self::new();
        let took = world.run_until(10, |world| world.both(true));
        assert!(world.both(true) && took < Duration::from_secs(1), "{took:?}");
        world
    }
}

#[test]
fn routers_that_keep_a_port_are_opened_at_once_and_the_path_stays() {
    let mut world = World::found();
    world.run(3600);
    assert_eq!((world.changes[0].len(), world.changes[1].len()), (1, 1));
    assert!(world.calls <= 12, "{} initiations", world.calls);
}

#[test]
fn a_cut_in_either_direction_or_both_is_noticed_by_both_and_healing_too() {
    for cut in [[true, false], [false, true], [true, true]] {
        let mut world = World::found();
        world.run(40);
        world.cut = cut;
        let took = world.run_until(10, |world| world.both(false));
        assert!(took <= SILENCE + CHECK, "{cut:?}: {took:?}");
        world.run(20);
        assert!(world.both(false), "{cut:?}: {:?}", world.changes);
        world.cut = [false; 2];
        let took = world.run_until(100, |world| world.both(true));
        assert!(took < Duration::from_secs(25), "{cut:?}: {took:?}");
    }
}

#[test]
fn behind_symmetric_routers_it_is_tried_ever_more_rarely() {
    let mut world = World::new();
    world.symmetric = true;
    world.run(3600);
    assert!(world.both(false) && world.changes == [const { Vec::new() }; 2]);
    // Both sides ask, each once a minute at the rarest.
    assert!((50..=125).contains(&world.meetings), "{} meetings", world.meetings);
}

#[test]
fn without_a_relay_there_is_no_meeting_and_its_return_is_used_at_once() {
    let mut world = World::new();
    world.relay = false;
    world.run(300);
    assert!(world.both(false) && world.calls == 0);
    world.relay = true;
    let now = world.now;
    world.ways.iter_mut().for_each(|way| way.retry(now));
    let took = world.run_until(10, |world| world.both(true));
    // Both were asking just then, and hear first that it was in vain.
    assert!(took < Duration::from_secs(8), "{took:?}");
}

#[test]
fn a_restarted_side_is_noticed_before_it_is_silent() {
    let mut world = World::found();
    world.run(30);
    // Its session is gone too, and what the other sends directly is lost.
    (world.ways[1], world.direct[1], world.session) = (Direct::new(3, world.now), false, false);
    let took = world.run_until(5, |world| !world.direct[0]);
    assert!(took < Duration::from_millis(100), "the relay's call tells: {took:?}");
    let took = world.run_until(5, |world| world.both(true));
    assert!(took < Duration::from_secs(1), "{took:?}");
}

#[test]
fn checks_of_another_run_end_what_was_proven_to_the_one_before() {
    let mut world = World::found();
    world.run(10);
    let now = world.now;
    let stranger = Check { run: 9, n: 1, heard: None };
    let acts = world.ways[0].heard(&stranger, now);
    assert_eq!(acts[0], Act::Use(false));
    assert!(matches!(acts[1..], [Act::Check(Check { heard: Some((9, 1)), .. })]), "{acts:?}");
}

#[test]
fn a_call_that_crossed_the_finding_changes_nothing_and_a_later_one_does() {
    let mut world = World::found();
    let at = vec![World::address(1)];
    assert_eq!(world.ways[0].call(at.clone(), world.now), []);
    assert!(world.ways[0].is_direct());
    world.run(5);
    let acts = world.ways[0].call(at.clone(), world.now);
    assert_eq!(acts[..2], [Act::Use(false), Act::Call(at)]);
}

#[test]
fn proofs_are_of_checks_that_were_sent_lately() {
    let (mut way, now) = (Direct::new(1, Instant::now()), Instant::now());
    way.call(vec![World::address(1)], now);
    let of = |way: &mut Direct, n, heard, now| way.heard(&Check { run: 2, n, heard }, now).contains(&Act::Use(true));
    assert!(!of(&mut way, 1, None, now), "it does not hear us");
    assert!(!of(&mut way, 2, Some((1, 99)), now), "never sent");
    assert!(!of(&mut way, 3, Some((7, 1)), now), "sent by another");
    assert!(!of(&mut way, 4, Some((1, 1)), now + SILENCE), "too long ago");
    assert!(of(&mut way, 5, Some((1, 1)), now + SILENCE / 2));
    way.restart(now + SILENCE);
    assert!(!way.is_direct() && way.next_due() <= now + SILENCE, "another session: asks at once");
}

proptest! {
    /// Whatever is lost, late or overtaken: a path that is there is found, and one that is used was there a moment ago.
    #[test]
    fn loss_and_reordering(seed in 1u64.., loss in 0u8..30, jitter in 0u64..400) {
        let mut world = World::new();
        (world.dice, world.loss, world.jitter) = (seed, loss, jitter);
        world.run_until(180, |world| world.both(true));
        prop_assert!(world.both(true), "{:?}", world.changes);
        world.cut[(seed % 2) as usize] = true;
        let took = world.run_until(60, |world| world.both(false));
        // What was under way when it was cut may prove a little more.
        prop_assert!(took <= SILENCE + CHECK + Duration::from_secs(1), "{took:?} {:?}", world.changes);
        world.run(30);
        prop_assert!(world.both(false), "{:?}", world.changes);
        world.cut = [false; 2];
        world.run_until(300, |world| world.both(true));
        prop_assert!(world.both(true), "{:?}", world.changes);
    }
}
