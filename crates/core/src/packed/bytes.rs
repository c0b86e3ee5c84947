//! Numbers and bytes as a packed block has them: integers of seven bits a byte, the lowest first, signed ones with
//! the sign in the lowest bit (Protocol Buffers, "Encoding"); names by what differs from the one before.
//!
//! These bytes never leave the process: who reads them wrote them. A reader that is at its end reads zeros.

/// Appends to a block.
#[derive(Debug, Default)]
pub struct Writer(Vec<u8>);

impl Writer {
    pub fn number(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    /// How far `value` is from `base`, on either side.
    pub fn distance(&mut self, base: u64, value: u64) {
        let signed = value.wrapping_sub(base) as i64;
        self.number(((signed << 1) ^ (signed >> 63)) as u64);
    }

    pub fn raw(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    pub fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        self.raw(bytes);
    }

    /// A name after another one: how long their common beginning is, and the rest.
    pub fn name(&mut self, before: &[u8], name: &[u8]) {
        let common = before.iter().zip(name).take_while(|(one, other)| one == other).count();
        self.number(common as u64);
        self.bytes(&name[common..]);
    }

    pub fn finish(self) -> Box<[u8]> {
        self.0.into_boxed_slice()
    }
}

/// Reads what a [`Writer`] wrote, in the same order.
#[derive(Debug)]
pub struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub fn number(&mut self) -> u64 {
        let mut value = 0;
        let mut shift = 0;
        while let Some((&byte, rest)) = self.0.split_first() {
            self.0 = rest;
            value |= u64::from(byte & 0x7f) << shift;
            shift += 7;
            if byte < 0x80 || shift > 63 {
                break;
            }
        }
        value
    }

    pub fn number32(&mut self) -> u32 {
        self.number() as u32
    }

    pub fn distance(&mut self, base: u64) -> u64 {
        let coded = self.number();
        base.wrapping_add((coded >> 1) ^ (coded & 1).wrapping_neg())
    }

    pub fn raw(&mut self, len: usize) -> &'a [u8] {
        debug_assert!(len <= self.0.len(), "a packed block ends early");
        let (bytes, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        bytes
    }

    pub fn bytes(&mut self) -> &'a [u8] {
        let len = self.number() as usize;
        self.raw(len)
    }

    pub fn name(&mut self, before: &[u8]) -> std::sync::Arc<[u8]> {
        let common = (self.number() as usize).min(before.len());
        let rest = self.bytes();
        if common == 0 {
            return rest.into();
        }
        let mut name = Vec::with_capacity(common + rest.len());
        name.extend_from_slice(&before[..common]);
        name.extend_from_slice(rest);
        name.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_names_come_back() {
        let numbers = [0, 1, 127, 128, 300, u64::from(u32::MAX), u64::MAX - 1, u64::MAX];
        let names: [&[u8]; 4] = [b"", b"file-1", b"file-12", b"other"];
        let mut to = Writer::default();
        for number in numbers {
            to.number(number);
            numbers.iter().for_each(|&base| to.distance(base, number));
        }
        names.iter().for_each(|name| names.iter().for_each(|before| to.name(before, name)));
        let bytes = to.finish();
        let mut from = Reader::new(&bytes);
        for number in numbers {
            assert_eq!(from.number(), number);
            numbers.iter().for_each(|&base| assert_eq!(from.distance(base), number));
        }
        for name in names {
            names.iter().for_each(|before| assert_eq!(&*from.name(before), name));
        }
        assert_eq!(from.number(), 0);
    }

    #[test]
    fn what_is_near_is_short() {
        let mut to = Writer::default();
        to.distance(1 << 60, (1 << 60) - 60);
        to.name(b"file-00000123.txt", b"file-00000124.txt");
        assert_eq!(to.finish().len(), 1 + 2 + 5);
    }
}
