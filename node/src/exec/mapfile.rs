//! The map output file: what one map task hands to the reducers, and the form of a sort's spilled runs.
//!
//! ```text
//! offset  bytes  field (integers little endian)
//!      0      8  magic "SINEWMAP"
//!      8      4  version, 1
//!     12      4  partitions P, 1 to 4096
//!     16   24·P  per partition: offset, length in bytes, number of lines (u64 each)
//!  16+24P      …  partition 0's lines, partition 1's, …
//! ```
//!
//! The partitions lie one behind the other without gaps. Each is lines ended by `\n`, sorted by their bytes without it; a
//! shorter line sorts before a longer one that begins with it, as `LC_ALL=C sort` has it. A reducer fetches the header and then
//! its one range. The file comes from a peer, so [`MapIndex::parse`] believes nothing.

use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use sinew_crdt_state::spec::PARTITIONS_MAX;

use super::outcome::Failure;

const MAGIC: &[u8; 8] = b"SINEWMAP";
const VERSION: u32 = 1;
/// Bytes before the per-partition entries: enough to learn how long the header is.
pub const PREAMBLE_LEN: usize = 16;
const ENTRY_LEN: usize = 24;
/// Write buffer: large writes, few of them.
const BUFFER_LEN: usize = 256 * 1024;

/// Where each partition lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MapIndex {
    entries: Vec<Entry>,
}

/// One partition in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
    /// Lines.
    pub lines: u64,
}

/// Why bytes are no header of a map output.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadMapFile {
    /// Shorter than its header.
    #[error("a map output of {0} bytes is shorter than its header")]
    Short(usize),
    /// Something else altogether.
    #[error("this is no map output: it does not begin with SINEWMAP")]
    Magic,
    /// From another version.
    #[error("map output version {0} is not known here, only {VERSION}")]
    Version(u32),
    /// Too many partitions, or none.
    #[error("a map output cannot have {0} partitions")]
    Partitions(u32),
    /// A partition is not where it must be.
    #[error("partition {0} of the map output does not lie right behind the one before it")]
    Layout(u32),
    /// The file ends before, or goes on after, its last partition.
    #[error("the map output should take {expected} bytes and takes {found}")]
    Size {
        /// By its header.
        expected: u64,
        /// In fact.
        found: u64,
    },
}

impl MapIndex {
    /// Length of the whole header, from its first [`PREAMBLE_LEN`] bytes.
    ///
    /// # Errors
    /// [`BadMapFile`] when they are no beginning of a map output.
    pub fn header_len(preamble: &[u8]) -> Result<usize, BadMapFile> {
        let short = BadMapFile::Short(preamble.len());
        let (magic, rest) = preamble.split_first_chunk::<8>().ok_or_else(|| short.clone())?;
        let (version, rest) = rest.split_first_chunk::<4>().ok_or_else(|| short.clone())?;
        let (partitions, _) = rest.split_first_chunk::<4>().ok_or(short)?;
        if magic != MAGIC {
            return Err(BadMapFile::Magic);
        }
        let version = u32::from_le_bytes(*version);
        if version != VERSION {
            return Err(BadMapFile::Version(version));
        }
        let partitions = u32::from_le_bytes(*partitions);
        if !(1..=PARTITIONS_MAX).contains(&partitions) {
            return Err(BadMapFile::Partitions(partitions));
        }
        Ok(PREAMBLE_LEN + ENTRY_LEN * partitions as usize)
    }

    /// Reads the header of a map output of `file_len` bytes from its beginning; more bytes than the header may be given.
    ///
    /// # Errors
    /// [`BadMapFile`] unless every range lies inside the file, in order and without gaps.
    pub fn parse(beginning: &[u8], file_len: u64) -> Result<Self, BadMapFile> {
        let header_len = Self::header_len(beginning)?;
        let table = beginning.get(PREAMBLE_LEN..header_len).ok_or(BadMapFile::Short(beginning.len()))?;
        let mut at = header_len as u64;
        let mut entries = Vec::with_capacity(table.len() / ENTRY_LEN);
        for (i, raw) in (0_u32..).zip(table.chunks_exact(ENTRY_LEN)) {
            let field = |n: usize| raw[n * 8..].first_chunk().map_or(0, |b| u64::from_le_bytes(*b));
            let entry = Entry { offset: field(0), len: field(1), lines: field(2) };
            let plausible = entry.lines <= entry.len && (entry.lines == 0) == (entry.len == 0);
            let end = at.checked_add(entry.len).filter(|_| entry.offset == at && plausible);
            at = end.ok_or(BadMapFile::Layout(i))?;
            entries.push(entry);
        }
        if at != file_len {
            return Err(BadMapFile::Size { expected: at, found: file_len });
        }
        Ok(Self { entries })
    }

    /// The header's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(PREAMBLE_LEN + ENTRY_LEN * self.entries.len());
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&u32::try_from(self.entries.len()).unwrap_or(u32::MAX).to_le_bytes());
        for entry in &self.entries {
            for field in [entry.offset, entry.len, entry.lines] {
                out.extend_from_slice(&field.to_le_bytes());
            }
        }
        out
    }

    /// The bytes of `partition` in the file; `None` when it has no such partition.
    #[must_use]
    pub fn range_of(&self, partition: u32) -> Option<Range<u64>> {
        let entry = self.entries.get(partition as usize)?;
        Some(entry.offset..entry.offset + entry.len)
    }

    /// Every partition.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Bytes of the whole file.
    #[must_use]
    pub fn file_len(&self) -> u64 {
        self.entries.last().map_or(0, |e| e.offset + e.len)
    }
}

/// Takes a sort's lines in order: partitions ascending, lines ascending within each.
pub(super) trait SortedSink {
    /// Takes one line, without its newline.
    fn line(&mut self, partition: u32, line: &[u8]) -> Result<(), Failure>;
}

/// Writes a map output from sorted lines.
#[derive(Debug)]
pub(super) struct MapWriter {
    out: BufWriter<File>,
    index: MapIndex,
}

/// A written map output.
#[derive(Debug, Clone)]
pub(super) struct MapFile {
    pub(super) file: Arc<File>,
    pub(super) index: MapIndex,
}

impl MapWriter {
    /// Writes into `file`, which is new and empty.
    pub(super) fn new(file: File, partitions: u32) -> Result<Self, Failure> {
        let start = (PREAMBLE_LEN + ENTRY_LEN * partitions as usize) as u64;
        let entries = vec![Entry { offset: start, len: 0, lines: 0 }; partitions as usize];
        let mut writer = Self { out: BufWriter::with_capacity(BUFFER_LEN, file), index: MapIndex { entries } };
        // The lengths are only known at the end; until then a header with a wrong size keeps the file from being taken as whole.
        let blank = vec![0; usize::try_from(start).unwrap_or(usize::MAX)];
        writer.out.write_all(&blank).map_err(|e| write_failure(&e))?;
        Ok(writer)
    }

    /// Completes the file.
    pub(super) fn finish(mut self) -> Result<MapFile, Failure> {
        let mut at = self.index.entries.first().map_or(0, |e| e.offset);
        for entry in &mut self.index.entries {
            entry.offset = at;
            at += entry.len;
        }
        let file = self.out.into_inner().map_err(|e| write_failure(e.error()))?;
        file.write_all_at(&self.index.encode(), 0).map_err(|e| write_failure(&e))?;
        Ok(MapFile { file: Arc::new(file), index: self.index })
    }
}

impl SortedSink for MapWriter {
    fn line(&mut self, partition: u32, line: &[u8]) -> Result<(), Failure> {
        let entry = &mut self.index.entries[partition as usize];
        entry.len += line.len() as u64 + 1;
        entry.lines += 1;
        self.out.write_all(line).and_then(|()| self.out.write_all(b"\n")).map_err(|e| write_failure(&e))
    }
}

fn write_failure(error: &io::Error) -> Failure {
    Failure::storage("write a map output", error)
}

impl MapFile {
    /// Reads one partition.
    pub(super) fn partition(&self, partition: u32) -> Segment {
        let range = self.index.range_of(partition).unwrap_or(0..0);
        Segment { file: Arc::clone(&self.file), at: range.start, end: range.end }
    }
}

/// A range of a file, readable by many at once.
#[derive(Debug)]
pub(super) struct Segment {
    file: Arc<File>,
    at: u64,
    end: u64,
}

impl Segment {
    pub(super) const fn len(&self) -> u64 {
        self.end - self.at
    }
}

impl Read for Segment {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let want = usize::try_from(self.len()).unwrap_or(usize::MAX).min(out.len());
        let got = self.file.read_at(&mut out[..want], self.at)?;
        if got == 0 && want > 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
        }
        self.at += got as u64;
        Ok(got)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sample() -> (Vec<u8>, MapIndex) {
        let mut writer = MapWriter::new(tempfile::tempfile().expect("file"), 3).expect("writer");
        for (partition, line) in [(0, "a\t1"), (0, "b"), (2, "")] {
            writer.line(partition, line.as_bytes()).expect("line");
        }
        let map = writer.finish().expect("finish");
        let mut bytes = vec![0; usize::try_from(map.index.file_len()).expect("small")];
        map.file.read_exact_at(&mut bytes, 0).expect("read");
        let mut text = String::new();
        map.partition(0).read_to_string(&mut text).expect("partition");
        assert_eq!(text, "a\t1\nb\n");
        (bytes, map.index)
    }

    #[test]
    fn a_written_file_reads_back() {
        let (bytes, index) = sample();
        assert_eq!(MapIndex::parse(&bytes, bytes.len() as u64), Ok(index.clone()));
        assert_eq!(MapIndex::header_len(&bytes[..PREAMBLE_LEN]), Ok(16 + 3 * 24));
        assert_eq!(index.range_of(1), Some(94..94));
        assert_eq!(index.range_of(2), Some(94..95));
        assert_eq!(index.range_of(3), None);
    }

    #[test]
    fn damage_is_named() {
        let (bytes, _) = sample();
        let len = bytes.len() as u64;
        let with = |at: usize, value: u8| {
            let mut copy = bytes.clone();
            copy[at] = value;
            MapIndex::parse(&copy, len)
        };
        assert_eq!(with(0, b'X'), Err(BadMapFile::Magic));
        assert_eq!(with(8, 9), Err(BadMapFile::Version(9)));
        assert_eq!(with(12, 0), Err(BadMapFile::Partitions(0)));
        assert_eq!(with(14, 1), Err(BadMapFile::Partitions(65_539)));
        assert_eq!(with(16, 1), Err(BadMapFile::Layout(0)));
        assert_eq!(with(31, 255), Err(BadMapFile::Layout(1)), "a length that ends far outside");
        assert!(matches!(MapIndex::parse(&bytes, len + 1), Err(BadMapFile::Size { .. })));
        assert_eq!(MapIndex::parse(&bytes[..20], len), Err(BadMapFile::Short(20)));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic_or_point_outside(mut bytes in prop::collection::vec(any::<u8>(), 0..300), file_len in any::<u64>(), headed in any::<bool>()) {
            if headed && bytes.len() >= 16 {
                bytes[..8].copy_from_slice(MAGIC);
                bytes[8..16].copy_from_slice(&[1, 0, 0, 0, 3, 0, 0, 0]);
            }
            if let Ok(index) = MapIndex::parse(&bytes, file_len) {
                prop_assert!((0..3).all(|p| index.range_of(p).is_some_and(|r| r.start <= r.end && r.end <= file_len)));
            }
        }
    }
}
