//! Who keeps taking away what is put back.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use super::News;
use crate::plan::Change;

/// What is counted, and between two lines in the log about one kind of thing.
const WINDOW: Duration = Duration::from_secs(60);
/// A firewall that reloads takes its chains away one after the other: that counts as once.
const RELOAD: Duration = Duration::from_secs(5);
/// So often within the window is no accident.
const OFTEN: usize = 3;

/// Counts what had to be put back, by kind: what is flushed together is one event.
#[derive(Debug, Default)]
pub struct Rivals {
    kinds: BTreeMap<&'static str, Fight>,
}

#[derive(Debug, Default)]
struct Fight {
    times: VecDeque<Instant>,
    last: String,
    /// By name; of a program that is run again and again the newest process is enough.
    by: BTreeMap<Option<String>, u32>,
    told: Option<Instant>,
}

impl Rivals {
    /// Takes what one reconciliation changed. Returns what is worth a line in the log: each change while it is rare, then a
    /// summary once a minute.
    pub fn note(&mut self, changes: &[Change], news: &News, now: Instant) -> Vec<String> {
        let mut lines = Vec::new();
        let added = |change: &&Change| change.action() == "add";
        let kinds: BTreeSet<_> = changes.iter().filter(added).map(Change::kind).collect();
        for &kind in &kinds {
            let fight = self.kinds.entry(kind).or_default();
            fight.forget(now);
            let same = kind == "firewall" && fight.times.back().is_some_and(|last| now.duration_since(*last) < RELOAD);
            if !same {
                fight.times.push_back(now);
            }
            fight.last = changes.iter().rfind(|change| change.kind() == kind).map(Change::summary).unwrap_or_default();
            fight.by.extend(news.by(kind).map(|actor| (actor.name.clone(), actor.pid)));
            if fight.often() && fight.told.is_none_or(|told| now - told >= WINDOW) {
                fight.told = Some(now);
                lines.push(fight.describe(kind));
            }
        }
        let rare = |change: &&Change| !self.kinds.get(change.kind()).is_some_and(Fight::often);
        lines.extend(
            changes
                .iter()
                .filter(rare)
                .map(|change| format!("the kernel differed from the plan; brought back: {}", change.summary())),
        );
        lines
    }

    /// What goes on at this moment.
    pub fn warnings(&mut self, now: Instant) -> Vec<String> {
        self.kinds.values_mut().for_each(|fight| fight.forget(now));
        self.kinds.iter().filter(|(_, fight)| fight.often()).map(|(kind, fight)| fight.describe(kind)).collect()
    }
}

impl Fight {
    fn forget(&mut self, now: Instant) {
        while self.times.front().is_some_and(|time| now.duration_since(*time) >= WINDOW) {
            self.times.pop_front();
        }
        if self.times.is_empty() {
            self.by.clear();
        }
    }

    fn often(&self) -> bool {
        self.times.len() >= OFTEN
    }

    fn describe(&self, kind: &str) -> String {
        let what = match kind {
            "guard" => "the nft guard",
            "nft" => "the nft table",
            "link" => "the tunnel's interface",
            "address" => "addresses",
            "route" => "routes",
            "rule" => "rules",
            "firewall" => "exceptions in other firewalls",
            _ => "sysctls",
        };
        let by = |(name, pid): (&Option<String>, &u32)| super::Actor { name: name.clone(), pid: *pid }.to_string();
        let mut by: Vec<String> = self.by.iter().map(by).collect();
        // Names first.
        by.reverse();
        let by = if by.is_empty() { "the kernel does not say by whom".to_owned() } else { by.join(", ") };
        let (times, last) = (self.times.len(), &self.last);
        format!("{what} had to be put back {times} times in the last minute, last: {last}; changed by: {by}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Family, Rule, Selector, SysctlKey};

    fn theft() -> Vec<Change> {
        let rule = |family| Rule { priority: 88, family, selector: Selector::Iif("br0".to_owned()), table: 7 };
        vec![Change::AddRule(rule(Family::V4)), Change::AddRule(rule(Family::V6))]
    }

    #[test]
    fn what_is_taken_again_and_again_is_told_once_a_minute_with_who_does_it() {
        let (mut rivals, start) = (Rivals::default(), Instant::now());
        let mut news = News::default();
        news.add("rule", Some("systemd-network"), 612);
        let mut lines = Vec::new();
        for n in 0..300 {
            lines.push(rivals.note(&theft(), &news, start + Duration::from_millis(n * 500)));
        }
        assert_eq!(lines[0].len(), 2, "a rare change is a line of its own: {:?}", lines[0]);
        assert_eq!(
            lines[2],
            ["rules had to be put back 3 times in the last minute, last: ip -6 rule add pref 88 iif br0 lookup 7 \
              protocol kernel; changed by: systemd-network (pid 612)"]
        );
        assert_eq!(lines[2..].iter().map(Vec::len).sum::<usize>(), 3, "two and a half minutes");
        let end = start + Duration::from_secs(150);
        assert_eq!(rivals.warnings(end).len(), 1);
        assert_eq!(rivals.warnings(end + WINDOW), [""; 0]);
        assert!(rivals.kinds["rule"].by.is_empty());
    }

    #[test]
    fn who_is_not_known_is_said_to_be_unknown() {
        let mut rivals = Rivals::default();
        let key = SysctlKey::new(Family::V4, "br0", "forwarding");
        let change = [Change::SetSysctl { key, value: "1".to_owned() }];
        for _ in 0..OFTEN {
            rivals.note(&change, &News::default(), Instant::now());
        }
        let warnings = rivals.warnings(Instant::now());
        assert!(warnings[0].ends_with("br0.forwarding=1; changed by: the kernel does not say by whom"), "{warnings:?}");
    }
}
