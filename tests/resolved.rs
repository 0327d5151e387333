//! systemd-resolved itself lets the programs of a host in on the names of the mesh.

mod lab;

use lab::resolved::Machine;
use lab::{Lab, secs, wait_for};

#[test]
fn programs_of_the_host_find_the_mesh_by_systemd_resolved() {
    let lab = Lab::new();
    for host in [&lab.vps, &lab.home] {
        host.append("meshd.toml", "\n[names]");
    }
    lab.vps.up();
    let machine = Machine::start(&lab, &lab.home);
    machine.up();
    // Without the rule, it listens to nobody but root.
    let warned = || machine.meshd("status").contains("systemd-resolved is not told");
    wait_for("a warning", secs(5), || warned().then_some(()));
    assert!(!machine.try_run("resolvectl query vps.mesh").status.success());

    machine.add_rule();
    wait_for("it is told by the next change", secs(10), || {
        machine.meshd("down");
        machine.up();
        std::thread::sleep(secs(1));
        (!warned()).then_some(())
    });
    for (question, answer) in [("vps.mesh", "10.88.0.1"), ("vps.mesh", "fd88::1"), ("10.88.0.1", "vps.mesh")] {
        let said = machine.run(&format!("resolvectl query {question}"));
        assert!(said.contains(answer) && said.contains("link: mesh0"), "{said}");
    }
    // Others are asked about where they were before.
    let links = machine.run("resolvectl domain; resolvectl default-route");
    assert!(links.contains("~mesh") && links.contains("(mesh0): no"), "{links}");
    machine.meshd("down");
    assert!(!machine.run("resolvectl domain").contains("mesh"));
}
