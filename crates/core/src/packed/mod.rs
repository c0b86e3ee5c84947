//! An ordered map that takes little memory: entries stand in blocks, most of them packed to bytes, in which an entry
//! says only how it differs from the one before. Cloning is cheap: blocks are shared until changed.
//!
//! Blocks that are changed are opened for it, as values, and packed again when many others were opened since; so what
//! is changed again and again is as quick as in any map, and memory is bounded by what is packed and a constant.
//! Looking at a packed block unpacks what stands before the wanted entry, and leaves it as it is.
//!
//! Invariants: a block has at least one entry and at most [`ENTRIES_MAX`]; each is found by a key that is not larger
//! than its first one and larger than the last one of the block before; `opened` names every open block.

mod block;
pub mod bytes;
mod index;
#[cfg(test)]
mod tests;

use std::borrow::{Borrow, Cow};
use std::collections::VecDeque;
use std::fmt;

pub use block::ENTRIES_MAX;
use block::{Block, Entries, find};
use bytes::{Reader, Writer};
use index::Index;

/// How values of one kind are packed.
pub trait Packing: Clone {
    type Key: Ord + Clone + fmt::Debug;
    /// What a packed value refers to: something of those before it in its block.
    type Base: Default;
    /// How many blocks of a map are open at most.
    const OPEN_MAX: usize;

    fn pack_key(key: &Self::Key, before: Option<&Self::Key>, to: &mut Writer);
    fn unpack_key(before: Option<&Self::Key>, from: &mut Reader<'_>) -> Self::Key;

    /// False: nothing was written, and `base` is as it was; the value is kept as it is.
    fn pack(&self, key: &Self::Key, base: &mut Self::Base, to: &mut Writer) -> bool;
    /// Must be what was packed, and leave `base` as packing it did.
    fn unpack(key: &Self::Key, base: &mut Self::Base, from: &mut Reader<'_>) -> Self;

    /// Packs what is in the value, before its block is packed.
    fn pack_within(&mut self) {}
}

pub struct PackedMap<V: Packing> {
    index: Index<V>,
    len: usize,
    /// In the order in which they were opened, some more than once, and some that are not open any more.
    opened: VecDeque<V::Key>,
}

impl<V: Packing> Clone for PackedMap<V> {
    fn clone(&self) -> Self {
        Self { index: self.index.clone(), len: self.len, opened: self.opened.clone() }
    }
}

impl<V: Packing> Default for PackedMap<V> {
    fn default() -> Self {
        Self { index: Index::default(), len: 0, opened: VecDeque::new() }
    }
}

impl<V: Packing> fmt::Debug for PackedMap<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PackedMap({} entries)", self.len)
    }
}

impl<V: Packing> PackedMap<V> {
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Borrowed if it is in an open block.
    pub fn get<Q>(&self, key: &Q) -> Option<Cow<'_, V>>
    where
        V::Key: Borrow<Q>,
        Q: Ord + ?Sized,
    {
        self.index.until(key)?.1.get(key)
    }

    pub fn contains<Q>(&self, key: &Q) -> bool
    where
        V::Key: Borrow<Q>,
        Q: Ord + ?Sized,
    {
        self.get(key).is_some()
    }

    /// The value, to be changed; its block is open from now on.
    pub fn get_mut<Q>(&mut self, key: &Q) -> Option<&mut V>
    where
        V::Key: Borrow<Q>,
        Q: Ord + ?Sized,
    {
        let (place, block) = self.index.until(key)?;
        if !block.is_open() {
            block.get(key)?;
            let place = place.clone();
            self.note_opened(place);
        }
        let entries = self.index.until_mut(key)?.1.open();
        let at = find(entries, key).ok()?;
        entries.get_mut(at).map(|(_, value)| value)
    }

    /// Returns what was there.
    pub fn insert(&mut self, key: V::Key, value: V) -> Option<V> {
        let Some((place, block)) = self.index.until(&key) else {
            return self.insert_first(key, value);
        };
        let (mut place, was_open) = (place.clone(), block.is_open());
        if key < place {
            // Only of the first block the key may be larger than what comes into it.
            if let Some(block) = self.index.remove(&place) {
                self.index.insert(key.clone(), block);
            }
            place = key.clone();
            self.note_opened(place.clone());
        } else if !was_open {
            self.note_opened(place.clone());
        }
        let (_, block) = self.index.until_mut(&key)?;
        let entries = block.open();
        match find(entries, &key) {
            Ok(at) => {
                let (_, present) = entries.get_mut(at)?;
                Some(std::mem::replace(present, value))
            }
            Err(at) => {
                entries.insert(at, (key, value));
                self.len += 1;
                let over = split(entries, at);
                if let Some((upper, entries)) = over {
                    self.index.insert(upper.clone(), Block::new(entries));
                    self.note_opened(upper);
                }
                None
            }
        }
    }

    fn insert_first(&mut self, key: V::Key, value: V) -> Option<V> {
        self.index.insert(key.clone(), Block::new(vec![(key.clone(), value)]));
        self.len = 1;
        self.note_opened(key);
        None
    }

    pub fn remove<Q>(&mut self, key: &Q) -> Option<V>
    where
        V::Key: Borrow<Q>,
        Q: Ord + ?Sized,
    {
        self.get_mut(key)?;
        let (place, block) = self.index.until_mut(key)?;
        let entries = block.open();
        let at = find(entries, key).ok()?;
        let (_, value) = entries.remove(at);
        self.len -= 1;
        if entries.is_empty() {
            let place = place.clone();
            self.index.remove(&place);
        }
        Some(value)
    }

    /// All entries in the order of their keys, lazily, as values of their own.
    pub fn iter(&self) -> impl Iterator<Item = (V::Key, V)> {
        self.index.blocks().flat_map(|block| block.entries())
    }

    pub fn values(&self) -> impl Iterator<Item = V> {
        self.iter().map(|(_, value)| value)
    }

    /// Those from a key on.
    pub fn iter_from(&self, from: V::Key) -> impl Iterator<Item = (V::Key, V)> {
        let entries = self.index.blocks_from(&from).flat_map(|block| block.entries());
        entries.skip_while(move |(key, _)| *key < from)
    }

    /// Packs all blocks.
    pub fn pack(&mut self) {
        while let Some(place) = self.opened.pop_front() {
            self.pack_at(&place);
        }
        self.opened = VecDeque::new();
    }

    fn note_opened(&mut self, place: V::Key) {
        self.opened.push_back(place);
        while self.opened.len() > V::OPEN_MAX
            && let Some(place) = self.opened.pop_front()
        {
            self.pack_at(&place);
        }
    }

    fn pack_at(&mut self, place: &V::Key) {
        if self.index.get(place).is_some_and(Block::is_open)
            && let Some(block) = self.index.get_mut(place)
        {
            block.pack();
        }
    }
}

impl<V: Packing + PartialEq> PackedMap<V> {
    /// What differs in another map: each key with what is here and what is there. Blocks that both share are not looked at.
    pub fn differences<'a>(
        &'a self,
        other: &'a Self,
    ) -> impl Iterator<Item = (V::Key, Option<V>, Option<V>)> + 'a {
        let (here, there) = self.index.differences(&other.index);
        let mut here = here.into_iter().flat_map(|block| block.entries()).peekable();
        let mut there = there.into_iter().flat_map(|block| block.entries()).peekable();
        let both = std::iter::from_fn(move || {
            let next = match (here.peek(), there.peek()) {
                (Some((one, _)), Some((other, _))) => one.cmp(other),
                (Some(_), None) => std::cmp::Ordering::Less,
                (None, _) => std::cmp::Ordering::Greater,
            };
            let one = if next.is_le() { here.next() } else { None };
            let other = if next.is_ge() { there.next() } else { None };
            let key = one.as_ref().or(other.as_ref()).map(|(key, _)| key.clone())?;
            Some((key, one.map(|(_, value)| value), other.map(|(_, value)| value)))
        });
        both.filter(|(_, one, other)| one != other)
    }
}

#[cfg(test)]
impl<V: Packing> PackedMap<V> {
    /// How many blocks are not shared with another map.
    pub fn blocks_beyond(&self, other: &Self) -> usize {
        self.index.differences(&other.index).0.len()
    }
}

/// Looks at many entries of a map. Who goes from one to those near it unpacks each block once.
#[derive(Debug)]
pub struct Finder<'a, V: Packing> {
    map: &'a PackedMap<V>,
    near: Entries<V>,
}

impl<'a, V: Packing> Finder<'a, V> {
    pub fn new(map: &'a PackedMap<V>) -> Self {
        Self { map, near: Entries::<V>::new() }
    }

    pub fn get(&mut self, key: &V::Key) -> Option<&V> {
        let spans = |near: &Entries<V>| {
            let ends = near.first().zip(near.last());
            ends.is_some_and(|((first, _), (last, _))| (first..=last).contains(&key))
        };
        if !spans(&self.near) {
            self.near = self.map.index.until(key)?.1.entries();
        }
        let at = find(&self.near, key).ok()?;
        self.near.get(at).map(|(_, value)| value)
    }
}

/// Parts a block that has become too large. What grows at its end leaves full blocks behind.
fn split<V: Packing>(entries: &mut Entries<V>, inserted: usize) -> Option<(V::Key, Entries<V>)> {
    if entries.len() <= ENTRIES_MAX {
        return None;
    }
    let at_end = inserted + 1 == entries.len();
    let upper = entries.split_off(if at_end { inserted } else { entries.len() / 2 });
    let place = upper.first()?.0.clone();
    Some((place, upper))
}
