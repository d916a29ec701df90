//! Members that lie, with a good certificate and a real mesh node of their own, against whole daemons. Each is refused,
//! counted, logged once and disconnected, and the daemon works on.

use std::time::Duration;

use bytes::Bytes;
use sinew_crdt_state::cbor;
use sinew_crdt_state::certificate::{Credential, Roles, Ticket};
use sinew_crdt_state::envelope::{Envelope, seal_batch};
use sinew_crdt_state::fact::{Accepted, Fact, Fence, Outcome, ReportItem, Run, Statement, Usage};
use sinew_crdt_state::identity::Identity;
use sinew_crdt_state::ids::{DiskId, FactId, JobId, MeshId, NodeId};
use sinew_crdt_state::ledger::Ledger;
use sinew_crdt_state::spec::{
    Batch, Builtin, JobSpec, Limits, Program, Resources, Retry, SignedSpec, SpecFields, Strategy, Work,
};
use sinew_mesh::{FrameClass, Mesh, MeshConfig, MeshEvent, MeshEvents, Multiaddr, Topic};
use sinew_node::clock::unix_ms;
use sinew_node::daemon::gossip_frame;
use sinew_node::frames::encode_messages;
use sinew_node::local_mesh::{LocalMesh, LocalNode};
use sinew_scheduler::wire::{Lease, Message};

use crate::support::{DEADLINE, eventually, mesh, processes_with, sinew};

pub(crate) const HOUR_MS: u64 = 3_600_000;
/// An identity that nobody else in these tests has.
pub(crate) fn fresh() -> Identity {
    Identity::from_seed(rand::random())
}

/// The daemon's refusals of one kind.
pub(crate) async fn refused(node: &LocalNode, kind: &str) -> u64 {
    let status = node.client().status().await.expect("the daemon answers");
    status.refused.iter().find(|(k, _)| k == kind).map_or(0, |(_, n)| *n)
}

pub(crate) async fn address(node: &LocalNode) -> Multiaddr {
    let status = node.client().status().await.expect("the daemon answers");
    status.listen.first().expect("it listens").parse().expect("a multiaddr")
}

/// Warnings in the daemon's log that name `who`.
pub(crate) fn warnings(node: &LocalNode, who: NodeId) -> Vec<String> {
    let log = node.log();
    let of_it = |line: &&str| line.contains("WARN") && line.contains(&who.short());
    log.lines().filter(of_it).map(str::to_owned).collect()
}

/// Asserts that the mesh still runs work, on the daemon that was attacked.
pub(crate) fn is_alive(node: &LocalNode) {
    let ran = sinew(&node.data_dir, &node.data_dir, &["run", "--", "echo", "alive"]);
    assert_eq!((ran.code, ran.stdout().as_str()), (0, "alive\n"), "{ran}\n{}", node.log_tail());
}

/// A credential that `node` gave for a ticket, as any newcomer gets it.
pub(crate) async fn credential(node: &LocalNode, who: &Identity, roles: &str) -> Credential {
    let ticket = node.client().invite(roles.to_owned(), HOUR_MS).await.expect("a ticket");
    let ticket: Ticket = ticket.parse().expect("a ticket");
    // Newcomers are let in a few a second.
    eventually("the daemon lets it in", || async { sinew_mesh::join(&ticket, who, Duration::from_secs(10)).await.ok() })
        .await
}

async fn mesh_id(node: &LocalNode) -> MeshId {
    node.client().status().await.expect("the daemon answers").mesh
}

/// A member with a valid certificate and a real mesh node, which says what the test tells it to.
struct Member {
    who: Identity,
    mesh: Mesh,
    events: MeshEvents,
}

impl Member {
    async fn join(node: &LocalNode, roles: &str) -> Self {
        Self::join_all(&[node], roles).await
    }

    /// Joins through the first of `nodes` and connects to all of them.
    async fn join_all(nodes: &[&LocalNode], roles: &str) -> Self {
        let who = fresh();
        let credential = credential(nodes[0], &who, roles).await;
        let mut config = MeshConfig::bare(vec!["/ip4/127.0.0.1/tcp/0".parse().expect("addr")]);
        for node in nodes {
            config.bootstrap.push(address(node).await);
        }
        let mesh = mesh_id(nodes[0]).await;
        let (mesh, mut events) = Mesh::start(config, &who, credential, mesh, unix_ms).await.expect("it starts");
        let mut missing: Vec<NodeId> = nodes.iter().map(|n| n.id).collect();
        while !missing.is_empty() {
            let event = tokio::time::timeout(DEADLINE, events.recv()).await.expect("in time").expect("it runs");
            if let MeshEvent::PeerUp { node, .. } = event {
                missing.retain(|n| *n != node);
            }
        }
        Self { who, mesh, events }
    }

    fn say(&self, to: &LocalNode, frame: impl Into<Bytes>) {
        self.mesh.send(to.id, FrameClass::Bulk, frame.into()).expect("queued");
    }

    fn tell(&self, to: &LocalNode, message: Message) {
        let frame = encode_messages(&[message]).into_iter().next().expect("one frame");
        self.say(to, frame);
    }

    /// Waits until the daemon has cut the connection.
    async fn wait_dropped(&mut self, by: &LocalNode) {
        let dropped = async {
            loop {
                match self.events.recv().await {
                    Some(MeshEvent::PeerDown { node }) if node == by.id => return,
                    Some(_) => {}
                    None => panic!("the own mesh ended"),
                }
            }
        };
        tokio::time::timeout(DEADLINE, dropped).await.expect("it is dropped in time");
    }
}

/// A job of one task that does nothing, with `who` as its submitter and only brain.
fn own_job(who: &Identity, mesh: MeshId, serial: u64) -> SignedSpec {
    let batch = Batch {
        program: Program::Builtin(Builtin::Noop),
        tasks: 1,
        env: std::collections::BTreeMap::new(),
        inputs: Vec::new(),
        gather: None,
        outputs: Vec::new(),
    };
    let spec = JobSpec::from(SpecFields {
        mesh,
        submitter: who.id(),
        serial,
        submitted_ms: unix_ms(),
        brain_set: vec![who.id()],
        brain_disks: vec![DiskId(1)],
        name: "hostile".to_owned(),
        work: Work::Batch(batch),
        resources: Resources::default(),
        limits: Limits::default(),
        retry: Retry::default(),
        labels: std::collections::BTreeMap::new(),
        strategy: Strategy::default(),
        copies: 1,
        network: sinew_crdt_state::network::Network::default(),
        secrets: Vec::new(),
        volumes: Vec::new(),
        alone: None,
        submit_key: None,
        pace: 1,
    });
    SignedSpec::sign(who, &spec)
}

fn signed(who: &Identity, mesh: MeshId, job: JobId, facts: Vec<Fact>) -> Vec<Envelope> {
    let statements: Vec<_> = facts.into_iter().map(|fact| (job, Statement { at_ms: unix_ms(), fact })).collect();
    seal_batch(who, mesh, &statements).into_iter().map(|(_, e)| e).collect()
}

/// What a hostile member may send, made for it and the daemon that gets it.
type Lie = fn(&Identity, MeshId, NodeId) -> Vec<Bytes>;

fn frame_of(message: Message) -> Vec<Bytes> {
    encode_messages(&[message]).into_iter().collect()
}

fn submit_by(who: &Identity, mesh: MeshId) -> (JobId, Envelope) {
    let spec = own_job(who, mesh, 1);
    let job = spec.id();
    let envelope = signed(who, mesh, job, vec![Fact::Submit(spec)]).swap_remove(0);
    (job, envelope)
}

const LIES: [(&str, Lie); 14] = [
    ("a fact signed by somebody else", |who, mesh, victim| {
        let (_, mut envelope) = submit_by(who, mesh);
        envelope.author = victim;
        frame_of(Message::Facts(vec![envelope]))
    }),
    ("a fact with a changed payload", |who, mesh, _| {
        let (_, mut envelope) = submit_by(who, mesh);
        *envelope.payload.last_mut().expect("bytes") ^= 1;
        frame_of(Message::Replicate { job: envelope.entry, term: 1, facts: vec![envelope] })
    }),
    ("a fact moved to another job", |who, mesh, _| {
        let (_, mut envelope) = submit_by(who, mesh);
        envelope.entry = JobId([7; 32]);
        frame_of(Message::Facts(vec![envelope]))
    }),
    ("a fact signed for another mesh", |who, _, _| {
        let (_, envelope) = submit_by(who, MeshId([9; 32]));
        frame_of(Message::Facts(vec![envelope]))
    }),
    ("a job in somebody else's name", |who, mesh, victim| {
        let mut spec = own_job(who, mesh, 1).open().expect("good");
        spec.submitter = victim;
        let spec = SignedSpec::sign(who, &spec);
        frame_of(Message::Facts(signed(who, mesh, spec.id(), vec![Fact::Submit(spec)])))
    }),
    ("a job whose brain set is nonsense", |who, mesh, _| {
        let mut spec = own_job(who, mesh, 1).open().expect("good");
        spec.brain_set = vec![who.id(); 2];
        let spec = SignedSpec::sign(who, &spec);
        frame_of(Message::Facts(signed(who, mesh, spec.id(), vec![Fact::Submit(spec)])))
    }),
    ("replication of a job that it does not lead", |who, mesh, victim| {
        let mut spec = own_job(who, mesh, 1).open().expect("good");
        spec.brain_set = vec![victim];
        let spec = SignedSpec::sign(who, &spec);
        let (job, facts) = (spec.id(), signed(who, mesh, spec.id(), vec![Fact::Submit(spec)]));
        frame_of(Message::Replicate { job, term: 1, facts })
    }),
    ("random bytes", |_, _, _| vec![Bytes::from((0..5_000_u32).map(|i| (i * 37 % 251) as u8).collect::<Vec<u8>>())]),
    ("an unknown tag", |_, _, _| vec![Bytes::from_static(&[9, 0x80])]),
    ("an empty frame", |_, _, _| vec![Bytes::new()]),
    ("a frame of too many messages", |_, _, _| {
        let many = vec![Message::Swim(Vec::new()); 5_000];
        let mut frame = vec![0];
        frame.extend(cbor::to_vec(&many));
        vec![frame.into()]
    }),
    ("a frame nested too deeply", |_, _, _| vec![[&[0][..], &[0x81; 100_000]].concat().into()]),
    ("a failure detector packet of garbage", |_, _, _| frame_of(Message::Swim(vec![0xff; 600]))),
    ("a flood of bad frames", |_, _, _| vec![Bytes::from_static(&[7; 64]); 600]),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_that_lie_are_dropped_counted_and_named_once() {
    let rig = mesh(2).await;
    let node = &rig.nodes[0];
    let id = mesh_id(node).await;
    for (what, lie) in LIES {
        let before = refused(node, "Misbehaved").await;
        // Both know it, so that both may hear from it and of it.
        let mut liar = Member::join_all(&[node, &rig.nodes[1]], "run,submit").await;
        for frame in lie(&liar.who, id, node.id) {
            liar.say(node, frame);
        }
        liar.wait_dropped(node).await;
        eventually(what, || async { (refused(node, "Misbehaved").await > before).then_some(()) }).await;
        liar.mesh.shutdown().await;
        let lines = warnings(node, liar.who.id());
        // Why it was dropped, that it was refused, and that it was told to stay away: each at most once.
        assert!((1..=3).contains(&lines.len()), "{what}: {lines:#?}");
    }
    both_know_the_same(&rig).await;
    is_alive(node);
    is_alive(&rig.nodes[1]);
}

/// Gossip that does not decode goes no further, and its author is dropped.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gossip_garbage_drops_its_author() {
    let rig = mesh(1).await;
    let node = &rig.nodes[0];
    let mut liar = Member::join(node, "run").await;
    let counter = std::sync::atomic::AtomicU64::new(0);
    let before = refused(node, "Misbehaved").await;
    eventually("it is dropped", || async {
        let n = counter.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        liar.mesh.publish(Topic::Advert, gossip_frame(n, b"no advert at all"));
        tokio::time::sleep(Duration::from_millis(100)).await;
        (refused(node, "Misbehaved").await > before).then_some(())
    })
    .await;
    liar.wait_dropped(node).await;
    assert!((1..=3).contains(&warnings(node, liar.who.id()).len()), "{:#?}", warnings(node, liar.who.id()));
    is_alive(node);
}

/// A member with every role may still only say what is its own to say: results of others' work do not count.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn results_and_decisions_by_the_wrong_node_change_nothing() {
    let rig = mesh(2).await;
    let node = &rig.nodes[0];
    let mark = format!("4.0{}", std::process::id());
    let script = format!("sleep {mark}; echo real");
    let running = crate::support::Running::start(crate::support::command(
        &node.data_dir,
        &node.data_dir,
        &["run", "--name", "wanted", "--", "sh", "-c", &script],
    ));
    // The shell's own arguments name it too, and so do those of the command that waits.
    eventually("the task runs", || async { (processes_with(&mark).len() >= 3).then_some(()) }).await;
    let job = node.client().jobs(1).await.expect("jobs").swap_remove(0).id;
    let id = mesh_id(node).await;
    let fence = Fence { term: 1, epoch: 1 };
    let run = Run { start: 0, len: 1 };

    // A report under an award that is another's: recorded, and worth nothing.
    let reporter = Member::join(node, "run,submit").await;
    let items = vec![ReportItem::Plain { run, usage: Usage::default() }];
    let facts = signed(&reporter.who, id, job, vec![Fact::Report { fence, phase: 0, items }]);
    reporter.tell(node, Message::Report { lease: Lease { job, fence }, facts });
    let reported = |view: &[sinew_crdt_state::state::Event]| view.iter().any(|e| e.author == reporter.who.id());
    eventually("the report is on record", || async {
        let (view, timeline) = node.client().job(&job.to_string()).await.expect("the job");
        assert!(!view.is_ended(), "a stranger's report ended the job: {:?}", view.outcome);
        reported(&timeline).then_some(())
    })
    .await;

    // An accept, a finish and a cancel by nodes that may not.
    let wrong: [fn(NodeId) -> Fact; 3] = [
        |own| {
            let run = Run { start: 0, len: 1 };
            let fence = Fence { term: 1, epoch: 1 };
            let items = vec![Accepted { run, node: own, fence, outputs: Vec::new(), copy: None, again: 0 }];
            Fact::Accept { term: 1, phase: 0, items }
        },
        |_| Fact::Finish { term: 1, outcome: Outcome::Completed },
        |_| Fact::Cancel { reason: "I say so".to_owned() },
    ];
    for fact in wrong {
        let mut liar = Member::join(node, "run,submit").await;
        let facts = signed(&liar.who, id, job, vec![fact(liar.who.id())]);
        liar.tell(node, Message::Facts(facts));
        liar.wait_dropped(node).await;
        assert!(refused(node, "Misbehaved").await > 0);
        liar.mesh.shutdown().await;
    }
    reporter.mesh.shutdown().await;

    let ran = tokio::task::spawn_blocking(move || running.wait()).await.expect("waits");
    assert_eq!((ran.code, ran.stdout().as_str()), (0, "real\n"), "{ran}");
    let (view, _) = node.client().job(&job.to_string()).await.expect("the job");
    assert!(view.placements.iter().all(|p| rig.nodes.iter().any(|n| n.id == p.node)), "{:?}", view.placements);
}

/// A brain that awards one fence to two nodes, and tells each daemon in another order: both come to the same state.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_equivocating_pair_converges() {
    let rig = mesh(2).await;
    let (a, b) = (&rig.nodes[0], &rig.nodes[1]);
    let mesh = mesh_id(a).await;
    let liar = Member::join_all(&[a, b], "submit").await;
    let spec = own_job(&liar.who, mesh, 1);
    let job = spec.id();
    let fence = Fence { term: 1, epoch: 1 };
    let award = |node| Fact::Award { fence, node, slots: 1, lease_ms: 1_500 };
    let facts = signed(&liar.who, mesh, job, vec![Fact::Submit(spec), award(a.id), award(b.id)]);
    let (one, other) = (vec![0, 1, 2], vec![0, 2, 1]);
    let pick = |order: &[usize]| order.iter().map(|i| facts[*i].clone()).collect::<Vec<_>>();
    liar.tell(a, Message::Facts(pick(&one)));
    liar.tell(b, Message::Facts(pick(&other)));

    eventually("both have all three", || async {
        let of = |n: &LocalNode| n.client();
        let (left, right) = (of(a).job(&job.to_string()).await.ok()?, of(b).job(&job.to_string()).await.ok()?);
        let whole = |t: &[sinew_crdt_state::state::Event]| t.iter().filter(|e| e.author == liar.who.id()).count() == 3;
        (whole(&left.1) && whole(&right.1) && left == right).then_some(())
    })
    .await;
    both_know_the_same(&rig).await;
    // What the replicas hold, folded: the pair is counted, in either order.
    for order in [one, other] {
        let mut ledger = Ledger::new(mesh);
        for envelope in pick(&order) {
            ledger.admit(&envelope, |_| Some(Roles::ALL), unix_ms()).expect("good facts");
        }
        let state = &ledger.live(&job).expect("live").state;
        assert_eq!(state.equivocations.iter().copied().collect::<Vec<_>>(), [fence]);
    }
    // Two seals of one job are the same lie once more: the ledgers agree that it is over.
    let seal = |receipts| Fact::Seal { term: 1, outcome: Outcome::Cancelled, receipts, anew: 0 };
    let seals = [seal(Vec::new()), seal(vec![(a.id, FactId([1; 32]))])];
    let seals = signed(&liar.who, mesh, job, seals.to_vec());
    liar.tell(a, Message::Facts(vec![seals[0].clone()]));
    liar.tell(b, Message::Facts(vec![seals[1].clone()]));
    eventually("both have sealed it", || async {
        let sealed = |s: sinew_node::api::StatusView| s.ledger_entries.1 == 1;
        let (left, right) = (a.client().status().await.ok()?, b.client().status().await.ok()?);
        (sealed(left) && sealed(right)).then_some(())
    })
    .await;
    both_know_the_same(&rig).await;
    liar.mesh.shutdown().await;
    is_alive(a);
}

async fn both_know_the_same(rig: &LocalMesh) {
    eventually("the ledgers' roots are equal", || async {
        let mut roots = Vec::new();
        for node in &rig.nodes {
            roots.push(node.client().status().await.ok()?.ledger_root);
        }
        roots.windows(2).all(|w| w[0] == w[1]).then_some(())
    })
    .await;
}
