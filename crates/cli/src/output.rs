//! How `unum` speaks: tables that fit 100 columns, JSON when asked, colour on a terminal only.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use serde::Serialize;

use crate::failure::{Explain, Result};

pub const TABLE_WIDTH_MAX: usize = 100;
/// Who is done sooner shows no progress.
pub const QUIET_TIME: Duration = Duration::from_secs(2);
const GAP: usize = 2;
/// No column is squeezed below this.
const COLUMN_WIDTH_MIN: usize = 8;

/// What was asked for on the command line and what the terminal can do.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    pub json: bool,
    colour: bool,
    progress: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tone {
    Good,
    Warning,
    Bad,
    Faint,
}

impl Output {
    pub fn new(json: bool) -> Self {
        let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self {
            json,
            colour: io::stdout().is_terminal() && !plain && !json,
            progress: io::stderr().is_terminal(),
        }
    }

    /// Prints a list: one JSON array, or a table.
    pub fn list<T: Serialize>(&self, rows: &[T], table: impl FnOnce() -> Table) -> Result<()> {
        if self.json { self.json(&rows) } else { print(&table().render(TABLE_WIDTH_MAX)) }
    }

    /// Prints one thing: one JSON object, or text.
    pub fn one<T: Serialize>(&self, value: &T, text: impl FnOnce() -> String) -> Result<()> {
        if self.json { self.json(value) } else { print(&text()) }
    }

    fn json<T: Serialize>(&self, value: &T) -> Result<()> {
        let text = serde_json::to_string(value).explain(|| "cannot write JSON".into())?;
        print(&format!("{text}\n"))
    }

    /// A sentence about what was done; JSON readers do not want it.
    pub fn say(&self, text: &str) {
        if !self.json {
            // A reader that has gone away does not undo what was done.
            let _ = print(&format!("{text}\n"));
        }
    }

    /// A remark beside the result.
    pub fn note(&self, text: &str) {
        eprintln!("unum: {text}");
    }

    /// What is being waited for, on a terminal only.
    pub fn progress(&self, text: &str) {
        if self.progress {
            eprintln!("{text} ...");
        }
    }

    /// The same in place of what it was told last; nothing takes that away.
    pub fn progress_line(&self, text: &str) {
        if self.progress {
            eprint!("\r\x1b[K{text}");
        }
    }

    pub fn tone(&self, tone: Tone, text: &str) -> String {
        let code = match tone {
            Tone::Good => "32",
            Tone::Warning => "33",
            Tone::Bad => "31",
            Tone::Faint => "2",
        };
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.into() }
    }
}

/// Prints to standard output. A reader that closed the pipe early ends the program quietly.
pub fn print(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result.explain(|| "cannot write to standard output".into()),
    }
}

/// Rows under headings. Columns are as wide as their content; when that is too much for the line,
/// the last column and then the widest ones are cut, with an ellipsis.
#[derive(Debug)]
pub struct Table {
    headings: Vec<String>,
    rows: Vec<Vec<String>>,
    tones: Vec<(usize, usize, Tone, Output)>,
}

impl Table {
    pub fn new(headings: &[&str]) -> Self {
        let headings = headings.iter().map(|heading| heading.to_string()).collect();
        Self { headings, rows: Vec::new(), tones: Vec::new() }
    }

    pub fn row<const N: usize>(&mut self, cells: [String; N]) -> &mut Self {
        self.rows.push(cells.into_iter().map(|cell| one_line(&cell)).collect());
        self
    }

    /// Colours a cell of the newest row.
    pub fn tone(&mut self, column: usize, tone: Tone, out: &Output) -> &mut Self {
        self.tones.push((self.rows.len().saturating_sub(1), column, tone, *out));
        self
    }

    pub fn render(&self, width_max: usize) -> String {
        let widths = self.fit(width_max);
        let mut text = render_line(&self.headings, &widths, |_, cell| cell);
        for (index, row) in self.rows.iter().enumerate() {
            let paint = |column: usize, cell: String| {
                let found = self.tones.iter().find(|(r, c, ..)| (*r, *c) == (index, column));
                match found {
                    Some((_, _, tone, out)) => out.tone(*tone, &cell),
                    None => cell,
                }
            };
            text.push_str(&render_line(row, &widths, paint));
        }
        text
    }

    fn fit(&self, width_max: usize) -> Vec<usize> {
        let mut widths: Vec<usize> = self.headings.iter().map(|h| h.chars().count()).collect();
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        let total =
            |widths: &[usize]| widths.iter().sum::<usize>() + GAP * widths.len().saturating_sub(1);
        while total(&widths) > width_max {
            let excess = total(&widths) - width_max;
            let Some(widest) = widths.iter_mut().rev().max_by_key(|width| **width) else { break };
            if *widest <= COLUMN_WIDTH_MIN {
                break;
            }
            *widest -= excess.min((*widest - COLUMN_WIDTH_MIN).min((*widest / 4).max(1)));
        }
        widths
    }
}

fn one_line(cell: &str) -> String {
    cell.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn render_line(
    cells: &[String],
    widths: &[usize],
    paint: impl Fn(usize, String) -> String,
) -> String {
    let mut line = String::new();
    for (column, (cell, width)) in cells.iter().zip(widths).enumerate() {
        let cut = cut(cell, *width);
        let padding = width - cut.chars().count() + GAP;
        line.push_str(&paint(column, cut));
        line.extend(std::iter::repeat_n(' ', padding));
    }
    format!("{}\n", line.trim_end())
}

fn cut(cell: &str, width: usize) -> String {
    if cell.chars().count() <= width {
        return cell.into();
    }
    let mut short: String = cell.chars().take(width.saturating_sub(1)).collect();
    short.push('…');
    short
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    #[test]
    fn columns_are_aligned_and_long_cells_are_cut() {
        let mut table = Table::new(&["PID", "USER", "COMMAND"]);
        table.row(["7".into(), "eva".into(), "sh -c 'a\nb'".into()]);
        table.row(["123456".into(), "root".into(), "x".repeat(300)]);
        let text = table.render(40);
        expect![[r#"
            PID     USER  COMMAND
            7       eva   sh -c 'a b'
            123456  root  xxxxxxxxxxxxxxxxxxxxxxxxx…
        "#]]
        .assert_eq(&text);
        assert!(table.render(TABLE_WIDTH_MAX).lines().all(|l| l.chars().count() <= 100));
    }
}
