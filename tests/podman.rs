//! Containers of rootless Podman and of Docker themselves, by their names, by Podman's hook and as Docker's
//! runtime.

mod lab;

use lab::docker::RootlessDocker;
use lab::firewalls::Docker;
use lab::host::{Host, describe};
use lab::podman::{User, make_root};
use lab::traffic::{WebServer, seen_by};
use lab::{Lab, PROXY, PROXY6, secs, wait_for};
use serde_json::{Value, json};

/// The lab with two users at home who may attach containers, and a web server on the VPS's bridge.
struct Rootless {
    // Dropped first: their containers.
    cloud: User,
    vault: User,
    _web: WebServer,
    lab: Lab,
}

impl Rootless {
    fn new() -> Self {
        let lab = Lab::new();
        let [cloud, vault] = [0, 1].map(|number| User::new(&lab, &lab.home, number));
        lab.home.append(
            "meshd.toml",
            &format!("\n[bridge.users.{}]\n\n[bridge.users.{}]\n\n[names]", cloud.uid(), vault.uid()),
        );
        lab.start();
        wait_for("the tunnel", secs(5), || lab.nextcloud.ping(PROXY).then_some(()));
        Self { cloud, vault, _web: WebServer::start(&lab.proxy, 80), lab }
    }
}

/// The addresses that a container has, IPv4 first.
fn addresses(host: &Host, name: &str) -> Option<Vec<String>> {
    let all: Vec<Value> = serde_json::from_str(&host.meshd(&["attach", "--list", "--json"])).expect("JSON");
    let one = all.iter().find(|one| one["name"] == name && one["attached"] == true)?;
    let addresses = one["addresses"].as_array().expect("addresses");
    Some(addresses.iter().map(|address| address.as_str().expect("text").to_owned()).collect())
}

fn left(host: &Host, name: &str) {
    wait_for(format!("{name} has left"), secs(5), || addresses(host, name).is_none().then_some(()));
}

/// A root filesystem of busybox and curl, for `docker import`.
fn image(lab: &Lab) -> String {
    let (root, image) = (lab.path("root"), lab.path("image.tar").display().to_string());
    make_root(&root, &["busybox", "curl"], 0);
    lab.home.run(&format!("tar -C {} -cf {image} .", root.display()));
    image
}

#[test]
fn a_user_attaches_what_their_podman_runs() {
    let test = Rootless::new();
    let (lab, cloud) = (&test.lab, &test.cloud);
    let started = cloud.start("cloud", &[], &["httpd", "-f", "-p", "80", "-h", "/www"]);
    assert!(started.status.success(), "{}", describe(&started));
    cloud.meshd(&["attach", "podman:cloud"]);
    let before = addresses(&lab.home, "cloud").expect("attached");
    for address in &before {
        let known = lab.home.run(&format!("ip neigh show {address} dev br0"));
        assert!(known.contains("lladdr"), "who calls at once need not wait: {known}");
    }
    let container = cloud.container("cloud");
    assert_eq!(seen_by(&container, PROXY).expect("a web server"), before[0]);
    assert_eq!(seen_by(&container, PROXY6).expect("a web server"), before[1]);
    let servers = "nameserver 10.89.2.1\nnameserver fd89:2::1\n";
    assert!(cloud.podman(&["exec", "cloud", "cat", "/etc/resolv.conf"]).ends_with(servers));
    // What runs in it answers.
    for address in [before[0].clone(), format!("[{}]", before[1])] {
        let answer = lab.proxy.run(&format!("curl -s -o /dev/null -w '%{{http_code}}' http://{address}/missing"));
        assert_eq!(answer, "404", "{address}");
    }

    // Of another user it is nothing, whichever way they name it.
    let pid = cloud.podman(&["inspect", "--format", "{{.State.Pid}}", "cloud"]);
    for (named, why) in [("podman:cloud", "no such"), (pid.trim(), "Permission denied")] {
        let output = test.vault.try_meshd(&["attach", named, "--name", "mine"]);
        assert!(!output.status.success() && describe(&output).contains(why), "{named}: {}", describe(&output));
    }
    assert!(describe(&test.vault.try_meshd(&["detach", "cloud"])).contains("another user's container"));

    cloud.podman(&["stop", "--time", "0", "cloud"]);
    left(&lab.home, "cloud");
    let output = cloud.try_meshd(&["attach", "podman:cloud"]);
    assert!(describe(&output).contains("podman start cloud"), "{}", describe(&output));
    cloud.podman(&["start", "cloud"]);
    cloud.meshd(&["attach", "podman:cloud"]);
    assert_eq!(addresses(&lab.home, "cloud").expect("attached"), before);
    assert!(lab.proxy.ping(&before[0]) && lab.proxy.ping(&before[1]));
}

#[test]
fn by_the_hook_it_is_attached_before_its_first_process_runs() {
    let test = Rootless::new();
    let (lab, cloud) = (&test.lab, &test.cloud);
    cloud.install_hook();
    test.vault.install_hook();
    // The first that it does: both families, at once.
    let first = format!("curl -sS -m 2 http://{PROXY}; echo; curl -sS -m 2 http://[{PROXY6}]; echo; exec sleep 300");
    let annotations =
        ["--annotation", "org.meshd.name=nextcloud", "--annotation", "org.meshd.addresses=10.89.2.77 fd89:2::77"];
    let started = cloud.start("cloud", &annotations, &["sh", "-c", &first]);
    assert!(started.status.success(), "{}", describe(&started));
    let log = || cloud.podman(&["logs", "cloud"]);
    wait_for("both answers", secs(10), || (log().lines().count() == 2).then_some(()));
    assert_eq!(log(), "10.89.2.77\nfd89:2::77\n");
    assert_eq!(addresses(&lab.home, "nextcloud").expect("attached"), ["10.89.2.77", "fd89:2::77"]);
    let servers = "nameserver 10.89.2.1\nnameserver fd89:2::1\n";
    assert!(cloud.podman(&["exec", "cloud", "cat", "/etc/resolv.conf"]).ends_with(servers));
    // It comes back by itself.
    cloud.podman(&["restart", "--time", "0", "cloud"]);
    wait_for("both answers again", secs(10), || (log().lines().count() == 4).then_some(()));
    assert_eq!(log(), "10.89.2.77\nfd89:2::77\n".repeat(2));

    // What is refused does not start, and says why.
    for (annotation, why) in [
        ("org.meshd.name=nextcloud", "another user's container has this name"),
        ("org.meshd.addresses=10.89.2.77", "container nextcloud has it"),
        ("org.meshd.bridge=br7", "not in meshd.toml"),
        ("org.meshd.adress=10.89.2.78", "unknown"),
    ] {
        let output = test.vault.start("vault", &["--annotation", annotation], &["sleep", "300"]);
        assert!(!output.status.success() && describe(&output).contains(why), "{annotation}: {}", describe(&output));
        test.vault.podman(&["rm", "--force", "vault"]);
    }
    // A name server that somebody chose stays.
    let chosen = test.vault.write("resolv.conf", "nameserver 9.9.9.9\n");
    let volume = format!("{}:/etc/resolv.conf", chosen.display());
    let output =
        test.vault.start("vault", &["--annotation", "org.meshd.name=vault", "--volume", &volume], &["sleep", "300"]);
    assert!(output.status.success(), "{}", describe(&output));
    assert_eq!(test.vault.podman(&["exec", "vault", "cat", "/etc/resolv.conf"]), "nameserver 9.9.9.9\n");
    test.vault.podman(&["kill", "vault"]);
    test.vault.podman(&["rm", "--force", "vault"]);
    // Without an annotation it is nobody's business.
    let output = test.vault.start("vault", &[], &["sleep", "300"]);
    assert!(output.status.success(), "{}", describe(&output));
    assert!(test.vault.container("vault").run("ip -br link").lines().all(|line| line.starts_with("lo")));
}

#[test]
fn root_attaches_what_docker_runs() {
    let lab = Lab::new();
    lab.start();
    wait_for("the tunnel", secs(5), || lab.nextcloud.ping(PROXY).then_some(()));
    let docker = Docker::start(&lab.home, &lab.path("docker"));
    docker.client(&["import", &image(&lab), "local"]);
    docker.client(&["run", "--detach", "--name", "cloud", "--network", "none", "local", "httpd", "-f", "-h", "/www"]);
    let attach = || {
        let mut command = lab.home.meshd_command(&["attach", "docker:cloud"]);
        command.env("DOCKER_HOST", docker.address()).output().expect("meshd")
    };
    let attached = attach();
    assert!(attached.status.success(), "{}", describe(&attached));
    let before = addresses(&lab.home, "cloud").expect("attached");
    let answer = lab.proxy.run(&format!("curl -s -o /dev/null -w '%{{http_code}}' http://{}/missing", before[0]));
    assert_eq!(answer, "404");
    docker.client(&["kill", "cloud"]);
    left(&lab.home, "cloud");
    assert!(describe(&attach()).contains("docker start cloud"));
    docker.client(&["start", "cloud"]);
    assert!(attach().status.success());
    assert_eq!(addresses(&lab.home, "cloud").expect("attached"), before);
    assert!(lab.proxy.ping(&before[1]));
    docker.client(&["rm", "--force", "cloud"]);
    left(&lab.home, "cloud");
}

#[test]
fn what_rootless_docker_runs_is_attached_by_its_runtime() {
    let test = Rootless::new();
    let (lab, cloud) = (&test.lab, &test.cloud);
    let runtime = json!({ "path": cloud.program(), "runtimeArgs": ["attach", "--oci-runtime"] });
    let docker = RootlessDocker::start(cloud, &json!({ "runtimes": { "meshd": runtime } }).to_string());
    docker.client(&["import", &image(lab), "local"]);
    let run = |more: &[&str], first: &str| {
        docker.try_client(&[&["run", "--detach", "--network", "none"], more, &["local", "sh", "-c", first]].concat())
    };

    let first = format!("curl -sS -m 2 http://{PROXY}; echo; curl -sS -m 2 http://[{PROXY6}]; echo; exec sleep 300");
    let started = run(&["--name", "cloud", "--runtime", "meshd", "--hostname", "nextcloud"], &first);
    assert!(started.status.success(), "{}", describe(&started));
    let before = addresses(&lab.home, "nextcloud").expect("attached");
    let log = || docker.client(&["logs", "cloud"]);
    wait_for("both answers", secs(10), || (log().lines().count() == 2).then_some(()));
    assert_eq!(log(), format!("{}\n{}\n", before[0], before[1]));
    let servers = "nameserver 10.89.2.1\nnameserver fd89:2::1\n";
    assert!(docker.client(&["exec", "cloud", "cat", "/etc/resolv.conf"]).ends_with(servers));
    // It comes back by itself.
    docker.client(&["restart", "--time", "0", "cloud"]);
    wait_for("both answers again", secs(10), || (log().lines().count() == 4).then_some(()));
    assert_eq!(log(), format!("{}\n{}\n", before[0], before[1]).repeat(2));

    // What is refused does not start, and says why; without the runtime it is nobody's business.
    let refused = |why: &str| {
        let output = run(&["--rm", "--runtime", "meshd", "--hostname", "another"], "exec sleep 300");
        assert!(!output.status.success() && describe(&output).contains(why), "{}", describe(&output));
    };
    refused("may have 1 attached");
    let output = run(&[], "exec sleep 300");
    assert!(output.status.success(), "{}", describe(&output));
    docker.client(&["kill", "cloud"]);
    left(&lab.home, "nextcloud");
    lab.home.meshd(&["down"]);
    refused("the agent is not running");
}
