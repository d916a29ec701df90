//! A node that is about to leave gives back what it holds. An award goes back only once nothing of it runs here any more: its
//! tasks may start elsewhere the moment its brain hears of it. That counts as no attempt.

use sinew_crdt_state::error_code::ErrorCode;
use sinew_crdt_state::fact::{Failure, Usage};
use sinew_crdt_state::planted::{Bug, planted};

use super::Worker;
use crate::ctx::Ctx;
use crate::io::{Effect, RunId, StopWhy, TaskResult};
use crate::wire::{Lease, Message};

impl Worker {
    /// Takes nothing new from here on; with `give_back` what runs is ended too.
    pub(crate) fn leave(&mut self, ctx: &mut Ctx, give_back: bool) {
        self.bids.clear();
        self.load_changed = true;
        if !give_back || self.gives_back {
            return;
        }
        self.gives_back = true;
        for (lease, held) in &mut self.held {
            if planted(Bug::GiveBackWhileRunning) {
                ctx.send(held.brain, Message::Decline { lease: *lease });
            }
            held.queue.clear();
            held.running.values().for_each(|run| ctx.effect(Effect::Drain(*run)));
        }
    }

    /// A task that was to end is gone, and had no result.
    pub(crate) fn on_not_run(&mut self, ctx: &mut Ctx, run: RunId) {
        if !self.runs.contains_key(&run) {
            return self.gone(ctx, run);
        }
        if planted(Bug::LeaveFailsTasks) {
            let failure = Failure {
                code: ErrorCode::Exit,
                exit: None,
                message: String::new(),
                stderr_tail: String::new(),
                retryable: true,
            };
            return self.on_task(ctx, run, TaskResult { result: Err(failure), usage: Usage::default() });
        }
        let Some((lease, phase, task)) = self.runs.remove(&run) else { return };
        if let Some(held) = self.held.get_mut(&lease) {
            held.running.remove(&(phase, task));
        }
    }

    /// Gives awards back of which nothing runs here any more and every result counts.
    pub(super) fn give_back(&mut self, ctx: &mut Ctx) {
        let ended = |lease: &Lease, worker: &Self| {
            let held = worker.held.get(lease);
            held.is_some_and(|h| h.queue.is_empty() && h.running.is_empty() && h.stopping.is_empty())
        };
        let leases: Vec<Lease> = self.held.keys().copied().filter(|lease| ended(lease, self)).collect();
        for lease in leases {
            self.report(ctx, lease);
            if let Some(held) = self.held.get(&lease).filter(|held| held.unsettled.is_empty()) {
                let brain = held.brain;
                self.drop_held(ctx, lease, StopWhy::Fenced);
                ctx.send(brain, Message::Decline { lease });
            }
        }
    }

    /// Whether nothing is held, and nothing takes room any more.
    pub(crate) fn is_idle(&self) -> bool {
        self.held.is_empty() && self.going.is_empty()
    }
}
