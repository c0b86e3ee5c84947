//! The map of one file: which bytes of which chunks are where.
//!
//! Invariants: extents are not empty and do not overlap; `allocated` is the sum of their lengths;
//! an extent that continues its left neighbour in the same chunk is one extent with it. What no
//! extent covers is a hole. An extent without a source is allocated and reads as zeros.
//!
//! Knows nothing of sizes, inodes or the chunk table: whoever changes a map accounts for what was
//! removed and added.

use imbl::OrdMap;
use imbl::ordmap::DiffItem;
use unum_proto::ids::ChunkId;

/// Where bytes come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source {
    pub chunk: ChunkId,
    pub offset: u32,
}

impl Source {
    fn advanced(self, by: u64) -> Self {
        Self { offset: self.offset.saturating_add(by as u32), ..self }
    }
}

/// Bytes that lie together in a file and in their chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    pub offset: u64,
    pub length: u64,
    /// None: allocated, reads as zeros.
    pub source: Option<Source>,
}

impl Extent {
    pub fn end(&self) -> u64 {
        self.offset + self.length
    }

    /// The part from `start` to `end`, which must lie in the extent.
    fn part(&self, start: u64, end: u64) -> Self {
        let source = self.source.map(|source| source.advanced(start - self.offset));
        Self { offset: start, length: end - start, source }
    }

    fn continues(&self, left: &Self) -> bool {
        left.end() == self.offset
            && match (left.source, self.source) {
                (None, None) => true,
                (Some(a), Some(b)) => {
                    a.chunk == b.chunk && u64::from(a.offset) + left.length == u64::from(b.offset)
                }
                _ => false,
            }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Span {
    length: u64,
    source: Option<Source>,
}

/// Spans by offset. Most files have one extent, and a map's smallest node has room for many times
/// that: so one span is kept in place. Not both `one` and `many` are in use.
#[derive(Clone, Debug, Default)]
struct Spans {
    one: Option<(u64, Span)>,
    many: OrdMap<u64, Span>,
}

impl Spans {
    fn len(&self) -> usize {
        usize::from(self.one.is_some()) + self.many.len()
    }

    fn iter(&self) -> impl Iterator<Item = Extent> {
        let many = self.many.iter().map(|(&at, span)| extent(at, span));
        self.single().into_iter().chain(many)
    }

    /// Those that start in `start..end`.
    fn range(&self, start: u64, end: u64) -> impl Iterator<Item = Extent> {
        let one = self.single().filter(|one| (start..end).contains(&one.offset));
        let many = self.many.range(start..end).map(|(&at, span)| extent(at, span));
        one.into_iter().chain(many)
    }

    /// The last that starts at or before `offset`.
    fn until(&self, offset: u64) -> Option<Extent> {
        let one = self.single().filter(|one| one.offset <= offset);
        one.or_else(|| self.many.get_prev(&offset).map(|(&at, span)| extent(at, span)))
    }

    fn insert(&mut self, offset: u64, span: Span) {
        if self.len() == 0 {
            self.one = Some((offset, span));
            return;
        }
        self.many.extend(self.one.take());
        self.many.insert(offset, span);
    }

    fn remove(&mut self, offset: u64) {
        self.one.take_if(|(at, _)| *at == offset);
        self.many.remove(&offset);
    }

    fn single(&self) -> Option<Extent> {
        self.one.as_ref().map(|(at, span)| extent(*at, span))
    }
}

#[derive(Clone, Debug, Default)]
pub struct ExtentMap {
    spans: Spans,
    allocated: u64,
}

impl ExtentMap {
    pub fn len(&self) -> usize {
        self.spans.len()
    }

    /// The extents that another map does not have like this one, and those that it has unlike this one.
    pub fn differences(&self, other: &Self) -> (Vec<Extent>, Vec<Extent>) {
        if self.spans.one.is_some() || other.spans.one.is_some() {
            let lacks = |of: &Self, in_it: &Self| {
                let same = |extent: &Extent| in_it.spans.until(extent.offset) == Some(*extent);
                of.iter().filter(|extent| !same(extent)).collect()
            };
            return (lacks(self, other), lacks(other, self));
        }
        let (mut gone, mut added) = (Vec::new(), Vec::new());
        for item in self.spans.many.diff(&other.spans.many) {
            match item {
                DiffItem::Add(&at, span) => added.push(extent(at, span)),
                DiffItem::Remove(&at, span) => gone.push(extent(at, span)),
                DiffItem::Update { old, new } => {
                    gone.push(extent(*old.0, old.1));
                    added.push(extent(*new.0, new.1));
                }
            }
        }
        (gone, added)
    }

    pub fn allocated(&self) -> u64 {
        self.allocated
    }

    pub fn iter(&self) -> impl Iterator<Item = Extent> {
        self.spans.iter()
    }

    /// The extents that share bytes with `start..end`, whole, in order.
    pub fn overlapping(&self, start: u64, end: u64) -> impl Iterator<Item = Extent> {
        let first = self.before(start).filter(|extent| extent.end() > start);
        first.into_iter().chain(self.spans.range(start, end.max(start)))
    }

    /// The same, cut to `start..end`.
    pub fn within(&self, start: u64, end: u64) -> impl Iterator<Item = Extent> {
        self.overlapping(start, end)
            .map(move |extent| extent.part(extent.offset.max(start), extent.end().min(end)))
    }

    /// The holes in `start..end`, as (offset, length).
    pub fn holes(&self, start: u64, end: u64) -> Vec<(u64, u64)> {
        let mut holes = Vec::new();
        let mut at = start;
        for extent in self.overlapping(start, end) {
            if extent.offset > at {
                holes.push((at, extent.offset - at));
            }
            at = extent.end();
        }
        if at < end {
            holes.push((at, end - at));
        }
        holes
    }

    /// Makes `start..end` a hole and returns what was there.
    pub fn cut(&mut self, start: u64, end: u64) -> Vec<Extent> {
        if start >= end {
            return Vec::new();
        }
        let hit: Vec<Extent> = self.overlapping(start, end).collect();
        let mut removed = Vec::with_capacity(hit.len());
        for extent in hit {
            self.remove(extent);
            let from = extent.offset.max(start);
            let to = extent.end().min(end);
            if extent.offset < from {
                self.put(extent.part(extent.offset, from));
            }
            if to < extent.end() {
                self.put(extent.part(to, extent.end()));
            }
            removed.push(extent.part(from, to));
        }
        removed
    }

    /// Puts an extent where a hole is, and joins it with its neighbours where they continue.
    pub fn insert(&mut self, extent: Extent) {
        if extent.length == 0 {
            return;
        }
        let mut joined = extent;
        if let Some(left) = self.before(extent.offset).filter(|left| joined.continues(left)) {
            self.remove(left);
            joined = Extent { length: left.length + joined.length, ..left };
        }
        let right = self.spans.range(joined.end(), joined.end() + 1).next();
        if let Some(right) = right.filter(|right| right.continues(&joined)) {
            self.remove(right);
            joined.length += right.length;
        }
        self.put(joined);
    }

    fn before(&self, offset: u64) -> Option<Extent> {
        let last = offset.checked_sub(1)?;
        self.spans.until(last)
    }

    fn put(&mut self, extent: Extent) {
        self.allocated += extent.length;
        self.spans.insert(extent.offset, Span { length: extent.length, source: extent.source });
    }

    fn remove(&mut self, extent: Extent) {
        self.allocated -= extent.length;
        self.spans.remove(extent.offset);
    }

    /// What is wrong inside of this map.
    pub fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        if self.spans.one.is_some() && !self.spans.many.is_empty() {
            faults.push("extents in two places".to_owned());
        }
        let mut end = 0;
        let mut sum = 0;
        for extent in self.iter() {
            if extent.length == 0 || extent.offset < end {
                faults.push(format!("extent at {} is empty or overlaps", extent.offset));
            }
            end = extent.end();
            sum += extent.length;
        }
        if sum != self.allocated {
            faults.push(format!("{} bytes allocated, {sum} in extents", self.allocated));
        }
        faults
    }
}

fn extent(offset: u64, span: &Span) -> Extent {
    Extent { offset, length: span.length, source: span.source }
}
