//! The map side of the shuffle: takes a mapper's stdout and makes one sorted, partitioned map output file of it
//! ([`super::mapfile`]), in a bounded amount of memory.
//!
//! A line's *key* is what comes before its first tab, or the whole line if it has none. Its partition is
//!
//! ```text
//! h = 0xcbf29ce484222325; for each byte b of the key: h = (h ^ b) * 0x100000001b3 mod 2^64      (FNV-1a, 64 bit)
//! partition = (h ^ (h >> 32)) mod P
//! ```
//!
//! FNV-1a because keys are short and the hash only has to spread, not to resist anybody; folded because its low bits alone
//! depend on the low bits of the key alone. Within a partition lines are sorted by all their bytes, so that the whole equals
//! `cat | mapper | LC_ALL=C sort | reducer` for each partition. A last line without a newline gets one, as `sort` gives it.
//!
//! Beyond the budget sorted runs are spilled to unnamed temporary files and merged at the end. Where the combiner is
//! `sinew:sum`, it is applied on the way to every file, which changes no result because sums of sums are sums.

use std::fs::File;
use std::path::{Path, PathBuf};

use super::builtin::SumFold;
use super::mapfile::{MapFile, MapIndex, MapWriter, SortedSink};
use super::merge::{FAN_IN, Merge};
use super::outcome::Failure;
use super::runner::Sink;
use super::sort::Arena;

/// Memory that one map task sorts in unless told otherwise: big enough that a chunk of the usual 64 MiB rarely spills, small
/// enough for every core of a small machine to have one.
pub const SORT_BUDGET_DEFAULT: usize = 64 * 1024 * 1024;
/// Most and least of it: offsets are 32 bits wide, and tiny runs would make more files than lines.
const SORT_BUDGET_MAX: usize = 1 << 30;

/// The key of `line`.
#[must_use]
pub fn key_of(line: &[u8]) -> &[u8] {
    memchr::memchr(b'\t', line).map_or(line, |tab| &line[..tab])
}

/// The partition of `key` among `partitions`, as the module's header defines it.
#[must_use]
pub fn partition_of(key: &[u8], partitions: u32) -> u32 {
    let step = |h: u64, b: &u8| (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3);
    let hash = key.iter().fold(0xcbf2_9ce4_8422_2325, step);
    let rest = (hash ^ (hash >> 32)) % u64::from(partitions.max(1));
    u32::try_from(rest).unwrap_or(0)
}

/// How a shuffle works.
#[derive(Debug, Clone)]
pub struct ShuffleConfig {
    /// How many partitions.
    pub partitions: u32,
    /// Bytes sorted in memory.
    pub budget: usize,
    /// For spilled runs.
    pub scratch: PathBuf,
    /// Whether to sum equal keys.
    pub sum: bool,
}

/// A shuffle that takes lines.
#[derive(Debug)]
pub struct Shuffler {
    config: ShuffleConfig,
    arena: Arena,
    runs: Vec<MapFile>,
    spills: u32,
}

impl Shuffler {
    /// An empty one.
    #[must_use]
    pub fn new(config: ShuffleConfig) -> Self {
        Self { config, arena: Arena::default(), runs: Vec::new(), spills: 0 }
    }

    /// How many runs were spilled so far.
    #[must_use]
    pub const fn spills(&self) -> u32 {
        self.spills
    }

    fn close_line(&mut self) -> Result<(), Failure> {
        let partition = match self.config.partitions {
            0 | 1 => 0,
            many => partition_of(key_of(self.arena.open_line()), many),
        };
        self.arena.close(partition)?;
        if self.arena.size() > self.config.budget.min(SORT_BUDGET_MAX) {
            self.spill()?;
        }
        Ok(())
    }

    fn spill(&mut self) -> Result<(), Failure> {
        let mut out = Output::new(self.scratch_file()?, &self.config)?;
        self.arena.drain_sorted(&mut out)?;
        self.runs.push(out.finish()?);
        self.spills += 1;
        if self.runs.len() >= FAN_IN {
            // Keeps descriptors and buffers bounded whatever the volume.
            let file = self.scratch_file()?;
            let merged = merge_runs(&std::mem::take(&mut self.runs), file, &self.config)?;
            self.runs.push(merged);
        }
        Ok(())
    }

    fn scratch_file(&self) -> Result<File, Failure> {
        tempfile::tempfile_in(&self.config.scratch).map_err(|e| Failure::storage("create a sort file", &e))
    }

    /// Sorts everything into `file`, which must be new, empty and readable.
    ///
    /// # Errors
    /// `E_STORAGE` when the disk refuses, `E_INVALID` when a line cannot be summed.
    pub fn finish(mut self, file: File) -> Result<MapIndex, Failure> {
        Ok(self.finish_file(file)?.index)
    }

    /// Ends the line that is still growing: the next bytes come from another program.
    pub(super) fn end_line(&mut self) -> Result<(), Failure> {
        if self.arena.open_line().is_empty() { Ok(()) } else { self.close_line() }
    }

    pub(super) fn finish_file(&mut self, file: File) -> Result<MapFile, Failure> {
        self.end_line()?;
        if self.runs.is_empty() {
            let mut out = Output::new(file, &self.config)?;
            self.arena.drain_sorted(&mut out)?;
            return out.finish();
        }
        if !self.arena.is_empty() {
            self.spill()?;
        }
        self.arena = Arena::default();
        merge_runs(&self.runs, file, &self.config)
    }

    /// As [`Self::finish`], into a new file at `path`.
    ///
    /// # Errors
    /// As there.
    pub fn finish_at(self, path: &Path) -> Result<MapIndex, Failure> {
        let mut options = File::options();
        let file = options.read(true).write(true).create_new(true).open(path);
        self.finish(file.map_err(|e| Failure::storage("create the map output", &e))?)
    }
}

impl Sink for Shuffler {
    fn take(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        let mut rest = bytes;
        while let Some(end) = memchr::memchr(b'\n', rest) {
            self.arena.extend(&rest[..end])?;
            self.close_line()?;
            rest = &rest[end + 1..];
        }
        self.arena.extend(rest)
    }
}

/// A map file being written, through a sum or not.
#[derive(Debug)]
enum Output {
    Plain(MapWriter),
    Sum(SumFold<MapWriter>),
}

impl Output {
    fn new(file: File, config: &ShuffleConfig) -> Result<Self, Failure> {
        let writer = MapWriter::new(file, config.partitions.max(1))?;
        Ok(if config.sum { Self::Sum(SumFold::new(writer)) } else { Self::Plain(writer) })
    }

    fn finish(self) -> Result<MapFile, Failure> {
        match self {
            Self::Plain(writer) => writer.finish(),
            Self::Sum(fold) => fold.finish()?.finish(),
        }
    }
}

impl SortedSink for Output {
    fn line(&mut self, partition: u32, line: &[u8]) -> Result<(), Failure> {
        match self {
            Self::Plain(writer) => writer.line(partition, line),
            Self::Sum(fold) => fold.line(partition, line),
        }
    }
}

fn merge_runs(runs: &[MapFile], file: File, config: &ShuffleConfig) -> Result<MapFile, Failure> {
    let mut out = Output::new(file, config)?;
    for partition in 0..config.partitions.max(1) {
        let segments = runs.iter().map(|run| run.partition(partition)).filter(|segment| segment.len() > 0);
        let mut merge = Merge::new(segments.map(|segment| {
            let len = usize::try_from(segment.len()).unwrap_or(usize::MAX);
            ("a spilled run".to_owned(), segment, len)
        }));
        while let Some(line) = merge.next().map_err(Failure::from_input)? {
            out.line(partition, line)?;
        }
    }
    out.finish()
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use proptest::prelude::*;

    use super::*;

    fn config(dir: &Path, partitions: u32, budget: usize) -> ShuffleConfig {
        ShuffleConfig { partitions, budget, scratch: dir.to_owned(), sum: false }
    }

    fn shuffled(bytes: &[u8], cut: usize, config: ShuffleConfig) -> (Vec<Vec<u8>>, u32) {
        let partitions = config.partitions;
        let mut shuffler = Shuffler::new(config);
        for piece in bytes.chunks(cut) {
            shuffler.take(piece).expect("take");
        }
        let map = shuffler.finish_file(tempfile::tempfile().expect("file")).expect("finish");
        let read = |p| {
            let mut out = Vec::new();
            map.partition(p).read_to_end(&mut out).expect("read");
            out
        };
        ((0..partitions).map(read).collect(), shuffler.spills())
    }

    #[test]
    fn the_documented_hash() {
        // FNV-1a's published 64-bit test vectors, folded.
        let fold = |h: u64| u32::try_from((h ^ (h >> 32)) % 4_096).expect("small");
        assert_eq!(partition_of(b"", 4_096), fold(0xcbf2_9ce4_8422_2325));
        assert_eq!(partition_of(b"a", 4_096), fold(0xaf63_dc4c_8601_ec8c));
        assert_eq!(partition_of(b"foobar", 4_096), fold(0x8594_4171_f739_67e8));
        assert_eq!((key_of(b"a b\tc\td"), key_of(b"\tx"), key_of(b"ab")), (&b"a b"[..], &b""[..], &b"ab"[..]));
    }

    #[test]
    fn many_runs_are_merged_in_passes() {
        let dir = tempfile::tempdir().expect("dir");
        let lines: Vec<String> = (0..1_000).map(|i| format!("{:04}\n", (i * 7_919) % 1_000)).collect();
        let (parts, spills) = shuffled(lines.concat().as_bytes(), 64, config(dir.path(), 1, 100));
        assert!(spills as usize > 2 * FAN_IN, "only {spills} spills");
        let expected: String = (0..1_000).map(|i| format!("{i:04}\n")).collect();
        assert_eq!(parts[0], expected.into_bytes());
    }

    #[test]
    fn a_sum_is_the_same_spilled_or_not() {
        let dir = tempfile::tempdir().expect("dir");
        let text: String = (0..500).map(|i| format!("k{}\t{i}\n", i % 7)).collect();
        let run = |budget| shuffled(text.as_bytes(), 33, ShuffleConfig { sum: true, ..config(dir.path(), 3, budget) });
        let ((small, spills), (large, none)) = (run(300), run(1 << 20));
        assert!(spills > 3 && none == 0);
        assert_eq!(small, large);
        let all = String::from_utf8(large.concat()).expect("text");
        assert_eq!(all.lines().count(), 7);
        let total: u64 = all.lines().map(|l| l.split_once('\t').expect("tab").1.parse::<u64>().expect("number")).sum();
        assert_eq!(total, 499 * 500 / 2);
    }

    proptest! {
        #[test]
        fn partitions_are_the_sorted_lines_of_their_keys(
            lines in prop::collection::vec(prop::collection::vec(prop_oneof![Just(b'\t'), Just(0_u8), Just(255_u8), 97_u8..100], 0..14), 0..60),
            partitions in 1_u32..5, budget in 1_usize..600, cut in 1_usize..40, ends in any::<bool>(),
        ) {
            let dir = tempfile::tempdir().expect("dir");
            let mut bytes: Vec<u8> = lines.join(&b'\n');
            let unended = lines.last().is_some_and(|l| !l.is_empty());
            if !lines.is_empty() && (ends || !unended) {
                bytes.push(b'\n');
            }
            let mut expected = vec![Vec::new(); partitions as usize];
            let mut sorted = lines;
            sorted.sort();
            for line in sorted {
                let key = line.split(|b| *b == b'\t').next().expect("one");
                let part: &mut Vec<u8> = &mut expected[partition_of(key, partitions) as usize];
                part.extend(&line);
                part.push(b'\n');
            }
            let (found, _) = shuffled(&bytes, cut, config(dir.path(), partitions, budget));
            prop_assert_eq!(found, expected);
        }
    }
}
