//! The packed form of envelopes, in which the ledger stores them: job ids, authors, digests of Merkle paths and signatures once
//! each, the rest by number. Facts of one batch share their signature and most of the way up to it, and so do jobs that ran at
//! the same time; plain envelopes repeat all that.
//!
//! Unpacking gives the very same envelopes back. What is read here was written by this node: nothing is verified, but no
//! bytes make it panic.

use std::collections::HashMap;
use std::io::Read as _;

use serde::{Deserialize, Serialize};
use serde_bytes::{ByteBuf, Bytes};
use sinew_crdt_state::cbor::{self, DecodeError};
use sinew_crdt_state::certificate::Credential;
use sinew_crdt_state::envelope::Envelope;
use sinew_crdt_state::identity::Signature;
use sinew_crdt_state::ids::{DiskId, FactId, JobId, NodeId};
use sinew_crdt_state::ledger::{OwnerMark, SealedEntry};
use sinew_scheduler::io::Record;
use sinew_scheduler::view::JobRow;
use sinew_scheduler::wire::Seen;

/// Bytes of a packed fact beside its payload and what it shares, at most: small numbers and CBOR's heads.
const FACT_OVERHEAD: usize = 48;
/// The same of an entry.
const ENTRY_OVERHEAD: usize = 16;
/// More than any entry has: damaged bytes must not fill the memory.
const INFLATED_MAX: u64 = 1 << 30;

/// A job's facts as they are stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    /// The job.
    pub(super) job: JobId,
    /// Whether only its receipt is left.
    pub(super) forgotten: bool,
    /// Its facts, in order of their ids.
    pub(super) facts: Vec<Envelope>,
}

/// Author, signature, sides, path, payload.
type PackedFact<B> = (u32, u32, u16, Vec<u32>, B);
/// Job, whether it is forgotten, facts.
type PackedEntry<B> = (u32, bool, Vec<PackedFact<B>>);
/// Submitter, serial, seal, when it was learned of, whether outputs are missing.
type PackedSeal = (u32, u64, u32, u64, bool);

/// A record of a group.
#[derive(Serialize, Deserialize)]
enum PackedRecord<B> {
    #[serde(rename = "f")]
    Fact(u32, PackedFact<B>),
    #[serde(rename = "s")]
    Sealed(u32, PackedSeal, Option<Box<JobRow>>),
    /// The same of a job that did not complete: with what its seal says.
    #[serde(rename = "t")]
    SealedSaying(u32, PackedSeal, u64, Option<Box<JobRow>>),
    /// Of several of one owner only the last carries the mark: it covers those before it.
    #[serde(rename = "g")]
    Forget(u32, u32, Option<OwnerMark>),
    #[serde(rename = "m")]
    Member(Credential),
    #[serde(rename = "r")]
    Retract(u32),
    #[serde(rename = "n")]
    Seen(u32, Seen),
    #[serde(rename = "d")]
    Disk(DiskId, u64),
}

/// What the packed things share: digests of 32 bytes, signatures, and the things.
type Shared<B, T> = (B, B, Vec<T>);

/// Numbers for what is shared, in order of appearance.
#[derive(Default)]
struct Dictionary {
    digests: Vec<[u8; 32]>,
    digest_numbers: HashMap<[u8; 32], u32>,
    signatures: Vec<[u8; 64]>,
    signature_numbers: HashMap<[u8; 64], u32>,
}

/// The number of `item`, which is new or known.
fn number<const N: usize>(items: &mut Vec<[u8; N]>, numbers: &mut HashMap<[u8; N], u32>, item: &[u8; N]) -> u32 {
    *numbers.entry(*item).or_insert_with(|| {
        items.push(*item);
        u32::try_from(items.len() - 1).unwrap_or(u32::MAX)
    })
}

impl Dictionary {
    fn digest(&mut self, digest: &[u8; 32]) -> u32 {
        number(&mut self.digests, &mut self.digest_numbers, digest)
    }

    fn fact<'a>(&mut self, envelope: &'a Envelope) -> PackedFact<&'a Bytes> {
        let author = self.digest(&envelope.author.0);
        let signature = number(&mut self.signatures, &mut self.signature_numbers, &envelope.signature.0);
        let path = envelope.path.iter().map(|digest| self.digest(digest)).collect();
        (author, signature, envelope.sides, path, Bytes::new(&envelope.payload))
    }

    fn seal<T: Serialize>(&self, things: &Vec<T>) -> Vec<u8> {
        let digests = Bytes::new(self.digests.as_flattened());
        let signatures = Bytes::new(self.signatures.as_flattened());
        cbor::to_vec(&(digests, signatures, things))
    }
}

/// The other way round.
struct Lookup {
    digests: ByteBuf,
    signatures: ByteBuf,
}

impl Lookup {
    fn open<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<(Self, Vec<T>), DecodeError> {
        let (digests, signatures, things) = cbor::from_slice::<Shared<ByteBuf, T>>(bytes)?;
        Ok((Self { digests, signatures }, things))
    }

    fn digest(&self, number: u32) -> Result<[u8; 32], DecodeError> {
        item(&self.digests, number)
    }

    fn sealed(&self, job: u32, seal: PackedSeal, says: u64, row: Option<Box<JobRow>>) -> Result<Record, DecodeError> {
        let (submitter, serial, seal, sealed_ms, lacks_outputs) = seal;
        let (submitter, seal) = (NodeId(self.digest(submitter)?), FactId(self.digest(seal)?));
        let entry = SealedEntry { submitter, serial, seal, sealed_ms, lacks_outputs, says };
        Ok(Record::Sealed { job: JobId(self.digest(job)?), entry, row })
    }

    fn envelope(&self, entry: JobId, packed: PackedFact<ByteBuf>) -> Result<Envelope, DecodeError> {
        let (author, signature, sides, path, payload) = packed;
        Ok(Envelope {
            entry,
            author: NodeId(self.digest(author)?),
            payload: payload.into_vec(),
            sides,
            path: path.into_iter().map(|number| self.digest(number)).collect::<Result<_, _>>()?,
            signature: Signature(item(&self.signatures, signature)?),
        })
    }
}

fn item<const N: usize>(items: &[u8], number: u32) -> Result<[u8; N], DecodeError> {
    let found = items.as_chunks().0.get(number as usize);
    found.copied().ok_or_else(|| DecodeError::Malformed(format!("no item {number} is in the dictionary")))
}

/// Packs entries, and knows how large they have become.
#[derive(Default)]
pub(super) struct Packer<'a> {
    shared: Dictionary,
    entries: Vec<PackedEntry<&'a Bytes>>,
    body: usize,
}

impl<'a> Packer<'a> {
    /// Adds an entry.
    pub(super) fn push(&mut self, entry: &'a Entry) {
        let job = self.shared.digest(&entry.job.0);
        let facts: Vec<_> = entry.facts.iter().map(|envelope| self.shared.fact(envelope)).collect();
        self.body += ENTRY_OVERHEAD + entry.facts.iter().map(|e| e.payload.len() + FACT_OVERHEAD).sum::<usize>();
        self.entries.push((job, entry.forgotten, facts));
    }

    /// Bytes that [`Self::finish`] gives, at most.
    pub(super) fn size_max(&self) -> usize {
        ENTRY_OVERHEAD + self.body + self.shared.digests.len() * 32 + self.shared.signatures.len() * 64
    }

    /// The bytes.
    pub(super) fn finish(&self) -> Vec<u8> {
        self.shared.seal(&self.entries)
    }
}

/// The most that an entry adds to a packer that shares nothing with it.
pub(super) fn size_alone(entry: &Entry) -> usize {
    let fact = |e: &Envelope| e.payload.len() + FACT_OVERHEAD + 32 * (1 + e.path.len()) + 64;
    ENTRY_OVERHEAD + 32 + entry.facts.iter().map(fact).sum::<usize>()
}

/// Entries from a packer's bytes.
pub(super) fn unpack(bytes: &[u8]) -> Result<Vec<Entry>, DecodeError> {
    let (lookup, packed) = Lookup::open::<PackedEntry<ByteBuf>>(bytes)?;
    let entry = |(job, forgotten, facts): PackedEntry<ByteBuf>| {
        let job = JobId(lookup.digest(job)?);
        let facts = facts.into_iter().map(|fact| lookup.envelope(job, fact)).collect::<Result<_, _>>()?;
        Ok(Entry { job, forgotten, facts })
    };
    packed.into_iter().map(entry).collect()
}

/// Makes packed entries of neighbours smaller still: their payloads name the same fields and the same nodes.
pub(super) fn deflate(bytes: &[u8]) -> Vec<u8> {
    // The fastest level: higher ones gain a twentieth.
    let mut small = flate2::read::DeflateEncoder::new(bytes, flate2::Compression::fast());
    let mut out = Vec::new();
    // Reading from memory does not fail.
    let _ = small.read_to_end(&mut out);
    out
}

/// The other way round.
pub(super) fn inflate(bytes: &[u8]) -> Result<Vec<u8>, DecodeError> {
    let mut out = Vec::new();
    let read = flate2::read::DeflateDecoder::new(bytes).take(INFLATED_MAX).read_to_end(&mut out);
    read.map_err(|e| DecodeError::Malformed(e.to_string()))?;
    Ok(out)
}

/// Packs the records of a group.
pub(super) fn pack_records<'a>(records: impl DoubleEndedIterator<Item = &'a Record>) -> Vec<u8> {
    let mut shared = Dictionary::default();
    let mut marked = std::collections::BTreeSet::new();
    // From the end, to see which of an owner's marks is the last one.
    let mut packed: Vec<PackedRecord<&Bytes>> = records
        .rev()
        .map(|record| match record {
            Record::Fact { envelope, .. } => {
                PackedRecord::Fact(shared.digest(&envelope.entry.0), shared.fact(envelope))
            }
            Record::Sealed { job, entry, row } => {
                let (submitter, seal) = (shared.digest(&entry.submitter.0), shared.digest(&entry.seal.0));
                let packed = (submitter, entry.serial, seal, entry.sealed_ms, entry.lacks_outputs);
                match entry.says {
                    0 => PackedRecord::Sealed(shared.digest(&job.0), packed, row.clone()),
                    says => PackedRecord::SealedSaying(shared.digest(&job.0), packed, says, row.clone()),
                }
            }
            Record::Forget { job, owner, mark } => {
                let mark = marked.insert(*owner).then(|| mark.clone());
                PackedRecord::Forget(shared.digest(&job.0), shared.digest(&owner.0), mark)
            }
            Record::Member { credential } => PackedRecord::Member(credential.clone()),
            Record::Retract { job } => PackedRecord::Retract(shared.digest(&job.0)),
            Record::Seen { node, seen } => PackedRecord::Seen(shared.digest(&node.0), seen.clone()),
            Record::Disk { disk, incarnation } => PackedRecord::Disk(*disk, *incarnation),
        })
        .collect();
    packed.reverse();
    shared.seal(&packed)
}

/// The records of a group.
pub(super) fn unpack_records(bytes: &[u8]) -> Result<Vec<Record>, DecodeError> {
    let (lookup, packed) = Lookup::open::<PackedRecord<ByteBuf>>(bytes)?;
    let mut marks: HashMap<NodeId, OwnerMark> = HashMap::new();
    let mut records = packed
        .into_iter()
        .rev()
        .map(|packed| {
            Ok(match packed {
                PackedRecord::Fact(job, fact) => {
                    let envelope = lookup.envelope(JobId(lookup.digest(job)?), fact)?;
                    Record::Fact { id: envelope.fact_id(), envelope }
                }
                PackedRecord::Sealed(job, seal, row) => lookup.sealed(job, seal, 0, row)?,
                PackedRecord::SealedSaying(job, seal, says, row) => lookup.sealed(job, seal, says, row)?,
                PackedRecord::Forget(job, owner, mark) => {
                    let owner = NodeId(lookup.digest(owner)?);
                    if let Some(mark) = mark {
                        marks.insert(owner, mark);
                    }
                    let mark = marks.get(&owner).cloned();
                    let mark = mark.ok_or_else(|| DecodeError::Malformed("an owner's mark is missing".to_owned()))?;
                    Record::Forget { job: JobId(lookup.digest(job)?), owner, mark }
                }
                PackedRecord::Member(credential) => Record::Member { credential },
                PackedRecord::Retract(job) => Record::Retract { job: JobId(lookup.digest(job)?) },
                PackedRecord::Seen(node, seen) => Record::Seen { node: NodeId(lookup.digest(node)?), seen },
                PackedRecord::Disk(disk, incarnation) => Record::Disk { disk, incarnation },
            })
        })
        .collect::<Result<Vec<_>, DecodeError>>()?;
    records.reverse();
    Ok(records)
}
