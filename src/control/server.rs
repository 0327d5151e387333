//! The agent's own socket: HTTP+JSON on `RUN_DIR/control.sock`.
//!
//! | request | who | answer |
//! | --- | --- | --- |
//! | `GET /v1/status` | whoever the socket's mode lets in | [`api::Status`] |
//! | `GET /v1/plan` | the same | [`api::Plan`] |
//! | `GET /metrics` | the same | [`metrics`] |
//! | `GET /v1/agents` | the same | [`api::Agents`], after some seconds |
//! | `POST /v1/reload` | root and the agent's own user | [`api::Reloaded`] |
//! | `POST /v1/down`, [`api::Down`] | root and the agent's own user | `{}` |
//! | `POST /v1/doctor`, [`api::DoctorRequest`] | the same | [`api::Examined`], after some seconds |
//! | `POST /v1/invitation`, [`api::Decision`] | the same | `{}` |
//! | `POST /v1/rotate`, [`api::RotateRequest`] | the same | [`api::Rotated`], after some seconds |
//! | `POST /v1/bench`, [`api::BenchRequest`] | the same | lines of [`api::BenchEvent`]; ends when the client goes |
//!
//! Everything else than 200 carries an [`api::Problem`]. A connection carries one request. A change that was begun is
//! carried through even if the client goes away.

use std::future::Future;
use std::io;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::{Request, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use futures_util::stream::poll_fn;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use nix::unistd::{Gid, Group, Uid};
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::sync::mpsc;

use super::connections::{self, Caller};
use super::socket::{BindError, Listener};
use super::{Agent, RunLock, api, metrics};
use crate::clock::unix_now;

/// The socket's name in the run directory.
pub const SOCKET: &str = "control.sock";

/// The group whose members may read the status.
pub const GROUP: &str = "meshd";

const MAX_CONNECTIONS: usize = 64;
const MAX_HEADER_BYTES: usize = 16 * 1024;
const MAX_BODY_BYTES: usize = 64 * 1024;
/// For the head of a request, and again for its body.
const READ_TIMEOUT: Duration = Duration::from_secs(5);
/// For a whole connection: longer than any reload, so that only a client that does not read its answer meets it.
const LIFETIME: Duration = Duration::from_secs(300);

/// Listens on the control socket of the run directory that `lock` holds.
pub fn bind(lock: &RunLock) -> Result<Listener, BindError> {
    bind_in(lock.run_dir())
}

fn bind_in(run_dir: &Path) -> Result<Listener, BindError> {
    Listener::bind(&run_dir.join(SOCKET), 0o660, socket_group())
}

/// `meshd` where such a group exists, else root's; for an agent that is not root, its own.
fn socket_group() -> Option<Gid> {
    if !Uid::effective().is_root() {
        return None;
    }
    let group = Group::from_name(GROUP).ok().flatten();
    Some(group.map_or(Gid::from_raw(0), |group| group.gid))
}

/// Answers until `shutdown` resolves, then lets running requests finish, `down`'s own answer among them. On a
/// current-thread runtime as on any other.
pub async fn serve<A: Agent>(agent: Arc<A>, listener: Listener, shutdown: impl Future<Output = ()>) -> io::Result<()> {
    let router = Router::new()
        .route("/v1/status", get(status::<A>))
        .route("/v1/plan", get(plan::<A>))
        .route("/v1/agents", get(agents::<A>))
        .route("/v1/bench", post(bench::<A>))
        .route("/v1/doctor", post(doctor::<A>))
        .route("/v1/invitation", post(decide::<A>))
        .route("/v1/rotate", post(rotate::<A>))
        .route("/v1/reload", post(reload::<A>))
        .route("/v1/down", post(down::<A>))
        .route("/metrics", get(metrics_page::<A>))
        .fallback(async || problem(StatusCode::NOT_FOUND, "no such resource; this agent may be older than the client"))
        .method_not_allowed_fallback(async || problem(StatusCode::METHOD_NOT_ALLOWED, "not with this method"))
        .with_state(agent);
    connections::serve(listener, MAX_CONNECTIONS, shutdown, |stream, caller| {
        connection(stream, router.clone().layer(Extension(caller.clone())), caller)
    })
    .await
}

async fn connection(stream: UnixStream, router: Router, mut caller: Caller) {
    let exchange = async {
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(READ_TIMEOUT)
            .max_header_size(MAX_HEADER_BYTES)
            .keep_alive(false)
            .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
        let mut connection = pin!(connection);
        tokio::select! {
            ended = &mut connection => return ended,
            _ = caller.closing.wait_for(|closing| *closing) => connection.as_mut().graceful_shutdown(),
        }
        connection.await
    };
    match tokio::time::timeout(LIFETIME, exchange).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::trace!(%error, "control: connection"),
        Err(_) => tracing::debug!("control: a client did not read its answer"),
    }
}

async fn status<A: Agent>(State(agent): State<Arc<A>>) -> Json<api::Status> {
    Json(agent.status().await)
}

async fn plan<A: Agent>(State(agent): State<Arc<A>>) -> Response {
    answer(agent.plan().await)
}

async fn agents<A: Agent>(State(agent): State<Arc<A>>, Extension(caller): Extension<Caller>) -> Response {
    carry_through(&caller, async move { Ok(agent.agents().await) }).await
}

async fn metrics_page<A: Agent>(State(agent): State<Arc<A>>) -> Response {
    let now = unix_now();
    ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], metrics::render(&agent.status().await, now)).into_response()
}

async fn reload<A: Agent>(State(agent): State<Arc<A>>, Extension(caller): Extension<Caller>) -> Response {
    if let Some(refusal) = refusal(&caller) {
        return refusal;
    }
    carry_through(&caller, async move { agent.reload().await }).await
}

async fn down<A: Agent>(
    State(agent): State<Arc<A>>,
    Extension(caller): Extension<Caller>,
    request: Request<Body>,
) -> Response {
    let down: api::Down = match asked(&caller, request).await {
        Ok(down) => down,
        Err(refusal) => return refusal,
    };
    carry_through(&caller, async move { agent.down(down.keep_guard).await.map(|()| serde_json::json!({})) }).await
}

async fn decide<A: Agent>(
    State(agent): State<Arc<A>>,
    Extension(caller): Extension<Caller>,
    request: Request<Body>,
) -> Response {
    let decision: api::Decision = match asked(&caller, request).await {
        Ok(decision) => decision,
        Err(refusal) => return refusal,
    };
    carry_through(&caller, async move { agent.decide(decision).await.map(|()| serde_json::json!({})) }).await
}

async fn doctor<A: Agent>(
    State(agent): State<Arc<A>>,
    Extension(caller): Extension<Caller>,
    request: Request<Body>,
) -> Response {
    let request: api::DoctorRequest = match asked(&caller, request).await {
        Ok(request) => request,
        Err(refusal) => return refusal,
    };
    carry_through(&caller, async move { Ok(agent.doctor(request).await) }).await
}

async fn rotate<A: Agent>(
    State(agent): State<Arc<A>>,
    Extension(caller): Extension<Caller>,
    request: Request<Body>,
) -> Response {
    let request: api::RotateRequest = match asked(&caller, request).await {
        Ok(request) => request,
        Err(refusal) => return refusal,
    };
    carry_through(&caller, async move { agent.rotate(request).await }).await
}

async fn bench<A: Agent>(
    State(agent): State<Arc<A>>,
    Extension(mut caller): Extension<Caller>,
    request: Request<Body>,
) -> Response {
    let request = match asked::<Option<api::BenchRequest>>(&caller, request).await {
        Ok(Some(request)) => request,
        Ok(None) => return problem(StatusCode::BAD_REQUEST, "which peer?"),
        Err(refusal) => return refusal,
    };
    let (events, mut received) = mpsc::channel(16);
    caller.busy.store(true, Ordering::Relaxed);
    tokio::spawn(async move {
        let ending = async {
            let _ = caller.closing.wait_for(|closing| *closing).await;
        };
        tokio::select! {
            () = agent.bench(request, events.clone()) => {}
            () = events.closed() => {}
            () = ending => {
                let errors = vec!["the agent ends".to_owned()];
                let problem = api::Problem { refused: false, errors, remedy: None };
                let _ = events.send(api::BenchEvent::Problem(problem)).await;
            }
        }
        caller.busy.store(false, Ordering::Relaxed);
    });
    let lines = poll_fn(move |context| {
        received.poll_recv(context).map(|event| event.map(|event| serde_json::to_vec(&event).map(line)))
    });
    ([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response()
}

fn line(mut json: Vec<u8>) -> Vec<u8> {
    json.push(b'\n');
    json
}

/// What somebody who may change things asks for; the error is the answer to anybody else.
async fn asked<T: DeserializeOwned + Default>(caller: &Caller, request: Request<Body>) -> Result<T, Response> {
    match refusal(caller) {
        Some(refusal) => Err(refusal),
        None => body(request).await,
    }
}

/// The request's body as JSON; an empty one is the default.
async fn body<T: DeserializeOwned + Default>(request: Request<Body>) -> Result<T, Response> {
    let body = axum::body::to_bytes(request.into_body(), MAX_BODY_BYTES);
    match tokio::time::timeout(READ_TIMEOUT, body).await {
        Err(_) => Err(problem(StatusCode::REQUEST_TIMEOUT, "the request's body did not arrive")),
        Ok(Err(_)) => Err(problem(StatusCode::PAYLOAD_TOO_LARGE, "the request's body is cut short or beyond 64 KiB")),
        Ok(Ok(bytes)) if bytes.is_empty() => Ok(T::default()),
        Ok(Ok(bytes)) => serde_json::from_slice(&bytes)
            .map_err(|error| problem(StatusCode::BAD_REQUEST, &format!("the request's body: {error}"))),
    }
}

/// To whoever may not change.
fn refusal(caller: &Caller) -> Option<Response> {
    if caller.uid == 0 || caller.uid == Uid::effective().as_raw() {
        return None;
    }
    let problem = api::Problem {
        refused: true,
        errors: vec![format!("uid {} may look but not change", caller.uid)],
        remedy: Some("the same command with sudo".to_owned()),
    };
    Some((StatusCode::FORBIDDEN, Json(problem)).into_response())
}

/// Runs a change in a task of its own, so that a client that goes away does not leave it half done.
async fn carry_through<T: serde::Serialize + Send + 'static>(
    caller: &Caller,
    change: impl Future<Output = Result<T, api::Problem>> + Send + 'static,
) -> Response {
    caller.busy.store(true, Ordering::Relaxed);
    let result = tokio::spawn(change).await;
    caller.busy.store(false, Ordering::Relaxed);
    match result {
        Ok(result) => answer(result),
        Err(_) => problem(StatusCode::INTERNAL_SERVER_ERROR, "the agent failed; its log says why"),
    }
}

fn answer<T: serde::Serialize>(result: Result<T, api::Problem>) -> Response {
    match result {
        Ok(value) => Json(value).into_response(),
        Err(problem) if problem.refused => (StatusCode::UNPROCESSABLE_ENTITY, Json(problem)).into_response(),
        Err(problem) => (StatusCode::INTERNAL_SERVER_ERROR, Json(problem)).into_response(),
    }
}

fn problem(status: StatusCode, what: &str) -> Response {
    let problem = api::Problem { refused: false, errors: vec![what.to_owned()], remedy: None };
    (status, Json(problem)).into_response()
}
