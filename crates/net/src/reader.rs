//! The reading half of a connection: bytes in, frames out.

use std::{io, pin::Pin};

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::{
    frame::{Frame, FrameError, decode, missing},
    limits::READ_CHUNK_SIZE,
};

pub(crate) type Input = Pin<Box<dyn AsyncRead + Send>>;

pub(crate) struct FrameReader {
    input: Input,
    buffer: BytesMut,
}

impl FrameReader {
    pub(crate) fn new(input: Input) -> Self {
        FrameReader { input, buffer: BytesMut::with_capacity(READ_CHUNK_SIZE) }
    }

    /// The next frame that has arrived already.
    pub(crate) fn next_arrived(&mut self) -> Result<Option<Frame>, FrameError> {
        let before = self.buffer.len();
        let frame = decode(&mut self.buffer)?;
        if before - self.buffer.len() > READ_CHUNK_SIZE {
            self.leave_buffer();
        }
        Ok(frame)
    }

    /// What follows a large frame goes on in a buffer of its own, so that no small frame holds the
    /// large one's.
    fn leave_buffer(&mut self) {
        let mut rest = BytesMut::with_capacity(READ_CHUNK_SIZE.max(self.buffer.len()));
        rest.extend_from_slice(&self.buffer);
        self.buffer = rest;
    }

    /// Reads what there is. False: the peer has closed. Cancel safe.
    pub(crate) async fn fill(&mut self) -> io::Result<bool> {
        // The buffer grows with what has arrived. What a frame's length promises counts when a good piece of the
        // frame is there: then all of it gets its place at once, and nothing is moved again.
        let wanted = match missing(&self.buffer) {
            Some(missing) if self.buffer.len() >= READ_CHUNK_SIZE / 2 => missing,
            Some(_) | None => READ_CHUNK_SIZE / 4,
        };
        if self.buffer.capacity() - self.buffer.len() < wanted {
            self.buffer.reserve(wanted.max(READ_CHUNK_SIZE));
        }
        Ok(self.input.read_buf(&mut self.buffer).await? > 0)
    }
}

#[cfg(test)]
mod tests {
    use unum_proto::rpc::{CallHeader, CastHeader};

    use super::*;
    use crate::frame::{Kind, encode_head};

    #[tokio::test]
    async fn a_frame_gets_its_place_when_a_piece_of_it_is_there() {
        const LARGE: usize = 3 << 20;
        let mut bytes = BytesMut::new();
        encode_head(&mut bytes, Kind::Data, &CallHeader { call: 1 }, LARGE);
        let head = bytes.len();
        bytes.resize(head + LARGE, 0);
        let (mut far, near) = tokio::io::duplex(bytes.len());
        let mut reader = FrameReader::new(Box::pin(near));
        let (piece, rest) = bytes.split_at(READ_CHUNK_SIZE / 4);
        tokio::io::AsyncWriteExt::write_all(&mut far, piece).await.unwrap();
        reader.fill().await.unwrap();
        assert!(reader.buffer.capacity() <= 2 * READ_CHUNK_SIZE, "a promise alone takes room");
        tokio::io::AsyncWriteExt::write_all(&mut far, rest).await.unwrap();
        let mut places = Vec::new();
        let frame = loop {
            reader.fill().await.unwrap();
            places.push(reader.buffer.as_ptr());
            if let Some(frame) = reader.next_arrived().unwrap() {
                break frame;
            }
        };
        assert!(matches!(frame, Frame::Data(1, body) if body.len() == LARGE));
        places.dedup();
        assert!(places.len() <= 3, "it was moved {} times", places.len() - 1);
    }

    #[tokio::test]
    async fn what_follows_a_large_frame_does_not_hold_its_buffer() {
        const LARGE: usize = 1 << 20;
        let mut bytes = BytesMut::new();
        let header = CastHeader { method: "m".into(), ..Default::default() };
        encode_head(&mut bytes, Kind::Cast, &header, LARGE);
        bytes.extend_from_slice(&vec![0; LARGE]);
        encode_head(&mut bytes, Kind::Data, &CallHeader { call: 1 }, 1);
        bytes.extend_from_slice(b"x");
        let mut reader = FrameReader::new(Box::pin(std::io::Cursor::new(bytes)));
        let mut frames = Vec::new();
        while reader.fill().await.unwrap() {
            while let Some(frame) = reader.next_arrived().unwrap() {
                frames.push(frame);
            }
        }
        let [Frame::Cast(_, large), Frame::Data(1, small)] = frames.as_slice() else {
            panic!("{} frames", frames.len());
        };
        assert_eq!((large.len(), small.len()), (LARGE, 1));
        assert!(large.is_unique());
    }
}
