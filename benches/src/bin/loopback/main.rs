//! A bare FUSE loopback over Unum's own transport: `loopback SOURCE MOUNT_POINT` shows the directory
//! SOURCE at MOUNT_POINT until that is unmounted or the program ends.
//!
//! It is the floor for what a file system of ours can cost: names and attributes are trusted by the
//! kernel without a time-out (nobody but this program may change SOURCE meanwhile), listings and
//! pages stay cached, and one pinned reader per CPU answers each call inline. What it adds to the
//! file system below is the way through the kernel and back, nothing else.
//!
//! Left out on purpose: passthrough and the write-back cache, files without a name (O_TMPFILE), and
//! SOURCE holding other mounts. Locks are the kernel's own. It runs as root and gives what it makes to
//! the caller.

mod attributes;
mod nodes;
mod operations;

use std::path::Path;

use anyhow::{Context, Result, bail};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit, umask};
use unum_sys::fuse::{Capabilities, MountOptions, Readers, Session, Wishes, mount};

use operations::Loopback;

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [source, at] = words.as_slice() else { bail!("usage: loopback SOURCE MOUNT_POINT") };
    // The kernel has applied the caller's.
    umask(rustix::fs::Mode::empty());
    raise_descriptor_limit();
    let loopback = Loopback::over(Path::new(source))
        .with_context(|| format!("cannot open the directory {source}"))?;
    let options = MountOptions {
        source: source.clone(),
        subtype: Some("loopback".into()),
        ..MountOptions::default()
    };
    let device = mount(Path::new(at), &options)?;
    let session = Session::start(device, &wishes())?;
    let serving = session.run(Readers::per_cpu(), move |request| loopback.serve(request))?;
    println!("{source} is mounted on {at}");
    serving.wait();
    Ok(())
}

fn wishes() -> Wishes {
    let wishes = Wishes::default();
    let locks = Capabilities::POSIX_LOCKS | Capabilities::FLOCK_LOCKS;
    let capabilities = wishes.capabilities.without(locks)
        | Capabilities::ATOMIC_O_TRUNC
        | Capabilities::CACHE_SYMLINKS
        | Capabilities::EXPLICIT_INVAL_DATA
        | Capabilities::HANDLE_KILLPRIV_V2
        | Capabilities::READDIRPLUS
        | Capabilities::READDIRPLUS_AUTO;
    Wishes { capabilities, ..wishes }
}

/// Each directory that the kernel knows and each open file is one descriptor here.
fn raise_descriptor_limit() {
    let maximum = getrlimit(Resource::Nofile).maximum;
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
}
