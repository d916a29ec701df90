//! How busy a node is: by the inputs that reach its core.
//!
//! Open jobs alone do not tell: twenty thousand that wait for a machine ask for nothing, and what comes in beside them should
//! be answered at once.

use crate::time::{Span, Time};

/// How long inputs are counted before they are judged.
const WINDOW: Span = Span::ms(10);
/// A node with as many inputs a window is busy: some three hundred small jobs a second at their brain, six hundred at a steward.
const BUSY_AT: u64 = 30;
/// A busy node with fewer is busy no more. Answers that are put off bring fewer questions, which must not end it at once.
const CALM_BELOW: u64 = 15;

/// Counts a core's inputs.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Pace {
    since: Time,
    inputs: u64,
    busy: bool,
}

impl Pace {
    /// An input came in.
    pub(crate) fn count(&mut self, now: Time) {
        let took = now - self.since;
        if took >= WINDOW {
            let each = self.inputs * WINDOW.0 / took.0;
            self.busy = each >= if self.busy { CALM_BELOW } else { BUSY_AT };
            (self.since, self.inputs) = (now, 0);
        }
        self.inputs += 1;
    }

    /// Whether many inputs come in of late.
    pub(crate) const fn is_busy(&self) -> bool {
        self.busy
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds one input each so many microseconds, for so many milliseconds from `from`, and says whether that is busy.
    fn feed(pace: &mut Pace, from_ms: u64, ms: u64, every_us: u64) -> bool {
        for at in (from_ms * 1_000..(from_ms + ms) * 1_000).step_by(usize::try_from(every_us).unwrap()) {
            pace.count(Time(at));
        }
        pace.is_busy()
    }

    #[test]
    fn a_stream_is_busy_and_single_inputs_are_not() {
        let mut pace = Pace::default();
        assert!(!feed(&mut pace, 1_000, 200, 1_000), "one a millisecond");
        assert!(feed(&mut pace, 1_200, 50, 100), "ten a millisecond");
        assert!(feed(&mut pace, 1_250, 50, 500), "a busy node stays so at two");
        assert!(!feed(&mut pace, 1_300, 50, 1_000), "and not at one");
        assert!(feed(&mut pace, 1_350, 50, 100));
        pace.count(Time(9_000_000));
        assert!(!pace.is_busy(), "after a rest the first input is answered at once");
    }
}
