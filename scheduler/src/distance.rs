//! How far other nodes are, and which pace suits that.
//!
//! All spans that guard leases keep to each other: a worker is fenced before its lease is over, a brain decides no longer than its
//! stewards wait. Between nodes that are near each other they are as short as detection on a LAN wants them; a job whose nodes are
//! far apart has a pace, a factor by which every one of them is longer, so that they go on keeping to each other. The pace of
//! a term is signed, in the spec or with the votes and the lead, and never changes within it: what is measured here decides only which
//! pace a term begins with, and when a brain stands for another one, never what is safe.

use sinew_crdt_state::spec::{PACE_MAX, PACE_MIN};

use crate::config::{BEAT_EVERY, FENCE_AFTER, IN_CHARGE_FOR};
use crate::time::{Span, Time};

/// Time for the other node to get round to an answer, beside the way there and back.
const ANSWER_WITHIN: Span = Span::ms(80);
/// Longer ones tell of machines that stood still, not of distance.
const ROUND_TRIP_MAX: Span = Span::ms(6_000);
/// Of so many measurements in a row, of that time, the shortest is the way without what else took time.
const KEPT: usize = 8;
/// See [`KEPT`].
const KEPT_FOR: Span = Span::ms(6_000);
/// What is taken for distance is no longer than so many times that, and this much more: a machine that stands still, or is busy, makes
/// some answers late, not all.
const SHORTEST_TIMES: u64 = 4;
/// See [`SHORTEST_TIMES`].
const SHORTEST_MORE: Span = Span::ms(50);

/// The round-trip time to one node, smoothed as TCP does it (RFC 6298).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RoundTrip {
    smoothed: Span,
    variation: Span,
    /// The last ones, and when.
    last: [(Time, Span); KEPT],
    next: usize,
}

impl RoundTrip {
    /// What one more measurement makes of what is known.
    pub(crate) fn with(known: Option<Self>, measured: Span, now: Time) -> Self {
        let measured = measured.min(ROUND_TRIP_MAX);
        let Some(mut trip) = known else {
            return Self {
                smoothed: measured,
                variation: Span(measured.0 / 8),
                last: [(now, measured); KEPT],
                next: 0,
            };
        };
        let off = Span(trip.smoothed.0.abs_diff(measured.0));
        trip.smoothed = Span(trip.smoothed.0 - trip.smoothed.0 / 8 + measured.0 / 8);
        trip.variation = Span(trip.variation.0 - trip.variation.0 / 4 + off.0 / 4);
        trip.last[trip.next] = (now, measured);
        trip.next = (trip.next + 1) % KEPT;
        trip
    }

    pub(crate) const fn smoothed(&self) -> Span {
        self.smoothed
    }

    /// The shortest of the last few.
    fn shortest(&self) -> Span {
        let newest = self.last.iter().map(|(at, _)| *at).max().unwrap_or_default();
        let recent = self.last.iter().filter(|(at, _)| newest - *at <= KEPT_FOR);
        recent.map(|(_, trip)| *trip).min().unwrap_or_default()
    }

    /// By when an answer is there as a rule.
    fn timeout(&self) -> Span {
        let usual = Span(self.smoothed.0 + 4 * self.variation.0);
        usual.min(Span(SHORTEST_TIMES * self.shortest().0) + SHORTEST_MORE)
    }
}

/// The pace at which a brain stays in charge by the answers of a member so far away.
pub(crate) fn pace_for_member(trip: Option<RoundTrip>) -> u8 {
    pace(trip.map(|trip| trip.timeout()), IN_CHARGE_FOR)
}

/// The pace below which not even the fastest answers of a member keep a brain in charge.
pub(crate) fn pace_at_best(trip: Option<RoundTrip>) -> u8 {
    pace(trip.map(|trip| trip.shortest()), IN_CHARGE_FOR)
}

/// The pace at which a worker so far away keeps its leases.
pub(crate) fn pace_for_worker(trip: Option<RoundTrip>) -> u8 {
    pace(trip.map(|trip| trip.timeout()), FENCE_AFTER)
}

/// The answer to the beat before the last one must be there within the span. What was never measured counts as near.
fn pace(timeout: Option<Span>, within: Span) -> u8 {
    let Some(timeout) = timeout else { return PACE_MIN };
    let old = timeout + BEAT_EVERY + ANSWER_WITHIN;
    u8::try_from(old.0.div_ceil(within.0)).unwrap_or(PACE_MAX).clamp(PACE_MIN, PACE_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// When the n-th beat was answered.
    fn at(n: u64) -> Time {
        Time(BEAT_EVERY.0 * n)
    }

    fn trip(around_ms: u64, give_or_take_ms: u64) -> RoundTrip {
        let samples = (0..200).map(|n| [around_ms - give_or_take_ms, around_ms, around_ms + give_or_take_ms][n % 3]);
        samples
            .zip(0..)
            .fold(None, |known, (ms, n)| Some(RoundTrip::with(known, Span::ms(ms), at(n))))
            .expect("samples")
    }

    #[test]
    fn near_nodes_keep_the_pace_and_far_ones_get_time_enough() {
        for (ms, jitter) in [(1, 1), (40, 10), (120, 10), (200, 4)] {
            let near = Some(trip(ms, jitter));
            assert_eq!((pace_for_member(near), pace_for_worker(near)), (1, 1), "{ms} ms, give or take {jitter}");
        }
        for (ms, jitter) in [(300, 20), (400, 20), (600, 200), (900, 100), (2_000, 300)] {
            let pace = u64::from(pace_for_member(Some(trip(ms, jitter))));
            let worst = ms + jitter + BEAT_EVERY.as_ms();
            assert!(pace > 1 && worst < pace * IN_CHARGE_FOR.as_ms(), "{ms} ms, give or take {jitter}: {pace}");
        }
        assert_eq!(pace_for_member(None), PACE_MIN);
        assert_eq!(pace_for_member(Some(trip(60_000, 0))), 13, "a machine that stood still is not far");
    }

    #[test]
    fn a_node_that_stands_still_now_and_then_is_not_far() {
        let mut trip = trip(2, 1);
        for n in 0..40 {
            trip = RoundTrip::with(Some(trip), Span::ms(if n % 4 == 0 { 3_000 } else { 2 }), at(200 + n));
            assert_eq!((pace_for_member(Some(trip)), pace_at_best(Some(trip))), (1, 1));
        }
    }

    #[test]
    fn a_node_that_has_moved_away_is_soon_known_to_be_far() {
        let moved = |times: u64, every: u64| {
            let samples = (0..times).map(|n| at(200 + n * every));
            let moved = samples.fold(trip(2, 1), |trip, at| RoundTrip::with(Some(trip), Span::ms(600), at));
            (pace_at_best(Some(moved)), pace_for_member(Some(moved)))
        };
        // By beats, and by a failure detector that looks at each node every few seconds.
        for (times, every) in [(8, 1), (3, 20)] {
            let (best, usual) = moved(times, every);
            assert!(best > 1 && usual >= best, "{times} times: {best}, {usual}");
        }
    }
}
