//! Who fetches which part of a blob. Pure: it is told what happened and hands out ranges; it sends nothing.
//!
//! Until the size is known one provider alone is asked, for the first stripe and the last chunk (which proves the size),
//! or for everything when there is nobody to share with. Then stripes go to whoever is free. A part that failed goes
//! back to the pool, less what arrived.

use iroh_blobs::protocol::{ChunkRanges, ChunkRangesExt};

/// Up to here one provider alone is quicker than opening more streams.
pub(super) const LARGE: u64 = 16 << 20;
/// Smallest stripe: below, the round trip for the next one shows.
const STRIPE_MIN: u64 = 4 << 20;
/// Largest stripe: above, the slowest provider's last stripe holds up the end.
const STRIPE_MAX: u64 = 64 << 20;
/// Stripes per provider that an even split would give, so that a faster one can take more.
const STRIPES_EACH: u64 = 8;
/// Parts under way at once: the store takes few concurrent writers per blob, and more providers add nothing.
const AT_ONCE_MAX: usize = 8;
/// bao's chunk, the unit of ranges.
const CHUNK: u64 = 1024;
/// Chunks in a chunk group: the store keeps no hashes below it, so stripes end on its boundaries.
const GROUP: u64 = 16;

/// What a worker does next.
#[derive(Debug, PartialEq)]
pub(super) enum Next {
    /// Fetch this part.
    Part(ChunkRanges),
    /// Nothing now, but a part may come back.
    Wait,
    /// Everything is here.
    Done,
}

/// The state of one download.
#[derive(Debug)]
pub(super) struct Plan {
    /// What was asked for and was not here at the start.
    wanted: ChunkRanges,
    /// What came since.
    arrived: ChunkRanges,
    /// What is neither here nor being fetched, up to the size.
    open: ChunkRanges,
    /// What each worker is fetching.
    parts: Vec<Option<ChunkRanges>>,
    /// The size and which worker's provider said so.
    size: Option<(u64, usize)>,
    /// A verified last chunk showed the size to be true.
    proven: bool,
    /// Workers still able to fetch.
    live: Vec<bool>,
}

impl Plan {
    pub(super) fn new(missing: ChunkRanges, workers: usize) -> Self {
        Self {
            open: missing.clone(),
            wanted: missing,
            arrived: ChunkRanges::empty(),
            parts: vec![None; workers],
            size: None,
            proven: false,
            live: vec![true; workers],
        }
    }

    /// The size as far as a provider said it.
    pub(super) fn size(&self) -> Option<u64> {
        self.size.map(|(size, _)| size)
    }

    fn fetching(&self) -> usize {
        self.parts.iter().flatten().count()
    }

    /// Nothing is left to fetch or being fetched.
    pub(super) fn is_over(&self) -> bool {
        self.open.is_empty() && self.fetching() == 0
    }

    /// Worker `me` is free.
    pub(super) fn next(&mut self, me: usize) -> Next {
        if self.is_over() {
            return Next::Done;
        }
        if self.open.is_empty() || self.fetching() >= AT_ONCE_MAX {
            return Next::Wait;
        }
        let part = if self.live.iter().filter(|live| **live).count() <= 1 {
            self.open.clone()
        } else {
            match self.size {
                Some((size, _)) => first_chunks(&self.open, self.stripe(size)),
                None if self.fetching() > 0 => return Next::Wait,
                None => &first_chunks(&self.open, LARGE / CHUNK) | &(&self.open & &ChunkRanges::last_chunk()),
            }
        };
        self.open = &self.open - &part;
        self.parts[me] = Some(part.clone());
        Next::Part(part)
    }

    /// Worker `me`'s provider announced the size. Until it is proven, two that disagree stop the sharing: one of them
    /// is wrong, and stripes past the true end would make an honest provider look bad.
    pub(super) fn announce(&mut self, me: usize, size: u64) {
        match self.size {
            None => {
                self.size = Some((size, me));
                let end = size.div_ceil(CHUNK);
                self.open = &self.open & &ChunkRanges::chunks(0..end);
            }
            Some((known, _)) if known != size && !self.proven => self.forget_size(),
            Some(_) => {}
        }
    }

    /// Worker `me` is done with its part; `have` is what the store has now, `proven` whether that proves the size. True
    /// when all of the part arrived.
    pub(super) fn finish(&mut self, me: usize, have: &ChunkRanges, proven: bool) -> bool {
        self.proven |= proven;
        let Some(part) = self.parts[me].take() else { return true };
        let left = &part - have;
        let whole = left.is_empty();
        self.arrived |= &part & have;
        self.open |= left;
        whole
    }

    /// Worker `me` takes no more parts.
    pub(super) fn retire(&mut self, me: usize) {
        self.live[me] = false;
    }

    /// Worker `me`'s provider failed, so its mere word on the size is void.
    pub(super) fn distrust(&mut self, me: usize) {
        if !self.proven && self.size.is_some_and(|(_, by)| by == me) {
            self.forget_size();
        }
    }

    fn forget_size(&mut self) {
        self.size = None;
        let taken = self.parts.iter().flatten().fold(self.arrived.clone(), |taken, part| &taken | part);
        self.open = &self.wanted - &taken;
    }

    fn stripe(&self, size: u64) -> u64 {
        let workers = self.live.iter().filter(|live| **live).count().max(1) as u64;
        let bytes = (size / (workers * STRIPES_EACH)).clamp(STRIPE_MIN, STRIPE_MAX);
        (bytes / CHUNK).next_multiple_of(GROUP)
    }
}

/// The first `count` chunks of `ranges`, up to a chunk group's end.
fn first_chunks(ranges: &ChunkRanges, count: u64) -> ChunkRanges {
    let mut left = count;
    let mut out = ChunkRanges::empty();
    for pair in ranges.boundaries().chunks(2) {
        let start = pair[0].0;
        let end = pair.get(1).map_or(u64::MAX, |end| end.0);
        let stop = start.saturating_add(left).checked_next_multiple_of(GROUP).unwrap_or(u64::MAX).min(end);
        out |= ChunkRanges::chunks(start..stop);
        left = left.saturating_sub(stop - start);
        if left == 0 {
            break;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = (1 << 20) / CHUNK;

    #[test]
    fn one_provider_is_asked_for_everything_at_once() {
        let mut plan = Plan::new(ChunkRanges::all(), 1);
        assert_eq!(plan.next(0), Next::Part(ChunkRanges::all()));
        plan.announce(0, 100 << 20);
        assert!(plan.finish(0, &ChunkRanges::all(), true));
        assert_eq!(plan.next(0), Next::Done);
    }

    #[test]
    fn a_large_blob_is_shared_and_a_failed_part_comes_back() {
        let mut plan = Plan::new(ChunkRanges::all(), 2);
        let Next::Part(scout) = plan.next(0) else { panic!("a part") };
        assert_eq!(scout, ChunkRanges::chunks(0..16 * MIB) | ChunkRanges::last_chunk());
        assert_eq!(plan.next(1), Next::Wait, "the size is not known");
        plan.announce(0, 64 << 20);
        let Next::Part(stripe) = plan.next(1) else { panic!("a part") };
        assert_eq!(stripe, ChunkRanges::chunks(16 * MIB..20 * MIB));
        let have = ChunkRanges::chunks(16 * MIB..17 * MIB);
        assert!(!plan.finish(1, &have, false));
        plan.retire(1);
        assert!(plan.finish(0, &(&scout | &ChunkRanges::chunks(64 * MIB - 1..)), true));
        assert_eq!(plan.next(0), Next::Part(ChunkRanges::chunks(17 * MIB..64 * MIB)), "alone again: all of the rest");
    }

    #[test]
    fn a_small_blob_stays_with_the_first() {
        let mut plan = Plan::new(ChunkRanges::all(), 2);
        let Next::Part(scout) = plan.next(0) else { panic!("a part") };
        plan.announce(0, 1 << 20);
        assert_eq!(plan.next(1), Next::Wait);
        assert!(plan.finish(0, &ChunkRanges::all(), true));
        assert_eq!(plan.next(1), Next::Done);
        assert!(!scout.is_empty());
    }

    #[test]
    fn a_liars_size_is_forgotten() {
        let mut plan = Plan::new(ChunkRanges::all(), 2);
        assert!(matches!(plan.next(0), Next::Part(_)));
        plan.announce(0, 1 << 20);
        plan.finish(0, &ChunkRanges::empty(), false);
        plan.distrust(0);
        plan.retire(0);
        assert_eq!(plan.size(), None);
        assert_eq!(plan.next(1), Next::Part(ChunkRanges::all()));
    }
}
