//! Anti-entropy: which entries differ between two nodes, found by comparing fingerprints of ever smaller id ranges
//! (range-based set reconciliation, Meyer 2023, with a fixed fan-out of 256 over the id's leading bytes).
//!
//! A range is an id prefix of 0, 1 or 2 bytes. Its fingerprint is the sum modulo 2^128 of its entries' digests, so one
//! changed entry costs three additions. Finding d differences among n entries takes O(d) messages of a few KB.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::ids::JobId;
use crate::planted::{Bug, planted};

/// What a node knows about one entry, as a number: equal if and only if (but for collisions) the knowledge is equal.
pub type Digest = u128;

/// Deepest prefix, bytes. 65,536 leaf ranges keep a range at 15 entries for a million jobs.
const DEPTH_MAX: usize = 2;
/// Ranges up to this many entries are listed instead of divided: a list of 64 takes 3 KB, as a division does.
const LIST_MAX: u64 = 64;
/// Claims handled per message, and entries listed per range: bounds the answer to one hostile message.
const CLAIMS_MAX: usize = 512;

/// The ids that begin with some bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub struct Prefix {
    len: u8,
    bytes: [u8; DEPTH_MAX],
}

impl Prefix {
    fn depth(self) -> usize {
        usize::from(self.len).min(DEPTH_MAX)
    }

    fn child(self, byte: u8) -> Self {
        let mut child = self;
        child.bytes[self.depth()] = byte;
        child.len += 1;
        child
    }

    fn bounds(self) -> (JobId, JobId) {
        let (mut low, mut high) = ([0; 32], [0xff; 32]);
        low[..self.depth()].copy_from_slice(&self.bytes[..self.depth()]);
        high[..self.depth()].copy_from_slice(&self.bytes[..self.depth()]);
        (JobId(low), JobId(high))
    }
}

/// A range's fingerprint and entry count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub struct Fingerprint {
    /// Sum of digests, as little-endian bytes.
    #[serde(with = "sum_bytes")]
    pub sum: u128,
    /// Entries.
    pub count: u64,
}

/// One node's claim about a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// The range.
    pub prefix: Prefix,
    /// What the claimant has there.
    pub fingerprint: Fingerprint,
}

/// One node's entries in a range.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listing {
    /// The range.
    pub prefix: Prefix,
    /// Every entry there, with its digest.
    pub items: Vec<(JobId, Item)>,
    /// Whether the other side should list its own in return.
    pub ask: bool,
}

/// A digest on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Item(#[serde(with = "sum_bytes")] pub u128);

/// What to say in answer to a peer's claims or listings, and which entries to ask for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Reply {
    /// Claims about smaller ranges.
    pub claims: Vec<Claim>,
    /// Lists of small ranges.
    pub listings: Vec<Listing>,
    /// Entries the peer has in another state than we do, or that we lack.
    pub wanted: Vec<JobId>,
}

/// The index of what is known: every entry's digest, and the fingerprints of all ranges.
#[derive(Debug, Clone, Default)]
pub struct Index {
    items: BTreeMap<JobId, Digest>,
    ranges: BTreeMap<Prefix, Fingerprint>,
}

impl Index {
    /// Sets an entry's digest; `None` forgets the entry.
    pub fn set(&mut self, id: JobId, digest: Option<Digest>) {
        let old = match digest {
            Some(new) => self.items.insert(id, new),
            None => self.items.remove(&id),
        };
        if old == digest {
            return;
        }
        let mut prefix = Prefix::default();
        for depth in 0..=DEPTH_MAX {
            let range = self.ranges.entry(prefix).or_default();
            range.sum = range.sum.wrapping_sub(old.unwrap_or(0)).wrapping_add(digest.unwrap_or(0));
            range.count = range.count + u64::from(digest.is_some()) - u64::from(old.is_some());
            if range.count == 0 {
                self.ranges.remove(&prefix);
            }
            if depth < DEPTH_MAX {
                prefix = prefix.child(id.0[depth]);
            }
        }
    }

    /// An entry's digest.
    #[must_use]
    pub fn get(&self, id: &JobId) -> Option<Digest> {
        self.items.get(id).copied()
    }

    /// The fingerprint of everything: equal on two nodes when their ledgers are.
    #[must_use]
    pub fn root(&self) -> Claim {
        self.claim(Prefix::default())
    }

    fn claim(&self, prefix: Prefix) -> Claim {
        Claim { prefix, fingerprint: self.ranges.get(&prefix).copied().unwrap_or_default() }
    }

    fn list(&self, prefix: Prefix, ask: bool) -> Listing {
        let (low, high) = prefix.bounds();
        let range = self.items.range(low..=high).skip(usize::from(planted(Bug::ReconcileEdge)));
        let items = range.map(|(id, digest)| (*id, Item(*digest))).collect();
        Listing { prefix, items, ask }
    }

    /// Answers a peer's claims: divides or lists the ranges that differ.
    #[must_use]
    pub fn answer_claims(&self, claims: &[Claim]) -> Reply {
        let mut reply = Reply::default();
        for theirs in claims.iter().take(CLAIMS_MAX) {
            if usize::from(theirs.prefix.len) > DEPTH_MAX {
                continue;
            }
            let ours = self.claim(theirs.prefix).fingerprint;
            if ours == theirs.fingerprint {
                continue;
            }
            let small = ours.count.max(theirs.fingerprint.count) <= LIST_MAX;
            if small || theirs.prefix.depth() == DEPTH_MAX {
                reply.listings.push(self.list(theirs.prefix, true));
            } else {
                reply.claims.extend((0..=255).map(|byte| self.claim(theirs.prefix.child(byte))));
            }
        }
        reply
    }

    /// Answers a peer's listings: asks for what differs, and lists our side where the peer asked and lacks something.
    #[must_use]
    pub fn answer_listings(&self, listings: &[Listing]) -> Reply {
        let mut reply = Reply::default();
        for theirs in listings.iter().take(CLAIMS_MAX) {
            if usize::from(theirs.prefix.len) > DEPTH_MAX {
                continue;
            }
            let of_peer: BTreeMap<JobId, Digest> = theirs.items.iter().map(|(id, d)| (*id, d.0)).collect();
            let differs = |id: &JobId, digest: &Digest| self.items.get(id) != Some(digest);
            reply.wanted.extend(of_peer.iter().filter(|(id, d)| differs(id, d)).map(|(id, _)| *id));
            if theirs.ask {
                let ours = self.list(theirs.prefix, false);
                if ours.items.iter().any(|(id, d)| of_peer.get(id) != Some(&d.0)) {
                    reply.listings.push(ours);
                }
            }
        }
        reply
    }

    /// How many entries are known.
    #[must_use]
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Whether none is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Every entry and its digest, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&JobId, &Digest)> {
        self.items.iter()
    }
}

/// CBOR has no 128-bit integers that every decoder reads: 16 little-endian bytes instead.
mod sum_bytes {
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(sum: &u128, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&sum.to_le_bytes())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u128, D::Error> {
        Ok(u128::from_le_bytes(serde_bytes::ByteArray::<16>::deserialize(deserializer)?.into_array()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn id(n: u32) -> JobId {
        JobId(*blake3::hash(&n.to_le_bytes()).as_bytes())
    }

    /// Runs the exchange between two indexes until nobody has anything to say; returns what each wants and the rounds.
    fn exchange(a: &Index, b: &Index) -> ([Vec<JobId>; 2], usize) {
        let mut wanted = [vec![], vec![]];
        let mut reply = Reply { claims: vec![a.root()], ..Reply::default() };
        for round in 0..10 {
            if reply.claims.is_empty() && reply.listings.is_empty() {
                return (wanted, round);
            }
            let (who, index) = if round % 2 == 0 { (1, b) } else { (0, a) };
            let mut next = index.answer_claims(&reply.claims);
            let more = index.answer_listings(&reply.listings);
            next.listings.extend(more.listings);
            wanted[who].extend(more.wanted);
            reply = next;
        }
        panic!("the exchange does not end");
    }

    proptest! {
        #[test]
        fn finds_exactly_the_differences(
            common in prop::collection::btree_map(0u32..100_000, 0u8..3, 0..800),
            left in prop::collection::btree_map(0u32..100_000, 3u8..5, 0..20),
            right in prop::collection::btree_map(0u32..100_000, 5u8..7, 0..20),
        ) {
            let build = |extra: &BTreeMap<u32, u8>| {
                let mut index = Index::default();
                for (n, d) in common.iter().chain(extra) {
                    index.set(id(*n), Some(u128::from(*d) * 0x1234_5678_9abc_def0_1111));
                }
                index
            };
            let (a, b) = (build(&left), build(&right));
            let ([mut wa, mut wb], _) = exchange(&a, &b);
            wa.sort();
            wb.sort();
            let lacks = |x: &Index, y: &Index| -> Vec<JobId> {
                y.iter().filter(|(i, d)| x.get(i) != Some(**d)).map(|(i, _)| *i).collect()
            };
            prop_assert_eq!(wa, lacks(&a, &b));
            prop_assert_eq!(wb, lacks(&b, &a));
        }

        #[test]
        fn forgetting_undoes_setting(ids in prop::collection::vec(0u32..500, 0..200)) {
            let mut index = Index::default();
            for n in &ids {
                index.set(id(*n), Some(7));
            }
            for n in &ids {
                index.set(id(*n), None);
            }
            prop_assert!(index.is_empty() && index.ranges.is_empty());
        }
    }
}
