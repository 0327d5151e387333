//! The command line: one file a command; prints, never decides.

pub mod ask;
pub mod down;
pub mod page;
pub mod plan;
pub mod reload;
pub mod status;

use std::path::PathBuf;

/// The three folders of the contract, by flag, environment or default.
#[derive(Debug, Clone)]
pub struct Dirs {
    /// `--dir`, `MESHD_DIR`, `/etc/meshd`.
    pub config: PathBuf,
    /// `--run-dir`, `MESHD_RUN_DIR`, `/run/meshd`.
    pub run: PathBuf,
    /// `--state-dir`, `MESHD_STATE_DIR`, `/var/lib/meshd`.
    pub state: PathBuf,
}

/// Why a command did not do its work; printed as `meshd: what: why` and `try: …`.
#[derive(Debug)]
pub struct Failure {
    /// The exit code: 1 failed, 2 usage, 3 not running, 4 refused.
    pub code: u8,
    /// Lines `what: why`, each printed with `meshd: ` before it.
    pub errors: Vec<String>,
    /// The remedy, printed with `try: ` before it.
    pub remedy: Option<String>,
}
