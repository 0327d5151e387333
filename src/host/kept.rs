//! The guard as it was last configured, on disk: what is armed at a boot at which the configuration cannot be read.
//!
//! `guard.nft` is a script for nft(8) below one line that names the interface and the FNV-1a of the rest. It outlives
//! `meshd down`, because it is the files that may be broken at the next boot, not the tunnel.

use std::path::{Path, PathBuf};

use super::Error;
use super::files::{self, Unusable};
use crate::plan::tables::fnv1a;
use crate::plan::{NftTable, nft};

/// Before the interface and the checksum.
const HEAD: &str = "# meshd's guard as last configured, for";

/// What was kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptGuard {
    /// The tunnel's interface.
    pub interface: String,
    /// The guard.
    pub table: NftTable,
}

/// The file.
#[derive(Debug, Clone)]
pub struct Keeper {
    path: PathBuf,
    interface: String,
    /// What the file holds, when that is known; empty without one.
    known: Option<String>,
}

/// Where the guard is kept.
pub fn path(state_dir: &Path) -> PathBuf {
    state_dir.join("guard.nft")
}

/// Reads what was kept; `None` when nothing was.
pub fn read(state_dir: &Path) -> Result<Option<KeptGuard>, Error> {
    let path = path(state_dir);
    let text = files::read(&path).map_err(|unusable| match unusable {
        Unusable::NotOurs(why) => Error::KeptGuard { path: path.clone(), why },
        Unusable::Io(error) => Error::KeptGuard { path: path.clone(), why: error.to_string() },
    })?;
    let damaged = || Error::KeptGuard { path: path.clone(), why: "damaged".to_owned() };
    text.map(|text| parse(&text).ok_or_else(damaged)).transpose()
}

impl Keeper {
    /// For the agent with this state folder and interface.
    pub fn new(state_dir: &Path, interface: &str) -> Self {
        Self { path: path(state_dir), interface: interface.to_owned(), known: None }
    }

    /// Makes the file hold this guard, or goes without the file.
    pub fn keep(&mut self, guard: Option<&NftTable>) -> Result<(), Error> {
        let text = guard.map(|guard| render(&self.interface, &guard.text)).unwrap_or_default();
        if self.known.as_ref() == Some(&text) {
            return Ok(());
        }
        let failed = |error: std::io::Error| Error::KeptGuard { path: self.path.clone(), why: error.to_string() };
        let found = files::read(&self.path);
        if let Err(Unusable::NotOurs(_)) = found {
            files::set_aside(&self.path).map_err(failed)?;
        }
        if text.is_empty() {
            files::remove(&self.path).map_err(failed)?;
        } else if !matches!(&found, Ok(Some(found)) if found == text.as_bytes()) {
            files::replace(&self.path, text.as_bytes()).map_err(failed)?;
        }
        self.known = Some(text);
        Ok(())
    }
}

fn render(interface: &str, text: &str) -> String {
    format!("{HEAD} {interface}: {}\n{text}", checksum(interface, text))
}

fn parse(file: &[u8]) -> Option<KeptGuard> {
    let (head, text) = std::str::from_utf8(file).ok()?.split_once('\n')?;
    let (interface, sum) = head.strip_prefix(HEAD)?.trim_start().split_once(": ")?;
    let table = NftTable { family: "inet", name: nft::guard_name(interface), text: text.to_owned() };
    (sum == checksum(interface, text)).then(|| KeptGuard { interface: interface.to_owned(), table })
}

fn checksum(interface: &str, text: &str) -> String {
    format!("{:016x}", fnv1a(format!("{interface}\n{text}").as_bytes()))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn what_was_kept_is_read_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let guard = NftTable {
            family: "inet",
            name: "meshd_guard".to_owned(),
            text: "table inet meshd_guard {\n}\n".to_owned(),
        };
        let mut keeper = Keeper::new(folder.path(), "mesh0");
        keeper.keep(None).unwrap();
        assert_eq!(read(folder.path()).unwrap(), None);
        keeper.keep(Some(&guard)).unwrap();
        let kept = KeptGuard { interface: "mesh0".to_owned(), table: guard.clone() };
        assert_eq!(read(folder.path()).unwrap(), Some(kept));

        let path = path(folder.path());
        let good = fs::read(&path).unwrap();
        let truncated = (0..good.len()).map(|length| good[..length].to_vec());
        let flipped = (0..good.len()).map(|at| good.iter().enumerate().map(|(i, b)| b ^ u8::from(i == at)).collect());
        for bad in truncated.chain(flipped) {
            fs::write(&path, &bad).unwrap();
            assert!(read(folder.path()).is_err(), "{}", String::from_utf8_lossy(&bad));
        }
        // A new process finds the damage and corrects it.
        Keeper::new(folder.path(), "mesh0").keep(Some(&guard)).unwrap();
        assert_eq!(fs::read(&path).unwrap(), good);
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        Keeper::new(folder.path(), "mesh0").keep(Some(&guard)).unwrap();
        assert_eq!(fs::read(&path).unwrap(), good);
        Keeper::new(folder.path(), "mesh0").keep(None).unwrap();
        assert!(!path.exists());
    }
}
