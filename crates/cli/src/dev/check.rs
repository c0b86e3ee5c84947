//! What a playground needs of this computer. Told in one line before anything is made.

use std::path::Path;

use unum_sys::namespace::{self, Kind};

use super::network;
use crate::failure::{Failure, Result};

/// `bare` machines run no daemon, so they need no FUSE.
pub fn prerequisites(bare: bool) -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        return Err(Failure::new(
            "a playground needs root: it makes namespaces, mounts and network \
                                 interfaces",
        )
        .next("Run it with sudo."));
    }
    namespaces()?;
    network::check()?;
    if !bare && !Path::new("/dev/fuse").exists() {
        return Err(Failure::new("this machine has no /dev/fuse, so /unum cannot be mounted")
            .next("Load the kernel's fuse module (modprobe fuse); in a container: --device /dev/fuse."));
    }
    Ok(())
}

fn namespaces() -> Result<()> {
    let tried = std::thread::scope(|scope| {
        let all = [Kind::Network, Kind::Uts, Kind::Ipc, Kind::Mount];
        scope.spawn(move || namespace::unshare(&all)).join()
    });
    match tried {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(Failure::new(format!(
            "this machine does not let us make namespaces: {error}"
        ))
        .next("A playground needs CAP_SYS_ADMIN and CAP_NET_ADMIN; in a container: --privileged.")),
        Err(_) => Err(Failure::new("cannot try to make namespaces")),
    }
}
