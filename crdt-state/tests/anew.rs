//! Map outputs that were lost and made anew: the newest counts everywhere, no replica takes the job for over without it, and
//! nothing that a user was shown is ever replaced.

use sinew_crdt_state::cbor;
use sinew_crdt_state::certificate::Roles;
use sinew_crdt_state::change::fact_id;
use sinew_crdt_state::envelope::{Opened, seal_batch};
use sinew_crdt_state::fact::{Accepted, Fact, Fence, Outcome, Output, Run, Statement, short_id};
use sinew_crdt_state::identity::Identity;
use sinew_crdt_state::ids::{DiskId, FactId, Hash, MeshId, NodeId};
use sinew_crdt_state::ledger::{Admitted, Ledger, Refusal};
use sinew_crdt_state::rules;
use sinew_crdt_state::spec::{
    BlobRef, Builtin, JobSpec, Limits, MapReduce, PACE_MIN, PHASE_MAP, Phase, Program, Resources, Retry, SignedSpec,
    SpecFields, Strategy, Work,
};
use sinew_crdt_state::state::JobState;

const MESH: MeshId = MeshId([5; 32]);
const REDUCE: Phase = PHASE_MAP + 1;

fn who(n: u8) -> Identity {
    Identity::from_seed([n; 32])
}

/// A round of one map task and one reduce task.
fn spec() -> JobSpec {
    let blob = BlobRef { hash: Hash([1; 32]), size: 1 };
    let program = || Program::Builtin(Builtin::Noop);
    JobSpec::from(SpecFields {
        mesh: MESH,
        submitter: who(0).id(),
        serial: 1,
        submitted_ms: 0,
        brain_set: vec![who(0).id(), who(1).id(), who(2).id()],
        brain_disks: vec![DiskId(0), DiskId(1), DiskId(2)],
        name: "anew".to_owned(),
        work: Work::MapReduce(Box::new(MapReduce {
            chunk_table: blob,
            chunks: 1,
            inputs: vec![blob],
            map: program(),
            combine: None,
            reduce: program(),
            partitions: 1,
            files: Vec::new(),
            env: Default::default(),
        })),
        resources: Resources::default(),
        limits: Limits::default(),
        retry: Retry::default(),
        labels: Default::default(),
        strategy: Strategy::default(),
        copies: 2,
        network: Default::default(),
        secrets: Vec::new(),
        volumes: Vec::new(),
        alone: None,
        submit_key: None,
        pace: PACE_MIN,
    })
}

fn accept(term: u32, phase: Phase, node: u8, epoch: u32, again: u32) -> Fact {
    let blob = BlobRef { hash: Hash([node; 32]), size: 4 };
    let outputs = vec![Output { name: "map".to_owned(), blob }];
    let fence = Fence { term: 1, epoch };
    let item = Accepted { run: Run { start: 0, len: 1 }, node: who(node).id(), fence, outputs, copy: None, again };
    Fact::Accept { term, phase, items: vec![item] }
}

/// With the number of its author.
fn stated(author: u8, fact: Fact) -> (FactId, NodeId, Statement) {
    let statement = Statement { at_ms: 0, fact };
    let author = who(author).id();
    (fact_id(author, &cbor::to_vec(&statement)), author, statement)
}

fn maker(facts: &[(FactId, NodeId, Statement)]) -> Option<NodeId> {
    JobState::fold(spec(), facts).accepted[0].get(0).map(|result| result.node)
}

#[test]
fn what_was_made_anew_counts_in_any_order_and_under_any_award() {
    // The second under an award that is older than the one of the first.
    let (first, second) = (stated(0, accept(1, PHASE_MAP, 3, 5, 0)), stated(0, accept(1, PHASE_MAP, 4, 2, 1)));
    let four = Some(who(4).id());
    assert_eq!(maker(&[first.clone(), second.clone()]), four);
    assert_eq!(maker(&[second.clone(), first.clone()]), four);
    // A later brain knew both, and says the first once more, as one would that takes a late report.
    let base = vec![short_id(&first.0), short_id(&second.0)];
    let lead = stated(1, Fact::Lead { term: 2, voters: vec![who(1).id(), who(2).id()], base, pace: PACE_MIN });
    let late = stated(1, accept(2, PHASE_MAP, 3, 5, 0));
    assert_eq!(maker(&[late, lead, first.clone(), second.clone()]), four);
    // One that never saw the second goes by the first.
    let lead = stated(
        1,
        Fact::Lead { term: 2, voters: vec![who(1).id(), who(2).id()], base: vec![short_id(&first.0)], pace: PACE_MIN },
    );
    assert_eq!(maker(&[second, lead, first]), Some(who(3).id()));
}

#[test]
fn results_of_the_last_phase_are_final() {
    let check = |fact: &Fact| rules::check(&spec(), who(0).id(), Roles::ALL, fact);
    check(&accept(1, PHASE_MAP, 3, 1, 7)).expect("a map output may be made anew");
    check(&accept(1, REDUCE, 3, 1, 0)).expect("a first result");
    check(&accept(1, REDUCE, 3, 1, 1)).expect_err("a result that a user may have seen");
}

#[test]
fn nobody_takes_a_seal_without_what_was_made_anew() {
    let signed = SignedSpec::sign(&who(0), &spec());
    let job = signed.id();
    let mut ledger = Ledger::new(MESH);
    let mut admit = |fact: Fact| {
        let (id, _, statement) = stated(0, fact);
        let (_, envelope) = seal_batch(&who(0), MESH, &[(job, statement.clone())]).swap_remove(0);
        ledger.admit_own(&envelope, &Opened { id, statement }, 0)
    };
    let seal = || Fact::Seal { term: 1, outcome: Outcome::Completed, receipts: Vec::new(), anew: 1 };
    for fact in [Fact::Submit(signed), accept(1, PHASE_MAP, 3, 5, 0), accept(1, REDUCE, 3, 6, 0)] {
        admit(fact).expect("taken in");
    }
    assert!(matches!(admit(seal()), Err(Refusal::Incomplete)), "it knows a result of each task, and one is old");
    admit(accept(1, PHASE_MAP, 4, 2, 1)).expect("taken in");
    assert!(matches!(admit(seal()), Ok(Admitted::New(_))));
}
