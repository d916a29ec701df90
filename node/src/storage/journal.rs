//! The journal: files beside the ledger's into which each group of records is appended and synced before it is acknowledged.
//!
//! A file is a row of frames, each of whole pages: magic, length, the group's number, a checksum, the group. A page that was
//! acknowledged is never written again while it counts. Files are written over when a checkpoint has taken what they hold, not
//! cut: so a sync has no metadata to write. Groups are numbered without a gap over all files, so what counts is told by the
//! numbers alone: those behind the last checkpoint. The checksum is keyed by a secret of this ledger, so that neither an old
//! frame of another ledger nor bytes that a peer put into a fact can pass for a frame.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::disk::{Disk, DiskFile};

/// What disks and the page cache write at once: two frames never share one.
pub(super) const PAGE: usize = 4096;
/// A new file's length: enough for a node that has little to do, and two of them for a test's disk of a few MB.
pub(super) const LEN_MIN: u64 = 256 << 10;
/// Files grow so far under load. Longer ones mean fewer checkpoints, but what they hold is in memory too, twice while a checkpoint
/// is under way; from some thousand records on a checkpoint costs the same for each.
pub(super) const LEN_MAX: u64 = 2 << 20;
/// Zeros are written in pieces of this size.
const FILL: usize = 256 << 10;

const MAGIC: [u8; 4] = *b"SNJ1";
/// Magic, length of the payload, number, checksum.
const HEAD: usize = 4 + 4 + 8 + 16;

/// The secret that keys the checksums of one ledger.
#[derive(Clone, Copy)]
pub(super) struct Key([u8; 32]);

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key")
    }
}

impl Key {
    /// From the numbers drawn when the ledger was made.
    pub(super) fn new(drawn: [u64; 2]) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("sinew journal key 1");
        hasher.update(&drawn[0].to_le_bytes()).update(&drawn[1].to_le_bytes());
        Self(*hasher.finalize().as_bytes())
    }

    fn checksum(&self, number: u64, payload: &[u8]) -> [u8; 16] {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        let hash = hasher.update(&number.to_le_bytes()).update(payload).finalize();
        *hash.as_bytes().first_chunk().expect("a hash of 32 bytes has 16")
    }
}

/// A frame's bytes, filled up to whole pages. `None` when the group is too large for any frame.
fn frame(key: &Key, number: u64, payload: &[u8]) -> Option<Vec<u8>> {
    let len = u32::try_from(payload.len()).ok()?;
    let mut bytes = Vec::with_capacity((HEAD + payload.len()).next_multiple_of(PAGE));
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&len.to_le_bytes());
    bytes.extend_from_slice(&number.to_le_bytes());
    bytes.extend_from_slice(&key.checksum(number, payload));
    bytes.extend_from_slice(payload);
    bytes.resize(bytes.len().next_multiple_of(PAGE), 0);
    Some(bytes)
}

/// The frame at the beginning of `bytes`: its number, its payload and its length in whole pages.
fn parse<'a>(key: &Key, bytes: &'a [u8]) -> Option<(u64, &'a [u8], usize)> {
    let (magic, rest) = bytes.split_first_chunk::<4>()?;
    let (len, rest) = rest.split_first_chunk::<4>()?;
    let (number, rest) = rest.split_first_chunk::<8>()?;
    let (checksum, rest) = rest.split_first_chunk::<16>()?;
    let payload = rest.get(..u32::from_le_bytes(*len) as usize).filter(|_| *magic == MAGIC)?;
    let number = u64::from_le_bytes(*number);
    let whole = key.checksum(number, payload) == *checksum;
    whole.then(|| (number, payload, (HEAD + payload.len()).next_multiple_of(PAGE)))
}

/// A file that is, or may be, written to.
#[derive(Debug)]
pub(super) struct JournalFile {
    pub(super) number: u32,
    pub(super) file: Box<dyn DiskFile>,
    /// Its length, as far as it was filled with zeros or frames.
    pub(super) len: u64,
}

/// Where the files are and how they are keyed.
#[derive(Debug, Clone)]
pub(super) struct Journal {
    disk: Arc<dyn Disk>,
    ledger: PathBuf,
    key: Key,
}

/// What the files hold behind the last checkpoint, in order.
#[derive(Debug, Default)]
pub(super) struct Replay {
    pub(super) groups: Vec<(u64, Vec<u8>)>,
    /// The number of the last group there is.
    pub(super) last: u64,
    /// The files, by number.
    pub(super) files: Vec<u32>,
}

/// Where a group is missing that others follow.
#[derive(Debug)]
pub(super) struct Gap {
    /// The file in which it should be.
    pub(super) path: PathBuf,
    /// Where in it.
    pub(super) offset: u64,
    /// Its number.
    pub(super) group: u64,
}

/// Why the journal cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The disk does not give a file's bytes.
    #[error("cannot read the journal {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Something is missing in the midst of what was acknowledged.
    #[error("the journal {path} is damaged at byte {offset}: record group {group} is not there, and later ones are")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where the group should be.
        offset: u64,
        /// Its number.
        group: u64,
    },
}

impl Journal {
    pub(super) fn new(disk: Arc<dyn Disk>, ledger: &Path, key: Key) -> Self {
        Self { disk, ledger: ledger.to_owned(), key }
    }

    fn path(&self, number: u32) -> PathBuf {
        self.ledger.with_extension(format!("journal.{number}"))
    }

    fn dir(&self) -> &Path {
        self.ledger.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."))
    }

    /// Opens or makes a file and fills it with zeros up to `len`.
    pub(super) fn prepare(&self, number: u32, len: u64) -> io::Result<JournalFile> {
        let file = self.disk.open(&self.path(number))?;
        let mut journal = JournalFile { number, len: file.len()?, file };
        let is_new = journal.len == 0;
        self.lengthen(&mut journal, len)?;
        if is_new {
            self.disk.sync_dir(self.dir())?;
        }
        Ok(journal)
    }

    /// Fills a file with zeros up to `len`, so that later syncs change no metadata.
    pub(super) fn lengthen(&self, journal: &mut JournalFile, len: u64) -> io::Result<()> {
        if journal.len >= len {
            return Ok(());
        }
        let zeros = vec![0; FILL];
        let mut at = journal.len;
        while at < len {
            let piece = usize::try_from(len - at).unwrap_or(FILL).min(FILL);
            journal.file.write_at(at, &zeros[..piece])?;
            at += piece as u64;
        }
        journal.file.sync()?;
        journal.len = len;
        Ok(())
    }

    /// Appends a group at `at` and waits until it is on the platter. Returns how many bytes it takes.
    pub(super) fn append(&self, journal: &mut JournalFile, at: u64, number: u64, payload: &[u8]) -> io::Result<u64> {
        let bytes = frame(&self.key, number, payload)
            .ok_or_else(|| io::Error::other("a group of records takes more than 4 GiB"))?;
        journal.file.write_at(at, &bytes)?;
        journal.file.sync()?;
        let taken = bytes.len() as u64;
        journal.len = journal.len.max(at + taken);
        Ok(taken)
    }

    /// Deletes a file. That it stays is no harm: what it holds is in the ledger, or was never acknowledged.
    pub(super) fn remove(&self, number: u32) {
        if let Err(error) = self.disk.remove(&self.path(number)) {
            tracing::warn!(path = %self.path(number).display(), %error, "cannot delete an old journal");
        }
    }

    /// Bytes free where the journal is.
    pub(super) fn room(&self) -> u64 {
        self.disk.room(&self.ledger)
    }

    /// The groups after number `applied`, in order. The last one of all may have been torn by a crash: it was not acknowledged.
    pub(super) fn replay(&self, applied: u64) -> Result<Replay, JournalError> {
        let (replay, gap) = self.found(applied)?;
        match gap {
            Some(Gap { path, offset, group }) => Err(JournalError::Damaged { path, offset, group }),
            None => Ok(replay),
        }
    }

    /// The same, with where the first group is missing that others follow.
    pub(super) fn found(&self, applied: u64) -> Result<(Replay, Option<Gap>), JournalError> {
        let mut found: BTreeMap<u64, (u32, u64, Vec<u8>)> = BTreeMap::new();
        let mut ends: BTreeMap<u64, (u32, u64)> = BTreeMap::new();
        let files = self.numbers()?;
        for number in &files {
            let bytes = self.read(*number)?;
            let mut at = 0;
            while at < bytes.len() {
                let Some((group, payload, len)) = parse(&self.key, &bytes[at..]) else {
                    at += PAGE;
                    continue;
                };
                if group > applied {
                    // A group that is there twice is the same both times: it was written again after an error.
                    found.entry(group).or_insert_with(|| (*number, at as u64, payload.to_vec()));
                }
                at += len;
                ends.insert(group, (*number, at as u64));
            }
        }
        let missing = (applied + 1..).zip(found.keys()).find(|(expected, group)| *group != expected);
        let gap = missing.map(|(expected, group)| {
            let (number, offset) = ends.get(&(expected - 1)).copied().unwrap_or_else(|| (found[group].0, 0));
            Gap { path: self.path(number), offset, group: expected }
        });
        let last = found.keys().next_back().copied().unwrap_or(applied);
        let groups = found.into_iter().map(|(group, (_, _, payload))| (group, payload)).collect();
        Ok((Replay { groups, last, files }, gap))
    }

    fn read(&self, number: u32) -> Result<Vec<u8>, JournalError> {
        let read = || {
            let file = self.disk.open(&self.path(number))?;
            let mut bytes = vec![0; usize::try_from(file.len()?).map_err(io::Error::other)?];
            file.read_at(0, &mut bytes)?;
            Ok(bytes)
        };
        read().map_err(|source| JournalError::Read { path: self.path(number), source })
    }

    fn numbers(&self) -> Result<Vec<u32>, JournalError> {
        let listed = self.disk.list(self.dir());
        let listed = listed.map_err(|source| JournalError::Read { path: self.dir().to_owned(), source })?;
        let prefix = format!("{}.journal.", self.ledger.file_stem().unwrap_or_default().to_string_lossy());
        let number = |path: PathBuf| path.file_name()?.to_str()?.strip_prefix(&prefix)?.parse().ok();
        let mut numbers: Vec<u32> = listed.into_iter().filter_map(number).collect();
        numbers.sort_unstable();
        Ok(numbers)
    }
}
