//! How fast a job goes and when it will be done: from the views of the last seconds while it is watched, from its history
//! when it is looked at once.

use std::collections::VecDeque;
use std::time::Duration;

use serde::Serialize;
use sinew_crdt_state::ids::NodeId;
use sinew_crdt_state::state::Event;
use sinew_scheduler::view::{JobView, PhaseView};

use super::super::human::{cut, percent, rate, span};
use super::super::table::WIDTH;

/// How far back a rate looks: long enough to be calm, short enough to follow nodes that come and go.
const WINDOW_MS: u64 = 10_000;
/// Shorter than this, a difference of counts says nothing.
const SHORTEST_MS: u64 = 500;

/// A phase's progress.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct PhasePace {
    /// `tasks`, `map` or `reduce`.
    pub(crate) name: String,
    /// How many tasks.
    pub(crate) tasks: u64,
    /// Finished.
    pub(crate) done: u64,
    /// Running now.
    pub(crate) running: u64,
    /// Finished per second, if it is known.
    pub(crate) per_s: Option<f64>,
    /// Until it is done at this rate, ms.
    pub(crate) eta_ms: Option<u64>,
}

/// A node's part of what is finished.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct NodeShare {
    /// Which.
    pub(crate) node: NodeId,
    /// Tasks finished, over all phases.
    pub(crate) done: u64,
    /// Of the tasks finished by anyone, rounded down.
    pub(crate) percent: u64,
}

/// The counts of the last seconds, phase by phase.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    seen: Vec<VecDeque<(u64, u64)>>,
}

impl Pace {
    /// Takes a view in, seen at `at_ms`, and says how fast its phases go.
    pub(crate) fn see(&mut self, view: &JobView, at_ms: u64) -> Vec<PhasePace> {
        self.seen.resize_with(view.phases.len(), VecDeque::new);
        let phases = view.phases.iter().zip(&mut self.seen);
        phases.map(|(phase, seen)| with_rate(phase, recent(seen, at_ms, phase.done))).collect()
    }
}

/// Tasks per second over the window, `done` at `at_ms` included.
fn recent(seen: &mut VecDeque<(u64, u64)>, at_ms: u64, done: u64) -> Option<f64> {
    seen.push_back((at_ms, done));
    // The oldest one that is still needed is the last outside the window.
    while seen.get(1).is_some_and(|(at, _)| at + WINDOW_MS <= at_ms) {
        seen.pop_front();
    }
    let (first_ms, first) = *seen.front()?;
    per_s(done.saturating_sub(first), at_ms.saturating_sub(first_ms))
}

/// What one look at a job with its history tells.
pub(crate) fn from_history(view: &JobView, timeline: &[Event], now_ms: u64) -> Vec<PhasePace> {
    let mut start_ms = timeline.iter().find(|e| e.what == "claim").map_or(view.submitted_ms, |e| e.at_ms);
    let ended_ms = timeline.last().filter(|_| view.is_ended()).map(|e| e.at_ms);
    let mut paces = Vec::new();
    for (number, phase) in view.phases.iter().enumerate() {
        let said = format!("phase {number}: ");
        let accepts = timeline.iter().filter(|e| e.what == "accept" && e.detail.starts_with(&said));
        let last_ms = accepts.map(|e| e.at_ms).max();
        let end_ms = last_ms.filter(|_| phase.done >= phase.tasks).or(ended_ms).unwrap_or(now_ms);
        paces.push(with_rate(phase, per_s(phase.done, end_ms.saturating_sub(start_ms))));
        start_ms = last_ms.unwrap_or(start_ms);
    }
    paces
}

fn per_s(done: u64, ms: u64) -> Option<f64> {
    // Counts of tasks and times of jobs are far below where f64 begins to round.
    #[allow(clippy::cast_precision_loss)]
    (ms >= SHORTEST_MS && done > 0).then(|| done as f64 * 1_000.0 / ms as f64)
}

fn with_rate(phase: &PhaseView, per_s: Option<f64>) -> PhasePace {
    let left = phase.tasks.saturating_sub(phase.done);
    #[allow(clippy::cast_precision_loss)]
    let eta = per_s.filter(|_| left > 0).and_then(|r| Duration::try_from_secs_f64(left as f64 / r).ok());
    PhasePace {
        name: phase.name.clone(),
        tasks: phase.tasks,
        done: phase.done,
        running: phase.running,
        per_s,
        eta_ms: eta.and_then(|eta| u64::try_from(eta.as_millis()).ok()),
    }
}

/// Who did how much, the busiest first.
pub(crate) fn shares(view: &JobView) -> Vec<NodeShare> {
    let sum = |done: &[u64]| done.iter().fold(0_u64, |sum, n| sum.saturating_add(*n));
    let all = view.shares.iter().fold(0_u64, |all, s| all.saturating_add(sum(&s.done)));
    let part =
        |done: u64| if all == 0 { 0 } else { u64::try_from(u128::from(done) * 100 / u128::from(all)).unwrap_or(100) };
    let mut shares: Vec<NodeShare> = view
        .shares
        .iter()
        .map(|s| NodeShare { node: s.node, done: sum(&s.done), percent: part(sum(&s.done)) })
        .collect();
    shares.sort_by_key(|share| (std::cmp::Reverse(share.done), share.node));
    shares
}

impl PhasePace {
    /// The numbers after the bar: `62%, 55.1/s, ETA 7s, 8 running`.
    pub(crate) fn numbers(&self) -> String {
        let mut text = percent(self.done, self.tasks);
        if let Some(per_s) = self.per_s {
            text += &format!(", {}", rate(per_s));
        }
        if let Some(eta_ms) = self.eta_ms {
            text += &format!(", ETA {}", span(eta_ms));
        }
        if self.running > 0 {
            text += &format!(", {} running", self.running);
        }
        text
    }
}

/// `nodes abcdefghij 50%, klmnopqrst 50%`, in one line of a terminal; nothing before anything is done.
pub(crate) fn share_line(view: &JobView) -> String {
    let shares: Vec<String> = shares(view)
        .iter()
        .filter(|share| share.done > 0)
        .map(|share| format!("{} {}%", share.node.short(), share.percent))
        .collect();
    if shares.is_empty() { String::new() } else { cut(&format!("nodes {}", shares.join(", ")), WIDTH) }
}

/// The phase that goes on, in one line: for logs and pipes.
pub(crate) fn line(view: &JobView, paces: &[PhasePace]) -> String {
    let current = paces.iter().find(|p| p.done < p.tasks).or(paces.last());
    let phase = current.map_or_else(String::new, |p| format!("{} {}/{} {}", p.name, p.done, p.tasks, p.numbers()));
    let nodes = share_line(view);
    if nodes.is_empty() { phase } else { format!("{phase}; {nodes}") }
}

#[cfg(test)]
mod tests {
    use sinew_crdt_state::fact::{Accepted, Fact, Fence, Run, Statement};
    use sinew_crdt_state::ids::FactId;
    use sinew_crdt_state::state::timeline;

    use super::super::testing::{SUBMITTED_MS, view};
    use super::*;

    #[test]
    fn a_watched_job_has_the_rate_of_its_last_seconds() {
        let mut pace = Pace::default();
        let mut view = view();
        view.phases[0].done = 0;
        assert_eq!(pace.see(&view, 1_000)[0].per_s, None);
        let mut last = Vec::new();
        // Slow for half a minute, then fast: the rate is the fast one.
        for second in 2..=60_u64 {
            view.phases[0].done += if second < 30 { 1 } else { 20 };
            last = pace.see(&view, second * 1_000);
        }
        assert_eq!((last[0].done, last[0].per_s, last[0].eta_ms), (648, Some(20.0), Some(17_600)));
        assert_eq!((last[1].per_s, last[1].eta_ms), (None, None));
        assert_eq!(last[0].numbers(), "64%, 20.0/s, ETA 17s, 8 running");
    }

    #[test]
    fn one_look_takes_the_rate_from_the_history() {
        let node = NodeId([2; 32]);
        let fence = Fence { term: 1, epoch: 1 };
        let accept = |phase, len| Fact::Accept {
            term: 1,
            phase,
            items: vec![Accepted {
                run: Run { start: 0, len },
                node,
                fence,
                outputs: Vec::new(),
                copy: None,
                again: 0,
            }],
        };
        let facts = [(1_000, Fact::Claim { fence, slots: 1 }), (21_000, accept(0, 1_000)), (23_000, accept(1, 2))];
        let facts = facts.map(|(ms, fact)| Statement { at_ms: SUBMITTED_MS + ms, fact });
        let events =
            timeline(facts.iter().enumerate().map(|(i, s)| (FactId([u8::try_from(i).expect("few"); 32]), node, s)));
        let mut view = view();
        (view.phases[0].done, view.phases[1].done) = (1_000, 2);
        let paces = from_history(&view, &events, SUBMITTED_MS + 25_000);
        assert_eq!((paces[0].per_s, paces[0].eta_ms), (Some(50.0), None));
        assert_eq!((paces[1].per_s, paces[1].eta_ms), (Some(0.5), Some(4_000)));
    }

    #[test]
    fn shares_are_sorted_and_fit_a_line() {
        let mut view = view();
        view.shares[1].done = vec![930, 0];
        let shares = shares(&view);
        assert_eq!((shares[0].done, shares[0].percent, shares[1].percent), (930, 75, 25));
        let paces = Pace::default().see(&view, 0);
        let first = view.shares[1].node.short();
        assert!(line(&view, &paces).starts_with(&format!("map 620/1000 62%, 8 running; nodes {first} 75%, ")));
        view.shares = (0..40)
            .map(|i| sinew_scheduler::view::ShareView { node: NodeId([i; 32]), done: vec![5, 5], slots: 1 })
            .collect();
        assert!(share_line(&view).chars().count() <= WIDTH);
        view.shares.clear();
        assert_eq!(share_line(&view), "");
    }
}
