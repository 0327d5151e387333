//! Rootless Docker of a user, as dockerd-rootless.sh starts it.

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use super::host::describe;
use super::podman::User;
use super::{secs, wait_for};

/// Where Docker's own packages, and Debian's, have the script.
const SCRIPTS: [&str; 2] = ["/usr/bin/dockerd-rootless.sh", "/usr/share/docker.io/contrib/dockerd-rootless.sh"];
/// Whom it may take for users within containers: no more than the tests' numbers leave.
const SUBORDINATE: &str = "2100000000:65536";

/// A daemon that ends with its user.
pub struct RootlessDocker<'a> {
    user: &'a User,
}

impl<'a> RootlessDocker<'a> {
    /// Starts one with these settings (`daemon.json`).
    pub fn start(user: &'a User, settings: &str) -> Self {
        let docker = Self { user };
        for folder in [".config/docker", "docker"] {
            user.make_folder(folder);
        }
        let settings = user.write(".config/docker/daemon.json", settings);
        let script = SCRIPTS.into_iter().find(|script| Path::new(script).exists()).expect("dockerd-rootless.sh");
        let log = fs::File::create(user.file("docker/log")).expect("a log");
        let daemon = docker
            .with_name(script)
            .args(["--config-file", &settings.display().to_string(), "--storage-driver", "vfs"])
            .args(["--iptables=false", "--ip6tables=false", "--bridge=none"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn();
        let mut daemon = daemon.expect("dockerd-rootless.sh");
        wait_for("Docker answers", secs(30), || {
            let ended = daemon.try_wait().expect("a child");
            assert!(ended.is_none(), "{}", fs::read_to_string(user.file("docker/log")).unwrap_or_default());
            docker.try_client(&["version"]).status.success().then_some(())
        });
        // It ends with all that its user runs.
        std::thread::spawn(move || daemon.wait());
        docker
    }

    /// A program of the user, who has a name and subordinate numbers there (newuidmap(1)).
    fn with_name(&self, program: &str) -> Command {
        let (user, uid) = (self.user, self.user.uid());
        for (file, line) in [
            ("passwd", format!("rootless:x:{uid}:{uid}::{}:/bin/sh", user.file("").display())),
            ("group", format!("rootless:x:{uid}:")),
            ("subuid", format!("rootless:{SUBORDINATE}")),
            ("subgid", format!("rootless:{SUBORDINATE}")),
        ] {
            let known = fs::read_to_string(Path::new("/etc").join(file)).unwrap_or_default();
            fs::write(user.file("docker").join(file), format!("{known}{line}\n")).expect("write");
        }
        let mounts =
            "for file in passwd group subuid subgid; do mount --bind \"$0/$file\" /etc/$file; done; exec \"$@\"";
        user.command_after(
            &["unshare", "--mount", "sh", "-euc", mounts, &user.file("docker").display().to_string()],
            program,
        )
    }

    /// Runs docker(1) to its end.
    pub fn try_client(&self, args: &[&str]) -> Output {
        let socket = format!("unix://{}", self.user.file("run/docker.sock").display());
        self.user.command("docker").args(args).env("DOCKER_HOST", socket).output().expect("docker")
    }

    /// The same, which must succeed; its standard output.
    pub fn client(&self, args: &[&str]) -> String {
        let output = self.try_client(args);
        assert!(output.status.success(), "docker {}\n{}", args.join(" "), describe(&output));
        String::from_utf8(output.stdout).expect("text")
    }
}
