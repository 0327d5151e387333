//! The running agent's part, played by a closure.

use std::path::Path;

use super::super::init;
use super::*;
use crate::control::api::Reloaded;
use crate::store;

const KEY: &str = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=";

fn host() -> (tempfile::TempDir, Dirs) {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let dirs = Dirs { config: path("etc"), run: path("run"), state: path("state") };
    init::first(init::Args::default(), &dirs).unwrap();
    (folder, dirs)
}

fn add(dirs: &Dirs, reload: impl Reload + Copy) -> Result<(), Failure> {
    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: add::Args,
    }
    let line = <Line as clap::Parser>::parse_from(["add", "vps", "--public-key", KEY, "--subnet", "10.89.1.0/24"]);
    add::run(line.args, dirs, reload)
}

fn remove(dirs: &Dirs, reload: impl Reload) -> Result<(), Failure> {
    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: remove::Args,
    }
    remove::run(<Line as clap::Parser>::parse_from(["remove", "vps"]).args, dirs, reload)
}

fn names(dirs: &Dirs) -> Vec<String> {
    store::load(&dirs.config).unwrap().peers.into_iter().map(|peer| peer.name.clone()).collect()
}

fn files(dir: &Path) -> usize {
    std::fs::read_dir(dir.join("peers")).unwrap().count()
}

#[test]
fn the_agent_sees_the_new_state_before_the_command_ends() {
    let (_folder, dirs) = host();
    add(&dirs, |dirs| {
        assert_eq!(names(dirs), ["vps"]);
        Ok(Some(Reloaded::default()))
    })
    .unwrap();
    remove(&dirs, |dirs| {
        assert!(names(dirs).is_empty());
        Ok(Some(Reloaded::default()))
    })
    .unwrap();
    assert_eq!((names(&dirs).len(), files(&dirs.config)), (0, 0));
}

#[test]
fn what_the_agent_refuses_is_undone() {
    let (_folder, dirs) = host();
    let refuse = |_: &Dirs| Err(Failure::new(4, "reload: the kernel says no"));
    let failure = add(&dirs, refuse).unwrap_err();
    assert_eq!(failure.code, 4);
    assert_eq!(failure.errors, ["reload: the kernel says no", "peer vps: not added, as the running agent refused"]);
    assert_eq!((names(&dirs).len(), files(&dirs.config)), (0, 0));

    add(&dirs, |_| Ok(None)).unwrap();
    let failure = remove(&dirs, refuse).unwrap_err();
    assert_eq!(failure.errors, ["reload: the kernel says no", "peer vps: not removed, as the running agent refused"]);
    assert_eq!((names(&dirs), files(&dirs.config)), (vec!["vps".to_owned()], 1));
}
