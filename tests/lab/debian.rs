//! A small Debian in a folder, with the package of `scripts/package`, and booted by its own systemd.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use super::host::{Host, describe};
use super::{secs, wait_for};

/// What `scripts/test` has built.
pub fn package() -> PathBuf {
    let path =
        std::env::var_os("MESHD_DEB").map(PathBuf::from).expect("MESHD_DEB: run scripts/test, or scripts/package");
    assert!(path.is_file(), "{}", path.display());
    path
}

/// Runs a program, which must succeed; all that it says.
pub fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).env("LC_ALL", "C").output().expect(program);
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{program} {}: {}\n{said}", args.join(" "), output.status);
    said
}

/// Runs a program in control groups of its own (cgroups(7)): of version 2, or of systemd's tree in version 1.
const ENTER: &str = "for tree in /sys/fs/cgroup /sys/fs/cgroup/systemd /sys/fs/cgroup/unified; do
    [ -e $tree/cgroup.procs ] || continue
    mkdir $tree/$0
    echo $$ >$tree/$0/cgroup.procs
done
exec \"$@\"";

/// A small Debian in a folder.
pub struct Debian(tempfile::TempDir);

impl Debian {
    /// With these packages beside the least, each after a comma.
    pub fn new(more: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let os = fs::read_to_string("/etc/os-release").expect("/etc/os-release");
        let suite = os.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME=")).expect("a release of Debian");
        let (path, packages) = (folder.path().to_str().expect("text"), format!("netbase,nftables,systemd{more}"));
        run("debootstrap", &["--variant=minbase", &format!("--include={packages}"), suite, path]);
        Self(folder)
    }

    /// Where it is.
    pub fn root(&self) -> &Path {
        self.0.path()
    }

    /// A file of it.
    pub fn path(&self, path: &str) -> PathBuf {
        self.root().join(path.trim_start_matches('/'))
    }

    /// Runs a shell command line in it, in namespaces of its own, so that nothing of it outlives the line.
    pub fn run(&self, line: &str) -> String {
        let root = self.root().to_str().expect("text");
        let mounted = format!("mount -t proc proc /proc && {line}");
        run("unshare", &["--mount", "--pid", "--net", "--fork", "--kill-child", "chroot", root, "sh", "-euc", &mounted])
    }

    /// Installs the package.
    pub fn install(&self) {
        fs::copy(package(), self.path("/meshd.deb")).expect("copy");
        self.run("dpkg -i /meshd.deb && rm /meshd.deb");
    }

    /// Boots it in the network of a host of the lab.
    pub fn boot(&self, host: &Host) -> Booted {
        let log = fs::File::create(self.path("/console")).expect("a log");
        // Without systemd-machined, which this machine may not have.
        let child = Command::new("sh")
            .args([
                "-euc",
                ENTER,
                host.name(),
                "systemd-nspawn",
                "--quiet",
                "--boot",
                "--register=no",
                "--keep-unit",
                "--console=pipe",
            ])
            .arg("--bind=/dev/net/tun")
            .arg(format!("--directory={}", self.root().display()))
            .arg(format!("--network-namespace-path=/run/netns/{}", host.name()))
            .arg("--capability=CAP_NET_ADMIN,CAP_NET_RAW")
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("dup"))
            .stderr(log)
            .spawn();
        let booted = Booted { child: child.expect("sh"), group: host.name().to_owned() };
        wait_for("it has booted", secs(60), || {
            booted.first()?;
            let state = booted.try_run("systemctl is-system-running");
            ["running\n", "degraded\n"].contains(&&*String::from_utf8_lossy(&state.stdout)).then_some(())
        });
        booted
    }
}

/// A Debian that runs.
pub struct Booted {
    child: Child,
    group: String,
}

impl Booted {
    /// The number of its first process outside.
    fn first(&self) -> Option<String> {
        let path = format!("/proc/{0}/task/{0}/children", self.child.id());
        fs::read_to_string(path).ok()?.split_whitespace().next().map(str::to_owned)
    }

    /// Runs a shell command line in it, to its end.
    pub fn try_run(&self, line: &str) -> Output {
        let first = self.first().expect("it runs");
        let all = ["--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup"];
        Command::new("nsenter").args(["--target", &first]).args(all).args(["sh", "-c", line]).output().expect("nsenter")
    }

    /// The same, which must succeed; its standard output.
    pub fn run(&self, line: &str) -> String {
        let output = self.try_run(line);
        assert!(output.status.success(), "{line}\n{}", describe(&output));
        String::from_utf8(output.stdout).expect("text")
    }
}

impl Drop for Booted {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", describe(&self.try_run("journalctl --no-pager --unit meshd | tail -n 50")));
        }
        // All of its processes end with the first, and systemd-nspawn with that.
        if let Some(first) = self.first().and_then(|first| first.parse().ok()) {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(first), nix::sys::signal::Signal::SIGKILL);
        }
        let _ = self.child.wait();
        let left = "for tree in /sys/fs/cgroup /sys/fs/cgroup/systemd /sys/fs/cgroup/unified; do \
                    find $tree/$0 -depth -type d -exec rmdir {} + 2>/dev/null; done";
        let _ = Command::new("sh").args(["-c", left, &self.group]).status();
    }
}
