//! The blocks of a map by their places. Most maps are directories with few names: a single block needs no tree.

use std::borrow::Borrow;
use std::ops::Bound;

use imbl::OrdMap;
use imbl::ordmap::DiffItem;

use super::Packing;
use super::block::Block;

#[derive(Debug, Default)]
pub(super) enum Index<V: Packing> {
    #[default]
    Empty,
    One(V::Key, Block<V>),
    Many(OrdMap<V::Key, Block<V>>),
}

impl<V: Packing> Clone for Index<V> {
    fn clone(&self) -> Self {
        match self {
            Self::Empty => Self::Empty,
            Self::One(place, block) => Self::One(place.clone(), block.clone()),
            Self::Many(blocks) => Self::Many(blocks.clone()),
        }
    }
}

impl<V: Packing> Index<V> {
    /// The block that a key is in, if it is in any.
    pub fn until<Q>(&self, key: &Q) -> Option<(&V::Key, &Block<V>)>
    where
        V::Key: Borrow<Q>,
        Q: Ord + ?Sized,
    {
        match self {
            Self::Empty => None,
            Self::One(place, block) => Some((place, block)),
            Self::Many(blocks) => {
                let first = || blocks.get_min().map(|(place, block)| (place, block));
                blocks.get_prev(key).or_else(first)
            }
        }
    }

    pub fn until_mut<Q>(&mut self, key: &Q) -> Option<(V::Key, &mut Block<V>)>
    where
        V::Key: Borrow<Q>,
        Q: Ord + ?Sized,
    {
        let place = self.until(key)?.0.clone();
        let block = self.get_mut(&place)?;
        Some((place, block))
    }

    pub fn get(&self, place: &V::Key) -> Option<&Block<V>> {
        match self {
            Self::Empty => None,
            Self::One(only, block) => (only == place).then_some(block),
            Self::Many(blocks) => blocks.get(place),
        }
    }

    pub fn get_mut(&mut self, place: &V::Key) -> Option<&mut Block<V>> {
        match self {
            Self::Empty => None,
            Self::One(only, block) => (only == place).then_some(block),
            Self::Many(blocks) => blocks.get_mut(place),
        }
    }

    pub fn insert(&mut self, place: V::Key, block: Block<V>) {
        *self = match std::mem::take(self) {
            Self::Empty => Self::One(place, block),
            Self::One(only, present) => {
                Self::Many([(only, present), (place, block)].into_iter().collect())
            }
            Self::Many(mut blocks) => {
                blocks.insert(place, block);
                Self::Many(blocks)
            }
        };
    }

    pub fn remove(&mut self, place: &V::Key) -> Option<Block<V>> {
        let (left, removed) = match std::mem::take(self) {
            Self::One(only, block) if only == *place => (Self::Empty, Some(block)),
            Self::Many(mut blocks) => {
                let removed = blocks.remove(place);
                let left = if blocks.is_empty() { Self::Empty } else { Self::Many(blocks) };
                (left, removed)
            }
            same => (same, None),
        };
        *self = left;
        removed
    }

    pub fn blocks(&self) -> impl Iterator<Item = &Block<V>> {
        self.one().into_iter().chain(self.many().into_iter().flat_map(OrdMap::values))
    }

    /// Those in which there can be keys from this one on.
    pub fn blocks_from(&self, from: &V::Key) -> impl Iterator<Item = &Block<V>> + use<'_, V> {
        let place = self.until(from).map(|(place, _)| place);
        let many = self.many().zip(place).into_iter().flat_map(|(blocks, place)| {
            blocks.range::<_, V::Key>((Bound::Included(place), Bound::Unbounded))
        });
        self.one().into_iter().chain(many.map(|(_, block)| block))
    }

    fn one(&self) -> Option<&Block<V>> {
        match self {
            Self::One(_, block) => Some(block),
            Self::Empty | Self::Many(_) => None,
        }
    }

    fn many(&self) -> Option<&OrdMap<V::Key, Block<V>>> {
        match self {
            Self::Many(blocks) => Some(blocks),
            Self::Empty | Self::One(..) => None,
        }
    }

    /// The blocks that another index does not have, and those that it has beyond these, both in order.
    pub fn differences<'a>(&'a self, other: &'a Self) -> (Vec<&'a Block<V>>, Vec<&'a Block<V>>) {
        if let (Self::Many(one), Self::Many(other)) = (self, other) {
            let (mut here, mut there) = (Vec::new(), Vec::new());
            for item in one.diff(other) {
                match item {
                    DiffItem::Add(_, block) => there.push(block),
                    DiffItem::Remove(_, block) => here.push(block),
                    DiffItem::Update { old: (_, old), new: (_, new) } => {
                        here.push(old);
                        there.push(new);
                    }
                }
            }
            return (here, there);
        }
        let has = |index: &Self, block: &Block<V>| index.blocks().any(|other| other == block);
        let lacks = |of: &'a Self, index: &'a Self| {
            of.blocks().filter(|block| !has(index, block)).collect::<Vec<_>>()
        };
        // One of them has one block at most.
        (lacks(self, other), lacks(other, self))
    }
}
