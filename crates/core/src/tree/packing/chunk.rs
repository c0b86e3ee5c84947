//! Chunks. What is left of one that is written like the one before is its hash and a few bytes.

use std::sync::Arc;

use unum_proto::ids::{ChunkId, NodeId, SnapshotId, VolumeId};

use super::super::chunks::{Chunk, Hash};
use crate::packed::Packing;
use crate::packed::bytes::{Reader, Writer};

const SAME_PLACE: u64 = 1;
const SAME_REPLICAS: u64 = 1 << 1;
const SAME_LENGTH: u64 = 1 << 2;
/// Each of its bytes is taken once.
const LIVE_ONCE: u64 = 1 << 3;

#[derive(Debug, Default)]
pub struct Base {
    volume: VolumeId,
    birth: SnapshotId,
    replicas: Arc<[NodeId]>,
    length: u32,
}

impl Packing for Chunk {
    type Key = ChunkId;
    type Base = Base;
    const OPEN_MAX: usize = 1024;

    fn pack_key(key: &ChunkId, before: Option<&ChunkId>, to: &mut Writer) {
        let before = before.copied().unwrap_or_default();
        to.number(key.lane - before.lane);
        to.number(if key.lane == before.lane { key.seq - before.seq } else { key.seq });
    }

    fn unpack_key(before: Option<&ChunkId>, from: &mut Reader<'_>) -> ChunkId {
        let before = before.copied().unwrap_or_default();
        let lanes = from.number();
        let seq = from.number();
        let seq = if lanes == 0 { before.seq + seq } else { seq };
        ChunkId { lane: before.lane + lanes, seq }
    }

    fn pack(&self, _: &ChunkId, base: &mut Base, to: &mut Writer) -> bool {
        let flag = |bit, is: bool| if is { bit } else { 0 };
        let same_place = (self.volume, self.birth) == (base.volume, base.birth);
        let same_replicas = self.replicas == base.replicas;
        let same_length = self.length == base.length;
        let live_once = self.live == u64::from(self.length);
        to.number(
            flag(SAME_PLACE, same_place)
                | flag(SAME_REPLICAS, same_replicas)
                | flag(SAME_LENGTH, same_length)
                | flag(LIVE_ONCE, live_once),
        );
        if !same_place {
            (base.volume, base.birth) = (self.volume, self.birth);
            to.number(self.volume.0.into());
            to.number(self.birth.0.into());
        }
        if !same_replicas {
            base.replicas = self.replicas.clone();
            to.number(self.replicas.len() as u64);
            self.replicas.iter().for_each(|node| to.number(node.0));
        }
        if !same_length {
            base.length = self.length;
            to.number(self.length.into());
        }
        if !live_once {
            to.number(self.live);
        }
        to.raw(&self.hash);
        true
    }

    fn unpack(_: &ChunkId, base: &mut Base, from: &mut Reader<'_>) -> Self {
        let flags = from.number();
        if flags & SAME_PLACE == 0 {
            base.volume = VolumeId(from.number32());
            base.birth = SnapshotId(from.number32());
        }
        if flags & SAME_REPLICAS == 0 {
            let count = from.number();
            base.replicas = (0..count).map(|_| NodeId(from.number())).collect();
        }
        if flags & SAME_LENGTH == 0 {
            base.length = from.number32();
        }
        let live = if flags & LIVE_ONCE == 0 { from.number() } else { base.length.into() };
        let mut hash = Hash::default();
        let raw = from.raw(hash.len());
        hash[..raw.len()].copy_from_slice(raw);
        Self {
            volume: base.volume,
            length: base.length,
            hash,
            replicas: base.replicas.clone(),
            live,
            birth: base.birth,
        }
    }
}
