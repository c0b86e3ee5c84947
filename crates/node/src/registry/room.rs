//! Room on the log's disk: whether proposals may be taken.
//!
//! A full disk must not kill consensus (openraft takes a failed write for the end), so nothing ever
//! fails for want of room: proposals are refused while the disk still has `DISK_HEADROOM_BYTES`, the
//! writer waits instead of failing, and a reserve file is given up for votes and the log of a
//! follower. When there is room again, all goes on by itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::Notify;

use super::limits::DISK_HEADROOM_BYTES;
use crate::store::disk::{Disk, DiskError, Open};

const RESERVE: &str = "reserve";

pub struct Room {
    disk: Arc<dyn Disk>,
    reserve_bytes: u64,
    full: AtomicBool,
    ran_out: Notify,
}

impl Room {
    pub fn new(disk: Arc<dyn Disk>, reserve_bytes: u64) -> Self {
        let room =
            Self { disk, reserve_bytes, full: AtomicBool::new(false), ran_out: Notify::new() };
        room.look();
        room
    }

    pub fn is_full(&self) -> bool {
        self.full.load(Ordering::Relaxed)
    }

    /// Looks at the disk and decides anew. Blocks on the disk.
    pub fn look(&self) {
        let Ok(space) = self.disk.space() else { return };
        let enough = space.free_bytes >= DISK_HEADROOM_BYTES.min(space.total_bytes / 4);
        let full = !enough || self.keep_reserve().is_err();
        if self.full.swap(full, Ordering::Relaxed) != full {
            match full {
                true => tracing::error!(
                    disk = self.disk.path(),
                    free_bytes = space.free_bytes,
                    "the disk is full: changes are refused until there is room"
                ),
                false => tracing::info!(disk = self.disk.path(), "the disk has room again"),
            }
        }
    }

    /// A write has found no room.
    pub fn exhausted(&self) {
        self.full.store(true, Ordering::Relaxed);
        // Missing already or not removable: either way there is nothing more to give. A removal that
        // is not synced may give nothing, either.
        if self.disk.remove(RESERVE).is_ok() {
            let _ = self.disk.sync_dir();
        }
        self.ran_out.notify_one();
    }

    /// Until a write finds no room. For one waiter.
    pub async fn until_exhausted(&self) {
        self.ran_out.notified().await;
    }

    fn keep_reserve(&self) -> Result<(), DiskError> {
        let file = self.disk.open(RESERVE, Open::Any)?;
        if file.size()? >= self.reserve_bytes {
            return Ok(());
        }
        // Written, not only lengthened: a hole reserves nothing.
        let zeros = vec![0; 1 << 20];
        let mut at = 0;
        while at < self.reserve_bytes {
            let part = zeros.len().min((self.reserve_bytes - at) as usize);
            file.write_at(&zeros[..part], at)?;
            at += part as u64;
        }
        file.sync()
    }
}
