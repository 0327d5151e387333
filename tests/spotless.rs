//! Up and down a hundred times, some of them by SIGKILL: the host is what it was, byte for byte.

mod lab;

use lab::Lab;
use lab::snapshot::Snapshot;
use nix::sys::signal::Signal;

#[test]
fn a_hundred_times_leave_nothing() {
    let lab = Lab::new();
    lab.masquerade_at_home_like_podman();
    let before = Snapshot::of(&lab.home);
    for round in 1..=100 {
        lab.home.up();
        if round % 4 == 0 {
            lab.home.end(Signal::SIGKILL);
        }
        lab.home.down();
        if round % 10 == 0 || round < 5 {
            before.assert_same(&Snapshot::of(&lab.home), &format!("round {round}"));
        }
    }
    let files = lab.home.run(&format!("ls -A {}", lab.home.state_file("").display()));
    assert_eq!(files, "guard.nft\nnews\n", "what a boot with broken files needs, and what others said");
}
