//! Other programs, run to their end.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::io;
use std::process::Stdio;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

/// For one run: a transaction of nft(8) takes milliseconds. firewalld answers nobody while it reloads.
const PATIENCE: Duration = Duration::from_secs(10);
/// Processes that are known as our own: more than a reconciliation starts.
const REMEMBERED: usize = 64;

/// Runs them, and knows which processes they were.
#[derive(Debug, Default)]
pub struct Programs {
    /// The last ones, newest last.
    started: Mutex<VecDeque<u32>>,
}

/// Why a program did not do what it was asked.
#[derive(Debug)]
pub enum Refusal {
    /// It could not be run.
    NotRun(io::Error),
    /// What it said, on one line.
    Said(String),
}

impl Programs {
    /// Whether this was one of the last processes that were started here.
    pub fn started(&self, pid: u32) -> bool {
        self.processes().contains(&pid)
    }

    /// The program's standard output once it has ended well.
    pub async fn run(&self, program: impl AsRef<OsStr>, arguments: &[&str], input: &str) -> Result<String, Refusal> {
        let mut command = Command::new(program);
        command.args(arguments).env("LC_ALL", "C").kill_on_drop(true);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        end_with_us(&mut command);
        let mut child = command.spawn().map_err(Refusal::NotRun)?;
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
            child.wait_with_output().await.map_err(Refusal::NotRun)
        };
        let late = |_| Refusal::Said(format!("{}: no end after {PATIENCE:?}", arguments.join(" ")));
        let output = tokio::time::timeout(PATIENCE, finished).await.map_err(late)??;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let stderr = String::from_utf8_lossy(&output.stderr);
        let lines: Vec<&str> = stderr.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        Err(Refusal::Said(if lines.is_empty() { output.status.to_string() } else { lines.join(" ") }))
    }

    fn processes(&self) -> MutexGuard<'_, VecDeque<u32>> {
        self.started.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A program that outlives an agent that was killed would put a table back that the next `meshd down` has removed.
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
