//! The bytes of one stream between a program and its reader, with absolute offsets.
//!
//! Invariants: an output byte is held until it is acknowledged; an input byte is accepted once. Both
//! hold at most [`STREAM_BUFFER_SIZE`], but for an output's last words ([`Output::push`]).
//!
//! Pure: knows no descriptor. Who reads and writes them is `program`.

use std::collections::VecDeque;

use bytes::Bytes;
use unum_proto::init::{STREAM_BUFFER_SIZE, STREAM_PIECE_SIZE_MAX};

/// Emptied buffers larger than this are given back, in bytes.
const IDLE_CAPACITY_MAX: usize = 16 << 10;

/// From a program to its reader.
#[derive(Default)]
pub struct Output {
    held: VecDeque<u8>,
    /// Offset of the first byte held.
    acked: u64,
    /// Offset of the next byte to send to whoever is attached.
    sent: u64,
    ended: bool,
    end_sent: bool,
    /// Its reader has closed it: nothing is missed by whoever comes next.
    unwanted: bool,
}

/// A piece to send.
#[derive(Debug, PartialEq, Eq)]
pub struct Piece {
    pub offset: u64,
    pub bytes: Bytes,
    pub eof: bool,
}

/// The offset is not among those held.
#[derive(Debug, PartialEq, Eq)]
pub struct NotHeld {
    pub oldest: u64,
    pub end: u64,
}

impl Output {
    /// How many bytes may be pushed now.
    pub fn room(&self) -> usize {
        if self.ended { 0 } else { STREAM_BUFFER_SIZE.saturating_sub(self.held.len()) }
    }

    /// Takes bytes over. More than `room` is allowed when the source would lose them otherwise (a
    /// terminal whose session ends).
    pub fn push(&mut self, bytes: &[u8]) {
        self.held.extend(bytes);
    }

    pub fn finish(&mut self) {
        self.ended = true;
    }

    pub fn held(&self) -> usize {
        self.held.len()
    }

    /// Drops all bytes held, as if they had been acknowledged.
    pub fn forget(&mut self) {
        self.ack(self.end());
    }

    /// The reader wants nothing more of it.
    pub fn close(&mut self) {
        self.forget();
        self.finish();
        self.unwanted = true;
    }

    /// Offset after the last byte produced.
    pub fn end(&self) -> u64 {
        self.acked + self.held.len() as u64
    }

    pub fn acked(&self) -> u64 {
        self.acked
    }

    /// Forgets the bytes below `offset`. One beyond the end acknowledges nothing: no honest reader
    /// has seen those bytes.
    pub fn ack(&mut self, offset: u64) {
        if offset > self.end() {
            return;
        }
        let count = offset.saturating_sub(self.acked) as usize;
        self.held.drain(..count);
        self.acked += count as u64;
        self.sent = self.sent.max(self.acked);
        if self.held.is_empty() && self.held.capacity() > IDLE_CAPACITY_MAX {
            self.held = VecDeque::new();
        }
    }

    /// A new reader starts at `offset`, or at the oldest byte. Of what its reader has closed it gets
    /// the end.
    pub fn start_at(&mut self, offset: Option<u64>) -> Result<u64, NotHeld> {
        let offset = offset.filter(|_| !self.unwanted).unwrap_or(self.acked);
        if offset < self.acked || offset > self.end() {
            return Err(NotHeld { oldest: self.acked, end: self.end() });
        }
        self.sent = offset;
        self.end_sent = false;
        Ok(offset)
    }

    /// The next piece for the reader, if there is one.
    pub fn take_piece(&mut self) -> Option<Piece> {
        let from = (self.sent - self.acked) as usize;
        let count = self.held.len().saturating_sub(from).min(STREAM_PIECE_SIZE_MAX);
        let eof = self.ended && from + count == self.held.len();
        if count == 0 && (!eof || self.end_sent) {
            return None;
        }
        let piece = Piece { offset: self.sent, bytes: copy(&self.held, from, count), eof };
        self.sent += count as u64;
        self.end_sent = eof;
        Some(piece)
    }
}

fn copy(from: &VecDeque<u8>, start: usize, count: usize) -> Bytes {
    let (first, second) = from.as_slices();
    let head = first.get(start..).unwrap_or_default();
    let head = head.get(..count).unwrap_or(head);
    let skip = start.saturating_sub(first.len());
    let tail = second.get(skip..skip + (count - head.len())).unwrap_or_default();
    let mut bytes = Vec::with_capacity(count);
    bytes.extend_from_slice(head);
    bytes.extend_from_slice(tail);
    bytes.into()
}

/// From its writer to a program.
#[derive(Default)]
pub struct Input {
    waiting: VecDeque<u8>,
    accepted: u64,
    /// Nothing follows what is waiting.
    ended: bool,
    closed: bool,
    told: Option<(u64, u64, bool)>,
}

/// A window that grew by less is not worth a message, in bytes.
const WINDOW_STEP: u64 = (STREAM_BUFFER_SIZE / 4) as u64;

impl Input {
    /// Takes what is new of `bytes`, which begin at `offset`, as far as the window goes.
    pub fn offer(&mut self, offset: u64, bytes: &[u8], eof: bool) {
        // Whatever came of it, the writer hears the state: a lost one would leave it waiting.
        self.told = None;
        if self.closed || self.ended || offset > self.accepted {
            return;
        }
        let known = usize::try_from(self.accepted - offset).unwrap_or(usize::MAX);
        let Some(new) = bytes.get(known..) else { return };
        let count = new.len().min(STREAM_BUFFER_SIZE.saturating_sub(self.waiting.len()));
        self.waiting.extend(new.iter().take(count));
        self.accepted += count as u64;
        self.ended = eof && count == new.len();
    }

    /// What is to be written next.
    pub fn waiting(&self) -> &[u8] {
        let (first, second) = self.waiting.as_slices();
        if first.is_empty() { second } else { first }
    }

    pub fn wrote(&mut self, count: usize) {
        self.waiting.drain(..count.min(self.waiting.len()));
        if self.waiting.is_empty() && self.waiting.capacity() > IDLE_CAPACITY_MAX {
            self.waiting = VecDeque::new();
        }
    }

    /// Everything was written and the end was announced.
    pub fn at_end(&self) -> bool {
        self.ended && self.waiting.is_empty()
    }

    /// The program takes nothing more.
    pub fn close(&mut self) {
        self.closed = true;
        self.waiting = VecDeque::new();
    }

    pub fn is_closed(&self) -> bool {
        self.closed
    }

    pub fn accepted(&self) -> u64 {
        self.accepted
    }

    /// Accepted, window's end, closed.
    pub fn state(&self) -> (u64, u64, bool) {
        let room = STREAM_BUFFER_SIZE.saturating_sub(self.waiting.len()) as u64;
        let shut = self.closed || self.ended;
        (self.accepted, self.accepted + if shut { 0 } else { room }, shut)
    }

    /// The state, if the writer does not know it well enough.
    pub fn news(&mut self) -> Option<(u64, u64, bool)> {
        let now = self.state();
        let stale = match self.told {
            None => true,
            Some((accepted, window, closed)) => {
                accepted != now.0 || closed != now.2 || window + WINDOW_STEP <= now.1
            }
        };
        if !stale {
            return None;
        }
        self.told = Some(now);
        Some(now)
    }

    /// A new writer knows nothing.
    pub fn forget_told(&mut self) {
        self.told = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn byte_at(offset: u64) -> u8 {
        (offset.wrapping_mul(0x9e37_79b9) >> 7) as u8
    }

    fn bytes_at(offset: u64, count: usize) -> Vec<u8> {
        (offset..offset + count as u64).map(byte_at).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        /// A reader that loses its connection at any moment and goes on where it stood gets each byte
        /// once and in order.
        #[test]
        fn output_survives_lost_readers(steps in prop::collection::vec((0u8..4, 0usize..200_000), 1..60)) {
            let mut output = Output::default();
            let (mut produced, mut read) = (0u64, 0u64);
            for (step, n) in steps {
                match step {
                    0 => {
                        let n = n.min(output.room());
                        output.push(&bytes_at(produced, n));
                        produced += n as u64;
                    }
                    1 => {
                        if let Some(piece) = output.take_piece() {
                            prop_assert_eq!(piece.offset, read);
                            prop_assert_eq!(&piece.bytes[..], &bytes_at(read, piece.bytes.len())[..]);
                            read += piece.bytes.len() as u64;
                        }
                    }
                    2 => output.ack(read - (n as u64).min(read - output.acked())),
                    _ => {
                        // What was on its way is lost; the reader knows only what it acknowledged
                        // and a random part beyond.
                        read = output.acked() + (n as u64).min(read - output.acked());
                        prop_assert_eq!(output.start_at(Some(read)), Ok(read));
                    }
                }
                prop_assert!(output.end() - output.acked() <= STREAM_BUFFER_SIZE as u64);
            }
            output.finish();
            let mut eof = false;
            while let Some(piece) = output.take_piece() {
                prop_assert_eq!(piece.offset, read);
                prop_assert_eq!(&piece.bytes[..], &bytes_at(read, piece.bytes.len())[..]);
                read += piece.bytes.len() as u64;
                prop_assert!(!eof);
                eof = piece.eof;
            }
            prop_assert!(eof);
            prop_assert_eq!(read, produced);
        }

        /// A writer that sends again from anywhere at or below what was accepted, with gaps and excess
        /// thrown in, has each byte taken once and in order.
        #[test]
        fn input_takes_each_byte_once(steps in prop::collection::vec((0u64..300_000, 0usize..300_000, 0usize..300_000), 1..60)) {
            let mut input = Input::default();
            let mut written = 0u64;
            for (back, count, write) in steps {
                let offset = (input.accepted() + 10).saturating_sub(back);
                input.offer(offset, &bytes_at(offset, count), false);
                let (accepted, window, _) = input.news().unwrap_or_default();
                prop_assert!(accepted <= window);
                let piece = input.waiting();
                let piece = piece.get(..write).unwrap_or(piece).to_vec();
                prop_assert_eq!(&piece, &bytes_at(written, piece.len()));
                written += piece.len() as u64;
                input.wrote(piece.len());
                prop_assert!(input.accepted() - written <= STREAM_BUFFER_SIZE as u64);
            }
        }
    }

    #[test]
    fn the_end_of_input_counts_only_with_all_its_bytes() {
        let mut input = Input::default();
        input.offer(0, &vec![1; STREAM_BUFFER_SIZE + 1], true);
        assert_eq!(input.state(), (STREAM_BUFFER_SIZE as u64, STREAM_BUFFER_SIZE as u64, false));
        input.wrote(1);
        input.offer(STREAM_BUFFER_SIZE as u64, &[1], true);
        assert!(!input.at_end());
        assert!(input.state().2);
        while !input.waiting().is_empty() {
            let n = input.waiting().len();
            input.wrote(n);
        }
        assert!(input.at_end());
    }

    #[test]
    fn acknowledged_bytes_are_gone_and_unknown_ones_cannot_be_acknowledged() {
        let mut output = Output::default();
        output.push(b"hello");
        output.ack(9);
        assert_eq!(output.acked(), 0);
        output.ack(3);
        assert_eq!(output.start_at(Some(2)), Err(NotHeld { oldest: 3, end: 5 }));
        assert_eq!(output.start_at(None), Ok(3));
    }

    #[test]
    fn whoever_closed_an_output_may_come_again_from_where_it_was() {
        let mut output = Output::default();
        output.push(b"hello");
        output.ack(1);
        output.close();
        assert_eq!(output.start_at(Some(1)), Ok(5));
        let end = Piece { offset: 5, bytes: Bytes::new(), eof: true };
        assert_eq!(output.take_piece(), Some(end));
    }
}
