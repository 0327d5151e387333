//! nft(8): tables in, tables out, one transaction each.
//!
//! Whether a table is still ours unchanged is decided without knowing how this version of nft prints a rule: right after a
//! table is put there it is listed once, and the listing's fingerprint is kept with that of the text. A later listing that
//! differs (counters aside) means that somebody changed the table. Between listings the kernel's ruleset generation
//! tells at the price of one system call pair whether anything in nft changed at all.

use std::path::PathBuf;

use rtnetlink::sys::{Socket, SocketAddr};
use serde_json::Value;

use super::Error;
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
    const GETGEN: u8 = 16;
    const NFTA_GEN_ID: u16 = 1;
    let answer = ask(GETGEN, 0)?.recv_from_full().map_err(not_told)?.0;
    let found = attribute(answer.get(HEADERS..).unwrap_or_default(), NFTA_GEN_ID);
    let bytes = found.and_then(|value| <[u8; 4]>::try_from(value).ok());
    bytes.map(u32::from_be_bytes).ok_or_else(|| not_told(std::io::Error::other("no generation in the kernel's answer")))
}

/// The names of the tables of the families ip, ip6 and inet in this network namespace, whoever made them.
pub fn tables() -> Result<Vec<String>, Error> {
    const GETTABLE: u8 = 1;
    const NFTA_TABLE_NAME: u16 = 1;
    const NLM_F_DUMP: u16 = 0x300;
    const NLMSG_ERROR: u16 = 2;
    const NLMSG_DONE: u16 = 3;
    const FAMILIES: [u8; 3] = [1, 2, 10]; // NFPROTO_INET, NFPROTO_IPV4, NFPROTO_IPV6
    let socket = ask(GETTABLE, NLM_F_DUMP)?;
    let mut names = Vec::new();
    loop {
        let datagram = socket.recv_from_full().map_err(not_told)?.0;
        let mut rest = datagram.as_slice();
        while let Some((&[l0, l1, l2, l3, t0, t1], _)) = rest.split_first_chunk::<6>() {
            let length = u32::from_ne_bytes([l0, l1, l2, l3]) as usize;
            match u16::from_ne_bytes([t0, t1]) {
                NLMSG_DONE => return Ok(names),
                NLMSG_ERROR => return Err(not_told(std::io::Error::other("the kernel lists no tables"))),
                _ => {}
            }
            let message = rest.get(..length).unwrap_or_default();
            let family = message.get(16).filter(|family| FAMILIES.contains(family));
            let name = family.and_then(|_| attribute(message.get(HEADERS..)?, NFTA_TABLE_NAME));
            names.extend(name.map(|name| String::from_utf8_lossy(name).trim_end_matches('\0').to_owned()));
            rest = rest.get(length.next_multiple_of(4).max(HEADERS)..).unwrap_or_default();
        }
    }
}

/// struct nlmsghdr (length, type, flags, sequence, port), then struct nfgenmsg (family, version, resource).
const HEADERS: usize = 20;

/// Sends a request without attributes to nf_tables.
fn ask(message: u8, flags: u16) -> Result<Socket, Error> {
    const NETLINK_NETFILTER: isize = 12;
    const NLM_F_REQUEST: u16 = 1;
    const NFNL_SUBSYS_NFTABLES: u16 = 10;
    let mut socket = Socket::new(NETLINK_NETFILTER).map_err(not_told)?;
    socket.bind_auto().map_err(not_told)?;
    socket.connect(&SocketAddr::new(0, 0)).map_err(not_told)?;
    let mut request = Vec::with_capacity(HEADERS);
    request.extend(20_u32.to_ne_bytes());
    request.extend(((NFNL_SUBSYS_NFTABLES << 8) | u16::from(message)).to_ne_bytes());
    request.extend((NLM_F_REQUEST | flags).to_ne_bytes());
    request.extend([0; 12]);
    socket.send(&request, 0).map_err(not_told)?;
    Ok(socket)
}

fn not_told(source: std::io::Error) -> Error {
    Error::Netlink { what: "nf_tables".to_owned(), source }
}

/// The value of the first attribute of this type.
fn attribute(mut attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    while let Some((&[l0, l1, t0, t1], _)) = attributes.split_first_chunk::<4>() {
        let length = usize::from(u16::from_ne_bytes([l0, l1]));
        if u16::from_ne_bytes([t0, t1]) == wanted {
            return attributes.get(4..length);
        }
        attributes = attributes.get(length.next_multiple_of(4).max(4)..).unwrap_or_default();
    }
    None
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
