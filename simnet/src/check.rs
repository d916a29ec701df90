//! Invariants (feature X3): what must never happen, and what must be so once everything is at rest.

use std::collections::{BTreeMap, BTreeSet};

use sinew_crdt_state::cbor;
use sinew_crdt_state::error_code::ErrorCode;
use sinew_crdt_state::fact::{Fact, Fence, Outcome, Statement};
use sinew_crdt_state::ids::{JobId, NodeId};
use sinew_crdt_state::reconcile::Fingerprint;
use sinew_crdt_state::spec::Phase;
use sinew_crdt_state::state::JobState;
use sinew_scheduler::core::Core;
use sinew_scheduler::time::Span;

use crate::disk::Disk;
use crate::doubles::Doubles;
use crate::exec::Stopped;
use crate::world::World;

/// Everything that is under way has come to an end by then.
const REST_PATIENCE: Span = Span::ms(180_000);

/// Reasons for unrest that are named: a few tell as much as all.
const REASONS_MAX: usize = 12;

/// An invariant that does not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Violation {
    /// A job was acknowledged and has no outcome.
    Lost(JobId),
    /// Replicas disagree on how a job ended or whose results count.
    Diverged(JobId),
    /// A task ran in two places at once.
    DoubleStart(JobId, Phase, u32),
    /// A node started a task without room.
    Overbooked(u64),
    /// Ledgers differ at rest.
    Roots,
    /// A lease or task is left at rest, on the node of this name.
    Leftover(String),
    /// A peer was accused although none misbehaves.
    Offences(u64),
    /// A completed job counts another number of results than it has tasks in a phase.
    Miscounted(JobId, Phase),
    /// A result counts that no execution produced.
    Invented(JobId, Phase, u32),
    /// An output of a completed job is nowhere.
    OutputGone(JobId, Phase, u32),
    /// A final output of a completed job is missing on the node of this name, which should hold it.
    CopyMissing(String, JobId),
    /// A final output is kept on fewer nodes than were promised long after the loss of one.
    TooFewCopies(JobId, Phase, u32),
    /// A task runs on the node of this name, which has no lease of its job.
    Orphan(String),
    /// Slots stay reserved at rest, on the node of this name.
    Leak(String),
    /// A task started long after its job was sealed.
    Revived(JobId, Phase, u32),
    /// A task ran again although the brain that awarded it knew its result.
    Rerun(JobId, Phase, u32),
    /// A result counts that came after its award was given up.
    LateResult(JobId, Phase, u32),
    /// A disk holds a fact that its author did not sign.
    Unsigned(JobId),
    /// The node of this name goes on with an old copy of its disk although others told it.
    OldDisk(String),
    /// One submitter gave two jobs one number.
    SerialTwice(JobId, JobId),
    /// A job runs whose submit was refused.
    RefusedRan(JobId),
    /// A task of a job started long after a cancel of it was acknowledged.
    CancelledRan(JobId),
    /// A cancel was acknowledged, and its job did not end by it.
    CancelUndone(JobId),
    /// One key made several jobs; this is one of them.
    KeyTwice(JobId),
    /// A node that knows three members took a job alone and did not say so.
    AloneUnsaid(JobId),
    /// A job failed because an input of the mesh was out of reach.
    FailedByReach(JobId),
    /// Two nodes showed a job that is over with different ends.
    TwoSeals(JobId),
    /// Two nodes showed a job that completed with different results.
    AcceptReplaced(JobId),
}

pub(crate) type Results = BTreeMap<(Phase, u32), (NodeId, Fence)>;

impl World {
    /// Runs until nothing is under way: no job open, no task running, all ledgers equal.
    ///
    /// # Panics
    /// When that does not come about.
    pub fn run_until_idle(&mut self) {
        let deadline = self.now + REST_PATIENCE;
        while !self.is_idle() {
            assert!(self.now < deadline, "not at rest: {}\n{}", self.restless(), self.log_tail());
            self.run_for(Span::ms(50));
        }
    }

    fn is_idle(&self) -> bool {
        self.restless().is_empty()
    }

    /// Why there is no rest yet; empty when there is.
    pub(crate) fn restless(&self) -> String {
        let mut why = Vec::new();
        for node in &self.nodes {
            let Some(core) = &node.core else { continue };
            if why.len() > REASONS_MAX {
                break;
            }
            why.extend(core.led().map(|(job, term)| format!("{} leads {} in term {term}", node.name, job.short())));
            why.extend(core.leases().map(|(lease, _)| format!("{} holds {lease:?}", node.name)));
            let open = core.ledger().iter_live().filter(|(job, _)| core.ledger().sealed(job).is_none());
            why.extend(
                open.map(|(job, live)| format!("{} has {} open: {:?}", node.name, job.short(), live.state.status())),
            );
            if !core.has_recovered() {
                why.push(format!("{} has not recovered its disk", node.name));
            }
            if !node.runs.is_empty() {
                why.push(format!("{} runs {} tasks", node.name, node.runs.len()));
            }
            if !node.stopping.is_empty() {
                why.push(format!("{} stops {} tasks", node.name, node.stopping.len()));
            }
        }
        let roots = self.roots();
        if roots.len() > 1 {
            why.push(format!("ledgers differ: {roots:?}"));
        }
        why.truncate(REASONS_MAX);
        why.join("; ")
    }

    /// The different fingerprints of all ledgers. None where nodes keep only what concerns them: there, no entry is open at
    /// rest, and all that hold a sealed one hold the same.
    fn roots(&self) -> BTreeSet<Fingerprint> {
        let up = || self.nodes.iter().filter_map(|n| n.core.as_ref());
        if !up().all(Core::keeps_all) {
            return BTreeSet::new();
        }
        up().map(|core| core.ledger().index().root().fingerprint).collect()
    }

    /// Requires every invariant, at rest.
    ///
    /// # Panics
    /// When one does not hold.
    pub fn check_invariants(&self) {
        let mut found = self.safety();
        found.extend(self.violations_at_rest());
        assert!(found.is_empty(), "{found:?}\n{}\n{}", self.log_tail(), self.evidence(&found));
    }

    /// Requires what must hold at any time.
    ///
    /// # Panics
    /// When something does not.
    pub fn check_safety(&self) {
        let found = self.safety();
        assert!(found.is_empty(), "{found:?}\n{}\n{}", self.log_tail(), self.evidence(&found));
    }

    /// What led to the violations, for the message.
    pub(crate) fn evidence(&self, found: &[Violation]) -> String {
        let mut text = String::new();
        for violation in found.iter().take(3) {
            match violation {
                Violation::DoubleStart(job, phase, task) => {
                    let runs = self.executions_of(job).filter(|e| (e.phase, e.task) == (*phase, *task));
                    for e in runs {
                        let (name, end) = (&self.nodes[e.node].name, e.end.map(|(at, why)| (at.0 as f64 / 1e6, why)));
                        text += &format!("{name} {:?} from {:.4} to {end:?}\n", e.fence, e.start.0 as f64 / 1e6);
                    }
                }
                Violation::Diverged(job) => {
                    for verdict in self.verdicts(job) {
                        text += &format!("{verdict:?}\n");
                    }
                }
                _ => {}
            }
        }
        text
    }

    fn safety(&self) -> Vec<Violation> {
        let mut found: Vec<Violation> = self
            .double_starts()
            .into_iter()
            .map(|(job, phase, task)| Violation::DoubleStart(job, phase, task))
            .collect();
        found.extend(self.violations_any_time());
        found
    }

    /// What must never be, but for double starts.
    pub(crate) fn violations_any_time(&self) -> Vec<Violation> {
        let mut found = Vec::new();
        if self.counters.overbooked > 0 {
            found.push(Violation::Overbooked(self.counters.overbooked));
        }
        if self.counters.offences > 0 {
            found.push(Violation::Offences(self.counters.offences));
        }
        found.extend(self.orphans());
        found.extend(self.broken_words());
        found
    }

    /// Tasks that ran on two nodes at the same time although their brain meant them to run once. A brain that starts a
    /// straggler a second time does so in the same term and without having given the first award up.
    #[must_use]
    pub fn double_starts(&self) -> Vec<(JobId, Phase, u32)> {
        let mut doubles = Doubles::default();
        doubles.look(self);
        doubles.found().iter().copied().collect()
    }

    /// What must not be once everything is at rest.
    pub(crate) fn violations_at_rest(&self) -> Vec<Violation> {
        let mut found = Vec::new();
        for node in &self.nodes {
            let Some(core) = &node.core else { continue };
            if core.leases().next().is_some() || !node.runs.is_empty() || core.led().next().is_some() {
                found.push(Violation::Leftover(node.name.clone()));
            }
        }
        if self.roots().len() > 1 {
            found.push(Violation::Roots);
        }
        found.extend(self.acknowledged.keys().flat_map(|job| self.check_acknowledged(job)));
        found.extend(self.audit());
        found.extend(self.serials_given_twice());
        found.extend(self.broken_words_at_rest());
        found
    }

    /// What must not be of an acknowledged job once it is over.
    pub(crate) fn check_acknowledged(&self, job: &JobId) -> Vec<Violation> {
        match self.verdicts(job).as_slice() {
            [] => vec![Violation::Lost(*job)],
            [(outcome, results)] => self.check_results(job, outcome, results),
            _ => vec![Violation::Diverged(*job)],
        }
    }

    /// The different opinions of the nodes on how the job ended and whose results count.
    fn verdicts(&self, job: &JobId) -> Vec<(Outcome, Results)> {
        let mut seen: Vec<(Outcome, Results)> = Vec::new();
        let mut up: Vec<_> = self.nodes.iter().filter(|n| n.is_up()).collect();
        // Those that still have the facts come first: whoever has forgotten the job keeps a receipt, which says how it ended
        // and names no results that could be compared.
        up.sort_by_key(|n| n.disk.has_forgotten(job));
        for node in up {
            let Some(state) = state_on(&node.disk, job) else { continue };
            let Some(outcome) = state.outcome().cloned() else { continue };
            let verdict = (outcome, results(&state));
            // Whatever tasks of a job that did not complete were counted, is of no account.
            let any = verdict.0 != Outcome::Completed || node.disk.has_forgotten(job);
            let same = |(o, r): &(Outcome, Results)| *o == verdict.0 && (any || *r == verdict.1);
            if !seen.iter().any(same) {
                seen.push(verdict);
            }
        }
        seen
    }

    /// A job's state as folded from one node's disk.
    #[must_use]
    pub fn state(&self, name: &str, job: &JobId) -> Option<JobState> {
        state_on(&self.nodes[self.index(name)].disk, job)
    }

    fn check_results(&self, job: &JobId, outcome: &Outcome, results: &Results) -> Vec<Violation> {
        let mut found = Vec::new();
        if let Outcome::Failed { failure, phase, task, .. } = outcome
            && failure.code == ErrorCode::Fetch
            && self.counters.lost_blobs == 0
            && self.plan_of(&self.name_of(job)).failure(*phase, *task, 0).is_none_or(|f| f.code != ErrorCode::Fetch)
        {
            found.push(Violation::FailedByReach(*job));
        }
        for ((phase, task), (node, _)) in results {
            let produced = self.executions_of(job).any(|e| {
                (e.phase, e.task) == (*phase, *task)
                    && self.nodes[e.node].id() == *node
                    && matches!(e.end, Some((_, Stopped::Done)))
            });
            if !produced {
                found.push(Violation::Invented(*job, *phase, *task));
            }
        }
        if *outcome == Outcome::Completed {
            let plan = self.plan_of(&self.name_of(job));
            // A node that came late may know only the receipt of what is forgotten elsewhere.
            let whole = !self.nodes.iter().any(|n| n.disk.has_forgotten(job));
            for (phase, tasks) in (0..).zip(plan.tasks_by_phase()).filter(|_| whole) {
                let counted = results.keys().filter(|(p, task)| *p == phase && *task < tasks).count();
                let strange = results.keys().any(|(p, task)| *p == phase && *task >= tasks);
                if counted != tasks as usize || strange {
                    found.push(Violation::Miscounted(*job, phase));
                }
            }
            // Of the plan, not of the results: who has only remains of a forgotten round may know no results but the maps',
            // whose outputs went with the round's end.
            let phases = plan.tasks_by_phase().len();
            for (phase, task) in results.keys().filter(|(phase, _)| usize::from(*phase) + 1 == phases) {
                if let Some(blob) = plan.output(&self.name_of(job), *phase, *task)
                    && !self.nodes.iter().any(|n| n.disk.has(&blob.hash))
                {
                    found.push(Violation::OutputGone(*job, *phase, *task));
                }
            }
        }
        found
    }

    /// How often the tasks of a phase were executed to success, beyond once each.
    #[must_use]
    pub fn executed_again(&self, job: &JobId, phase: Phase) -> usize {
        let mut times: BTreeMap<u32, usize> = BTreeMap::new();
        for e in self.executions_of(job).filter(|e| e.phase == phase) {
            if matches!(e.end, Some((_, Stopped::Done))) {
                *times.entry(e.task).or_default() += 1;
            }
        }
        times.values().map(|n| n - 1).sum()
    }

    /// Every job that some disk knows.
    #[must_use]
    pub fn known_jobs(&self) -> BTreeSet<JobId> {
        self.nodes.iter().flat_map(|n| n.disk.jobs().copied()).collect()
    }
}

fn state_on(disk: &Disk, job: &JobId) -> Option<JobState> {
    let opened: Vec<(_, _, Statement)> = disk
        .facts_by_id(job)
        .map(|(id, e)| (id, e.author, cbor::from_slice(&e.payload).expect("admitted facts decode")))
        .collect();
    let spec = opened.iter().find_map(|(_, _, s)| match &s.fact {
        Fact::Submit(signed) => signed.decode().ok(),
        _ => None,
    })?;
    Some(JobState::fold(spec, &opened))
}

pub(crate) fn results(state: &JobState) -> Results {
    let mut all = Results::new();
    for (phase, accepted) in state.accepted.iter().enumerate() {
        let phase = Phase::try_from(phase).expect("a job has two phases at most");
        for (run, result) in accepted.iter() {
            for task in run.start..run.end() {
                all.insert((phase, task), (result.node, result.fence));
            }
        }
    }
    all
}
