//! The command line's side of [`super::server`]. Blocking; one connection for each request.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use nix::unistd::{Gid, Group};
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::runtime::Runtime;
use tokio::time::timeout;

use super::{api, running, server};

/// Reading never waits for the kernel or a peer.
const READ_LIMIT: Duration = Duration::from_secs(10);
/// A change programs the kernel, and may wait for another that runs, or for a resolver.
const CHANGE_LIMIT: Duration = Duration::from_secs(30);
/// A rotation finds the peers, asks them and waits for sessions, each of which may take several handshakes.
const ROTATION_LIMIT: Duration = Duration::from_secs(60);
const MAX_ANSWER_BYTES: usize = 64 * 1024 * 1024;

/// Why the agent gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No agent has the run directory.
    #[error("the agent is not running")]
    NotRunning,
    /// One has, and does not listen: it starts, ends or hangs.
    #[error("the agent{} runs but does not answer", .pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default())]
    NotAnswering {
        /// Its process.
        pid: Option<i32>,
    },
    /// The socket is for others.
    #[error("{}: permission denied", .socket.display())]
    PermissionDenied {
        /// The control socket.
        socket: PathBuf,
        /// The group that may open it, unless that is root's.
        group: Option<String>,
    },
    /// It answered why not.
    #[error("{}", .0.errors.join("; "))]
    Problem(api::Problem),
    /// It answered something else.
    #[error("unexpected answer from the agent: {0}")]
    Protocol(String),
    /// The connection failed.
    #[error("{}: {source}", .socket.display())]
    Io {
        /// The control socket.
        socket: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// A way to the running agent.
#[derive(Debug)]
pub struct Client {
    run_dir: PathBuf,
    runtime: Runtime,
    /// Opened to see whether the agent is there, and used for the first request.
    first: Option<UnixStream>,
}

impl Client {
    /// Finds the agent of a run directory.
    pub fn connect(run_dir: &Path) -> Result<Self, ClientError> {
        let io_error = |source| ClientError::Io { socket: run_dir.join(server::SOCKET), source };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(io_error)?;
        let first = Some(runtime.block_on(open(run_dir))?);
        Ok(Self { run_dir: run_dir.to_owned(), runtime, first })
    }

    /// For `meshd status`.
    pub fn status(&mut self) -> Result<api::Status, ClientError> {
        self.request(Method::GET, "/v1/status", Bytes::new(), READ_LIMIT)
    }

    /// What a reload would change in the kernel.
    pub fn plan(&mut self) -> Result<api::Plan, ClientError> {
        self.request(Method::GET, "/v1/plan", Bytes::new(), CHANGE_LIMIT)
    }

    /// Applies edited files.
    pub fn reload(&mut self) -> Result<api::Reloaded, ClientError> {
        self.request(Method::POST, "/v1/reload", Bytes::new(), CHANGE_LIMIT)
    }

    /// Has the agent remove what it programmed and end. It may live a moment longer than its answer: see
    /// [`super::Running::wait`].
    pub fn down(&mut self, keep_guard: bool) -> Result<(), ClientError> {
        let body = serde_json::to_vec(&api::Down { keep_guard });
        let body = body.map_err(|error| ClientError::Protocol(error.to_string()))?;
        let _: serde_json::Value = self.request(Method::POST, "/v1/down", body.into(), CHANGE_LIMIT)?;
        Ok(())
    }

    /// Which peers run meshd; takes some seconds when one does not.
    pub fn agents(&mut self) -> Result<api::Agents, ClientError> {
        self.request(Method::GET, "/v1/agents", Bytes::new(), CHANGE_LIMIT)
    }

    /// Has the agent call peers and ask theirs; takes some seconds when one does not answer.
    pub fn doctor(&mut self, request: &api::DoctorRequest) -> Result<api::Examined, ClientError> {
        let body = serde_json::to_vec(request).map_err(|error| ClientError::Protocol(error.to_string()))?;
        self.request(Method::POST, "/v1/doctor", body.into(), CHANGE_LIMIT)
    }

    /// Has the agent let somebody in by an invitation, or nobody any more.
    pub fn decide(&mut self, decision: &api::Decision) -> Result<(), ClientError> {
        let body = serde_json::to_vec(decision).map_err(|error| ClientError::Protocol(error.to_string()))?;
        let _: serde_json::Value = self.request(Method::POST, "/v1/invitation", body.into(), CHANGE_LIMIT)?;
        Ok(())
    }

    /// Has the agent rotate keys; returns once sessions under the new ones stand, or after some seconds.
    pub fn rotate(&mut self, request: &api::RotateRequest) -> Result<api::Rotated, ClientError> {
        let body = serde_json::to_vec(request).map_err(|error| ClientError::Protocol(error.to_string()))?;
        self.request(Method::POST, "/v1/rotate", body.into(), ROTATION_LIMIT)
    }

    /// Measures the way to a peer. Progress goes to `progress`.
    pub fn bench(
        &mut self,
        request: &api::BenchRequest,
        mut progress: impl FnMut(&api::BenchProgress),
    ) -> Result<api::Report, ClientError> {
        let protocol = |error: serde_json::Error| ClientError::Protocol(error.to_string());
        let body = serde_json::to_vec(request).map_err(protocol)?;
        let first = self.first.take();
        let run_dir = &self.run_dir;
        self.runtime.block_on(async {
            let mut response = send(run_dir, first, Method::POST, "/v1/bench", body.into()).await?;
            if !response.status().is_success() {
                let (status, body) = whole(run_dir, response).await?;
                return Err(refused(status, &body));
            }
            let mut pending = Vec::new();
            while let Ok(Some(frame)) = timeout(READ_LIMIT, response.frame()).await {
                let frame = frame.map_err(|error| failed(run_dir, error))?;
                pending.extend_from_slice(frame.data_ref().map_or(&[][..], |bytes| bytes));
                while let Some(end) = pending.iter().position(|&byte| byte == b'\n') {
                    let line: Vec<u8> = pending.drain(..=end).collect();
                    match serde_json::from_slice(&line).map_err(protocol)? {
                        api::BenchEvent::Progress(now) => progress(&now),
                        api::BenchEvent::Report(report) => return Ok(*report),
                        api::BenchEvent::Problem(problem) => return Err(ClientError::Problem(problem)),
                    }
                }
            }
            Err(ClientError::NotAnswering { pid: running(run_dir).and_then(|agent| agent.pid) })
        })
    }

    fn request<T: DeserializeOwned>(
        &mut self,
        method: Method,
        path: &str,
        body: Bytes,
        limit: Duration,
    ) -> Result<T, ClientError> {
        let first = self.first.take();
        let exchange = exchange(&self.run_dir, first, method, path, body);
        let outcome = self.runtime.block_on(async { tokio::time::timeout(limit, exchange).await });
        let (status, body) = outcome
            .map_err(|_| ClientError::NotAnswering { pid: running(&self.run_dir).and_then(|agent| agent.pid) })??;
        if !status.is_success() {
            return Err(refused(status, &body));
        }
        serde_json::from_slice(&body).map_err(|error| ClientError::Protocol(error.to_string()))
    }
}

async fn open(run_dir: &Path) -> Result<UnixStream, ClientError> {
    let socket = run_dir.join(server::SOCKET);
    // A full backlog says EAGAIN at once, as tokio's sockets do not block: an agent under attack, so ask again.
    let mut patience = 50;
    loop {
        let error = match UnixStream::connect(&socket).await {
            Ok(stream) => return Ok(stream),
            Err(error) => error,
        };
        return Err(match error.kind() {
            io::ErrorKind::WouldBlock if patience > 0 => {
                patience -= 1;
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => match running(run_dir) {
                Some(agent) => ClientError::NotAnswering { pid: agent.pid },
                None => ClientError::NotRunning,
            },
            io::ErrorKind::PermissionDenied => ClientError::PermissionDenied { group: group_of(&socket), socket },
            _ => ClientError::Io { socket, source: error },
        });
    }
}

fn group_of(socket: &Path) -> Option<String> {
    use std::os::unix::fs::MetadataExt as _;
    let gid = std::fs::symlink_metadata(socket).ok()?.gid();
    if gid == 0 {
        return None;
    }
    Some(Group::from_gid(Gid::from_raw(gid)).ok()??.name)
}

async fn exchange(
    run_dir: &Path,
    first: Option<UnixStream>,
    method: Method,
    path: &str,
    body: Bytes,
) -> Result<(StatusCode, Bytes), ClientError> {
    whole(run_dir, send(run_dir, first, method, path, body).await?).await
}

async fn send(
    run_dir: &Path,
    first: Option<UnixStream>,
    method: Method,
    path: &str,
    body: Bytes,
) -> Result<Response<Incoming>, ClientError> {
    let stream = match first {
        Some(stream) => stream,
        None => open(run_dir).await?,
    };
    let failed = |error| failed(run_dir, error);
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, "meshd")
        .body(Full::new(body))
        .map_err(|error| ClientError::Protocol(error.to_string()))?;
    // Its errors are those of the response below; its end without error is the agent's, which closes after the answer.
    tokio::spawn(connection);
    sender.send_request(request).await.map_err(failed)
}

async fn whole(run_dir: &Path, response: Response<Incoming>) -> Result<(StatusCode, Bytes), ClientError> {
    let status = response.status();
    let body = Limited::new(response.into_body(), MAX_ANSWER_BYTES).collect().await;
    let body = body
        .map_err(|error| ClientError::Io { socket: run_dir.join(server::SOCKET), source: io::Error::other(error) })?;
    Ok((status, body.to_bytes()))
}

fn failed(run_dir: &Path, error: hyper::Error) -> ClientError {
    ClientError::Io { socket: run_dir.join(server::SOCKET), source: io::Error::other(error) }
}

fn refused(status: StatusCode, body: &[u8]) -> ClientError {
    let problem = serde_json::from_slice(body);
    problem.map_or_else(|_| ClientError::Protocol(status.to_string()), ClientError::Problem)
}
