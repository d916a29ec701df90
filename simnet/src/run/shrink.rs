//! Makes a failing run smaller: fewer classes of faults, shorter, fewer nodes, fewer strikes, as long as it still fails.

use std::collections::BTreeSet;

use sinew_scheduler::time::Span;

use super::Options;
use crate::nemesis;

/// No mesh smaller than this is tried: with fewer there is no majority to speak of.
const NODES_MIN: usize = 3;

/// What is left of a failing run.
#[derive(Debug, Clone, PartialEq)]
pub struct Shrunk {
    /// The smallest that was found.
    pub options: Options,
    /// Runs that finding it took.
    pub runs: usize,
}

struct Shrinker<F> {
    best: Options,
    runs: usize,
    runs_max: usize,
    fails: F,
}

/// Looks for a smaller run that `fails`, in at most `runs_max` runs. `failing` is taken to fail.
pub fn shrink(failing: &Options, runs_max: usize, fails: impl FnMut(&Options) -> bool) -> Shrunk {
    let mut shrinker = Shrinker { best: failing.clone(), runs: 0, runs_max, fails };
    shrinker.classes();
    shrinker.length();
    shrinker.nodes();
    shrinker.strikes();
    shrinker.length();
    Shrunk { options: shrinker.best, runs: shrinker.runs }
}

impl<F: FnMut(&Options) -> bool> Shrinker<F> {
    /// Keeps `smaller` if it fails too.
    fn keep(&mut self, smaller: Options) -> bool {
        if self.runs >= self.runs_max || smaller == self.best || smaller.check().is_err() {
            return false;
        }
        self.runs += 1;
        let fails = (self.fails)(&smaller);
        if fails {
            self.best = smaller;
        }
        fails
    }

    fn classes(&mut self) {
        for class in self.best.faults.clone() {
            let mut smaller = self.best.clone();
            smaller.faults.remove(&class);
            if class == nemesis::Class::Churn {
                smaller.churn_percent_per_hour = 0.0;
            }
            self.keep(smaller);
        }
    }

    /// Half as long, then three quarters, with as many jobs a second as before.
    fn length(&mut self) {
        for (part, of) in [(1, 2), (3, 4)] {
            loop {
                let mut smaller = self.best.clone();
                smaller.duration = Span(smaller.duration.0 * part / of);
                smaller.jobs = u32::try_from(u64::from(smaller.jobs) * part / of).unwrap_or(1).max(1);
                if !self.keep(smaller) {
                    break;
                }
            }
        }
    }

    fn nodes(&mut self) {
        let mut too_few = NODES_MIN - 1;
        while self.best.nodes > too_few + 1 {
            let nodes = too_few + (self.best.nodes - too_few) / 2;
            let smaller = Options { nodes, ..self.best.clone() };
            if !self.keep(smaller) {
                too_few = nodes;
            }
        }
    }

    /// Leaves out runs of strikes, half of them at first, single ones at last.
    fn strikes(&mut self) {
        let of = &self.best;
        let scheduled = nemesis::schedule(of.seed, &of.faults, of.duration, of.churn_per_s());
        let kept = |number: &u32| of.strikes.as_ref().is_none_or(|only| only.contains(number));
        let mut left: Vec<u32> = scheduled.iter().map(|s| s.number).filter(kept).collect();
        let mut len = left.len().div_ceil(2);
        while len > 0 {
            let mut from = 0;
            while from < left.len() {
                let mut fewer = left.clone();
                fewer.drain(from..(from + len).min(left.len()));
                let strikes: BTreeSet<u32> = fewer.iter().copied().collect();
                let smaller = Options { strikes: Some(strikes), ..self.best.clone() };
                if self.keep(smaller) {
                    left = fewer;
                } else {
                    from += len;
                }
            }
            len /= 2;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nemesis::Class;

    /// A run that fails whenever one certain strike is in its schedule and there are four nodes: all else must go.
    #[test]
    fn all_that_a_failure_does_not_need_is_left_out() {
        let big = Options {
            nodes: 12,
            jobs: 100,
            duration: Span::ms(60_000),
            faults: Class::ALL.into_iter().filter(|c| *c != Class::Churn).collect(),
            ..Options::default()
        };
        let strikes_of = |o: &Options| -> Vec<u32> {
            let all = nemesis::schedule(o.seed, &o.faults, o.duration, 0.0);
            all.iter().map(|s| s.number).filter(|n| o.strikes.as_ref().is_none_or(|only| only.contains(n))).collect()
        };
        let of_flap = Class::Flap.order() * 10_000;
        let wanted = strikes_of(&big).into_iter().filter(|n| *n / 10_000 * 10_000 == of_flap).nth(2).unwrap();
        let shrunk = shrink(&big, 200, |o| o.nodes >= 4 && strikes_of(o).contains(&wanted));
        let left = &shrunk.options;
        assert_eq!(left.nodes, 4);
        assert_eq!(left.faults, [Class::Flap].into());
        assert_eq!(strikes_of(left), [wanted]);
        assert!(left.duration < big.duration && left.jobs < big.jobs);
        assert!(shrunk.runs <= 200);
        let command = left.command();
        assert!(command.contains("--faults flap") && command.contains(&format!("--strikes {wanted}")), "{command}");
    }

    #[test]
    fn shrinking_ends_within_its_budget() {
        let big = Options { nodes: 100, faults: Class::ALL.into_iter().collect(), ..Options::default() };
        let shrunk = shrink(&big, 7, |_| true);
        assert!(shrunk.runs <= 7);
    }
}
