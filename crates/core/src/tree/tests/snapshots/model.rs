//! Random changes and snapshots, against copies of everything.

use super::*;

/// All that can be seen of a directory and what is below it: by path.
pub(super) type Seen = BTreeMap<String, String>;

pub(super) fn see(tree: &Tree, root: Ino) -> Seen {
    see_without(tree, root, &[])
}

/// What another volume's root is there is told by nothing that the volume has.
fn see_without(tree: &Tree, root: Ino, roots: &[Ino]) -> Seen {
    let mut seen = Seen::new();
    look_at(tree, root, String::new(), roots, &mut seen);
    seen
}

fn look_at(tree: &Tree, ino: Ino, path: String, roots: &[Ino], seen: &mut Seen) {
    let plain = |ino: Ino| ino.0 & (limits::INO_END - 1);
    let mut attributes = tree.attributes(ino).expect("attributes");
    attributes.ino = plain(ino);
    let xattrs: Vec<String> = tree
        .xattr_names(ino)
        .expect("names")
        .map(|name| format!("{name:?}={:?}", tree.xattr(ino, name).expect("a value")))
        .collect();
    let content: String = match tree.inode(ino).expect("an inode").kind() {
        Kind::Regular => {
            tree.extents(ino, 0, u64::MAX).expect("extents").map(|e| format!("{e:?}")).collect()
        }
        Kind::Symlink => format!("{:?}", tree.read_link(ino)),
        Kind::Directory => {
            let listed = tree.read_directory(ino, COOKIE_PARENT).expect("listed");
            listed.map(|e| format!("{:?} {:?} {} ", e.name, e.kind, e.cookie)).collect()
        }
        _ => String::new(),
    };
    seen.insert(path.clone(), format!("{attributes:?} {xattrs:?} {content}"));
    if attributes.kind != Kind::Directory.to_proto() as i32 {
        return;
    }
    for listed in tree.read_directory(ino, COOKIE_PARENT).expect("listed") {
        assert_eq!(tree.lookup(ino, &listed.name), Ok(listed.ino));
        let below = format!("{path}/{}", String::from_utf8_lossy(&listed.name));
        let is_directory = listed.kind == Kind::Directory;
        if roots.contains(&Ino(plain(listed.ino))) {
            continue;
        }
        if is_directory {
            assert_eq!(tree.parent(listed.ino), Ok(ino), "of {below}");
        }
        look_at(tree, listed.ino, below, roots, seen);
    }
}

type Lengths = BTreeMap<ChunkId, u64>;

/// The chunks that an inode uses, with their lengths.
fn used_by(tree: &Tree, inode: &Inode) -> Lengths {
    let extents = inode.extents().into_iter().flat_map(|map| map.iter());
    let chunks = extents.filter_map(|extent| Some(extent.source?.chunk));
    chunks.map(|id| (id, u64::from(tree.chunk(id).expect("a chunk").length))).collect()
}

/// The chunks that inodes of a volume use.
fn used(tree: &Tree, volume: VolumeId) -> Lengths {
    let own = tree.inodes.values().filter(|inode| inode.volume == volume);
    own.flat_map(|inode| used_by(tree, &inode)).collect()
}

/// What a new snapshot uses: what has a name, or has anything that the one before uses.
fn used_next(tree: &Tree, volume: VolumeId, before: Option<&Kept>) -> Lengths {
    let own = tree.inodes.values().filter(|inode| inode.volume == volume);
    let all = own.map(|inode| (inode.nlink > 0, used_by(tree, &inode)));
    let shared = |id: &ChunkId| before.is_some_and(|before| before.chunks.contains_key(id));
    let all = all.filter(|(named, chunks)| *named || chunks.keys().any(shared));
    all.flat_map(|(_, chunks)| chunks).collect()
}

/// What a snapshot should be.
struct Kept {
    volume: VolumeId,
    name: String,
    root: Ino,
    seen: Seen,
    chunks: BTreeMap<ChunkId, u64>,
}

struct Model {
    world: World,
    kept: Vec<Kept>,
    roots: Vec<Ino>,
}

#[derive(Clone, Debug)]
enum Step {
    Create(usize, usize, Kind),
    Unnamed(usize),
    Link(usize, usize, usize),
    Unlink(usize, usize),
    Rmdir(usize, usize),
    Rename(usize, usize, usize, usize, u32),
    Write(usize, u64, u32),
    Overwrite(usize, u64, u64),
    Allocate(usize, FallocateMode, u64, u64),
    Truncate(usize, u64),
    Copy(usize, u64, usize, u64, u64),
    Mode(usize, u32),
    Xattr(usize, u8),
    NoXattr(usize),
    Replicas(u64),
    Reap,
    Snapshot(usize, usize),
    Delete(usize),
    Restore,
}

const NAMES: [&str; 4] = ["a", "b", "c", "d"];

fn step() -> impl Strategy<Value = Step> {
    let which = 0..64_usize;
    let name = || 0..NAMES.len();
    let at = || 0..40_u64;
    let kind = prop_oneof![
        3 => Just(Kind::Regular), 2 => Just(Kind::Directory), 1 => Just(Kind::Symlink)
    ];
    let modes = [FallocateMode::Allocate, FallocateMode::PunchHole, FallocateMode::ZeroRange];
    let mode = proptest::sample::select(modes.to_vec());
    prop_oneof![
        6 => (which.clone(), name(), kind).prop_map(|(i, n, k)| Step::Create(i, n, k)),
        1 => which.clone().prop_map(Step::Unnamed),
        2 => (which.clone(), which.clone(), name()).prop_map(|(i, j, n)| Step::Link(i, j, n)),
        3 => (which.clone(), name()).prop_map(|(i, n)| Step::Unlink(i, n)),
        1 => (which.clone(), name()).prop_map(|(i, n)| Step::Rmdir(i, n)),
        2 => (which.clone(), name(), which.clone(), name(), 0..3_u32)
            .prop_map(|(i, n, j, m, f)| Step::Rename(i, n, j, m, f)),
        8 => (which.clone(), at(), 1..20_u32).prop_map(|(i, o, l)| Step::Write(i, o, l)),
        1 => (which.clone(), at(), 1..20_u64).prop_map(|(i, o, l)| Step::Overwrite(i, o, l)),
        2 => (which.clone(), mode, at(), 1..20_u64).prop_map(|(i, m, o, l)| Step::Allocate(i, m, o, l)),
        2 => (which.clone(), at()).prop_map(|(i, s)| Step::Truncate(i, s)),
        3 => (which.clone(), at(), which.clone(), at(), 1..20_u64)
            .prop_map(|(i, o, j, p, l)| Step::Copy(i, o, j, p, l)),
        1 => (which.clone(), 0..0o777_u32).prop_map(|(i, m)| Step::Mode(i, m)),
        1 => (which.clone(), 0..4_u8).prop_map(|(i, v)| Step::Xattr(i, v)),
        1 => which.clone().prop_map(Step::NoXattr),
        1 => any::<u64>().prop_map(Step::Replicas),
        2 => Just(Step::Reap),
        5 => (which.clone(), name()).prop_map(|(v, n)| Step::Snapshot(v, n)),
        4 => which.prop_map(Step::Delete),
        1 => Just(Step::Restore),
    ]
}

impl Model {
    /// The first volume, one in it, and one in that.
    fn new() -> Self {
        let mut world = World::new();
        let outer = world.new_volume(ROOT, "v");
        let inner = world.new_volume(outer, "w");
        Self { world, kept: Vec::new(), roots: vec![ROOT, outer, inner] }
    }

    fn nth(&self, at: usize) -> Ino {
        let inos: Vec<Ino> = self.world.tree.inodes.iter().map(|(ino, _)| ino).collect();
        inos[at % inos.len()]
    }

    fn take(&mut self, step: &Step) {
        let world = &self.world;
        let command = match *step {
            Step::Create(parent, name, kind) => {
                let parent = self.nth(parent);
                let _ = self.world.create(parent, NAMES[name], kind);
                return;
            }
            Step::Unnamed(parent) => Command::CreateUnnamed(CreateUnnamed {
                parent: self.nth(parent).0,
                linkable: true,
                ..CreateUnnamed::default()
            }),
            Step::Link(ino, parent, name) => link(self.nth(ino), self.nth(parent), NAMES[name]),
            Step::Unlink(parent, name) => unlink(self.nth(parent), NAMES[name]),
            Step::Rmdir(parent, name) => rmdir(self.nth(parent), NAMES[name]),
            Step::Rename(from, name, to, new_name, flags) => {
                rename((self.nth(from), NAMES[name]), (self.nth(to), NAMES[new_name]), flags)
            }
            Step::Write(ino, offset, length) => {
                let ino = self.nth(ino);
                self.world.write_new(ino, offset, length)
            }
            Step::Overwrite(ino, offset, length) => {
                let ino = self.nth(ino);
                // Of a chunk that the file uses, if it has any; else of one that it may not take.
                let own = world.tree.extents(ino, 0, u64::MAX).into_iter().flatten();
                let chunk = own.filter_map(|extent| Some(extent.source?.chunk)).last();
                let dead = || world.tree.dead_chunks().keys().next().copied();
                let chunk = chunk.or_else(dead).map(Into::into);
                let extents = vec![Extent { offset, length, chunk, chunk_offset: 0 }];
                Command::Write(Write { ino: ino.0, extents, ..Write::default() })
            }
            Step::Allocate(ino, mode, offset, length) => Command::Fallocate(Fallocate {
                ino: self.nth(ino).0,
                mode: mode as i32,
                offset,
                length,
                ..Fallocate::default()
            }),
            Step::Truncate(ino, size) => Command::SetAttributes(SetAttributes {
                ino: self.nth(ino).0,
                size: Some(size),
                ..SetAttributes::default()
            }),
            Step::Copy(from, from_offset, to, to_offset, length) => Command::CopyRange(CopyRange {
                from: self.nth(from).0,
                from_offset,
                to: self.nth(to).0,
                to_offset,
                length,
                kill_privileges: false,
            }),
            Step::Mode(ino, mode) => Command::SetAttributes(SetAttributes {
                ino: self.nth(ino).0,
                mode: Some(mode),
                ..SetAttributes::default()
            }),
            Step::Xattr(ino, value) => Command::SetXattr(SetXattr {
                ino: self.nth(ino).0,
                name: bytes("user.x"),
                value: vec![value].into(),
                ..SetXattr::default()
            }),
            Step::NoXattr(ino) => {
                Command::RemoveXattr(RemoveXattr { ino: self.nth(ino).0, name: bytes("user.x") })
            }
            Step::Replicas(node) => {
                let all: Vec<ChunkId> = world.tree.chunks_after(None).map(|(id, _)| id).collect();
                if all.is_empty() {
                    return;
                }
                let id = all[node as usize % all.len()];
                let expected = &world.tree.chunk(id).expect("known").replicas;
                Command::SetReplicas(unum_proto::tree::SetReplicas {
                    chunk: Some(id.into()),
                    expected: expected.iter().map(|node| node.0).collect(),
                    replicas: vec![node % 7 + 1],
                })
            }
            Step::Reap => {
                self.world.now = Time(self.world.now.0 + 10_000_000_000);
                let inos = self.world.tree.reapable(self.world.now, 100);
                let inos = inos.into_iter().map(|ino| ino.0).collect();
                self.world.node = NodeId(1);
                // Files without a name are closed.
                let held: Vec<u64> = self.world.tree.held_by(NodeId(1)).map(|i| i.0).collect();
                let release = unum_proto::tree::Release { inos: held };
                self.world.run(Command::Release(release)).expect("closed");
                Command::Reap(Reap { inos })
            }
            Step::Snapshot(volume, name) => return self.snapshot(volume, NAMES[name]),
            Step::Delete(at) => return self.delete(at),
            Step::Restore => {
                let all = records(&self.world.tree);
                let restored = super::snapshot::restore(&all).expect("restored");
                assert_eq!(records(&restored), all);
                self.world.tree = restored;
                return;
            }
        };
        let _ = self.world.run(command);
    }

    fn snapshot(&mut self, volume: usize, name: &str) {
        let root = self.roots[volume % self.roots.len()];
        let Ok((volume, _)) = self.world.tree.volume_of(root) else { return };
        let taken = self.world.snapshot(volume, name);
        let same = self.kept.iter().any(|kept| kept.volume == volume && kept.name == name);
        match taken {
            Ok(taken) => {
                assert!(!same);
                let seen = see_without(&self.world.tree, root, &self.roots);
                let before = self.kept.iter().rfind(|kept| kept.volume == volume);
                let chunks = used_next(&self.world.tree, volume, before);
                let name = name.to_owned();
                self.kept.push(Kept { volume, name, root: taken, seen, chunks });
            }
            Err(error) => assert!(same || error == TreeError::NotFound, "{error}"),
        }
    }

    fn delete(&mut self, at: usize) {
        if self.kept.is_empty() {
            return;
        }
        let kept = self.kept.remove(at % self.kept.len());
        self.world.forget(kept.volume, &kept.name).expect("deleted");
        assert_eq!(self.world.tree.inode(kept.root).map(drop), Err(TreeError::Stale));
    }

    fn check(&self) {
        let tree = &self.world.tree;
        let live: BTreeMap<ChunkId, u64> = (1..=3).flat_map(|v| used(tree, VolumeId(v))).collect();
        let mut all = live.clone();
        for kept in &self.kept {
            assert_eq!(see_without(tree, kept.root, &self.roots), kept.seen, "{}", kept.name);
            all.extend(&kept.chunks);
        }
        let table: BTreeMap<ChunkId, u64> =
            tree.chunks_after(None).map(|(id, chunk)| (id, chunk.length.into())).collect();
        assert_eq!(table, all, "exactly what is in use");
        assert_eq!(tree.usage().stored, all.values().sum::<u64>());
        for volume in (1..=3).map(VolumeId) {
            let own = || self.kept.iter().filter(|kept| kept.volume == volume);
            let only: BTreeMap<&ChunkId, &u64> = own()
                .flat_map(|kept| &kept.chunks)
                .filter(|(id, _)| !live.contains_key(id))
                .collect();
            assert_eq!(tree.kept_bytes(volume), only.values().copied().sum::<u64>());
            for (at, (id, snapshot)) in tree.snapshots_of(volume).enumerate() {
                assert_eq!(&*snapshot.name, own().nth(at).expect("kept").name.as_bytes());
                let others = || own().enumerate().filter(|(other, _)| *other != at);
                let mut alone = own().nth(at).expect("kept").chunks.clone();
                alone.retain(|id, _| !live.contains_key(id));
                alone.retain(|id, _| others().all(|(_, kept)| !kept.chunks.contains_key(id)));
                assert_eq!(tree.alone_bytes(id), alone.values().sum::<u64>());
            }
        }
    }
}

proptest! {
    #![proptest_config(property(300))]

    #[test]
    fn snapshots_stay_what_they_were_and_keep_what_they_need(steps in vec(step(), 1..120)) {
        let mut model = Model::new();
        for step in &steps {
            model.take(step);
            model.check();
        }
        while !model.kept.is_empty() {
            model.delete(steps.len() * 7);
            model.check();
        }
    }
}
