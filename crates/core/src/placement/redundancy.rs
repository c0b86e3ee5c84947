//! What a chunk needs to be on as many nodes as it should be, and on the right ones.
//!
//! Invariants: a chunk keeps at least as many replicas as it has until others are durable; of the
//! nodes that see the same cluster exactly one has the work of a chunk; a node that may come back
//! soon is neither copied to nor given up.
//!
//! Left out on purpose: surplus replicas are not taken away (they appear only when the wanted
//! number was lowered, and nodes may disagree on that number for a while).

use std::collections::BTreeSet;

use unum_proto::ids::{ChunkId, NodeId};

use super::chunks::{Place, place};

/// The cluster as one node sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// Nodes whose replicas count: they live, or died so lately that they may be back soon.
    pub counting: Vec<Place>,
    /// Nodes that can be read from and written to now.
    pub alive: BTreeSet<NodeId>,
}

/// What a chunk needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Need {
    Nothing,
    /// Too few nodes hold it.
    Copies(Transfer),
    /// Enough nodes hold it, but others should.
    Move(Transfer),
    /// It needs copies, and no node that lives has one.
    Source,
}

/// Replicas to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transfer {
    /// Living nodes that hold the chunk. The first one does the work.
    pub from: Vec<NodeId>,
    /// Living nodes that may take it, the best first.
    pub to: Vec<NodeId>,
    /// How many of them shall.
    pub count: usize,
    keep: Vec<NodeId>,
    /// One of these goes for each new replica, in this order.
    surplus: Vec<NodeId>,
}

impl View {
    /// What the chunk needs for its safety. `wanted`: its replicas, while there are enough nodes.
    pub fn need(&self, chunk: ChunkId, replicas: &[NodeId], wanted: usize) -> Need {
        let holders = self.holders(replicas);
        let wanted = wanted.min(self.counting.len());
        let count = wanted.saturating_sub(holders.len());
        if count == 0 {
            return Need::Nothing;
        }
        let order = place(chunk, &self.counting, self.counting.len());
        let from = self.living(order.iter().filter(|node| holders.contains(node)));
        if from.is_empty() {
            return Need::Source;
        }
        let to = self.living(order.iter().filter(|node| !replicas.contains(node)));
        Need::Copies(Transfer { from, to, count, keep: holders, surplus: Vec::new() })
    }

    /// What the chunk needs to be where its id wants it, its safety first. Nothing is moved while a
    /// holder is away: it may be about to come back, or about to be given up.
    pub fn need_in_place(&self, chunk: ChunkId, replicas: &[NodeId], wanted: usize) -> Need {
        let need = self.need(chunk, replicas, wanted);
        if need != Need::Nothing || !replicas.iter().all(|node| self.alive.contains(node)) {
            return need;
        }
        let order = place(chunk, &self.counting, self.counting.len());
        let best = &order[..wanted.min(order.len())];
        let to = self.living(best.iter().filter(|node| !replicas.contains(node)));
        if to.is_empty() {
            return Need::Nothing;
        }
        let known = order.iter().filter(|node| replicas.contains(node));
        let from = self.living(known);
        let strangers = replicas.iter().filter(|node| !order.contains(node));
        let worst = order.iter().rev().filter(|node| replicas.contains(node));
        let surplus: Vec<NodeId> =
            strangers.chain(worst).filter(|node| !best.contains(node)).copied().collect();
        let keep = replicas.iter().filter(|node| !surplus.contains(node)).copied().collect();
        if from.is_empty() {
            return Need::Source;
        }
        Need::Move(Transfer { from, count: to.len(), to, keep, surplus })
    }

    fn holders(&self, replicas: &[NodeId]) -> Vec<NodeId> {
        let counts = |node: &NodeId| self.counting.iter().any(|place| place.node == *node);
        replicas.iter().copied().filter(counts).collect()
    }

    fn living<'a>(&self, nodes: impl Iterator<Item = &'a NodeId>) -> Vec<NodeId> {
        nodes.copied().filter(|node| self.alive.contains(node)).collect()
    }
}

impl Transfer {
    /// Whose work it is.
    pub fn worker(&self) -> Option<NodeId> {
        self.from.first().copied()
    }

    /// Who holds the chunk once it is durable on `taken` as well.
    pub fn result(&self, taken: &[NodeId]) -> BTreeSet<NodeId> {
        let left = self.surplus.iter().skip(taken.len());
        self.keep.iter().chain(taken).chain(left).copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    fn id(seq: u64) -> ChunkId {
        ChunkId { lane: 7, seq }
    }

    fn nodes(list: &[u64]) -> Vec<NodeId> {
        list.iter().copied().map(NodeId).collect()
    }

    fn view(counting: &[u64], alive: &[u64]) -> View {
        let place = |node: &u64| Place { node: NodeId(*node), weight: 1 };
        View {
            counting: counting.iter().map(place).collect(),
            alive: nodes(alive).into_iter().collect(),
        }
    }

    fn told(need: &Need) -> String {
        let list = |nodes: &[NodeId]| {
            nodes.iter().map(|node| node.0.to_string()).collect::<Vec<_>>().join(" ")
        };
        match need {
            Need::Nothing => "nothing".into(),
            Need::Source => "a source".into(),
            Need::Copies(t) => {
                format!("{} copies from {} to one of {}", t.count, list(&t.from), list(&t.to))
            }
            Need::Move(t) => format!(
                "a move from {} to {}, then on {:?}",
                list(&t.from),
                list(&t.to),
                t.result(&t.to[..t.count])
            ),
        }
    }

    #[test]
    fn who_lacks_what() {
        let all = [1, 2, 3, 4, 5];
        let cases = [
            ("whole", view(&all, &all), vec![1, 2, 3]),
            ("one away for a moment", view(&all, &[1, 2, 4, 5]), vec![1, 2, 3]),
            ("one lost", view(&[1, 2, 4, 5], &[1, 2, 4, 5]), vec![1, 2, 3]),
            ("two lost", view(&[1, 4, 5], &[1, 4, 5]), vec![1, 2, 3]),
            ("all lost", view(&[4, 5], &[4, 5]), vec![1, 2, 3]),
            ("one lost, one away", view(&[2, 3, 4, 5], &[3, 4, 5]), vec![1, 2, 3]),
            ("fewer nodes than wanted", view(&[1, 2], &[1, 2]), vec![1, 2]),
            ("a straggler", view(&[1, 2, 3], &[1, 2, 3]), vec![1, 3]),
        ];
        let lines: Vec<String> = cases
            .iter()
            .map(|(what, view, on)| format!("{what}: {}", told(&view.need(id(1), &nodes(on), 3))))
            .collect();
        expect![[r#"
            whole: nothing
            one away for a moment: nothing
            one lost: 1 copies from 2 1 to one of 4 5
            two lost: 2 copies from 1 to one of 4 5
            all lost: a source
            one lost, one away: 1 copies from 3 to one of 4 5
            fewer nodes than wanted: nothing
            a straggler: 1 copies from 3 1 to one of 2
        "#]]
        .assert_eq(&(lines.join("\n") + "\n"));
    }

    #[test]
    fn moving_never_lowers_the_number_of_replicas_and_ends() {
        for seq in 0..300 {
            let old = view(&[1, 2, 3], &[1, 2, 3]);
            let mut on: BTreeSet<NodeId> = place(id(seq), &old.counting, 3).into_iter().collect();
            let new = view(&[1, 2, 3, 4, 5], &[1, 2, 3, 4, 5]);
            let mut steps = 0;
            loop {
                let now: Vec<NodeId> = on.iter().copied().collect();
                let Need::Move(transfer) = new.need_in_place(id(seq), &now, 3) else { break };
                // One at a time: an interrupted move is as good as a whole one.
                let after = transfer.result(&transfer.to[..1]);
                assert_eq!(after.len(), 3);
                assert!(on.intersection(&after).count() >= 2);
                on = after;
                steps += 1;
            }
            let best: BTreeSet<NodeId> = place(id(seq), &new.counting, 3).into_iter().collect();
            assert_eq!(on, best);
            assert!(steps <= 2);
        }
    }

    #[test]
    fn nothing_moves_while_a_holder_is_away_and_nothing_moves_to_the_dead() {
        let away = view(&[1, 2, 3, 4, 5], &[1, 2, 4, 5]);
        let dead = view(&[1, 2, 3, 4, 5], &[1, 2, 3]);
        for seq in 0..100 {
            assert_eq!(away.need_in_place(id(seq), &nodes(&[1, 2, 3]), 3), Need::Nothing);
            assert_eq!(dead.need_in_place(id(seq), &nodes(&[1, 2, 3]), 3), Need::Nothing);
        }
    }

    #[test]
    fn each_chunk_has_a_number_of_replicas_of_its_own() {
        let view = view(&[1, 2, 3], &[1, 2, 3]);
        let order = place(id(1), &view.counting, 3);
        let counts = |wanted| match view.need(id(1), &order[..2], wanted) {
            Need::Nothing => 0,
            Need::Copies(transfer) => transfer.count,
            other => panic!("{other:?}"),
        };
        assert_eq!([1, 2, 3, 7].map(counts), [0, 0, 1, 1]);
        // What was made for a larger number stays.
        for replicas in [&order[..2], &order[1..]] {
            match view.need_in_place(id(1), replicas, 1) {
                Need::Nothing => assert_eq!(replicas[0], order[0]),
                Need::Move(transfer) => assert_eq!(transfer.result(&transfer.to).len(), 2),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn the_work_is_shared() {
        let view = view(&[1, 2, 3, 4], &[1, 2, 3, 4]);
        let mut counts = [0; 5];
        for seq in 0..3000 {
            let Need::Copies(transfer) = view.need(id(seq), &nodes(&[1, 2]), 3) else { panic!() };
            counts[transfer.worker().unwrap().0 as usize] += 1;
        }
        assert!((1300..1700).contains(&counts[1]), "{counts:?}");
        assert_eq!(counts[1] + counts[2], 3000);
    }
}
