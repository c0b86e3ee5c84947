//! Blocks of PIDs leased to nodes.
//!
//! Invariant: a block has one owner at most. Blocks that were never used go first, then those that
//! were freed longest ago, so that a PID comes back as late as possible.

use imbl::{OrdMap, Vector};
use unum_proto::ids::{NodeId, Pid};
use unum_proto::registry::PidBlock;

use super::limits::{NODE_PID_BLOCKS_MAX, PID_BLOCK_END, PID_BLOCK_FIRST, PID_BLOCK_SIZE};
use super::refused::{Field, Refused};

#[derive(Clone, Debug)]
pub struct Pids {
    pub(super) owners: OrdMap<u32, NodeId>,
    pub(super) block_next: u32,
    pub(super) freed: Vector<u32>,
}

impl Default for Pids {
    fn default() -> Self {
        Self { owners: OrdMap::new(), block_next: PID_BLOCK_FIRST, freed: Vector::new() }
    }
}

impl Pids {
    /// The node to which the block of this PID is leased: where a process with it was born.
    pub fn owner(&self, pid: Pid) -> Option<NodeId> {
        self.owners.get(&(pid.0 / PID_BLOCK_SIZE)).copied()
    }

    pub fn blocks_of(&self, node: NodeId) -> impl Iterator<Item = PidBlock> {
        self.owners.iter().filter(move |(_, owner)| **owner == node).map(|(block, _)| span(*block))
    }

    pub(super) fn lease(&mut self, node: NodeId) -> Result<PidBlock, Refused> {
        if self.blocks_of(node).count() >= NODE_PID_BLOCKS_MAX {
            return Err(Refused::Limit(Field::PidBlocks, NODE_PID_BLOCKS_MAX as u64));
        }
        let block = self.take_free().ok_or(Refused::PidsExhausted)?;
        self.owners.insert(block, node);
        Ok(span(block))
    }

    pub(super) fn give_back(&mut self, node: NodeId, block: u32) -> Result<(), Refused> {
        if self.owners.get(&block) != Some(&node) {
            return Err(Refused::PidsNotLeased(u64::from(block)));
        }
        self.owners.remove(&block);
        self.freed.push_back(block);
        Ok(())
    }

    pub(super) fn drop_node(&mut self, node: NodeId) {
        let blocks: Vec<u32> = self.blocks_of(node).map(|block| block.block).collect();
        for block in blocks {
            self.owners.remove(&block);
            self.freed.push_back(block);
        }
    }

    fn take_free(&mut self) -> Option<u32> {
        if self.block_next < PID_BLOCK_END {
            self.block_next += 1;
            return Some(self.block_next - 1);
        }
        self.freed.pop_front()
    }
}

fn span(block: u32) -> PidBlock {
    PidBlock { block, first: block.saturating_mul(PID_BLOCK_SIZE), count: PID_BLOCK_SIZE }
}
