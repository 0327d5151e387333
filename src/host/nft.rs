//! nft(8): tables in, tables out, one transaction each.
//!
//! Whether a table is still ours unchanged is decided without knowing how this version of nft prints a rule: right after a
//! table is put there it is listed once, and the listing's fingerprint is kept with that of the text. A later listing that
//! differs (counters aside) means that somebody changed the table. Between listings the kernel's ruleset generation
//! tells at the price of one system call pair whether anything in nft changed at all.

use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rtnetlink::sys::{Socket, SocketAddr};
use serde_json::Value;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use super::Error;
use super::news::attributes;
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
    const GETGEN: u16 = 16;
    const NFTA_GEN_ID: u16 = 1;
    let failed = |source| Error::Netlink { what: "nft generation".to_owned(), source };
    let answer = ask(GETGEN, &[]).map_err(failed)?;
    let mut attributes = attributes(answer.get(20..).unwrap_or_default());
    let id = attributes.find_map(|(kind, value)| (kind == NFTA_GEN_ID).then(|| value.try_into().ok()).flatten());
    id.map(u32::from_be_bytes).ok_or_else(|| failed(io::Error::other("no generation in the kernel's answer")))
}

/// Whether `table inet NAME` is missing for certain (`NFT_MSG_GETTABLE`): sooner known than by starting nft(8).
pub fn missing(name: &str) -> bool {
    const GETTABLE: u16 = 1;
    const NFTA_TABLE_NAME: u16 = 1;
    const NLMSG_ERROR: u16 = 2;
    let length = (4 + name.len() + 1) as u16;
    let mut attribute = [length.to_ne_bytes(), NFTA_TABLE_NAME.to_ne_bytes()].concat();
    attribute.extend(name.bytes());
    attribute.resize(usize::from(length).next_multiple_of(4), 0);
    // struct nlmsgerr: a negated error number behind the header.
    ask(GETTABLE, &attribute).is_ok_and(|answer| {
        answer.get(4..6) == Some(&NLMSG_ERROR.to_ne_bytes())
            && answer.get(16..20) == Some(&(-libc::ENOENT).to_ne_bytes())
    })
}

/// The kernel's answer to one request about family `inet`.
fn ask(kind: u16, attributes: &[u8]) -> io::Result<Vec<u8>> {
    const NETLINK_NETFILTER: isize = 12;
    const NFNL_SUBSYS_NFTABLES: u16 = 10;
    const NLM_F_REQUEST: u16 = 1;
    const NFPROTO_INET: u8 = 1;
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    // struct nlmsghdr (length, type, flags, sequence, port), then struct nfgenmsg (family, version, resource).
    let mut request = Vec::with_capacity(20 + attributes.len());
    request.extend((20 + attributes.len() as u32).to_ne_bytes());
    request.extend((NFNL_SUBSYS_NFTABLES << 8 | kind).to_ne_bytes());
    request.extend(NLM_F_REQUEST.to_ne_bytes());
    request.extend([0; 8]);
    request.extend([NFPROTO_INET, 0, 0, 0]);
    request.extend(attributes);
    socket.send(&request, 0)?;
    Ok(socket.recv_from_full()?.0)
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
