//! On which node a program shall run: the better of two drawn at random.
//!
//! Two choices instead of the best one, because loads are news of yesterday: all would run to the
//! node that looked idle a second ago. What was placed since the news came is counted in.

use unum_proto::ids::NodeId;

/// What gossip last told of a node, and what has been sent there since.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    pub node: NodeId,
    /// Runnable tasks, in thousandths, as in the load average of the last seconds.
    pub load_milli: u32,
    pub cores: u32,
    /// Programs placed on it since this load was told.
    pub recent: u32,
}

impl Candidate {
    /// Load per core in thousandths, after one more program.
    fn pressure(&self) -> u64 {
        let tasks = u64::from(self.load_milli) + 1000 * (u64::from(self.recent) + 1);
        tasks / u64::from(self.cores.max(1))
    }
}

/// `draw` is 64 random bits. `None` only when there is no candidate.
pub fn choose(candidates: &[Candidate], draw: u64) -> Option<NodeId> {
    let count = candidates.len() as u64;
    if count == 0 {
        return None;
    }
    let first = (draw & 0xffff_ffff) % count;
    // A second one that is not the first.
    let second = (first + 1 + (draw >> 32) % (count - 1).max(1)) % count;
    let first = candidates.get(first as usize)?;
    let second = candidates.get(second as usize)?;
    let better = if second.pressure() < first.pressure() { second } else { first };
    Some(better.node)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(node: u64, load_milli: u32, cores: u32, recent: u32) -> Candidate {
        Candidate { node: NodeId(node), load_milli, cores, recent }
    }

    fn mix(seed: u64) -> u64 {
        let hash = blake3::hash(&seed.to_le_bytes());
        u64::from_le_bytes(hash.as_bytes()[..8].try_into().unwrap())
    }

    #[test]
    fn nobody_and_one() {
        assert_eq!(choose(&[], 7), None);
        assert_eq!(choose(&[candidate(4, 9000, 1, 0)], 7), Some(NodeId(4)));
    }

    #[test]
    fn of_two_the_less_loaded_per_core_wins() {
        for seed in 0..100 {
            let two = [candidate(1, 4000, 8, 0), candidate(2, 1500, 2, 0)];
            assert_eq!(choose(&two, mix(seed)), Some(NodeId(1)));
            let two = [candidate(1, 0, 2, 3), candidate(2, 1000, 2, 0)];
            assert_eq!(choose(&two, mix(seed)), Some(NodeId(2)), "recent ones count");
        }
    }

    #[test]
    fn many_are_spread_and_the_worst_gets_nothing() {
        let mut nodes: Vec<Candidate> = (1..=9).map(|id| candidate(id, 0, 2, 0)).collect();
        nodes.push(candidate(10, 64_000, 2, 0));
        let mut counts = [0; 11];
        for seed in 0..9_000 {
            counts[choose(&nodes, mix(seed)).unwrap().0 as usize] += 1;
        }
        assert_eq!(counts[10], 0);
        assert!(counts[1..10].iter().all(|count| (600..1400).contains(count)), "{counts:?}");
    }
}
