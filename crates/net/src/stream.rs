//! Streams: bytes in both directions beside a call, each direction with its own credit.
//!
//! A sender spends credit (the piece's length and a fixed cost) and waits when there is none; the
//! receiver grants more as its reader takes pieces. So what waits in memory for one direction is at
//! most its window.

use std::{
    fmt,
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use bytes::Bytes;
use tokio::sync::{Semaphore, mpsc};
use unum_proto::rpc::{CallHeader, CreditHeader};

use crate::{
    Class, Departures, RpcError,
    frame::{FrameError, Kind},
    limits::{
        STREAM_PIECE_COPIED_MAX, STREAM_PIECE_COST, STREAM_PIECE_SIZE_MAX, STREAM_WINDOW_BULK,
        STREAM_WINDOW_CONTROL,
    },
    writer::{Body, Flush, Writer},
};

enum Piece {
    Bytes(Bytes),
    End,
}

/// What the connection knows of a call's streams.
pub(crate) struct StreamCore {
    window: u32,
    /// Credit that this side may still spend.
    credit: Semaphore,
    inbound: Mutex<Inbound>,
    /// Why the streams ended before their time.
    failure: OnceLock<RpcError>,
}

struct Inbound {
    pieces: Option<mpsc::UnboundedSender<Piece>>,
    /// Credit that the other side may still spend.
    granted: u32,
}

impl StreamCore {
    pub(crate) fn open(
        class: Class,
        call: u64,
        writer: &Arc<Writer>,
    ) -> (Arc<Self>, StreamSender, StreamReceiver) {
        let window = match class {
            Class::Bulk => STREAM_WINDOW_BULK,
            Class::Control => STREAM_WINDOW_CONTROL,
        };
        let (pieces, arrived) = mpsc::unbounded_channel();
        let core = Arc::new(StreamCore {
            window,
            credit: Semaphore::new(window as usize),
            inbound: Mutex::new(Inbound { pieces: Some(pieces), granted: window }),
            failure: OnceLock::new(),
        });
        let sender = StreamSender {
            core: core.clone(),
            writer: writer.clone(),
            call,
            open: true,
            departures: None,
        };
        let receiver =
            StreamReceiver { core: core.clone(), writer: writer.clone(), call, arrived, taken: 0 };
        (core, sender, receiver)
    }

    /// A piece has arrived.
    pub(crate) fn arrived(&self, bytes: Bytes) -> Result<(), FrameError> {
        let mut inbound = self.inbound.lock().unwrap_or_else(PoisonError::into_inner);
        let cost = cost(&bytes).ok_or(FrameError::NoCredit)?;
        inbound.granted = inbound.granted.checked_sub(cost).ok_or(FrameError::NoCredit)?;
        if let Some(pieces) = &inbound.pieces {
            let small = bytes.len() < STREAM_PIECE_COPIED_MAX;
            let bytes = if small { Bytes::copy_from_slice(&bytes) } else { bytes };
            // Nobody reads any more: the credit stays spent and the sender waits for the reply.
            let _ = pieces.send(Piece::Bytes(bytes));
        }
        Ok(())
    }

    /// The other side has finished its direction.
    pub(crate) fn finished(&self) {
        let mut inbound = self.inbound.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pieces) = inbound.pieces.take() {
            let _ = pieces.send(Piece::End);
        }
    }

    /// The other side has room.
    pub(crate) fn credited(&self, credit: u32) -> Result<(), FrameError> {
        let total = self.credit.available_permits() + credit as usize;
        if total > self.window as usize {
            return Err(FrameError::NoCredit);
        }
        self.credit.add_permits(credit as usize);
        Ok(())
    }

    /// Ends both directions, after what has arrived is read.
    pub(crate) fn end(&self, failure: Option<RpcError>) {
        match failure {
            Some(failure) => {
                let _ = self.failure.set(failure);
                self.inbound.lock().unwrap_or_else(PoisonError::into_inner).pieces = None;
            }
            None => self.finished(),
        }
        self.credit.close();
    }

    fn failure(&self) -> RpcError {
        self.failure.get().cloned().unwrap_or(RpcError::Cancelled)
    }

    fn granted_again(&self, credit: u32) {
        self.inbound.lock().unwrap_or_else(PoisonError::into_inner).granted += credit;
    }
}

/// None: more than any window.
fn cost(bytes: &Bytes) -> Option<u32> {
    u32::try_from(bytes.len()).ok()?.checked_add(STREAM_PIECE_COST)
}

/// The sending half of a stream. Dropping it says that nothing follows.
pub struct StreamSender {
    core: Arc<StreamCore>,
    writer: Arc<Writer>,
    call: u64,
    open: bool,
    /// What the pieces pass before they leave, and as part of which method.
    departures: Option<(Departures, String)>,
}

impl StreamSender {
    /// Sends once the far side has room; large pieces are cut. An error says that the call has
    /// ended (`Cancelled` if the far side just replied), so nobody reads any more. Not cancel safe
    /// for pieces above `STREAM_PIECE_SIZE_MAX`: a part may be sent.
    pub async fn send(&mut self, mut bytes: Bytes) -> Result<(), RpcError> {
        while !bytes.is_empty() {
            let piece = bytes.split_to(bytes.len().min(STREAM_PIECE_SIZE_MAX));
            self.send_piece(piece).await?;
        }
        Ok(())
    }

    pub(crate) fn depart_through(&mut self, departures: &Departures, method: &str) {
        self.departures = Some((departures.clone(), method.to_owned()));
    }

    async fn send_piece(&mut self, piece: Bytes) -> Result<(), RpcError> {
        if let Some((departures, method)) = &self.departures {
            departures.pass(method).await;
        }
        let Some(cost) = cost(&piece) else { return Err(self.core.failure()) };
        let credit = self.core.credit.acquire_many(cost).await;
        let credit = credit.map_err(|_| self.core.failure())?;
        self.writer.wait_for_room().await;
        // Spent only now: a sender dropped while waiting has sent nothing.
        credit.forget();
        self.writer
            .send(Kind::Data, &CallHeader { call: self.call }, Body::Raw(piece), Flush::Now)
            .map_err(|_| self.core.failure())
    }

    /// Says that nothing follows.
    pub fn finish(mut self) {
        self.close();
    }

    fn close(&mut self) {
        if std::mem::take(&mut self.open) && !self.core.credit.is_closed() {
            let header = CallHeader { call: self.call };
            // On a closed connection the far side learns it from that.
            let _ = self.writer.send(Kind::End, &header, Body::None, Flush::Now);
        }
    }
}

impl Drop for StreamSender {
    fn drop(&mut self) {
        self.close();
    }
}

impl fmt::Debug for StreamSender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StreamSender({})", self.call)
    }
}

/// The receiving half of a stream.
pub struct StreamReceiver {
    core: Arc<StreamCore>,
    writer: Arc<Writer>,
    call: u64,
    arrived: mpsc::UnboundedReceiver<Piece>,
    /// Cost of the pieces taken since credit was last granted.
    taken: u32,
}

impl StreamReceiver {
    /// The next piece; None: the far side has finished. An error says that the call ended before
    /// that. Cancel safe.
    pub async fn recv(&mut self) -> Result<Option<Bytes>, RpcError> {
        match self.arrived.recv().await {
            Some(Piece::Bytes(bytes)) => {
                self.taken += cost(&bytes).unwrap_or_default();
                if self.taken >= self.core.window / 4 {
                    self.grant();
                }
                Ok(Some(bytes))
            }
            Some(Piece::End) => {
                self.arrived.close();
                Ok(None)
            }
            None if self.core.failure.get().is_some() => Err(self.core.failure()),
            None => Ok(None),
        }
    }

    fn grant(&mut self) {
        let credit = std::mem::take(&mut self.taken);
        // Counted before it is sent: the pieces that it allows may come at once.
        self.core.granted_again(credit);
        let header = CreditHeader { call: self.call, credit };
        let _ = self.writer.send(Kind::Credit, &header, Body::None, Flush::Now);
    }
}

impl fmt::Debug for StreamReceiver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StreamReceiver({})", self.call)
    }
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;

    use super::*;

    #[tokio::test]
    async fn a_small_piece_does_not_hold_the_buffer_that_it_came_in() {
        let writer = Arc::new(Writer::new(Box::pin(tokio::io::sink())));
        let (core, _sender, mut receiver) = StreamCore::open(Class::Control, 1, &writer);
        let mut buffer = BytesMut::from(&[7u8; 64 << 10][..]);
        core.arrived(buffer.split_to(1).freeze()).unwrap();
        let piece = receiver.recv().await.unwrap().unwrap();
        assert_eq!(piece, [7u8][..]);
        assert!(piece.is_unique());
        drop(buffer);
    }
}
