//! Merges sorted inputs into one, a line at a time, with a tournament tree: about log2(inputs) comparisons a line, and most of
//! them decided by the first eight bytes. What it reads may come from any peer: an input that is not sorted is an error that
//! names it.

use std::cmp::Ordering;
use std::io::{self, BufWriter, Read, Seek, Write};
use std::path::Path;

use sinew_crdt_state::error_code::ErrorCode;

use super::lines::Lines;
use super::outcome::Failure;
use super::sort::prefix_of;

/// Most inputs merged at once: each holds a buffer and, when it is a file, a descriptor. More are merged in passes.
pub const FAN_IN: usize = 64;
/// Buffer of one input. With [`FAN_IN`] of them 8 MiB.
const BUFFER_LEN: usize = 128 * 1024;
/// In the tree: no input yet. It wins every match, so that building the tree lets each real input through.
const NONE: usize = usize::MAX;

/// A sorted input.
pub struct Input {
    /// What to call it when it is at fault.
    pub name: String,
    /// Its lines.
    pub reader: Box<dyn Read + Send>,
}

impl std::fmt::Debug for Input {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Input").field("name", &self.name).finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct Source<R> {
    name: String,
    lines: Lines<R>,
    prefix: u64,
    over: bool,
}

impl<R: Read> Source<R> {
    fn advance(&mut self) -> io::Result<()> {
        self.over = !self.lines.advance()?;
        let Some(line) = self.lines.line() else { return Ok(()) };
        let before = std::mem::replace(&mut self.prefix, prefix_of(line));
        let sorted = match self.prefix.cmp(&before) {
            Ordering::Greater => true,
            Ordering::Less => self.lines.previous().is_none(),
            Ordering::Equal => self.lines.previous().is_none_or(|previous| previous <= line),
        };
        if sorted { Ok(()) } else { Err(unsorted(&self.name)) }
    }
}

fn unsorted(name: &str) -> io::Error {
    Failure::new(ErrorCode::Fetch, format!("{name} is not sorted: its maker is broken or lies")).into_input_error()
}

/// A running merge.
#[derive(Debug)]
pub(super) struct Merge<R> {
    sources: Vec<Source<R>>,
    /// `tree[0]` is the winner, the rest are the losers of the matches on the way to it.
    tree: Vec<usize>,
    begun: bool,
}

impl<R: Read> Merge<R> {
    pub(super) fn new(inputs: impl IntoIterator<Item = (String, R, usize)>) -> Self {
        let source = |(name, reader, len): (String, R, usize)| Source {
            name,
            lines: Lines::new(reader, len.min(BUFFER_LEN)),
            prefix: 0,
            over: false,
        };
        let sources: Vec<_> = inputs.into_iter().map(source).collect();
        let tree = vec![NONE; sources.len()];
        Self { sources, tree, begun: false }
    }

    /// Steps to the next line; `None` at the end.
    pub(super) fn next(&mut self) -> io::Result<Option<&[u8]>> {
        if self.begun {
            if let Some(&winner) = self.tree.first() {
                self.sources[winner].advance()?;
                self.replay(winner);
            }
        } else {
            self.begun = true;
            for source in &mut self.sources {
                source.advance()?;
            }
            for i in (0..self.sources.len()).rev() {
                self.replay(i);
            }
        }
        Ok(self.current())
    }

    /// The line of the last step.
    fn current(&self) -> Option<&[u8]> {
        self.tree.first().and_then(|winner| self.sources[*winner].lines.line())
    }

    /// Plays input `i` up the tree.
    fn replay(&mut self, mut i: usize) {
        let mut node = (i + self.sources.len()) / 2;
        while node > 0 {
            if self.beats(self.tree[node], i) {
                std::mem::swap(&mut self.tree[node], &mut i);
            }
            node /= 2;
        }
        self.tree[0] = i;
    }

    fn beats(&self, a: usize, b: usize) -> bool {
        if a == NONE || b == NONE {
            return a == NONE;
        }
        let (x, y) = (&self.sources[a], &self.sources[b]);
        if x.over || y.over {
            return !x.over;
        }
        match x.prefix.cmp(&y.prefix) {
            Ordering::Less => true,
            Ordering::Greater => false,
            Ordering::Equal => x.lines.line() < y.lines.line(),
        }
    }
}

/// A merge as a stream of bytes.
pub(super) struct MergeReader {
    merge: Merge<Box<dyn Read + Send>>,
    /// Bytes of the current line, its newline included, that were read; `None` before the first and after the last line.
    taken: Option<usize>,
}

impl MergeReader {
    /// Merges any number of inputs; `scratch` is for temporary files, which are gone by themselves.
    pub(super) fn new(inputs: Vec<Input>, scratch: &Path) -> Result<Self, Failure> {
        let mut inputs = inputs;
        while inputs.len() > FAN_IN {
            let rest = inputs.split_off(FAN_IN);
            let merged = merge_to_file(inputs, scratch)?;
            inputs = rest;
            // At the back: each input is rewritten about once per pass, not once per merge.
            inputs.push(merged);
        }
        Ok(Self::of_few(inputs))
    }

    fn of_few(inputs: Vec<Input>) -> Self {
        Self { merge: Merge::new(inputs.into_iter().map(|i| (i.name, i.reader, BUFFER_LEN))), taken: None }
    }
}

impl std::fmt::Debug for MergeReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MergeReader").field("inputs", &self.merge.sources.len()).finish_non_exhaustive()
    }
}

fn merge_to_file(inputs: Vec<Input>, scratch: &Path) -> Result<Input, Failure> {
    let failed = |e: io::Error| Failure::storage("write a temporary merge", &e);
    let file = tempfile::tempfile_in(scratch).map_err(failed)?;
    let mut out = BufWriter::with_capacity(BUFFER_LEN, file);
    let name = "a merge of map outputs".to_owned();
    let mut merge = MergeReader::of_few(inputs).merge;
    while let Some(line) = merge.next().map_err(Failure::from_input)? {
        out.write_all(line).and_then(|()| out.write_all(b"\n")).map_err(failed)?;
    }
    let mut file = out.into_inner().map_err(|e| failed(e.into_error()))?;
    file.rewind().map_err(failed)?;
    Ok(Input { name, reader: Box::new(file) })
}

impl Read for MergeReader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let mut written = 0;
        while written < out.len() {
            let taken = match self.taken {
                Some(taken) => taken,
                None if self.merge.next()?.is_some() => 0,
                None => break,
            };
            let line = self.merge.current().unwrap_or_default();
            let room = &mut out[written..];
            let n = room.len().min(line.len() - taken.min(line.len()));
            room[..n].copy_from_slice(&line[taken..taken + n]);
            written += n;
            if taken + n == line.len() && n < room.len() {
                room[n] = b'\n';
                written += 1;
                self.taken = None;
            } else {
                self.taken = Some(taken + n);
            }
        }
        Ok(written)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn input(name: usize, lines: &[Vec<u8>]) -> Input {
        let bytes: Vec<u8> = lines.iter().flat_map(|l| l.iter().copied().chain([b'\n'])).collect();
        Input { name: format!("map output {name}"), reader: Box::new(io::Cursor::new(bytes)) }
    }

    fn merged(inputs: Vec<Input>, read_len: usize) -> io::Result<Vec<u8>> {
        let dir = tempfile::tempdir()?;
        let mut reader = MergeReader::new(inputs, dir.path()).map_err(Failure::into_input_error)?;
        let (mut out, mut buffer) = (Vec::new(), vec![0; read_len]);
        loop {
            match reader.read(&mut buffer)? {
                0 => return Ok(out),
                n => out.extend_from_slice(&buffer[..n]),
            }
        }
    }

    #[test]
    fn an_unsorted_input_is_named() {
        let good = || input(0, &[b"a".to_vec(), b"b".to_vec()]);
        for bad in [["b", "a"], ["12345678b", "12345678a"]] {
            let bad: Vec<_> = bad.iter().map(|l| l.as_bytes().to_vec()).collect();
            let failure = Failure::from_input(merged(vec![good(), input(7, &bad)], 64).expect_err("unsorted"));
            assert_eq!(failure.code, ErrorCode::Fetch);
            assert!(failure.message.contains("map output 7"), "{failure}");
        }
    }

    #[test]
    fn no_inputs_and_more_inputs_than_fan_in() {
        assert_eq!(merged(vec![], 64).expect("merge"), b"");
        let lines: Vec<Vec<u8>> = (0..(FAN_IN * 3)).map(|i| format!("{i:05}").into_bytes()).collect();
        let inputs = (0..lines.len()).map(|i| input(i, &lines[i..=i])).collect();
        let out = merged(inputs, 64).expect("merge");
        assert_eq!(out, lines.iter().flat_map(|l| [l.as_slice(), b"\n"].concat()).collect::<Vec<u8>>());
    }

    proptest! {
        #[test]
        fn a_merge_is_the_sorted_union(
            mut inputs in prop::collection::vec(prop::collection::vec(prop::collection::vec(0_u8..3, 0..12), 0..12), 0..9),
            read_len in 1_usize..50,
        ) {
            // Bytes 0 to 2: many equal lines, prefixes and NULs; a newline cannot occur.
            inputs.iter_mut().for_each(|lines| lines.sort());
            let mut all: Vec<Vec<u8>> = inputs.concat();
            all.sort();
            let expected: Vec<u8> = all.iter().flat_map(|l| [l.as_slice(), b"\n"].concat()).collect();
            let inputs = inputs.iter().enumerate().map(|(i, lines)| input(i, lines)).collect();
            prop_assert_eq!(merged(inputs, read_len).expect("merge"), expected);
        }
    }
}
