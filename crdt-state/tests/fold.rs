//! A job's state is a function of the set of its facts: not of their order, their repetition, or the way they came.

use proptest::prelude::*;
use sinew_crdt_state::cbor;
use sinew_crdt_state::certificate::Roles;
use sinew_crdt_state::change::{document, fact_id, facts_of};
use sinew_crdt_state::envelope::{Opened, seal_batch};
use sinew_crdt_state::error_code::ErrorCode;
use sinew_crdt_state::fact::{
    Accepted, Executed, Fact, Failure, Fence, Outcome, Output, ReportItem, Run, Statement, Usage, short_id,
};
use sinew_crdt_state::identity::Identity;
use sinew_crdt_state::ids::{DiskId, FactId, Hash, JobId, MeshId, NodeId};
use sinew_crdt_state::ledger::{Admitted, Ledger};
use sinew_crdt_state::rules::{self, brain_of};
use sinew_crdt_state::spec::{
    Batch, BlobRef, Builtin, JobSpec, Limits, Program, Resources, Retry, SignedSpec, SpecFields, Strategy as Ranking,
    Work,
};
use sinew_crdt_state::state::JobState;

const TASKS: u32 = 12;
const MESH: MeshId = MeshId([5; 32]);

fn who(n: u8) -> Identity {
    Identity::from_seed([n; 32])
}

fn spec() -> JobSpec {
    JobSpec::from(SpecFields {
        mesh: MESH,
        submitter: who(0).id(),
        serial: 1,
        submitted_ms: 0,
        brain_set: vec![who(0).id(), who(1).id(), who(2).id()],
        brain_disks: vec![DiskId(0), DiskId(1), DiskId(2)],
        name: "fold".to_owned(),
        work: Work::Batch(Batch {
            program: Program::Builtin(Builtin::Noop),
            tasks: TASKS,
            env: Default::default(),
            inputs: Vec::new(),
            gather: None,
            outputs: Vec::new(),
        }),
        resources: Resources::default(),
        limits: Limits::default(),
        retry: Retry::default(),
        labels: Default::default(),
        strategy: Ranking::default(),
        copies: 1,
        network: sinew_crdt_state::network::Network::default(),
        secrets: Vec::new(),
        volumes: Vec::new(),
        alone: None,
        submit_key: None,
        pace: 1,
    })
}

fn failure() -> Failure {
    let (message, stderr_tail) = ("no".to_owned(), String::new());
    Failure { code: ErrorCode::Exit, exit: Some(1), message, stderr_tail, retryable: true }
}

fn run() -> impl Strategy<Value = Run> {
    (0..TASKS).prop_flat_map(|start| (Just(start), 1..=TASKS - start)).prop_map(|(start, len)| Run { start, len })
}

fn fence() -> impl Strategy<Value = Fence> {
    (1u32..6, 1u32..4).prop_map(|(term, epoch)| Fence { term, epoch })
}

fn outcome() -> impl Strategy<Value = Outcome> {
    let failed = Outcome::Failed { phase: 0, task: 1, node: None, failure: failure() };
    prop_oneof![Just(Outcome::Completed), Just(Outcome::Cancelled), Just(failed)]
}

fn accepted() -> impl Strategy<Value = Accepted> {
    (run(), 0u8..5, fence(), any::<bool>()).prop_map(|(run, node, fence, plain)| {
        let blob = BlobRef { hash: Hash::of(&run.start.to_le_bytes()), size: 4 };
        let outputs = if plain { Vec::new() } else { vec![Output { name: "stdout".to_owned(), blob }] };
        let run = if plain { run } else { Run { len: 1, ..run } };
        Accepted { run, node: who(node).id(), fence, outputs, copy: None, again: 0 }
    })
}

/// A fact with the number of its author, among those who may state it.
fn fact() -> impl Strategy<Value = (u8, Fact)> {
    let usage = Usage::default();
    // Term t is led by node (t - 1) mod 3.
    let brain = |term: u32| ((term - 1) % 3) as u8;
    prop_oneof![
        (0u8..5, 1u32..4).prop_map(|(n, slots)| (n, Fact::Bid { slots, score: 1, held_bytes: 0, start_in_ms: 0 })),
        (fence(), 0u8..5).prop_map(move |(fence, n)| {
            (brain(fence.term), Fact::Award { fence, node: who(n).id(), slots: 1, lease_ms: 1_500 })
        }),
        (fence(), 0u8..5).prop_map(|(fence, n)| (n, Fact::Claim { fence, slots: 1 })),
        (fence(), run(), 0u8..5).prop_map(move |(fence, run, n)| {
            (n, Fact::Report { fence, phase: 0, items: vec![ReportItem::Plain { run, usage }] })
        }),
        (fence(), 0..TASKS, 0u8..5).prop_map(move |(fence, task, n)| {
            (n, Fact::Report { fence, phase: 0, items: vec![ReportItem::Failed { task, failure: failure(), usage }] })
        }),
        (fence(), any::<bool>()).prop_map(move |(fence, lost)| (brain(fence.term), Fact::Revoke { fence, lost })),
        (1u32..6, prop::collection::vec(accepted(), 1..4))
            .prop_map(move |(term, items)| (brain(term), Fact::Accept { term, phase: 0, items })),
        (0u8..3, 1u32..6).prop_map(|(n, term)| (n, Fact::Vote { term, pace: 1 })),
        (0u8..3, 0u64..5, 1u32..6).prop_map(|(n, disk, term)| (n, Fact::Rejoin { disk: DiskId(disk), term })),
        Just((0, Fact::Cancel { reason: "enough".to_owned() })),
        (1u32..6, outcome()).prop_map(move |(term, outcome)| (brain(term), Fact::Finish { term, outcome })),
        (0u8..5, 0u64..9)
            .prop_map(move |(n, tasks)| { (n, Fact::Receipt(Executed { tasks, usage, outputs: Hash::of(b"x") })) }),
    ]
}

/// Facts of a job, some of them by brains that took office knowing an arbitrary part of what was accepted before.
fn facts() -> impl Strategy<Value = Vec<(u8, Fact)>> {
    let leads = prop::collection::vec((2u32..6, any::<u64>()), 0..4);
    (prop::collection::vec(fact(), 0..40), leads).prop_map(|(mut facts, leads)| {
        let accepts: Vec<_> = facts
            .iter()
            .enumerate()
            .filter(|(_, (_, fact))| matches!(fact, Fact::Accept { .. }))
            .map(|(i, (n, fact))| short_id(&stated(i, *n, fact).0))
            .collect();
        for (term, mask) in leads {
            let known = accepts.iter().enumerate().filter(|(i, _)| mask >> (i % 64) & 1 == 1);
            let base = known.map(|(_, id)| *id).collect();
            let voters = vec![who(0).id(), who(1).id(), who(2).id()];
            facts.push((((term - 1) % 3) as u8, Fact::Lead { term, voters, base, pace: 1 + (term % 3) as u8 }));
        }
        facts
    })
}

fn stated(i: usize, author: u8, fact: &Fact) -> (FactId, NodeId, Statement) {
    let statement = Statement { at_ms: i as u64, fact: fact.clone() };
    let author = who(author).id();
    (fact_id(author, &cbor::to_vec(&statement)), author, statement)
}

fn look(state: &JobState) -> String {
    format!("{state:?} {:?} {:?}", state.status(), state.outcome())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn order_and_repetition_change_nothing(facts in facts(), order in any::<prop::sample::Index>(), twist in any::<u64>()) {
        let all: Vec<_> = facts.iter().enumerate().map(|(i, (n, fact))| stated(i, *n, fact)).collect();
        let forward = JobState::fold(spec(), &all);
        let mut other = all.clone();
        other.sort_by_key(|(id, ..)| short_id(id) ^ twist);
        if !other.is_empty() {
            other.rotate_left(order.index(all.len()));
            other.push(other[0].clone());
        }
        prop_assert_eq!(look(&forward), look(&JobState::fold(spec(), &other)));
    }

    #[test]
    fn the_document_the_ledger_and_the_fold_agree(facts in facts(), twist in any::<u64>()) {
        let signed = SignedSpec::sign(&who(0), &spec());
        let job: JobId = signed.id();
        let mut all = vec![(0, Fact::Submit(signed))];
        all.extend(facts);
        let stated: Vec<_> = all.iter().enumerate().map(|(i, (n, fact))| stated(i, *n, fact)).collect();
        let folded = JobState::fold(spec(), &stated);

        let payloads: Vec<(NodeId, Vec<u8>)> = stated.iter().map(|(_, a, s)| (*a, cbor::to_vec(s))).collect();
        let doc = document(payloads.iter().map(|(a, p)| (*a, &p[..]))).unwrap();
        let mut from_doc: Vec<_> = facts_of(&doc)
            .unwrap()
            .into_iter()
            .map(|(a, p)| (fact_id(a, &p), a, cbor::from_slice::<Statement>(&p).unwrap()))
            .collect();
        from_doc.sort_by_key(|(id, ..)| short_id(id) ^ twist);
        prop_assert_eq!(look(&folded), look(&JobState::fold(spec(), &from_doc)));

        let mut ledger = Ledger::new(MESH);
        let mut order: Vec<usize> = (1..all.len()).collect();
        order.sort_by_key(|i| short_id(&stated[*i].0) ^ twist);
        for i in std::iter::once(0).chain(order) {
            let (id, _, statement) = &stated[i];
            let (_, envelope) = seal_batch(&who(all[i].0), MESH, &[(job, statement.clone())]).swap_remove(0);
            let opened = Opened { id: *id, statement: statement.clone() };
            let admitted = ledger.admit_own(&envelope, &opened, 0);
            prop_assert!(matches!(admitted, Ok(Admitted::New(_) | Admitted::Known(_))), "{:?}", admitted);
        }
        prop_assert_eq!(look(&folded), look(&ledger.live(&job).unwrap().state));
    }

    #[test]
    fn nobody_but_the_brain_of_the_term_speaks_for_it(term in 1u32..9, author in 0u8..5) {
        let spec = spec();
        let fence = Fence { term, epoch: 1 };
        let node = who(4).id();
        let of_brain = [
            Fact::Award { fence, node, slots: 1, lease_ms: 1 },
            Fact::Revoke { fence, lost: true },
            Fact::Accept { term, phase: 0, items: Vec::new() },
            Fact::Lead { term, voters: spec.brain_set.clone(), base: Vec::new(), pace: 1 },
            Fact::Finish { term, outcome: Outcome::Cancelled },
            Fact::Seal { term, outcome: Outcome::Cancelled, receipts: Vec::new(), anew: 0 },
        ];
        let author = who(author).id();
        let may = brain_of(&spec, term) == Some(author);
        for fact in of_brain {
            prop_assert_eq!(rules::check(&spec, author, Roles::ALL, &fact).is_ok(), may, "{}", fact.name());
        }
        let member = spec.brain_set.contains(&author);
        prop_assert_eq!(rules::check(&spec, author, Roles::RUN, &Fact::Vote { term, pace: 1 }).is_ok(), member);
        let cancel = Fact::Cancel { reason: String::new() };
        let submitter = author == spec.submitter;
        prop_assert_eq!(rules::check(&spec, author, Roles::RUN.union(Roles::SUBMIT), &cancel).is_ok(), submitter);
        prop_assert!(rules::check(&spec, author, Roles::ADMIN, &cancel).is_ok());
    }
}
