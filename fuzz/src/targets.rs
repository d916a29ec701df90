//! One function per decoder: it must take any bytes without a panic, and what it accepts must hold what is asserted here.
//! Pure: no files, no sockets, no clock, so that libFuzzer and plain tests can run the same code.

use std::collections::BTreeMap;

use sinew_crdt_state::cbor;
use sinew_crdt_state::certificate::{Credential, Roles, Ticket};
use sinew_crdt_state::envelope::{Envelope, VerifiedRoots, seal_batch};
use sinew_crdt_state::fact::{Fact, Fence, Statement};
use sinew_crdt_state::identity::{Domain, Identity};
use sinew_crdt_state::ids::{DiskId, JobId, MeshId, NodeId};
use sinew_crdt_state::ledger::{Admitted, Ledger};
use sinew_crdt_state::manifest::{self, Format};
use sinew_crdt_state::reconcile::{Claim, Index, Listing};
use sinew_crdt_state::rules::brain_of;
use sinew_crdt_state::spec::{
    Batch, Builtin, JobSpec, Limits, Program, Resources, Retry, SignedSpec, SpecFields, Strategy, Work,
};
use sinew_mesh::wire;
use sinew_node::api::{Reply, Request};
use sinew_node::exec::mapfile::MapIndex;
use sinew_node::frames::{self, Frame};
use sinew_node::secrets::holder::judge;
use sinew_node::secrets::seal::{self, Purpose};
use sinew_node::secrets::wire as secret_wire;
use sinew_scheduler::membership::{Membership, MembershipConfig};
use sinew_scheduler::time::{Span, Time};
use sinew_scheduler::wire::Advert;

/// The mesh of every target.
pub const MESH: MeshId = MeshId([5; 32]);
/// A time at which the seeds' certificates and tickets are good.
pub const NOW_MS: u64 = 1_700_000_000_000;
/// Most statements that one input may make the ledger sign and verify: the rest of the time goes to variety.
const STATEMENTS_MAX: usize = 24;

/// A target's name and body.
pub type Target = (&'static str, fn(&[u8]));

/// Every target.
pub const TARGETS: [Target; 15] = [
    ("frames", frames),
    ("envelope", envelope),
    ("spec", spec),
    ("manifest", manifest),
    ("ticket", ticket),
    ("credential", credential),
    ("hello", hello),
    ("join", join),
    ("membership", membership),
    ("gossip", gossip),
    ("mapfile", mapfile),
    ("ledger", ledger),
    ("reconcile", reconcile),
    ("api", api),
    ("secrets", secrets),
];

/// The identity number `seed`.
pub fn who(seed: u8) -> Identity {
    Identity::from_seed([seed; 32])
}

/// A frame between two daemons: what is read is written back the same.
pub fn frames(data: &[u8]) {
    match frames::decode(data) {
        Ok(Frame::Core(messages)) => {
            // Many messages may need several frames.
            let mut again = Vec::new();
            for frame in frames::encode_messages(&messages) {
                let Ok(Frame::Core(part)) = frames::decode(&frame) else { panic!("a frame of ours does not decode") };
                again.extend(part);
            }
            assert_eq!(again, messages);
        }
        Ok(Frame::Log(message)) => {
            assert_eq!(frames::decode(&frames::encode_log(&message)), Ok(Frame::Log(message)));
        }
        Err(_) => {}
    }
}

/// An envelope as it came, and a statement under a good signature.
pub fn envelope(data: &[u8]) {
    if let Ok(envelope) = cbor::from_slice::<Envelope>(data)
        && let Ok(opened) = envelope.open(MESH, &mut VerifiedRoots::default())
    {
        assert_eq!(opened.id, envelope.fact_id());
        let mut moved = envelope.clone();
        moved.entry.0[0] ^= 1;
        assert!(moved.open(MESH, &mut VerifiedRoots::default()).is_err(), "a signature covers its entry");
    }
    if let Ok(statement) = cbor::from_slice::<Statement>(data) {
        let (id, sealed) = seal_batch(&who(1), MESH, &[(JobId([1; 32]), statement.clone())]).swap_remove(0);
        if let Ok(opened) = sealed.open(MESH, &mut VerifiedRoots::default()) {
            assert_eq!((opened.id, opened.statement), (id, statement));
        }
    }
}

/// A signed spec as it came, and the same bytes under a good signature.
pub fn spec(data: &[u8]) {
    if let Ok(signed) = cbor::from_slice::<SignedSpec>(data) {
        use_spec(&signed);
    }
    let signature = who(1).sign(Domain::Spec, data);
    use_spec(&SignedSpec { spec: data.to_vec(), signature });
}

fn use_spec(signed: &SignedSpec) {
    let Ok(spec) = signed.open() else { return };
    assert!(matches!(spec.brain_set.len(), 1 | 3) && spec.majority() <= spec.brain_set.len());
    assert!((1..=4).all(|term| brain_of(&spec, term).is_some()) && brain_of(&spec, 0).is_none());
    let _ = (signed.id(), spec.phases(), spec.input_blobs(), spec.program(0), spec.program(1));
}

/// A manifest in the format that the first byte picks; what is accepted is accepted again after its way through JSON.
pub fn manifest(data: &[u8]) {
    let Some((first, text)) = data.split_first() else { return };
    let format = [None, Some(Format::Toml), Some(Format::Yaml), Some(Format::Json)][usize::from(first % 4)];
    match manifest::parse(text, format) {
        Ok(mut draft) => {
            draft.check().expect("what was read is checked");
            let json = serde_json::to_vec(&draft).expect("a draft is JSON");
            assert_eq!(serde_json::from_slice::<manifest::JobDraft>(&json).expect("and reads back"), draft);
            draft.anchor_paths("/base");
            let _ = (draft.display_name(), draft.files().len());
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// A ticket in its printed form.
pub fn ticket(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(ticket) = text.parse::<Ticket>() {
        assert_eq!(ticket.to_string().parse::<Ticket>().expect("printed"), ticket);
        let _ = ticket.verify(NOW_MS);
    }
}

/// A certificate chain.
pub fn credential(data: &[u8]) {
    let Ok(credential) = cbor::from_slice::<Credential>(data) else { return };
    let _ = (credential.mesh(), credential.roles());
    if let Some(node) = credential.node()
        && credential.verify(credential.mesh(), node, NOW_MS).is_ok()
    {
        assert!(credential.verify(credential.mesh(), NodeId([0xee; 32]), NOW_MS).is_err());
        assert!(credential.verify(credential.mesh(), node, u64::MAX / 2).is_err(), "nothing is good for ever");
    }
}

/// The membership exchange.
pub fn hello(data: &[u8]) {
    if let Ok(wire::HelloMessage::Hello(hello)) = wire::decode_hello(data) {
        let _ = (hello.addrs(), hello.credential.verify(MESH, who(2).id(), NOW_MS));
    }
    let _ = sinew_crdt_state::pack::unpack(data, 1 << 20);
    let _ = sinew_mesh::twin::decode_twin(data);
    for max in [0, 16, 1 << 20] {
        if let Ok(Some(len)) = wire::frame_len(data, max) {
            assert!(len <= max);
        }
    }
}

/// The join exchange.
pub fn join(data: &[u8]) {
    match wire::decode_join(data) {
        Ok(wire::JoinMessage::Ask(ticket)) => drop(ticket.verify(NOW_MS)),
        Ok(wire::JoinMessage::Issued(credential)) => drop(credential.verify(MESH, who(2).id(), NOW_MS)),
        Ok(wire::JoinMessage::Refused(_)) | Err(_) => {}
    }
}

/// A question for secrets, its answer, and what is sealed in one. A stranger's question gets nothing.
pub fn secrets(data: &[u8]) {
    if let Ok(ask) = secret_wire::decode_ask(data) {
        assert_eq!(secret_wire::decode_ask(&cbor::to_vec(&ask)), Ok(ask.clone()));
        let (signed, mut ledger) = (ledger_job(), Ledger::new(MESH));
        let submit = Statement { at_ms: NOW_MS, fact: Fact::Submit(signed.clone()) };
        let (_, submit) = seal_batch(&who(1), MESH, &[(signed.id(), submit)]).swap_remove(0);
        ledger.admit(&submit, |_| Some(Roles::ALL), NOW_MS).expect("a job");
        let judged = judge(&ledger, MESH, who(1).id(), who(9).id(), Some(Roles::RUN), &ask);
        assert!(judged.is_err(), "node 9 has no award");
    }
    if let Ok(secret_wire::Answer::Sealed(sealed)) = secret_wire::decode_answer(data) {
        let fence = Fence { term: 1, epoch: 1 };
        let purpose = Purpose { job: JobId([1; 32]), fence, phase: 0, task: 0, asker: who(9).id() };
        assert!(seal::open(&who(9), &purpose, &sealed).is_err(), "nobody sealed anything to node 9");
    }
}

/// Failure detector packets, one after the other with time between them: a byte each for sender, pause and length.
pub fn membership(mut data: &[u8]) {
    let members = [who(1).id(), who(2).id(), who(3).id()];
    let mut membership = Membership::new(who(9).id(), 7, [3; 32], MembershipConfig::default());
    let mut now = Time(1_000_000);
    for node in members {
        membership.peer_up(now, node);
    }
    while let [from, pause, len, rest @ ..] = data {
        let (packet, rest) = rest.split_at(usize::from(*len).min(rest.len()));
        data = rest;
        now = now + Span::ms(u64::from(*pause));
        let _ = membership.receive(now, members[usize::from(from % 3)], packet);
        membership.tick(now);
        let mut effects = 0;
        while membership.poll_effect().is_some() {
            effects += 1;
            assert!(effects < 1_000, "one packet must not make a flood");
        }
        // This node itself is one of them.
        assert!(membership.iter().count() <= members.len() + 1, "a packet cannot make members");
    }
}

/// Gossip payloads.
pub fn gossip(data: &[u8]) {
    if let Ok(advert) = cbor::from_slice::<Advert>(data) {
        assert_eq!(cbor::from_slice::<Advert>(&cbor::to_vec(&advert)), Ok(advert));
    }
}

/// The header of a map output from another node.
pub fn mapfile(data: &[u8]) {
    let _ = MapIndex::header_len(data);
    for len in [data.len() as u64, u64::MAX] {
        if let Ok(index) = MapIndex::parse(data, len) {
            assert_eq!(index.file_len(), len);
            for (i, entry) in (0..).zip(index.entries()) {
                let range = index.range_of(i).expect("a partition");
                assert!(range.start <= range.end && range.end <= len && range.start == entry.offset);
            }
            assert!(data.starts_with(&index.encode()));
        }
    }
}

/// The job that the ledger's statements are about, led by its submitter, with two stewards.
pub fn ledger_job() -> SignedSpec {
    let program = Program::Builtin(Builtin::Noop);
    let batch =
        Batch { program, tasks: 8, env: BTreeMap::new(), inputs: Vec::new(), gather: None, outputs: Vec::new() };
    let spec = JobSpec::from(SpecFields {
        mesh: MESH,
        submitter: who(1).id(),
        serial: 1,
        submitted_ms: NOW_MS,
        brain_set: vec![who(1).id(), who(2).id(), who(3).id()],
        brain_disks: vec![DiskId(1), DiskId(2), DiskId(3)],
        name: "fuzz".to_owned(),
        work: Work::Batch(batch),
        resources: Resources::default(),
        limits: Limits::default(),
        retry: Retry::default(),
        labels: BTreeMap::new(),
        strategy: Strategy::default(),
        copies: 1,
        network: sinew_crdt_state::network::Network::default(),
        secrets: Vec::new(),
        volumes: Vec::new(),
        alone: None,
        submit_key: None,
        pace: 1,
    });
    SignedSpec::sign(&who(1), &spec)
}

/// Statements by members of all kinds, admitted forwards and backwards: both ledgers come to the same.
pub fn ledger(data: &[u8]) {
    let Ok(statements) = cbor::from_slice::<Vec<(u8, Statement)>>(data) else { return };
    let signed = ledger_job();
    let job = signed.id();
    let seal = |author: u8, statement: Statement| seal_batch(&who(author), MESH, &[(job, statement)]).swap_remove(0).1;
    let submit = seal(1, Statement { at_ms: NOW_MS, fact: Fact::Submit(signed) });
    let envelopes: Vec<Envelope> =
        statements.into_iter().take(STATEMENTS_MAX).map(|(author, s)| seal(author % 5 + 1, s)).collect();
    let admitted = |order: &[&Envelope]| {
        let mut ledger = Ledger::new(MESH);
        ledger.admit(&submit, |_| Some(Roles::ALL), NOW_MS).expect("a good spec");
        // A seal waits for what it seals, so what was refused is offered again, as anti-entropy does.
        while order.iter().filter(|e| matches!(ledger.admit(e, roles, NOW_MS), Ok(Admitted::New(_)))).count() > 0 {}
        ledger
    };
    let forwards: Vec<&Envelope> = envelopes.iter().collect();
    let backwards: Vec<&Envelope> = envelopes.iter().rev().collect();
    let (there, back) = (admitted(&forwards), admitted(&backwards));
    assert_eq!(there.index().root(), back.index().root());
    let state = &there.live(&job).expect("live").state;
    let _ = (state.status(), state.phase(), state.outcome(), sinew_scheduler::view::from_state(job, state));
    if there.sealed(&job).is_none() {
        let other = &back.live(&job).expect("live").state;
        assert_eq!(sinew_scheduler::view::from_state(job, state), sinew_scheduler::view::from_state(job, other));
        assert_eq!(state.equivocations, other.equivocations);
    }
}

/// Members 1 to 3 may do everything, 4 may only submit, 5 is unknown.
fn roles(node: NodeId) -> Option<Roles> {
    (1..=4).find(|n| who(*n).id() == node).map(|n| if n == 4 { Roles::SUBMIT } else { Roles::ALL })
}

/// Anti-entropy questions: the answer to one message is bounded by what we hold, not by what was asked.
pub fn reconcile(data: &[u8]) {
    let mut index = Index::default();
    for n in 0..200_u8 {
        let mut id = [n; 32];
        id[0] = n % 3;
        index.set(JobId(id), Some(u128::from(n) << 64));
    }
    if let Ok(claims) = cbor::from_slice::<Vec<Claim>>(data) {
        let reply = index.answer_claims(&claims);
        let asked = claims.len().min(512);
        assert!(reply.claims.len() <= asked * 256 && reply.listings.len() <= asked);
        assert!(reply.listings.iter().all(|l| l.items.len() <= index.len()));
    }
    if let Ok(listings) = cbor::from_slice::<Vec<Listing>>(data) {
        let reply = index.answer_listings(&listings);
        let named: usize = listings.iter().map(|l| l.items.len()).sum();
        assert!(reply.wanted.len() <= named && reply.listings.len() <= listings.len());
    }
}

/// A line of the local API, either way.
pub fn api(data: &[u8]) {
    if let Ok(request) = serde_json::from_slice::<Request>(data) {
        let line = serde_json::to_vec(&request).expect("JSON");
        assert_eq!(serde_json::from_slice::<Request>(&line).expect("reads back"), request);
    }
    if let Ok(reply) = serde_json::from_slice::<Reply>(data) {
        assert!(!serde_json::to_vec(&reply).expect("JSON").is_empty());
    }
}
