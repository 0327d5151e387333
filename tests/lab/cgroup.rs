//! A control group with limits, of version 2 or 1, whichever has the controllers on this machine.

use std::fs;
use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::host::{Host, describe};
use super::wait_for;

const ROOT: &str = "/sys/fs/cgroup";

/// Dropped after what runs in it.
pub struct Cgroup {
    /// One folder; in version 1 one for each controller.
    folders: Vec<PathBuf>,
    unified: bool,
}

impl Cgroup {
    /// Limits as systemd's MemoryMax (bytes) and CPUQuota (percent of one CPU).
    pub fn new(memory: u64, cpu: Option<u32>) -> Self {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let name = format!("meshd-test-{}-{}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed));
        let controllers = fs::read_to_string(Path::new(ROOT).join("cgroup.controllers")).unwrap_or_default();
        let unified = controllers.split_whitespace().any(|controller| controller == "memory");
        let parents = if unified { vec![PathBuf::from(ROOT)] } else { ["memory", "cpu"].map(own).to_vec() };
        if unified {
            set(&parents[0], "cgroup.subtree_control", "+memory +cpu");
        }
        let folders: Vec<_> = parents.iter().map(|parent| parent.join(&name)).collect();
        for folder in &folders {
            fs::create_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        }
        let group = Self { folders, unified };
        let last = group.folders.last().expect("a folder");
        set(&group.folders[0], if unified { "memory.max" } else { "memory.limit_in_bytes" }, &memory.to_string());
        if let Some(percent) = cpu {
            let quota = percent * 1000;
            if unified {
                set(last, "cpu.max", &format!("{quota} 100000"));
            } else {
                set(last, "cpu.cfs_period_us", "100000");
                set(last, "cpu.cfs_quota_us", &quota.to_string());
            }
        }
        group
    }

    /// `meshd up --detach` in it.
    pub fn up(&self, host: &Host) {
        let open = |folder: &PathBuf| fs::File::options().write(true).open(folder.join("cgroup.procs")).expect("open");
        let members: Vec<_> = self.folders.iter().map(open).collect();
        let mut command = host.meshd_command(&["up", "--detach"]);
        // SAFETY: between fork and exec only write(2) is called, which takes no lock and allocates nothing.
        unsafe {
            // Zero is whoever writes it.
            command.pre_exec(move || members.iter().try_for_each(|mut member| member.write_all(b"0")));
        }
        let output = command.output().expect("meshd");
        assert!(output.status.success(), "{}", describe(&output));
    }

    /// The most memory that was in use, in MiB.
    pub fn peak(&self) -> u64 {
        let file = if self.unified { "memory.peak" } else { "memory.max_usage_in_bytes" };
        self.number(file, "") >> 20
    }

    /// How many processes were killed for want of memory.
    pub fn killed(&self) -> u64 {
        self.number(if self.unified { "memory.events" } else { "memory.oom_control" }, "oom_kill ")
    }

    /// How often the quota of processor time was used up.
    pub fn throttled(&self) -> u64 {
        let folder = self.folders.last().expect("a folder");
        number(&folder.join("cpu.stat"), "nr_throttled ")
    }

    fn number(&self, file: &str, key: &str) -> u64 {
        number(&self.folders[0].join(file), key)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        for folder in &self.folders {
            // Its last process may be about to end.
            wait_for("the control group is empty", Duration::from_secs(5), || fs::remove_dir(folder).ok());
        }
    }
}

/// This process's own group of a controller of version 1.
fn own(controller: &str) -> PathBuf {
    let groups = fs::read_to_string("/proc/self/cgroup").expect("/proc/self/cgroup");
    let path = groups.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        parts.next()?.split(',').any(|name| name == controller).then(|| parts.next().map(str::to_owned))?
    });
    let path = path.unwrap_or_else(|| panic!("no controller {controller}"));
    let whole = Path::new(ROOT).join(controller).join(path.trim_start_matches('/'));
    // In a container the path may be that of the host.
    if whole.exists() { whole } else { Path::new(ROOT).join(controller) }
}

fn set(folder: &Path, file: &str, value: &str) {
    let path = folder.join(file);
    fs::write(&path, value).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}

/// The number behind `key` at the start of a line.
fn number(path: &Path, key: &str) -> u64 {
    let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let value = text.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_else(|| panic!("{key}: {text}"));
    value.trim().parse().unwrap_or_else(|error| panic!("{value}: {error}"))
}
