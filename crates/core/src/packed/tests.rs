//! Against a map of the standard library, with operations at random.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::bytes::{Reader, Writer};
use super::{ENTRIES_MAX, Finder, PackedMap, Packing};

/// Values of which every fifth stays whole.
impl Packing for u32 {
    type Key = u64;
    type Base = u32;
    const OPEN_MAX: usize = 4;

    fn pack_key(key: &u64, before: Option<&u64>, to: &mut Writer) {
        to.number(key - before.copied().unwrap_or(0));
    }

    fn unpack_key(before: Option<&u64>, from: &mut Reader<'_>) -> u64 {
        before.copied().unwrap_or(0) + from.number()
    }

    fn pack(&self, _: &u64, base: &mut u32, to: &mut Writer) -> bool {
        if self.is_multiple_of(5) {
            return false;
        }
        to.distance((*base).into(), (*self).into());
        *base = *self;
        true
    }

    fn unpack(_: &u64, base: &mut u32, from: &mut Reader<'_>) -> u32 {
        *base = from.distance((*base).into()) as u32;
        *base
    }
}

type Model = BTreeMap<u64, u32>;

#[derive(Clone, Debug)]
enum Step {
    Insert(u64, u32),
    Change(u64, u32),
    Remove(u64),
    Pack,
    Keep,
}

fn step() -> impl Strategy<Value = Step> {
    let key = 0..150_u64;
    prop_oneof![
        6 => (key.clone(), any::<u32>()).prop_map(|(key, value)| Step::Insert(key, value)),
        2 => (key.clone(), any::<u32>()).prop_map(|(key, value)| Step::Change(key, value)),
        4 => key.prop_map(Step::Remove),
        1 => Just(Step::Pack),
        1 => Just(Step::Keep),
    ]
}

fn same(map: &PackedMap<u32>, model: &Model) {
    assert_eq!(map.len(), model.len());
    assert!(map.iter().eq(model.iter().map(|(key, value)| (*key, *value))));
    for key in 0..150 {
        assert_eq!(map.get(&key).as_deref(), model.get(&key), "{key}");
        let expected = model.range(key..).map(|(key, value)| (*key, *value));
        assert!(map.iter_from(key).eq(expected), "from {key}");
    }
    let mut finder = Finder::new(map);
    for key in (0..150).chain((0..150).rev()) {
        assert_eq!(finder.get(&key), model.get(&key), "{key}");
    }
    assert_eq!(map.index.blocks().map(|block| block.entries().len()).sum::<usize>(), map.len());
    assert!(map.index.blocks().all(|b| (1..=ENTRIES_MAX).contains(&b.entries().len())));
    assert!(map.index.blocks().filter(|block| block.is_open()).count() <= u32::OPEN_MAX);
}

fn differ(one: (&PackedMap<u32>, &Model), other: (&PackedMap<u32>, &Model)) {
    let keys = one.1.keys().chain(other.1.keys()).collect::<std::collections::BTreeSet<_>>();
    let expected: Vec<_> = keys
        .into_iter()
        .map(|key| (*key, one.1.get(key).copied(), other.1.get(key).copied()))
        .filter(|(_, one, other)| one != other)
        .collect();
    assert_eq!(one.0.differences(other.0).collect::<Vec<_>>(), expected);
}

proptest! {
    #[test]
    fn it_does_what_a_map_does(steps in prop::collection::vec(step(), 1..300)) {
        let (mut map, mut model) = (PackedMap::<u32>::default(), Model::new());
        let mut kept = vec![(map.clone(), model.clone())];
        for step in steps {
            match step {
                Step::Insert(key, value) => {
                    assert_eq!(map.insert(key, value), model.insert(key, value));
                }
                Step::Change(key, value) => {
                    assert_eq!(map.get_mut(&key).map(|v| *v), model.get_mut(&key).map(|v| *v));
                    map.get_mut(&key).into_iter().for_each(|v| *v = value);
                    model.get_mut(&key).into_iter().for_each(|v| *v = value);
                }
                Step::Remove(key) => assert_eq!(map.remove(&key), model.remove(&key)),
                Step::Pack => map.pack(),
                Step::Keep => kept.push((map.clone(), model.clone())),
            }
        }
        same(&map, &model);
        for (old, old_model) in &kept {
            same(old, old_model);
            differ((&map, &model), (old, old_model));
            differ((old, old_model), (&map, &model));
        }
    }
}

#[test]
fn what_grows_at_its_end_has_full_blocks() {
    let mut map = PackedMap::<u32>::default();
    (0..1000).for_each(|key| {
        map.insert(key, 1);
    });
    assert_eq!(map.index.blocks().count(), 1000_usize.div_ceil(ENTRIES_MAX));
}

#[test]
fn what_two_maps_share_is_not_looked_at() {
    let mut map = PackedMap::<u32>::default();
    (0..1000).for_each(|key| {
        map.insert(key, 1);
    });
    map.pack();
    let mut other = map.clone();
    other.insert(500, 2);
    let (here, there) = map.index.differences(&other.index);
    assert_eq!((here.len(), there.len()), (1, 1));
    other.pack();
    assert_eq!(map.differences(&other).collect::<Vec<_>>(), [(500, Some(1), Some(2))]);
}
