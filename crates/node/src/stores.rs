//! Which kind of disk the stores write to, and how a node that left forgets what it kept.

use crate::settings::Settings;
use crate::store::disk::VolatileDisk;
use crate::store::{Disk, DiskError, RealDisk};
use crate::system::make_directory;
use std::io;
use std::path::Path;
use std::sync::Arc;

/// The directories below the data directory that hold a cluster's state.
const STORES: [&str; 3] = ["registry", "chunks", UPKEEP];
/// What the work on contents remembers; it may be lost.
pub const UPKEEP: &str = "upkeep";

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(transparent)]
    Directory(#[from] crate::system::StartError),
    #[error("the store `{name}` cannot be opened: {error}")]
    Disk { name: &'static str, error: DiskError },
}

/// The disk of one store. In a playground it forgets what was not synced.
pub fn open(settings: &Settings, name: &'static str) -> Result<Arc<dyn Disk>, OpenError> {
    let path = settings.data_dir.join(name);
    make_directory(&path, 0o700)?;
    let failed = |error| OpenError::Disk { name, error };
    let disk: Arc<dyn Disk> = Arc::new(RealDisk::open(&path).map_err(failed)?);
    if !settings.volatile_writes {
        return Ok(disk);
    }
    Ok(Arc::new(VolatileDisk::over(disk, rand::random()).map_err(failed)?))
}

/// Removes what this machine kept as a node of a cluster that it left.
pub fn forget(data_dir: &Path) -> io::Result<()> {
    for name in STORES {
        match std::fs::remove_dir_all(data_dir.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}
