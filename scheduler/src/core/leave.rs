//! Leaving in good order: first what runs here, then what is led from here, then a word to everybody. What a node that leaves
//! without these costs the others is known from crashes; this only saves them the time, and the failure detector its doubts.

use sinew_crdt_state::ids::JobId;
use sinew_crdt_state::planted::{Bug, planted};
use sinew_crdt_state::spec::PACE_MIN;

use super::Core;
use crate::config::HANDED_OVER_WITHIN;
use crate::io::{Effect, Leave};
use crate::time::Time;

/// How far a node that leaves has come.
#[derive(Debug)]
pub(super) struct Leaving {
    how: Leave,
    /// Jobs that were led here, with the terms, and until when this node stays to vote for their next brains.
    handed: Vec<(JobId, u32)>,
    until: Option<Time>,
    left: bool,
}

impl Leaving {
    /// When the wait for other brains is over. What else is waited for says so when it comes.
    pub(super) fn timeout(&self, now: Time) -> Option<Time> {
        self.until.filter(|until| !self.left && *until > now)
    }
}

impl Core {
    pub(super) fn on_leave(&mut self, how: Leave) {
        let now = self.ctx.now.at;
        match &mut self.leaving {
            Some(leaving) if leaving.left || leaving.how >= how => return,
            Some(leaving) => leaving.how = how,
            None => self.leaving = Some(Leaving { how, handed: Vec::new(), until: None, left: false }),
        }
        self.ctx.leaving = true;
        self.worker.leave(&mut self.ctx, how >= Leave::HandOver);
        self.refresh_own_load();
        // Nobody is to plan with what is here.
        self.load_at = Some(now);
        self.brains.touch_all();
    }

    /// Goes on with leaving as far as it can.
    pub(super) fn step_leaving(&mut self) {
        let Some(Leaving { how, left: false, .. }) = self.leaving else { return };
        let at_once = how == Leave::AtOnce;
        let only_here = || self.brains.iter().any(|(_, brain)| brain.set().len() == 1);
        if !at_once && (!self.worker.is_idle() || how == Leave::WhenDone && only_here()) {
            return;
        }
        // The pace of the slowest that goes.
        let pace = self.brains.iter().map(|(_, brain)| brain.pace()).max().unwrap_or(PACE_MIN);
        let handed = self.brains.hand_over(&mut self.ctx, at_once);
        if !handed.is_empty() {
            // What is left is deposed; it ends with the next step.
            self.brains.step(&mut self.ctx);
            self.stewards.after_steps(&self.ctx, &mut self.brains);
            handed.iter().for_each(|(job, _)| self.stewards.on_handed_over(&self.ctx, *job));
        }
        let until = self.ctx.now.at + HANDED_OVER_WITHIN.at(pace);
        let Some(leaving) = &mut self.leaving else { return };
        if !handed.is_empty() {
            leaving.until = Some(until);
            leaving.handed.extend(handed);
        }
        let ledger = &self.ctx.ledger;
        let is_led =
            |job: &JobId, term: u32| ledger.live(job).is_none_or(|l| l.state.term > term || l.state.seal.is_some());
        leaving.handed.retain(|(job, term)| !is_led(job, *term));
        let waits = leaving.until.is_some_and(|until| self.ctx.now.at < until) && !leaving.handed.is_empty();
        let storing = self.brains.iter().any(|(_, brain)| brain.is_storing());
        if !at_once && (waits || storing) {
            return;
        }
        leaving.left = true;
        if !planted(Bug::LeaveUnsaid) {
            self.membership.leave(self.ctx.now.at);
        }
        self.ctx.effect(Effect::Left);
    }
}
