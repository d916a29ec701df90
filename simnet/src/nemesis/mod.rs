//! The nemesis: faults as a schedule drawn from the seed, each class by its name, each strike by its number.
//!
//! Every class draws from a stream of its own. A schedule with fewer classes, or a shorter one, therefore has the very
//! same strikes, only fewer of them: that is what lets a failing run be made smaller. When strikes begin and end is in
//! `strike`, what they do in `hit` and `machine`, what liars say in `lie`.

mod class;
mod hit;
mod lie;
mod machine;
mod strike;

use std::collections::{BTreeMap, BTreeSet};

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sinew_scheduler::time::Span;

pub use class::{Class, UnknownClass};
pub(crate) use strike::Nemesis;

/// Mean time between two strikes of one class. Short against a run, long against a lease, so that several classes
/// overlap without all of them being in force all the time.
const GAP: Span = Span::ms(4_000);
/// Strike numbers of one class begin at a multiple of this.
const NUMBERS_PER_CLASS: u32 = 10_000;

/// One fault, not yet carried out. Which nodes it hits is settled when it strikes, from `dice`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Strike {
    /// Its number: the same in every schedule of this seed.
    pub number: u32,
    /// What kind.
    pub class: Class,
    /// When, from the beginning of the run.
    pub at: Span,
    /// How long, for what can last.
    pub lasts: Span,
    pub(crate) dice: [u64; 4],
}

/// How often a class struck, and how often that made a difference: a cut over which nobody spoke is not felt.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Fired {
    /// Strikes carried out.
    pub struck: u64,
    /// Strikes that hit something: frames held up or lost, writes refused, lies that reached someone.
    pub felt: u64,
}

/// Counts by class.
pub type FiredByClass = BTreeMap<Class, Fired>;

/// All strikes of a run, in order of time.
#[must_use]
pub fn schedule(seed: u64, classes: &BTreeSet<Class>, duration: Span, churn_per_s: f64) -> Vec<Strike> {
    let mut all = Vec::new();
    for class in classes {
        let gap = match class {
            Class::Churn if churn_per_s > 0.0 => 1e6 / churn_per_s,
            Class::Churn => continue,
            _ => GAP.0 as f64,
        };
        all.extend(strikes_of(seed, *class, gap, duration));
    }
    all.sort_by_key(|s: &Strike| (s.at, s.number));
    all
}

/// The strikes of one class, `gap` microseconds apart in the mean, with exponential waits between them.
fn strikes_of(seed: u64, class: Class, gap: f64, duration: Span) -> Vec<Strike> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed ^ blake3_of(class.name()));
    let (low, high) = class.lasting_ms();
    let mut strikes = Vec::new();
    let mut at = 0.0;
    for number in 0..NUMBERS_PER_CLASS {
        let uniform: f64 = rng.random();
        at -= gap * (1.0 - uniform).ln();
        if at >= duration.0 as f64 {
            break;
        }
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "below the duration")]
        let at = Span(at as u64);
        let lasts = Span::ms(rng.random_range(low..=high));
        let number = class.order() * NUMBERS_PER_CLASS + number;
        strikes.push(Strike { number, class, at, lasts, dice: rng.random() });
    }
    strikes
}

/// One of `all`, if there is any.
fn one_of<T>(mut all: Vec<T>, dice: u64) -> Option<T> {
    let len = u64::try_from(all.len()).ok().filter(|len| *len > 0)?;
    usize::try_from(dice % len).ok().map(|i| all.swap_remove(i))
}

/// A number that differs between names.
fn blake3_of(name: &str) -> u64 {
    let hash = blake3::hash(name.as_bytes());
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&hash.as_bytes()[..8]);
    u64::from_le_bytes(bytes)
}

#[cfg(test)]
mod tests;

#[cfg(test)]
mod streams {
    use super::*;

    #[test]
    fn fewer_classes_and_less_time_leave_the_other_strikes_as_they_were() {
        let all: BTreeSet<Class> = Class::ALL.into_iter().collect();
        let whole = schedule(7, &all, Span::ms(60_000), 0.5);
        assert!(all.iter().all(|c| whole.iter().any(|s| s.class == *c)), "every class strikes within a minute");
        let two: BTreeSet<Class> = [Class::Crash, Class::Drop].into();
        let fewer: Vec<Strike> = whole.iter().copied().filter(|s| two.contains(&s.class)).collect();
        assert_eq!(schedule(7, &two, Span::ms(60_000), 0.5), fewer);
        let shorter: Vec<Strike> = whole.iter().copied().filter(|s| s.at < Span::ms(10_000)).collect();
        assert_eq!(schedule(7, &all, Span::ms(10_000), 0.5), shorter);
        assert_ne!(schedule(8, &all, Span::ms(60_000), 0.5), whole);
    }
}
