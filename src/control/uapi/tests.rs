//! The UAPI socket over a tunnel in memory, also by wg(8) itself.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt};
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::Mutex;
use std::thread::JoinHandle;

use tokio::sync::Notify;

use super::*;
use crate::control::fake::{hex_of, peer_key};
use crate::express::Reason;
use crate::tunnel::{Cipher, PeerState};

/// What `set` did, one line each.
struct FakeTunnel {
    state: Mutex<State>,
    shutdown: Notify,
}

struct State {
    private_key: PrivateKey,
    port: u16,
    peers: BTreeMap<PublicKey, PeerSettings>,
    log: Vec<String>,
}

impl FakeTunnel {
    fn new() -> Arc<Self> {
        let private_key = PrivateKey::from_bytes([200; 32]);
        let state = State { private_key, port: 51820, peers: BTreeMap::new(), log: Vec::new() };
        Arc::new(Self { state: Mutex::new(state), shutdown: Notify::new() })
    }

    fn log(&self) -> Vec<String> {
        std::mem::take(&mut self.state.lock().unwrap().log)
    }

    fn allowed(&self, seed: u8) -> Vec<String> {
        self.state.lock().unwrap().peers[&peer_key(seed)].allowed_ips.iter().map(ToString::to_string).collect()
    }
}

impl Tunnel for FakeTunnel {
    fn peers(&self) -> Vec<PeerSnapshot> {
        let state = self.state.lock().unwrap();
        let snapshot = |settings: &PeerSettings| PeerSnapshot {
            settings: settings.clone(),
            latest_handshake: Some(std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000)),
            rx_bytes: 12_345,
            unanswered: std::time::Duration::ZERO,
            heard: None,
            cipher: Cipher::default(),
            express: crate::express::Snapshot::default(),
            agent: false,
            relayed: None,
            tx_bytes: 678,
            state: PeerState::Up,
        };
        state.peers.values().map(snapshot).collect()
    }

    fn set_peer(&self, settings: PeerSettings) {
        let mut state = self.state.lock().unwrap();
        state.log.push(format!("set {}", settings.public_key));
        for other in state.peers.values_mut() {
            other.allowed_ips.retain(|net| !settings.allowed_ips.contains(net));
        }
        state.peers.insert(settings.public_key, settings);
    }

    fn remove_peer(&self, key: &PublicKey) {
        let mut state = self.state.lock().unwrap();
        state.log.push(format!("remove {key}"));
        state.peers.remove(key);
    }

    fn private_key(&self) -> PrivateKey {
        self.state.lock().unwrap().private_key.clone()
    }

    fn set_private_key(&self, key: PrivateKey) {
        let mut state = self.state.lock().unwrap();
        state.log.push(format!("identity {}", key.public_key()));
        state.private_key = key;
    }

    fn express(&self) -> Ability {
        Ability::Unable(Reason::Off)
    }

    fn listen_port(&self) -> u16 {
        self.state.lock().unwrap().port
    }

    fn set_listen_port(&self, port: u16) -> io::Result<()> {
        let mut state = self.state.lock().unwrap();
        if port == 1 {
            return Err(io::Error::from_raw_os_error(libc::EADDRINUSE));
        }
        state.log.push(format!("port {port}"));
        state.port = port;
        Ok(())
    }
}

struct Server {
    tunnel: Arc<FakeTunnel>,
    socket: PathBuf,
    interface: String,
    thread: Option<JoinHandle<()>>,
    dir: Option<tempfile::TempDir>,
}

impl Server {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut server = Self::start_in(dir.path(), "mesh0");
        server.dir = Some(dir);
        server
    }

    /// Where wg(8) finds it, under a name that no other test has.
    fn start_for_wg(test: &str) -> Self {
        Self::start_in(Path::new(DIRECTORY), &format!("{test}{}", std::process::id()))
    }

    fn start_in(directory: &Path, interface: &str) -> Self {
        let tunnel = FakeTunnel::new();
        let listener = bind(&directory.join(format!("{interface}.sock"))).unwrap();
        let served = tunnel.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(serve(served.clone(), listener, served.shutdown.notified())).unwrap();
        });
        let socket = directory.join(format!("{interface}.sock"));
        Self { tunnel, socket, interface: interface.to_owned(), thread: Some(thread), dir: None }
    }

    fn connect(&self) -> std::os::unix::net::UnixStream {
        let stream = std::os::unix::net::UnixStream::connect(&self.socket).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream
    }

    fn ask(&self, message: &str) -> String {
        let mut stream = self.connect();
        stream.write_all(message.as_bytes()).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    fn wg(&self, args: &[&str]) -> Output {
        let args = args.iter().map(|&arg| if arg == "IF" { self.interface.as_str() } else { arg });
        Command::new("wg").args(args).output().unwrap()
    }

    fn wg_ok(&self, args: &[&str]) -> String {
        let output = self.wg(args);
        assert!(output.status.success(), "wg {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.tunnel.shutdown.notify_one();
        let _ = self.thread.take().unwrap().join();
        assert!(std::thread::panicking() || !self.socket.exists());
    }
}

fn public_key(seed: u8) -> String {
    format!("public_key={}", hex_of(peer_key(seed).as_bytes()))
}

#[test]
fn several_messages_pass_over_one_connection() {
    let server = Server::start();
    let answer =
        server.ask(&format!("set=1\n{}\nallowed_ip=10.0.0.0/8\n\nget=1\n\nset=1\nlisten_port=7\n\n", public_key(1)));
    let parts: Vec<&str> = answer.split_terminator("\n\n").collect();
    assert_eq!((parts[0], parts[2], parts.len()), ("errno=0", "errno=0", 3));
    assert!(parts[1].ends_with("allowed_ip=10.0.0.0/8\nerrno=0"), "{answer}");
    assert_eq!(server.tunnel.log(), [format!("set {}", peer_key(1)), "port 7".to_owned()]);
    let express = server.tunnel.state.lock().unwrap().peers[&peer_key(1)].express;
    assert_eq!(express, Ability::Unable(Reason::Off), "as the host has it");
}

#[test]
fn a_message_is_applied_whole_or_not_at_all() {
    let server = Server::start();
    let good = format!("set=1\nlisten_port=7\nreplace_peers=true\n{}\nallowed_ip=10.0.0.0/8\n", public_key(1));
    assert_eq!(server.ask(&format!("{good}allowed_ip=nonsense\n\n")), format!("errno=-{}\n\n", libc::EINVAL));
    // The port that is taken, and a message cut short.
    assert_eq!(server.ask(&format!("{}\n", good.replace("=7\n", "=1\n"))), format!("errno=-{}\n\n", libc::EADDRINUSE));
    assert_eq!(server.ask(&good), "");
    assert_eq!(server.tunnel.log(), [""; 0]);
}

#[test]
fn setting_what_stands_disturbs_nothing() {
    let server = Server::start();
    let message = format!(
        "set=1\nprivate_key={}\nlisten_port=51820\nfwmark=0\nreplace_peers=true\n{}\nreplace_allowed_ips=true\n\
         allowed_ip=10.0.2.0/24\nallowed_ip=10.0.1.0/24\nendpoint=192.0.2.1:1\n\n",
        hex_of(&[200; 32]),
        public_key(1)
    );
    assert_eq!(server.ask(&message), "errno=0\n\n");
    assert_eq!(server.tunnel.log().len(), 1);
    assert_eq!(server.ask(&message), "errno=0\n\n");
    assert_eq!(server.tunnel.log(), [""; 0]);
}

#[test]
fn neither_slow_nor_garbage_clients_block_others() {
    let server = Server::start();
    let mut slow: Vec<_> = (0..200)
        .map(|_| {
            let mut stream = server.connect();
            let _ = stream.write_all(b"set=1\nlisten_");
            stream
        })
        .collect();
    assert!(server.ask("get=1\n\n").ends_with("errno=0\n\n"));
    let mut garbage = vec![0; 100_000];
    std::fs::File::open("/dev/urandom").unwrap().read_exact(&mut garbage).unwrap();
    garbage.extend(b"\n\n");
    let mut stream = server.connect();
    stream.write_all(&garbage).unwrap();
    let mut answer = [0; 64];
    let length = stream.read(&mut answer).unwrap();
    assert!(answer[..length].starts_with(b"errno=-22\n\n"), "{:?}", String::from_utf8_lossy(&answer[..length]));
    assert!(server.ask("get=1\n\n").ends_with("errno=0\n\n"));
    // The latest of the slow ones kept its place.
    let last = slow.last_mut().unwrap();
    last.write_all(b"port=9\n\n").unwrap();
    let length = last.read(&mut answer).unwrap();
    assert_eq!(&answer[..length], b"errno=0\n\n");
    assert_eq!(server.tunnel.log(), ["port 9"]);
}

#[test]
fn a_message_without_end_is_cut_off() {
    let server = Server::start();
    let mut stream = server.connect();
    let chunk = vec![b'a'; 1 << 16];
    let mut sent = 0;
    // The server stops reading, answers and closes.
    while sent < 4 * MAX_MESSAGE_BYTES && stream.write_all(&chunk).is_ok() {
        sent += chunk.len();
    }
    assert!(sent < 2 * MAX_MESSAGE_BYTES, "{sent}");
    assert!(server.ask("get=1\n\n").ends_with("errno=0\n\n"));
}

#[test]
fn the_socket_is_roots_and_of_one_agent() {
    let server = Server::start();
    let metadata = server.socket.metadata().unwrap();
    assert_eq!((metadata.mode() & 0o7777, metadata.uid()), (0o600, 0));
    assert!(matches!(bind(&server.socket), Err(BindError::InUse(_))));
}

#[test]
fn wg_shows_and_sets() {
    let server = Server::start_for_wg("mdset");
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (peer_key(1).to_string(), peer_key(2).to_string());
    let psk = dir.path().join("psk");
    let key = crate::key::PresharedKey::from_bytes([3; 32]).expose_base64();
    std::fs::write(&psk, &key).unwrap();
    server.wg_ok(&[
        "set",
        "IF",
        "listen-port",
        "4242",
        "peer",
        &one,
        "preshared-key",
        psk.to_str().unwrap(),
        "endpoint",
        "[2001:db8::1]:51820",
        "persistent-keepalive",
        "25",
        "allowed-ips",
        "10.0.1.5/24,fd00::/64",
        "peer",
        &two,
        "allowed-ips",
        "10.0.2.0/24",
    ]);
    let dump = server.wg_ok(&["show", "IF", "dump"]);
    let mut lines: Vec<Vec<&str>> = dump.lines().map(|line| line.split('\t').collect()).collect();
    let own = PrivateKey::from_bytes([200; 32]);
    assert_eq!(lines.remove(0), [&own.expose_base64(), &own.public_key().to_string(), "4242", "off"]);
    lines.sort_by_key(|line| line[0] != one);
    assert_eq!(
        lines[0],
        [&one, &key, "[2001:db8::1]:51820", "10.0.1.0/24,fd00::/64", "1700000000", "12345", "678", "25"]
    );
    assert_eq!(lines[1], [&two, "(none)", "(none)", "10.0.2.0/24", "1700000000", "12345", "678", "off"]);

    // One peer takes an allowed IP from the other; then one goes.
    server.wg_ok(&["set", "IF", "peer", &two, "allowed-ips", "10.0.1.0/24"]);
    assert_eq!(
        (server.tunnel.allowed(1), server.tunnel.allowed(2)),
        (vec!["fd00::/64".to_owned()], vec!["10.0.1.0/24".to_owned()])
    );
    server.wg_ok(&["set", "IF", "peer", &one, "remove"]);
    assert_eq!(server.wg_ok(&["show", "IF", "peers"]), format!("{two}\n"));
    let private = dir.path().join("private");
    std::fs::write(&private, PrivateKey::from_bytes([5; 32]).expose_base64()).unwrap();
    server.wg_ok(&["set", "IF", "private-key", private.to_str().unwrap()]);
    assert_eq!(server.wg_ok(&["show", "IF", "public-key"]), format!("{}\n", peer_key(5)));

    for (args, why) in [
        (&["set", "IF", "listen-port", "1"][..], "Address already in use"),
        (&["set", "IF", "fwmark", "0x10"], "Operation not supported"),
    ] {
        let output = server.wg(args);
        assert!(!output.status.success());
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(stderr.contains(why), "{stderr}");
    }
}

#[test]
fn wg_syncconf_of_showconf_changes_nothing_and_setconf_takes_a_thousand_peers() {
    let server = Server::start_for_wg("mdconf");
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("wg.conf");
    std::fs::write(&file, "").unwrap();
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).unwrap();
    let path = file.to_str().unwrap();
    let mut config = format!(
        "[Interface]\nPrivateKey = {}\nListenPort = 51820\n",
        PrivateKey::from_bytes([200; 32]).expose_base64()
    );
    for index in 0..1000u16 {
        let [high, low] = index.to_be_bytes();
        let mut secret = [9; 32];
        secret[1..3].copy_from_slice(&[high, low]);
        let key = PrivateKey::from_bytes(secret).public_key();
        let nets: Vec<String> = (0..10).map(|net| format!("fd00:{index:x}:{net:x}::/48")).collect();
        let _ = write!(config, "[Peer]\nPublicKey = {key}\nPersistentKeepalive = 25\n");
        let _ = write!(config, "Endpoint = [2001:db8::{index:x}]:51820\nAllowedIPs = {}\n", nets.join(", "));
    }
    std::fs::write(&file, &config).unwrap();
    server.wg_ok(&["setconf", "IF", path]);
    let keys = server.wg_ok(&["show", "IF", "allowed-ips"]);
    assert_eq!(keys.lines().count(), 1000);
    server.tunnel.log();

    std::fs::write(&file, server.wg_ok(&["showconf", "IF"])).unwrap();
    server.wg_ok(&["syncconf", "IF", path]);
    server.wg_ok(&["setconf", "IF", path]);
    assert_eq!(server.tunnel.log(), [""; 0]);

    let first = server.wg_ok(&["show", "IF", "peers"]).lines().next().unwrap().to_owned();
    let config = format!(
        "[Interface]\nListenPort = 51820\nPrivateKey = {}\n[Peer]\nPublicKey = {first}\n",
        PrivateKey::from_bytes([200; 32]).expose_base64()
    );
    std::fs::write(&file, config).unwrap();
    server.wg_ok(&["syncconf", "IF", path]);
    assert_eq!(server.wg_ok(&["show", "IF", "peers"]), format!("{first}\n"));
}
