//! Whatever comes: random commands with fields small, at the edges and wild, and random bytes.

use proptest::collection::vec;
use proptest::prelude::*;
use unum_proto::tree::{
    CancelWait, ChunkKey, CopyRange, CreateSnapshot, CreateUnnamed, CreateVolume, DeleteSnapshot,
    Extent, Hold, Lock, LockRange, NewTime, Reap, Release, ReleaseNode, ReleaseOwner, SetReplicas,
    SetVolume, Timestamp, Unlock, VolumeSettings,
};

use super::*;

fn ino() -> impl Strategy<Value = u64> {
    let past = (1..9_u64, 1..9_u64).prop_map(|(slot, ino)| slot << 48 | ino);
    let shelf = (1..9_u64).prop_map(|ino| 0xffff << 48 | ino);
    prop_oneof![20 => 1..9_u64, 1 => past, 1 => shelf, 1 => any::<u64>(), 1 => Just(0)]
}

fn number() -> impl Strategy<Value = u64> {
    let edge = prop_oneof![
        Just(u64::MAX),
        Just(i64::MAX as u64),
        Just(limits::FILE_SIZE_MAX),
        Just(limits::FILE_SIZE_MAX - 1)
    ];
    prop_oneof![8 => 0..40_u64, 1 => edge, 1 => any::<u64>()]
}

fn choice() -> impl Strategy<Value = i32> {
    prop_oneof![10 => 0..8_i32, 1 => any::<i32>()]
}

fn name() -> impl Strategy<Value = Bytes> {
    let plain = proptest::sample::select(
        &["a", "b", "c", ".snapshot", "user.x", "security.capability"][..],
    );
    prop_oneof![12 => plain.prop_map(bytes), 1 => vec(any::<u8>(), 0..300).prop_map(Bytes::from)]
}

fn acl_name() -> impl Strategy<Value = Bytes> {
    prop_oneof![Just(ACL_ACCESS), Just(ACL_DEFAULT)].prop_map(Bytes::from_static)
}

/// Mostly a good list.
fn acl() -> impl Strategy<Value = Bytes> {
    let entry = (0..6_usize, 0..9_u16, prop_oneof![0..4_u32, Just(u32::MAX)]);
    vec(entry, 3..6).prop_map(|mut entries| {
        entries.extend([(0, 7, 0), (2, 5, 0), (4, 6, 0), (5, 1, 0)]);
        entries.sort();
        let once = |(tag, ..): &(usize, u16, u32)| if matches!(tag, 1 | 3) { 9 } else { *tag };
        entries.dedup_by(|a, b| once(a) != 9 && once(a) == once(b));
        let mut value = 2_u32.to_le_bytes().to_vec();
        for (tag, allowed, id) in entries {
            value.extend((1_u16 << tag).to_le_bytes());
            value.extend(allowed.to_le_bytes());
            value.extend(id.to_le_bytes());
        }
        value.into()
    })
}

fn key() -> impl Strategy<Value = Option<ChunkKey>> {
    proptest::option::weighted(
        0.9,
        (0..2_u64, 0..6_u64).prop_map(|(lane, seq)| ChunkKey { lane, seq }),
    )
}

fn extent() -> impl Strategy<Value = Extent> {
    let chunk_offset = prop_oneof![6 => 0..20_u32, 1 => any::<u32>()];
    (number(), prop_oneof![6 => 1..20_u64, 1 => any::<u64>()], key(), chunk_offset).prop_map(
        |(offset, length, chunk, chunk_offset)| Extent { offset, length, chunk, chunk_offset },
    )
}

fn nodes() -> impl Strategy<Value = Vec<u64>> {
    vec(0..5_u64, 0..4)
}

fn chunk() -> impl Strategy<Value = NewChunk> {
    let length = prop_oneof![8 => 30..50_u32, 1 => any::<u32>()];
    let hash = prop_oneof![8 => Just(32_usize), 1 => 0..40_usize];
    (key(), length, hash, nodes()).prop_map(|(id, length, hash, replicas)| NewChunk {
        id,
        length,
        hash: vec![1; hash].into(),
        replicas,
    })
}

fn settings() -> impl Strategy<Value = Option<VolumeSettings>> {
    use proptest::option::of;
    let settings = (of(0..9_u32), of(0..60_u64), of(0..6_u64));
    let settings = settings.prop_map(|(replicas, quota_bytes, quota_inodes)| VolumeSettings {
        replicas,
        quota_bytes,
        quota_inodes,
    });
    of(settings)
}

pub(super) fn volume_command() -> BoxedStrategy<Command> {
    let create = (ino(), name(), any::<u32>(), settings());
    let create = create.prop_map(|(parent, name, mode, settings)| {
        Command::CreateVolume(CreateVolume { parent, name, mode, uid: 1, gid: 1, settings })
    });
    let set = (0..6_u32, settings());
    let set = set.prop_map(|(volume, settings)| Command::SetVolume(SetVolume { volume, settings }));
    prop_oneof![2 => create, 1 => set].boxed()
}

pub(super) fn snapshot_command() -> BoxedStrategy<Command> {
    let create = (0..4_u32, name());
    let create =
        create.prop_map(|(volume, name)| Command::CreateSnapshot(CreateSnapshot { volume, name }));
    let delete = (0..4_u32, name());
    let delete =
        delete.prop_map(|(volume, name)| Command::DeleteSnapshot(DeleteSnapshot { volume, name }));
    prop_oneof![2 => create, 1 => delete].boxed()
}

pub(super) fn namespace_command() -> BoxedStrategy<Command> {
    let create = (ino(), name(), choice(), any::<[u32; 2]>(), 0..3_u32, name(), any::<bool>());
    let create = create.prop_map(|(parent, name, kind, [mode, umask], uid, target, exclusive)| {
        let gid = if uid == 2 { u32::MAX } else { uid };
        Command::Create(Create {
            parent,
            name,
            kind,
            mode,
            uid,
            gid,
            rdev: mode,
            target,
            exclusive,
            ino: 0,
            umask,
        })
    });
    prop_oneof![
        8 => create,
        1 => (ino(), any::<u32>(), any::<bool>()).prop_map(|(parent, mode, linkable)| {
            let umask = mode >> 16;
            Command::CreateUnnamed(CreateUnnamed { parent, mode, uid: 1, gid: 1, linkable, umask })
        }),
        2 => (ino(), ino(), name())
            .prop_map(|(ino, parent, name)| Command::Link(Link { ino, parent, name })),
        1 => (ino(), name()).prop_map(|(parent, name)| Command::Unlink(Unlink { parent, name })),
        1 => (ino(), name()).prop_map(|(parent, name)| Command::Rmdir(Rmdir { parent, name })),
        2 => (ino(), name(), ino(), name(), 0..5_u32).prop_map(
            |(parent, name, new_parent, new_name, flags)| {
                Command::Rename(Rename { parent, name, new_parent, new_name, flags })
            }
        ),
    ]
    .boxed()
}

fn new_time() -> impl Strategy<Value = Option<NewTime>> {
    let value = (any::<i64>(), 0..1_100_000_000_u32);
    let value = proptest::option::of(value.prop_map(|(secs, nanos)| Timestamp { secs, nanos }));
    proptest::option::of(value.prop_map(|value| NewTime { value }))
}

pub(super) fn inode_command() -> BoxedStrategy<Command> {
    use proptest::option::of;
    let set = (ino(), of(any::<u32>()), of(0..9_u32), of(number()), new_time(), any::<bool>());
    let set = set.prop_map(|(ino, mode, uid, size, mtime, kill_privileges)| {
        let (gid, atime) = (uid, mtime);
        Command::SetAttributes(SetAttributes {
            ino,
            mode,
            uid,
            gid,
            size,
            atime,
            mtime,
            kill_privileges,
        })
    });
    let write = (
        ino(),
        vec(extent(), 0..4),
        vec(chunk(), 0..3),
        any::<(bool, bool)>(),
        of(0..6_u64),
        proptest::bool::weighted(0.1),
    );
    let write = write.prop_map(|(ino, extents, chunks, flags, if_version, relayout)| {
        let (append, kill_privileges) = flags;
        let if_version = if_version.filter(|_| relayout);
        Command::Write(Write {
            ino,
            extents,
            chunks,
            append,
            kill_privileges,
            if_version,
            relayout,
        })
    });
    let fallocate = (ino(), choice(), number(), number(), any::<(bool, bool)>());
    let fallocate = fallocate.prop_map(|(ino, mode, offset, length, (keep_size, kill))| {
        let kill_privileges = kill;
        Command::Fallocate(Fallocate { ino, mode, offset, length, keep_size, kill_privileges })
    });
    let copy = (ino(), number(), ino(), number(), number(), any::<bool>());
    let copy = copy.prop_map(|(from, from_offset, to, to_offset, length, kill_privileges)| {
        Command::CopyRange(CopyRange { from, from_offset, to, to_offset, length, kill_privileges })
    });
    let replicas = (key(), nodes(), nodes()).prop_map(|(chunk, expected, replicas)| {
        Command::SetReplicas(SetReplicas { chunk, expected, replicas })
    });
    prop_oneof![
        2 => set,
        6 => write,
        3 => fallocate,
        4 => copy,
        1 => (ino(), name(), name(), choice()).prop_map(|(ino, name, value, mode)| {
            Command::SetXattr(SetXattr { ino, name, value, mode, kill_setgid: false })
        }),
        2 => (ino(), acl_name(), acl(), any::<bool>()).prop_map(
            |(ino, name, value, kill_setgid)| {
                Command::SetXattr(SetXattr { ino, name, value, mode: 0, kill_setgid })
            }
        ),
        1 => (ino(), prop_oneof![name(), acl_name()])
            .prop_map(|(ino, name)| Command::RemoveXattr(RemoveXattr { ino, name })),
        1 => replicas,
    ]
    .boxed()
}

fn range() -> impl Strategy<Value = Option<LockRange>> {
    let range = (choice(), 0..4_u64, number(), number());
    let range = range.prop_map(|(table, owner, a, b)| LockRange {
        table: table % 3,
        owner,
        start: a.min(b),
        end: if a == 7 { b.saturating_sub(1) } else { a.max(b) },
    });
    proptest::option::weighted(0.95, range)
}

pub(super) fn shared_command() -> BoxedStrategy<Command> {
    let waiter = proptest::option::of(0..9_u64);
    let lock = (ino(), range(), any::<bool>(), any::<u32>(), waiter);
    let lock = lock.prop_map(|(ino, range, exclusive, pid, waiter)| {
        Command::Lock(Lock { ino, range, exclusive, pid, waiter })
    });
    prop_oneof![
        6 => lock,
        2 => (ino(), range()).prop_map(|(ino, range)| Command::Unlock(Unlock { ino, range })),
        1 => (0..9_u64).prop_map(|waiter| Command::CancelWait(CancelWait { waiter })),
        1 => (ino(), choice(), 0..4_u64).prop_map(|(ino, table, owner)| {
            Command::ReleaseOwner(ReleaseOwner { ino, table, owner })
        }),
        1 => vec(ino(), 0..3).prop_map(|inos| Command::Hold(Hold { inos })),
        1 => vec(ino(), 0..3).prop_map(|inos| Command::Release(Release { inos })),
        1 => (0..4_u64).prop_map(|node| Command::ReleaseNode(ReleaseNode { node })),
        2 => vec(ino(), 0..9).prop_map(|inos| Command::Reap(Reap { inos })),
    ]
    .boxed()
}

fn command() -> BoxedStrategy<(u64, Command)> {
    let command = prop_oneof![6 => namespace_command(), 6 => inode_command(), 4 => shared_command(), 1 => volume_command(), 2 => snapshot_command()];
    (0..4_u64, command).boxed()
}

proptest! {
    #![proptest_config(property(400))]

    /// No invariant breaks, what fails changes nothing, a snapshot brings everything back, and the
    /// same commands make the same tree.
    #[test]
    fn commands_keep_the_tree_whole(commands in vec(command(), 1..80)) {
        let mut world = World::new();
        let mut twin = Tree::new();
        for (node, command) in commands {
            world.node = NodeId(node);
            let _ = world.run(command.clone());
            twin.apply(world.now, world.node, &command.into());
        }
        let before = records(&world.tree);
        prop_assert_eq!(&before, &records(&twin));
        let mut restored = super::snapshot::restore(&before).expect("restored");
        prop_assert_eq!(before, records(&restored));
        // What was restored goes on as the original does.
        let next = Command::Create(Create {
            parent: 1,
            name: bytes("next"),
            kind: 1,
            ..Create::default()
        });
        let reply = restored.apply(world.now, world.node, &next.clone().into());
        prop_assert_eq!(reply, world.tree.apply(world.now, world.node, &next.into()));
    }
}

proptest! {
    #![proptest_config(property(20_000))]

    #[test]
    fn random_bytes_harm_nothing(raw in vec(any::<u8>(), 0..64), now in any::<u64>()) {
        let mut tree = Tree::new();
        if let Ok(command) = TreeCommand::decode(raw.as_slice()) {
            tree.apply(Time(now), NodeId(1), &command);
        }
        if let Ok(record) = TreeRecord::decode(raw.as_slice()) {
            let mut loader = TreeLoader::new();
            let _ = loader.absorb(&record);
        }
    }

    /// Bytes changed in a good command, so that most of it decodes.
    #[test]
    fn damaged_commands_harm_nothing(
        (node, command) in command(),
        at in any::<proptest::sample::Index>(),
        byte in any::<u8>(),
    ) {
        let mut raw = TreeCommand::from(command).encode_to_vec();
        let at = at.index(raw.len());
        raw[at] = byte;
        let mut tree = Tree::new();
        if let Ok(command) = TreeCommand::decode(raw.as_slice()) {
            tree.apply(Time(u64::MAX), NodeId(node), &command);
            prop_assert_eq!(tree.check(), Vec::<String>::new());
        }
    }
}

proptest! {
    #![proptest_config(property(2_000))]

    /// A damaged snapshot is refused or gives a whole tree; it never panics.
    #[test]
    fn damaged_snapshots_harm_nothing(
        commands in vec(command(), 5..30),
        record in any::<proptest::sample::Index>(),
        at in any::<proptest::sample::Index>(),
        byte in any::<u8>(),
    ) {
        let mut tree = Tree::new();
        for (second, (node, command)) in commands.into_iter().enumerate() {
            tree.apply(Time::from_secs(second as u64), NodeId(node), &command.into());
        }
        let mut encoded: Vec<Vec<u8>> = tree.records().map(|record| encode(&record)).collect();
        let hit = record.index(encoded.len());
        let at = at.index(encoded[hit].len());
        encoded[hit][at] = byte;
        let mut loader = TreeLoader::new();
        for raw in &encoded {
            let Ok(record) = TreeRecord::decode(raw.as_slice()) else { return Ok(()) };
            if loader.absorb(&record).is_err() {
                return Ok(());
            }
        }
        if let Ok(tree) = loader.finish() {
            prop_assert_eq!(tree.check(), Vec::<String>::new());
        }
    }
}
