//! Which nodes shall hold the replicas of a chunk: weighted rendezvous hashing.
//!
//! Invariants: the choice depends on nothing but the chunk, the nodes and their weights; adding or
//! removing a node moves only the chunks that gain or lose it; integers only, so every
//! architecture chooses alike.

use std::cmp::Ordering;

use unum_proto::ids::{ChunkId, NodeId};

/// Bits behind the point of a logarithm.
const LOG_FRACTION_BITS: u32 = 32;

/// A node's share of the chunks relative to the others; 0 takes none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub node: NodeId,
    pub weight: u32,
}

/// The best `replicas` nodes, the best one first; fewer when there are fewer.
pub fn place(chunk: ChunkId, places: &[Place], replicas: usize) -> Vec<NodeId> {
    let mut scored: Vec<(Score, NodeId)> = places
        .iter()
        .filter(|place| place.weight > 0)
        .map(|place| (Score::of(chunk, place), place.node))
        .collect();
    scored.sort_by(|(a, a_node), (b, b_node)| b.compare(a).then(a_node.cmp(b_node)));
    scored.into_iter().take(replicas).map(|(_, node)| node).collect()
}

/// weight / -log2(u) for a u in (0, 1) drawn from chunk and node.
struct Score {
    weight: u32,
    minus_log: u64,
}

impl Score {
    fn of(chunk: ChunkId, place: &Place) -> Self {
        let minus_log = (64 << LOG_FRACTION_BITS) - log2(draw(chunk, place.node));
        Self { weight: place.weight, minus_log: minus_log.max(1) }
    }

    fn compare(&self, other: &Self) -> Ordering {
        let left = u128::from(self.weight) * u128::from(other.minus_log);
        let right = u128::from(other.weight) * u128::from(self.minus_log);
        left.cmp(&right)
    }
}

fn draw(chunk: ChunkId, node: NodeId) -> u64 {
    let mut key = [0; 24];
    key[..8].copy_from_slice(&chunk.lane.to_le_bytes());
    key[8..16].copy_from_slice(&chunk.seq.to_le_bytes());
    key[16..].copy_from_slice(&node.0.to_le_bytes());
    let hash = blake3::hash(&key);
    let mut first = [0; 8];
    first.copy_from_slice(&hash.as_bytes()[..8]);
    u64::from_le_bytes(first).max(1)
}

/// log2 of a positive integer in fixed point, by repeated squaring.
fn log2(value: u64) -> u64 {
    let whole = u64::from(value.ilog2());
    // The mantissa in [1, 2), with 63 bits behind the point.
    let mut mantissa = u128::from(value) << (63 - whole);
    let mut log = whole;
    for _ in 0..LOG_FRACTION_BITS {
        mantissa = (mantissa * mantissa) >> 63;
        log <<= 1;
        if mantissa >= 1 << 64 {
            mantissa >>= 1;
            log |= 1;
        }
    }
    log
}

/// How many replicas must be durable so that the loss of any minority of `nodes` leaves one, if
/// `wanted` are made at most.
pub fn durable_enough(nodes: usize, wanted: usize) -> usize {
    let minority = nodes.saturating_sub(1) / 2;
    (minority + 1).min(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunks(count: u64) -> impl Iterator<Item = ChunkId> {
        (0..count).map(|seq| ChunkId { lane: 77, seq })
    }

    fn places(weights: &[u32]) -> Vec<Place> {
        let ids = 1..;
        ids.zip(weights).map(|(id, weight)| Place { node: NodeId(id), weight: *weight }).collect()
    }

    #[test]
    fn logarithms_are_right() {
        assert_eq!(log2(1), 0);
        assert_eq!(log2(1 << 40), 40 << LOG_FRACTION_BITS);
        for value in [3, 5, 1000, u64::MAX, 0x1234_5678_9abc] {
            let fixed = log2(value) as f64 / (1u64 << LOG_FRACTION_BITS) as f64;
            assert!((fixed - (value as f64).log2()).abs() < 1e-8, "{value}: {fixed}");
        }
    }

    #[test]
    fn shares_follow_the_weights() {
        let places = places(&[1, 2, 1, 0]);
        let mut counts = [0; 5];
        for chunk in chunks(20_000) {
            counts[place(chunk, &places, 1)[0].0 as usize] += 1;
        }
        let near = |count: i32, share: i32| (count - share).abs() < 500;
        assert!(near(counts[1], 5_000) && near(counts[2], 10_000), "{counts:?}");
        assert!(near(counts[3], 5_000) && counts[4] == 0, "{counts:?}");
    }

    #[test]
    fn a_lost_node_moves_only_its_own_chunks() {
        let before = places(&[1, 1, 1, 1, 1]);
        let after: Vec<Place> = before.iter().copied().filter(|p| p.node != NodeId(3)).collect();
        for chunk in chunks(2_000) {
            let was = place(chunk, &before, 3);
            let is = place(chunk, &after, 3);
            let kept: Vec<NodeId> = was.iter().copied().filter(|n| *n != NodeId(3)).collect();
            assert_eq!(is[..kept.len()], kept[..], "what stays keeps its order");
        }
    }

    #[test]
    fn replicas_are_distinct_and_never_more_than_nodes() {
        let places = places(&[5, 1]);
        for chunk in chunks(100) {
            let mut nodes = place(chunk, &places, 3);
            nodes.sort();
            assert_eq!(nodes, [NodeId(1), NodeId(2)]);
        }
        assert!(place(ChunkId::default(), &[], 3).is_empty());
    }

    #[test]
    fn the_loss_of_any_minority_leaves_a_replica() {
        for nodes in 1..=9 {
            for wanted in 1..=3usize.min(nodes) {
                let minority = (nodes - 1) / 2;
                let durable = durable_enough(nodes, wanted);
                assert!(durable > minority || durable == wanted, "{nodes} {wanted} {durable}");
            }
        }
        assert_eq!(durable_enough(1, 1), 1);
        assert_eq!(durable_enough(2, 2), 1);
        assert_eq!(durable_enough(3, 3), 2);
        assert_eq!(durable_enough(5, 3), 3);
    }
}
