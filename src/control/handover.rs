//! Namespaces from their owners' hands: `RUN_DIR/attach.sock`, which any user of this host may connect to.
//!
//! A request is one line of JSON, [`Request`], with the descriptors that it is about beside it (`SCM_RIGHTS` of unix(7));
//! the answer is one line, [`Answer`]. A descriptor cannot become another's container the way a process number can, and
//! names no file that its sender could not open. Who asks is told by `SO_PEERCRED`.

use std::future::Future;
use std::io::{self, BufRead as _, IoSlice, IoSliceMut, Read as _};
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use serde::{Deserialize, Serialize};

use super::api::Problem;
use super::socket::{BindError, Listener};
use super::{RunLock, connections};
use crate::attach;
use crate::host::inside::Inside;

/// The socket's name in the run directory.
pub const SOCKET: &str = "attach.sock";
/// Anybody may ask.
const MODE: u32 = 0o666;
/// `SCM_MAX_FD` in include/net/scm.h.
const MAX_DESCRIPTORS: usize = 253;
/// Of a request, in bytes.
const LONGEST: usize = 64 * 1024;
/// Of an answer: a list of all that fits on all bridges.
const LONGEST_ANSWER: u64 = 16 << 20;
const MAX_CONNECTIONS: usize = 64;
/// The agent may be in the middle of a reload.
const PATIENCE: Duration = Duration::from_secs(30);

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Request {
    /// With two descriptors: of the network namespace, and of the process (pidfd) with whose end the container is gone; or
    /// without the second, when nothing tells.
    Attach {
        /// Name, bridge and addresses.
        request: attach::Request,
        /// What the interface in the container is to be called.
        interface: String,
    },
    /// The container of this name.
    Detach {
        /// Its name.
        name: String,
    },
    /// What is attached that the caller may know of.
    List,
}

/// What comes back.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Answer {
    /// The port is there; the rest is to be done inside.
    Attached(Inside),
    /// It is gone.
    Detached,
    /// All of the caller's; root sees everybody's.
    List(Vec<Listed>),
    /// Why not.
    Problem(Problem),
}

/// A line of the list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    /// The container's name.
    pub name: String,
    /// The bridge.
    pub bridge: String,
    /// Whose it is.
    pub uid: u32,
    /// In each subnet.
    pub addresses: Vec<IpAddr>,
    /// Ports of this host that lead to it.
    #[serde(default)]
    pub publish: Vec<attach::Opening>,
    /// Whether it is there; the addresses of one that is not are kept for it.
    pub attached: bool,
}

/// Sends a request with its descriptors.
///
/// # Errors
/// When the agent is gone.
pub fn send(stream: &UnixStream, request: &Request, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    let raw: Vec<_> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control: &[ControlMessage<'_>] = if raw.is_empty() { &[] } else { &rights };
    let sent = sendmsg::<()>(stream.as_raw_fd(), &[IoSlice::new(&line)], control, MsgFlags::MSG_NOSIGNAL, None)?;
    if sent == line.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}

/// Reads a request that came in one piece, as a Unix socket delivers what was sent in one.
///
/// # Errors
/// [`io::ErrorKind::WouldBlock`] when there is none yet; otherwise when it is none.
pub fn receive(fd: BorrowedFd<'_>) -> io::Result<(Request, Vec<OwnedFd>)> {
    let mut buffer = vec![0; LONGEST];
    // As many as the kernel lets through: of those that find no room some would stay open, and nobody would know of them.
    let mut control = nix::cmsg_space!([std::os::fd::RawFd; MAX_DESCRIPTORS]);
    let (len, fds) = {
        let mut slices = [IoSliceMut::new(&mut buffer)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT;
        let message = recvmsg::<()>(fd.as_raw_fd(), &mut slices, Some(&mut control), flags)?;
        let mut fds = Vec::new();
        for control in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(raw) = control {
                // SAFETY: the kernel has just made them for this process.
                fds.extend(raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
            }
        }
        (message.bytes, fds)
    };
    let line = buffer[..len].strip_suffix(b"\n").ok_or_else(|| io::Error::other("no request"))?;
    Ok((serde_json::from_slice(line)?, fds))
}

/// Listens in the run directory that `lock` holds.
///
/// # Errors
/// When somebody else does, or may write there.
pub fn bind(lock: &RunLock) -> Result<Listener, BindError> {
    Listener::bind(&lock.run_dir().join(SOCKET), MODE, None)
}

/// Runs `answer` for each client with its user's number, until `shutdown` resolves.
///
/// # Errors
/// Without a runtime that has I/O.
pub async fn serve<F: Future<Output = ()> + Send + 'static>(
    listener: Listener,
    shutdown: impl Future<Output = ()>,
    mut answer: impl FnMut(tokio::net::UnixStream, u32) -> F,
) -> io::Result<()> {
    connections::serve(listener, MAX_CONNECTIONS, shutdown, |stream, caller| answer(stream, caller.uid)).await
}

/// Asks the agent with this run directory.
///
/// # Errors
/// When there is none, or it does not answer.
pub fn ask(run_dir: &Path, request: &Request, fds: &[BorrowedFd<'_>]) -> io::Result<Answer> {
    let stream = UnixStream::connect(run_dir.join(SOCKET))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    send(&stream, request, fds)?;
    let mut line = String::new();
    io::BufReader::new(stream.take(LONGEST_ANSWER)).read_line(&mut line)?;
    Ok(serde_json::from_str(&line)?)
}
