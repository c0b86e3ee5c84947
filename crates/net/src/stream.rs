//! Streams.
use crate::RpcError;
use bytes::Bytes;

/// The sending half of a stream.
#[derive(Debug)]
pub struct StreamSender {}

impl StreamSender {
    /// Waits for room, then sends. Large pieces are cut.
    pub async fn send(&mut self, _bytes: Bytes) -> Result<(), RpcError> {
        unimplemented!()
    }

    /// Says that nothing follows. Dropping the sender does the same.
    pub fn finish(self) {
        unimplemented!()
    }
}

/// The receiving half of a stream.
#[derive(Debug)]
pub struct StreamReceiver {}

impl StreamReceiver {
    /// None: the far side has finished.
    pub async fn recv(&mut self) -> Result<Option<Bytes>, RpcError> {
        unimplemented!()
    }
}
