//! Envelopes: how facts travel and are stored. One signature covers a batch of facts through a Merkle tree, and each
//! envelope carries its own path to the signed root, so that it can be verified, stored and forwarded alone.
//!
//! Leaf: BLAKE3 (keyed derivation `sinew leaf 1`) of entry id ‖ fact id. Inner node: derivation `sinew node 1` of left ‖
//! right. Signed: mesh id ‖ root, domain [`Domain::Envelope`]. Bit i of `sides` says on which side
//! of the i-th entry of `path` the way up from the leaf lies: 1 for the right, 0 for the left. A node without a sibling moves up as
//! it is and has no entry.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::cbor;
use crate::change::fact_id;
use crate::derivation::Derivation;
use crate::fact::{FACT_LEN_MAX, Statement};
use crate::identity::{Domain, Identity, Signature, verify};
use crate::ids::{FactId, JobId, MeshId, NodeId};
use crate::planted::{Bug, planted};

/// Deepest Merkle path: batches of up to 1,024 facts.
const PATH_LEN_MAX: usize = 10;
/// Facts under one signature at most.
pub const BATCH_LEN_MAX: usize = 1 << PATH_LEN_MAX;

type Digest = [u8; 32];

/// A signed fact.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Envelope {
    /// The job it is about.
    pub entry: JobId,
    /// Who states it.
    pub author: NodeId,
    /// CBOR of the [`Statement`].
    #[serde(with = "serde_bytes")]
    pub payload: Vec<u8>,
    /// Sides of the path, least significant bit first.
    pub sides: u16,
    /// Siblings on the way to the root, lowest first.
    #[serde(with = "digests")]
    pub path: Vec<Digest>,
    /// The author's signature over the root.
    pub signature: Signature,
}

/// Why an envelope was refused before anyone looked at what it says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeError {
    /// The payload is longer than [`FACT_LEN_MAX`].
    #[error("the fact takes {0} bytes, more than {FACT_LEN_MAX}")]
    TooLong(usize),
    /// The path is longer than any batch needs.
    #[error("the Merkle path has {0} levels, more than {PATH_LEN_MAX}")]
    PathTooLong(usize),
    /// The signature does not cover this fact.
    #[error("the signature does not verify")]
    BadSignature,
    /// The payload is no statement.
    #[error("the fact does not decode: {0}")]
    Decode(#[from] cbor::DecodeError),
}

/// An envelope whose signature holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opened {
    /// The fact's id.
    pub id: FactId,
    /// What it says.
    pub statement: Statement,
}

/// Roots that verified lately, so that a batch costs one signature check. Holds those of the last few hundred checks, and up
/// to as many from before.
#[derive(Debug, Default)]
pub struct VerifiedRoots {
    recent: BTreeMap<(Digest, NodeId), Signature>,
    before: BTreeMap<(Digest, NodeId), Signature>,
}

/// Facts of a batch come to a node one by one, with the jobs that they belong to: over some tenths of a second of a busy
/// mesh, in which each member signs a few hundred batches a second. A root costs some 200 bytes.
const ROOTS_LEN_MAX: usize = 256;

/// Signs `statements` as one batch.
///
/// # Panics
/// When given more than [`BATCH_LEN_MAX`]: callers cut batches.
#[must_use]
pub fn seal_batch(identity: &Identity, mesh: MeshId, statements: &[(JobId, Statement)]) -> Vec<(FactId, Envelope)> {
    let author = identity.id();
    let mut items: Vec<(FactId, Envelope)> = statements
        .iter()
        .map(|(entry, statement)| {
            let payload = cbor::to_vec(statement);
            let id = fact_id(author, &payload);
            let envelope =
                Envelope { entry: *entry, author, payload, sides: 0, path: Vec::new(), signature: Signature([0; 64]) };
            (id, envelope)
        })
        .collect();
    let facts: Vec<(JobId, FactId)> = items.iter().map(|(id, e)| (e.entry, *id)).collect();
    for ((_, envelope), stamp) in items.iter_mut().zip(sign_batch(identity, mesh, &facts)) {
        envelope.stamp(&stamp);
    }
    items
}

/// What signs one fact of a batch: the way to the batch's root, and the signature over that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stamp {
    sides: u16,
    path: Vec<Digest>,
    signature: Signature,
}

/// Signs facts, known by entry and id, as one batch: a stamp for each, in their order.
///
/// # Panics
/// When given more than [`BATCH_LEN_MAX`]: callers cut batches.
#[must_use]
pub fn sign_batch(identity: &Identity, mesh: MeshId, facts: &[(JobId, FactId)]) -> Vec<Stamp> {
    assert!(facts.len() <= BATCH_LEN_MAX, "callers cut batches");
    let mut level: Vec<Digest> = facts.iter().map(|(entry, id)| leaf(*entry, *id)).collect();
    let unsigned = Stamp { sides: 0, path: Vec::new(), signature: Signature([0; 64]) };
    let mut stamps = vec![unsigned; facts.len()];
    let mut position: Vec<usize> = (0..facts.len()).collect();
    while level.len() > 1 {
        for (stamp, position) in stamps.iter_mut().zip(&mut position) {
            let sibling = *position ^ 1;
            if let Some(digest) = level.get(sibling) {
                if *position & 1 == 1 {
                    stamp.sides |= 1 << stamp.path.len();
                }
                stamp.path.push(*digest);
            }
            *position /= 2;
        }
        level = level.chunks(2).map(|pair| if let [l, r] = pair { inner(l, r) } else { pair[0] }).collect();
    }
    if let Some(root) = level.first() {
        let signature = identity.sign(Domain::Envelope, &signed_bytes(mesh, root));
        for stamp in &mut stamps {
            stamp.signature = signature;
        }
    }
    stamps
}

impl Envelope {
    /// Puts a signature on it, in place of what was there.
    pub fn stamp(&mut self, stamp: &Stamp) {
        self.sides = stamp.sides;
        self.path.clone_from(&stamp.path);
        self.signature = stamp.signature;
    }

    /// Checks bounds and signature and decodes the statement.
    ///
    /// # Errors
    /// [`EnvelopeError`].
    pub fn open(&self, mesh: MeshId, roots: &mut VerifiedRoots) -> Result<Opened, EnvelopeError> {
        self.check_len()?;
        self.open_as(self.fact_id(), mesh, roots)
    }

    pub(crate) const fn check_len(&self) -> Result<(), EnvelopeError> {
        if self.payload.len() > FACT_LEN_MAX { Err(EnvelopeError::TooLong(self.payload.len())) } else { Ok(()) }
    }

    /// As [`Self::open`], for who has looked at the length and computed the id.
    pub(crate) fn open_as(&self, id: FactId, mesh: MeshId, roots: &mut VerifiedRoots) -> Result<Opened, EnvelopeError> {
        if self.path.len() > PATH_LEN_MAX {
            return Err(EnvelopeError::PathTooLong(self.path.len()));
        }
        let root = self.path.iter().enumerate().fold(leaf(self.entry, id), |node, (height, sibling)| {
            if self.sides >> height & 1 == 1 { inner(sibling, &node) } else { inner(&node, sibling) }
        });
        roots.check(mesh, self.author, root, &self.signature)?;
        Ok(Opened { id, statement: cbor::from_slice(&self.payload)? })
    }

    /// The fact's id, recomputed. Only for envelopes known to be good: it checks nothing.
    #[must_use]
    pub fn fact_id(&self) -> FactId {
        fact_id(self.author, &self.payload)
    }
}

impl VerifiedRoots {
    fn check(
        &mut self,
        mesh: MeshId,
        author: NodeId,
        root: Digest,
        signature: &Signature,
    ) -> Result<(), EnvelopeError> {
        let key = (root, author);
        let known = self.recent.get(&key).or_else(|| self.before.get(&key));
        if known == Some(signature) || planted(Bug::AcceptUnsigned) {
            return Ok(());
        }
        verify(&author.0, Domain::Envelope, &signed_bytes(mesh, &root), signature)
            .map_err(|_| EnvelopeError::BadSignature)?;
        if self.recent.len() >= ROOTS_LEN_MAX {
            self.before = std::mem::take(&mut self.recent);
        }
        self.recent.insert(key, *signature);
        Ok(())
    }
}

static LEAF: Derivation = Derivation::new("sinew leaf 1");
static INNER: Derivation = Derivation::new("sinew node 1");

fn leaf(entry: JobId, id: FactId) -> Digest {
    *LEAF.hasher().update(&entry.0).update(&id.0).finalize().as_bytes()
}

fn inner(left: &Digest, right: &Digest) -> Digest {
    *INNER.hasher().update(left).update(right).finalize().as_bytes()
}

fn signed_bytes(mesh: MeshId, root: &Digest) -> [u8; 64] {
    let mut bytes = [0; 64];
    bytes[..32].copy_from_slice(&mesh.0);
    bytes[32..].copy_from_slice(root);
    bytes
}

/// A list of digests as one byte string: shorter, and its length is checked at once.
mod digests {
    use serde::{Deserialize, Deserializer, Serializer};

    use super::Digest;

    pub(super) fn serialize<S: Serializer>(path: &[Digest], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(path.as_flattened())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Digest>, D::Error> {
        let bytes = serde_bytes::ByteBuf::deserialize(deserializer)?;
        let (chunks, rest) = bytes.as_chunks::<32>();
        if rest.is_empty() { Ok(chunks.to_vec()) } else { Err(serde::de::Error::custom("path is not whole digests")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fact::Fact;

    const MESH: MeshId = MeshId([5; 32]);

    fn votes(n: u32) -> Vec<(JobId, Statement)> {
        (0..n)
            .map(|term| {
                (JobId([term.to_le_bytes()[0]; 32]), Statement { at_ms: 1, fact: Fact::Vote { term, pace: 1 } })
            })
            .collect()
    }

    #[test]
    fn every_member_of_every_batch_size_verifies_alone() {
        let who = Identity::from_seed([3; 32]);
        for n in 1..=33 {
            for (id, envelope) in seal_batch(&who, MESH, &votes(n)) {
                let opened = envelope.open(MESH, &mut VerifiedRoots::default()).expect("opens");
                assert_eq!(opened.id, id, "batch of {n}");
            }
        }
    }

    #[test]
    fn any_change_breaks_the_signature() {
        let who = Identity::from_seed([3; 32]);
        let (_, good) = seal_batch(&who, MESH, &votes(5)).swap_remove(2);
        let mut roots = VerifiedRoots::default();
        let mut spoil = |f: &dyn Fn(&mut Envelope)| {
            let mut bad = good.clone();
            f(&mut bad);
            bad.open(MESH, &mut roots)
        };
        assert_eq!(spoil(&|e| e.entry.0[0] ^= 1), Err(EnvelopeError::BadSignature));
        assert_eq!(spoil(&|e| e.author.0[0] ^= 1), Err(EnvelopeError::BadSignature));
        assert_eq!(spoil(&|e| e.payload.push(0)), Err(EnvelopeError::BadSignature));
        assert_eq!(spoil(&|e| e.sides ^= 1), Err(EnvelopeError::BadSignature));
        assert_eq!(spoil(&|e| e.path[0][0] ^= 1), Err(EnvelopeError::BadSignature));
        assert_eq!(spoil(&|e| e.signature.0[0] ^= 1), Err(EnvelopeError::BadSignature));
        assert!(good.open(MeshId([6; 32]), &mut roots).is_err(), "another mesh");
        assert!(good.open(MESH, &mut roots).is_ok());
    }
}
