//! Sorts lines in memory: their bytes in one buffer, an index of 24 bytes a line beside it. The index caches each line's first
//! eight bytes, which decide most comparisons without touching the line.

use std::cmp::Ordering;

use super::lines::{LINE_LEN_MAX, line_too_long};
use super::mapfile::SortedSink;
use super::outcome::Failure;

/// The first eight bytes of a line as a number that orders as they do; a shorter line is filled up with zeros, so equal numbers
/// say nothing yet.
pub(super) fn prefix_of(line: &[u8]) -> u64 {
    line.first_chunk::<8>().map_or_else(
        || {
            let mut padded = [0; 8];
            padded[..line.len()].copy_from_slice(line);
            u64::from_be_bytes(padded)
        },
        |first| u64::from_be_bytes(*first),
    )
}

#[derive(Debug, Clone, Copy)]
struct Slot {
    prefix: u64,
    offset: u32,
    len: u32,
    partition: u32,
}

/// Lines that wait to be sorted, the last of them perhaps still growing.
#[derive(Debug, Default)]
pub(super) struct Arena {
    bytes: Vec<u8>,
    slots: Vec<Slot>,
    /// Where the growing line begins.
    open: usize,
}

impl Arena {
    /// Bytes held.
    pub(super) const fn size(&self) -> usize {
        self.bytes.len() + self.slots.len() * size_of::<Slot>()
    }

    /// Whether it holds no whole line.
    pub(super) const fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Lets the growing line grow.
    pub(super) fn extend(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        if self.bytes.len() - self.open + bytes.len() > LINE_LEN_MAX {
            return Err(line_too_long());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    /// The growing line.
    pub(super) fn open_line(&self) -> &[u8] {
        &self.bytes[self.open..]
    }

    /// Makes the growing line whole, in `partition`.
    pub(super) fn close(&mut self, partition: u32) -> Result<(), Failure> {
        let line = &self.bytes[self.open..];
        let (Ok(offset), Ok(len)) = (u32::try_from(self.open), u32::try_from(line.len())) else {
            return Err(line_too_long());
        };
        self.slots.push(Slot { prefix: prefix_of(line), offset, len, partition });
        self.open = self.bytes.len();
        Ok(())
    }

    /// Hands all whole lines over, sorted, and forgets them. The growing line stays.
    pub(super) fn drain_sorted(&mut self, sink: &mut dyn SortedSink) -> Result<(), Failure> {
        let bytes = &self.bytes;
        let line = |s: &Slot| &bytes[s.offset as usize..s.offset as usize + s.len as usize];
        let order = |a: &Slot, b: &Slot| -> Ordering {
            (a.partition, a.prefix).cmp(&(b.partition, b.prefix)).then_with(|| line(a).cmp(line(b)))
        };
        // Equal lines are the same bytes, so an unstable sort loses nothing.
        self.slots.sort_unstable_by(order);
        for slot in &self.slots {
            sink.line(slot.partition, line(slot))?;
        }
        self.slots.clear();
        self.bytes.drain(..self.open);
        self.open = 0;
        Ok(())
    }
}
