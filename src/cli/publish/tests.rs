//! The running agent's part, played by a closure.

use super::super::init;
use super::*;
use crate::control::api::Reloaded;

#[derive(clap::Parser)]
struct Line {
    #[command(flatten)]
    args: init::Args,
}

fn host() -> (tempfile::TempDir, Dirs) {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let dirs = Dirs { config: path("etc"), run: path("run"), state: path("state") };
    let line = <Line as clap::Parser>::parse_from(["init", "--bridge", "br0=10.89.2.0/24,fd89:2::/64"]);
    init::first(line.args, &dirs).unwrap();
    (folder, dirs)
}

fn added(dirs: &Dirs, ports: &str, to: &str, reload: impl Reload) -> Result<(), Failure> {
    add(Add { ports: ports.to_owned(), to: to.to_owned() }, dirs, reload)
}

fn removed(dirs: &Dirs, ports: &str, to: Option<&str>, reload: impl Reload) -> Result<(), Failure> {
    remove(Remove { ports: ports.to_owned(), to: to.map(str::to_owned) }, dirs, reload)
}

fn published(dirs: &Dirs) -> Vec<String> {
    let config = store::load(&dirs.config).unwrap();
    config.host.publish.iter().map(|publish| format!("{publish} {}", publish.to)).collect()
}

#[test]
fn the_agent_sees_the_new_state_before_the_command_ends() {
    let (_folder, dirs) = host();
    let text = || fs::read_to_string(dirs.config.join("meshd.toml")).unwrap();
    let before = text();
    let seen = |expected: &'static [&'static str]| {
        move |dirs: &Dirs| {
            assert_eq!(published(dirs), expected);
            Ok(Some(Reloaded::default()))
        }
    };
    added(&dirs, "tcp/61443", "10.89.2.10:443", seen(&["tcp/61443 10.89.2.10:443"])).unwrap();
    added(&dirs, "tcp/61443", "10.89.2.10:443", |_: &Dirs| panic!("nothing changed")).unwrap();
    let both = &["tcp/61443 10.89.2.10:443", "tcp/61443 [fd89:2::10]:61443"];
    added(&dirs, "tcp/61443", "fd89:2::10", seen(both)).unwrap();
    removed(&dirs, "tcp/61443", Some("10.89.2.10:443"), seen(&both[1..])).unwrap();
    removed(&dirs, "tcp/61443", None, seen(&[])).unwrap();
    assert_eq!(text().trim_end(), before.trim_end());
}

#[test]
fn what_the_agent_refuses_is_undone() {
    let (_folder, dirs) = host();
    let refuse = |_: &Dirs| Err(Failure::new(4, "reload: the kernel says no"));
    let failure = added(&dirs, "tcp/61443", "10.89.2.10", refuse).unwrap_err();
    assert_eq!(
        failure.errors,
        ["reload: the kernel says no", "publish tcp/61443: not added, as the running agent refused"]
    );
    assert_eq!(published(&dirs), <[&str; 0]>::default());
    added(&dirs, "tcp/61443", "10.89.2.10", |_: &Dirs| Ok(None)).unwrap();
    removed(&dirs, "tcp/61443", None, refuse).unwrap_err();
    assert_eq!(published(&dirs), ["tcp/61443 10.89.2.10:61443"]);
}

#[test]
fn a_port_can_be_closed_although_the_files_are_wrong() {
    let (_folder, dirs) = host();
    added(&dirs, "tcp/61443", "10.89.2.10", |_: &Dirs| Ok(None)).unwrap();
    added(&dirs, "tcp/61444", "10.89.2.10", |_: &Dirs| Ok(None)).unwrap();
    let path = dirs.config.join("meshd.toml");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace("10.89.2.0/24", "10.90.2.0/24")).unwrap();
    removed(&dirs, "tcp/61443", None, |_: &Dirs| panic!("nothing that an agent could take")).unwrap();
    removed(&dirs, "tcp/61444", None, |_: &Dirs| Ok(None)).unwrap();
    assert_eq!(published(&dirs), <[&str; 0]>::default());
}

#[test]
fn a_taken_port_is_refused_with_the_name_of_who_has_it() {
    let (_folder, dirs) = host();
    let socket = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
    let port = socket.local_addr().unwrap().port();
    let failure = added(&dirs, &format!("tcp/{port}"), "10.89.2.10", |_: &Dirs| Ok(None)).unwrap_err();
    let pid = std::process::id();
    let expected = format!("(pid {pid}) listens on 0.0.0.0:{port}, and would no longer be reached from outside");
    assert!(failure.code == 4 && failure.errors[0].ends_with(&expected), "{failure:?}");
    assert_eq!(published(&dirs), <[&str; 0]>::default());
    // One on loopback is reached as before.
    drop(socket);
    let _socket = std::net::TcpListener::bind(("127.0.0.1", port)).unwrap();
    added(&dirs, &format!("tcp/{port}"), "10.89.2.10", |_: &Dirs| Ok(None)).unwrap();
}
