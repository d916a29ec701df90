//! Who gets a job's secrets, and who does not.

use std::collections::BTreeMap;

use sinew_crdt_state::envelope::{Envelope, seal_batch};
use sinew_crdt_state::fact::{Outcome, Statement};
use sinew_crdt_state::ids::DiskId;
use sinew_crdt_state::secret::{SecretPlace, SecretUse};
use sinew_crdt_state::spec::{
    Batch, Builtin, JobSpec, Limits, Program, Resources, Retry, SignedSpec, SpecFields, Strategy, Work,
};

use super::*;

const MESH: MeshId = MeshId([5; 32]);
const NOW_MS: u64 = 1_000;

fn who(n: u8) -> Identity {
    Identity::from_seed([n; 32])
}

/// Node 1 submitted, 1 to 3 are the brain set, 4 executes.
fn job(secrets: Vec<SecretUse>) -> SignedSpec {
    let batch = Batch {
        program: Program::Builtin(Builtin::Noop),
        tasks: 2,
        env: BTreeMap::new(),
        inputs: Vec::new(),
        gather: None,
        outputs: Vec::new(),
    };
    let spec = JobSpec::from(SpecFields {
        mesh: MESH,
        submitter: who(1).id(),
        serial: 1,
        submitted_ms: 0,
        brain_set: vec![who(1).id(), who(2).id(), who(3).id()],
        brain_disks: vec![DiskId(1), DiskId(2), DiskId(3)],
        name: "secret".to_owned(),
        work: Work::Batch(batch),
        resources: Resources::default(),
        limits: Limits::default(),
        retry: Retry::default(),
        labels: BTreeMap::new(),
        strategy: Strategy::default(),
        copies: 1,
        network: sinew_crdt_state::network::Network::default(),
        volumes: Vec::new(),
        alone: None,
        submit_key: None,
        pace: 1,
        secrets,
    });
    SignedSpec::sign(&who(1), &spec)
}

fn db() -> Vec<SecretUse> {
    vec![SecretUse { name: "db".to_owned(), place: SecretPlace::Env("DB".to_owned()) }]
}

fn fact(author: &Identity, job: JobId, fact: Fact) -> Envelope {
    seal_batch(author, MESH, &[(job, Statement { at_ms: NOW_MS, fact })]).swap_remove(0).1
}

fn award(author: u8, job: JobId, fence: Fence, node: NodeId) -> Envelope {
    fact(&who(author), job, Fact::Award { fence, node, slots: 1, lease_ms: 1_000 })
}

const FIRST: Fence = Fence { term: 1, epoch: 3 };

struct World {
    ledger: Ledger,
    job: JobId,
}

impl World {
    fn new(secrets: Vec<SecretUse>) -> Self {
        let signed = job(secrets);
        let job = signed.id();
        let mut world = Self { ledger: Ledger::new(MESH), job };
        world.admit(&fact(&who(1), job, Fact::Submit(signed)));
        world
    }

    fn admit(&mut self, envelope: &Envelope) {
        self.ledger.admit(envelope, |_| Some(Roles::ALL), NOW_MS).expect("admitted");
    }

    fn asks(&self, asker: u8, award: &Envelope) -> Result<Entitled, Refusal> {
        let ask = Ask { award: award.clone(), phase: 0, task: 1 };
        judge(&self.ledger, MESH, who(1).id(), who(asker).id(), Some(Roles::RUN), &ask)
    }

    fn denies(&self, asker: u8, award: &Envelope, word: &str) {
        let refusal = self.asks(asker, award).expect_err("refused");
        assert!(matches!(&refusal, Refusal::Denied(why) if why.contains(word)), "{refusal:?}");
    }
}

#[test]
fn the_awarded_node_gets_what_the_job_names() {
    let mut world = World::new(db());
    let good = award(1, world.job, FIRST, who(4).id());
    // Whether or not the award has come here yet.
    for _ in 0..2 {
        let entitled = world.asks(4, &good).expect("entitled");
        assert_eq!((entitled.names, entitled.purpose.fence), (vec!["db".to_owned()], FIRST));
        assert_eq!((entitled.purpose.asker, entitled.purpose.task), (who(4).id(), 1));
        world.admit(&good);
    }
    // Under the next brain too.
    let next = Fence { term: 2, epoch: 4 };
    let renewed = award(2, world.job, next, who(4).id());
    assert_eq!(world.asks(4, &renewed).expect("entitled").purpose.fence, next);
}

#[test]
fn nobody_else_gets_anything() {
    let mut world = World::new(db());
    let good = award(1, world.job, FIRST, who(4).id());
    world.denies(6, &good, "another node's");
    world.denies(6, &award(6, world.job, FIRST, who(6).id()), "not by the brain");
    world.denies(6, &award(2, world.job, FIRST, who(6).id()), "not by the brain");
    world.denies(4, &award(1, world.job, Fence { term: 0, epoch: 1 }, who(4).id()), "not by the brain");
    world.denies(4, &fact(&who(1), world.job, Fact::Claim { fence: FIRST, slots: 1 }), "no award");
    let mut forged = good.clone();
    forged.author = who(2).id();
    world.denies(4, &forged, "signature");
    let mut other_mesh = good.clone();
    other_mesh.signature = seal_batch(
        &who(1),
        MeshId([6; 32]),
        &[(
            world.job,
            Statement {
                at_ms: NOW_MS,
                fact: Fact::Award { fence: FIRST, node: who(4).id(), slots: 1, lease_ms: 1_000 },
            },
        )],
    )[0]
    .1
    .signature;
    world.denies(4, &other_mesh, "signature");
    let ask = |task, phase| Ask { award: good.clone(), phase, task };
    for (task, phase) in [(2, 0), (0, 1)] {
        let refusal = judge(&world.ledger, MESH, who(1).id(), who(4).id(), Some(Roles::RUN), &ask(task, phase));
        assert!(matches!(refusal, Err(Refusal::Denied(why)) if why.contains("task")));
    }
    let idle = judge(&world.ledger, MESH, who(1).id(), who(4).id(), Some(Roles::SUBMIT), &ask(0, 0));
    assert!(matches!(idle, Err(Refusal::Denied(why)) if why.contains("run")));
    // A node that did not submit the job has nothing to give for it, whatever it knows.
    let elsewhere = judge(&world.ledger, MESH, who(2).id(), who(4).id(), Some(Roles::RUN), &ask(0, 0));
    assert!(matches!(elsewhere, Err(Refusal::Denied(why)) if why.contains("another node's")));
    // A brain that gave one award to two nodes.
    world.admit(&good);
    let twice = award(1, world.job, FIRST, who(6).id());
    world.denies(6, &twice, "two nodes");
    world.admit(&twice);
    world.denies(4, &good, "two nodes");
}

#[test]
fn awards_and_jobs_of_the_past_count_no_more() {
    let mut world = World::new(db());
    let good = award(1, world.job, FIRST, who(4).id());
    let stranger =
        fact(&who(1), JobId([9; 32]), Fact::Award { fence: FIRST, node: who(4).id(), slots: 1, lease_ms: 1 });
    assert_eq!(world.asks(4, &stranger), Err(Refusal::NoJob));
    let later = Fence { term: 1, epoch: 4 };
    let second = award(1, world.job, later, who(4).id());
    world.admit(&good);
    world.admit(&fact(&who(1), world.job, Fact::Revoke { fence: FIRST, lost: true }));
    assert_eq!(world.asks(4, &good), Err(Refusal::Superseded));
    assert!(world.asks(4, &second).is_ok());
    world.admit(&award(2, world.job, Fence { term: 2, epoch: 5 }, who(2).id()));
    assert_eq!(world.asks(4, &second), Err(Refusal::Superseded), "another brain leads");
    let third = award(2, world.job, Fence { term: 2, epoch: 6 }, who(4).id());
    assert!(world.asks(4, &third).is_ok());
    world.admit(&fact(&who(2), world.job, Fact::Finish { term: 2, outcome: Outcome::Completed }));
    assert_eq!(world.asks(4, &third), Err(Refusal::NoJob));
    let mut cancelled = World::new(db());
    cancelled.admit(&fact(&who(1), cancelled.job, Fact::Cancel { reason: "no".to_owned() }));
    assert_eq!(cancelled.asks(4, &award(1, cancelled.job, FIRST, who(4).id())), Err(Refusal::NoJob));
    let none = World::new(Vec::new());
    none.denies(4, &award(1, none.job, FIRST, who(4).id()), "no secrets");
}

#[test]
fn a_node_that_asks_all_the_time_is_slowed_down() {
    let dir = tempfile::tempdir().expect("dir");
    let keeper = Keeper::new(SecretStore::open(dir.path(), &who(1)), who(1));
    let now = Instant::now();
    let asked = (0..100).filter(|_| keeper.may_ask(who(4).id(), now)).count();
    assert_eq!(asked, 32);
    assert!(keeper.may_ask(who(5).id(), now), "others are not");
    assert!(keeper.may_ask(who(4).id(), now + Duration::from_millis(300)));
    keeper.may_ask(who(5).id(), now + Duration::from_secs(60));
    assert_eq!(keeper.budgets.lock().expect("lock").len(), 1, "and nothing is remembered for ever");
}
