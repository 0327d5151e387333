//! Both ends of the control socket against each other.

use std::io::{Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::client::{Client, ClientError};
use super::fake::FakeAgent;
use super::{api, lock, running, server};

/// An agent's control side in a thread of its own, as the agent runs it: on a current-thread runtime.
struct Server {
    agent: Arc<FakeAgent>,
    dir: tempfile::TempDir,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let agent = FakeAgent::new();
        let lock = lock(dir.path()).unwrap();
        let listener = server::bind(&lock).unwrap();
        let served = agent.clone();
        let thread = std::thread::spawn(move || {
            let _lock = lock;
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(server::serve(served.clone(), listener, served.shutdown.notified())).unwrap();
        });
        Self { agent, dir, thread: Some(thread) }
    }

    fn client(&self) -> Client {
        Client::connect(self.dir.path()).unwrap()
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join(server::SOCKET)
    }

    fn raw(&self, request: &[u8]) -> String {
        let mut stream = UnixStream::connect(self.socket()).unwrap();
        // The server may answer and close before it has read all.
        let _ = stream.write_all(request);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    }

    fn join(&mut self) {
        self.thread.take().unwrap().join().unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            self.agent.shutdown.notify_one();
            let _ = thread.join();
        }
    }
}

#[test]
fn every_request_reaches_the_agent_and_its_answer_the_client() {
    let server = Server::start();
    let mut client = server.client();
    let status = client.status().unwrap();
    assert_eq!((status.name.as_str(), status.peers.len()), ("home", 2));
    // The first connection was used up; the same client goes on with others.
    assert_eq!(client.plan().unwrap().changes[0].command, "ip rule add iif br0 lookup 8820");
    *server.agent.reloaded.lock().unwrap() =
        Ok(api::Reloaded { changes: vec!["peer vps: endpoint".to_owned()], warnings: vec![] });
    assert_eq!(client.reload().unwrap().changes, ["peer vps: endpoint"]);
    assert_eq!(server.agent.calls(), ["status", "reload"]);
    let metrics = server.raw(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
    assert!(metrics.starts_with("HTTP/1.1 200") && metrics.contains("meshd_peer_up{peer=\"vps\""), "{metrics}");
}

#[test]
fn a_refusal_keeps_its_lines_and_remedy() {
    let server = Server::start();
    *server.agent.reloaded.lock().unwrap() = Err(api::Problem {
        refused: true,
        errors: vec!["meshd.toml:3: mtu: 99 is too small".to_owned(), "meshd.toml:4: another".to_owned()],
        remedy: Some("mtu = 1420".to_owned()),
    });
    let Err(ClientError::Problem(problem)) = server.client().reload() else { panic!() };
    assert!(problem.refused);
    assert_eq!((problem.errors.len(), problem.remedy.as_deref()), (2, Some("mtu = 1420")));
}

#[test]
fn downs_answer_arrives_before_the_end() {
    for keep_guard in [false, true] {
        let mut server = Server::start();
        // A connection that says nothing does not hold up the end.
        let silent = UnixStream::connect(server.socket()).unwrap();
        let mut client = server.client();
        let began = Instant::now();
        client.down(keep_guard).unwrap();
        server.join();
        assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
        assert_eq!(server.agent.calls(), [format!("down {keep_guard}")]);
        assert_eq!(server.dir.path().read_dir().unwrap().count(), 0);
        assert!(matches!(client.status(), Err(ClientError::NotRunning)));
        drop(silent);
    }
}

#[test]
fn a_reload_is_carried_through_when_its_client_goes() {
    let server = Server::start();
    let permits = server.agent.reload_gate.available_permits();
    server.agent.reload_gate.forget_permits(permits);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut stream = UnixStream::connect(server.socket()).unwrap();
    stream.write_all(b"POST /v1/reload HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    runtime.block_on(server.agent.reload_began.notified());
    drop(stream);
    // The server has seen the end of that connection once it has answered a later one.
    server.client().status().unwrap();
    server.agent.reload_gate.add_permits(1);
    let ended = async { tokio::time::timeout(Duration::from_secs(10), server.agent.reload_ended.notified()).await };
    runtime.block_on(ended).unwrap();
}

#[test]
fn without_an_agent_the_client_says_so() {
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(Client::connect(&dir.path().join("none")), Err(ClientError::NotRunning)));
    // The socket of a killed agent.
    drop(std::os::unix::net::UnixListener::bind(dir.path().join(server::SOCKET)).unwrap());
    assert!(matches!(Client::connect(dir.path()), Err(ClientError::NotRunning)));
    // One that has begun to start.
    let lock = lock(dir.path()).unwrap();
    let Err(ClientError::NotAnswering { pid: Some(pid) }) = Client::connect(dir.path()) else { panic!() };
    assert_eq!(pid, std::process::id().cast_signed());
    // And it takes over what the killed one left.
    let _listener = server::bind(&lock).unwrap();
    Client::connect(dir.path()).unwrap();
}

#[test]
fn there_is_one_agent_for_each_run_directory() {
    let server = Server::start();
    let error = lock(server.dir.path()).unwrap_err();
    assert_eq!(error.to_string(), format!("already running, pid {}", std::process::id()));
    assert!(running(server.dir.path()).is_some());
    server.client().status().unwrap();
}

#[test]
fn the_socket_lets_in_root_and_the_group() {
    let server = Server::start();
    let metadata = server.socket().metadata().unwrap();
    let group = nix::unistd::Group::from_name(server::GROUP).unwrap().map_or(0, |group| group.gid.as_raw());
    assert_eq!((metadata.mode() & 0o7777, metadata.uid(), metadata.gid()), (0o660, 0, group));
}

/// Runs `work` as another user. Root is needed.
fn as_user<T: Send>(uid: u32, gid: u32, work: impl FnOnce() -> T + Send) -> T {
    let run = || {
        // SAFETY: the bare system calls change the credentials of this thread alone, unlike libc's functions of the same
        // names, and the thread ends after `work`.
        let changed = unsafe {
            libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<libc::gid_t>()) == 0
                && libc::syscall(libc::SYS_setresgid, gid, gid, gid) == 0
                && libc::syscall(libc::SYS_setresuid, uid, uid, uid) == 0
        };
        assert!(changed, "this test needs root");
        work()
    };
    std::thread::scope(|scope| scope.spawn(run).join().unwrap())
}

#[test]
fn the_group_may_look_but_not_change_and_others_neither() {
    const NOBODY: u32 = 65534;
    let server = Server::start();
    let gid = server.socket().metadata().unwrap().gid();
    as_user(NOBODY, gid, || {
        let mut client = server.client();
        client.status().unwrap();
        client.plan().unwrap();
        for result in [client.reload().map(drop), client.down(false)] {
            let Err(ClientError::Problem(problem)) = result else { panic!("{result:?}") };
            assert!(problem.refused);
            assert_eq!(problem.errors, ["uid 65534 may look but not change"]);
        }
        let answer = server.raw(b"POST /v1/reload HTTP/1.1\r\nHost: x\r\n\r\n");
        assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
    });
    as_user(NOBODY, NOBODY, || {
        let error = Client::connect(server.dir.path()).unwrap_err();
        assert!(matches!(error, ClientError::PermissionDenied { .. }), "{error:?}");
        // Nor can it keep the agent's lock or learn the pid from the file.
        assert!(std::fs::File::open(server.dir.path().join(super::PID_FILE)).is_err());
    });
    assert_eq!(server.agent.calls(), ["status"]);
}

#[test]
fn answers_despite_ten_thousand_silent_connections() {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, soft.max(12_000), hard.max(12_000)).unwrap();
    let server = Server::start();
    let half = b"GET /v1/status HTTP/1.1\r\nX-";
    let held: Vec<UnixStream> = (0..10_000)
        .map(|index| {
            let mut stream = UnixStream::connect(server.socket()).unwrap();
            if index % 2 == 0 {
                // Those whose place was taken already refuse it.
                let _ = stream.write_all(half);
            }
            stream
        })
        .collect();
    let began = Instant::now();
    server.client().status().unwrap();
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    let open = held.iter().filter(|stream| {
        stream.set_nonblocking(true).unwrap();
        let mut stream: &UnixStream = stream;
        stream.read(&mut [0]).is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
    });
    let open = open.count();
    assert!(open <= 64, "{open} of the connections are still held");
    drop(held);
    server.client().status().unwrap();
}

#[test]
fn a_running_request_keeps_its_connection_in_a_flood() {
    let server = Server::start();
    let permits = server.agent.reload_gate.available_permits();
    server.agent.reload_gate.forget_permits(permits);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    std::thread::scope(|scope| {
        let reload = scope.spawn(|| server.client().reload());
        runtime.block_on(server.agent.reload_began.notified());
        let flood: Vec<_> = (0..300).map(|_| UnixStream::connect(server.socket()).unwrap()).collect();
        server.client().status().unwrap();
        server.agent.reload_gate.add_permits(1);
        reload.join().unwrap().unwrap();
        drop(flood);
    });
}

#[test]
fn answers_after_any_bytes() {
    let server = Server::start();
    let mut random = std::fs::File::open("/dev/urandom").unwrap();
    for length in [1, 2, 16, 1000, 100_000, 3_000_000] {
        let mut bytes = vec![0; length];
        random.read_exact(&mut bytes).unwrap();
        let mut stream = UnixStream::connect(server.socket()).unwrap();
        let _ = stream.write_all(&bytes);
    }
    let endless_header = [&b"GET / HTTP/1.1\r\nX: "[..], &vec![b'a'; 1_000_000]].concat();
    assert!(server.raw(&endless_header).starts_with("HTTP/1.1 431"));
    for (request, code) in [
        (b"GET /v1/nothing HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(), "404"),
        (b"DELETE /v1/status HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(), "405"),
        (b"POST /v1/down HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{\"keep_gu".to_vec(), "400"),
        (
            [&b"POST /v1/down HTTP/1.1\r\nHost: x\r\nContent-Length: 70000\r\n\r\n"[..], &vec![b' '; 70_000]].concat(),
            "413",
        ),
    ] {
        let answer = server.raw(&request);
        assert!(answer.starts_with(&format!("HTTP/1.1 {code}")), "{answer}");
        assert!(answer.contains("\"errors\":["), "{answer}");
    }
    assert_eq!(server.client().status().unwrap().name, "home");
    assert_eq!(server.agent.calls(), ["status"]);
}

#[test]
fn fields_of_a_newer_agent_are_ignored() {
    let dir = tempfile::tempdir().unwrap();
    let listener = std::os::unix::net::UnixListener::bind(dir.path().join(server::SOCKET)).unwrap();
    let mut status = serde_json::to_value(super::fake::status()).unwrap();
    status["moons"] = serde_json::json!({"full": 3});
    status["peers"][0]["moons"] = true.into();
    let answers = [status.to_string(), "<html>".to_owned()];
    let thread = std::thread::spawn(move || {
        for body in answers {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 4096];
            assert!(stream.read(&mut request).unwrap() > 0);
            write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()).unwrap();
        }
    });
    let mut client = Client::connect(Path::new(dir.path())).unwrap();
    assert_eq!(client.status().unwrap().peers[0].name, "vps");
    assert!(matches!(client.status(), Err(ClientError::Protocol(_))));
    thread.join().unwrap();
}

#[test]
fn a_measurement_streams_its_progress_and_ends_with_its_problem() {
    let server = Server::start();
    let request = |peer: &str| api::BenchRequest { peer: peer.to_owned(), seconds: 3 };
    let mut seen = Vec::new();
    let result = server.client().bench(&request("vps"), |progress| seen.push(progress.done));
    let Err(ClientError::Problem(problem)) = result else { panic!("{result:?}") };
    assert_eq!(problem.errors, ["peer vps: no"]);
    assert!(seen.len() == 11 && seen.is_sorted(), "{seen:?}");
    assert_eq!(server.client().agents().unwrap().agents, ["vps"]);
}

#[test]
fn a_measurement_ends_when_its_client_goes() {
    let server = Server::start();
    let body = r#"{"peer": "endless", "seconds": 3}"#;
    let length = body.len();
    let mut stream = UnixStream::connect(server.socket()).unwrap();
    write!(stream, "POST /v1/bench HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n{body}").unwrap();
    stream.read_exact(&mut [0; 500]).unwrap();
    assert!(!server.agent.bench_ended.load(Ordering::Acquire));
    drop(stream);
    let until = Instant::now() + Duration::from_secs(5);
    while !server.agent.bench_ended.load(Ordering::Acquire) {
        assert!(Instant::now() < until, "the measurement goes on without its client");
        std::thread::sleep(Duration::from_millis(5));
    }
}
