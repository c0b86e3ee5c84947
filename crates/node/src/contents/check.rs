//! What a node answers when the whole cluster is checked: how its replicas are, and what it holds
//! that nobody wants there.
//!
//! Invariant: nothing is called wrong that a fresh state of the registry does not want here.

use std::sync::Arc;

use unum_core::tree::{Chunk, ROOT_VOLUME};
use unum_net::{Code, Router, Status};
use unum_proto::file::{
    CHECK_CHUNKS_MAX, CheckChunks, CheckChunksReply, ChunkFault, FaultKind, UnknownChunk,
    UnknownChunks, UnknownChunksReply,
};
use unum_proto::ids::ChunkId;

use super::Contents;
use super::garbage::unwanted_step;
use super::scrub::Mended;
use crate::store::chunks::Listed;

unum_net::methods! {
    /// Whether a node holds chunks as it should.
    pub CheckChunksMethod = "file.check-chunks", Bulk, idempotent, CheckChunks => CheckChunksReply;
    /// What a node holds although nobody wants it there.
    pub UnknownChunksMethod =
        "file.unknown-chunks", Bulk, idempotent, UnknownChunks => UnknownChunksReply;
}

pub(super) fn routes(contents: &Arc<Contents>) -> Router {
    let (check, unknown) = (contents.clone(), contents.clone());
    Router::new()
        .call::<CheckChunksMethod>(move |_, request: CheckChunks| {
            let contents = check.clone();
            async move { contents.check(request).await }
        })
        .call::<UnknownChunksMethod>(move |_, request: UnknownChunks| {
            let contents = unknown.clone();
            async move { contents.unknown(request).await }
        })
}

impl Contents {
    pub(super) async fn check(&self, request: CheckChunks) -> Result<CheckChunksReply, Status> {
        if request.chunks.len() > CHECK_CHUNKS_MAX {
            return Err(Status::new(Code::Invalid, "too many chunks in one question"));
        }
        let mut faults = Vec::new();
        for named in &request.chunks {
            // Whose it is does not matter to its bytes.
            let (id, chunk) = Chunk::from_proto(ROOT_VOLUME, named)
                .map_err(|error| Status::new(Code::Invalid, error.to_string()))?;
            let Some((kind, what)) = self.fault(id, &chunk, request.deep).await else { continue };
            faults.extend(self.confirm(id, kind, what, request.mend).await?);
        }
        Ok(CheckChunksReply { faults })
    }

    /// A fault of what is still wanted here, mended if that is asked for and possible.
    async fn confirm(
        &self,
        id: ChunkId,
        kind: FaultKind,
        mut what: String,
        mend: bool,
    ) -> Result<Option<ChunkFault>, Status> {
        self.fresh().await.map_err(|error| Status::new(Code::Unavailable, error.to_string()))?;
        if self.wanted_here(id).is_none() {
            return Ok(None);
        }
        let mended = match mend {
            false => false,
            true => match self.mend(id).await {
                Mended::Done | Mended::Nothing => true,
                Mended::Later(why) | Mended::Never(why) => {
                    what = format!("{what}; it cannot be mended: {why}");
                    false
                }
            },
        };
        Ok(Some(ChunkFault { chunk: Some(id.into()), kind: kind.into(), what, mended }))
    }

    pub(super) async fn unknown(
        &self,
        request: UnknownChunks,
    ) -> Result<UnknownChunksReply, Status> {
        self.fresh().await.map_err(|error| Status::new(Code::Unavailable, error.to_string()))?;
        let store = self.parts.replicas.store();
        let after = request.after.map(ChunkId::from);
        let Some((unwanted, last)) = unwanted_step(self, store.store(), after) else {
            return Ok(UnknownChunksReply::default());
        };
        let stamp_max = self.stamp_of_garbage();
        let is_old = |listed: &Listed| stamp_max.is_some_and(|max| listed.stamp <= max);
        let is_late = self.is_garbage_late();
        let mut chunks = Vec::with_capacity(unwanted.len());
        for listed in unwanted {
            let is_old = is_old(&listed);
            let deleted = match stamp_max.filter(|_| is_old && request.collect) {
                None => false,
                Some(max) => {
                    let gone = store.expire(listed.chunk, max).await;
                    gone.map_err(|error| Status::internal(error.to_string()))?
                }
            };
            let (chunk, length) = (Some(listed.chunk.into()), listed.len);
            chunks.push(UnknownChunk { chunk, length, overdue: is_old && is_late, deleted });
        }
        Ok(UnknownChunksReply { chunks, next: Some(last.into()) })
    }
}
