//! What `scripts/bench-files` is made of besides the tools that everybody has: sources for the rows,
//! loads with many small calls, a clock with a limit, and the table.
//!
//! Everything random here comes from a fixed seed, so all systems and rounds get the same work.

mod clock;
mod loads;
mod random;
mod report;
mod sources;

use std::path::Path;

use anyhow::{Result, bail};

const USAGE: &str = "\
files clock LIMIT_S COMMAND [ARG...]     prints the seconds that it took, >LIMIT_S or failed
files clock-at TIME_MS LIMIT_S COMMAND [ARG...]   the same, from that Unix time on
files tree DIR COUNT                     makes a tree of so many files of text
files sources DIR COUNT                  makes so many C files with a Makefile
files write MIB PATH                     writes pieces of 1 MiB and syncs
files random-read COUNT PATH             reads pieces of 4 KiB
files random-write COUNT PATH            writes pieces of 4 KiB and syncs
files sync COUNT PATH                    appends pieces of 4 KiB and syncs each
files create|stat|open|unlink COUNT DIR   so many empty files, 1,000 in a directory
files create-here COUNT DIR PREFIX       the same, all in DIR itself
files report SYSTEM[,SYSTEM...]          the table of the lines on standard input";

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["clock", limit, command @ ..] if !command.is_empty() => {
            clock::run(None, limit.parse()?, command)
        }
        ["clock-at", start, limit, command @ ..] if !command.is_empty() => {
            clock::run(Some(start.parse()?), limit.parse()?, command)
        }
        ["tree", dir, count] => sources::tree(Path::new(dir), count.parse()?),
        ["sources", dir, count] => sources::c_files(Path::new(dir), count.parse()?),
        ["write", mib, path] => loads::write(mib.parse()?, path),
        ["random-read", count, path] => loads::random_read(count.parse()?, path),
        ["random-write", count, path] => loads::random_write(count.parse()?, path),
        ["sync", count, path] => loads::sync(count.parse()?, path),
        ["create", count, dir] => loads::create(count.parse()?, Path::new(dir)),
        ["create-here", count, dir, prefix] => {
            loads::create_here(count.parse()?, Path::new(dir), prefix)
        }
        ["stat", count, dir] => loads::stat(count.parse()?, Path::new(dir)),
        ["open", count, dir] => loads::open(count.parse()?, Path::new(dir)),
        ["unlink", count, dir] => loads::unlink(count.parse()?, Path::new(dir)),
        ["report", systems] => report::run(systems),
        _ => bail!("usage:\n{USAGE}"),
    }
}
