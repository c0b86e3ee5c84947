//! Faults that a test or the simulator orders: the n-th operation of a kind fails.

use std::sync::Mutex;

use rustix::io::Errno;

use super::{DiskError, Op, held};

/// One ordered fault. It strikes once.
#[derive(Clone, Debug)]
pub struct Fault {
    pub op: Op,
    /// Only files whose path contains this.
    pub path_contains: String,
    /// How many operations of the kind succeed first.
    pub after: u32,
    pub errno: Errno,
}

#[derive(Default)]
pub(super) struct FaultPlan(Mutex<Vec<Fault>>);

impl FaultPlan {
    pub fn add(&self, fault: Fault) {
        held(&self.0).push(fault);
    }

    /// Fails if a fault is due; not for writes and syncs, which fail half done.
    pub fn strike(&self, op: Op, path: &str) -> Result<(), DiskError> {
        match op {
            Op::Write | Op::Sync => Ok(()),
            _ => self.strike_part(op, path).map_or(Ok(()), Err),
        }
    }

    /// The error with which this operation shall fail.
    pub fn strike_part(&self, op: Op, path: &str) -> Option<DiskError> {
        let mut plan = held(&self.0);
        let place =
            plan.iter().position(|f| f.op == op && path.contains(f.path_contains.as_str()))?;
        if plan[place].after > 0 {
            plan[place].after -= 1;
            return None;
        }
        let fault = plan.remove(place);
        Some(DiskError::from_errno(op, path, fault.errno))
    }
}
