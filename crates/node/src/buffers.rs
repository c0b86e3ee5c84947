//! Large buffers that are used again: fresh memory costs the kernel a fault for each of its pages, which is
//! more than it takes to fill them.
//!
//! Invariant: no more than the named number of unused buffers is kept.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

/// Less than this is not worth a buffer of its own, in bytes.
const LENT_BYTES_MIN: usize = 64 << 10;

/// Buffers of one size. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Buffers {
    size: usize,
    idle_max: usize,
    /// Protects the buffers that nobody uses.
    idle: Arc<Mutex<Vec<Vec<u8>>>>,
}

/// A buffer on loan; it returns when it is dropped.
struct Lent {
    content: Vec<u8>,
    len: usize,
    from: Buffers,
}

impl Buffers {
    /// At most `idle_max` unused buffers of `size` bytes are kept.
    pub fn new(size: usize, idle_max: usize) -> Self {
        Self { size, idle_max, idle: Arc::default() }
    }

    /// `len` bytes that `fill` has put there. It sees what was there before.
    pub fn filled<E>(
        &self,
        len: usize,
        fill: impl FnOnce(&mut [u8]) -> Result<(), E>,
    ) -> Result<Bytes, E> {
        if !(LENT_BYTES_MIN..=self.size).contains(&len) {
            let mut content = vec![0; len];
            fill(&mut content)?;
            return Ok(content.into());
        }
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let content = idle.unwrap_or_else(|| vec![0; self.size]);
        let mut lent = Lent { content, len, from: self.clone() };
        fill(&mut lent.content[..len])?;
        Ok(Bytes::from_owner(lent))
    }
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.content[..self.len]
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let mut idle = self.from.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < self.from.idle_max {
            idle.push(std::mem::take(&mut self.content));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(buffers: &Buffers, len: usize, byte: u8) -> Bytes {
        let fill = |space: &mut [u8]| {
            space.fill(byte);
            Ok::<_, ()>(())
        };
        buffers.filled(len, fill).unwrap()
    }

    #[test]
    fn what_is_given_back_is_used_again_and_never_while_it_is_held() {
        let buffers = Buffers::new(1 << 20, 1);
        let first = of(&buffers, 1 << 20, 1);
        let place = first.as_ptr();
        let second = of(&buffers, 100_000, 2);
        assert_ne!(second.as_ptr(), place);
        let part = first.slice(7..9);
        drop(first);
        assert_ne!(of(&buffers, 100_000, 3).as_ptr(), place, "a part of it is held");
        assert_eq!(&part[..], [1, 1]);
        assert_eq!((second.len(), second.iter().all(|byte| *byte == 2)), (100_000, true));
        drop((part, second));
        assert_eq!(buffers.idle.lock().unwrap().len(), 1);
        assert_eq!(of(&buffers, 10, 4).len(), 10);
        assert_eq!(of(&buffers, (1 << 20) + 1, 5).len(), (1 << 20) + 1);
    }

    #[test]
    fn a_failure_gives_the_buffer_back() {
        let buffers = Buffers::new(1 << 20, 4);
        assert_eq!(buffers.filled(1 << 20, |_| Err::<(), _>("no")), Err("no"));
        assert_eq!(buffers.idle.lock().unwrap().len(), 1);
    }
}
