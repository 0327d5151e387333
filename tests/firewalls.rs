//! Beside other firewalls: Docker, ufw and firewalld themselves, and rules written by hand. All in the hosts' namespaces.

mod lab;

use lab::capture::Capture;
use lab::firewalls::{Docker, Firewalld, enable_ufw, iptables, ufw};
use lab::host::Host;
use lab::traffic::{MARKER, WebServer, seen_by};
use lab::{Lab, NEXTCLOUD, NEXTCLOUD6, PROXY, PROXY6, VPS, VPS6, WEB, WEB6, secs, wait_for};
use nix::sys::signal::Signal;

/// Egress and the mesh in both directions.
fn assert_works(lab: &Lab) {
    assert_eq!(seen_by(&lab.nextcloud, WEB).expect("egress"), VPS);
    assert!(lab.nextcloud.ping(PROXY), "home's container reaches the VPS's");
    assert!(lab.proxy.ping(NEXTCLOUD), "the VPS's container reaches home's");
    assert_eq!(lab.home.status()["warnings"].as_array().expect("warnings").len(), 0, "{}", lab.home.status());
    assert_eq!(lab.vps.status()["warnings"].as_array().expect("warnings").len(), 0, "{}", lab.vps.status());
}

fn assert_works_over_ipv6(lab: &Lab) {
    assert_eq!(seen_by(&lab.nextcloud, WEB6).expect("egress"), VPS6);
    assert!(lab.nextcloud.ping(PROXY6));
    assert!(lab.proxy.ping(NEXTCLOUD6));
}

/// Waits until the kernel is as planned again.
fn settles(host: &Host, after: &str) {
    wait_for(after, secs(5), || (host.meshd(&["plan"]) == "nothing to change\n").then_some(()));
}

/// All but our exceptions.
fn iptables_of_others(host: &Host) -> String {
    let all = iptables(host);
    assert!(all.contains("meshd"), "{all}");
    all.split_inclusive('\n').filter(|line| !line.contains("meshd")).collect()
}

#[test]
fn docker_before_and_after() {
    let lab = Lab::new();
    let mut docker = Docker::start(&lab.home, &lab.path("docker-home"));
    let before = iptables(&lab.home);
    assert!(before.contains(":FORWARD DROP"), "{before}");
    let plan = lab.home.meshd(&["plan"]);
    assert!(plan.contains("+ iptables -w -I DOCKER-USER 1 -i mesh0 -m comment --comment meshd -j ACCEPT\n"), "{plan}");
    lab.start();
    let other = Docker::start(&lab.vps, &lab.path("docker-vps"));
    assert!(iptables(&lab.vps).contains(":FORWARD DROP"));
    settles(&lab.vps, "Docker started after meshd");
    assert_works(&lab);

    lab.home.run("iptables -F DOCKER-USER; iptables -A DOCKER-USER -j RETURN");
    settles(&lab.home, "somebody flushed DOCKER-USER");
    docker.restart();
    settles(&lab.home, "Docker started anew");
    assert_works(&lab);
    assert_works_over_ipv6(&lab);

    lab.home.end(Signal::SIGKILL);
    assert!(iptables(&lab.home).contains("meshd"), "a crash leaves them");
    lab.home.down();
    assert_eq!(iptables(&lab.home), before);
    let theirs = iptables_of_others(&lab.vps);
    lab.vps.down();
    assert_eq!(iptables(&lab.vps), theirs);
    // Docker switched forwarding on for all interfaces after meshd had for some: that is Docker's to undo.
    assert_eq!(lab.vps.run("sysctl -n net.ipv4.conf.eth0.forwarding net.ipv4.conf.br0.forwarding"), "1\n1\n");
    drop(other);
}

#[test]
fn a_bridge_of_dockers_leaves_by_the_vps_and_keeps_its_sources() {
    let lab = Lab::new();
    lab.home.run("ip link del br0");
    let mut docker = Docker::start(&lab.home, &lab.path("docker"));
    docker.create_network("br0", "10.89.2.0/24", "10.89.2.1");
    let plug = || lab.home.run("ip link set nextcloud master br0; ip link set nextcloud up");
    plug();
    assert!(iptables(&lab.home).contains("-A POSTROUTING -s 10.89.2.0/24 ! -o br0 -j MASQUERADE"));
    // What Docker 28 does for each container.
    let drop = "-t raw -I PREROUTING -d 10.89.2.10 ! -i br0 -j DROP";
    lab.home.run(&format!("iptables {drop}"));
    lab.start();
    let capture = Capture::start(&lab.home, "eth0", MARKER);
    assert_works(&lab);
    let _web = WebServer::start(&lab.proxy, 80);
    assert_eq!(seen_by(&lab.nextcloud, PROXY).expect("the mesh"), NEXTCLOUD, "not masqueraded as home");

    // Another container: its drop comes before all others.
    lab.home.run(&format!("iptables -t raw -D PREROUTING -d 10.89.2.10 ! -i br0 -j DROP; iptables {drop}"));
    settles(&lab.home, "Docker put a drop above our exception");
    assert!(lab.proxy.ping(NEXTCLOUD));
    docker.restart();
    plug();
    settles(&lab.home, "Docker started anew");
    assert_works(&lab);
    let seen = capture.finish();
    assert!(seen.leaks.is_empty(), "beside the tunnel: {seen:?}");

    lab.home.end(Signal::SIGKILL);
    let capture = Capture::start(&lab.home, "eth0", MARKER);
    assert!(seen_by(&lab.nextcloud, WEB).is_err(), "no agent, no internet");
    let seen = capture.finish();
    assert!(seen.leaks.is_empty(), "beside the tunnel: {seen:?}");
    let theirs = iptables_of_others(&lab.home);
    lab.home.down();
    assert_eq!(iptables(&lab.home), theirs);
}

#[test]
fn ufw_lets_the_mesh_pass_and_knows_nothing_of_it_afterwards() {
    let lab = Lab::new();
    for (host, folder) in [(&lab.home, "ufw-home"), (&lab.vps, "ufw-vps")] {
        enable_ufw(host, &lab.path(folder));
    }
    let before = (ufw(&lab.home), iptables(&lab.home));
    assert!(before.1.contains(":FORWARD DROP"), "{}", before.1);
    lab.start();
    assert_works(&lab);
    assert_works_over_ipv6(&lab);
    lab.home.run("ufw reload");
    lab.vps.run("ufw reload");
    settles(&lab.home, "ufw reload");
    settles(&lab.vps, "ufw reload");
    assert_works(&lab);
    assert_works_over_ipv6(&lab);
    assert_eq!(ufw(&lab.home), before.0, "nothing on disk");
    lab.home.down();
    assert_eq!((ufw(&lab.home), iptables(&lab.home)), before);
}

#[test]
fn firewalld_has_tunnel_and_bridge_in_a_zone() {
    let lab = Lab::new();
    let home = Firewalld::start(&lab.home, &lab.path("firewalld-home"));
    let _vps = Firewalld::start(&lab.vps, &lab.path("firewalld-vps"));
    let before = home.zones();
    lab.start();
    assert_works(&lab);
    assert_works_over_ipv6(&lab);
    assert_eq!(lab.home.run("firewall-cmd --zone=trusted --list-interfaces").trim(), "br0 mesh0");
    for host in [&lab.home, &lab.vps] {
        host.run("firewall-cmd --reload");
        settles(host, "firewall-cmd --reload");
    }
    assert_works(&lab);
    assert_works_over_ipv6(&lab);
    lab.home.end(Signal::SIGKILL);
    lab.home.down();
    assert_eq!(home.zones(), before);
    // What somebody else has put there stays.
    lab.home.run("firewall-cmd --zone=trusted --add-interface=mesh0");
    lab.home.up();
    assert_works(&lab);
    lab.home.down();
    assert_eq!(lab.home.run("firewall-cmd --zone=trusted --list-interfaces").trim(), "mesh0");
}

#[test]
fn a_policy_of_drop_written_by_hand_is_named_with_its_remedy() {
    let lab = Lab::new();
    lab.home.run("iptables -P FORWARD DROP");
    lab.vps.run(
        "nft 'table inet mine { chain forward { type filter hook forward priority 0; policy drop; \
         ct state vmap { established : accept, related : accept }; }; }'",
    );
    let before = iptables(&lab.home);
    lab.start();
    assert!(seen_by(&lab.nextcloud, WEB).is_err() && !lab.proxy.ping(NEXTCLOUD), "it is dropped");
    assert_eq!(iptables(&lab.home), before, "not touched");
    for (host, place) in [(&lab.home, "table ip filter, chain FORWARD"), (&lab.vps, "table inet mine, chain forward")] {
        let status = host.status();
        let warnings =
            status["warnings"].as_array().expect("warnings").iter().map(|warning| warning.as_str().expect("text"));
        let warnings: Vec<&str> = warnings.collect();
        assert!(!warnings.is_empty() && warnings.iter().all(|warning| warning.starts_with(place)), "{warnings:?}");
        for warning in warnings {
            host.run(warning.split_once("to let it pass: ").expect("a remedy").1);
        }
        wait_for("the warnings go", secs(5), || host.status()["warnings"].as_array()?.is_empty().then_some(()));
    }
    // Answers are the administrator's to let pass, as the VPS's table does.
    lab.home.run("iptables -I FORWARD -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT");
    assert_works(&lab);
}

#[test]
fn legacy_iptables_is_served_as_well() {
    let lab = Lab::new();
    lab.home.run(
        "iptables-legacy -P FORWARD DROP; iptables-legacy -N DOCKER-USER; \
         iptables-legacy -A DOCKER-USER -j RETURN; iptables-legacy -I FORWARD -j DOCKER-USER",
    );
    let save = || lab.home.run(r"iptables-legacy-save | sed -E '/^#/d; s/ \[[0-9]+:[0-9]+\]//'");
    let before = save();
    lab.start();
    assert_works(&lab);
    lab.home.down();
    assert_eq!(save(), before);
}

#[test]
fn without_another_firewall_no_program_is_asked() {
    let lab = Lab::new();
    let trace = lab.path("trace");
    let mut command = lab.home.command("strace");
    let wanted = format!("-f -qq -e trace=execve -o {}", trace.display());
    let up = lab.home.meshd_command(&["up", "--detach"]);
    command.args(wanted.split(' ')).arg(up.get_program()).args(up.get_args());
    command.envs(up.get_envs().filter_map(|(key, value)| Some((key, value?))));
    let mut strace = command.spawn().expect("strace");
    wait_for("the agent answers", secs(30), || lab.home.try_meshd(&["status"]).status.success().then_some(()));
    lab.home.end(Signal::SIGTERM);
    let _ = strace.wait();
    let text = std::fs::read_to_string(trace).expect("the trace");
    let started = text.lines().filter(|line| line.contains("execve(") && line.ends_with("= 0"));
    let foreign: Vec<&str> =
        started.filter(|line| ["ruleset", "tables-", "firewall-cmd"].iter().any(|word| line.contains(word))).collect();
    assert!(foreign.is_empty() && text.contains("nft"), "{foreign:?}");
}
