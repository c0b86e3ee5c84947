//! The reading half of a connection: bytes in, frames out.

use std::{io, pin::Pin};

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::{
    frame::{Frame, FrameError, decode},
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
        decode(&mut self.buffer)
    }

    /// Reads what there is. False: the peer has closed. Cancel safe.
    pub(crate) async fn fill(&mut self) -> io::Result<bool> {
        // The buffer grows with what has arrived, never with what a frame's length promises.
        if self.buffer.capacity() - self.buffer.len() < READ_CHUNK_SIZE / 4 {
            self.buffer.reserve(READ_CHUNK_SIZE);
        }
        Ok(self.input.read_buf(&mut self.buffer).await? > 0)
    }
}
