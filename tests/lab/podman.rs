//! A user of a host with rootless Podman, as after a login: a home, a runtime directory, and no rights beside their own.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use super::host::{Host, describe};
use super::netns::Namespace;
use super::{Lab, root, secs, wait_for};

/// A user without a name in /etc/passwd, whom no other lab has. Whatever they run ends when this is dropped.
pub struct User {
    uid: u32,
    home: PathBuf,
    run_dir: PathBuf,
    meshd: PathBuf,
    /// The host's, without its mounts: ip-netns(8) mounts another /sys there, which has no control groups.
    network: Namespace,
}

impl User {
    /// One more on a host; they differ in the number, from 0 to 3.
    pub fn new(lab: &Lab, host: &Host, number: u32) -> Self {
        let uid = Self::uid_in(lab, number);
        let user = Self {
            uid,
            home: lab.path(&format!("user-{uid}")),
            run_dir: host.run_file(""),
            meshd: lab.path("meshd"),
            network: Namespace::open(&lab.topology.namespace(host.name)),
        };
        for folder in [lab.path(""), lab.path(host.name)] {
            fs::set_permissions(folder, PermissionsExt::from_mode(0o755)).expect("chmod");
        }
        if !user.meshd.exists() {
            fs::copy(env!("CARGO_BIN_EXE_meshd"), &user.meshd).expect("the binary");
        }
        for folder in ["", "run", ".config", ".config/containers", ".config/containers/containers.conf.d"] {
            user.make_folder(folder);
        }
        // What Podman takes where there is neither systemd nor crun.
        let settings = "[containers]\nlog_driver = \"k8s-file\"\n\
                        [engine]\nruntime = \"runc\"\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"file\"\n";
        user.write(".config/containers/containers.conf", settings);
        user
    }

    /// Numbers that neither people nor containers have (systemd's UIDS-GIDS.md; what SSSD makes of directories ends below), by which
    /// `topology.sh sweep` knows the process that owns the lab, too.
    fn uid_in(lab: &Lab, number: u32) -> u32 {
        let (pid, count) = lab.topology.id.split_once("-t").expect("PID-tCOUNT");
        let [pid, count]: [u32; 2] = [pid, count].map(|word| word.parse().expect("a number"));
        // A process number has 22 bits.
        2_010_000_000 + (pid << 5 | (count & 7) << 2 | number & 3)
    }

    /// What grants them containers on a bridge of theirs, for `meshd.toml`.
    pub fn uid(&self) -> u32 {
        self.uid
    }

    /// A file of theirs.
    pub fn file(&self, name: &str) -> PathBuf {
        self.home.join(name)
    }

    /// Writes one.
    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.file(name);
        fs::write(&path, text).expect("write");
        chown(&path, Some(self.uid), Some(self.uid)).expect("chown");
        path
    }

    /// Makes a folder of theirs.
    pub fn make_folder(&self, name: &str) {
        let path = self.file(name);
        fs::create_dir(&path).expect("a folder");
        fs::set_permissions(&path, PermissionsExt::from_mode(0o700)).expect("chmod");
        chown(&path, Some(self.uid), Some(self.uid)).expect("chown");
    }

    /// Puts the hook of `deploy/` where this user's Podman is told to find it by the file of the worked example.
    pub fn install_hook(&self) {
        let hook = fs::read_to_string(root().join("deploy/hooks.d/meshd.json")).expect("the hook");
        let folder = format!("\"--oci-hook\", \"--run-dir\", \"{}\"", self.run_dir.display());
        let placed = substitute(&hook, "/usr/bin/meshd", &self.meshd.display().to_string());
        self.make_folder("hooks.d");
        self.write("hooks.d/meshd.json", &substitute(&placed, "\"--oci-hook\"", &folder));
        let settings = fs::read_to_string(root().join("examples/selfhosted/containers.conf")).expect("a file");
        let settings = substitute(&settings, "/usr/share/meshd/hooks.d", &self.file("hooks.d").display().to_string());
        self.write(".config/containers/containers.conf.d/meshd.conf", &settings);
    }

    /// A program that they will run on the host.
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        self.command_after(&[], program)
    }

    /// The same, when these words, run by root, have done what they do first.
    pub fn command_after(&self, first: &[&str], program: impl AsRef<Path>) -> Command {
        let uid = self.uid.to_string();
        let words = [first, &["setpriv", "--reuid", &uid, "--regid", &uid, "--clear-groups"]].concat();
        let mut command = self.network.command(words[0]);
        command.args(&words[1..]).arg(program.as_ref());
        command.env_clear().env("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin");
        command.env("HOME", &self.home).env("XDG_RUNTIME_DIR", self.file("run")).env("MESHD_RUN_DIR", &self.run_dir);
        command
    }

    /// Their copy of meshd.
    pub fn program(&self) -> &Path {
        &self.meshd
    }

    /// Runs podman(1) to its end.
    pub fn try_podman(&self, args: &[&str]) -> Output {
        self.command("podman").args(args).output().expect("podman")
    }

    /// The same, which must succeed; its standard output.
    pub fn podman(&self, args: &[&str]) -> String {
        let output = self.try_podman(args);
        assert!(output.status.success(), "uid {}$ podman {}\n{}", self.uid, args.join(" "), describe(&output));
        String::from_utf8(output.stdout).expect("text")
    }

    /// Starts a container without a network, with a private root filesystem of busybox and curl.
    pub fn start(&self, name: &str, more: &[&str], command: &[&str]) -> Output {
        let folder = self.file(&format!("root-{name}"));
        if !folder.exists() {
            make_root(&folder, &["busybox", "curl"], self.uid);
        }
        let folder = folder.display().to_string();
        let fixed = ["run", "--detach", "--name", name, "--network", "none"];
        self.try_podman(&[&fixed[..], more, &["--rootfs", &folder], command].concat())
    }

    /// Runs meshd to its end.
    pub fn try_meshd(&self, args: &[&str]) -> Output {
        self.command(&self.meshd).args(args).output().expect("meshd")
    }

    /// The same, which must succeed; its standard output.
    pub fn meshd(&self, args: &[&str]) -> String {
        let output = self.try_meshd(args);
        assert!(output.status.success(), "uid {}$ meshd {}\n{}", self.uid, args.join(" "), describe(&output));
        String::from_utf8(output.stdout).expect("text")
    }

    /// The network of a container that runs.
    pub fn container(&self, name: &str) -> Namespace {
        let pid = self.podman(&["inspect", "--format", "{{.State.Pid}}", name]);
        Namespace::open(Path::new(&format!("/proc/{}/ns/net", pid.trim())))
    }
}

impl Drop for User {
    fn drop(&mut self) {
        // The signal goes to all that this number may send it to, which is all that runs under it.
        let _ = self.command("sh").args(["-c", "kill -KILL -1"]).status();
        if !std::thread::panicking() {
            wait_for(format!("all of uid {} has ended", self.uid), secs(5), || {
                (!runs_anything(self.uid)).then_some(())
            });
        }
    }
}

/// Replaces what must be there.
pub fn substitute(text: &str, from: &str, to: &str) -> String {
    assert!(text.contains(from), "no {from:?} in:\n{text}");
    text.replace(from, to)
}

fn runs_anything(uid: u32) -> bool {
    let line = format!("Uid:\t{uid}\t");
    fs::read_dir("/proc").expect("/proc").flatten().any(|entry| {
        let status = fs::read_to_string(entry.path().join("status")).unwrap_or_default();
        status.contains(&line) && !status.contains("State:\tZ")
    })
}

/// Makes a root filesystem of programs of this machine with the libraries that they need; busybox under all of its names.
pub fn make_root(folder: &Path, programs: &[&str], owner: u32) {
    for name in ["bin", "dev", "etc", "proc", "run", "sys", "tmp", "www"] {
        fs::create_dir_all(folder.join(name)).expect("a folder");
    }
    for program in programs {
        let place = Command::new("sh").args(["-c", "command -v \"$0\"", program]).output().expect("sh");
        let place = String::from_utf8(place.stdout).expect("a path");
        let place = place.trim();
        assert!(place.starts_with('/'), "{program} is missing: run scripts/test");
        fs::copy(place, folder.join("bin").join(program)).expect(program);
        let libraries = Command::new("ldd").arg(place).output().expect("ldd");
        // Of one that is linked statically it knows nothing.
        for library in
            String::from_utf8_lossy(&libraries.stdout).split_whitespace().filter(|word| word.starts_with('/'))
        {
            let to = folder.join(&library[1..]);
            fs::create_dir_all(to.parent().expect("a folder")).expect("a folder");
            fs::copy(library, to).expect(library);
        }
    }
    if programs.contains(&"busybox") {
        let names = Command::new("busybox").arg("--list").output().expect("busybox");
        for name in String::from_utf8(names.stdout).expect("names").lines().filter(|name| *name != "busybox") {
            symlink("busybox", folder.join("bin").join(name)).expect("a link");
        }
    }
    let status = Command::new("chown").args(["-R", &format!("{owner}:{owner}")]).arg(folder).status().expect("chown");
    assert!(status.success(), "chown: {status}");
}
