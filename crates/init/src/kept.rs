//! Descriptors and notes that are held for the daemon's next life.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

use bytes::Bytes;
use unum_proto::init::{Failed, Fault, KEPT_MAX, Keep, Kept, NOTE_SIZE_MAX};

use crate::fault::failed;

/// Longest name, in bytes.
const NAME_SIZE_MAX: usize = 256;

struct Item {
    note: Bytes,
    descriptor: Option<OwnedFd>,
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
        self.items.insert(keep.name, Item { note, descriptor });
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

    pub fn names(&self) -> Vec<String> {
        self.items.keys().cloned().collect()
    }
}

fn not_kept(name: &str) -> Failed {
    failed(Fault::NotKept, 0, format!("nothing is kept under {name:?}"))
}
