//! Which cipher data to another agent leaves under, and why it is WireGuard's own. Packets arrive under either, so it is
//! never a fault.

use super::{Remedy, Step};
use crate::config::{Config, Peer};
use crate::express::{Reason, Standing};

const STEP: &str = "express";

/// What is known of the session with a peer whose agent answers.
pub fn step(config: &Config, peer: &Peer, standing: Standing) -> Step {
    let own = Some(peer.name.as_str());
    if standing == Standing::On {
        return Step::ok(STEP, own, "data goes under AES-256-GCM");
    }
    let (place, remedy) = why(config, peer, standing);
    let place = place.map(|place| format!(", by {place}")).unwrap_or_default();
    let saw = format!("data goes under ChaCha20-Poly1305: {standing}{place}");
    if matches!(standing, Standing::Idle | Standing::Asking | Standing::Proving) {
        return Step::ok(STEP, own, saw);
    }
    Step { remedy, ..Step::skipped(STEP, own, saw) }
}

/// Where that is written down, and what helps. What somebody has switched off needs no help.
fn why(config: &Config, peer: &Peer, standing: Standing) -> (Option<String>, Option<Remedy>) {
    let name = peer.name.as_str();
    match standing {
        Standing::Here(Reason::Off) if !config.host.express => (Some("express in meshd.toml".to_owned()), None),
        Standing::Here(Reason::Off) if !peer.express => (Some(format!("express in peers/{name}.toml")), None),
        // The files say otherwise by now.
        Standing::Here(Reason::Off) => (None, Some(Remedy::run(["meshd reload".to_owned()]))),
        Standing::There(Reason::Off) => {
            (Some(format!("express in its meshd.toml or peers/{}.toml", config.host.name)), None)
        }
        Standing::Here(Reason::NoHardware) => (None, Some(hidden())),
        Standing::There(Reason::NoHardware) => (None, Some(hidden().on(name))),
        Standing::Here(Reason::Version) | Standing::There(Reason::Version) => {
            (None, Some(Remedy::note("install the same version of meshd on both hosts")))
        }
        Standing::Unanswered => {
            let note =
                "an older meshd there does not answer; with one that does, something on the way drops these packets";
            (None, Some(Remedy::note(note)))
        }
        Standing::Here(Reason::Doubt) | Standing::There(Reason::Doubt) => {
            let note =
                "other keys are asked for in a few seconds; when it stays so, something on the way alters packets";
            (None, Some(Remedy::note(note)))
        }
        Standing::On | Standing::Idle | Standing::Asking | Standing::Proving => (None, None),
    }
}

fn hidden() -> Remedy {
    Remedy::note("a virtual machine may have its processor's AES hidden from it: QEMU shows it with -cpu host")
}

#[cfg(test)]
mod tests {
    use super::super::State;
    use super::*;
    use crate::doctor::tests::home;

    #[test]
    fn each_reason_is_told_and_none_is_a_fault() {
        let (config, _) = home();
        let mut off_here = config.clone();
        off_here.host.express = false;
        let mut off_for_vps = config.clone();
        off_for_vps.peers[0].express = false;
        for (config, standing, state, saw, helps) in [
            (&config, Standing::On, State::Ok, "data goes under AES-256-GCM", ""),
            (&config, Standing::Idle, State::Ok, "little has flowed since the last handshake", ""),
            (&config, Standing::Proving, State::Ok, "being agreed on", ""),
            (&config, Standing::Unanswered, State::Skipped, "without an answer", "an older meshd"),
            (&off_here, Standing::Here(Reason::Off), State::Skipped, "switched off here, by express in meshd.toml", ""),
            (
                &off_for_vps,
                Standing::Here(Reason::Off),
                State::Skipped,
                "switched off here, by express in peers/vps.toml",
                "",
            ),
            (&config, Standing::Here(Reason::Off), State::Skipped, "switched off here", "meshd reload"),
            (
                &config,
                Standing::There(Reason::Off),
                State::Skipped,
                "switched off there, by express in its meshd.toml or peers/home.toml",
                "",
            ),
            (&config, Standing::Here(Reason::NoHardware), State::Skipped, "no instructions for AES", "-cpu host"),
            (&config, Standing::There(Reason::NoHardware), State::Skipped, "the CPU there", "-cpu host"),
            (&config, Standing::There(Reason::Version), State::Skipped, "versions differ", "same version"),
            (&config, Standing::There(Reason::Doubt), State::Skipped, "did not open", "other keys"),
        ] {
            let step = step(config, &config.peers[0], standing);
            assert_eq!((step.step.as_str(), step.about.as_deref(), step.state), ("express", Some("vps"), state));
            assert!(step.saw.contains(saw), "{}", step.saw);
            let remedy = step.remedy.map(|remedy| format!("{:?} {:?} {:?}", remedy.host, remedy.commands, remedy.note));
            assert_eq!(remedy.is_some(), !helps.is_empty(), "{standing:?}: {remedy:?}");
            assert!(remedy.unwrap_or_default().contains(helps), "{standing:?}");
        }
    }
}
