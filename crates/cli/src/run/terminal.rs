//! The caller's terminal while a program elsewhere has the word: raw, so that every key goes there,
//! and put back when it stops or ends.

use std::io::{self, IsTerminal, stdin};

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use unum_proto::process::WindowSize;

/// Dropping it puts the terminal back.
#[derive(Debug)]
pub struct Terminal {
    cooked: Termios,
    raw: bool,
}

impl Terminal {
    /// `None` unless the program should have a terminal: both its input and its output are one.
    pub fn of_this_process() -> Option<Self> {
        if !stdin().is_terminal() || !io::stdout().is_terminal() {
            return None;
        }
        Some(Self { cooked: tcgetattr(stdin()).ok()?, raw: false })
    }

    pub fn size(&self) -> WindowSize {
        match tcgetwinsize(stdin()) {
            Ok(size) => WindowSize { rows: size.ws_row.into(), columns: size.ws_col.into() },
            Err(_) => WindowSize { rows: 24, columns: 80 },
        }
    }

    pub fn make_raw(&mut self) -> io::Result<()> {
        let mut raw = self.cooked.clone();
        raw.make_raw();
        tcsetattr(stdin(), OptionalActions::Drain, &raw)?;
        self.raw = true;
        Ok(())
    }

    /// Puts the terminal back as it was. One that is gone needs nothing.
    pub fn restore(&mut self) {
        if std::mem::take(&mut self.raw) {
            let _ = tcsetattr(stdin(), OptionalActions::Drain, &self.cooked);
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.restore();
    }
}
