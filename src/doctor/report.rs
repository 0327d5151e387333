//! What is said about a host.

use serde::{Deserialize, Serialize};

/// `meshd doctor --json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Report {
    /// This host's name; empty when its configuration cannot be read.
    pub name: String,
    /// No step found a fault.
    pub healthy: bool,
    /// In the order in which a packet meets them.
    pub steps: Vec<Step>,
    /// What `--fix` did, one line each.
    pub fixed: Vec<String>,
}

/// One stage of a packet's way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// Its name: `bridge`, `guard`, `handshake`, …
    pub step: String,
    /// Which bridge or peer it is about.
    pub about: Option<String>,
    /// How it is.
    pub state: State,
    /// What was seen there.
    pub saw: String,
    /// For a fault: what fixes it.
    pub remedy: Option<Remedy>,
}

/// How a step is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// As it should be.
    Ok,
    /// It keeps packets from arriving.
    Fault,
    /// Nothing to look at, or pointless before an earlier fault is gone.
    Skipped,
}

/// What fixes a fault.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remedy {
    /// The host to do it on; `None` is this one.
    pub host: Option<String>,
    /// To be run as root, one after the other; may be empty.
    pub commands: Vec<String>,
    /// What no command can do.
    pub note: Option<String>,
    /// `--fix` does it.
    pub fixable: bool,
}

impl Report {
    /// Of these steps.
    pub fn new(name: &str, steps: Vec<Step>) -> Self {
        let healthy = steps.iter().all(|step| step.state != State::Fault);
        Self { name: name.to_owned(), healthy, steps, fixed: Vec::new() }
    }
}

impl Step {
    /// One that is well.
    pub fn ok(step: &str, about: Option<&str>, saw: impl Into<String>) -> Self {
        Self::new(step, about, State::Ok, saw.into(), None)
    }

    /// One that is not.
    pub fn fault(step: &str, about: Option<&str>, saw: impl Into<String>, remedy: Remedy) -> Self {
        Self::new(step, about, State::Fault, saw.into(), Some(remedy))
    }

    /// One that was not looked at.
    pub fn skipped(step: &str, about: Option<&str>, saw: impl Into<String>) -> Self {
        Self::new(step, about, State::Skipped, saw.into(), None)
    }

    fn new(step: &str, about: Option<&str>, state: State, saw: String, remedy: Option<Remedy>) -> Self {
        Self { step: step.to_owned(), about: about.map(str::to_owned), state, saw, remedy }
    }

    /// Whether it found a fault.
    pub fn is_fault(&self) -> bool {
        self.state == State::Fault
    }
}

impl Remedy {
    /// Commands on this host.
    pub fn run(commands: impl IntoIterator<Item = String>) -> Self {
        Self { commands: commands.into_iter().collect(), ..Self::default() }
    }

    /// Words.
    pub fn note(note: impl Into<String>) -> Self {
        Self { note: Some(note.into()), ..Self::default() }
    }

    /// To be done on another host.
    #[must_use]
    pub fn on(mut self, host: &str) -> Self {
        self.host = Some(host.to_owned());
        self
    }

    /// What another host says: nothing that `--fix` does here, and each command is one line, so that none of its lines
    /// can pass for this host's own. What takes more, its own doctor does.
    #[must_use]
    pub fn from_afar(mut self) -> Self {
        self.fixable = false;
        for command in &mut self.commands {
            if command.contains(char::is_control) {
                "meshd doctor --fix".clone_into(command);
            }
        }
        self.commands.dedup();
        self
    }

    /// With words beside the commands.
    #[must_use]
    pub fn and(mut self, note: impl Into<String>) -> Self {
        self.note = Some(note.into());
        self
    }

    /// Safe enough to be done by `--fix`.
    #[must_use]
    pub fn fixable(mut self) -> Self {
        self.fixable = true;
        self
    }
}
