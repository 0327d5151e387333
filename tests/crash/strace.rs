//! Kills at system calls, by strace(1): it counts the calls of each thread by name, and sends SIGKILL before the N-th is made.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::lab::host::Host;
use crate::lab::{secs, wait_for};

/// Those that change something outside of the process, and some between them: netlink and answers, the TUN device,
/// processes, files and descriptors.
const CALLS: &str = "sendto,sendmsg,ioctl,write,writev,pwrite64,fsync,fdatasync,ftruncate,rename,renameat,renameat2,\
    unlink,unlinkat,mkdir,mkdirat,fchmod,fchmodat,fchownat,bind,clone,clone3,vfork,execve,openat,close";
/// Where something becomes durable: never left out.
const IMPORTANT: &[&str] = &["fsync", "rename", "renameat2"];

/// Before which call the agent is killed: the `n`th of this name in any one thread, nft(8)'s included.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Point {
    call: String,
    n: u32,
}

impl Point {
    /// Before the `n`th `call`.
    #[allow(dead_code, reason = "each test binary uses a part")]
    pub fn new(call: &str, n: u32) -> Self {
        Self { call: call.to_owned(), n }
    }
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.call, self.n)
    }
}

/// What strace does: count into a file, or kill.
pub enum Mode<'a> {
    Count(&'a Path),
    Kill(&'a Point),
}

impl Mode<'_> {
    fn arguments(&self) -> Vec<String> {
        let (calls, more, out) = match self {
            Self::Count(file) => (CALLS.to_owned(), None, file.display().to_string()),
            Self::Kill(Point { call, n }) => {
                (call.clone(), Some(format!("inject={call}:signal=KILL:when={n}")), "/dev/null".to_owned())
            }
        };
        let words = [
            "-f".to_owned(),
            "-I1".to_owned(),
            "-qq".to_owned(),
            "-o".to_owned(),
            out,
            "-e".to_owned(),
            format!("trace={calls}"),
        ];
        words.into_iter().chain(more.into_iter().flat_map(|more| ["-e".to_owned(), more])).collect()
    }
}

/// strace with the process that it follows.
pub struct Strace {
    child: Child,
    followed: Pid,
}

/// A command of meshd under strace.
pub fn around(host: &Host, args: &[&str], mode: &Mode) -> Strace {
    let meshd = host.meshd_command(args);
    let mut strace = host.command("strace");
    strace.envs(meshd.get_envs().filter_map(|(key, value)| Some((key, value?))));
    strace.args(mode.arguments()).arg(meshd.get_program()).args(args);
    let child = strace.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("strace");
    let children = format!("/proc/{0}/task/{0}/children", child.id());
    let followed = wait_for("strace starts meshd", secs(5), || {
        // It tries things out in other children first.
        let meshd = |pid: &&str| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm == "meshd\n");
        let text = fs::read_to_string(&children).unwrap_or_default();
        let found = text.split_whitespace().find(meshd).and_then(|pid| pid.parse().ok());
        // Both may have ended already.
        found.or(fs::read_link(format!("/proc/{}/exe", child.id())).is_err().then_some(i32::MAX))
    });
    Strace { child, followed: Pid::from_raw(followed) }
}

/// Attaches to the running agent.
pub fn attach(host: &Host, mode: &Mode) -> Strace {
    let followed = host.agent().expect("a running agent");
    let mut command = Command::new("strace");
    command.args(mode.arguments()).args(["-p", &followed.to_string()]);
    let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("strace");
    wait_for("strace attaches", secs(20), || {
        let status = fs::read_to_string(format!("/proc/{followed}/status")).unwrap_or_default();
        // Dead: the first thing that it did was what it is to be killed at.
        (!status.contains("TracerPid:\t0\n") || dead(followed)).then_some(())
    });
    Strace { child, followed }
}

impl Strace {
    /// Waits until an agent says that it is ready, or that it failed, or until it is dead; then lets go of it.
    pub fn ready(mut self, mode: &Mode) {
        let mut stdout = BufReader::new(self.child.stdout.take().expect("a pipe"));
        let (said, heard) = std::sync::mpsc::channel();
        // Not to be waited for: strace has the pipe too.
        std::thread::spawn(move || said.send(stdout.read_line(&mut String::new()).map(drop)));
        while heard.recv_timeout(Duration::from_millis(20)).is_err() && !self.dead() {}
        self.let_go(mode);
    }

    /// Lets go of what is followed, dead or alive.
    pub fn let_go(mut self, mode: &Mode) {
        match mode {
            // strace 6.1 sometimes waits for ever for threads of a process that it has killed, which keep the process's
            // files open as long as it lives. Not so when it dies.
            Mode::Kill(_) => self.child.kill().expect("strace"),
            // This one has something to write down.
            Mode::Count(_) => {
                kill(Pid::from_raw(i32::try_from(self.child.id()).expect("a process ID")), Signal::SIGINT)
                    .expect("kill");
            }
        }
        self.child.wait().expect("strace");
    }

    /// Waits for the end of what is followed.
    pub fn wait(mut self, mode: &Mode) {
        while self.child.try_wait().expect("strace").is_none() {
            if self.dead() && matches!(mode, Mode::Kill(_)) {
                return self.let_go(mode);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Whether what is followed has ended, though strace may hold the corpse.
    pub fn dead(&self) -> bool {
        dead(self.followed)
    }
}

/// Whether a process has ended, though somebody may hold the corpse.
fn dead(pid: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with(['Z', 'X']))
}

/// All points of what [`Mode::Count`] saw.
pub fn points(counted: &Path) -> Vec<Point> {
    let text = fs::read_to_string(counted).expect("what strace wrote");
    let mut counts: BTreeMap<(&str, &str), u32> = BTreeMap::new();
    for line in text.lines() {
        let Some((thread, rest)) = line.split_once(' ') else { continue };
        let Some((call, _)) = rest.trim_start().split_once('(') else { continue };
        if call.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
            *counts.entry((call, thread)).or_default() += 1;
        }
    }
    let mut most: BTreeMap<&str, u32> = BTreeMap::new();
    for ((call, _), count) in counts {
        let entry = most.entry(call).or_default();
        *entry = count.max(*entry);
    }
    most.iter().flat_map(|(call, &most)| (1..=most).map(|n| Point { call: (*call).to_owned(), n })).collect()
}

/// Those to be tried: `MESHD_CRASH=every`, one as it is named in a failure, or by default the important ones and about
/// `sample` of the others, with other ones each minute.
pub fn chosen(all: Vec<Point>, sample: usize) -> Vec<Point> {
    let wish = std::env::var("MESHD_CRASH").unwrap_or_default();
    if wish == "every" {
        return all;
    }
    if let Some((call, n)) = wish.split_once(':') {
        return vec![Point { call: call.to_owned(), n: n.parse().expect("MESHD_CRASH=CALL:N") }];
    }
    let important = |point: &Point| IMPORTANT.contains(&point.call.as_str());
    let (important, others): (Vec<_>, Vec<_>) = all.into_iter().partition(important);
    let stride = others.len() / sample + 1;
    let minute = std::time::UNIX_EPOCH.elapsed().map_or(0, |elapsed| elapsed.as_secs() / 60);
    let offset = usize::try_from(minute).unwrap_or_default() % stride;
    important.into_iter().chain(others.into_iter().skip(offset).step_by(stride)).collect()
}
