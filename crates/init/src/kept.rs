//! Descriptors and notes that are held for the daemon's next life.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use unum_proto::init::{Failed, Fault, KEPT_MAX, Keep, Kept, NOTE_SIZE_MAX};
use unum_sys::fuse::{Device, Ledger, Notifier, Outline};

use crate::fault::failed;

/// Time for a look that comes late, and for taking back.
pub const DEADLINE_NEAR: Duration = Duration::from_millis(280);

/// Longest name, in bytes.
const NAME_SIZE_MAX: usize = 256;

struct Item {
    note: Bytes,
    descriptor: Option<OwnedFd>,
    watch: Option<Watch>,
}

/// What a kernel may cache on the word of a daemon, which may die.
struct Watch {
    ledger: PathBuf,
    notifier: Notifier,
    /// As it was when all was taken back.
    recalled: Option<Outline>,
}

#[derive(Default)]
pub struct Keepsakes {
    items: BTreeMap<String, Item>,
}

impl Keepsakes {
    pub fn keep(&mut self, keep: Keep, descriptor: Option<OwnedFd>) -> Result<(), Failed> {
        if keep.descriptor != descriptor.is_some() {
            return Err(failed(Fault::BadRequest, 0, "no descriptor came with Keep"));
        }
        let known = self.items.contains_key(&keep.name);
        if !known && self.items.len() >= KEPT_MAX {
            let why = format!("{KEPT_MAX} names are kept already; release one first");
            return Err(failed(Fault::LimitReached, 0, why));
        }
        if keep.note.len() > NOTE_SIZE_MAX || keep.name.len() > NAME_SIZE_MAX {
            return Err(failed(Fault::LimitReached, 0, "the note or its name is too long"));
        }
        // The frame's own bytes would keep its whole buffer alive.
        let note = Bytes::copy_from_slice(&keep.note);
        let watch = match &descriptor {
            Some(descriptor) if !keep.ledger.is_empty() => {
                let fd =
                    descriptor.try_clone().map_err(crate::fault::system("copy a descriptor"))?;
                let ledger = PathBuf::from(OsStr::from_bytes(&keep.ledger));
                let notifier = Device::from_fd(fd).notifier();
                Some(Watch { ledger, notifier, recalled: None })
            }
            _ => None,
        };
        self.items.insert(keep.name, Item { note, descriptor, watch });
        Ok(())
    }

    pub fn fetch(&self, name: &str) -> Result<(Kept, Option<OwnedFd>), Failed> {
        let item = self.items.get(name).ok_or_else(|| not_kept(name))?;
        let descriptor = match &item.descriptor {
            Some(fd) => Some(fd.try_clone().map_err(crate::fault::system("copy a descriptor"))?),
            None => None,
        };
        Ok((Kept { note: item.note.clone(), descriptor: descriptor.is_some() }, descriptor))
    }

    pub fn release(&mut self, name: &str) -> Result<(), Failed> {
        self.items.remove(name).map(drop).ok_or_else(|| not_kept(name))
    }

    /// Whether the deadlines of caches have to be looked at.
    pub fn has_watches(&self) -> bool {
        self.items.values().any(|item| item.watch.is_some())
    }

    /// Has kernels drop what no daemon keeps true any more.
    pub fn look_at_deadlines(&mut self) {
        for watch in self.items.values_mut().filter_map(|item| item.watch.as_mut()) {
            watch.look();
        }
    }

    pub fn names(&self) -> Vec<String> {
        self.items.keys().cloned().collect()
    }
}

impl Watch {
    fn look(&mut self) {
        let Ok(Some(outline)) = Ledger::outline(&self.ledger) else { return };
        let due = !outline.is_empty() && outline.left() < DEADLINE_NEAR;
        if due && self.recalled != Some(outline) {
            self.recalled = Some(outline);
            if let Err(error) = Ledger::recall_at_once(&self.ledger, &self.notifier) {
                eprintln!("unum-init: the kernel's caches cannot be emptied: {error}");
            }
        }
    }
}

fn not_kept(name: &str) -> Failed {
    failed(Fault::NotKept, 0, format!("nothing is kept under {name:?}"))
}
