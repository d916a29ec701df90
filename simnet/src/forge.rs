//! Lies that a scenario has a node tell: facts that it may not state. The node's core stays honest; what is forged goes out
//! beside it.

use std::sync::Arc;

use sinew_crdt_state::envelope::{Envelope, seal_batch};
use sinew_crdt_state::fact::{Fact, Outcome, ReportItem, Run, Statement, Usage};
use sinew_crdt_state::ids::{Hash, JobId};
use sinew_crdt_state::spec::BlobRef;
use sinew_crdt_state::spec::{JobSpec, SignedSpec};
use sinew_scheduler::io::Input;
use sinew_scheduler::time::Span;
use sinew_scheduler::wire::{Class, Lease, Message};

use crate::plan::Plan;
use crate::queue::Index;
use crate::world::World;

impl World {
    /// `liar` sends `to` a cancel in the submitter's name, which it cannot sign.
    pub fn forge_cancel(&mut self, liar: &str, to: &str, job: JobId) {
        let (liar, to) = (self.index(liar), self.index(to));
        let submitter = self.spec_of(job).map(|live| live.state.spec.submitter);
        let Some(author) = submitter else { return };
        let forged = self.signed(liar, job, Fact::Cancel { reason: "forged".to_owned() });
        let forged = Envelope { author, ..forged };
        self.watch.forged.push((job, forged.fact_id()));
        self.lie(liar, to, Message::Facts(vec![forged]));
    }

    /// `liar` reports to `to`, under another node's award that is under way, a task that it never ran.
    pub fn forge_report(&mut self, liar: &str, to: &str, job: JobId) {
        let (liar, to) = (self.index(liar), self.index(to));
        let under_way = self.executions_of(&job).find(|e| e.node != liar && e.end.is_none());
        let Some((fence, phase, task)) = under_way.map(|e| (e.fence, e.phase, e.task)) else { return };
        let run = Run { start: task, len: 1 };
        let items = vec![ReportItem::Plain { run, usage: Usage::default() }];
        let report = self.signed(liar, job, Fact::Report { fence, phase, items });
        self.lie(liar, to, Message::Report { lease: Lease { job, fence }, facts: vec![report] });
    }

    /// `liar` sends `to` a seal of a job that says that it was cancelled.
    pub fn forge_seal(&mut self, liar: &str, to: &str, job: JobId) {
        let (liar, to) = (self.index(liar), self.index(to));
        let seal =
            self.signed(liar, job, Fact::Seal { term: 1, outcome: Outcome::Cancelled, receipts: Vec::new(), anew: 0 });
        self.lie(liar, to, Message::Facts(vec![seal]));
    }

    /// `liar` tells the brain `to` that another leads the job by now.
    pub fn forge_deposed(&mut self, liar: &str, to: &str, job: JobId) {
        let (liar, to) = (self.index(liar), self.index(to));
        self.lie(liar, to, Message::Deposed { job, term: 1_000_000 });
    }

    /// `liar` has a blob that belongs to no job and asks `to` to keep it for one. Gives the blob.
    pub fn forge_keep(&mut self, liar: &str, to: &str, job: JobId) -> Hash {
        let (liar, to) = (self.index(liar), self.index(to));
        let blob = BlobRef { hash: Hash::of(b"rubbish"), size: 1 << 30 };
        self.nodes[liar].disk.import(blob);
        self.lie(liar, to, Message::Keep { job, blobs: vec![blob], holders: Vec::new() });
        blob.hash
    }

    /// Whether a node has a blob.
    #[must_use]
    pub fn has_blob(&self, name: &str, hash: &Hash) -> bool {
        self.nodes[self.index(name)].disk.has(hash)
    }

    /// The submitter's node gives another job the number of `job`, as one did whose disk had lost that one. Its core knows nothing
    /// of it; all others hear of it at once.
    pub fn submit_with_number_of(&mut self, name: &str, plan: &Plan, job: &JobId) -> JobId {
        let node = self.index(name);
        let state = self.state(name, job).expect("the first of the two is on disk");
        let job_name = self.books.submit(plan);
        let new = plan.new_job(&job_name);
        let mut spec: JobSpec = (*state.spec).clone();
        (spec.name, spec.work, spec.submitted_ms) = (new.name, Arc::new(new.work), self.clock(node).unix_ms);
        (spec.resources, spec.limits) = (new.resources, new.limits);
        let signed = SignedSpec::sign(&self.nodes[node].identity, &spec);
        let twin = signed.id();
        let submit = self.signed(node, twin, Fact::Submit(signed));
        let from = self.nodes[node].id();
        self.acknowledged.insert(twin, self.now);
        // Twice: whoever has forgotten the first job has to look whether it is this one.
        for _ in 0..2 {
            for other in (0..self.nodes.len()).filter(|other| *other != node) {
                self.input(other, Input::Message { from, message: Message::Facts(vec![submit.clone()]) });
            }
            self.run_for(Span::ms(50));
        }
        twin
    }

    fn spec_of(&self, job: JobId) -> Option<&sinew_crdt_state::ledger::LiveEntry> {
        self.nodes.iter().filter_map(|n| n.core.as_ref()).find_map(|core| core.ledger().live(&job))
    }

    fn signed(&self, by: Index, job: JobId, fact: Fact) -> Envelope {
        let statement = Statement { at_ms: self.clock(by).unix_ms, fact };
        let mut batch = seal_batch(&self.nodes[by].identity, self.mesh, &[(job, statement)]);
        batch.swap_remove(0).1
    }

    fn lie(&mut self, liar: Index, to: Index, message: Message) {
        self.watch.liars.insert(self.nodes[liar].id());
        self.counters.lies += 1;
        self.say(liar, "LIES".to_owned());
        self.send(liar, to, Class::Control, vec![message]);
    }
}
