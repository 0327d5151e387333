//! What the CPUs were busy with, as proc(5) tells it.

use std::collections::HashMap;
use std::fs;
use std::time::{Duration, Instant};

use crate::bench::Cpu;

/// The counters of one moment.
#[derive(Debug)]
pub struct CpuUsage {
    at: Instant,
    /// Of each thread of this process.
    threads: HashMap<String, Thread>,
    /// Ticks of all CPUs since the boot: busy, and all.
    machine: (u64, u64),
}

#[derive(Debug, Clone, Copy, Default)]
struct Thread {
    ran: Duration,
    /// Ready, but another had the CPU.
    waited: Duration,
}

impl CpuUsage {
    /// Reads them. What the kernel does not tell is zero.
    pub fn now() -> Self {
        let mut threads = HashMap::new();
        for entry in fs::read_dir("/proc/self/task").into_iter().flatten().flatten() {
            if let Some(thread) = fs::read_to_string(entry.path().join("schedstat")).ok().and_then(|t| thread(&t)) {
                threads.insert(entry.file_name().to_string_lossy().into_owned(), thread);
            }
        }
        let machine = fs::read_to_string("/proc/stat").ok().and_then(|stat| machine(&stat)).unwrap_or_default();
        Self { at: Instant::now(), threads, machine }
    }

    /// What happened since an earlier moment. Threads that ended in between are not seen.
    #[allow(clippy::cast_precision_loss, reason = "parts of a whole, to be shown")]
    pub fn since(&self, earlier: &Self) -> Cpu {
        let elapsed = self.at.duration_since(earlier.at).max(Duration::from_micros(1));
        let (mut ran, mut busiest) = (Duration::ZERO, Duration::ZERO);
        for (id, thread) in &self.threads {
            let before = earlier.threads.get(id).copied().unwrap_or_default();
            let own = thread.ran.saturating_sub(before.ran);
            ran += own;
            busiest = busiest.max(own + thread.waited.saturating_sub(before.waited));
        }
        let ticks = |of: fn(&(u64, u64)) -> u64| of(&self.machine).saturating_sub(of(&earlier.machine)) as f64;
        Cpu {
            agent: rounded(ran.div_duration_f64(elapsed)),
            thread: rounded(busiest.div_duration_f64(elapsed).min(1.0)),
            machine: rounded(ticks(|ticks| ticks.0) / ticks(|ticks| ticks.1).max(1.0)),
        }
    }
}

/// More digits would say nothing.
fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

/// `/proc/PID/task/TID/schedstat`: nanoseconds on a CPU, and waiting for one.
fn thread(schedstat: &str) -> Option<Thread> {
    let mut words = schedstat.split_whitespace().map(|word| word.parse().map(Duration::from_nanos));
    Some(Thread { ran: words.next()?.ok()?, waited: words.next()?.ok()? })
}

/// The first line of `/proc/stat`: user, nice, system, idle, iowait, irq, softirq, steal, and what is counted twice.
fn machine(stat: &str) -> Option<(u64, u64)> {
    let words = stat.lines().next()?.strip_prefix("cpu ")?.split_whitespace();
    let ticks: Vec<u64> = words.take(8).map_while(|word| word.parse().ok()).collect();
    let (idle, all) = (ticks.get(3)? + ticks.get(4)?, ticks.iter().sum::<u64>());
    Some((all - idle, all))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_read_as_proc_writes_them() {
        let thread = thread("1500000000 250000000 17\n").unwrap();
        assert_eq!((thread.ran, thread.waited), (Duration::from_millis(1500), Duration::from_millis(250)));
        assert_eq!(machine("cpu  10 1 20 60 5 1 2 1 7 0\ncpu0 1\n"), Some((35, 100)));
        assert_eq!(machine("intr 1"), None);
    }

    #[test]
    fn a_busy_thread_shows() {
        let before = CpuUsage::now();
        let until = Instant::now() + Duration::from_millis(200);
        while Instant::now() < until {
            std::hint::spin_loop();
        }
        let cpu = CpuUsage::now().since(&before);
        assert!(cpu.thread > 0.8 && cpu.agent > 0.1 && cpu.machine > 0.0, "{cpu:?}");
    }
}
