//! A host with its agent, its files and its `/run/wireguard`.

use std::fs;
use std::ops::Deref;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use meshd::key::PrivateKey;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::netns::Namespace;
use super::{root, secs, wait_for};

/// A host of the lab.
pub struct Host {
    /// As in `peers/`.
    pub name: &'static str,
    namespace: Namespace,
    dir: PathBuf,
    binary: PathBuf,
    environment: Vec<(&'static str, String)>,
}

impl Deref for Host {
    type Target = Namespace;

    fn deref(&self) -> &Namespace {
        &self.namespace
    }
}

impl Host {
    pub(super) fn new(name: &'static str, namespace: Namespace, dir: PathBuf, binary: &Path) -> Self {
        let holder = fs::read_to_string(dir.join("holder")).expect("the holder's process ID");
        let namespace = namespace.with_mounts_of(holder.trim().parse().expect("a process ID"));
        Self { name, namespace, dir, binary: binary.to_owned(), environment: Vec::new() }
    }

    /// Another host with the same binary.
    pub(super) fn beside(&self, name: &'static str, namespace: Namespace, dir: PathBuf) -> Self {
        Self::new(name, namespace, dir, &self.binary)
    }

    /// Makes it a member that knows the VPS only.
    pub(super) fn join(&self, key: &PrivateKey, addresses: &str) {
        self.write("meshd.toml", &format!("name = \"{}\"\naddresses = [{addresses}]\n", self.name));
        self.write("private.key", &key.expose_base64());
        fs::set_permissions(self.config("private.key"), fs::Permissions::from_mode(0o600)).expect("chmod");
        fs::copy(root().join("peers/vps.toml"), self.config("peers/vps.toml")).expect("a peer file");
    }

    /// Places this host's files of the worked example, and those of `peers`.
    pub(super) fn place(&self, peers: &[&str]) {
        let example = root().join("peers");
        let own = example.join(self.name);
        fs::copy(own.join("meshd.toml"), self.config("meshd.toml")).expect("meshd.toml");
        fs::copy(own.join("private.key"), self.config("private.key")).expect("private.key");
        fs::set_permissions(self.config("private.key"), fs::Permissions::from_mode(0o600)).expect("chmod");
        for peer in peers {
            let file = format!("{peer}.toml");
            fs::copy(example.join(&file), self.config("peers").join(&file)).expect("a peer file");
        }
    }

    /// A file in the configuration folder.
    pub fn config(&self, file: &str) -> PathBuf {
        self.dir.join("etc").join(file)
    }

    /// A file in the run folder.
    pub fn run_file(&self, file: &str) -> PathBuf {
        self.dir.join("run").join(file)
    }

    /// A file in the state folder.
    pub fn state_file(&self, file: &str) -> PathBuf {
        self.dir.join("state").join(file)
    }

    /// A file of the configuration as text.
    pub fn read(&self, file: &str) -> String {
        let path = self.config(file);
        fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    }

    /// Writes a file of the configuration.
    pub fn write(&self, file: &str, text: &str) {
        fs::write(self.config(file), text).expect("write");
    }

    /// Appends a line to a file of the configuration; returns its number.
    pub fn append(&self, file: &str, line: &str) -> usize {
        let text = format!("{}{line}\n", self.read(file));
        self.write(file, &text);
        text.lines().count()
    }

    /// Replaces `from`, which must be there, in a file of the configuration.
    pub fn replace(&self, file: &str, from: &str, to: &str) {
        let text = self.read(file);
        assert!(text.contains(from), "{file} has no {from:?}");
        self.write(file, &text.replace(from, to));
    }

    /// Sets a variable for meshd on this host, from the next start on.
    pub fn set_environment(&mut self, name: &'static str, value: &str) {
        self.environment.push((name, value.to_owned()));
    }

    /// A subcommand of meshd on this host's folders, yet to be started.
    pub fn meshd_command(&self, args: &[&str]) -> Command {
        let mut command = self.command(&self.binary);
        command
            .args(args)
            .env("MESHD_DIR", self.dir.join("etc"))
            .env("MESHD_RUN_DIR", self.dir.join("run"))
            .env("MESHD_STATE_DIR", self.dir.join("state"))
            .env_remove("RUST_LOG")
            .envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    /// A subcommand of meshd that a shell starts: `script` runs `"$0" "$@"`.
    pub fn meshd_through(&self, script: &str, args: &[&str]) -> Command {
        let meshd = self.meshd_command(args);
        let mut command = self.command("sh");
        command.args(["-c", script]).arg(meshd.get_program()).args(args);
        command.envs(meshd.get_envs().filter_map(|(name, value)| Some((name, value?))));
        command
    }

    /// Runs a subcommand of meshd to its end.
    pub fn try_meshd(&self, args: &[&str]) -> Output {
        self.meshd_command(args).output().expect("meshd")
    }

    /// Runs a subcommand of meshd, which must succeed; returns its standard output.
    pub fn meshd(&self, args: &[&str]) -> String {
        let output = self.try_meshd(args);
        assert!(output.status.success(), "{}$ meshd {}\n{}", self.name, args.join(" "), describe(&output));
        String::from_utf8(output.stdout).expect("text")
    }

    /// Runs a subcommand of meshd, which must end with this exit code; returns its standard error.
    pub fn meshd_fails(&self, code: i32, args: &[&str]) -> String {
        let output = self.try_meshd(args);
        let what = format!("{}$ meshd {}\n{}", self.name, args.join(" "), describe(&output));
        assert_eq!(output.status.code(), Some(code), "{what}");
        let stderr = String::from_utf8(output.stderr).expect("text");
        assert!(stderr.starts_with("meshd: "), "an error reads `meshd: what: why`: {what}");
        stderr
    }

    /// `meshd up --detach`.
    pub fn up(&self) {
        self.meshd(&["up", "--detach"]);
    }

    /// `meshd down`.
    pub fn down(&self) {
        self.meshd(&["down"]);
    }

    /// `meshd status --json`.
    pub fn status(&self) -> Value {
        serde_json::from_str(&self.meshd(&["status", "--json"])).expect("JSON")
    }

    /// One peer of [`Self::status`].
    pub fn peer(&self, name: &str) -> Value {
        let status = self.status();
        let peers = status["peers"].as_array().expect("peers");
        peers.iter().find(|peer| peer["name"] == name).unwrap_or_else(|| panic!("no peer {name} in {status}")).clone()
    }

    /// The agent's process; `None` when there is none.
    pub fn agent(&self) -> Option<Pid> {
        let own = fs::metadata(format!("/run/netns/{}", self.namespace.name())).expect("namespace");
        let inode = std::os::unix::fs::MetadataExt::ino(&own);
        let link = format!("net:[{inode}]");
        // Of a process that was killed the first thread may be gone, and with it its links, while others still hold files.
        let here =
            |thread: fs::DirEntry| fs::read_link(thread.path().join("ns/net")).is_ok_and(|at| at == Path::new(&link));
        fs::read_dir("/proc").expect("/proc").flatten().find_map(|entry| {
            let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
            let meshd = fs::read_to_string(entry.path().join("comm")).ok()?.trim() == "meshd";
            (meshd && fs::read_dir(entry.path().join("task")).ok()?.flatten().any(here)).then_some(Pid::from_raw(pid))
        })
    }

    /// Sends the running agent a signal.
    pub fn signal(&self, signal: Signal) {
        kill(self.agent().expect("a running agent"), signal).expect("kill");
    }

    /// Ends the agent by a signal and waits until its process is gone.
    pub fn end(&self, signal: Signal) {
        self.signal(signal);
        wait_for(format!("{signal} ends the agent"), secs(5), || self.agent().is_none().then_some(()));
    }

    /// Resident memory of the running agent, in MiB.
    pub fn resident(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.agent().expect("a running agent")));
        let status = status.expect("a process");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
        line.split_whitespace().next().and_then(|kib| kib.parse::<u64>().ok()).expect("KiB") >> 10
    }

    /// One of the agent's threads.
    pub fn thread(&self, name: &str) -> Pid {
        let tasks = format!("/proc/{}/task", self.agent().expect("a running agent"));
        let thread = fs::read_dir(tasks)
            .expect("a process")
            .flatten()
            .find(|task| fs::read_to_string(task.path().join("comm")).is_ok_and(|comm| comm.trim_end() == name));
        let number = thread.and_then(|task| task.file_name().to_str()?.parse().ok());
        Pid::from_raw(number.unwrap_or_else(|| panic!("no thread {name}")))
    }

    /// Processor time of one of the agent's threads so far.
    pub fn thread_time(&self, name: &str) -> Duration {
        let tasks = format!("/proc/{}/task", self.agent().expect("a running agent"));
        let ticks = fs::read_dir(tasks).expect("a process").flatten().find_map(|task| {
            let stat = fs::read_to_string(task.path().join("stat")).ok()?;
            let (comm, rest) = stat.split_once('(')?.1.rsplit_once(')')?;
            // utime and stime, fields 14 and 15 of proc_pid_stat(5), in ticks of 10 ms.
            let fields = rest.split_whitespace().skip(11).take(2);
            (comm == name).then(|| fields.filter_map(|field| field.parse::<u64>().ok()).sum::<u64>())
        });
        Duration::from_millis(10 * ticks.unwrap_or_else(|| panic!("no thread {name}")))
    }

    /// What the detached agent logged.
    pub fn log(&self) -> String {
        fs::read(self.run_file("meshd.log")).map(|log| String::from_utf8_lossy(&log).into_owned()).unwrap_or_default()
    }

    /// Shows the end of the log of a test that fails.
    pub(super) fn print_log(&self) {
        let log = self.log();
        let lines: Vec<_> = log.lines().collect();
        let tail = lines[lines.len().saturating_sub(40)..].join("\n");
        eprintln!("── {} logged last ──\n{tail}", self.name);
    }

    /// This host's public key, by wg(8).
    pub fn public_key(&self) -> String {
        self.run(&format!("wg pubkey <{}", self.config("private.key").display())).trim().to_owned()
    }

    /// One column of `wg show mesh0 WHAT` for each peer, by public key.
    pub fn wg_show(&self, what: &str) -> std::collections::BTreeMap<String, Vec<String>> {
        let text = self.run(&format!("wg show mesh0 {what}"));
        text.lines()
            .map(|line| {
                let mut words = line.split_whitespace().map(str::to_owned);
                (words.next().expect("a key"), words.collect())
            })
            .collect()
    }
}

/// Both streams and the status, for a failed test.
pub fn describe(output: &Output) -> String {
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    format!("{stdout}{stderr}{}", output.status)
}
