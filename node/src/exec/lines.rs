//! Reads lines without copying them: the current line and the one before it are slices of one buffer.

use std::io::{self, Read};
use std::ops::Range;

use sinew_crdt_state::error_code::ErrorCode;

use super::outcome::Failure;

/// Longest line. A line is held in memory whole while it is sorted, so one must not take all of it; offsets into a sort
/// buffer are 32 bits wide.
pub(super) const LINE_LEN_MAX: usize = 1 << 30;

/// The failure for a longer one.
pub(super) fn line_too_long() -> Failure {
    Failure::new(ErrorCode::Invalid, format!("a line is longer than {LINE_LEN_MAX} bytes, the most that can be sorted"))
}

/// Lines of a source, the newline left off; a last line without one counts as a line.
#[derive(Debug)]
pub(super) struct Lines<R> {
    source: R,
    buffer: Vec<u8>,
    /// How much of the buffer is data.
    filled: usize,
    previous: Option<Range<usize>>,
    line: Option<Range<usize>>,
    /// Where the next line begins.
    next: usize,
    at_end: bool,
}

impl<R: Read> Lines<R> {
    /// Reads from `source`, `buffer_len` bytes at a time; longer lines make the buffer grow.
    pub(super) fn new(source: R, buffer_len: usize) -> Self {
        let buffer = vec![0; buffer_len.max(1)];
        Self { source, buffer, filled: 0, previous: None, line: None, next: 0, at_end: false }
    }

    /// Steps to the next line; `false` at the end.
    pub(super) fn advance(&mut self) -> io::Result<bool> {
        self.previous = self.line.take();
        let mut searched = self.next;
        loop {
            if let Some(at) = memchr::memchr(b'\n', &self.buffer[searched..self.filled]) {
                let end = searched + at;
                self.line = Some(self.next..end);
                self.next = end + 1;
                return Ok(true);
            }
            if self.at_end {
                let rest = self.next..self.filled;
                self.next = self.filled;
                self.line = (!rest.is_empty()).then_some(rest);
                return Ok(self.line.is_some());
            }
            let got = self.refill()?;
            searched = self.filled - got;
        }
    }

    /// Reads more, after making room if there is none: everything before the line ahead of the current one is given up.
    /// Returns how many bytes came.
    fn refill(&mut self) -> io::Result<usize> {
        let keep = self.previous.as_ref().map_or(self.next, |p| p.start);
        if self.filled == self.buffer.len() {
            self.buffer.copy_within(keep..self.filled, 0);
            self.filled -= keep;
            self.next -= keep;
            if let Some(p) = &mut self.previous {
                *p = p.start - keep..p.end - keep;
            }
            if self.filled > self.buffer.len() / 2 {
                self.grow()?;
            }
        }
        let got = loop {
            match self.source.read(&mut self.buffer[self.filled..]) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                other => break other?,
            }
        };
        self.filled += got;
        self.at_end = got == 0;
        Ok(got)
    }

    fn grow(&mut self) -> io::Result<()> {
        if self.filled - self.next > LINE_LEN_MAX {
            return Err(line_too_long().into_input_error());
        }
        let len = self.buffer.len() * 2;
        self.buffer.resize(len, 0);
        Ok(())
    }

    /// The current line.
    pub(super) fn line(&self) -> Option<&[u8]> {
        self.line.clone().map(|r| &self.buffer[r])
    }

    /// The line before it.
    pub(super) fn previous(&self) -> Option<&[u8]> {
        self.previous.clone().map(|r| &self.buffer[r])
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all(bytes: &[u8], buffer_len: usize) -> Vec<Vec<u8>> {
        let mut lines = Lines::new(bytes, buffer_len);
        let mut out: Vec<Vec<u8>> = Vec::new();
        while lines.advance().expect("memory") {
            assert_eq!(lines.previous(), out.last().map(Vec::as_slice));
            out.push(lines.line().expect("advanced").to_vec());
        }
        out
    }

    #[test]
    fn ends_and_empty_lines() {
        assert_eq!(all(b"", 4), Vec::<Vec<u8>>::new());
        assert_eq!(all(b"\n", 4), vec![b"".to_vec()]);
        assert_eq!(all(b"a\n\nb", 1), vec![b"a".to_vec(), b"".to_vec(), b"b".to_vec()]);
    }

    proptest! {
        #[test]
        fn lines_are_those_of_split(bytes in prop::collection::vec(prop_oneof![Just(b'\n'), any::<u8>()], 0..200), len in 1_usize..40) {
            let mut expected: Vec<Vec<u8>> = bytes.split(|b| *b == b'\n').map(<[u8]>::to_vec).collect();
            if expected.last().is_some_and(Vec::is_empty) {
                expected.pop();
            }
            prop_assert_eq!(all(&bytes, len), expected);
        }
    }
}
