//! Write leases, and that a node's local view is at any time what the log will make of it.

use std::collections::BTreeMap;

use proptest::prelude::*;
use unum_proto::ids::LeaseId;
use unum_proto::tree::{
    AcquireLease, Drain, Extent, LoggedChange, Reap, ReleaseLease, ReleaseNode, WithoutRecord,
};

use super::super::folding::fold;
use super::super::leased_locks::fold_locks;
use super::anything::{
    inode_command, namespace_command, shared_command, snapshot_command, volume_command,
};
use super::*;

const NODES: u64 = 3;

/// Of a file, at an offset: from a chunk, at an offset.
type Byte = (Ino, u64, ChunkId, u64);

/// A registry and the local views of its nodes.
struct Cluster {
    confirmed: Tree,
    locals: Vec<Option<Local>>,
    now: Time,
    /// Chunks named so far.
    named: u64,
    /// Whose bytes are in chunks that were folded.
    folded: BTreeMap<ChunkId, Vec<(ChunkId, u64)>>,
}

#[derive(Clone, Debug)]
enum Step {
    Change(Command),
    /// One chunk goes somewhere into a file that the node has covered.
    Piece {
        file: usize,
        offset: u64,
        length: u64,
        append: bool,
    },
    /// Some of a file that the node has covered goes to another such file.
    Copy {
        files: [usize; 2],
        offsets: [u64; 2],
        length: u64,
    },
    Shared(Command),
    Acquire {
        inos: Vec<u64>,
        below: u32,
    },
    Drain(usize),
    /// The same, but the answer is lost: it is drained again.
    DrainTwice(usize),
    /// The same, but more is drained then, and folded in another way.
    DrainMore(usize, usize),
    Release,
    Down,
    Reap,
    /// The state comes anew from a snapshot.
    Replace,
}

fn step() -> BoxedStrategy<(u64, Step)> {
    let acquire = (proptest::collection::vec(0..12_u64, 1..4), 0..6_u32);
    let piece = (0..3_usize, 0..12_u64, 1..6_u64, any::<bool>());
    let step = prop_oneof![
        30 => namespace_command().prop_map(Step::Change),
        20 => inode_command().prop_map(Step::Change),
        4 => volume_command().prop_map(Step::Change),
        4 => snapshot_command().prop_map(Step::Change),
        30 => piece.prop_map(|(file, offset, length, append)| {
            Step::Piece { file, offset, length, append }
        }),
        10 => ([0..3_usize, 0..3_usize], [0..8_u64, 0..12_u64], 1..12_u64).prop_map(
            |(files, offsets, length)| Step::Copy { files, offsets, length }
        ),
        16 => shared_command().prop_map(Step::Shared),
        16 => acquire.prop_map(|(inos, below)| Step::Acquire { inos, below }),
        8 => (1..8_usize).prop_map(Step::Drain),
        2 => (1..8_usize).prop_map(Step::DrainTwice),
        2 => (1..8_usize, 0..4_usize).prop_map(|(most, more)| Step::DrainMore(most, more)),
        3 => Just(Step::Release),
        1 => Just(Step::Down),
        2 => Just(Step::Reap),
        1 => Just(Step::Replace),
    ];
    (1..=NODES, step).boxed()
}

impl Cluster {
    fn new() -> Self {
        let locals = (0..NODES).map(|_| None).collect();
        Self {
            confirmed: Tree::new(),
            locals,
            now: Time::from_secs(1000),
            named: 0,
            folded: BTreeMap::new(),
        }
    }

    fn local(&mut self, node: NodeId) -> &mut Option<Local> {
        &mut self.locals[node.0 as usize - 1]
    }

    fn view(&self, node: NodeId) -> &Tree {
        self.locals[node.0 as usize - 1].as_ref().map_or(&self.confirmed, Local::tree)
    }

    /// One log entry, followed by all views.
    fn commit(&mut self, node: NodeId, command: Command) -> TreeReply {
        self.confirmed.record(true);
        let reply = self.confirmed.apply(self.now, node, &command.into());
        let executed = self.confirmed.take_executed();
        self.confirmed.take_changes();
        for local in &mut self.locals {
            if let Some(view) = local
                && (!view.follow(&self.confirmed, executed.clone()) || view.pending().is_empty())
            {
                *local = None;
            }
        }
        reply
    }

    fn drain(&mut self, node: NodeId, most: usize) -> Option<Drain> {
        let local = self.local(node).as_ref()?;
        let pending: Vec<Pending> = local.pending().iter().take(most).cloned().collect();
        let lease = local.lease();
        self.drain_these(node, lease, &pending)
    }

    fn drain_these(&mut self, node: NodeId, lease: LeaseId, these: &[Pending]) -> Option<Drain> {
        let mut changes: Vec<LoggedChange> = these.iter().map(Pending::to_proto).collect();
        let folded = fold(&mut changes, 12, || {
            self.named += 1;
            ChunkId { lane: node.0, seq: 1000 + self.named }
        });
        for fold in folded {
            let command = changes[fold.at].command.as_mut().and_then(|c| c.command.as_mut());
            let Some(Command::Write(write)) = command else { panic!("folded into no write") };
            write.chunks[0].hash = vec![fold.parts.len() as u8; 32].into();
            let id = write.chunks[0].id.expect("a name").into();
            let lengths = these.iter().flat_map(|change| match &change.command.command {
                Some(Command::Write(write)) => write.chunks.clone(),
                _ => Vec::new(),
            });
            let lengths: BTreeMap<ChunkId, u64> = lengths
                .map(|chunk| (chunk.id.expect("a name").into(), u64::from(chunk.length)))
                .collect();
            let parts = fold.parts.iter().map(|part| (*part, lengths[part])).collect();
            self.folded.insert(id, parts);
        }
        fold_locks(&mut changes);
        let first = these.first()?.number;
        let drain = Drain { lease: lease.0, first, changes };
        let reply = self.commit(node, Command::Drain(drain.clone()));
        let Ok(Outcome::Drained(drained)) = outcome(&reply) else { panic!("{reply:?}") };
        assert_eq!(drained.refused, [], "what a lease allowed was refused: {drain:?}");
        Some(drain)
    }

    /// One of the files that a node may change unheard.
    fn covered_file(&self, node: NodeId, at: usize) -> Option<Ino> {
        let view = self.view(node);
        let regular = |ino: &Ino| view.inode(*ino).is_ok_and(|inode| inode.extents().is_ok());
        let covered = inos(view).filter(|ino| view.holder_of(*ino) == Some(node));
        let files: Vec<Ino> = covered.filter(|ino| regular(ino)).collect();
        files.get(at % files.len().max(1)).copied()
    }

    fn piece(&mut self, node: NodeId, file: usize, extent: (u64, u64), append: bool) {
        let Some(ino) = self.covered_file(node, file) else { return };
        self.named += 1;
        let id = Some(ChunkId { lane: node.0, seq: 1000 + self.named }.into());
        let (offset, length) = extent;
        let extent = Extent { offset, length, chunk: id, chunk_offset: 0 };
        let hash = vec![0; 32].into();
        let chunk = NewChunk { id, length: length as u32, hash, replicas: vec![node.0] };
        let (extents, chunks) = (vec![extent], vec![chunk]);
        let write = Write { ino: ino.0, extents, chunks, append, ..Write::default() };
        self.change(node, Command::Write(write));
    }

    fn drain_all(&mut self, node: NodeId) {
        while self.drain(node, 1024).is_some() {}
    }

    fn change(&mut self, node: NodeId, command: Command) {
        if self.view(node).may_change_unheard(node, &command) {
            let local = match self.local(node).take() {
                Some(local) => local,
                None => Local::resume(&self.confirmed, node, []).expect("a lease"),
            };
            let now = self.now;
            let kept = self.local(node).insert(local);
            let (reply, pending) = kept.change(now, command.clone()).expect("covered");
            if let (Err(_), Some(_)) = (outcome(&reply), pending) {
                panic!("refused, but kept: {command:?}");
            }
            if kept.pending().is_empty() {
                *self.local(node) = None;
            }
            return;
        }
        self.drain_all(node);
        self.commit(node, command);
    }

    fn take(&mut self, node: NodeId, step: Step) {
        self.now = Time(self.now.0 + 1_000_000_000);
        match step {
            Step::Change(mut command) => {
                aim(&mut command, node, self.view(node));
                self.change(node, command);
            }
            Step::Shared(Command::Reap(_) | Command::ReleaseNode(_)) => {}
            Step::Shared(
                mut command @ (Command::Lock(_) | Command::Unlock(_) | Command::ReleaseOwner(_)),
            ) => {
                aim(&mut command, node, self.view(node));
                self.change(node, command);
            }
            Step::Shared(mut command) => {
                aim(&mut command, node, &self.confirmed);
                self.commit(node, command);
            }
            Step::Acquire { inos, below } => {
                let inos = inos.iter().map(|&at| nth(&self.confirmed, at)).collect();
                self.commit(node, Command::AcquireLease(AcquireLease { inos, below }));
            }
            Step::Piece { file, offset, length, append } => {
                self.piece(node, file, (offset, length), append);
            }
            Step::Copy { files, offsets, length } => {
                let [Some(from), Some(to)] = files.map(|at| self.covered_file(node, at)) else {
                    return;
                };
                let copy = CopyRange {
                    from: from.0,
                    from_offset: offsets[0],
                    to: to.0,
                    to_offset: offsets[1],
                    length,
                    kill_privileges: false,
                };
                self.change(node, Command::CopyRange(copy));
            }
            Step::Drain(most) => drop(self.drain(node, most)),
            Step::DrainMore(most, more) => {
                let Some(local) = self.local(node) else { return };
                let lease = local.lease();
                let all: Vec<Pending> = local.pending().iter().take(most + more).cloned().collect();
                self.drain_these(node, lease, &all[..most.min(all.len())]);
                self.drain_these(node, lease, &all);
            }
            Step::DrainTwice(most) => {
                if let Some(drain) = self.drain(node, most) {
                    let before = records(&self.confirmed);
                    self.commit(node, Command::Drain(drain));
                    assert_eq!(before, records(&self.confirmed), "drained twice");
                }
            }
            Step::Release => {
                self.drain_all(node);
                if let Some((lease, _)) = self.confirmed.lease_of(node) {
                    self.commit(node, Command::ReleaseLease(ReleaseLease { lease: lease.0 }));
                }
            }
            Step::Down => {
                drop(self.commit(node, Command::ReleaseNode(ReleaseNode { node: node.0 })))
            }
            Step::Reap => {
                let free = self.confirmed.reapable(Time(u64::MAX), 8);
                let wanted: Vec<Ino> = self.touched_by_pending();
                let inos = free.into_iter().filter(|ino| !wanted.contains(ino));
                let inos = inos.map(|ino| ino.0).collect();
                self.commit(node, Command::Reap(Reap { inos }));
            }
            Step::Replace => {
                self.confirmed =
                    super::snapshot::restore(&records(&self.confirmed)).expect("restored");
                let locals = self.locals.iter_mut().flatten();
                locals.for_each(|local| assert!(local.replaced(&self.confirmed)));
            }
        }
    }

    /// Everything, with the bytes of files as they were written, whatever chunks they are in.
    fn contents(&self, tree: &Tree) -> (Vec<TreeRecord>, Vec<Byte>) {
        use unum_proto::tree::tree_record::Record;
        let mut rest = shown(tree);
        rest.retain(|record| {
            let of_content = |without: &WithoutRecord| !without.offsets.is_empty();
            match &record.record {
                Some(Record::Chunks(_) | Record::Extents(_) | Record::End(_)) => false,
                Some(Record::Without(without)) => !of_content(without),
                _ => true,
            }
        });
        let mut bytes = Vec::new();
        for (ino, inode) in tree.inodes.iter() {
            for extent in inode.extents().into_iter().flat_map(|map| map.iter()) {
                let Some(source) = extent.source else { continue };
                // Only short ones are folded.
                for at in 0..extent.length.min(16) {
                    let (chunk, offset) = self.origin(source.chunk, u64::from(source.offset) + at);
                    bytes.push((ino, extent.offset + at, chunk, offset));
                }
            }
        }
        (rest, bytes)
    }

    fn origin(&self, chunk: ChunkId, mut offset: u64) -> (ChunkId, u64) {
        for &(part, length) in self.folded.get(&chunk).into_iter().flatten() {
            if offset < length {
                return (part, offset);
            }
            offset -= length;
        }
        (chunk, offset)
    }

    fn touched_by_pending(&self) -> Vec<Ino> {
        let locals = self.locals.iter().flatten();
        let touched = locals.flat_map(|local| {
            let pending = local.pending().iter();
            pending.filter_map(|change| local.tree().touched(change.command.command.as_ref()?))
        });
        touched.flatten().collect()
    }

    fn check(&self) {
        assert_eq!(self.confirmed.check(), Vec::<String>::new());
        for local in self.locals.iter().flatten() {
            let node = local.node();
            let anew = Local::resume(&self.confirmed, node, local.pending().iter().cloned());
            let anew = anew.expect("a lease");
            let (view, anew) = (shown(local.tree()), shown(anew.tree()));
            let astray = view.iter().zip(&anew).find(|(a, b)| a != b);
            assert!(view == anew, "the view of {node} went astray: {astray:#?}");
            assert_eq!(local.tree().check(), Vec::<String>::new());
            // What can be waited for is in the registry.
            for change in local.pending() {
                let ino = match &change.command.command {
                    Some(Command::Lock(lock)) => lock.ino,
                    Some(Command::Unlock(unlock)) => unlock.ino,
                    Some(Command::ReleaseOwner(release)) => release.ino,
                    _ => continue,
                };
                assert!(!self.confirmed.locks().is_awaited(Ino(ino)), "{change:?}");
            }
        }
    }
}

fn inos(tree: &Tree) -> impl Iterator<Item = Ino> {
    tree.inodes.iter().map(|(ino, _)| ino)
}

/// The inode at this place among all.
fn nth(tree: &Tree, at: u64) -> u64 {
    let inos: Vec<u64> = inos(tree).map(|ino| ino.0).collect();
    inos[at as usize % inos.len()]
}

/// Directs a random command at inodes that exist, and at chunks that only this node names.
fn aim(command: &mut Command, node: NodeId, tree: &Tree) {
    let hit = |ino: &mut u64| {
        if *ino < 16 {
            *ino = nth(tree, *ino);
        }
    };
    match command {
        Command::Create(c) => hit(&mut c.parent),
        Command::CreateUnnamed(c) => hit(&mut c.parent),
        Command::CreateVolume(c) => hit(&mut c.parent),
        Command::Link(c) => {
            hit(&mut c.ino);
            hit(&mut c.parent);
        }
        Command::Unlink(c) => hit(&mut c.parent),
        Command::Rmdir(c) => hit(&mut c.parent),
        Command::Rename(c) => {
            hit(&mut c.parent);
            hit(&mut c.new_parent);
        }
        Command::SetAttributes(c) => hit(&mut c.ino),
        Command::Fallocate(c) => hit(&mut c.ino),
        Command::CopyRange(c) => {
            hit(&mut c.from);
            hit(&mut c.to);
        }
        Command::SetXattr(c) => hit(&mut c.ino),
        Command::RemoveXattr(c) => hit(&mut c.ino),
        Command::Lock(c) => hit(&mut c.ino),
        Command::Unlock(c) => hit(&mut c.ino),
        Command::ReleaseOwner(c) => hit(&mut c.ino),
        Command::Hold(c) => c.inos.iter_mut().for_each(hit),
        Command::Release(c) => c.inos.iter_mut().for_each(hit),
        Command::Write(c) => {
            hit(&mut c.ino);
            c.extents.iter_mut().filter_map(|e| e.chunk.as_mut()).for_each(|k| k.lane = node.0);
            c.chunks.iter_mut().filter_map(|e| e.id.as_mut()).for_each(|k| k.lane = node.0);
        }
        _ => {}
    }
}

/// What is in a tree, without the order in which inodes lost their last names, and how much is
/// drained: these are the log's alone.
fn shown(tree: &Tree) -> Vec<TreeRecord> {
    use unum_proto::tree::tree_record::Record;
    let mut all = records(tree);
    for record in &mut all {
        match &mut record.record {
            Some(Record::Header(header)) => header.next_orphan = 0,
            Some(Record::Orphan(orphan)) => orphan.sequence = 0,
            Some(Record::Lease(lease)) => lease.drained = 0,
            _ => {}
        }
    }
    all
}

proptest! {
    #![proptest_config(property(6000))]

    #[test]
    fn a_local_view_is_what_the_log_will_make(steps in proptest::collection::vec(step(), 1..120)) {
        let mut cluster = Cluster::new();
        for (node, step) in steps {
            cluster.take(NodeId(node), step);
            cluster.check();
        }
        for node in 1..=NODES {
            let view = cluster.contents(cluster.view(NodeId(node)));
            let others = cluster.locals.iter().flatten().filter(|l| l.node() != NodeId(node)).count();
            cluster.drain_all(NodeId(node));
            if others == 0 {
                prop_assert_eq!(view, cluster.contents(&cluster.confirmed));
            }
        }
    }
}

/// A cluster whose node 1 has `/a` and `/b` covered, each with a directory `x` in it.
fn leased() -> (Cluster, [Ino; 2]) {
    let mut cluster = Cluster::new();
    let mut make = |parent: Ino, name: &str| {
        let kind = Kind::Directory.to_proto() as i32;
        let create = Create { parent: parent.0, name: bytes(name), kind, ..Create::default() };
        let reply = cluster.commit(NodeId(2), Command::Create(create));
        inode_of(outcome(&reply).expect("made"))
    };
    let [a, b] = ["a", "b"].map(|name| make(ROOT, name));
    make(a, "x");
    make(b, "x");
    let acquire = AcquireLease { inos: vec![a.0, b.0], below: 8 };
    let reply = cluster.commit(NodeId(1), Command::AcquireLease(acquire));
    let Ok(Outcome::Leased(leased)) = outcome(&reply) else { panic!("{reply:?}") };
    assert_eq!(leased.inos.len(), 4, "the two and what is below them");
    (cluster, [a, b])
}

fn refused(cluster: &mut Cluster, node: u64, command: Command) -> Option<TreeError> {
    outcome(&cluster.commit(NodeId(node), command)).err()
}

#[test]
fn what_a_lease_covers_is_changed_by_its_holder_alone() {
    let (mut cluster, [a, b]) = leased();
    assert_eq!(refused(&mut cluster, 2, rmdir(a, "x")), Some(TreeError::Held));
    assert_eq!(
        refused(&mut cluster, 2, rename((ROOT, "a"), (ROOT, "c"), 0)),
        Some(TreeError::Held)
    );
    let acquire = Command::AcquireLease(AcquireLease { inos: vec![b.0], below: 0 });
    assert_eq!(refused(&mut cluster, 2, acquire.clone()), Some(TreeError::Held));
    // A directory is covered, not what it is in.
    let other = Create { parent: ROOT.0, name: bytes("c"), kind: 1, ..Create::default() };
    assert_eq!(refused(&mut cluster, 2, Command::Create(other)), None);
    // What is born in a covered directory is covered, by a number of the holder's range.
    let kind = Kind::Directory.to_proto() as i32;
    let create = Create { parent: a.0, name: bytes("new"), kind, ..Create::default() };
    cluster.change(NodeId(1), Command::Create(create));
    assert_eq!(cluster.view(NodeId(2)).lookup(a, b"new"), Err(TreeError::NotFound));
    let new = cluster.view(NodeId(1)).lookup(a, b"new").expect("made");
    assert!(new < cluster.view(NodeId(2)).lookup(ROOT, b"c").expect("made"), "a range of its own");
    cluster.drain_all(NodeId(1));
    assert_eq!(refused(&mut cluster, 2, rmdir(a, "new")), Some(TreeError::Held));
    // The end of the lease frees all of it.
    cluster.take(NodeId(1), Step::Release);
    assert_eq!(refused(&mut cluster, 2, rmdir(a, "new")), None);
    assert_eq!(refused(&mut cluster, 2, acquire), None);
    assert_eq!(refused(&mut cluster, 1, rmdir(b, "x")), Some(TreeError::Held));
}

#[test]
fn a_directory_goes_elsewhere_only_with_the_log() {
    let (mut cluster, [a, b]) = leased();
    let node = NodeId(1);
    let view = cluster.view(node);
    assert!(view.may_change_unheard(node, &rename((a, "x"), (a, "y"), 0)));
    // Another node might put b below what moves meanwhile, and neither would notice.
    assert!(!view.may_change_unheard(node, &rename((a, "x"), (b, "y"), 0)));
    assert!(!view.may_change_unheard(NodeId(2), &rename((a, "x"), (a, "y"), 0)));
    let file = Create { parent: a.0, name: bytes("f"), kind: 1, ..Create::default() };
    cluster.change(node, Command::Create(file));
    let to = (b, "f");
    assert!(cluster.view(node).may_change_unheard(node, &rename((a, "f"), to, 0)));
    // What is strict is never kept back.
    let (name, value) = (bytes("user.unum.class"), bytes("strict"));
    cluster
        .commit(node, Command::SetXattr(SetXattr { ino: b.0, name, value, ..SetXattr::default() }));
    assert!(!cluster.view(node).may_change_unheard(node, &rename((a, "f"), to, 0)));
}

#[test]
fn a_node_that_is_declared_down_loses_what_it_had_not_drained() {
    let (mut cluster, [a, _]) = leased();
    let node = NodeId(1);
    for name in ["one", "two", "three"] {
        let create = Create { parent: a.0, name: bytes(name), kind: 1, ..Create::default() };
        cluster.change(node, Command::Create(create));
    }
    let late = cluster.drain(node, 2).expect("drained");
    cluster.take(node, Step::Down);
    assert!(cluster.locals[0].is_none(), "its local view is gone");
    assert_eq!(refused(&mut cluster, 1, Command::Drain(late)), Some(TreeError::Stale));
    let tree = cluster.view(node);
    assert!(tree.lookup(a, b"two").is_ok());
    assert_eq!(tree.lookup(a, b"three"), Err(TreeError::NotFound));
}

#[test]
fn what_is_below_is_covered_in_several_steps() {
    let mut cluster = Cluster::new();
    let mut make = |parent: Ino, name: String, kind: Kind| {
        let (name, kind) = (bytes(&name), kind.to_proto() as i32);
        let create = Create { parent: parent.0, name, kind, ..Create::default() };
        let reply = cluster.commit(NodeId(2), Command::Create(create));
        inode_of(outcome(&reply).expect("made"))
    };
    let d = make(ROOT, "d".into(), Kind::Directory);
    let files: Vec<Ino> = (0..7).map(|n| make(d, n.to_string(), Kind::Regular)).collect();
    let mut acquire = |inos: &[Ino]| {
        let inos = inos.iter().map(|ino| ino.0).collect();
        let acquire = Command::AcquireLease(AcquireLease { inos, below: 2 });
        let reply = cluster.commit(NodeId(1), acquire);
        let Ok(Outcome::Leased(leased)) = outcome(&reply) else { panic!("{reply:?}") };
        leased.inos.len()
    };
    assert_eq!(acquire(&[d, files[0]]), 4, "the two that are named, and two more");
    assert_eq!(acquire(&[d, files[3]]), 3, "the directory is covered already");
    assert_eq!(acquire(&[d]), 1, "the last one");
}

#[test]
fn what_a_lease_lost_is_not_counted_by_the_next_one() {
    let (mut cluster, [a, _]) = leased();
    let node = NodeId(1);
    let create = |name: &str| {
        Command::Create(Create { parent: a.0, name: bytes(name), kind: 1, ..Create::default() })
    };
    cluster.change(node, create("lost"));
    let mut local = cluster.locals[0].take().expect("pending");
    // Behind a snapshot that this node missed the entries of: declared down, back, and drained once.
    cluster.take(node, Step::Down);
    cluster.commit(node, Command::AcquireLease(AcquireLease { inos: vec![a.0], below: 0 }));
    cluster.change(node, create("kept"));
    cluster.drain_all(node);
    assert!(!local.replaced(&cluster.confirmed));
    assert_eq!(local.pending().len(), 1, "all that was pending is lost");
}
