//! Lines `row<TAB>system<TAB>value` as a table of medians with ratios.
//!
//! A value is a number of seconds, `>LIMIT` (ended then), `failed`, or `-` (could not be tried). A
//! median of an even number is the lower one; one ended at its limit counts as longer than all.

use std::cmp::Ordering;
use std::io::Read;

use anyhow::Result;

/// What all others are compared with, and whose column is last.
const LOCAL: &str = "ext4";
const FLOOR: &str = "loopback";
const OURS: &str = "unum";

#[derive(Clone, Copy, Debug, PartialEq)]
enum Time {
    Seconds(f64),
    MoreThan(f64),
    Failed,
    Untried,
}

struct Row {
    name: String,
    /// System and what its rounds gave.
    systems: Vec<(String, Vec<Time>)>,
}

pub fn run(systems: &str) -> Result<()> {
    let systems: Vec<&str> = systems.split(',').collect();
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text)?;
    print!("{}", render(&collect(&text), &systems));
    Ok(())
}

fn collect(text: &str) -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::new();
    for line in text.lines() {
        let fields: Vec<&str> = line.split('\t').collect();
        let [name, system, value] = fields.as_slice() else { continue };
        let at = rows.iter().position(|row| row.name == *name).unwrap_or_else(|| {
            rows.push(Row { name: (*name).into(), systems: Vec::new() });
            rows.len() - 1
        });
        rows[at].add(system, parse(value));
    }
    rows
}

fn parse(value: &str) -> Time {
    let number = |text: &str| text.parse().ok();
    match value {
        "-" => Time::Untried,
        _ => value
            .strip_prefix('>')
            .map_or_else(
                || number(value).map(Time::Seconds),
                |limit| number(limit).map(Time::MoreThan),
            )
            .unwrap_or(Time::Failed),
    }
}

impl Row {
    fn add(&mut self, system: &str, time: Time) {
        match self.systems.iter_mut().find(|(name, _)| name == system) {
            Some((_, times)) => times.push(time),
            None => self.systems.push((system.into(), vec![time])),
        }
    }

    fn median(&self, system: &str) -> Option<Time> {
        let (_, times) = self.systems.iter().find(|(name, _)| name == system)?;
        let mut times = times.clone();
        times.sort_by(Time::by_length);
        times.get((times.len() - 1) / 2).copied()
    }

    fn ratio(&self, above: &str, below: &str) -> String {
        match (self.median(above), self.median(below)) {
            (Some(above), Some(below)) => ratio(above, below),
            _ => String::new(),
        }
    }
}

impl Time {
    fn by_length(&self, other: &Time) -> Ordering {
        let rank = |time: &Time| match time {
            Time::Seconds(seconds) => (0, *seconds),
            Time::MoreThan(seconds) => (1, *seconds),
            Time::Failed => (2, 0.0),
            Time::Untried => (3, 0.0),
        };
        rank(self).partial_cmp(&rank(other)).unwrap_or(Ordering::Equal)
    }

    fn show(self) -> String {
        match self {
            Time::Seconds(seconds) => format!("{} s", digits(seconds)),
            Time::MoreThan(limit) => format!("more than {limit} s"),
            Time::Failed => "failed".into(),
            Time::Untried => "not tried".into(),
        }
    }
}

fn ratio(above: Time, below: Time) -> String {
    match (above, below) {
        (Time::Seconds(above), Time::Seconds(below)) => digits(above / below),
        (Time::MoreThan(above), Time::Seconds(below)) => format!("> {}", digits(above / below)),
        (Time::Seconds(above), Time::MoreThan(below)) => format!("< {}", digits(above / below)),
        _ => String::new(),
    }
}

/// Three significant digits, the smallest step 0.001.
fn digits(value: f64) -> String {
    let places = match value {
        value if value >= 99.5 => 0,
        value if value >= 9.95 => 1,
        value if value >= 0.995 => 2,
        _ => 3,
    };
    format!("{value:.places$}")
}

fn render(rows: &[Row], systems: &[&str]) -> String {
    let has = |system: &str| systems.contains(&system);
    let mut pairs = Vec::new();
    if has(OURS) {
        pairs.extend(has(FLOOR).then_some((OURS, FLOOR)));
        let rivals = systems.iter().filter(|system| ![LOCAL, FLOOR, OURS].contains(*system));
        pairs.extend(rivals.map(|rival| (*rival, OURS)));
    }
    let mut out = format!("| row | {} |", systems.join(" | "));
    out.extend(pairs.iter().map(|(above, below)| format!(" {above} / {below} |")));
    out += &format!("\n|---|{}\n", "---:|".repeat(systems.len() + pairs.len()));
    for row in rows {
        out += &format!("| {} |", row.name);
        out.extend(systems.iter().map(|system| cell(row, system)));
        out.extend(pairs.iter().map(|(above, below)| format!(" {} |", row.ratio(above, below))));
        out.push('\n');
    }
    out
}

/// The median, and in brackets its ratio to the local file system.
fn cell(row: &Row, system: &str) -> String {
    let Some(median) = row.median(system) else { return " |".into() };
    let ratio = row.ratio(system, LOCAL);
    if system == LOCAL || ratio.is_empty() {
        return format!(" {} |", median.show());
    }
    format!(" {} ({ratio}) |", median.show())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_ratios_survive_limits_and_failures() {
        let lines = "tar\text4\t1.0\ntar\text4\t3.0\ntar\text4\t2.0\n\
                     tar\tloopback\t4\ntar\tunum\t>120\ntar\tgluster\tfailed\n\
                     find\text4\t0.5\nfind\tunum\t1.5\n";
        let table = render(&collect(lines), &["ext4", "loopback", "gluster", "unum"]);
        let expected = "\
| row | ext4 | loopback | gluster | unum | unum / loopback | gluster / unum |
|---|---:|---:|---:|---:|---:|---:|
| tar | 2.00 s | 4.00 s (2.00) | failed | more than 120 s (> 60.0) | > 30.0 |  |
| find | 0.500 s | | | 1.50 s (3.00) |  |  |
";
        assert_eq!(table, expected);
    }
}
