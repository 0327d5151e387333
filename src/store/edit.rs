//! A change of several files of the configuration folder that is checked before the first of them is written.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use super::{Error, Layout, create_dir, io_error, read, read_beside, remove, replace, show};
use crate::config::{self, Config, Files, SourceFile};

/// What is to change, in the order of writing. A crash between two of the writes leaves the first of them done, so each
/// state on the way is checked, not only the last.
#[derive(Debug)]
pub struct Edit<'d> {
    dir: &'d Path,
    files: Files,
    changes: Vec<Change>,
}

#[derive(Debug)]
struct Change {
    path: PathBuf,
    mode: u32,
    /// `None` is no file.
    old: Option<SourceFile>,
    new: Option<SourceFile>,
}

/// Puts back what an [`Edit`] has written.
#[derive(Debug)]
#[must_use]
pub struct Undo(Vec<Change>);

impl<'d> Edit<'d> {
    /// Begins with what the folder holds. Whoever edits holds [`super::lock`] until the edit is written.
    ///
    /// # Errors
    /// When a file is missing or must not be used.
    pub fn new(dir: &'d Path) -> Result<Self, Error> {
        Ok(Self { dir, files: read(dir)?, changes: Vec::new() })
    }

    /// Begins with a folder that has all but a `meshd.toml`, which is to be this one.
    ///
    /// # Errors
    /// As [`Edit::new`], and when the configuration would be wrong.
    pub fn first(dir: &'d Path, host: String) -> Result<Self, Error> {
        let path = Layout(dir).host();
        let new = SourceFile { path: show(&path), text: host.into() };
        let mut edit = Self { dir, files: read_beside(dir, new.clone())?, changes: Vec::new() };
        edit.push(Change { path, mode: 0o644, old: None, new: Some(new) })?;
        Ok(edit)
    }

    /// The text of `meshd.toml` as it will be.
    pub fn host(&self) -> &str {
        std::str::from_utf8(&self.files.host.text).unwrap_or_default()
    }

    /// The text of a peer's file as it will be.
    pub fn peer(&self, name: &str) -> Option<&str> {
        let (_, source) = self.files.peers.iter().find(|(other, _)| other == name)?;
        std::str::from_utf8(&source.text).ok()
    }

    /// The configuration as it will be.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn config(&self) -> Result<Config, Error> {
        config::parse(&self.files).map_err(Error::Invalid)
    }

    /// Gives `meshd.toml` another text.
    ///
    /// # Errors
    /// When the configuration would be wrong at this point; the edit is then as it was before.
    pub fn set_host(&mut self, text: String) -> Result<(), Error> {
        let path = Layout(self.dir).host();
        let mode = fs::metadata(&path).map_or(0o644, |metadata| metadata.permissions().mode() & 0o7777);
        let new = SourceFile { path: show(&path), text: text.into() };
        let old = std::mem::replace(&mut self.files.host, new.clone());
        self.push(Change { path, mode, old: Some(old), new: Some(new) })
    }

    /// Gives a peer's file another text, or makes it.
    ///
    /// # Errors
    /// As [`Edit::set_host`]. The name has to be sound: see [`config::value::name`].
    pub fn set_peer(&mut self, name: &str, text: String) -> Result<(), Error> {
        let path = Layout(self.dir).peer(name);
        let new = SourceFile { path: show(&path), text: text.into() };
        let known = self.files.peers.iter_mut().find(|(other, _)| other == name);
        let old = known.map(|(_, source)| std::mem::replace(source, new.clone()));
        if old.is_none() {
            self.files.peers.push((name.to_owned(), new.clone()));
        }
        self.push(Change { path, mode: 0o600, old, new: Some(new) })
    }

    /// Takes a peer's file away, if there is one.
    ///
    /// # Errors
    /// As [`Edit::set_host`].
    pub fn remove_peer(&mut self, name: &str) -> Result<(), Error> {
        let Some(at) = self.files.peers.iter().position(|(other, _)| other == name) else { return Ok(()) };
        let (_, old) = self.files.peers.remove(at);
        self.push(Change { path: Layout(self.dir).peer(name), mode: 0o600, old: Some(old), new: None })
    }

    /// Keeps a change that was made to the files; one that makes them wrong is taken back.
    fn push(&mut self, change: Change) -> Result<(), Error> {
        if let Err(error) = self.config() {
            self.take_back(change);
            return Err(error);
        }
        self.changes.push(change);
        Ok(())
    }

    fn take_back(&mut self, change: Change) {
        if change.path == Layout(self.dir).host() {
            self.files.host = change.old.unwrap_or_else(|| self.files.host.clone());
            return;
        }
        let name = change.path.file_stem().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        self.files.peers.retain(|(other, _)| *other != name);
        self.files.peers.extend(change.old.map(|old| (name, old)));
    }

    /// The files that it changes, in the order of writing.
    pub fn changed(&self) -> Vec<PathBuf> {
        let mut paths: Vec<PathBuf> = Vec::new();
        for change in self.changes.iter().filter(|change| !same(change)) {
            if !paths.contains(&change.path) {
                paths.push(change.path.clone());
            }
        }
        paths
    }

    /// Whether it would write anything.
    pub fn is_empty(&self) -> bool {
        self.changes.iter().all(same)
    }

    /// Writes the files, one after the other.
    ///
    /// # Errors
    /// As the kernel gives; then those that were written are put back.
    pub fn write(self) -> Result<Undo, Error> {
        let mut written = Undo(Vec::new());
        for change in self.changes.into_iter().filter(|change| !same(change)) {
            if let Err(error) = change.apply(change.new.as_ref()) {
                // The first error is the one that tells why.
                let _ = written.undo();
                return Err(error);
            }
            written.0.push(change);
        }
        Ok(written)
    }
}

fn same(change: &Change) -> bool {
    change.old.as_ref().map(|old| &old.text) == change.new.as_ref().map(|new| &new.text)
}

impl Undo {
    /// Puts the old files back, the last written first.
    ///
    /// # Errors
    /// As the kernel gives.
    pub fn undo(self) -> Result<(), Error> {
        self.0.iter().rev().try_for_each(|change| change.apply(change.old.as_ref()))
    }
}

impl Change {
    fn apply(&self, source: Option<&SourceFile>) -> Result<(), Error> {
        let Some(source) = source else { return remove(&self.path) };
        if let Some(folder) = self.path.parent() {
            create_dir(folder)?;
        }
        let text = std::str::from_utf8(&source.text)
            .map_err(|error| io_error(&self.path, std::io::Error::new(std::io::ErrorKind::InvalidData, error)))?;
        replace(&self.path, text, self.mode)
    }
}
