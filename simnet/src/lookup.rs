//! Tables by number that every event asks: one look at memory instead of the several that a tree takes, which is what a large
//! world spends its time with. Nobody goes through them in order.
#![expect(clippy::disallowed_types, reason = "nobody looks at the order")]

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// A table by number. Never iterate over it: the order depends on its history.
pub(crate) type Lookup<V> = HashMap<u64, V, BuildHasherDefault<Mix>>;

/// Spreads numbers over all bits: both halves of the product with an odd constant, folded. The same in every process.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Mix(u64);

/// From the golden ratio: its multiples are far apart.
const FACTOR: u128 = 0x9e37_79b9_7f4a_7c15;

impl Hasher for Mix {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64(u64::from(*byte)));
    }

    #[expect(clippy::cast_possible_truncation, reason = "both halves are taken")]
    fn write_u64(&mut self, number: u64) {
        let product = u128::from(self.0 ^ number) * FACTOR;
        self.0 = (product as u64) ^ ((product >> 64) as u64);
    }
}
