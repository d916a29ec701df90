//! How tasks end that are not wanted any more: it takes time, and is seen to even where the daemon stands still.

use sinew_scheduler::config::SWITCH_AFTER;
use sinew_scheduler::io::{Input, RunId, StopWhy};
use sinew_scheduler::time::{Span, Time};

use crate::exec::Stopped;
use crate::node::Stopping;
use crate::queue::{Event, Index, Life};
use crate::world::World;

/// A killed task is gone after up to so many milliseconds: a sandbox full of processes on a busy machine.
pub(crate) const KILL_MS_MAX: u64 = 20;
/// One that may end in good order is given so many.
const GRACE_MS: u64 = 2_000;

impl World {
    /// The core wants a task to end.
    pub(crate) fn stop_task(&mut self, node: Index, run: RunId, why: StopWhy) {
        let life = self.roll.life(node);
        if let Some(stopping) = self.nodes[node].stopping.get_mut(&run) {
            if why == StopWhy::Fenced {
                if stopping.graceful.take().is_some() {
                    self.queue.push(self.now + Span::ms(1 + KILL_MS_MAX), Event::TaskGone { life, run });
                }
            } else if why == StopWhy::Over
                && let Some((_, lease)) = &mut stopping.graceful
            {
                // Its job is over by now: it has all the time that it was to have.
                *lease = Time(u64::MAX);
            }
            return;
        }
        let running = self.nodes[node].runs.remove(&run);
        let Some(running) = running.filter(|r| self.executions[r.execution].end.is_none()) else {
            return self.queue.push(self.now, Event::TaskGone { life, run });
        };
        let execution = running.execution;
        let killed = self.now + Span::ms(1 + self.dice(KILL_MS_MAX));
        if self.executions[execution].start == self.now {
            // It was still to be started.
            self.executions[execution].end = Some((self.now, Stopped::ByCore));
            return self.queue.push(self.now, Event::TaskGone { life, run });
        }
        let (at, graceful) = match why {
            StopWhy::Fenced => (killed, None),
            StopWhy::Unwanted | StopWhy::Over => {
                let gone = killed + Span::ms(self.dice(GRACE_MS));
                let lease = self.nodes[node].clock.when(running.until).max(self.now) + SWITCH_AFTER;
                let lease = if why == StopWhy::Over { Time(u64::MAX) } else { lease };
                (gone.min(lease), Some((gone, lease)))
            }
        };
        let cpu_milli = running.cpu_milli;
        self.nodes[node].stopping.insert(run, Stopping { execution, graceful, cpu_milli });
        self.say(node, format!("stops ({why:?}) {:?}", self.executions[execution]));
        self.queue.push(at, Event::TaskGone { life, run });
    }

    /// A task that was stopped may be gone.
    pub(crate) fn task_gone(&mut self, life: Life, run: RunId) {
        if !self.is_alive(life) {
            return;
        }
        if let Some(stopping) = self.nodes[life.node].stopping.get(&run) {
            let at = stopping.graceful.map_or(self.now, |(gone, lease)| gone.min(lease));
            if at > self.now {
                return self.queue.push(at, Event::TaskGone { life, run });
            }
        }
        if let Some(stopping) = self.nodes[life.node].stopping.remove(&run) {
            self.executions[stopping.execution].end = Some((self.now, Stopped::ByCore));
        }
        self.input(life.node, Input::NotRun(run));
    }

    /// The lease of tasks ends at another time now.
    pub(crate) fn lease_moved(&mut self, node: Index, runs: &[RunId], until: Time) {
        self.counters.lease_effects += 1;
        for run in runs {
            if let Some(running) = self.nodes[node].runs.get_mut(run) {
                running.until = until;
            }
            let end = self.nodes[node].clock.when(until).max(self.now) + SWITCH_AFTER;
            if let Some((_, lease)) = self.nodes[node].stopping.get_mut(run).and_then(|s| s.graceful.as_mut()) {
                *lease = end;
            }
        }
    }

    /// A daemon stands still: what ends its tasks when their leases are over has been told when that is.
    pub(crate) fn arm_switch(&mut self, node: Index) {
        let life = self.roll.life(node);
        let ends: Vec<_> = self.nodes[node].runs.iter().map(|(run, running)| (*run, running.until)).collect();
        for (run, until) in ends.into_iter().filter(|(_, until)| *until < Time(u64::MAX)) {
            let at = self.nodes[node].clock.when(until).max(self.now) + SWITCH_AFTER;
            self.queue.push(at, Event::Switch { life, run });
        }
    }

    /// A lease is over. A daemon that goes on has seen to it itself, or has had it renewed.
    pub(crate) fn switch_due(&mut self, life: Life, run: RunId) {
        let node = life.node;
        if !self.is_alive(life) || !self.is_stalled(node) {
            return;
        }
        let Some(running) = self.nodes[node].runs.get(&run) else { return };
        let execution = running.execution;
        if self.executions[execution].end.is_none() {
            self.executions[execution].end = Some((self.now + Span::ms(1 + self.dice(KILL_MS_MAX)), Stopped::BySwitch));
            self.counters.switched += 1;
            self.say(node, format!("ended by the switch {:?}", self.executions[execution]));
            self.queue.push(self.now, Event::TaskEnd { life, run });
        }
    }
}
