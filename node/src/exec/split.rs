//! Cuts a round's input files into chunks. A chunk is whole lines: a cut falls right behind a newline or at a file's end, and a
//! line longer than a chunk is meant to be stays whole. Files are never joined, and an empty file gives no chunk.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::str::FromStr;

use sinew_crdt_state::spec::{Chunk, TASKS_MAX};

use super::walk::LocalFile;

/// Bytes read at once when a whole file must be looked at.
const SCAN_LEN: usize = 1024 * 1024;
/// Bytes read at once when looking for the end of a line around a cut: most lines are shorter.
const PROBE_LEN: usize = 16 * 1024;

/// Where to cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SplitBy {
    /// After so many lines.
    Lines(u64),
    /// At the first line end at or after so many bytes.
    Bytes(u64),
    /// Nowhere: a file is a chunk.
    Files,
}

/// A text that says no way to split.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadSplit {
    /// None of the three forms.
    #[error("`{0}` is no way to split: use lines:N, bytes:SIZE (as in bytes:64MiB) or files")]
    Form(String),
    /// Not a positive number.
    #[error("`{0}` is no positive number")]
    Number(String),
    /// Not a unit.
    #[error("`{0}` is no unit of bytes: use B, KiB, MiB, GiB, TiB, or KB, MB, GB, TB for powers of 1000")]
    Unit(String),
}

impl FromStr for SplitBy {
    type Err = BadSplit;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once(':') {
            None if text == "files" => Ok(Self::Files),
            Some(("lines", count)) => positive(count, 1).map(Self::Lines),
            Some(("bytes", size)) => {
                let digits = size.find(|c: char| !c.is_ascii_digit()).unwrap_or(size.len());
                let (number, unit) = size.split_at(digits);
                let factor = unit_of(unit.trim()).ok_or_else(|| BadSplit::Unit(unit.trim().to_owned()))?;
                positive(number, factor).map(Self::Bytes)
            }
            _ => Err(BadSplit::Form(text.to_owned())),
        }
    }
}

fn positive(text: &str, factor: u64) -> Result<u64, BadSplit> {
    let number = text.parse::<u64>().ok().filter(|n| *n > 0);
    number.and_then(|n| n.checked_mul(factor)).ok_or_else(|| BadSplit::Number(text.to_owned()))
}

fn unit_of(unit: &str) -> Option<u64> {
    let (letter, rest) = match unit.chars().next() {
        None => return Some(1),
        Some(c) => (c.to_ascii_lowercase(), unit[c.len_utf8()..].to_ascii_lowercase()),
    };
    let power = match (letter, rest.as_str()) {
        ('b', "") => return Some(1),
        ('k', _) => 1,
        ('m', _) => 2,
        ('g', _) => 3,
        ('t', _) => 4,
        _ => return None,
    };
    match rest.as_str() {
        // A bare letter means the binary unit, as it does for `split -b`, `dd` and Kubernetes' users.
        "" | "i" | "ib" => Some(1_024_u64.pow(power)),
        "b" => Some(1_000_u64.pow(power)),
        _ => None,
    }
}

impl fmt::Display for SplitBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lines(n) => write!(f, "lines:{n}"),
            Self::Bytes(n) => write!(f, "bytes:{n}"),
            Self::Files => f.write_str("files"),
        }
    }
}

/// Why no plan came about.
#[derive(Debug, thiserror::Error)]
pub enum SplitError {
    /// A file could not be read, or became shorter meanwhile.
    #[error("cannot read {path}: {source}", path = path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// More chunks than a round may have.
    #[error("that makes more than {TASKS_MAX} chunks: use larger ones")]
    TooMany,
    /// More files than a chunk can name.
    #[error("more than {} input files", u32::MAX)]
    TooManyFiles,
}

/// Cuts `files`; a chunk's `input` is the file's index.
///
/// # Errors
/// [`SplitError`].
pub fn plan(files: &[LocalFile], by: SplitBy) -> Result<Vec<Chunk>, SplitError> {
    let mut plan = Plan { chunks: Vec::new() };
    for (index, file) in files.iter().enumerate() {
        let input = u32::try_from(index).map_err(|_| SplitError::TooManyFiles)?;
        let failed = |source| SplitError::Read { path: file.path.clone(), source };
        if file.size == 0 {
            continue;
        }
        match by {
            SplitBy::Files => plan.add(input, 0, file.size)?,
            SplitBy::Bytes(size) => {
                plan.by_bytes(input, &File::open(&file.path).map_err(failed)?, file, size.max(1))?
            }
            SplitBy::Lines(count) => {
                plan.by_lines(input, File::open(&file.path).map_err(failed)?, file, count.max(1))?
            }
        }
    }
    Ok(plan.chunks)
}

struct Plan {
    chunks: Vec<Chunk>,
}

impl Plan {
    fn add(&mut self, input: u32, offset: u64, end: u64) -> Result<(), SplitError> {
        if self.chunks.len() >= TASKS_MAX as usize {
            return Err(SplitError::TooMany);
        }
        self.chunks.push(Chunk { input, offset, len: end - offset });
        Ok(())
    }

    fn by_bytes(&mut self, input: u32, file: &File, of: &LocalFile, size: u64) -> Result<(), SplitError> {
        let failed = |source| SplitError::Read { path: of.path.clone(), source };
        let mut start = 0;
        while start < of.size {
            // From the last byte that must be in: if that is a newline, the cut is right behind it.
            let from = start.saturating_add(size - 1);
            let end = if from >= of.size { of.size } else { line_end(file, from, of.size).map_err(failed)? };
            self.add(input, start, end)?;
            start = end;
        }
        Ok(())
    }

    fn by_lines(&mut self, input: u32, mut file: File, of: &LocalFile, count: u64) -> Result<(), SplitError> {
        let failed = |source| SplitError::Read { path: of.path.clone(), source };
        let mut buffer = vec![0; SCAN_LEN];
        let (mut start, mut at, mut lines) = (0, 0, 0);
        while at < of.size {
            let want = usize::try_from(of.size - at).unwrap_or(usize::MAX).min(SCAN_LEN);
            file.read_exact(&mut buffer[..want]).map_err(failed)?;
            for newline in memchr::memchr_iter(b'\n', &buffer[..want]) {
                lines += 1;
                if lines == count {
                    let end = at + newline as u64 + 1;
                    self.add(input, start, end)?;
                    (start, lines) = (end, 0);
                }
            }
            at += want as u64;
        }
        if start < of.size { self.add(input, start, of.size) } else { Ok(()) }
    }
}

/// The offset behind the first newline at or after `from`, or the file's end.
fn line_end(file: &File, from: u64, size: u64) -> io::Result<u64> {
    let mut buffer = [0; PROBE_LEN];
    let mut at = from;
    while at < size {
        let want = usize::try_from(size - at).unwrap_or(usize::MAX).min(PROBE_LEN);
        file.read_exact_at(&mut buffer[..want], at)?;
        if let Some(newline) = memchr::memchr(b'\n', &buffer[..want]) {
            return Ok(at + newline as u64 + 1);
        }
        at += want as u64;
    }
    Ok(size)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn forms_are_read_and_errors_say_what_is_right() {
        let good = [
            ("files", SplitBy::Files),
            ("lines:1000", SplitBy::Lines(1_000)),
            ("bytes:64MiB", SplitBy::Bytes(64 << 20)),
            ("bytes:64M", SplitBy::Bytes(64 << 20)),
            ("bytes:2 kB", SplitBy::Bytes(2_000)),
            ("bytes:7", SplitBy::Bytes(7)),
        ];
        for (text, split) in good {
            assert_eq!(text.parse(), Ok(split), "{text}");
            assert_eq!(split.to_string().parse(), Ok(split));
        }
        for (text, shown) in [
            ("", "lines:N"),
            ("line:3", "lines:N"),
            ("files:1", "lines:N"),
            ("lines:0", "positive"),
            ("lines:-1", "positive"),
            ("bytes:", "positive"),
            ("bytes:1XB", "unit"),
            ("bytes:1.5MiB", "unit"),
            ("bytes:99999999999TiB", "positive"),
        ] {
            let error = text.parse::<SplitBy>().expect_err(text).to_string();
            assert!(error.contains(shown), "{text}: {error}");
        }
    }

    fn planned(texts: &[Vec<u8>], by: SplitBy) -> (Vec<Chunk>, Vec<Vec<u8>>) {
        let dir = tempfile::tempdir().expect("dir");
        let mut files = Vec::new();
        for (i, text) in texts.iter().enumerate() {
            let path = dir.path().join(i.to_string());
            std::fs::write(&path, text).expect("write");
            files.push(LocalFile { path, size: text.len() as u64 });
        }
        let chunks = plan(&files, by).expect("plan");
        let at = |n: u64| usize::try_from(n).expect("small");
        let cut = |c: &Chunk| texts[c.input as usize][at(c.offset)..at(c.offset + c.len)].to_vec();
        let pieces = chunks.iter().map(cut).collect();
        (chunks, pieces)
    }

    #[test]
    fn cuts_fall_behind_newlines() {
        let text = b"ab\ncd\n\nlong line\nx".to_vec();
        let (_, pieces) = planned(&[vec![], text.clone()], SplitBy::Bytes(3));
        assert_eq!(pieces, [&b"ab\n"[..], b"cd\n", b"\nlong line\n", b"x"]);
        let (_, pieces) = planned(std::slice::from_ref(&text), SplitBy::Lines(2));
        assert_eq!(pieces, [&b"ab\ncd\n"[..], b"\nlong line\n", b"x"]);
        let (chunks, _) = planned(&[text.clone(), vec![], text], SplitBy::Files);
        assert_eq!(chunks.iter().map(|c| (c.input, c.len)).collect::<Vec<_>>(), [(0, 18), (2, 18)]);
    }

    #[test]
    fn a_file_that_shrank_is_named() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("short");
        std::fs::write(&path, "a\n").expect("write");
        let files = [LocalFile { path, size: 100 }];
        for by in [SplitBy::Lines(1), SplitBy::Bytes(50)] {
            let error = plan(&files, by).expect_err("short").to_string();
            assert!(error.contains("short"), "{error}");
        }
    }

    proptest! {
        #[test]
        fn chunks_cover_every_byte_once_in_whole_lines(
            texts in prop::collection::vec(prop::collection::vec(prop_oneof![Just(b'\n'), Just(b'a')], 0..60), 0..4),
            n in 1_u64..20, lines in any::<bool>(),
        ) {
            let by = if lines { SplitBy::Lines(n) } else { SplitBy::Bytes(n) };
            let (chunks, pieces) = planned(&texts, by);
            prop_assert_eq!(pieces.concat(), texts.concat());
            for (chunk, piece) in chunks.iter().zip(&pieces) {
                let whole = chunk.offset + chunk.len == texts[chunk.input as usize].len() as u64;
                prop_assert!(!piece.is_empty() && (whole || piece.ends_with(b"\n")));
                let newlines = piece.iter().filter(|b| **b == b'\n').count() as u64;
                let sized = if lines { newlines <= n } else { whole || chunk.len >= n };
                prop_assert!(sized);
            }
        }
    }
}
