//! The PIDs of the world: the blocks that the node holds and the kernel's cursor in them.

use std::io;
use std::path::Path;

use unum_proto::init::{Failed, Fault};
use unum_sys::pids::{self, PidCursor};

use super::{PROC, World};
use crate::blocks::{BlockError, Move};
use crate::fault::{failed, system};

impl World {
    pub(super) fn set_blocks(
        &mut self,
        blocks: Vec<unum_proto::init::PidBlock>,
    ) -> Result<(), Failed> {
        let Some(cursor) = &self.cursor else {
            return Err(failed(Fault::System, 0, self.missing.join("; ")));
        };
        let last = cursor.last().map_err(system("read the PID cursor"))?;
        let to = self.guard.set(blocks, last).map_err(|e| {
            let why = match e {
                BlockError::TooMany => "too many PID blocks".to_owned(),
                BlockError::BadRange(lo, hi) => {
                    format!(
                        "{lo}..{hi} is not a PID block: it must lie in 301..4194304, size 256 up"
                    )
                }
                BlockError::Overlap(lo) => format!("the block at {lo} overlaps the one before"),
            };
            failed(Fault::BadRequest, 0, why)
        })?;
        if let Some(to) = to {
            move_cursor(cursor, to).map_err(system("move the PID cursor"))?;
        }
        self.count_tasks();
        Ok(())
    }

    pub(super) fn guard_pids(&mut self) {
        let Some(cursor) = &self.cursor else { return };
        let Ok(last) = cursor.last() else { return };
        self.last_pid = last;
        if let Some(to) = self.guard.look(last)
            && move_cursor(cursor, to).is_ok()
        {
            self.last_pid = to.next - 1;
        }
    }

    pub(super) fn count_tasks(&mut self) {
        if let Ok(tasks) = pids::count_tasks(Path::new(PROC)) {
            self.guard.counted(tasks);
        }
        self.counted_at = self.last_pid;
    }
}

pub(super) fn open_cursor(missing: &mut Vec<String>) -> Option<PidCursor> {
    match PidCursor::open(Path::new(PROC)) {
        Ok(cursor) => {
            if !cursor.has_limit() {
                missing.push(
                    "Linux before 6.14 has one pid_max for the whole machine: more than 25 forks in a \
                     millisecond may leave this node's PID blocks"
                        .to_owned(),
                );
            }
            Some(cursor)
        }
        Err(e) => {
            missing.push(format!("PIDs cannot be chosen here: {e}"));
            None
        }
    }
}

fn move_cursor(cursor: &PidCursor, to: Move) -> io::Result<()> {
    cursor.set_limit(to.limit_before)?;
    cursor.set_next(to.next)?;
    cursor.set_limit(to.limit_after)
}
