//! Completion scripts and manual pages, made from the command line's own definition.

use std::path::Path;

use clap::CommandFactory;

use crate::args::Cli;
use crate::failure::{Explain, Result};
use crate::output;

pub fn completions(shell: clap_complete::Shell) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "unum", &mut script);
    output::print(&String::from_utf8_lossy(&script))
}

pub fn pages(directory: &Path) -> Result<()> {
    std::fs::create_dir_all(directory)
        .and_then(|()| clap_mangen::generate_to(Cli::command(), directory))
        .explain(|| format!("cannot write manual pages to {}", directory.display()))
}
