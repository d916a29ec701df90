//! What a job's facts add up to: a fold that gives the same answer for the same set of facts, in whatever order they
//! arrived. Nothing here decides; brains do, by adding facts.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Deref;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::fact::{
    Accepted, Executed, Fact, Failure, Fence, Outcome, Output, ReportItem, Run, ShortId, Statement, short_id,
};
use crate::ids::{DiskId, FactId, NodeId};
use crate::intervals::IntervalMap;
use crate::rare::{Empty, Rare};
use crate::spec::{JobSpec, PACE_MIN, Phase};

/// Failed attempts remembered per task: more than any sane retry policy allows.
const FAILURES_PER_TASK_MAX: usize = 64;

/// A job's state (feature L4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Status {
    /// The spec is known.
    Received,
    /// Bids came in.
    Advertised,
    /// A node has the right to run it.
    Awarded,
    /// A node claimed it and runs tasks.
    Running,
    /// Tasks were reported whose outputs are being secured.
    Uploading,
    /// A task failed and waits for its next attempt.
    RetryWait,
    /// Every task succeeded.
    Completed,
    /// Completed, failed or cancelled, and nothing more will be added.
    Sealed,
    /// A task failed for good.
    Failed,
    /// Cancelled.
    Cancelled,
    /// Its brain set has no majority in reach, so that nobody can decide. A node's own view: no facts add up to it.
    Waiting,
}

/// An award and what became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AwardState {
    /// The award's fact; of two with one fence, the lower id counts.
    pub id: FactId,
    /// Who has it.
    pub node: NodeId,
    /// Slots granted.
    pub slots: u32,
    /// Void, and whether because the node was lost.
    pub revoked: Option<bool>,
}

/// A result that counts.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct AcceptedResult {
    /// How often it was made anew; the highest wins.
    pub again: u32,
    /// The term that accepted it; of those made anew as often the highest wins.
    pub term: u32,
    /// Under which award.
    pub fence: Fence,
    /// Who ran it.
    pub node: NodeId,
    /// What it left.
    pub outputs: Vec<Output>,
    /// Who else holds that.
    pub copy: Option<NodeId>,
}

/// A failed attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailedAttempt {
    /// Under which award.
    pub fence: Fence,
    /// Where.
    pub node: NodeId,
    /// Why.
    pub failure: Failure,
}

/// A bid as it was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BidState {
    /// Tasks at once.
    pub slots: u32,
    /// The bidder's estimate of fit.
    pub score: i32,
    /// Input bytes already held.
    pub held_bytes: u64,
}

/// Failed attempts of one task, by award, executor and report.
type FailuresOfTask = BTreeMap<(Fence, NodeId, FactId), Failure>;

/// What is said of a term's pace; 0 where nothing is.
#[derive(Debug, Clone, Copy, Default)]
struct Paces {
    led: u8,
    voted: u8,
}

/// A seal: its term, its fact, the outcome, and the executors' receipts.
pub type Sealed = (u32, FactId, Outcome, Vec<(NodeId, FactId)>);

/// Everything the facts of one job say. What a job has that runs, or did, is in [`Course`], of which this shows the fields.
#[derive(Debug, Clone)]
pub struct JobState {
    /// The spec. Shared with whoever works by it.
    pub spec: Arc<JobSpec>,
    /// The highest term in which a brain stated anything.
    pub term: u32,
    /// Accepted results, phase by phase.
    pub accepted: Vec<IntervalMap<AcceptedResult>>,
    // Of thousands of jobs that wait for room hardly any has one.
    course: Rare<Course>,
}

/// What became of a job since it was submitted.
#[derive(Debug, Clone, Default)]
pub struct Course {
    /// Brains that took office, each with the accept facts of earlier terms that it found. The highest one's word counts.
    leads: BTreeMap<u32, BTreeSet<ShortId>>,
    /// The paces of terms as their brains state them, and as those who vote for them do.
    paces: BTreeMap<u32, Paces>,
    /// Bids by bidder; of several by one, the one with the highest fact id.
    pub bids: BTreeMap<NodeId, (FactId, BidState)>,
    /// Awards.
    pub awards: BTreeMap<Fence, AwardState>,
    revoked: BTreeMap<Fence, bool>,
    claims: BTreeSet<(Fence, NodeId)>,
    /// Phase by phase, as far as there were any.
    reported: Vec<IntervalMap<()>>,
    failures: BTreeMap<(Phase, u32), FailuresOfTask>,
    /// Votes seen.
    pub votes: BTreeMap<u32, BTreeSet<NodeId>>,
    /// Disks on which members that had lost theirs have caught up, with the term that each then promised to follow.
    pub(crate) rejoined: BTreeMap<(NodeId, DiskId), u32>,
    /// Who asked to cancel, and why.
    pub cancel: Option<(NodeId, String)>,
    /// The brain's verdict, by the highest term.
    pub finish: Option<Box<(u32, FactId, Outcome)>>,
    /// Executors' receipts.
    pub receipts: BTreeMap<NodeId, (FactId, Executed)>,
    /// The seal, by the highest term.
    pub seal: Option<Box<Sealed>>,
    /// Awards of one fence to several nodes: proof that a brain lied.
    pub equivocations: BTreeSet<Fence>,
}

impl Empty for Course {
    const EMPTY: &'static Self = &Self {
        leads: BTreeMap::new(),
        paces: BTreeMap::new(),
        bids: BTreeMap::new(),
        awards: BTreeMap::new(),
        revoked: BTreeMap::new(),
        claims: BTreeSet::new(),
        reported: Vec::new(),
        failures: BTreeMap::new(),
        votes: BTreeMap::new(),
        rejoined: BTreeMap::new(),
        cancel: None,
        finish: None,
        receipts: BTreeMap::new(),
        seal: None,
        equivocations: BTreeSet::new(),
    };
}

impl Deref for JobState {
    type Target = Course;

    fn deref(&self) -> &Course {
        &self.course
    }
}

impl JobState {
    /// A job of which only the spec is known.
    #[must_use]
    pub fn new(spec: JobSpec) -> Self {
        let accepted = vec![IntervalMap::default(); spec.phases().len()];
        Self { spec: Arc::new(spec), term: 1, accepted, course: Rare::new() }
    }

    /// The state that these facts add up to, whatever their order.
    #[must_use]
    pub fn fold(spec: JobSpec, facts: &[(FactId, NodeId, Statement)]) -> Self {
        let mut state = Self::new(spec);
        let mut rebase = false;
        for (id, author, statement) in facts {
            rebase |= state.apply(*id, *author, statement);
        }
        if rebase {
            state.rebase(facts.iter().map(|(id, _, statement)| (*id, statement)));
        }
        state
    }

    /// Folds in one fact that passed [`crate::rules::check`]. Returns whether it changes which earlier ones count: then
    /// [`Self::rebase`] is due.
    #[must_use]
    pub fn apply(&mut self, id: FactId, author: NodeId, statement: &Statement) -> bool {
        match &statement.fact {
            Fact::Submit(_) => {}
            Fact::Bid { slots, score, held_bytes, .. } => {
                let bid = BidState { slots: *slots, score: *score, held_bytes: *held_bytes };
                let newest = self.course.bids.entry(author).or_insert((id, bid));
                if id > newest.0 {
                    *newest = (id, bid);
                }
            }
            Fact::Award { fence, node, slots, .. } => self.apply_award(id, *fence, *node, *slots),
            Fact::Claim { fence, .. } => {
                self.course.claims.insert((*fence, author));
            }
            Fact::Report { fence, phase, items } => self.apply_report(id, *fence, author, *phase, items),
            Fact::Revoke { fence, lost } => {
                self.saw_term(fence.term);
                let revoked = self.course.revoked.entry(*fence).or_default();
                *revoked |= lost;
                let lost = *revoked;
                if let Some(award) = self.course.awards.get_mut(fence) {
                    award.revoked = Some(lost);
                }
            }
            Fact::Accept { term, phase, items } => {
                self.saw_term(*term);
                if self.counts(id, *term) {
                    self.apply_accept(*term, *phase, items);
                }
            }
            Fact::Vote { term, pace } => {
                let voted = &mut self.course.paces.entry(*term).or_default().voted;
                *voted = (*voted).max(*pace);
                self.course.votes.entry(*term).or_default().insert(author);
            }
            Fact::Rejoin { disk, term } => {
                let promised = self.course.rejoined.entry((author, *disk)).or_default();
                *promised = (*promised).max(*term);
            }
            Fact::Lead { term, base, pace, .. } => {
                self.saw_term(*term);
                let led = &mut self.course.paces.entry(*term).or_default().led;
                *led = (*led).max(*pace);
                let newest = *term >= self.lead_term();
                self.course.leads.entry(*term).or_default().extend(base.iter().copied());
                return newest;
            }
            Fact::Cancel { reason } => {
                let said = (author, reason.clone());
                if self.course.cancel.as_ref().is_none_or(|old| said < *old) {
                    self.course.cancel = Some(said);
                }
            }
            Fact::Finish { term, outcome } => {
                self.saw_term(*term);
                if self.course.finish.as_ref().is_none_or(|old| (*term, id) > (old.0, old.1)) {
                    self.course.finish = Some(Box::new((*term, id, outcome.clone())));
                }
            }
            Fact::Receipt(executed) => {
                let newest = self.course.receipts.entry(author).or_insert((id, executed.clone()));
                if id > newest.0 {
                    *newest = (id, executed.clone());
                }
            }
            Fact::Seal { term, outcome, receipts, .. } => {
                self.saw_term(*term);
                if self.course.seal.as_ref().is_none_or(|old| (*term, id) > (old.0, old.1)) {
                    self.course.seal = Some(Box::new((*term, id, outcome.clone(), receipts.clone())));
                }
            }
        }
        false
    }

    /// Folds the accepts anew, after the news that a brain took office. Takes all facts of the job.
    pub fn rebase<'a>(&mut self, facts: impl Iterator<Item = (FactId, &'a Statement)>) {
        self.accepted.fill(IntervalMap::default());
        for (id, statement) in facts {
            if let Fact::Accept { term, phase, items } = &statement.fact
                && self.counts(id, *term)
            {
                self.apply_accept(*term, *phase, items);
            }
        }
    }

    /// The highest term whose brain is known to have taken office; the first needs no ceremony.
    #[must_use]
    pub fn lead_term(&self) -> u32 {
        self.course.leads.last_key_value().map_or(1, |(term, _)| *term)
    }

    /// Whether an accept fact of `term` counts: a brain that took office later must have known it.
    #[must_use]
    pub fn counts(&self, id: FactId, term: u32) -> bool {
        self.course.leads.last_key_value().is_none_or(|(lead, base)| term >= *lead || base.contains(&short_id(&id)))
    }

    /// The pace of a term (see [`crate::spec::SpecFields::pace`]): what its brain says, or else those who voted for it. Of a term
    /// of which nothing is known it is taken to be the first one's.
    #[must_use]
    pub fn pace(&self, term: u32) -> u8 {
        let said = self.course.paces.get(&term).map(|p| if p.led > 0 { p.led } else { p.voted });
        said.filter(|_| term > 1).unwrap_or(self.spec.pace)
    }

    /// The slowest pace of all terms before this one: what was awarded in them may last as long.
    #[must_use]
    pub fn slowest_before(&self, term: u32) -> u8 {
        let later = self.course.paces.range(2..term.max(2)).map(|(_, p)| p.led.max(p.voted));
        later.fold(self.spec.pace, u8::max)
    }

    fn saw_term(&mut self, term: u32) {
        self.term = self.term.max(term);
    }

    fn apply_award(&mut self, id: FactId, fence: Fence, node: NodeId, slots: u32) {
        self.saw_term(fence.term);
        let Course { awards, revoked, equivocations, .. } = &mut *self.course;
        let fresh = AwardState { id, node, slots, revoked: revoked.get(&fence).copied() };
        let award = awards.entry(fence).or_insert_with(|| fresh.clone());
        if award.node != node {
            equivocations.insert(fence);
        }
        if id < award.id {
            *award = fresh;
        }
    }

    fn apply_report(&mut self, id: FactId, fence: Fence, author: NodeId, phase: Phase, items: &[ReportItem]) {
        let phases = self.accepted.len();
        if usize::from(phase) >= phases {
            return;
        }
        let Course { reported, failures, .. } = &mut *self.course;
        reported.resize_with(phases, IntervalMap::default);
        let reported = &mut reported[usize::from(phase)];
        for item in items {
            match item {
                ReportItem::Plain { run, .. } => reported.insert(*run, &(), |()| false),
                ReportItem::Outputs { task, .. } => reported.insert(Run { start: *task, len: 1 }, &(), |()| false),
                ReportItem::Failed { task, failure, .. } => {
                    let of_task = failures.entry((phase, *task)).or_default();
                    of_task.insert((fence, author, id), failure.clone());
                    if of_task.len() > FAILURES_PER_TASK_MAX {
                        of_task.pop_first();
                    }
                }
            }
        }
    }

    fn apply_accept(&mut self, term: u32, phase: Phase, items: &[Accepted]) {
        let Some(accepted) = self.accepted.get_mut(usize::from(phase)) else { return };
        for item in items {
            let result = AcceptedResult {
                again: item.again,
                term,
                fence: item.fence,
                node: item.node,
                outputs: item.outputs.clone(),
                copy: item.copy,
            };
            accepted.insert(item.run, &result, |old| result > *old);
        }
    }

    /// Whether `node` claimed the award of `fence`, and the award is its.
    #[must_use]
    pub fn is_claimed(&self, fence: Fence) -> bool {
        self.awards.get(&fence).is_some_and(|a| self.claims.contains(&(fence, a.node)))
    }

    /// Failed attempts of a task, leaving out those that no award backs.
    pub fn failures(&self, phase: Phase, task: u32) -> impl Iterator<Item = FailedAttempt> {
        self.failures.get(&(phase, task)).into_iter().flatten().filter_map(|((fence, node, _), failure)| {
            let backed = self.awards.get(fence).is_some_and(|a| a.node == *node);
            backed.then(|| FailedAttempt { fence: *fence, node: *node, failure: failure.clone() })
        })
    }

    /// Tasks with failed attempts on record.
    pub fn failed_tasks(&self) -> impl Iterator<Item = (Phase, u32)> {
        self.failures.keys().copied()
    }

    /// The first phase with tasks left to do; `None` when all are done.
    #[must_use]
    pub fn phase(&self) -> Option<Phase> {
        let phases = self.spec.phases();
        let open = phases.iter().zip(&self.accepted).position(|(tasks, done)| done.count() < u64::from(*tasks))?;
        Phase::try_from(open).ok()
    }

    /// How the job ended, if it did. A verdict that a later brain does not repeat was never final.
    #[must_use]
    pub fn outcome(&self) -> Option<&Outcome> {
        let finish = self.finish.as_ref().filter(|finish| finish.0 >= self.lead_term());
        self.seal.as_ref().map(|s| &s.2).or_else(|| finish.map(|f| &f.2))
    }

    /// Whether everything that the seal of `term` stands for is known: who led then, and where all results are, `anew` of which
    /// took the place of others.
    #[must_use]
    pub fn is_whole(&self, term: u32, anew: u32) -> bool {
        term <= self.lead_term() && self.phase().is_none() && self.anew() >= anew
    }

    /// How often results that count were made anew, in all.
    #[must_use]
    pub fn anew(&self) -> u32 {
        let runs = self.accepted.iter().flat_map(|phase| phase.iter());
        runs.fold(0, |sum, (run, result)| sum.saturating_add(run.len.saturating_mul(result.again)))
    }

    /// The state (L4).
    #[must_use]
    pub fn status(&self) -> Status {
        match self.outcome() {
            Some(_) if self.seal.is_some() => return Status::Sealed,
            Some(Outcome::Completed) => return Status::Completed,
            Some(Outcome::Failed { .. }) => return Status::Failed,
            Some(Outcome::Cancelled) => return Status::Cancelled,
            None => {}
        }
        // A new brain renews the awards that go on; those of earlier terms are over.
        let current = self.awards.last_key_value().map_or(0, |(fence, _)| fence.term);
        let mut live = self.awards.iter().filter(|(f, a)| a.revoked.is_none() && f.term == current).peekable();
        if live.peek().is_some() {
            let claimed = live.any(|(fence, a)| self.claims.contains(&(*fence, a.node)));
            let unaccepted = self.reported.iter().zip(&self.accepted).any(|(r, a)| r.count() > a.count());
            return match (claimed, unaccepted) {
                (true, true) => Status::Uploading,
                (true, false) => Status::Running,
                (false, _) => Status::Awarded,
            };
        }
        if !self.failures.is_empty() {
            Status::RetryWait
        } else if self.bids.is_empty() {
            Status::Received
        } else {
            Status::Advertised
        }
    }
}

/// One line of a job's history.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Event {
    /// Unix ms on the author's clock.
    pub at_ms: u64,
    /// The fact's name.
    pub what: String,
    /// Who stated it.
    pub author: NodeId,
    /// What it says, in a few words.
    pub detail: String,
    /// The fact.
    pub id: FactId,
}

/// A job's history, oldest first.
pub fn timeline<'a>(facts: impl Iterator<Item = (FactId, NodeId, &'a Statement)>) -> Vec<Event> {
    let mut events: Vec<Event> = facts
        .map(|(id, author, s)| Event {
            at_ms: s.at_ms,
            what: s.fact.name().to_owned(),
            author,
            detail: describe(&s.fact),
            id,
        })
        .collect();
    events.sort();
    events
}

fn describe(fact: &Fact) -> String {
    match fact {
        Fact::Submit(signed) => format!("spec of {} bytes", signed.spec.len()),
        Fact::Bid { slots, score, .. } => format!("{slots} slots, score {score}"),
        Fact::Award { fence, node, slots, .. } => {
            format!("term {} epoch {}: {slots} slots to {}", fence.term, fence.epoch, node.short())
        }
        Fact::Claim { fence, slots } => format!("term {} epoch {}: {slots} slots", fence.term, fence.epoch),
        Fact::Report { fence, phase, items } => describe_report(*fence, *phase, items),
        Fact::Revoke { fence, lost } => {
            let why = if *lost { "the node was lost" } else { "given back" };
            format!("term {} epoch {}: {why}", fence.term, fence.epoch)
        }
        Fact::Accept { phase, items, .. } => {
            let tasks: u64 = items.iter().map(|i| u64::from(i.run.len)).sum();
            format!("phase {phase}: {tasks} results")
        }
        Fact::Vote { term, pace } | Fact::Lead { term, pace, .. } if *pace != PACE_MIN => {
            format!("term {term} at pace {pace}")
        }
        Fact::Vote { term, .. } | Fact::Rejoin { term, .. } | Fact::Lead { term, .. } => format!("term {term}"),
        Fact::Cancel { reason } => reason.clone(),
        Fact::Finish { outcome, .. } | Fact::Seal { outcome, .. } => describe_outcome(outcome),
        Fact::Receipt(executed) => format!("{} tasks, {} ms CPU", executed.tasks, executed.usage.cpu_ms),
    }
}

fn describe_report(fence: Fence, phase: Phase, items: &[ReportItem]) -> String {
    let (mut done, mut failed, mut usage) = (0u64, 0u64, crate::fact::Usage::default());
    for item in items {
        match item {
            ReportItem::Plain { run, usage: u } => {
                done += u64::from(run.len);
                usage.add(*u);
            }
            ReportItem::Outputs { usage: u, .. } => {
                done += 1;
                usage.add(*u);
            }
            ReportItem::Failed { usage: u, .. } => {
                failed += 1;
                usage.add(*u);
            }
        }
    }
    format!(
        "term {} epoch {}, phase {phase}: {done} done, {failed} failed (gather {} ms, run {} ms)",
        fence.term, fence.epoch, usage.gather_ms, usage.wall_ms
    )
}

/// An outcome in a few words.
#[must_use]
pub fn describe_outcome(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Completed => "completed".to_owned(),
        Outcome::Cancelled => "cancelled".to_owned(),
        Outcome::Failed { phase, task, failure, .. } => {
            format!("failed: {} in phase {phase}, task {task}: {}", failure.code, failure.message)
        }
    }
}
