//! Public keys as points, kept for the authors that this thread heard of lately. To find the point that 32 bytes stand for
//! takes a tenth of a signature check, and a mesh has few authors.

use std::cell::RefCell;
use std::collections::BTreeMap;

use ed25519_dalek::VerifyingKey;

/// Keys kept, some 200 bytes each: more authors than one node checks facts of at a time. With more, all are forgotten.
const LEN_MAX: usize = 1_024;

thread_local! {
    static KEYS: RefCell<BTreeMap<[u8; 32], VerifyingKey>> = const { RefCell::new(BTreeMap::new()) };
}

/// The key of `author`; `None` when the bytes are no point of the curve.
pub(super) fn of(author: &[u8; 32]) -> Option<VerifyingKey> {
    KEYS.with_borrow_mut(|keys| {
        if let Some(key) = keys.get(author) {
            return Some(*key);
        }
        let key = VerifyingKey::from_bytes(author).ok()?;
        if keys.len() >= LEN_MAX {
            keys.clear();
        }
        keys.insert(*author, key);
        Some(key)
    })
}
