//! A disk that says "synced" and is not: a flaw to plant.

use std::sync::Arc;

use unum_node::store::disk::{Disk, DiskError, DiskFile, DiskLock, Open, Space};

pub struct LyingDisk(pub Arc<dyn Disk>);

struct LyingFile(Arc<dyn DiskFile>);

impl Disk for LyingDisk {
    fn open(&self, name: &str, how: Open) -> Result<Arc<dyn DiskFile>, DiskError> {
        Ok(Arc::new(LyingFile(self.0.open(name, how)?)))
    }

    fn rename(&self, from: &str, to: &str) -> Result<(), DiskError> {
        self.0.rename(from, to)
    }

    fn remove(&self, name: &str) -> Result<(), DiskError> {
        self.0.remove(name)
    }

    fn list(&self) -> Result<Vec<String>, DiskError> {
        self.0.list()
    }

    fn sync_dir(&self) -> Result<(), DiskError> {
        self.0.sync_dir()
    }

    fn dir(&self, name: &str) -> Result<Arc<dyn Disk>, DiskError> {
        Ok(Arc::new(LyingDisk(self.0.dir(name)?)))
    }

    fn lock(&self, name: &str) -> Result<DiskLock, DiskError> {
        self.0.lock(name)
    }

    fn space(&self) -> Result<Space, DiskError> {
        self.0.space()
    }

    fn path(&self) -> &str {
        self.0.path()
    }
}

impl DiskFile for LyingFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize, DiskError> {
        self.0.read_at(buf, offset)
    }

    fn write_parts_at(&self, parts: &[&[u8]], offset: u64) -> Result<(), DiskError> {
        self.0.write_parts_at(parts, offset)
    }

    fn sync(&self) -> Result<(), DiskError> {
        Ok(())
    }

    fn set_len(&self, len: u64) -> Result<(), DiskError> {
        self.0.set_len(len)
    }

    fn size(&self) -> Result<u64, DiskError> {
        self.0.size()
    }

    fn path(&self) -> &str {
        self.0.path()
    }
}
