//! A fact as an automerge change, in the one form that all nodes derive alike.
//!
//! The change is a pure function of (author, payload): actor id = the author's key followed by 16 bytes of BLAKE3 over
//! author and payload, sequence number 1, start op 1, time 0, no message, no dependencies, and one operation, a put of
//! the payload under a root key of its own. So two changes with the same (actor, seq) are the same change, no author can
//! split replicas by equivocating, and no bytes of a peer ever reach automerge's parser: receivers rebuild the change from
//! the payload and check the author's signature over its hash.

use std::num::NonZeroU64;

use automerge::legacy::{Key, ObjectId, Op, OpType};
use sha2::{Digest, Sha256};

use automerge::{ActorId, Automerge, AutomergeError, Change, ExpandedChange, ReadDoc, ScalarValue, Value};

use crate::derivation::Derivation;
use crate::ids::{FactId, NodeId, encode_base32, write_base32};

const SUFFIX_LEN: usize = 16;
/// The same in base32.
const KEY_LEN: usize = (SUFFIX_LEN * 8).div_ceil(5);

/// The automerge change that carries `payload`, stated by `author`.
#[must_use]
pub fn change_of(author: NodeId, payload: &[u8]) -> Change {
    let suffix = suffix_of(author, payload);
    let mut actor = [0; NodeId::LEN + SUFFIX_LEN];
    actor[..NodeId::LEN].copy_from_slice(&author.0);
    actor[NodeId::LEN..].copy_from_slice(&suffix);
    let put = Op {
        action: OpType::Put(ScalarValue::Bytes(payload.to_vec())),
        obj: ObjectId::Root,
        key: Key::Map(encode_base32(&suffix).into()),
        pred: Vec::new().into(),
        insert: false,
    };
    Change::from(ExpandedChange {
        operations: vec![put],
        actor_id: ActorId::from(&actor[..]),
        hash: None,
        seq: 1,
        start_op: NonZeroU64::MIN,
        time: 0,
        message: None,
        deps: Vec::new(),
        extra_bytes: Vec::new(),
        author: None,
    })
}

/// The id of the fact that `author` states with `payload`: the hash of [`change_of`], which is SHA-256 over the bytes that
/// automerge's format prescribes for such a change (docs/protocol.md, section 11). Computed without making the change,
/// because every fact's id is needed several times on every node; a test holds the two against each other.
#[must_use]
pub fn fact_id(author: NodeId, payload: &[u8]) -> FactId {
    let suffix = suffix_of(author, payload);
    let mut key = [0; KEY_LEN];
    write_base32(&suffix, &mut key);
    // The value's type and length: 7 is a byte string.
    let meta = Uleb::new(payload.len() as u64 * 16 + 7);
    let payload_len = Uleb::new(payload.len() as u64);
    let meta_len = [1 + meta.len];
    let body: [&[u8]; 14] = [
        &[0x00, 0x30],
        &author.0,
        &suffix,
        &[0x01, 0x01, 0x00, 0x00, 0x00],
        &[0x06, 0x15, 0x1c, 0x34, 0x01, 0x42, 0x02, 0x56],
        &meta_len,
        &[0x57],
        payload_len.bytes(),
        &[0x70, 0x02, 0x7f, 0x1a],
        &key,
        &[0x01, 0x7f, 0x01, 0x7f],
        meta.bytes(),
        payload,
        &[0x7f, 0x00],
    ];
    let len = Uleb::new(body.iter().map(|part| part.len() as u64).sum());
    let mut hasher = Sha256::new();
    hasher.update([0x01]);
    hasher.update(len.bytes());
    for part in body {
        hasher.update(part);
    }
    FactId(hasher.finalize().into())
}

/// A number in unsigned LEB128.
struct Uleb {
    buffer: [u8; 10],
    len: u8,
}

impl Uleb {
    fn new(mut value: u64) -> Self {
        let (mut buffer, mut len) = ([0; 10], 0);
        loop {
            let low = (value & 0x7f) as u8;
            value >>= 7;
            buffer[usize::from(len)] = if value == 0 { low } else { low | 0x80 };
            len += 1;
            if value == 0 {
                return Self { buffer, len };
            }
        }
    }

    fn bytes(&self) -> &[u8] {
        &self.buffer[..usize::from(self.len)]
    }
}

fn suffix_of(author: NodeId, payload: &[u8]) -> [u8; SUFFIX_LEN] {
    static ACTOR: Derivation = Derivation::new("sinew fact actor 1");
    let mut hasher = ACTOR.hasher();
    hasher.update(&author.0).update(payload);
    let mut suffix = [0; SUFFIX_LEN];
    suffix.copy_from_slice(&hasher.finalize().as_bytes()[..SUFFIX_LEN]);
    suffix
}

/// A document of the given facts, as (author, payload).
///
/// # Errors
/// Whatever automerge says; it has no reason to refuse changes of [`change_of`]'s form.
pub fn document<'a>(facts: impl Iterator<Item = (NodeId, &'a [u8])>) -> Result<Automerge, AutomergeError> {
    let mut doc = Automerge::new();
    doc.apply_changes(facts.map(|(author, payload)| change_of(author, payload)).collect::<Vec<_>>())?;
    Ok(doc)
}

/// The facts of a document: every value of every root key, with its author.
///
/// # Errors
/// Whatever automerge says of a damaged document.
pub fn facts_of(doc: &Automerge) -> Result<Vec<(NodeId, Vec<u8>)>, AutomergeError> {
    let mut facts = Vec::new();
    for key in doc.keys(automerge::ROOT) {
        for (value, op) in doc.get_all(automerge::ROOT, key)? {
            let automerge::ObjId::Id(_, actor, _) = &op else { continue };
            let (Value::Scalar(scalar), Some(author)) = (value, actor.to_bytes().first_chunk::<{ NodeId::LEN }>())
            else {
                continue;
            };
            if let ScalarValue::Bytes(payload) = scalar.as_ref() {
                facts.push((NodeId(*author), payload.clone()));
            }
        }
    }
    Ok(facts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_the_hashes_of_automerge_changes() {
        for len in (1..300).chain([1_000, 4_096, 16_383, 16_384, 70_000, 263_168]) {
            let payload: Vec<u8> = (0..len).map(|i: u32| (i * 31 % 251) as u8).collect();
            let author = NodeId(*blake3::hash(&len.to_le_bytes()).as_bytes());
            assert_eq!(fact_id(author, &payload).0, change_of(author, &payload).hash().0, "payload of {len} bytes");
        }
    }

    #[test]
    fn documents_hold_exactly_the_facts_whatever_the_order() {
        let facts: Vec<(NodeId, Vec<u8>)> = (0..20u8).map(|i| (NodeId([i % 3; 32]), vec![i; 50])).collect();
        let forward = document(facts.iter().map(|(a, p)| (*a, &p[..]))).expect("doc");
        let backward = document(facts.iter().rev().map(|(a, p)| (*a, &p[..]))).expect("doc");
        let mut heads = forward.get_heads();
        heads.sort();
        let mut ids: Vec<_> = facts.iter().map(|(a, p)| automerge::ChangeHash(fact_id(*a, p).0)).collect();
        ids.sort();
        assert_eq!(heads, ids, "each fact is a head");
        let mut other = backward.get_heads();
        other.sort();
        assert_eq!(heads, other);
        let loaded = Automerge::load(&forward.save()).expect("load");
        let mut back = facts_of(&loaded).expect("facts");
        back.sort();
        let mut want = facts;
        want.sort();
        assert_eq!(back, want);
    }
}
