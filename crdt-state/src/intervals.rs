//! A map from runs of task numbers to values, for accepted results: a million plain successes take a few entries.

use std::collections::BTreeMap;

use crate::fact::Run;

/// Disjoint runs with a value each. Adjacent runs with equal values are merged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IntervalMap<V> {
    runs: BTreeMap<u32, (u32, V)>,
}

impl<V> Default for IntervalMap<V> {
    fn default() -> Self {
        Self::new()
    }
}

impl<V> IntervalMap<V> {
    /// A map without runs.
    #[must_use]
    pub const fn new() -> Self {
        Self { runs: BTreeMap::new() }
    }
}

impl<V: Clone + PartialEq> IntervalMap<V> {
    /// Sets `run` to `value` wherever `wins(old)` holds or nothing is set yet.
    pub fn insert(&mut self, run: Run, value: &V, wins: impl Fn(&V) -> bool) {
        let (start, end) = (run.start, run.end());
        if start >= end {
            return;
        }
        let touched: Vec<(u32, u32, V)> = self.overlapping(run).map(|(r, v)| (r.start, r.end(), v.clone())).collect();
        let mut at = start;
        for (old_start, old_end, old) in touched {
            if at < old_start {
                self.put(at, old_start, value.clone());
            }
            let (cut_start, cut_end) = (old_start.max(start), old_end.min(end));
            if wins(&old) {
                self.runs.remove(&old_start);
                if old_start < cut_start {
                    self.runs.insert(old_start, (cut_start, old.clone()));
                }
                if cut_end < old_end {
                    self.runs.insert(cut_end, (old_end, old));
                }
                self.put(cut_start, cut_end, value.clone());
            }
            at = cut_end;
        }
        if at < end {
            self.put(at, end, value.clone());
        }
    }

    /// Puts a run where nothing is, merging with equal neighbours.
    fn put(&mut self, mut start: u32, mut end: u32, value: V) {
        if let Some((s, (e, v))) = self.runs.range(..start).next_back()
            && *e == start
            && *v == value
        {
            start = *s;
        }
        if let Some((e, v)) = self.runs.get(&end)
            && *v == value
        {
            let next_end = *e;
            self.runs.remove(&end);
            end = next_end;
        }
        self.runs.insert(start, (end, value));
    }

    /// Takes out whatever lies within `run`, cutting runs at its ends.
    pub fn take(&mut self, run: Run) -> Vec<(Run, V)> {
        let touched: Vec<(Run, V)> = self.overlapping(run).map(|(r, v)| (r, v.clone())).collect();
        let mut taken = Vec::with_capacity(touched.len());
        for (old, value) in touched {
            self.runs.remove(&old.start);
            let (start, end) = (old.start.max(run.start), old.end().min(run.end()));
            if old.start < start {
                self.runs.insert(old.start, (start, value.clone()));
            }
            if end < old.end() {
                self.runs.insert(end, (old.end(), value.clone()));
            }
            taken.push((Run { start, len: end - start }, value));
        }
        taken
    }

    /// Whether no task has a value.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// The parts of `run` without a value.
    #[must_use]
    pub fn gaps_in(&self, run: Run) -> Vec<Run> {
        let mut gaps = Vec::new();
        let mut at = run.start;
        for (old, _) in self.overlapping(run) {
            if at < old.start {
                gaps.push(Run { start: at, len: old.start - at });
            }
            at = at.max(old.end());
        }
        if at < run.end() {
            gaps.push(Run { start: at, len: run.end() - at });
        }
        gaps
    }

    /// The value of one task.
    #[must_use]
    pub fn get(&self, task: u32) -> Option<&V> {
        self.runs.range(..=task).next_back().filter(|(_, (end, _))| task < *end).map(|(_, (_, v))| v)
    }

    /// The runs that overlap `run`, whole, in order.
    pub fn overlapping(&self, run: Run) -> impl Iterator<Item = (Run, &V)> {
        let first = self
            .runs
            .range(..run.start)
            .next_back()
            .filter(|(_, (end, _))| *end > run.start)
            .map_or(run.start, |(s, _)| *s);
        self.runs.range(first..run.end().max(first)).map(|(s, (e, v))| (Run { start: *s, len: e - s }, v))
    }

    /// All runs, in order.
    pub fn iter(&self) -> impl Iterator<Item = (Run, &V)> {
        self.runs.iter().map(|(s, (e, v))| (Run { start: *s, len: e - s }, v))
    }

    /// How many tasks have a value.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.runs.iter().map(|(s, (e, _))| u64::from(e - s)).sum()
    }

    /// The runs within `0..total` without a value.
    #[must_use]
    pub fn gaps(&self, total: u32) -> Vec<Run> {
        self.gaps_in(Run { start: 0, len: total })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Against a plain array: highest value wins, any order.
        #[test]
        fn behaves_like_an_array(ops in prop::collection::vec((0u32..60, 0u32..20, 0u8..5), 0..40)) {
            let mut map = IntervalMap::default();
            let mut model = [None::<u8>; 80];
            for (start, len, value) in ops {
                map.insert(Run { start, len }, &value, |old| value > *old);
                for slot in &mut model[start as usize..(start + len) as usize] {
                    if slot.is_none_or(|old| value > old) {
                        *slot = Some(value);
                    }
                }
            }
            for (task, want) in (0u32..).zip(&model) {
                prop_assert_eq!(map.get(task), want.as_ref());
            }
            prop_assert_eq!(map.count(), model.iter().flatten().count() as u64);
            let gaps: u64 = map.gaps(80).iter().map(|r| u64::from(r.len)).sum();
            prop_assert_eq!(gaps, 80 - map.count());
            let window = Run { start: 20, len: 25 };
            let mut cut = map.clone();
            let taken: u64 = cut.take(window).iter().map(|(r, _)| u64::from(r.len)).sum();
            let there = model[20..45].iter().flatten().count() as u64;
            prop_assert_eq!(taken, there);
            prop_assert_eq!(cut.count(), map.count() - there);
            prop_assert_eq!(cut.gaps_in(window), vec![window]);
            let runs: Vec<_> = map.iter().map(|(r, v)| (r, *v)).collect();
            for pair in runs.windows(2) {
                prop_assert!(pair[0].0.end() < pair[1].0.start || pair[0].1 != pair[1].1, "merged");
            }
        }
    }
}
