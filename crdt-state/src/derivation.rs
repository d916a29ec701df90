//! BLAKE3 in key derivation mode (BLAKE3 paper, 2.3) for contexts that are used again and again: the context's own hash,
//! as much work as that of a short message, is computed once.

use std::sync::OnceLock;

use blake3::hazmat::{ContextKey, HasherExt, hash_derive_key_context};

/// One context.
#[derive(Debug)]
pub(crate) struct Derivation {
    context: &'static str,
    key: OnceLock<ContextKey>,
}

impl Derivation {
    pub(crate) const fn new(context: &'static str) -> Self {
        Self { context, key: OnceLock::new() }
    }

    /// What [`blake3::Hasher::new_derive_key`] gives.
    pub(crate) fn hasher(&self) -> blake3::Hasher {
        let key = self.key.get_or_init(|| hash_derive_key_context(self.context));
        blake3::Hasher::new_from_context_key(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_those_of_the_usual_way() {
        static TEST: Derivation = Derivation::new("sinew test 1");
        for len in [0, 1, 64, 65, 1_000] {
            let bytes = vec![7; len];
            let usual = blake3::Hasher::new_derive_key("sinew test 1").update(&bytes).finalize();
            assert_eq!(TEST.hasher().update(&bytes).finalize(), usual, "{len} bytes");
        }
    }
}
