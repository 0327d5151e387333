//! nft(8): tables in, tables out, one transaction each.
//!
//! Whether a table is still ours unchanged is decided without knowing how this version of nft prints a rule: right after a
//! table is put there it is listed once, and the listing's fingerprint is kept with that of the text. A later listing that
//! differs (counters aside) means that somebody changed the table. Between listings the kernel's ruleset generation
//! tells at the price of one system call pair whether anything in nft changed at all.

use std::io;
use std::path::PathBuf;

use rtnetlink::sys::{Socket, SocketAddr};
use serde_json::Value;

use super::Error;
use super::news::{attributes, messages};
use super::program::{Programs, Refusal};
use crate::plan::NftTable;
use crate::plan::tables::fnv1a;

/// The program nft(8).
#[derive(Debug)]
pub struct Nft {
    program: PathBuf,
    programs: Programs,
}

impl Nft {
    /// A path, or a name to be looked up in `PATH`.
    pub fn new(program: impl Into<PathBuf>) -> Self {
        Self { program: program.into(), programs: Programs::default() }
    }

    /// Puts a table in the place of one of the same name, without a moment of neither.
    pub async fn replace(&self, table: &NftTable) -> Result<(), Error> {
        let NftTable { family, name, text } = table;
        // `table FAMILY NAME` makes the deletion valid when there was none; all three are one transaction.
        let script = format!("table {family} {name}\ndelete table {family} {name}\n{text}");
        self.run(&["-f", "-"], &script).await.map(drop)
    }

    /// Removes a table; one that is not there is no error.
    pub async fn remove(&self, family: &str, name: &str) -> Result<(), Error> {
        let script = format!("table {family} {name}\ndelete table {family} {name}\n");
        self.run(&["-f", "-"], &script).await.map(drop)
    }

    /// The fingerprint of what the kernel holds under this name.
    pub async fn listing(&self, family: &str, name: &str) -> Result<Option<String>, Error> {
        match self.run(&["-j", "list", "table", family, name], "").await {
            Ok(text) => {
                let mut listing: Value = serde_json::from_str(&text)
                    .map_err(|error| Error::Nft(format!("list table {family} {name}: {error}")))?;
                forget_counters(&mut listing);
                Ok(Some(format!("{:016x}", fnv1a(listing.to_string().as_bytes()))))
            }
            Err(Error::Nft(message)) if message.contains("No such file or directory") => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// All tables as JSON, without the elements of named sets.
    pub async fn ruleset(&self) -> Result<String, Error> {
        self.run(&["-j", "-t", "list", "ruleset"], "").await
    }

    /// What runs it, and others.
    pub fn programs(&self) -> &Programs {
        &self.programs
    }

    async fn run(&self, arguments: &[&str], input: &str) -> Result<String, Error> {
        self.programs.run(&self.program, arguments, input).await.map_err(|refusal| match refusal {
            Refusal::NotRun(error) => Error::NftMissing(error),
            Refusal::Said(message) => Error::Nft(message),
        })
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
    let answer = ask(GETGEN, 0, 0, &[]).and_then(|socket| socket.recv_from_full()).map_err(failed)?.0;
    let mut attributes = attributes(answer.get(20..).unwrap_or_default());
    let id = attributes.find_map(|(kind, value)| (kind == NFTA_GEN_ID).then(|| value.try_into().ok()).flatten());
    id.map(u32::from_be_bytes).ok_or_else(|| failed(io::Error::other("no generation in the kernel's answer")))
}

/// Whether `table FAMILY NAME` is missing for certain (`NFT_MSG_GETTABLE`): sooner known than by starting nft(8).
pub fn missing(family: &str, name: &str) -> bool {
    const GETTABLE: u16 = 1;
    const NLMSG_ERROR: u16 = 2;
    let family = if family == "bridge" { NFPROTO_BRIDGE } else { NFPROTO_INET };
    let length = (4 + name.len() + 1) as u16;
    let mut attribute = [length.to_ne_bytes(), NFTA_TABLE_NAME.to_ne_bytes()].concat();
    attribute.extend(name.bytes());
    attribute.resize(usize::from(length).next_multiple_of(4), 0);
    // struct nlmsgerr: a negated error number behind the header.
    let answer = ask(GETTABLE, 0, family, &attribute).and_then(|socket| socket.recv_from_full());
    answer.is_ok_and(|(answer, _)| {
        answer.get(4..6) == Some(&NLMSG_ERROR.to_ne_bytes())
            && answer.get(16..20) == Some(&(-libc::ENOENT).to_ne_bytes())
    })
}

/// The names of the tables of the families ip, ip6 and inet in this network namespace, whoever made them.
pub fn tables() -> Result<Vec<String>, Error> {
    const GETTABLE: u16 = 1;
    const NLM_F_DUMP: u16 = 0x300;
    const NLMSG_ERROR: u16 = 2;
    const NLMSG_DONE: u16 = 3;
    const FAMILIES: [u8; 3] = [1, 2, 10]; // NFPROTO_INET, NFPROTO_IPV4, NFPROTO_IPV6
    let failed = |source| Error::Netlink { what: "nft tables".to_owned(), source };
    let socket = ask(GETTABLE, NLM_F_DUMP, 0, &[]).map_err(failed)?;
    let mut names = Vec::new();
    loop {
        let datagram = socket.recv_from_full().map_err(failed)?.0;
        for message in messages(&datagram) {
            match message.kind {
                NLMSG_DONE => return Ok(names),
                NLMSG_ERROR => return Err(failed(io::Error::other("the kernel lists no tables"))),
                _ => {}
            }
            // Behind struct nfgenmsg, which begins with the family.
            let ours = message.payload.first().is_some_and(|family| FAMILIES.contains(family));
            let mut attributes = attributes(message.payload.get(4..).unwrap_or_default());
            let name = attributes.find_map(|(kind, value)| (ours && kind == NFTA_TABLE_NAME).then_some(value));
            names.extend(name.map(|name| String::from_utf8_lossy(name).trim_end_matches('\0').to_owned()));
        }
    }
}

const NFPROTO_INET: u8 = 1;
const NFPROTO_BRIDGE: u8 = 7;
const NFTA_TABLE_NAME: u16 = 1;

/// Sends a request to nf_tables; the socket has the answer. Family 0 is all.
fn ask(kind: u16, flags: u16, family: u8, attributes: &[u8]) -> io::Result<Socket> {
    const NETLINK_NETFILTER: isize = 12;
    const NFNL_SUBSYS_NFTABLES: u16 = 10;
    const NLM_F_REQUEST: u16 = 1;
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    // struct nlmsghdr (length, type, flags, sequence, port), then struct nfgenmsg (family, version, resource).
    let mut request = Vec::with_capacity(20 + attributes.len());
    request.extend((20 + attributes.len() as u32).to_ne_bytes());
    request.extend((NFNL_SUBSYS_NFTABLES << 8 | kind).to_ne_bytes());
    request.extend((NLM_F_REQUEST | flags).to_ne_bytes());
    request.extend([0; 8]);
    request.extend([family, 0, 0, 0]);
    request.extend(attributes);
    socket.send(&request, 0)?;
    Ok(socket)
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
