//! Asking the running agent, and what to say when it does not answer.

use std::io;

use super::{Dirs, Failure};
use crate::control::api;
use crate::control::client::{Client, ClientError};

/// The agent, for the command `what`.
pub fn connect(what: &str, dirs: &Dirs) -> Result<Client, Failure> {
    Client::connect(&dirs.run).map_err(|error| failure(what, error))
}

/// What the command `what` says about the agent's silence or refusal, and its exit code.
pub fn failure(what: &str, error: ClientError) -> Failure {
    let line = format!("{what}: {error}");
    let (code, errors, remedy) = match error {
        ClientError::NotRunning => (3, vec![line], Some("meshd up".to_owned())),
        ClientError::NotAnswering { pid } => (1, vec![line], pid.map(|pid| format!("sudo kill {pid}"))),
        ClientError::PermissionDenied { group, .. } => {
            let join = group.map(|group| format!(", or join its group: sudo usermod -aG {group} $USER"));
            (4, vec![line], Some(format!("sudo meshd {what}{}", join.unwrap_or_default())))
        }
        ClientError::Problem(api::Problem { refused, errors, remedy }) => {
            let code = if refused { 4 } else { 1 };
            (code, errors.iter().map(|error| format!("{what}: {error}")).collect(), remedy)
        }
        ClientError::Protocol(_) => (1, vec![line], Some("meshd and the agent of the same version".to_owned())),
        ClientError::Io { .. } => (1, vec![line], None),
    };
    Failure { code, errors, remedy }
}

/// When the standard output fails.
pub fn output_failure(what: &str, error: &io::Error) -> Failure {
    Failure { code: 1, errors: vec![format!("{what}: standard output: {error}")], remedy: None }
}

/// Lines for the standard error, one for each warning.
pub fn warn(warnings: &[String]) {
    for warning in warnings {
        eprintln!("meshd: warning: {}", super::page::printable(warning));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_failure_has_its_code_and_remedy() {
        let problem = |refused| {
            let errors = vec!["meshd.toml:3: mtu: no".to_owned(), "second".to_owned()];
            ClientError::Problem(api::Problem { refused, errors, remedy: Some("mtu = 1420".to_owned()) })
        };
        let denied = |group: Option<&str>| ClientError::PermissionDenied {
            socket: "/run/meshd/control.sock".into(),
            group: group.map(str::to_owned),
        };
        for (error, code, lines, remedy) in [
            (ClientError::NotRunning, 3, &["status: the agent is not running"][..], Some("meshd up")),
            (
                ClientError::NotAnswering { pid: Some(7) },
                1,
                &["status: the agent (pid 7) runs but does not answer"],
                Some("sudo kill 7"),
            ),
            (denied(None), 4, &["status: /run/meshd/control.sock: permission denied"], Some("sudo meshd status")),
            (
                denied(Some("meshd")),
                4,
                &["status: /run/meshd/control.sock: permission denied"],
                Some("sudo meshd status, or join its group: sudo usermod -aG meshd $USER"),
            ),
            (problem(true), 4, &["status: meshd.toml:3: mtu: no", "status: second"], Some("mtu = 1420")),
            (problem(false), 1, &["status: meshd.toml:3: mtu: no", "status: second"], Some("mtu = 1420")),
        ] {
            let failure = failure("status", error);
            assert_eq!((failure.code, failure.remedy.as_deref()), (code, remedy));
            assert_eq!(failure.errors, lines);
        }
    }
}
