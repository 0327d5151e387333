//! systemd-resolved with a system bus and polkit, and an agent as its unit runs it: the user `meshd` with three capabilities.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use super::host::{Host, describe};
use super::{Lab, root, secs, wait_for};

/// The user's number, which has no meaning outside.
const MESHD: u32 = 2_009_999_990;

/// A machine within a host of the lab: in its network, with processes and a /run of its own.
pub struct Machine<'a> {
    host: &'a Host,
    init: Child,
    program: PathBuf,
}

impl<'a> Machine<'a> {
    /// Starts one that keeps its files in a folder of the lab.
    pub fn start(lab: &Lab, host: &'a Host) -> Self {
        let folder = lab.path("machine");
        fs::create_dir(&folder).expect("a folder");
        let (script, program) = (folder.join("init"), folder.join("meshd"));
        fs::copy(env!("CARGO_BIN_EXE_meshd"), &program).expect("the binary");
        for file in ["passwd", "group"] {
            let known = fs::read_to_string(Path::new("/etc").join(file)).expect(file);
            let known: Vec<_> = known.lines().filter(|line| !line.starts_with("systemd-resolve:")).collect();
            let rest = if file == "passwd" { ":/:/bin/false" } else { "" };
            let line = |name: &str, id: u32| {
                if file == "passwd" { format!("{name}:x:{id}:{id}:{rest}") } else { format!("{name}:x:{id}:") }
            };
            let ours = [line("meshd", MESHD), line("systemd-resolve", MESHD + 1)];
            fs::write(folder.join(file), format!("{}\n{}\n", known.join("\n"), ours.join("\n"))).expect("write");
        }
        let begin = format!(
            "set -e; daemon={daemon}; folder={folder}
             mount -t tmpfs tmpfs /run
             mkdir -p /run/dbus /run/systemd/resolve /run/rules; chown {resolve}:{resolve} /run/systemd/resolve
             cp {unpacked}/usr/bin/resolvectl /run/ 2>/dev/null || true
             for file in passwd group; do mount --bind $folder/$file /etc/$file; done
             mount --bind /run/rules /usr/share/polkit-1/rules.d
             for part in dbus-1/system.d polkit-1/actions; do
                 mkdir -p /run/$part; cp /usr/share/$part/* /run/$part/
                 [ ! -d {unpacked}/usr/share/$part ] || cp {unpacked}/usr/share/$part/* /run/$part/
                 mount --bind /run/$part /usr/share/$part
             done
             echo nameserver 192.0.2.53 >/run/resolv.conf; mount --bind /run/resolv.conf /etc/resolv.conf
             dbus-daemon --system --nofork --nopidfile --nosyslog &
             until [ -e /run/dbus/system_bus_socket ]; do sleep 0.02; done
             /usr/lib/polkit-1/polkitd &
             $daemon &
             wait",
            daemon = daemon().display(),
            folder = folder.display(),
            resolve = MESHD + 1,
            unpacked = unpacked().display(),
        );
        fs::write(&script, begin).expect("write");
        let log = fs::File::create(folder.join("log")).expect("a log");
        let init = host
            .command("unshare")
            .args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh"])
            .arg(&script)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("dup"))
            .stderr(log)
            .spawn();
        let machine = Self { host, init: init.expect("unshare"), program };
        wait_for("systemd-resolved answers", secs(20), || {
            machine.first().filter(|_| machine.try_run("resolvectl status").status.success())
        });
        machine
    }

    /// The number of its first process outside.
    fn first(&self) -> Option<String> {
        let path = format!("/proc/{0}/task/{0}/children", self.init.id());
        fs::read_to_string(path).ok()?.split_whitespace().next().map(str::to_owned)
    }

    fn command(&self, line: &str) -> Command {
        let first = self.first().expect("it runs");
        let mut command = Command::new("nsenter");
        command.args(["--target", &first, "--mount", "--net", "--pid", "sh", "-c"]);
        command.arg(format!("PATH=/run:$PATH; {line}"));
        let host = self.host;
        command.env("MESHD_DIR", host.config("")).env("MESHD_RUN_DIR", host.run_file(""));
        command.env("MESHD_STATE_DIR", host.state_file(""));
        command
    }

    /// Runs a line of the shell to its end.
    pub fn try_run(&self, line: &str) -> Output {
        self.command(line).output().expect("nsenter")
    }

    /// The same, which must succeed; its standard output.
    pub fn run(&self, line: &str) -> String {
        let output = self.try_run(line);
        assert!(output.status.success(), "{line}\n{}", describe(&output));
        String::from_utf8(output.stdout).expect("text")
    }

    /// Lets polkit know the rule of the package.
    pub fn add_rule(&self) {
        let rule = root().join("deploy/systemd/meshd.rules");
        self.run(&format!("cp {} /run/rules/50-meshd.rules", rule.display()));
    }

    /// `meshd COMMAND` by root.
    pub fn meshd(&self, command: &str) -> String {
        self.run(&format!("{} {command}", self.program.display()))
    }

    /// `meshd up`, as the unit does.
    pub fn up(&self) {
        let [files, run, state] = [self.host.config(""), self.host.run_file(""), self.host.state_file("")];
        let folders = format!("{} {} {}", files.display(), run.display(), state.display());
        self.run(&format!("chown -R {MESHD}:{MESHD} {folders}; chmod 755 {0}/.. {0}/../..", files.display()));
        let rights = "-all,+net_admin,+net_raw,+net_bind_service";
        self.run(&format!(
            "setpriv --reuid {MESHD} --regid {MESHD} --clear-groups --inh-caps {rights} --ambient-caps {rights} \
             --bounding-set {rights} {} up --detach",
            self.program.display()
        ));
    }
}

impl Drop for Machine<'_> {
    fn drop(&mut self) {
        // All of its processes end with the first.
        let _ = self.init.kill();
        let _ = self.init.wait();
    }
}

/// Where `scripts/test` unpacked what must not be installed, as it would become this machine's name server.
fn unpacked() -> PathBuf {
    let others = std::env::var("MESHD_INTEROP_BIN").map_or_else(|_| root().join("target/interop/bin"), PathBuf::from);
    others.join("../resolved")
}

fn daemon() -> PathBuf {
    let places = ["usr/lib/systemd", "lib/systemd"].map(|folder| unpacked().join(folder));
    let mut places =
        places.into_iter().chain(["/usr/lib/systemd".into()]).map(|folder| folder.join("systemd-resolved"));
    places.find(|place| place.exists()).expect("systemd-resolved: run scripts/test")
}
