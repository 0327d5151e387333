//! Descriptors that outlive this process in the service manager's store (sd_pid_notify_with_fds(3)): the queues of the TUN device
//! and the sockets of the UDP port.
//!
//! With them a restart takes nothing away from the kernel. The interface stays, and with it its addresses, the routes through it
//! and the sockets of this host's own connections; what is sent meanwhile waits in the queues. The next process takes over what
//! is still what it should be, and makes the rest anew. Without such a manager all of this does nothing.
//!
//! Whoever holds a descriptor keeps the interface alive, and the port taken. So what is no longer used is taken out of the store,
//! and the interface is deleted by its name.

use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, FromRawFd as _, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use sd_notify::NotifyState;

use super::running::Running;
use crate::config;
use crate::dataplane::{self, Dataplane, Offloads, Sockets, Tun, Udp, interface_of};
use crate::host::{self, Reconciler};

/// Names in the store.
const TUN: &str = "tun";
const UDP: &str = "udp";
/// For the manager to let go of a port.
const PATIENCE: Duration = Duration::from_secs(1);
const LOOK: Duration = Duration::from_millis(10);

/// What the process before this one has left.
#[derive(Default)]
pub(super) struct Inherited {
    tun: Vec<OwnedFd>,
    udp: Vec<OwnedFd>,
}

/// What of it can be used.
#[derive(Default)]
pub(super) struct Fit {
    pub(super) tun: Option<Tun>,
    pub(super) udp: Option<Sockets>,
}

impl Inherited {
    /// Takes what was passed to this process (sd_listen_fds(3)). To be called once, before anything else is opened.
    pub(super) fn take() -> Self {
        let mut inherited = Self::default();
        let passed = sd_notify::listen_fds_with_names().map_err(|error| {
            tracing::warn!(%error, "the service manager's descriptors are not usable");
        });
        for (fd, name) in passed.into_iter().flatten() {
            // SAFETY: LISTEN_PID says that the descriptor was passed to this process, and this is the one place that takes it.
            let fd = unsafe { OwnedFd::from_raw_fd(fd) };
            match name.as_str() {
                TUN => inherited.tun.push(fd),
                UDP => inherited.udp.push(fd),
                _ => {
                    tracing::warn!(name, "the service manager passes a descriptor that is not meshd's; it is closed");
                    forget(&name);
                }
            }
        }
        inherited
    }

    /// What of it is as this configuration wants it. The rest is taken out of the store, and the interface away.
    pub(super) async fn sort(
        self,
        host: &config::Host,
        workers: usize,
        offloads: Offloads,
        kernel: &Reconciler,
    ) -> Result<Fit, host::Error> {
        let mut fit = Fit::default();
        if !self.tun.is_empty() {
            match Tun::inherit(&self.tun, &host.interface, workers, offloads) {
                Ok(tun) => fit.tun = Some(tun),
                Err(why) => {
                    tracing::warn!("the kept interface cannot be used: {why}; it is made anew");
                    for interface in self.tun.iter().filter_map(interface_of) {
                        kernel.remove_interface(&interface).await?;
                    }
                    forget(TUN);
                }
            }
        }
        if !self.udp.is_empty() {
            match Udp::inherit(&self.udp, host.listen_port, workers, offloads) {
                Ok(udp) => fit.udp = Some(udp),
                Err(why) => {
                    tracing::warn!("the kept UDP sockets cannot be used: {why}; they are made anew");
                    forget(UDP);
                    drop(self.udp);
                    freed(host.listen_port).await;
                }
            }
        }
        if let (Some(_), Some(udp)) = (&fit.tun, &fit.udp) {
            tracing::info!(
                interface = host.interface,
                port = udp[0].port(),
                "taken over from the process before this one"
            );
        }
        Ok(fit)
    }
}

/// Waits until the manager has closed what it was told to, for it does so in its own time.
async fn freed(port: u16) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).is_err() && tokio::time::Instant::now() < deadline {
        tokio::time::sleep(LOOK).await;
    }
}

/// Has the manager keep this interface, and no other.
pub(super) fn keep_tun(tun: &Tun) {
    forget(TUN);
    keep(TUN, &tun.fds().collect::<Vec<_>>());
}

/// Has the manager keep these sockets, and no others.
pub(super) fn keep_udp(sockets: &[Udp]) {
    forget(UDP);
    keep(UDP, &sockets.iter().map(AsFd::as_fd).collect::<Vec<_>>());
}

/// Has the manager let go of all.
pub(super) fn forget_all() {
    forget(TUN);
    forget(UDP);
}

fn keep(name: &str, fds: &[BorrowedFd<'_>]) {
    // A manager that watches a socket for errors is called for each packet that arrives (sock_def_readable in net/core/sock.c).
    let unwatched = NotifyState::Custom("FDPOLL=0");
    let result = sd_notify::notify_with_fds(&[NotifyState::FdStore, NotifyState::FdName(name), unwatched], fds);
    if let Err(error) = result {
        tracing::warn!(%error, name, "the service manager cannot keep this over a restart");
    }
}

fn forget(name: &str) {
    // A manager that cannot be told has nothing of ours.
    let _ = sd_notify::notify(&[NotifyState::FdStoreRemove, NotifyState::FdName(name)]);
}

impl Running {
    /// Takes the interface away though the manager holds it, too. By the descriptor it is known to be ours.
    pub(super) async fn remove_interface(&self, kernel: &Reconciler) -> Result<(), host::Error> {
        let interface = self.dataplane().as_ref().and_then(Dataplane::interface);
        match interface {
            Some(interface) => kernel.remove_interface(&interface).await,
            None => Ok(()),
        }
    }

    /// Makes the interface and the forwarding loop anew. Sessions stay, for they are the device's, and so do the sockets.
    pub(super) async fn rebuild(&self, kernel: &Reconciler, host: &config::Host) -> io::Result<()> {
        self.remove_interface(kernel).await.map_err(|error| io::Error::other(error.to_string()))?;
        let kept = self.dataplane().as_ref().map(Dataplane::sockets);
        let sockets = if let Some(sockets) = kept {
            sockets
        } else {
            forget(UDP);
            let sockets = Udp::bind(host.listen_port, dataplane::workers(host.workers), self.offloads)?;
            keep_udp(&sockets);
            Arc::new(sockets)
        };
        let tun = Tun::create(&host.interface, sockets.len(), self.offloads)?;
        keep_tun(&tun);
        // What is left of its threads ends before others read the same sockets.
        drop(self.dataplane().take());
        *self.dataplane() = Some(Dataplane::start(Arc::clone(&self.device), tun, sockets)?);
        Ok(())
    }
}
