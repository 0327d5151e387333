//! nft(8): tables in, tables out, one transaction each.
//!
//! Whether a table is still ours unchanged is decided without knowing how this version of nft prints a rule: right after a
//! table is put there it is listed once, and the listing's fingerprint is kept with that of the text. A later listing that
//! differs (counters aside) means that somebody changed the table. Between listings the kernel's ruleset generation
//! tells at the price of one system call pair whether anything in nft changed at all.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rtnetlink::sys::{Socket, SocketAddr};
use serde_json::Value;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use super::Error;
use crate::plan::NftTable;
use crate::plan::tables::fnv1a;

/// For one run: a transaction takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(10);
/// Processes that are known as our own: more than a reconciliation starts.
const REMEMBERED: usize = 64;

/// The program nft(8).
#[derive(Debug)]
pub struct Nft {
    program: PathBuf,
    /// The last processes that were started, newest last.
    started: Mutex<VecDeque<u32>>,
}

impl Nft {
    /// A path, or a name to be looked up in `PATH`.
    pub fn new(program: impl Into<PathBuf>) -> Self {
        Self { program: program.into(), started: Mutex::default() }
    }

    /// Whether this was one of the last processes that were started here.
    pub fn started(&self, pid: u32) -> bool {
        self.processes().contains(&pid)
    }

    fn processes(&self) -> MutexGuard<'_, VecDeque<u32>> {
        self.started.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a table in the place of one of the same name, without a moment of neither.
    pub async fn replace(&self, table: &NftTable) -> Result<(), Error> {
        let NftTable { name, text } = table;
        // `table inet NAME` makes the deletion valid when there was none; all three are one transaction.
        let script = format!("table inet {name}\ndelete table inet {name}\n{text}");
        self.run(&["-f", "-"], &script).await.map(drop)
    }

    /// Removes a table; one that is not there is no error.
    pub async fn remove(&self, name: &str) -> Result<(), Error> {
        let script = format!("table inet {name}\ndelete table inet {name}\n");
        self.run(&["-f", "-"], &script).await.map(drop)
    }

    /// The fingerprint of what the kernel holds under this name.
    pub async fn listing(&self, name: &str) -> Result<Option<String>, Error> {
        match self.run(&["-j", "list", "table", "inet", name], "").await {
            Ok(text) => {
                let mut listing: Value = serde_json::from_str(&text)
                    .map_err(|error| Error::Nft(format!("list table inet {name}: {error}")))?;
                forget_counters(&mut listing);
                Ok(Some(format!("{:016x}", fnv1a(listing.to_string().as_bytes()))))
            }
            Err(Error::Nft(message)) if message.contains("No such file or directory") => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn run(&self, arguments: &[&str], input: &str) -> Result<String, Error> {
        let mut command = Command::new(&self.program);
        command.args(arguments).env("LC_ALL", "C").kill_on_drop(true);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        end_with_us(&mut command);
        let mut child = command.spawn().map_err(Error::NftMissing)?;
        {
            let mut started = self.processes();
            started.extend(child.id());
            if started.len() > REMEMBERED {
                started.pop_front();
            }
        }
        let finished = async {
            if let Some(mut stdin) = child.stdin.take() {
                // A program that ends without reading says why on its standard error.
                let _ = stdin.write_all(input.as_bytes()).await;
            }
            child.wait_with_output().await.map_err(Error::NftMissing)
        };
        let output = tokio::time::timeout(PATIENCE, finished)
            .await
            .map_err(|_| Error::Nft(format!("{}: no end after {PATIENCE:?}", arguments.join(" "))))??;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let stderr = String::from_utf8_lossy(&output.stderr);
        let lines: Vec<&str> = stderr.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        Err(Error::Nft(if lines.is_empty() { output.status.to_string() } else { lines.join(" ") }))
    }
}

/// An nft that outlives an agent that was killed would put a table back that the next `meshd down` has removed.
fn end_with_us(command: &mut Command) {
    let us = std::process::id();
    // SAFETY: between fork and exec only prctl(2) and getppid(2) are called, which take no lock and allocate nothing.
    unsafe {
        command.pre_exec(move || {
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                return Err(std::io::Error::last_os_error());
            }
            // Dead before the kernel was told to watch.
            if libc::getppid().cast_unsigned() != us {
                return Err(std::io::Error::from_raw_os_error(libc::ESRCH));
            }
            Ok(())
        });
    }
}

/// What changes by itself: packets counted, and the version of the program.
fn forget_counters(value: &mut Value) {
    match value {
        Value::Array(values) => {
            values.retain(|value| value.get("metainfo").is_none());
            values.iter_mut().for_each(forget_counters);
        }
        Value::Object(map) => {
            if let Some(counter) = map.get_mut("counter") {
                *counter = Value::Null;
            }
            map.values_mut().for_each(forget_counters);
        }
        _ => {}
    }
}

/// Grows by one with every change of the ruleset of this network namespace, whoever makes it
/// (`NFT_MSG_GETGEN` of nfnetlink).
pub fn generation() -> Result<u32, Error> {
    const NETLINK_NETFILTER: isize = 12;
    const NLM_F_REQUEST: u16 = 1;
    const GETGEN: u16 = (10 << 8) | 16; // NFNL_SUBSYS_NFTABLES, NFT_MSG_GETGEN
    const NFTA_GEN_ID: u16 = 1;
    let failed = |source| Error::Netlink { what: "nft generation".to_owned(), source };

    let mut socket = Socket::new(NETLINK_NETFILTER).map_err(failed)?;
    socket.bind_auto().map_err(failed)?;
    socket.connect(&SocketAddr::new(0, 0)).map_err(failed)?;
    // struct nlmsghdr (length, type, flags, sequence, port), then struct nfgenmsg (family, version, resource).
    let mut request = Vec::with_capacity(20);
    request.extend(20_u32.to_ne_bytes());
    request.extend(GETGEN.to_ne_bytes());
    request.extend(NLM_F_REQUEST.to_ne_bytes());
    request.extend([0; 12]);
    socket.send(&request, 0).map_err(failed)?;
    let (answer, _) = socket.recv_from_full().map_err(failed)?;

    let mut attributes = answer.get(20..).unwrap_or_default();
    while let Some((&[l0, l1, t0, t1], _)) = attributes.split_first_chunk::<4>() {
        let length = usize::from(u16::from_ne_bytes([l0, l1]));
        let value = attributes.get(4..8).and_then(|bytes| <[u8; 4]>::try_from(bytes).ok());
        if let (NFTA_GEN_ID, 8, Some(bytes)) = (u16::from_ne_bytes([t0, t1]), length, value) {
            return Ok(u32::from_be_bytes(bytes));
        }
        attributes = attributes.get(length.next_multiple_of(4).max(4)..).unwrap_or_default();
    }
    Err(failed(std::io::Error::other("no generation in the kernel's answer")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_counters_and_the_version_are_forgotten() {
        let mut listing: Value = serde_json::from_str(
            r#"{"nftables":[{"metainfo":{"version":"1.0.6"}},
                {"rule":{"handle":3,"expr":[{"counter":{"packets":7,"bytes":70}},{"drop":null}]}}]}"#,
        )
        .unwrap();
        forget_counters(&mut listing);
        assert_eq!(
            listing.to_string(),
            r#"{"nftables":[{"rule":{"expr":[{"counter":null},{"drop":null}],"handle":3}}]}"#
        );
    }
}
