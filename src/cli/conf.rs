//! Files of wg-quick from and to wherever the operator names.

use std::fs::{self, File, OpenOptions};
use std::io::{self, IsTerminal as _, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use super::Failure;
use crate::config::{MAX_FILE, SourceFile, printable};
use crate::wgquick::{self, Conf};

/// Reads a file, or standard input for `-`, and no more of it than any file has.
pub fn read(path: &Path) -> Result<Conf, Failure> {
    let stdin = path == Path::new("-");
    let shown = if stdin { "standard input".to_owned() } else { printable(&path.to_string_lossy()) };
    let failed = |error: io::Error| {
        let code = if error.kind() == io::ErrorKind::PermissionDenied { 4 } else { 1 };
        Failure::new(code, format!("{shown}: {error}"))
    };
    // Room for all of it, as a text that moves leaves copies of its secrets behind.
    let mut source = SourceFile { path: shown.clone(), text: Vec::with_capacity(MAX_FILE + 1) };
    let most = MAX_FILE as u64 + 1;
    let read = if stdin {
        io::stdin().lock().take(most).read_to_end(&mut source.text)
    } else {
        File::open(path).and_then(|file| file.take(most).read_to_end(&mut source.text))
    };
    read.map_err(failed)?;
    wgquick::parse(&source).map_err(|problems| Failure {
        code: 4,
        errors: problems.iter().map(ToString::to_string).collect(),
        remedy: None,
    })
}

/// Files with secrets that are gone again unless they are kept.
#[derive(Default)]
pub struct Written(Vec<PathBuf>);

impl Written {
    /// Writes one that must not exist yet, for its owner only.
    pub fn add(&mut self, path: &Path, bytes: &[u8]) -> Result<(), Failure> {
        let shown = printable(&path.to_string_lossy());
        let opened = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
        let mut file = opened.map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => {
                Failure::new(4, format!("{shown}: exists already")).try_this("another name; nothing is overwritten")
            }
            io::ErrorKind::PermissionDenied => Failure::new(4, format!("{shown}: {error}")),
            _ => Failure::new(1, format!("{shown}: {error}")),
        })?;
        self.0.push(path.to_owned());
        file.write_all(bytes)
            .and_then(|()| file.sync_all())
            .map_err(|error| Failure::new(1, format!("{shown}: {error}")))
    }

    /// Leaves them where they are.
    pub fn keep(mut self) {
        self.0.clear();
    }
}

impl Drop for Written {
    fn drop(&mut self) {
        for path in &self.0 {
            // Best effort: whatever went wrong first is what is told.
            let _ = fs::remove_file(path);
        }
    }
}

/// Prints what is shown only once, so that even a reader that goes away is a failure.
pub fn print_once(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .map_err(|error| Failure::new(1, format!("standard output: {error}")))
}

/// What is no part of the file on standard output.
pub fn say(text: &str) {
    // Nowhere is left to say that standard error is closed.
    let _ = io::stderr().lock().write_all(text.as_bytes());
}

/// Asks the person at the terminal; `None` when nobody is there.
pub fn ask(question: &str) -> Option<bool> {
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return None;
    }
    say(&format!("{question} [y/N] "));
    let mut answer = String::new();
    io::stdin().read_line(&mut answer).ok()?;
    Some(["y", "yes"].contains(&answer.trim().to_ascii_lowercase().as_str()))
}
