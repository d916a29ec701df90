//! Numbers of a submitter's jobs: none is given out twice, whatever was lost.
//!
//! A number may have been given to a job that the others have and this node's own disk has not: it died before its sync, its disk
//! was lost, or is an old copy. So no start goes on where the one before ended. Each begins at the clock, or above the last
//! number that its disk knows where the clock is behind that, and so far above, by chance, that two starts that know the same
//! and have the same time meet only with a chance of the number of jobs in 2^31.

/// A start begins at its clock's milliseconds times two to this, unless more than 65,536 jobs came in each.
const PER_MS_BITS: u32 = 16;
/// It skips this many numbers, and up to as many again by chance: the time of half a minute.
const SKIP: u64 = 1 << 31;

/// The number before the first one of a start with this `nonce`, on a disk that knows numbers up to `last`.
pub(crate) const fn before_first(last: u64, unix_ms: u64, nonce: u64) -> u64 {
    let clock = unix_ms.saturating_mul(1 << PER_MS_BITS);
    let least = if last > clock { last } else { clock };
    beyond(least, nonce)
}

/// The number to go on from when a job of this node's own with a number above all it knows came back from others. The one that
/// was given out next may be known to somebody too: so a start never goes on right behind another one's number.
pub(crate) const fn beyond(last: u64, nonce: u64) -> u64 {
    last.saturating_add(SKIP).saturating_add(nonce % SKIP)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_start_goes_on_where_another_ended() {
        let now = 1_700_000_000_000;
        let first = before_first(0, now, 1);
        // It gave out some, and its disk knows fewer of them.
        for (last, now, nonce) in
            [(first + 3, now, 77), (first + 3, now - 1_500_000, 77), (first + 3, 0, 77), (0, now, 77)]
        {
            let next = before_first(last, now, nonce);
            assert!(next > first + 4 && next > last, "{last} {now}");
        }
        // Two starts, both with a clock far behind, to which one and the same job of an earlier start came back.
        assert!(beyond(first, 7).abs_diff(beyond(first, 5_000_000)) > 1_000_000);
        // Two starts from one state with one date.
        assert!(before_first(5, 0, 1 << 20).abs_diff(before_first(5, 0, 1 << 30)) > 1_000_000);
        assert_eq!(before_first(u64::MAX, u64::MAX, u64::MAX), u64::MAX);
    }
}
