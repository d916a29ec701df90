//! Requests of users that cannot be answered at once: a submit that waits for members to be in reach, another try under a key
//! whose job is not known to be taken yet, a cancel that nobody has decided.
//!
//! Each has its time. When that is over the answer says what is not known, and never that something did not happen which may.

use std::collections::{BTreeMap, VecDeque};

use sinew_crdt_state::fact::{Fact, Outcome};
use sinew_crdt_state::ids::{Hash, JobId, NodeId};
use sinew_crdt_state::planted::{Bug, planted};
use sinew_crdt_state::spec::{Alone, JobSpec};

use super::Core;
use crate::config::{CANCEL_AGAIN, CANCEL_WAIT, CANCEL_WAIT_CUT_OFF, LOST_AFTER, REACH_SETTLED, SUBMIT_TIMEOUT};
use crate::io::{CancelError, Effect, NewJob, RequestId, Response, SubmitError};
use crate::members;
use crate::membership::NodeState;
use crate::time::{Span, Time};
use crate::view::{LostView, waiting_text};
use crate::wire::Message;

/// Nodes in the brain set of a job: one that decides and two that could. More would cost latency for little.
pub(super) const BRAIN_SET: usize = 3;
/// A node so far away answers the failure detector too late now and then.
const FAR: Span = Span::ms(150);

/// Who waits for what.
#[derive(Debug, Default)]
pub(super) struct Clients {
    /// Submits that wait for members, oldest first.
    starting: VecDeque<(RequestId, NewJob, Time)>,
    /// Tries under a key whose job may not be taken yet.
    retrying: Vec<(RequestId, JobId, Time)>,
    cancels: Vec<Cancel>,
    /// Jobs of this node that are open, or ended since it started, by their keys; each with its request's digest.
    pub(super) keys: BTreeMap<Hash, (JobId, Hash)>,
    /// When a peer came or went, or this node started.
    pub(super) changed: Time,
}

#[derive(Debug)]
struct Cancel {
    id: RequestId,
    job: JobId,
    since: Time,
    again: Time,
}

/// Who could be in a brain set now.
#[derive(Debug)]
pub(super) struct Reach {
    /// Other nodes that run work, can be reached, and have said which disk they have.
    pub(super) others: Vec<NodeId>,
    /// Members that run work, this node included, as far as their certificates came here.
    known: usize,
}

impl Reach {
    /// What the job's page says of a node that has to go on alone; nothing in a small mesh, and where a set of three can be had.
    pub(super) fn alone(&self) -> Option<Alone> {
        let in_reach = self.others.len() + 1;
        let short = in_reach < BRAIN_SET && self.known >= BRAIN_SET && !planted(Bug::AloneUnsaid);
        let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        short.then(|| Alone { in_reach: number(in_reach), known: number(self.known) })
    }
}

impl Clients {
    /// Of a node that starts now.
    pub(super) fn new(now: Time) -> Self {
        Self { changed: now, ..Self::default() }
    }

    /// When somebody's time is over, or something is to be tried again.
    pub(super) fn timeout(&self) -> Option<Time> {
        let starting = self.starting.front().map(|(.., until)| *until);
        let retrying = self.retrying.iter().map(|(.., until)| *until);
        let cancels = self.cancels.iter().map(|c| c.again.min(c.since + CANCEL_WAIT));
        retrying.chain(cancels).chain(starting).min()
    }
}

impl Core {
    /// Who could be in a brain set now, this node left out.
    pub(super) fn reach(&self) -> Reach {
        // The failure detector's patience is that of a LAN: it doubts a node that is far away now and then, while it is heard.
        let far = |n: NodeId| self.ctx.peers.trip(n).is_some_and(|trip| trip.smoothed() >= FAR);
        let gone = |n: &NodeId| match self.membership.state(*n) {
            Some(NodeState::Lost) => true,
            Some(NodeState::Suspect) => !(far(*n) && self.ctx.peers.is_heard(*n, self.ctx.now.at)),
            _ => false,
        };
        // One whose card has not come would be named with a disk that it does not have: it would have to be recalled into the
        // set, by both others, and two such could never be.
        let ready = |n: &NodeId| {
            let runs = self.ctx.peers.roles(*n).is_some_and(|r| r.contains(sinew_crdt_state::certificate::Roles::RUN));
            runs && self.ctx.peers.get(*n).is_some_and(|peer| peer.card.is_some())
        };
        let left = |n: &NodeId| self.membership.state(*n) == Some(NodeState::Left);
        let others: Vec<NodeId> = self.ctx.peers.connected().filter(|n| ready(n) && !gone(n) && !left(n)).collect();
        let known = 1 + members::that_run(&self.ctx).filter(|n| !left(n)).count();
        Reach { known: known.max(others.len() + 1), others }
    }

    /// Takes in a submit: it begins at once, or once enough members are in reach, or its time for that is over.
    pub(super) fn submit(&mut self, id: RequestId, new: NewJob) {
        let until = self.ctx.now.at + Span::ms(self.ctx.config.reach_wait_ms);
        self.clients.starting.push_back((id, new, until));
        self.start_submits();
    }

    fn start_submits(&mut self) {
        let now = self.ctx.now.at;
        while let Some((id, new, until)) = self.clients.starting.pop_front() {
            if let Some(answer) = self.answered_by_key(id, &new) {
                self.answer_submit(id, answer);
                continue;
            }
            let reach = self.reach();
            let settled = now - self.clients.changed >= REACH_SETTLED;
            if reach.alone().is_some() && now < until && !settled && self.may_submit().is_ok() {
                self.clients.starting.push_front((id, new, until));
                return;
            }
            if !self.clients.retrying.iter().any(|(waits, ..)| *waits == id) {
                self.begin(id, new, reach);
            }
        }
    }

    fn answer_submit(&mut self, id: RequestId, answer: Result<Option<JobId>, SubmitError>) {
        // Nothing yet: it waits for its job to be taken.
        if let Some(answer) = answer.transpose() {
            self.ctx.effect(Effect::Answer { id, response: Response::Submitted(answer) });
        }
    }

    /// What is to be answered to a request whose key was used before; `None` of a job that it has to wait for.
    fn answered_by_key(&mut self, id: RequestId, new: &NewJob) -> Option<Result<Option<JobId>, SubmitError>> {
        let key = new.key.as_ref()?;
        let hash = sinew_crdt_state::submit_key::key_hash(self.ctx.own, &key.text);
        let (job, request) = self.clients.keys.get(&hash).copied().or(key.ended)?;
        if request != new.asked().digest() {
            return Some(Err(SubmitError::KeyTaken { key: key.text.clone(), job }));
        }
        if self.is_taken(&job) {
            return Some(Ok(Some(job)));
        }
        self.clients.retrying.push((id, job, self.ctx.now.at + SUBMIT_TIMEOUT));
        Some(Ok(None))
    }

    /// Whether a majority of the job's set has it on disk, as far as this node can tell: a brain works on it, or it is over.
    fn is_taken(&self, job: &JobId) -> bool {
        if let Some(brain) = self.brains.get(job) {
            return !brain.is_storing();
        }
        let Some(live) = self.ctx.ledger.live(job) else { return true };
        let state = &live.state;
        let worked_on = !state.bids.is_empty() || !state.awards.is_empty();
        self.ctx.ledger.sealed(job).is_some() || state.outcome().is_some() || state.term > 1 || worked_on
    }

    /// Until when the job's own submit may yet be answered.
    fn submit_deadline(&self, job: &JobId) -> Time {
        self.brains.get(job).filter(|b| b.is_storing()).and_then(|b| b.waits()).map_or(Time::default(), |(_, at)| at)
    }

    /// Remembers the keys of jobs that this node submitted and that had not ended when it stopped.
    pub(super) fn restore_keys(&mut self) {
        let own = self.ctx.own;
        let mine = self.ctx.ledger.iter_live().filter(|(_, live)| live.state.spec.submitter == own);
        let keyed = mine.filter_map(|(job, live)| live.state.spec.keyed().map(|(key, request)| (key, (*job, request))));
        if !planted(Bug::ForgetKeys) {
            self.clients.keys = keyed.collect();
        }
    }

    pub(super) fn cancel(&mut self, id: RequestId, job: JobId, reason: String) {
        match self.try_cancel(job, reason) {
            Ok(()) if planted(Bug::CancelAtOnce) => self.answer_cancel(id, Ok(())),
            Ok(()) => {
                let now = self.ctx.now.at;
                self.clients.cancels.push(Cancel { id, job, since: now, again: now + CANCEL_AGAIN });
            }
            Err(error) => self.answer_cancel(id, Err(error)),
        }
    }

    fn answer_cancel(&mut self, id: RequestId, verdict: Result<(), CancelError>) {
        self.ctx.effect(Effect::Answer { id, response: Response::Cancelled(verdict) });
    }

    /// States the cancel, which is kept from here on until the job ends, and tells the job's set.
    fn try_cancel(&mut self, job: JobId, reason: String) -> Result<(), CancelError> {
        if self.ctx.ledger.sealed(&job).is_some() {
            return Err(CancelError::Ended);
        }
        let live = self.ctx.ledger.live(&job).ok_or(CancelError::Unknown(job))?;
        if live.state.outcome().is_some_and(|outcome| *outcome != Outcome::Cancelled) {
            return Err(CancelError::Ended);
        }
        let (submitter, known) = (live.state.spec.submitter, live.state.cancel.is_some());
        if submitter != self.ctx.own && !self.ctx.roles.contains(sinew_crdt_state::certificate::Roles::ADMIN) {
            return Err(CancelError::Denied);
        }
        if !known {
            let reason = sinew_crdt_state::rules::clip(reason);
            self.ctx.state(job, Fact::Cancel { reason });
        }
        self.tell_cancel(job);
        Ok(())
    }

    /// Sends the spec and the cancels that are known to the job's set.
    fn tell_cancel(&mut self, job: JobId) {
        let Some(live) = self.ctx.ledger.live(&job) else { return };
        let cancels = live.statements().filter(|(.., s)| matches!(s.fact, Fact::Cancel { .. })).map(|(id, ..)| id);
        let facts: Vec<_> =
            std::iter::once(live.submit).chain(cancels).filter_map(|id| live.facts.get(&id).cloned()).collect();
        let own = self.ctx.own;
        let members: Vec<NodeId> = live.state.spec.brain_set.iter().copied().filter(|n| *n != own).collect();
        for member in members {
            self.ctx.send(member, Message::Facts(facts.clone()));
        }
    }

    /// Answers those whose answer is known by now, or whose time is over. Called in each flush, before sealed entries go from
    /// memory.
    pub(super) fn serve_clients(&mut self) {
        self.start_submits();
        let now = self.ctx.now.at;
        for (id, job, until) in std::mem::take(&mut self.clients.retrying) {
            if self.is_taken(&job) {
                self.answer_submit(id, Ok(Some(job)));
            } else if now >= until.max(self.submit_deadline(&job)) {
                let why = self.why_undecided(&job);
                self.answer_submit(id, Err(SubmitError::Unknown { job, why, withdrawing: false }));
            } else {
                self.clients.retrying.push((id, job, until));
            }
        }
        for mut cancel in std::mem::take(&mut self.clients.cancels) {
            if let Some(verdict) = self.cancel_verdict(&cancel) {
                self.answer_cancel(cancel.id, verdict);
                continue;
            }
            if now >= cancel.again {
                cancel.again = now + CANCEL_AGAIN;
                self.tell_cancel(cancel.job);
            }
            self.clients.cancels.push(cancel);
        }
    }

    /// A cancel counts once the job has ended by it: then a majority has the verdict, whoever is lost next.
    fn cancel_verdict(&self, cancel: &Cancel) -> Option<Result<(), CancelError>> {
        let job = cancel.job;
        let live = self.ctx.ledger.live(&job);
        if self.ctx.ledger.sealed(&job).is_some() {
            let outcome = live.and_then(|live| live.state.outcome());
            let cancelled = outcome.is_none_or(|outcome| *outcome == Outcome::Cancelled);
            return Some(if cancelled { Ok(()) } else { Err(CancelError::Ended) });
        }
        let Some(live) = live else { return Some(Err(CancelError::Ended)) };
        let cut_off = !self.lost_majority(&live.state.spec).is_empty();
        let wait = if cut_off { CANCEL_WAIT_CUT_OFF } else { CANCEL_WAIT };
        let over = self.ctx.now.at - cancel.since >= wait;
        over.then(|| Err(CancelError::Undecided { job, why: self.why_undecided(&job) }))
    }

    fn why_undecided(&self, job: &JobId) -> String {
        let lost = self.ctx.ledger.live(job).map(|live| self.lost_majority(&live.state.spec)).unwrap_or_default();
        if lost.is_empty() { "no majority of its brain set answered in time".to_owned() } else { waiting_text(&lost) }
    }

    /// The members of a job's set that this node does not reach, if so many that the others are no majority.
    pub(crate) fn lost_majority(&self, spec: &JobSpec) -> Vec<LostView> {
        let lost: Vec<LostView> = spec.brain_set.iter().filter_map(|node| self.lost_since(*node)).collect();
        if spec.brain_set.len() - lost.len() >= spec.majority() { Vec::new() } else { lost }
    }

    fn lost_since(&self, node: NodeId) -> Option<LostView> {
        let (peers, now) = (&self.ctx.peers, self.ctx.now);
        // In a large mesh there is no connection to everybody: there the failure detector knows.
        let alive = !self.keeps_all() && self.membership.state(node) == Some(NodeState::Healthy);
        if alive || peers.is_heard(node, now.at) {
            return None;
        }
        let silent = now.at - peers.get(node).map_or(self.clients.changed, |peer| peer.heard);
        let since_ms = now.unix_ms.saturating_sub(silent.as_ms());
        (silent >= LOST_AFTER).then_some(LostView { node, since_ms })
    }
}
