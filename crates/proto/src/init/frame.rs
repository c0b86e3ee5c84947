//! Frames: a 4-byte big-endian length and the bytes of one message.

use bytes::{Buf, BufMut, BytesMut};
use prost::Message;

/// Longest message in bytes, either way. Arguments and environment must fit.
pub const FRAME_SIZE_MAX: usize = 4 << 20;

/// Bytes on the socket that are not this protocol. The connection is of no further use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FrameError {
    TooLong { size: usize },
    Malformed { why: String },
}

impl std::fmt::Display for FrameError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            FrameError::TooLong { size } => {
                write!(f, "a message of {size} bytes is longer than the limit of {FRAME_SIZE_MAX}")
            }
            FrameError::Malformed { why } => write!(f, "not a message of unum-init: {why}"),
        }
    }
}

impl std::error::Error for FrameError {}

/// Appends the frame of `message` to `to`.
pub fn encode(message: &impl Message, to: &mut BytesMut) -> Result<(), FrameError> {
    let size = message.encoded_len();
    if size > FRAME_SIZE_MAX {
        return Err(FrameError::TooLong { size });
    }
    to.reserve(4 + size);
    to.put_u32(size as u32);
    message.encode(to).map_err(|e| FrameError::Malformed { why: e.to_string() })
}

/// Cuts received bytes into messages. Holds at most one frame more than what was pushed.
#[derive(Default)]
pub struct Decoder {
    bytes: BytesMut,
}

impl Decoder {
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole message, or `None` until more bytes are pushed.
    pub fn take<M: Message + Default>(&mut self) -> Result<Option<M>, FrameError> {
        let Some(head) = self.bytes.first_chunk::<4>() else { return Ok(None) };
        let size = u32::from_be_bytes(*head) as usize;
        if size > FRAME_SIZE_MAX {
            return Err(FrameError::TooLong { size });
        }
        if self.bytes.len() < 4 + size {
            return Ok(None);
        }
        self.bytes.advance(4);
        let frame = self.bytes.split_to(size).freeze();
        M::decode(frame).map(Some).map_err(|e| FrameError::Malformed { why: e.to_string() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::init::*;
    use bytes::Bytes;
    use proptest::prelude::*;

    fn taken(decoder: &mut Decoder) -> Result<Vec<Request>, FrameError> {
        let mut all = Vec::new();
        while let Some(request) = decoder.take()? {
            all.push(request);
        }
        Ok(all)
    }

    fn signal(id: u64, pid: u32) -> Request {
        let signal = Signal { pid, target: 2, signal: 15, uid: 1000 };
        Request { id, ask: Some(Ask::Signal(signal)), user: None }
    }

    #[test]
    fn an_oversized_frame_is_refused_before_it_is_read() {
        let mut decoder = Decoder::default();
        decoder.push(&(FRAME_SIZE_MAX as u32 + 1).to_be_bytes());
        let size = FRAME_SIZE_MAX + 1;
        assert_eq!(taken(&mut decoder), Err(FrameError::TooLong { size }));
        let note = Bytes::from(vec![0; size]);
        let keep = Keep { name: String::new(), note, descriptor: false, ledger: Bytes::new() };
        let request = Request::from(Ask::Keep(keep));
        let refused = encode(&request, &mut BytesMut::new());
        assert!(matches!(refused, Err(FrameError::TooLong { .. })));
    }

    #[test]
    fn a_request_of_a_newer_client_is_seen_as_unknown() {
        // Field 99, a message of no bytes, beside id 7.
        let newer = [0, 0, 0, 5, 8, 7, 0x9a, 6, 0];
        let mut decoder = Decoder::default();
        decoder.push(&newer);
        assert_eq!(taken(&mut decoder), Ok(vec![Request { id: 7, ..Request::default() }]));
    }

    proptest! {
        #[test]
        fn any_cut_of_the_bytes_gives_the_same_messages(
            ids in prop::collection::vec((any::<u64>(), any::<u32>()), 0..20),
            cut in 1usize..50,
        ) {
            let requests: Vec<_> = ids.into_iter().map(|(id, pid)| signal(id, pid)).collect();
            let mut bytes = BytesMut::new();
            for request in &requests {
                prop_assert!(encode(request, &mut bytes).is_ok());
            }
            let mut decoder = Decoder::default();
            let mut got = Vec::new();
            for piece in bytes.chunks(cut) {
                decoder.push(piece);
                got.extend(taken(&mut decoder).unwrap_or_default());
            }
            prop_assert_eq!(got, requests);
        }

        #[test]
        fn no_bytes_break_the_decoder(mut bytes in prop::collection::vec(any::<u8>(), 0..200), small: bool) {
            if small && let Some(head) = bytes.first_chunk_mut::<3>() {
                *head = [0; 3];
            }
            let mut decoder = Decoder::default();
            decoder.push(&bytes);
            let _ = taken(&mut decoder);
        }

        #[test]
        fn a_damaged_message_is_an_error_or_another_message(
            pid: u32, at in 4usize..20, flip in 1u8..,
        ) {
            let mut bytes = BytesMut::new();
            prop_assert!(encode(&signal(1, pid), &mut bytes).is_ok());
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= flip;
            }
            let mut decoder = Decoder::default();
            decoder.push(&bytes);
            let _ = taken(&mut decoder);
        }
    }
}
