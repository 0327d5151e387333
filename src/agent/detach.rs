//! `meshd up --detach`: starts the agent as a process of its own and returns once it is ready.
//!
//! The parent runs this same program again with `--ready-on-stdout`, in a session of its own, its log in
//! `RUN_DIR/meshd.log`. The child's standard output is a pipe to the parent: one line of JSON, saying how it went.

use std::fs::OpenOptions;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};

use crate::failure::Failure;
use crate::store::Dirs;

/// The log of a detached agent, in the run directory.
pub const LOG_FILE: &str = "meshd.log";

/// What the child tells the parent.
#[derive(Serialize, Deserialize)]
enum Report {
    Ready { warnings: Vec<String> },
    Failed { code: u8, errors: Vec<String>, remedy: Option<String> },
}

/// Starts the agent and waits until it is ready; what it warns of comes back.
///
/// # Errors
/// The child's own failure, with its exit code.
pub fn start(dirs: &Dirs) -> Result<Vec<String>, Failure> {
    let failed = |why: String| Failure { code: 1, errors: vec![format!("up: {why}")], remedy: None };
    let path = dirs.run.join(LOG_FILE);
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o640)
        .custom_flags(libc::O_NOFOLLOW)
        .open(&path)
        .map_err(|error| failed(format!("{}: {error}", path.display())))?;
    let program = std::env::current_exe().map_err(|error| failed(format!("cannot find this program: {error}")))?;
    let mut child = Command::new(program)
        .args(["up", "--ready-on-stdout"])
        .args([
            Path::new("--dir"),
            &dirs.config,
            Path::new("--run-dir"),
            &dirs.run,
            Path::new("--state-dir"),
            &dirs.state,
        ])
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        // Out of the terminal's process group, so that its Ctrl-C is not the agent's.
        .process_group(0)
        .spawn()
        .map_err(|error| failed(format!("cannot start the agent: {error}")))?;
    let mut line = String::new();
    if let Some(stdout) = child.stdout.take() {
        BufReader::new(stdout).read_line(&mut line).map_err(|error| failed(error.to_string()))?;
    }
    match serde_json::from_str(&line) {
        Ok(Report::Ready { warnings }) => Ok(warnings),
        Ok(Report::Failed { code, errors, remedy }) => {
            // So that nothing of it is left when the caller looks.
            let _ = child.wait();
            Err(Failure { code, errors, remedy })
        }
        Err(_) => Err(Failure {
            code: 1,
            errors: vec!["up: the agent ended before it was ready".into()],
            remedy: Some(format!("read {}", path.display())),
        }),
    }
}

/// Called by the child: tells the parent how it went, and lets go of the pipe.
pub fn report(outcome: Result<Vec<String>, &Failure>) {
    let report = match outcome {
        Ok(warnings) => Report::Ready { warnings },
        Err(Failure { code, errors, remedy }) => {
            Report::Failed { code: *code, errors: errors.clone(), remedy: remedy.clone() }
        }
    };
    let mut stdout = std::io::stdout();
    // A parent that is gone no longer wants to know.
    let _ =
        serde_json::to_writer(&stdout, &report).map_err(std::io::Error::from).and_then(|()| stdout.write_all(b"\n"));
    if let Ok(null) = OpenOptions::new().write(true).open("/dev/null") {
        let _ = nix::unistd::dup2_stdout(&null);
    }
    let _ = nix::unistd::setsid();
}
