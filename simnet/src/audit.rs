//! Checks that compare what happened with what the disks say: nobody runs without a lease, nothing finished is run again,
//! nothing counts that came too late, nothing is kept that nobody signed.

use std::collections::{BTreeMap, BTreeSet};

use sinew_crdt_state::cbor;
use sinew_crdt_state::envelope::Envelope;
use sinew_crdt_state::fact::{Accepted, Fact, Fence, ReportItem, Statement, short_id};
use sinew_crdt_state::ids::{FactId, JobId, NodeId};
use sinew_crdt_state::spec::Phase;
use sinew_scheduler::io::Note;
use sinew_scheduler::time::{Span, Time};
use sinew_scheduler::wire::{Lease, Message};

use crate::check::Violation;
use crate::queue::Index;
use crate::report::Took;
use crate::world::World;

/// A worker that could not hear of the end has fenced itself by then.
const LAST_START: Span = Span::ms(3_000);

/// What is noted while the world runs, for checks at rest.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    /// When each job was first sealed.
    pub(crate) sealed: BTreeMap<JobId, Time>,
    /// Leases that brains gave up, with the brain's node.
    pub(crate) lost: BTreeMap<Lease, Index>,
    /// Reports under these that their brain had not seen before it gave the lease up.
    late: Vec<(JobId, Index, FactId)>,
    /// Nodes that a scenario makes lie.
    pub(crate) liars: BTreeSet<NodeId>,
    /// Whether a disk ever lied.
    pub(crate) lying: bool,
    /// Nodes whose disks lost what they had called written.
    pub(crate) forgot: BTreeSet<Index>,
    /// Brain sets of jobs acknowledged since a disk first lied: such a job may be gone from every disk.
    pub(crate) sets: BTreeMap<JobId, Vec<NodeId>>,
    /// Nodes that were started on old copies of their disks.
    pub(crate) aged: BTreeMap<Index, crate::rollback::Aged>,
    /// Facts that they could not sign.
    pub(crate) forged: Vec<(JobId, FactId)>,
}

/// A fact as opened from a disk.
type Opened = (FactId, NodeId, Statement);

impl World {
    /// Notes reports that reach their brain too late.
    pub(crate) fn watch_reports(&mut self, node: Index, messages: &[Message]) {
        if self.watch.lost.is_empty() {
            return;
        }
        for message in messages {
            let Message::Report { lease, facts } = message else { continue };
            // One that was started anew may have lost what it knew with its disk; it leads in no term in which it gave up a lease.
            let core = self.nodes[node].core.as_ref();
            let leads = core.is_some_and(|c| c.led().any(|led| led == (lease.job, lease.fence.term)));
            if !leads || self.watch.lost.get(lease) != Some(&node) {
                continue;
            }
            let known: BTreeSet<FactId> = self.nodes[node].disk.facts_by_id(&lease.job).map(|(id, _)| id).collect();
            let news = facts.iter().map(Envelope::fact_id).filter(|id| !known.contains(id));
            self.watch.late.extend(news.map(|id| (lease.job, node, id)));
        }
    }

    /// Tasks that run where no lease of their job is held.
    pub(crate) fn orphans(&self) -> Vec<Violation> {
        let up = self.nodes.iter().filter_map(|n| Some((n, n.core.as_ref()?)));
        let orphaned = up.filter(|(node, core)| {
            let held: BTreeSet<JobId> = core.leases().map(|(lease, _)| lease.job).collect();
            node.runs.values().any(|run| !held.contains(&self.executions[run.execution].job))
        });
        orphaned.map(|(node, _)| Violation::Orphan(node.name.clone())).collect()
    }

    /// Everything that needs a look at disks.
    pub(crate) fn audit(&self) -> Vec<Violation> {
        let mut found = self.leaks();
        found.extend(self.revived());
        found.extend(self.took.iter().flat_map(|took| self.run_again(took)));
        found.extend(self.watch.late.iter().flat_map(|late| self.late_results(late)));
        found.extend(self.unsigned());
        found
    }

    /// The part of [`Self::audit`] that looks at the facts of one job.
    pub(crate) fn audit_job(&self, job: &JobId) -> Vec<Violation> {
        let took = self.took.iter().filter(|took| took.job == *job).flat_map(|took| self.run_again(took));
        let late = self.watch.late.iter().filter(|(of, ..)| of == job).flat_map(|late| self.late_results(late));
        took.chain(late).collect()
    }

    fn leaks(&self) -> Vec<Violation> {
        let free = |core: &sinew_scheduler::core::Core| core.peers().get(core.own())?.load;
        let up = self.nodes.iter().filter_map(|n| Some((n, free(n.core.as_ref()?)?)));
        let leaking = up.filter(|(node, load)| load.cpu_milli_free != node.setup.cpu_milli);
        leaking.map(|(node, _)| Violation::Leak(node.name.clone())).collect()
    }

    fn revived(&self) -> Vec<Violation> {
        let late = |e: &&crate::exec::Execution| {
            self.watch.sealed.get(&e.job).is_some_and(|sealed| e.start > *sealed + LAST_START)
        };
        // Told to start and to stop by messages that had waited for it, all at one time: nothing ran.
        let ran = |e: &&crate::exec::Execution| e.end.is_none_or(|(end, _)| end > e.start);
        self.executions.iter().filter(late).filter(ran).map(|e| Violation::Revived(e.job, e.phase, e.task)).collect()
    }

    fn opened(&self, node: Index, job: &JobId) -> Vec<Opened> {
        let facts = self.nodes[node].disk.facts_by_id(job);
        facts.filter_map(|(id, e)| Some((id, e.author, cbor::from_slice(&e.payload).ok()?))).collect()
    }

    /// What a new brain had run although the results that it took over contain it.
    fn run_again(&self, took: &Took) -> Vec<Violation> {
        let runs: Vec<_> = self.executions_of(&took.job).filter(|e| e.fence.term == took.term).collect();
        if runs.is_empty() {
            return Vec::new();
        }
        let facts = self.opened(took.node, &took.job);
        let mut known = BTreeSet::new();
        for (.., statement) in &facts {
            if let Fact::Lead { term, base, .. } = &statement.fact
                && *term == took.term
            {
                known.extend(base.iter().copied());
            }
        }
        let mut done: Vec<(Phase, u32, u32)> = Vec::new();
        for (id, _, statement) in &facts {
            if let Fact::Accept { phase, items, .. } = &statement.fact
                && known.contains(&short_id(id))
            {
                done.extend(items.iter().map(|item| (*phase, item.run.start, item.run.end())));
            }
        }
        // What nobody held any more, by the brain's word, is to be run again.
        let anew = |phase: Phase, task: u32| {
            self.notes.iter().any(|(_, _, note)| match note {
                Note::MadeAnew { job, term, phase: of, tasks } => {
                    (*job, *term, *of) == (took.job, took.term, phase) && tasks.contains(&task)
                }
                _ => false,
            })
        };
        let again = runs
            .into_iter()
            .filter(|e| !anew(e.phase, e.task))
            .filter(|e| done.iter().any(|(phase, start, end)| *phase == e.phase && (*start..*end).contains(&e.task)));
        again.map(|e| Violation::Rerun(e.job, e.phase, e.task)).collect()
    }

    fn late_results(&self, (job, node, id): &(JobId, Index, FactId)) -> Vec<Violation> {
        let facts = self.opened(*node, job);
        let Some((_, author, report)) = facts.iter().find(|(i, ..)| i == id) else { return Vec::new() };
        let Fact::Report { fence, phase, items } = &report.fact else { return Vec::new() };
        let counted = |task: u32| facts.iter().any(|(.., s)| accepts(&s.fact, *author, *fence, *phase, task));
        let tasks = items.iter().flat_map(tasks_of);
        tasks.filter(|task| counted(*task)).map(|task| Violation::LateResult(*job, *phase, task)).collect()
    }

    fn unsigned(&self) -> Vec<Violation> {
        let kept = |(job, id): &&(JobId, FactId)| {
            self.nodes.iter().any(|n| n.disk.facts_by_id(job).any(|(kept, _)| kept == *id))
        };
        self.watch.forged.iter().filter(kept).map(|(job, _)| Violation::Unsigned(*job)).collect()
    }
}

/// Whether a fact accepts this task's result by this node under this award, in the award's own term: a later brain may take
/// what an earlier one gave up.
fn accepts(fact: &Fact, author: NodeId, fence: Fence, of: Phase, task: u32) -> bool {
    let Fact::Accept { term, phase, items } = fact else { return false };
    let here = |item: &Accepted| (item.run.start..item.run.end()).contains(&task);
    let same = |item: &&Accepted| (item.node, item.fence) == (author, fence);
    *term == fence.term && *phase == of && items.iter().filter(same).any(here)
}

fn tasks_of(item: &ReportItem) -> std::ops::Range<u32> {
    match item {
        ReportItem::Plain { run, .. } => run.start..run.end(),
        ReportItem::Outputs { task, .. } => *task..*task + 1,
        ReportItem::Failed { .. } => 0..0,
    }
}
