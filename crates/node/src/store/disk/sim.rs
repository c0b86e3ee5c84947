//! The simulator's disk: all in memory, all under one seed, and it can lose its power.
//!
//! Invariants: same seed and same calls, same outcome; what was synced survives `crash`, except for
//! what `rot` damaged.

use std::sync::{Arc, Mutex};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::fault::Fault;
use super::memory::MemoryDisk;
use super::volatile::VolatileDisk;
use super::{Disk, DiskError, held};

pub struct SimDisk {
    durable: Arc<MemoryDisk>,
    rng: Mutex<StdRng>,
    life: Mutex<Arc<VolatileDisk>>,
}

impl SimDisk {
    pub fn new(seed: u64, total_bytes: u64) -> Result<Self, DiskError> {
        let durable = Arc::new(MemoryDisk::new(total_bytes));
        let mut rng = StdRng::seed_from_u64(seed);
        let life = VolatileDisk::over(durable.clone(), rng.random())?;
        Ok(Self { durable, rng: Mutex::new(rng), life: Mutex::new(Arc::new(life)) })
    }

    /// The disk as the node of this life sees it.
    pub fn disk(&self) -> Arc<dyn Disk> {
        held(&self.life).clone()
    }

    /// Cuts the power and boots: what was not synced is gone or torn. Disks and files of the life
    /// before fail from now on; `disk` gives the new one.
    pub fn crash(&self) -> Result<(), DiskError> {
        let mut life = held(&self.life);
        life.cut_power();
        self.durable.forget_locks();
        let seed = held(&self.rng).random();
        *life = Arc::new(VolatileDisk::over(self.durable.clone(), seed)?);
        Ok(())
    }

    /// Orders a fault for the life that goes on now.
    pub fn fail(&self, fault: Fault) {
        held(&self.life).power().faults.add(fault);
    }

    /// Damages one durable byte of a file, given as `dir/name`; whether there was one.
    pub fn rot(&self, path: &str, offset: u64, bits: u8) -> bool {
        self.durable.file(path).is_some_and(|file| file.flip(offset, bits))
    }

    /// How many bytes of a file, given as `dir/name`, a real disk would have been asked to keep no copy of in
    /// memory.
    pub fn dropped_bytes(&self, path: &str) -> u64 {
        self.durable.file(path).map_or(0, |file| file.dropped_bytes())
    }

    /// Gives the disk more room or less; what it holds stays.
    pub fn set_total_bytes(&self, total_bytes: u64) {
        self.durable.set_total_bytes(total_bytes);
    }
}
