//! `admin.fsck`: the check of everything, told as it goes.

use super::Api;
use super::methods::Fsck;
use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;
use std::sync::Arc;
use tokio::sync::mpsc;
use unum_net::{Code, Incoming, Router, RpcError, Status, StreamSender};
use unum_proto::admin::{FsckEvent, FsckReply, FsckRequest, fsck_event};

/// Events that wait for the caller.
const EVENTS_MAX: usize = 16;

pub fn add_to(router: Router, api: &Arc<Api>) -> Router {
    let api = api.clone();
    router.stream::<Fsck>(move |incoming, request, sender, _receiver| {
        let api = api.clone();
        async move { fsck(&api, &incoming, request, sender).await }
    })
}

async fn fsck(
    api: &Api,
    incoming: &Incoming,
    request: FsckRequest,
    mut sender: StreamSender,
) -> Result<FsckReply, Status> {
    api.access.require_admin(&incoming.caller, "check the files of the cluster")?;
    let parts = api.parts()?;
    let (tell, mut told) = mpsc::channel(EVENTS_MAX);
    let check = async move {
        // `tell` goes with the check, and so ends the stream.
        let tell = tell;
        parts.services.contents.fsck(request, &tell).await
    };
    // When nobody listens, `told` goes, and the check notices that its events are not taken.
    let pass_on = async move {
        while let Some(kind) = told.recv().await {
            sender.send(framed(kind)).await?;
        }
        sender.finish();
        Ok::<(), RpcError>(())
    };
    let (reply, passed) = tokio::join!(check, pass_on);
    passed.map_err(|error| Status::new(Code::Cancelled, error.to_string()))?;
    reply
}

fn framed(kind: fsck_event::Kind) -> Bytes {
    let event = FsckEvent { kind: Some(kind) };
    let size = event.encoded_len();
    let mut bytes = BytesMut::with_capacity(size + 4);
    bytes.put_u32(u32::try_from(size).unwrap_or(u32::MAX));
    bytes.extend_from_slice(&event.encode_to_vec());
    bytes.freeze()
}
