//! One hash over everything that happens.

use sinew_crdt_state::ids::Hash;

/// Hashed at once: over many of its blocks the hash is several times as fast as over one.
const HELD_MAX: usize = 64 * 1024;

/// What happened so far.
#[derive(Debug, Default)]
pub(crate) struct Trace {
    hasher: blake3::Hasher,
    /// Not hashed yet.
    held: Vec<u8>,
}

impl Trace {
    pub(crate) fn add(&mut self, bytes: &[u8]) {
        self.held.extend_from_slice(bytes);
        if self.held.len() >= HELD_MAX {
            self.hasher.update(&self.held);
            self.held.clear();
        }
    }

    pub(crate) fn hash(&self) -> Hash {
        Hash(*self.hasher.clone().update(&self.held).finalize().as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_hash_of_all_bytes_in_order() {
        let (mut trace, mut all) = (Trace::default(), Vec::new());
        for n in 0..40_000_u32 {
            let bytes = n.to_le_bytes().repeat(n as usize % 7);
            trace.add(&bytes);
            all.extend(bytes);
            if n % 9_999 == 0 {
                assert_eq!(trace.hash(), Hash::of(&all));
            }
        }
        assert!(all.len() > 4 * HELD_MAX && trace.hash() == Hash::of(&all));
    }
}
