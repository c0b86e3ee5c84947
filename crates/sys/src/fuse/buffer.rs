//! Read buffers: large, reused, lent to payloads without a copy.
//!
//! Every page of a buffer is written before its first use. If a page were missing while the kernel
//! copies a request into it, a SIGKILL at that moment would fail the copy, and with it the caller's
//! request, by EIO; with the pages present the request is either delivered or stays queued.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

/// Payloads from this size on keep the buffer they were read into; smaller messages are copied.
const LEND_MIN_BYTES: usize = 64 << 10;

#[derive(Debug)]
pub(super) struct Pool {
    buffer_size: usize,
    idle_max: usize,
    /// Protects the buffers that nobody uses.
    idle: Mutex<Vec<Vec<u8>>>,
}

impl Pool {
    /// At most `idle_max` unused buffers of `buffer_size` bytes are kept.
    pub fn new(buffer_size: usize, idle_max: usize) -> Arc<Pool> {
        Arc::new(Pool { buffer_size, idle_max, idle: Mutex::new(Vec::new()) })
    }

    fn take(&self) -> Vec<u8> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        // Not zero: zeroed memory comes from the system without its pages.
        idle.unwrap_or_else(|| vec![1; self.buffer_size])
    }

    fn give(&self, buffer: Vec<u8>) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < self.idle_max {
            idle.push(buffer);
        }
    }
}

/// A buffer on loan; it returns to its pool when dropped.
pub(super) struct Buffer {
    content: Vec<u8>,
    pool: Arc<Pool>,
}

impl Buffer {
    pub fn from_pool(pool: &Arc<Pool>) -> Buffer {
        Buffer { content: pool.take(), pool: pool.clone() }
    }

    pub fn space(&mut self) -> &mut [u8] {
        &mut self.content
    }

    /// The first `len` bytes as an owned message. A large one takes the buffer along, and this
    /// becomes a fresh one.
    pub fn message(&mut self, len: usize) -> Bytes {
        let len = len.min(self.content.len());
        if len < LEND_MIN_BYTES {
            return Bytes::copy_from_slice(&self.content[..len]);
        }
        let full = std::mem::replace(self, Buffer::from_pool(&self.pool.clone()));
        Bytes::from_owner(full).slice(..len)
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.content
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.pool.give(std::mem::take(&mut self.content));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_payloads_borrow_and_return_their_buffer() {
        let pool = Pool::new(LEND_MIN_BYTES * 2, 2);
        let mut buffer = Buffer::from_pool(&pool);
        buffer.space()[..3].copy_from_slice(b"abc");
        let first = buffer.space().as_ptr();
        let small = buffer.message(3);
        assert_eq!((&small[..], buffer.space().as_ptr()), (&b"abc"[..], first));

        let large = buffer.message(LEND_MIN_BYTES);
        assert_eq!((large.as_ptr(), large.len()), (first, LEND_MIN_BYTES));
        assert_ne!(buffer.space().as_ptr(), first);
        let slice = large.slice(5..);
        drop(large);
        assert_eq!(pool.idle.lock().unwrap().len(), 0);
        drop(slice);
        assert_eq!(pool.idle.lock().unwrap()[0].as_ptr(), first);
    }

    #[test]
    fn no_more_idle_buffers_than_the_limit() {
        let pool = Pool::new(16, 1);
        let (one, two) = (Buffer::from_pool(&pool), Buffer::from_pool(&pool));
        drop((one, two));
        assert_eq!(pool.idle.lock().unwrap().len(), 1);
    }
}
