//! How a command fails: lines, a remedy, an exit code.

use crate::store;

/// Why a command did not do its work; printed as `meshd: what: why` and `try: …`.
#[derive(Debug)]
pub struct Failure {
    /// The exit code: 1 failed, 2 usage, 3 not running, 4 refused, 5 nothing could be proved.
    pub code: u8,
    /// Lines `what: why`, each printed with `meshd: ` before it.
    pub errors: Vec<String>,
    /// The remedy, printed with `try: ` before it.
    pub remedy: Option<String>,
}

impl Failure {
    /// A failure of one line, `what: why`.
    pub fn new(code: u8, error: impl Into<String>) -> Self {
        Self { code, errors: vec![error.into()], remedy: None }
    }

    /// With what the operator can do about it.
    #[must_use]
    pub fn try_this(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }
}

impl From<store::Error> for Failure {
    fn from(error: store::Error) -> Self {
        Self { code: if error.refused() { 4 } else { 1 }, errors: error.errors(), remedy: error.remedy() }
    }
}
