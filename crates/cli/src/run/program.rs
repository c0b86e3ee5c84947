//! What a program inherits from `unum run`: arguments, environment, directory, umask, limits.

use std::os::unix::ffi::{OsStrExt, OsStringExt};

use bytes::Bytes;
use rustix::process::{Resource, getpriority_process, getrlimit, umask};
use serde::Serialize;
use unum_proto::process::{Limit, Program, StartReply};

use super::RunOrder;
use super::terminal::Terminal;
use crate::failure::{Explain, Result};

/// What `unum run --detach --json` prints.
#[derive(Serialize)]
pub struct Started {
    pid: u32,
    node: String,
}

impl From<&StartReply> for Started {
    fn from(reply: &StartReply) -> Self {
        Self { pid: reply.pid, node: reply.node_name.clone() }
    }
}

pub fn describe(order: &RunOrder, terminal: Option<&Terminal>) -> Result<Program> {
    let directory = std::env::current_dir().explain(|| "the current directory is gone".into())?;
    Ok(Program {
        arguments: order.command.iter().map(|w| Bytes::copy_from_slice(w.as_bytes())).collect(),
        environment: environment(),
        directory: Bytes::from(directory.into_os_string().into_vec()),
        umask: current_umask(),
        limits: limits(),
        nice: getpriority_process(None).unwrap_or(0),
        detached: order.detach,
        terminal: terminal.map(Terminal::size),
    })
}

fn environment() -> Vec<Bytes> {
    let line = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
        let mut line = name.into_vec();
        line.push(b'=');
        line.extend_from_slice(value.as_bytes());
        Bytes::from(line)
    };
    std::env::vars_os().map(line).collect()
}

fn current_umask() -> u32 {
    // The only way to read it is to change it; this process makes no file in between.
    let mask = umask(rustix::fs::Mode::empty());
    umask(mask);
    mask.bits()
}

/// The limits, with the kernel's numbers, which are the same on all architectures that we support.
fn limits() -> Vec<Limit> {
    const ALL: [(Resource, u32); 16] = [
        (Resource::Cpu, 0),
        (Resource::Fsize, 1),
        (Resource::Data, 2),
        (Resource::Stack, 3),
        (Resource::Core, 4),
        (Resource::Rss, 5),
        (Resource::Nproc, 6),
        (Resource::Nofile, 7),
        (Resource::Memlock, 8),
        (Resource::As, 9),
        (Resource::Locks, 10),
        (Resource::Sigpending, 11),
        (Resource::Msgqueue, 12),
        (Resource::Nice, 13),
        (Resource::Rtprio, 14),
        (Resource::Rttime, 15),
    ];
    let read = |(resource, number)| {
        let limit = getrlimit(resource);
        let (soft, hard) = (limit.current.unwrap_or(u64::MAX), limit.maximum.unwrap_or(u64::MAX));
        Limit { resource: number, soft, hard }
    };
    ALL.into_iter().map(read).collect()
}
