//! The journal: what must be known to undo our work after a crash, on disk before the work is done.
//!
//! One small JSON file, replaced whole ([`files`]). Values of sysctls hold for one boot and one life of an interface, so each
//! names its interface's number, and a journal of an earlier boot is read without them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Error;
use super::files::{self, Unusable};
use crate::plan::SysctlKey;
use crate::plan::tables::fnv1a;

const VERSION: u32 = 1;

/// The journal's content.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Journal {
    version: u32,
    boot_id: String,
    /// The tunnel's interface.
    pub interface: String,
    /// Routing tables in use.
    pub tables: BTreeSet<u32>,
    /// By [`SysctlKey::path`].
    pub sysctls: BTreeMap<String, Original>,
    /// nft tables as we left them, by name.
    pub nft: BTreeMap<String, Fingerprints>,
    /// Interfaces that we put into a zone of firewalld.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub placed: BTreeSet<String>,
}

/// A sysctl before we wrote it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Original {
    /// Its value.
    pub value: String,
    /// The number of its interface; 0 of `all` and `default`.
    pub index: u32,
    /// The key whose writing overwrote it, when it was not written itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub with: Option<String>,
    /// Of `forwarding` in IPv4: what it was for all interfaces. Who switches that on later means this interface too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub all: Option<String>,
}

/// Of an nft table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fingerprints {
    /// Of the text that was put there.
    pub text: String,
    /// Of how nft listed it then; empty when it has not been asked yet.
    pub listing: String,
}

/// The file: the journal and the FNV-1a of its compact JSON, so that a flipped bit in a value is noticed.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sealed {
    checksum: String,
    journal: Journal,
}

/// The journal's file.
#[derive(Debug, Clone)]
pub struct Store {
    path: PathBuf,
    interface: String,
    /// What the file should hold. A full disk must not make us forget what we did.
    known: Option<Journal>,
    /// Whether it does hold that.
    written: bool,
}

impl Store {
    /// The journal of the agent that has this state folder and interface.
    pub fn new(state_dir: &Path, interface: &str) -> Self {
        Self { path: state_dir.join("journal.json"), interface: interface.to_owned(), known: None, written: false }
    }

    /// The interface of the agent that a state folder belongs to, when its journal says so.
    pub fn owner(state_dir: &Path) -> Option<String> {
        match Self::new(state_dir, "").read() {
            Err(Unfit::Foreign(interface)) => Some(interface),
            _ => None,
        }
    }

    /// Reads the journal; an empty one when there is none. A damaged one is moved aside and reported once.
    pub fn load(&mut self) -> Result<Journal, Error> {
        if let Some(journal) = &self.known {
            return Ok(journal.clone());
        }
        let read = self.read().map_err(|unfit| match unfit {
            Unfit::Damaged(why) => self.set_aside(why),
            other => self.unfit(other),
        })?;
        let Some(journal) = read else { return Ok(self.empty()) };
        (self.known, self.written) = (Some(journal.clone()), true);
        Ok(journal)
    }

    /// As [`load`](Self::load), but leaves a damaged one where it is.
    pub fn peek(&self) -> Result<Journal, Error> {
        if let Some(journal) = &self.known {
            return Ok(journal.clone());
        }
        let read = self.read().map_err(|unfit| self.unfit(unfit))?;
        Ok(read.unwrap_or_else(|| self.empty()))
    }

    /// Makes `journal` what the file holds. Nothing is written when it already is; what could not be written is known all the
    /// same.
    pub fn save(&mut self, journal: &Journal) -> Result<(), Error> {
        if self.written && self.known.as_ref() == Some(journal) {
            return Ok(());
        }
        (self.known, self.written) = (Some(journal.clone()), false);
        let sealed = Sealed { checksum: checksum(journal), journal: journal.clone() };
        let mut text = serde_json::to_vec_pretty(&sealed).map_err(|error| self.failed(error.into()))?;
        text.push(b'\n');
        files::replace(&self.path, &text).map_err(|source| self.failed(source))?;
        self.written = true;
        Ok(())
    }

    /// Whether the file holds what was last saved.
    pub fn is_written(&self) -> bool {
        self.written
    }

    /// Forgets all; there is nothing left to undo.
    pub fn remove(&mut self) -> Result<(), Error> {
        (self.known, self.written) = (None, false);
        files::remove(&self.path).map_err(|source| self.failed(source))
    }

    fn read(&self) -> Result<Option<Journal>, Unfit> {
        let text = files::read(&self.path).map_err(|unusable| match unusable {
            Unusable::NotOurs(why) => Unfit::Damaged(why),
            Unusable::Io(error) => Unfit::Unreadable(error),
        })?;
        text.map(|text| parse(&text, &self.interface)).transpose()
    }

    fn empty(&self) -> Journal {
        let (interface, boot_id) = (self.interface.clone(), boot_id());
        Journal { version: VERSION, boot_id, interface, ..Journal::default() }
    }

    fn unfit(&self, unfit: Unfit) -> Error {
        match unfit {
            Unfit::Damaged(why) => self.failed(io::Error::new(io::ErrorKind::InvalidData, format!("damaged: {why}"))),
            Unfit::Unreadable(source) => self.failed(source),
            Unfit::Foreign(owner) => {
                Error::JournalForeign { path: self.path.clone(), owner, interface: self.interface.clone() }
            }
        }
    }

    fn failed(&self, source: io::Error) -> Error {
        Error::Journal { path: self.path.clone(), source }
    }

    fn set_aside(&self, why: String) -> Error {
        match files::set_aside(&self.path) {
            Ok(backup) => Error::JournalDamaged { path: self.path.clone(), backup, why },
            Err(error) => {
                self.failed(io::Error::new(error.kind(), format!("damaged: {why}; cannot be set aside: {error}")))
            }
        }
    }
}

impl Journal {
    /// What there is to know when all has been undone but for this nft table.
    pub fn reduced_to(mut self, table: Option<&str>) -> Self {
        self.tables.clear();
        self.sysctls.clear();
        self.placed.clear();
        self.nft.retain(|name, _| Some(name.as_str()) == table);
        self
    }

    /// Whether there is nothing to undo.
    pub fn is_empty(&self) -> bool {
        self.tables.is_empty() && self.sysctls.is_empty() && self.nft.is_empty() && self.placed.is_empty()
    }
}

/// Why a journal is not to be used.
enum Unfit {
    Damaged(String),
    /// The kernel says no.
    Unreadable(io::Error),
    /// It belongs to the agent of this other interface.
    Foreign(String),
}

fn parse(text: &[u8], interface: &str) -> Result<Journal, Unfit> {
    let damaged = |why: String| Err(Unfit::Damaged(why));
    let Sealed { checksum: sum, mut journal } =
        serde_json::from_slice(text).map_err(|error| Unfit::Damaged(error.to_string()))?;
    if sum != checksum(&journal) {
        return damaged("its checksum is wrong".to_owned());
    }
    if journal.version != VERSION {
        return damaged(format!("version {} is not {VERSION}", journal.version));
    }
    if let Some(path) = journal.sysctls.keys().find(|path| SysctlKey::from_path(path).is_none()) {
        return damaged(format!("{path} is not a sysctl of an interface"));
    }
    if journal.interface != interface {
        return Err(Unfit::Foreign(journal.interface));
    }
    let boot_id = boot_id();
    if journal.boot_id != boot_id {
        journal.boot_id = boot_id;
        journal.sysctls.clear();
        journal.placed.clear();
    }
    Ok(journal)
}

fn checksum(journal: &Journal) -> String {
    format!("{:016x}", fnv1a(serde_json::to_string(journal).unwrap_or_default().as_bytes()))
}

fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Journal {
        let original = Original { value: "0".to_owned(), index: 2, with: None, all: None };
        let mut journal =
            Journal { version: VERSION, boot_id: boot_id(), interface: "mesh0".to_owned(), ..Journal::default() };
        journal.tables.insert(8_800_001);
        journal.sysctls.insert("ipv4/conf/eth0.5/forwarding".to_owned(), original);
        journal
    }

    #[test]
    fn what_was_saved_is_loaded() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = Store::new(folder.path(), "mesh0");
        store.save(&sample()).unwrap();
        assert_eq!(Store::new(folder.path(), "mesh0").load().unwrap(), sample());
        store.remove().unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn values_of_an_earlier_boot_are_dropped_and_tables_kept() {
        let folder = tempfile::tempdir().unwrap();
        let old = Journal { boot_id: "another".to_owned(), ..sample() };
        Store::new(folder.path(), "mesh0").save(&old).unwrap();
        let loaded = Store::new(folder.path(), "mesh0").load().unwrap();
        assert!(loaded.sysctls.is_empty());
        assert_eq!(loaded.tables, old.tables);
    }

    #[test]
    fn every_truncation_and_every_flipped_bit_is_refused_and_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal.json");
        Store::new(folder.path(), "mesh0").save(&sample()).unwrap();
        let good = fs::read(&path).unwrap();
        // Without its last newline it is whole.
        let truncated = (0..good.len() - 1).map(|length| good[..length].to_vec());
        let flipped = (0..good.len()).map(|at| good.iter().enumerate().map(|(i, b)| b ^ u8::from(i == at)).collect());
        for bad in truncated.chain(flipped) {
            let text = String::from_utf8_lossy(&bad).into_owned();
            fs::write(&path, &bad).unwrap();
            match Store::new(folder.path(), "mesh0").load() {
                // White space between tokens may become other white space.
                Ok(journal) => assert_eq!(journal, sample(), "{text}"),
                Err(Error::JournalDamaged { backup, .. }) => {
                    assert_eq!(fs::read(&backup).unwrap(), bad);
                    assert!(!path.exists());
                    fs::remove_file(backup).unwrap();
                }
                Err(error) => panic!("{text}: {error}"),
            }
        }
    }

    #[test]
    fn a_sysctl_outside_of_interfaces_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let mut journal = sample();
        let original = Original { value: "0".to_owned(), index: 0, with: None, all: None };
        journal.sysctls.insert("ipv4/conf/../ip_forward".to_owned(), original);
        Store::new(folder.path(), "mesh0").save(&journal).unwrap();
        let error = Store::new(folder.path(), "mesh0").load().unwrap_err();
        assert!(matches!(error, Error::JournalDamaged { .. }), "{error}");
    }

    #[test]
    fn a_failed_write_leaves_the_old_journal() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = Store::new(folder.path(), "mesh0");
        store.save(&sample()).unwrap();
        // A folder in the place of the temporary file makes the next write fail, also for root.
        fs::create_dir(folder.path().join("journal.json.new")).unwrap();
        let changed = Journal { tables: BTreeSet::new(), ..sample() };
        assert!(matches!(store.save(&changed), Err(Error::Journal { .. })));
        assert_eq!(Store::new(folder.path(), "mesh0").load().unwrap(), sample());
    }
}
