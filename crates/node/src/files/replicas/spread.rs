//! Which chunks are sent to which nodes in which messages, and whether enough nodes have each.
//!
//! Invariants: a chunk is offered to a node once at most; it has as many offers open as replicas are
//! still wanted, while there are nodes; a message keeps to the limits of `file.put-chunks`, and a node has
//! [`IN_FLIGHT_MAX`] of them at once at most.
//!
//! Leaves out on purpose: sending and waiting.

use std::collections::{BTreeMap, VecDeque};

use unum_core::placement::chunks::{Place, durable_enough, place};
use unum_net::{Code, Status};
use unum_proto::file::{PUT_CHUNKS_BYTES_MAX, PUT_CHUNKS_MAX};
use unum_proto::ids::{ChunkId, NodeId};

use super::ContentError;

/// Messages under way to one node.
pub const IN_FLIGHT_MAX: usize = 4;

/// The nodes that can be used.
pub struct Nodes {
    pub alive: Vec<Place>,
    /// Those that store chunks, dead ones included.
    pub total: usize,
}

/// A chunk that is to be stored.
pub struct Wanted {
    pub id: ChunkId,
    pub bytes: usize,
    /// While there are enough nodes.
    pub replicas: usize,
}

/// Chunks on their way to a node, by their places in the list that is stored.
#[derive(Debug, PartialEq, Eq)]
pub struct Message {
    pub node: NodeId,
    pub chunks: Vec<usize>,
}

pub struct Spread {
    chunks: Vec<Spreading>,
    lanes: BTreeMap<NodeId, Lane>,
    undecided: usize,
}

/// One chunk.
struct Spreading {
    bytes: usize,
    needed: usize,
    durable: Vec<NodeId>,
    /// Offers that are not answered.
    open: usize,
    spare: VecDeque<NodeId>,
    failures: Failures,
}

/// What goes to one node.
#[derive(Default)]
struct Lane {
    waiting: VecDeque<usize>,
    in_flight: usize,
}

impl Spread {
    pub fn new(chunks: impl Iterator<Item = Wanted>, nodes: &Nodes) -> Self {
        let mut lanes: BTreeMap<NodeId, Lane> = BTreeMap::new();
        let mut offer = |at, node| lanes.entry(node).or_default().waiting.push_back(at);
        let chunks: Vec<Spreading> = chunks
            .enumerate()
            .map(|(at, Wanted { id, bytes, replicas })| {
                let mut ranked = VecDeque::from(place(id, &nodes.alive, nodes.alive.len()));
                let wanted = replicas.min(ranked.len());
                ranked.drain(..wanted).for_each(|node| offer(at, node));
                Spreading {
                    bytes,
                    needed: durable_enough(nodes.total, wanted).max(1),
                    durable: Vec::with_capacity(wanted),
                    open: wanted,
                    spare: ranked,
                    failures: Failures::default(),
                }
            })
            .collect();
        let undecided = chunks.iter().filter(|chunk| !chunk.is_decided()).count();
        Self { chunks, lanes, undecided }
    }

    /// A message that may be sent now.
    pub fn next(&mut self) -> Option<Message> {
        let ready = |lane: &Lane| lane.in_flight < IN_FLIGHT_MAX && !lane.waiting.is_empty();
        let (&node, lane) = self.lanes.iter_mut().find(|(_, lane)| ready(lane))?;
        let mut bytes = 0;
        let fits = |at: &&usize| {
            bytes += self.chunks[**at].bytes;
            bytes <= PUT_CHUNKS_BYTES_MAX
        };
        let count = lane.waiting.iter().take(PUT_CHUNKS_MAX).take_while(fits).count().max(1);
        lane.in_flight += 1;
        Some(Message { node, chunks: lane.waiting.drain(..count).collect() })
    }

    /// A node has answered, with an outcome for each chunk of the message. Tells whether it stored any.
    pub fn answered(&mut self, message: &Message, outcomes: &[Result<(), Status>]) -> bool {
        let node = message.node;
        if let Some(lane) = self.lanes.get_mut(&node) {
            lane.in_flight -= 1;
        }
        for (&at, outcome) in message.chunks.iter().zip(outcomes) {
            let chunk = &mut self.chunks[at];
            let decided = chunk.is_decided();
            if let Some(next) = chunk.answered(node, outcome) {
                self.lanes.entry(next).or_default().waiting.push_back(at);
            }
            self.undecided -= usize::from(!decided && chunk.is_decided());
        }
        outcomes.iter().any(Result::is_ok)
    }

    /// Whether no more answer can change what becomes of a chunk: enough nodes have it, or none is
    /// left to ask.
    pub fn is_decided(&self) -> bool {
        self.undecided == 0
    }

    /// For each chunk the nodes that have it, if they are enough.
    pub fn finish(self) -> impl Iterator<Item = Result<Vec<NodeId>, ContentError>> {
        self.chunks.into_iter().map(Spreading::finish)
    }
}

impl Spreading {
    fn is_decided(&self) -> bool {
        self.durable.len() >= self.needed || self.open == 0
    }

    /// The node to ask next.
    fn answered(&mut self, node: NodeId, outcome: &Result<(), Status>) -> Option<NodeId> {
        let next = match outcome {
            Ok(()) => {
                self.durable.push(node);
                None
            }
            Err(status) => {
                self.failures.add(node, status);
                self.spare.pop_front()
            }
        };
        if next.is_none() {
            self.open -= 1;
        }
        next
    }

    fn finish(mut self) -> Result<Vec<NodeId>, ContentError> {
        if self.durable.len() < self.needed {
            return Err(self.failures.judge(self.durable.len(), self.needed));
        }
        self.durable.sort();
        Ok(self.durable)
    }
}

/// What went wrong on the nodes that did not store a chunk.
#[derive(Default)]
struct Failures {
    full: Vec<NodeId>,
    last: String,
}

impl Failures {
    fn add(&mut self, node: NodeId, status: &Status) {
        if status.code == Code::NoSpace {
            self.full.push(node);
        }
        self.last = format!("{node}: {status}");
    }

    fn judge(self, durable: usize, needed: usize) -> ContentError {
        if !self.full.is_empty() {
            return ContentError::NoSpace { nodes: self.full };
        }
        let why = if self.last.is_empty() { "no answer in time".into() } else { self.last };
        ContentError::TooFewReplicas { durable, needed, why }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: usize = 1 << 10;

    fn nodes(alive: u64, total: usize) -> Nodes {
        let alive = (1..=alive).map(|id| Place { node: NodeId(id), weight: 1 }).collect();
        Nodes { alive, total }
    }

    fn wanted(seq: u64, bytes: usize, replicas: usize) -> Wanted {
        Wanted { id: ChunkId { lane: 4, seq }, bytes, replicas }
    }

    fn spread(count: u64, bytes: usize, nodes: &Nodes) -> Spread {
        Spread::new((0..count).map(|seq| wanted(seq, bytes, 3)), nodes)
    }

    fn drain(spread: &mut Spread) -> Vec<Message> {
        std::iter::from_fn(|| spread.next()).collect()
    }

    fn refused(code: Code) -> Result<(), Status> {
        Err(Status::new(code, "not here"))
    }

    /// Answers everything that is sent, by node, until nothing is.
    fn run(mut spread: Spread, answer: impl Fn(NodeId) -> Result<(), Status>) -> Spread {
        while let Some(message) = spread.next() {
            let outcomes = vec![answer(message.node); message.chunks.len()];
            spread.answered(&message, &outcomes);
        }
        spread
    }

    #[test]
    fn small_chunks_are_one_message_to_each_node() {
        let mut spread = spread(500, 2 * KIB, &nodes(3, 3));
        let messages = drain(&mut spread);
        let sizes: Vec<_> = messages.iter().map(|m| (m.node.0, m.chunks.len())).collect();
        assert_eq!(sizes, [(1, 500), (2, 500), (3, 500)]);
    }

    #[test]
    fn messages_keep_to_their_limits() {
        for (count, bytes) in [(40, 1 << 20), (3000, 1), (100, 700 * KIB), (1, 64 << 20)] {
            let mut spread = spread(count, bytes, &nodes(1, 1));
            let mut sent = 0;
            loop {
                let under_way = drain(&mut spread);
                if under_way.is_empty() {
                    break;
                }
                assert!(under_way.len() <= IN_FLIGHT_MAX);
                for message in under_way {
                    let chunks = message.chunks.len();
                    assert!(chunks <= PUT_CHUNKS_MAX);
                    assert!(chunks * bytes <= PUT_CHUNKS_BYTES_MAX || chunks == 1);
                    sent += chunks as u64;
                    spread.answered(&message, &vec![Ok(()); chunks]);
                }
            }
            assert_eq!(sent, count);
            assert!(spread.is_decided());
        }
    }

    #[test]
    fn it_is_decided_when_enough_have_every_chunk() {
        let mut spread = spread(10, KIB, &nodes(3, 3));
        let messages = drain(&mut spread);
        let ok = vec![Ok(()); 10];
        assert!(spread.answered(&messages[0], &ok) && !spread.is_decided());
        assert!(spread.answered(&messages[1], &ok) && spread.is_decided());
        for replicas in spread.finish() {
            assert_eq!(replicas.unwrap(), [NodeId(1), NodeId(2)]);
        }
    }

    #[test]
    fn others_take_what_a_node_refuses() {
        let spread = spread(60, KIB, &nodes(5, 5));
        let broken = NodeId(2);
        let spread = run(spread, |node| match node == broken {
            true => refused(Code::Unavailable),
            false => Ok(()),
        });
        for replicas in spread.finish() {
            let replicas = replicas.unwrap();
            assert!(replicas.len() == 3 && !replicas.contains(&broken), "{replicas:?}");
        }
    }

    #[test]
    fn what_one_chunk_lacks_does_not_matter_to_the_others() {
        let mut spread = spread(3, KIB, &nodes(2, 5));
        for message in drain(&mut spread) {
            let outcomes = [Ok(()), refused(Code::NoSpace), Ok(())];
            spread.answered(&message, &outcomes);
        }
        assert!(spread.is_decided() && spread.next().is_none());
        let results: Vec<_> = spread.finish().collect();
        assert_eq!(results[0].as_deref().unwrap(), [NodeId(1), NodeId(2)]);
        assert!(matches!(&results[1], Err(ContentError::NoSpace { nodes }) if nodes.len() == 2));
        assert!(results[2].is_ok());
    }

    #[test]
    fn each_chunk_has_a_number_of_replicas_of_its_own() {
        let chunks = (1..=5).map(|replicas| wanted(replicas, KIB, replicas as usize));
        let spread = run(Spread::new(chunks, &nodes(4, 4)), |_| Ok(()));
        let sizes: Vec<usize> = spread.finish().map(|nodes| nodes.unwrap().len()).collect();
        assert_eq!(sizes, [1, 2, 3, 4, 4]);
    }

    #[test]
    fn nobody_alive_is_too_few() {
        let spread = spread(2, KIB, &nodes(0, 3));
        assert!(spread.is_decided());
        let all_fail = |result| matches!(result, Err(ContentError::TooFewReplicas { .. }));
        assert!(spread.finish().all(all_fail));
    }

    #[test]
    fn one_that_does_not_answer_is_told() {
        let mut spread = spread(1, KIB, &nodes(3, 3));
        let messages = drain(&mut spread);
        spread.answered(&messages[0], &[Ok(())]);
        let why = spread.finish().next().unwrap().unwrap_err().to_string();
        assert!(why.contains("only 1 of the 2") && why.contains("no answer in time"), "{why}");
    }
}
