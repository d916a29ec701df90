//! Cores that ask to be called at once, for ever. The clock would advance by a microsecond a call, and a run would not end.

use sinew_scheduler::time::{Span, Time};

use crate::queue::Index;
use crate::world::World;

/// How long a look at one core takes.
const WINDOW: Span = Span::ms(20);
/// Calls that a core asked for within one window, beyond one for each call that something else gave rise to. A core at work
/// has timers milliseconds apart; at one call a microsecond this is reached within the window.
const TICKS_MAX: u32 = 10_000;

/// How busy one core is.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Busy {
    since: Time,
    ticks: u32,
}

impl Busy {
    /// Counts a call, and says whether the core no longer does anything but ask for calls.
    pub(crate) fn called(&mut self, now: Time, asked_for: bool) -> bool {
        if now - self.since >= WINDOW {
            (self.since, self.ticks) = (now, 0);
        }
        self.ticks = if asked_for { self.ticks + 1 } else { self.ticks.saturating_sub(1) };
        self.ticks > TICKS_MAX
    }
}

impl World {
    /// A core is about to be called.
    ///
    /// # Panics
    /// When it asks for calls all the time.
    pub(crate) fn calls(&mut self, node: Index, asked_for: bool) {
        let n = &mut self.nodes[node];
        if n.busy.called(self.now, asked_for) {
            let name = &n.name;
            panic!(
                "the core of {name} asks to be called at once, for ever: {TICKS_MAX} times in {} ms",
                WINDOW.as_ms()
            );
        }
        self.calling = Some(node);
    }

    /// Whose core was at work when something panicked, if any's was.
    pub(crate) fn at_work(&self) -> Option<&str> {
        self.calling.map(|node| self.nodes[node].name.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_each_microsecond_is_noticed_and_ones_that_others_cause_are_not() {
        let mut busy = Busy::default();
        let noticed = (0..20_000).find(|us| busy.called(Time(*us), true));
        assert_eq!(noticed, Some(u64::from(TICKS_MAX)));
        let mut busy = Busy::default();
        assert!(!(0..1_000_000).any(|us| busy.called(Time(us), us % 2 == 0)), "each call was answered by one tick");
        let mut busy = Busy::default();
        assert!(!(0..1_000_000).any(|i| busy.called(Time(i * 3), true)), "three microseconds apart is not for ever");
    }
}
