//! The caller's terminal while a program elsewhere has the word: raw, so that every key goes there,
//! and put back when it stops or ends.

use std::io::{self, IsTerminal, stdin};

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use unum_proto::process::WindowSize;

/// A terminal that does not know its size says 0, which few programs can draw on.
fn sane(rows: u32, columns: u32) -> WindowSize {
    let or = |n, otherwise| if n == 0 { otherwise } else { n };
    WindowSize { rows: or(rows, 24), columns: or(columns, 80) }
}

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
            Ok(size) => sane(size.ws_row.into(), size.ws_col.into()),
            Err(_) => sane(0, 0),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_that_is_not_known_is_that_of_a_terminal() {
        assert_eq!(sane(0, 0), WindowSize { rows: 24, columns: 80 });
        assert_eq!(sane(50, 0), WindowSize { rows: 50, columns: 80 });
        assert_eq!(sane(50, 132), WindowSize { rows: 50, columns: 132 });
    }
}
