//! What the person at the terminal is told when something does not work: what failed, why, and what
//! to do next. Also decides the exit status.

use std::fmt;

/// The exit statuses of `unum`, as a shell user expects them.
pub const EXIT_FAILURE: u8 = 1;
pub const EXIT_USAGE: u8 = 2;
/// `run` and `dev exec`: Unum itself failed, not the program.
pub const EXIT_OWN_FAILURE: u8 = 125;
/// `run` and `dev exec`: the program was found but cannot be executed.
pub const EXIT_NOT_EXECUTABLE: u8 = 126;
/// `run` and `dev exec`: there is no such program.
pub const EXIT_NOT_FOUND: u8 = 127;
/// Added to the number of the signal that ended the program.
pub const EXIT_SIGNAL_BASE: u8 = 128;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub exit: u8,
    /// What failed and why, in one line.
    pub what: String,
    /// What to do next, in one line.
    pub next: Option<String>,
}

pub type Result<T, E = Failure> = std::result::Result<T, E>;

impl Failure {
    pub fn new(what: impl Into<String>) -> Self {
        Self { exit: EXIT_FAILURE, what: what.into(), next: None }
    }

    pub fn usage(what: impl Into<String>) -> Self {
        Self { exit: EXIT_USAGE, ..Self::new(what) }
    }

    pub fn next(mut self, next: impl Into<String>) -> Self {
        self.next = Some(next.into());
        self
    }

    pub fn exit(mut self, exit: u8) -> Self {
        self.exit = exit;
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        match &self.next {
            Some(next) => write!(f, "\n  {next}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Failure {}

/// Turns the error of a lower layer into a [`Failure`] that says what was being done.
pub trait Explain<T> {
    fn explain(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: fmt::Display> Explain<T> for std::result::Result<T, E> {
    fn explain(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|error| Failure::new(format!("{}: {error}", what())))
    }
}
