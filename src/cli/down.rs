//! `meshd down`: ends the agent, or cleans up after one that was killed.

use std::time::Duration;

use super::{Dirs, Failure, ask, page};
use crate::control::client::{Client, ClientError};
use crate::control::{DEATH_LIMIT, running};

/// From the agent's answer, when the host is clean already, to the end of its process.
const END_LIMIT: Duration = Duration::from_secs(10);

/// Stop the agent and remove all that it programmed.
#[derive(clap::Args, Debug)]
#[command(after_help = "After a crash it removes what the agent left behind.

Examples:
  meshd down
  meshd down --keep-guard     egress bridges stay closed until `meshd up`")]
pub struct Args {
    /// Leave the guard armed, so that nothing leaves by another way meanwhile
    #[arg(long)]
    keep_guard: bool,
}

/// Runs `meshd down`.
pub fn run(args: Args, dirs: &Dirs) -> Result<(), Failure> {
    // Before it is asked: afterwards it may be too late to learn which process it is.
    let agent = running(&dirs.run);
    let ended = |limit| agent.as_ref().is_none_or(|agent| agent.wait(limit));
    let said = match Client::connect(&dirs.run).and_then(|mut client| client.down(args.keep_guard)) {
        Ok(()) if !ended(END_LIMIT) => {
            let pid = agent.and_then(|agent| agent.pid);
            return Err(ask::failure("down", ClientError::NotAnswering { pid }));
        }
        Ok(()) if args.keep_guard => "stopped; the guard stays armed",
        Ok(()) => "stopped",
        // Nobody answers: gone, or just killed. Then what it left is removed from here.
        Err(ClientError::NotRunning | ClientError::NotAnswering { .. } | ClientError::Io { .. })
            if ended(DEATH_LIMIT) =>
        {
            if !crate::agent::down_offline(dirs, args.keep_guard)? {
                return Err(Failure::new(3, "down: the agent is not running, and nothing is left of an earlier run"));
            }
            "was not running; removed what an earlier run left"
        }
        Err(error) => return Err(ask::failure("down", error)),
    };
    page::print(&format!("{said}\n")).map(drop).map_err(|error| ask::output_failure("down", &error))
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader};
    use std::path::Path;
    use std::process::{Child, Command, Stdio};

    use super::*;
    use crate::control::fake::FakeAgent;
    use crate::control::{lock, server};

    /// Holds the path of the run directory in the process that plays the agent.
    const CHILD: &str = "MESHD_TEST_AGENT";

    fn play_agent(run_dir: &Path) {
        let lock = lock(run_dir).unwrap();
        let listener = server::bind(&lock).unwrap();
        println!("ready");
        let agent = FakeAgent::new();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(server::serve(agent.clone(), listener, agent.shutdown.notified())).unwrap();
        let expected = ["status", "down true"];
        // Not by a panic, whose exit code would be the harness's.
        std::process::exit(if agent.calls() == expected { 42 } else { 43 });
    }

    /// Kills and reaps what is left of the process when a test fails.
    struct Agent(Child);

    impl Drop for Agent {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    #[test]
    fn it_returns_once_the_process_has_ended() {
        if let Some(run_dir) = std::env::var_os(CHILD) {
            return play_agent(Path::new(&run_dir));
        }
        let dir = tempfile::tempdir().unwrap();
        let mut agent = Agent(
            Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "cli::down::tests::it_returns_once_the_process_has_ended", "--nocapture"])
                .env(CHILD, dir.path())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap(),
        );
        let mut lines = BufReader::new(agent.0.stdout.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap().ends_with("ready")));
        let dirs = Dirs { config: dir.path().into(), run: dir.path().into(), state: dir.path().into() };
        assert_eq!(ask::connect("status", &dirs).unwrap().status().unwrap().name, "home");
        run(Args { keep_guard: true }, &dirs).unwrap();
        // Already over, so this does not wait.
        assert_eq!(agent.0.try_wait().unwrap().and_then(|status| status.code()), Some(42));
        assert!(running(dir.path()).is_none());
    }

    #[test]
    fn an_agent_that_starts_or_hangs_is_not_cleaned_up_after() {
        let dir = tempfile::tempdir().unwrap();
        let _lock = lock(dir.path()).unwrap();
        let dirs = Dirs { config: dir.path().into(), run: dir.path().into(), state: dir.path().into() };
        let failure = run(Args { keep_guard: false }, &dirs).unwrap_err();
        assert_eq!(failure.code, 1);
        assert!(failure.errors[0].ends_with("runs but does not answer"), "{failure:?}");
        assert_eq!(failure.remedy, Some(format!("sudo kill {}", std::process::id())));
    }
}
