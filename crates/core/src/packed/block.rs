//! Some entries that follow each other: *open* as values, or *packed* as bytes.

use std::borrow::{Borrow, Cow};
use std::sync::Arc;

use super::Packing;
use super::bytes::{Reader, Writer};

/// As many entries as a block has at most. Development builds have smaller ones, so that small tests have many.
pub const ENTRIES_MAX: usize = if cfg!(debug_assertions) { 6 } else { 32 };

pub(super) type Entries<V> = Vec<(<V as Packing>::Key, V)>;

#[derive(Debug)]
pub(super) enum Block<V: Packing> {
    Open(Arc<Entries<V>>),
    Packed(Arc<PackedEntries<V>>),
}

impl<V: Packing> Clone for Block<V> {
    fn clone(&self) -> Self {
        match self {
            Self::Open(entries) => Self::Open(entries.clone()),
            Self::Packed(packed) => Self::Packed(packed.clone()),
        }
    }
}

/// Whether it is the very same block; nobody looks at the entries.
impl<V: Packing> PartialEq for Block<V> {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Open(one), Self::Open(other)) => Arc::ptr_eq(one, other),
            (Self::Packed(one), Self::Packed(other)) => Arc::ptr_eq(one, other),
            (Self::Open(_), Self::Packed(_)) | (Self::Packed(_), Self::Open(_)) => false,
        }
    }
}

impl<V: Packing> Block<V> {
    pub fn new(entries: Entries<V>) -> Self {
        Self::Open(Arc::new(entries))
    }

    pub fn get<Q>(&self, key: &Q) -> Option<Cow<'_, V>>
    where
        V::Key: Borrow<Q>,
        Q: Ord + ?Sized,
    {
        match self {
            Self::Open(entries) => {
                let at = find(entries, key).ok()?;
                entries.get(at).map(|(_, value)| Cow::Borrowed(value))
            }
            Self::Packed(packed) => {
                let found = packed.walk().find(|(other, _)| other.borrow() >= key);
                found.filter(|(other, _)| other.borrow() == key).map(|(_, value)| Cow::Owned(value))
            }
        }
    }

    /// All entries, as values of their own.
    pub fn entries(&self) -> Entries<V> {
        match self {
            Self::Open(entries) => entries.as_ref().clone(),
            Self::Packed(packed) => packed.walk().collect(),
        }
    }

    /// The entries, to be changed. They stay open until packed.
    pub fn open(&mut self) -> &mut Entries<V> {
        let entries = match self {
            Self::Open(entries) => std::mem::take(entries),
            Self::Packed(packed) => Arc::new(packed.walk().collect()),
        };
        *self = Self::Open(entries);
        let Self::Open(entries) = self else { unreachable!("it has just been opened") };
        Arc::make_mut(entries)
    }

    pub fn is_open(&self) -> bool {
        matches!(self, Self::Open(_))
    }

    pub fn pack(&mut self) {
        if let Self::Open(entries) = self {
            let entries = Arc::make_mut(entries);
            entries.iter_mut().for_each(|(_, value)| value.pack_within());
            *self = Self::Packed(Arc::new(PackedEntries::new(entries)));
        }
    }
}

/// Where a key is, or would be.
pub(super) fn find<K, V, Q>(entries: &[(K, V)], key: &Q) -> Result<usize, usize>
where
    K: Borrow<Q>,
    Q: Ord + ?Sized,
{
    entries.binary_search_by(|(other, _)| other.borrow().cmp(key))
}

/// Values as bytes, but for those of which a packed form would save nothing.
#[derive(Debug)]
pub(super) struct PackedEntries<V> {
    bytes: Box<[u8]>,
    count: usize,
    whole: Box<[(usize, V)]>,
}

impl<V: Packing> PackedEntries<V> {
    fn new(entries: &Entries<V>) -> Self {
        let mut to = Writer::default();
        let mut base = V::Base::default();
        let mut before = None;
        let mut whole = Vec::new();
        for (at, (key, value)) in entries.iter().enumerate() {
            V::pack_key(key, before, &mut to);
            before = Some(key);
            if !value.pack(key, &mut base, &mut to) {
                whole.push((at, value.clone()));
            }
        }
        Self { bytes: to.finish(), count: entries.len(), whole: whole.into() }
    }

    fn walk(&self) -> impl Iterator<Item = (V::Key, V)> {
        let mut from = Reader::new(&self.bytes);
        let mut base = V::Base::default();
        let mut before: Option<V::Key> = None;
        let mut whole = self.whole.iter().peekable();
        (0..self.count).map(move |at| {
            let key = V::unpack_key(before.as_ref(), &mut from);
            before = Some(key.clone());
            let value = match whole.next_if(|(place, _)| *place == at) {
                Some((_, value)) => value.clone(),
                None => V::unpack(&key, &mut base, &mut from),
            };
            (key, value)
        })
    }
}
