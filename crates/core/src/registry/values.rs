//! Named values with versions: the name service.
//!
//! Invariant: a version is given once in the life of the cluster, so a value that was deleted and
//! made again never has an old version.

use bytes::Bytes;
use imbl::OrdMap;
use unum_proto::registry::{CompareAndSet, DeleteValue, PutValue};

use super::limits::{KEY_SIZE_MAX, VALUE_SIZE_MAX, VALUES_MAX};
use super::refused::{Field, Refused};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value {
    pub bytes: Bytes,
    pub version: u64,
}

#[derive(Clone, Debug, Default)]
pub struct Values {
    pub(super) map: OrdMap<Bytes, Value>,
    pub(super) version_last: u64,
}

impl Values {
    pub fn get(&self, key: &[u8]) -> Option<&Value> {
        self.map.get(key)
    }

    pub fn len(&self) -> usize {
        self.map.len()
    }

    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    /// The values whose keys begin with `prefix`, in the order of the keys.
    pub fn with_prefix<'a>(
        &'a self,
        prefix: &'a [u8],
    ) -> impl Iterator<Item = (&'a Bytes, &'a Value)> {
        self.map
            .range::<_, [u8]>((std::ops::Bound::Included(prefix), std::ops::Bound::Unbounded))
            .take_while(move |(key, _)| key.starts_with(prefix))
    }

    pub(super) fn put(&mut self, command: &PutValue) -> Result<u64, Refused> {
        check_key(&command.key)?;
        self.check_value(&command.key, &command.value)?;
        Ok(self.insert(&command.key, &command.value))
    }

    pub(super) fn delete(&mut self, command: &DeleteValue) -> Result<u64, Refused> {
        check_key(&command.key)?;
        self.map.remove(&command.key).map(|_| 0).ok_or(Refused::ValueMissing)
    }

    pub(super) fn compare_and_set(&mut self, command: &CompareAndSet) -> Result<u64, Refused> {
        check_key(&command.key)?;
        let found = self.get(&command.key).map_or(0, |value| value.version);
        if found != command.expected {
            return Err(Refused::VersionConflict(found));
        }
        match &command.value {
            Some(value) => {
                self.check_value(&command.key, value)?;
                Ok(self.insert(&command.key, value))
            }
            None => {
                self.map.remove(&command.key);
                Ok(0)
            }
        }
    }

    fn insert(&mut self, key: &Bytes, value: &Bytes) -> u64 {
        self.version_last += 1;
        // Copies: the command's bytes are slices of a whole log entry, which would stay in memory.
        let value = Value { bytes: copy(value), version: self.version_last };
        if let Some(place) = self.map.get_mut(key) {
            *place = value;
        } else {
            self.map.insert(copy(key), value);
        }
        self.version_last
    }

    fn check_value(&self, key: &[u8], value: &[u8]) -> Result<(), Refused> {
        if value.len() > VALUE_SIZE_MAX {
            return Err(Refused::Limit(Field::Value, VALUE_SIZE_MAX as u64));
        }
        if self.map.len() >= VALUES_MAX && !self.map.contains_key(key) {
            return Err(Refused::Limit(Field::Values, VALUES_MAX as u64));
        }
        Ok(())
    }
}

fn copy(bytes: &Bytes) -> Bytes {
    Bytes::copy_from_slice(bytes)
}

fn check_key(key: &[u8]) -> Result<(), Refused> {
    if key.is_empty() {
        return Err(Refused::Invalid(Field::Key, "it is empty".into()));
    }
    if key.len() > KEY_SIZE_MAX {
        return Err(Refused::Limit(Field::Key, KEY_SIZE_MAX as u64));
    }
    Ok(())
}
