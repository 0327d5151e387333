//! Docker, ufw and firewalld themselves, on a host of the lab: in its namespaces, with folders of their own.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::host::{Host, describe};
use super::{secs, wait_for};

/// What iptables of both families holds, counters aside.
pub fn iptables(host: &Host) -> String {
    host.run(r"{ iptables-save; ip6tables-save; } | sed -E '/^#/d; s/ \[[0-9]+:[0-9]+\]//'")
}

/// A Docker daemon. Most of it needs no client: its API is asked directly.
pub struct Docker<'a> {
    host: &'a Host,
    folder: PathBuf,
    daemon: Option<Child>,
}

impl<'a> Docker<'a> {
    /// Starts one that keeps its files in `folder`.
    pub fn start(host: &'a Host, folder: &Path) -> Self {
        std::fs::create_dir_all(folder).expect("a folder for Docker");
        let mut docker = Self { host, folder: folder.to_owned(), daemon: None };
        docker.run();
        docker
    }

    fn run(&mut self) {
        let path = |name: &str| self.folder.join(name).display().to_string();
        let log = std::fs::File::create(self.folder.join("log")).expect("a log");
        // Not in the host's mount namespace, which has no control groups: ip-netns(8) mounts another /sys. Into /etc/docker
        // it writes a key, whatever its options say.
        let daemon = Command::new("nsenter")
            .arg(format!("--net=/run/netns/{}", self.host.name()))
            .args(["unshare", "--mount", "--propagation", "private", "sh", "-euc"])
            .arg("mkdir -p /etc/docker; mount -t tmpfs tmpfs /etc/docker; exec dockerd \"$@\"")
            .args(["dockerd", "--data-root", &path("data"), "--exec-root", &path("exec"), "--pidfile", &path("pid")])
            .args(["--host", &self.address(), "--storage-driver", "vfs"])
            .args(["--exec-opt", "native.cgroupdriver=cgroupfs", "--cgroup-parent", self.host.name()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn();
        self.daemon = Some(daemon.expect("dockerd"));
        wait_for("Docker answers", secs(30), || self.ask("_ping", "").ends_with("OK").then_some(()));
    }

    fn ask(&self, path: &str, body: &str) -> String {
        let post =
            if body.is_empty() { String::new() } else { format!("-H 'Content-Type: application/json' -d '{body}'") };
        let socket = self.folder.join("sock");
        let answer =
            self.host.try_run(&format!("curl -s --unix-socket {} {post} http://docker/{path}", socket.display()));
        String::from_utf8_lossy(&answer.stdout).into_owned()
    }

    /// `DOCKER_HOST` of its clients.
    pub fn address(&self) -> String {
        format!("unix://{}", self.folder.join("sock").display())
    }

    /// Runs docker(1), which must succeed.
    pub fn client(&self, args: &[&str]) -> String {
        let output =
            self.host.command("docker").args(args).env("DOCKER_HOST", self.address()).output().expect("docker");
        assert!(output.status.success(), "docker {}\n{}", args.join(" "), describe(&output));
        String::from_utf8(output.stdout).expect("text")
    }

    /// As `docker network create -o com.docker.network.bridge.name=br0`.
    pub fn create_network(&self, bridge: &str, subnet: &str, gateway: &str) {
        let answer = self.ask(
            "networks/create",
            &format!(
                r#"{{"Name": "mesh", "Driver": "bridge", "IPAM": {{"Config": [{{"Subnet": "{subnet}", "Gateway": "{gateway}"}}]}},
                    "Options": {{"com.docker.network.bridge.name": "{bridge}"}}}}"#
            ),
        );
        assert!(answer.contains("\"Id\""), "{answer}");
    }

    /// Ends it, as its unit does.
    pub fn stop(&mut self) {
        let Some(mut daemon) = self.daemon.take() else { return };
        let pid = nix::unistd::Pid::from_raw(daemon.id().cast_signed());
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        let _ = daemon.wait();
    }

    /// Ends it and starts it anew.
    pub fn restart(&mut self) {
        self.stop();
        self.run();
    }
}

impl Drop for Docker<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", std::fs::read_to_string(self.folder.join("log")).unwrap_or_default());
        }
        self.stop();
        // It leaves the parent of its containers' control groups: one in version 2, one for each controller in version 1.
        for folder in ["", "*/"] {
            let _ =
                Command::new("sh").args(["-c", &format!("rmdir /sys/fs/cgroup/{folder}{}", self.host.name())]).output();
        }
    }
}

/// Gives the host files of ufw's of its own in `folder`, and enables it.
pub fn enable_ufw(host: &Host, folder: &Path) {
    let folder = folder.display();
    host.run(&format!(
        "mkdir -p {folder} && cp -a /etc/ufw {folder}/ufw && cp -a /etc/default {folder}/default \
         && mount --bind {folder}/ufw /etc/ufw && mount --bind {folder}/default /etc/default \
         && ufw allow 51820/udp && ufw --force enable"
    ));
}

/// All that ufw knows and keeps on disk.
pub fn ufw(host: &Host) -> String {
    host.run("ufw status verbose; cat /etc/ufw/*.rules /etc/ufw/ufw.conf")
}

/// A firewalld with a system bus of its own.
pub struct Firewalld<'a> {
    host: &'a Host,
    processes: Vec<Child>,
}

impl<'a> Firewalld<'a> {
    /// Starts one with the files that its package brings.
    pub fn start(host: &'a Host, folder: &Path) -> Self {
        std::fs::create_dir_all(folder).expect("a folder for firewalld");
        let configuration = folder.join("bus.conf");
        std::fs::write(&configuration, BUS).expect("write");
        host.run(
            "mkdir -p /run/dbus /run/firewalld && mount -t tmpfs tmpfs /run/dbus && mount -t tmpfs tmpfs /run/firewalld \
             && cp /etc/firewalld/firewalld.conf /run/firewalld && mount -t tmpfs tmpfs /etc/firewalld \
             && cp /run/firewalld/firewalld.conf /etc/firewalld",
        );
        let mut firewalld = Self { host, processes: Vec::new() };
        let option = format!("--config-file={}", configuration.display());
        firewalld.run(folder, &["dbus-daemon", &option, "--nofork", "--nopidfile"]);
        wait_for("the bus listens", secs(10), || {
            Path::new(&firewalld.seen("/run/dbus/system_bus_socket")).exists().then_some(())
        });
        let log = format!("--log-file={}", folder.join("firewalld.log").display());
        firewalld.run(folder, &["firewalld", "--nofork", "--nopid", &log]);
        wait_for("firewalld runs", secs(30), || host.try_run("firewall-cmd --state").status.success().then_some(()));
        host.run("firewall-cmd --add-port=51820/udp --permanent && firewall-cmd --reload");
        firewalld
    }

    fn run(&mut self, folder: &Path, words: &[&str]) {
        let log = std::fs::File::create(folder.join(words[0])).expect("a log");
        let child = self.host.command(words[0]).args(&words[1..]).stdout(Stdio::null()).stderr(log).spawn();
        self.processes.push(child.unwrap_or_else(|error| panic!("{}: {error}", words[0])));
    }

    /// A path of the host's mount namespace, as the test sees it.
    fn seen(&self, path: &str) -> String {
        format!("/proc/{}/root{path}", self.processes[0].id())
    }

    /// All zones at run time and on disk.
    pub fn zones(&self) -> String {
        self.host.run("firewall-cmd --list-all-zones; firewall-cmd --permanent --list-all-zones; ls -R /etc/firewalld")
    }
}

impl Drop for Firewalld<'_> {
    fn drop(&mut self) {
        for process in self.processes.iter_mut().rev() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

const BUS: &str = r#"<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <listen>unix:path=/run/dbus/system_bus_socket</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/>
    <allow own="*"/>
    <allow send_type="method_call"/>
    <allow send_destination="*"/>
    <allow receive_sender="*"/>
  </policy>
</busconfig>
"#;
