//! Node clocks: each runs a little fast or slow, and what it takes for the date may be off or jump. The world's own time
//! is the only true one; timers that a core asks for are turned back into it.

use sinew_scheduler::time::{Now, Span, Time};

use crate::queue::Index;
use crate::world::{EPOCH_MS, World};

/// Parts per million.
const MILLION: i128 = 1_000_000;
/// A clock that runs backwards, or at no speed, is no clock; quartz is off by 100 ppm at worst, and this is a test.
const DRIFT_MAX_PPM: i64 = 500_000;

/// How a node's clocks differ from true time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ClockSetup {
    /// How much faster than true time both clocks run, parts per million; negative for slower.
    pub drift_ppm: i64,
    /// How far the date is ahead, ms; negative for behind.
    pub offset_ms: i64,
}

/// A node's clocks.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Clock {
    drift_ppm: i64,
    /// True time at which the drift last changed, and what the monotonic clock showed then.
    since: Time,
    shown: Time,
    offset_ms: i64,
}

impl Clock {
    pub(crate) fn new(setup: ClockSetup) -> Self {
        let mut clock = Self { offset_ms: setup.offset_ms, ..Self::default() };
        clock.set_drift(setup.drift_ppm, Time(0));
        clock
    }

    fn set_drift(&mut self, ppm: i64, now: Time) {
        assert!(ppm.abs() <= DRIFT_MAX_PPM, "a drift of {ppm} ppm is beyond {DRIFT_MAX_PPM}");
        self.shown = self.at(now);
        self.since = now;
        self.drift_ppm = ppm;
    }

    fn rate(&self) -> i128 {
        MILLION + i128::from(self.drift_ppm)
    }

    /// What the monotonic clock shows at a true time. Never goes back.
    pub(crate) fn at(&self, now: Time) -> Time {
        if self.drift_ppm == 0 {
            return self.shown + (now - self.since);
        }
        let passed = i128::from((now - self.since).0) * self.rate() / MILLION;
        self.shown + Span(u64::try_from(passed).unwrap_or(u64::MAX))
    }

    /// The first true time at which the monotonic clock shows `at` or more.
    pub(crate) fn when(&self, at: Time) -> Time {
        if self.drift_ppm == 0 {
            return self.since + (at - self.shown);
        }
        let ahead = (i128::from((at - self.shown).0) * MILLION).div_euclid(self.rate());
        let mut when = self.since + Span(u64::try_from(ahead).unwrap_or(u64::MAX));
        // Rounding down loses a microsecond or two at most.
        while self.at(when) < at && when < Time(u64::MAX) {
            when = when + Span(1);
        }
        when
    }

    fn now(&self, now: Time) -> Now {
        let at = self.at(now);
        let unix_ms = (EPOCH_MS + at.0 / 1_000).saturating_add_signed(self.offset_ms);
        Now { at, unix_ms }
    }
}

impl World {
    /// What a node's clocks show.
    pub(crate) fn clock(&self, node: Index) -> Now {
        self.nodes[node].clock.now(self.now)
    }

    /// What a node's clocks show: microseconds of its monotonic clock, and the date in Unix ms.
    #[must_use]
    pub fn shown(&self, name: &str) -> Now {
        self.clock(self.index(name))
    }

    /// A node's date jumps by so much, as when somebody sets it. Its timers do not notice.
    pub fn jump_clock(&mut self, name: &str, by_ms: i64) {
        let node = self.index(name);
        self.say(node, format!("CLOCK jumps by {by_ms} ms"));
        self.counters.clock_jumps += 1;
        self.nodes[node].clock.offset_ms += by_ms;
    }

    /// A node's clocks run faster by so many parts per million from now on, slower if negative.
    ///
    /// # Panics
    /// Beyond half of true speed.
    pub fn drift_clock(&mut self, name: &str, ppm: i64) {
        let node = self.index(name);
        self.say(node, format!("CLOCK drifts by {ppm} ppm"));
        let now = self.now;
        self.nodes[node].clock.set_drift(ppm, now);
        self.schedule_tick(node);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timers_come_back_to_the_first_moment_that_shows_them() {
        for drift_ppm in [-500_000, -100, -1, 0, 1, 37, 100, 500_000] {
            let clock = Clock::new(ClockSetup { drift_ppm, offset_ms: 0 });
            for at in [0, 1, 999, 1_000_000, 123_456_789_012] {
                let when = clock.when(Time(at));
                assert!(clock.at(when) >= Time(at));
                assert!(when.0 == 0 || clock.at(Time(when.0 - 1)) < Time(at), "{drift_ppm} {at}");
            }
        }
    }

    #[test]
    fn a_change_of_drift_does_not_move_the_clock() {
        let mut clock = Clock::new(ClockSetup { drift_ppm: 1_000, offset_ms: 0 });
        let now = Time(5_000_000);
        assert_eq!(clock.at(now), Time(5_005_000));
        clock.set_drift(-1_000, now);
        assert_eq!(clock.at(now), Time(5_005_000));
        assert_eq!(clock.at(Time(6_000_000)), Time(6_004_000));
        assert_eq!(clock.when(Time(6_004_000)), Time(6_000_000));
    }
}
