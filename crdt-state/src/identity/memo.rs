//! Signatures that are known to hold, so that a thread which plays many nodes checks each once rather than once a node.
//! A verdict depends on nothing but the bytes, so remembering it changes no outcome.
#![expect(clippy::disallowed_types, reason = "nobody looks at the order of what is remembered")]

use std::cell::RefCell;
use std::collections::HashSet;

use super::{Domain, Signature};

/// Verdicts kept, 16 bytes and a table's slot each; with more, all are forgotten.
const LEN_MAX: usize = 1 << 20;

thread_local! {
    static HOLD: RefCell<Option<HashSet<[u8; 16]>>> = const { RefCell::new(None) };
}

/// From here on this thread remembers which signatures hold. For simulations: a daemon sees most signatures once.
pub fn remember_signatures() {
    HOLD.with_borrow_mut(|hold| {
        hold.get_or_insert_default();
    });
}

/// What stands for a signature by `author` over `message`. A digest of all of it: another message must not share it.
pub(super) fn key(author: &[u8; 32], domain: Domain, message: &[u8], signature: &Signature) -> Option<[u8; 16]> {
    HOLD.with_borrow(Option::is_some).then(|| {
        let mut hasher = blake3::Hasher::new();
        hasher.update(domain.tag()).update(author).update(&signature.0).update(message);
        let digest: [u8; 32] = hasher.finalize().into();
        digest.first_chunk().copied().unwrap_or_default()
    })
}

pub(super) fn holds(key: &[u8; 16]) -> bool {
    HOLD.with_borrow(|hold| hold.as_ref().is_some_and(|hold| hold.contains(key)))
}

pub(super) fn remember(key: [u8; 16]) {
    HOLD.with_borrow_mut(|hold| {
        if let Some(hold) = hold {
            if hold.len() >= LEN_MAX {
                hold.clear();
            }
            hold.insert(key);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::super::{BadSignature, Identity, verify};
    use super::*;

    #[test]
    fn remembering_changes_no_verdict() {
        let (who, other) = (Identity::from_seed([1; 32]), Identity::from_seed([2; 32]));
        remember_signatures();
        let signature = who.sign(Domain::Spec, b"x");
        for _ in 0..2 {
            assert_eq!(verify(who.id().as_bytes(), Domain::Spec, b"x", &signature), Ok(()));
            assert_eq!(verify(who.id().as_bytes(), Domain::Spec, b"y", &signature), Err(BadSignature));
            assert_eq!(verify(who.id().as_bytes(), Domain::Envelope, b"x", &signature), Err(BadSignature));
            assert_eq!(verify(other.id().as_bytes(), Domain::Spec, b"x", &signature), Err(BadSignature));
            let mut bent = signature;
            bent.0[5] ^= 1;
            assert_eq!(verify(who.id().as_bytes(), Domain::Spec, b"x", &bent), Err(BadSignature));
        }
        let key = key(who.id().as_bytes(), Domain::Spec, b"x", &signature).expect("switched on");
        assert!(holds(&key), "it was remembered");
    }
}
