//! Small valid examples for each target: where fuzzing starts. Made by code, so that a change of a format changes them too.

use std::collections::BTreeMap;

use sinew_crdt_state::cbor;
use sinew_crdt_state::certificate::{Credential, Roles, Ticket, TicketBody};
use sinew_crdt_state::envelope::seal_batch;
use sinew_crdt_state::error_code::ErrorCode;
use sinew_crdt_state::fact::{
    Accepted, Executed, Fact, Failure, Fence, Outcome, Output, ReportItem, Run, Statement, Usage,
};
use sinew_crdt_state::ids::{DiskId, FactId, Hash, JobId, MeshId, NodeId};
use sinew_crdt_state::manifest::{JobDraft, program_from_text};
use sinew_crdt_state::program::Runners;
use sinew_crdt_state::reconcile::Index;
use sinew_crdt_state::spec::BlobRef;
use sinew_crdt_state::volume::Volumes;
use sinew_mesh::wire::{Hello, HelloMessage, JoinMessage};
use sinew_mesh::{JoinRefusal, RefusalKind};
use sinew_node::api::{ApiError, Reply, Request};
use sinew_node::frames::{
    AttemptLogs, AttemptRef, LogData, LogList, LogMessage, LogPart, LogRead, encode_log, encode_messages,
};
use sinew_node::secrets::wire::{Answer, Ask, Refusal};
use sinew_scheduler::membership::{Membership, MembershipConfig, MembershipEffect};
use sinew_scheduler::time::{Span, Time};
use sinew_scheduler::wire::{Advert, Assign, Card, Lease, LoadDigest, Message};

use crate::targets::{MESH, NOW_MS, ledger_job, who};

/// Valid inputs of the target called `name`.
pub(crate) fn seeds(name: &str) -> Vec<Vec<u8>> {
    match name {
        "frames" => frames(),
        "envelope" => {
            [vec![cbor::to_vec(&facts())], statements().iter().map(|(_, s)| cbor::to_vec(s)).collect()].concat()
        }
        "spec" => vec![cbor::to_vec(&ledger_job()), ledger_job().spec],
        "manifest" => manifests(),
        "ticket" => vec![ticket().to_string().into_bytes()],
        "credential" => vec![cbor::to_vec(&credential())],
        "hello" => {
            let addr = "/ip4/127.0.0.1/tcp/9000".parse().expect("an address");
            let hello = HelloMessage::Hello(Box::new(Hello::new(credential(), &[addr])));
            [hello, HelloMessage::Done, HelloMessage::Refused(RefusalKind::Forged)].iter().map(cbor::to_vec).collect()
        }
        "join" => {
            let ask = JoinMessage::Ask(Box::new(ticket()));
            let issued = JoinMessage::Issued(Box::new(credential()));
            [ask, issued, JoinMessage::Refused(JoinRefusal::Busy)].iter().map(cbor::to_vec).collect()
        }
        "membership" => packets(),
        "gossip" => vec![cbor::to_vec(&advert())],
        "mapfile" => vec![map_file()],
        "ledger" => vec![cbor::to_vec(&statements()), cbor::to_vec(&statements()[..9])],
        "reconcile" => {
            let mut index = Index::default();
            for n in 0..80 {
                index.set(JobId([n; 32]), Some(u128::from(n)));
            }
            let root = index.root();
            let mut claims = index.answer_claims(&[Index::default().root()]);
            // A few of the 256 say as much as all.
            claims.claims.truncate(16);
            vec![cbor::to_vec(&vec![root]), cbor::to_vec(&claims.claims), cbor::to_vec(&claims.listings)]
        }
        "api" => api(),
        "secrets" => {
            let ask = Ask { award: envelopes().swap_remove(2), phase: 0, task: 0 };
            let refusals = [Refusal::Denied("no".to_owned()), Refusal::Superseded, Refusal::Unknown("db".to_owned())];
            let answers = refusals.into_iter().map(Answer::Refused).chain([Answer::Sealed(vec![7; 80])]);
            std::iter::once(cbor::to_vec(&ask)).chain(answers.map(|answer| cbor::to_vec(&answer))).collect()
        }
        other => panic!("no seeds for {other}"),
    }
}

fn envelopes() -> Vec<sinew_crdt_state::envelope::Envelope> {
    let job = ledger_job().id();
    let facts: Vec<_> = statements().into_iter().take(3).map(|(_, s)| (job, s)).collect();
    seal_batch(&who(1), MESH, &facts).into_iter().map(|(_, e)| e).collect()
}

fn facts() -> sinew_crdt_state::envelope::Envelope {
    envelopes().swap_remove(1)
}

fn frames() -> Vec<Vec<u8>> {
    let job = JobId([1; 32]);
    let lease = Lease { job, fence: Fence { term: 1, epoch: 2 } };
    let run = Run { start: 0, len: 4 };
    let attempts = BTreeMap::from([(2, 1)]);
    let assign = Assign { lease, seq: 1, again: false, phase: 0, runs: vec![run], attempts };
    let messages = vec![
        Message::Facts(envelopes()),
        Message::Card(card()),
        Message::Load(load()),
        Message::Award { award: Box::new(facts()), bid: FactId([9; 32]), assign: assign.clone() },
        Message::Assign(assign),
        Message::Beat { seq: 3, leases: vec![(lease, 2)] },
        Message::BeatAck { seq: 3, renewed: vec![lease], kept: vec![lease], void: Vec::new() },
        Message::VoteRequest { job, term: 2, trial: false, have: vec![1, 2], pace: 1 },
        Message::Recall { submit: Box::new(facts()), disk: DiskId(9), have: vec![1] },
        Message::Recalled { job, disk: DiskId(9), remembers: true, known: vec![1, 2] },
        Message::Report { lease, facts: vec![facts()] },
        Message::Claims(vec![Index::default().root()]),
        Message::Want(vec![(job, vec![7])]),
        Message::WhoHolds { seq: 1, blobs: vec![(job, vec![Hash([3; 32])])] },
        Message::Holds { seq: 1, blobs: vec![(job, vec![Hash([3; 32])])] },
        Message::Keep { job, blobs: vec![BlobRef { hash: Hash([3; 32]), size: 9 }], holders: vec![NodeId([4; 32])] },
        Message::Kept { job, ok: true },
        Message::Blocked { lease, phase: 1, tasks: vec![0, 3], missing: vec![Hash([4; 32])] },
        Message::Fetching { job, copy: Some((0, 1)), done: 5, total: 9 },
        Message::Swim(vec![1, 2, 3]),
    ];
    let mut logs = vec![LogMessage::Subscribe(job), LogMessage::Unsubscribe(job)];
    logs.extend(log_messages(job));
    encode_messages(&messages)
        .into_iter()
        .map(|f| f.to_vec())
        .chain(logs.iter().map(|l| encode_log(l).to_vec()))
        .collect()
}

fn log_messages(job: JobId) -> [LogMessage; 4] {
    let (phase, task, attempt) = (0, 3, 1);
    let fence = Fence { term: 1, epoch: 2 };
    let bytes = b"hello\n".to_vec();
    let data = LogData { job, phase, task, attempt, stderr: true, offset: 9, bytes, fence: Some(fence), number: 2 };
    let of = AttemptRef { phase, task, fence, attempt, number: 2 };
    let part = LogPart { size: 6, hash: Some(Hash([5; 32])) };
    let logs = AttemptLogs { attempt: of, running: false, good: true, stdout: part, stderr: LogPart::default() };
    let record = Some(BlobRef { hash: Hash([6; 32]), size: 7 });
    [
        LogMessage::Data(data),
        LogMessage::List(job),
        LogMessage::Listed(LogList { job, attempts: vec![logs], last: true, record }),
        LogMessage::Read(LogRead { job, phase, task, attempt, stderr: false, offset: 6 }),
    ]
}

/// A job's life, by the authors that may state each part, and one equivocation.
fn statements() -> Vec<(u8, Statement)> {
    let fence = Fence { term: 1, epoch: 1 };
    let (run, usage) = (Run { start: 0, len: 8 }, Usage::default());
    let blob = BlobRef { hash: Hash([2; 32]), size: 7 };
    let output = Output { name: "stdout".to_owned(), blob };
    let failure = Failure {
        code: ErrorCode::Exit,
        exit: Some(3),
        message: "the program exited with status 3".to_owned(),
        stderr_tail: "oh\n".to_owned(),
        retryable: true,
    };
    let items = vec![
        ReportItem::Plain { run: Run { start: 2, len: 6 }, usage },
        ReportItem::Outputs { task: 0, outputs: vec![output.clone()], usage },
        ReportItem::Failed { task: 1, failure: failure.clone(), usage },
    ];
    let accepted =
        |run, outputs| Accepted { run, node: who(2).id(), fence, outputs, copy: Some(who(3).id()), again: 0 };
    let accept = vec![accepted(Run { start: 0, len: 1 }, vec![output]), accepted(run, Vec::new())];
    let receipt = Executed { tasks: 7, usage, outputs: Hash([4; 32]) };
    let award = |node| Fact::Award { fence, node, slots: 2, lease_ms: 1_500 };
    let facts = [
        (1, Fact::Bid { slots: 2, score: 5, held_bytes: 0, start_in_ms: 0 }),
        (0, award(who(2).id())),
        (0, award(who(3).id())),
        (1, Fact::Claim { fence, slots: 2 }),
        (1, Fact::Report { fence, phase: 0, items }),
        (0, Fact::Accept { term: 1, phase: 0, items: accept }),
        (2, Fact::Vote { term: 2, pace: 3 }),
        (2, Fact::Rejoin { disk: DiskId(9), term: 2 }),
        (1, Fact::Lead { term: 2, voters: vec![who(2).id(), who(3).id()], base: vec![7], pace: 3 }),
        (0, Fact::Revoke { fence, lost: true }),
        (0, Fact::Cancel { reason: "enough".to_owned() }),
        (1, Fact::Finish { term: 2, outcome: Outcome::Failed { phase: 0, task: 1, node: None, failure } }),
        (1, Fact::Receipt(receipt)),
        (
            1,
            Fact::Seal {
                term: 2,
                outcome: Outcome::Completed,
                receipts: vec![(who(2).id(), FactId([8; 32]))],
                anew: 0,
            },
        ),
    ];
    facts.into_iter().zip(NOW_MS..).map(|((author, fact), at_ms)| (author, Statement { at_ms, fact })).collect()
}

fn manifests() -> Vec<Vec<u8>> {
    let toml = "name = \"count\"\ntype = \"batch\"\ncpus = 0.5\nmemory = \"512MiB\"\ncopies = 2\nlabels = { zone = \"a\" }\n\
                [limits]\ntimeout = \"30s\"\noutput_max = \"1GiB\"\n[retry]\nattempts = 3\ndelay = \"200ms\"\n[env]\n\
                LEVEL = \"debug\"\n[batch]\ncommand = [\"python3\", \"x.py\"]\ntasks = 4\n\
                inputs = [\"x.py\", { inline = \"text\", to = \"a.txt\" }]\noutputs = [\"result.json\"]\n";
    let yaml = "type: map_reduce\nmap_reduce:\n  inputs: [texts]\n  split: bytes:16MiB\n  map: sinew:wordcount\n  \
                combine: sinew:sum\n  reduce: \"sinew:sum\"\n  partitions: 4\n";
    let json = "{\"type\": \"batch\", \"batch\": {\"command\": \"echo 'a b'\", \"tasks\": 2}}";
    let wrong = "type = \"batch\"\ncpus = -1\nmemry = 1\n[batch]\ntasks = \"many\"\n";
    [(1, toml), (2, yaml), (3, json), (0, json), (1, wrong)]
        .map(|(format, text)| [&[format], text.as_bytes()].concat())
        .to_vec()
}

fn ticket() -> Ticket {
    let body = TicketBody {
        mesh: MESH,
        name: "lab".to_owned(),
        issuer: who(1).id(),
        addrs: vec!["/ip4/127.0.0.1/tcp/9000".to_owned()],
        roles: Roles::RUN.union(Roles::SUBMIT),
        expires_ms: NOW_MS + 1_000,
    };
    Ticket::sign(&who(1), body)
}

fn credential() -> Credential {
    let key = who(8);
    let founder = Credential::found(&key, who(1).id(), NOW_MS, NOW_MS + 1_000);
    debug_assert_eq!(founder.mesh(), MeshId(key.id().0));
    founder.issue(&who(1), who(2).id(), Roles::RUN, NOW_MS, NOW_MS + 1_000)
}

fn card() -> Card {
    let labels = BTreeMap::from([("zone".to_owned(), "a".to_owned())]);
    Card {
        incarnation: 3,
        disk: DiskId(7),
        cpu_milli: 4_000,
        memory_bytes: 1 << 33,
        labels,
        runners: Runners::PROCESS,
        volumes: volumes(),
        about: "host, linux".to_owned(),
        nonce: 9,
        from: 4,
        seen: None,
        copies: true,
        fetching: true,
        logs: true,
        disk_bytes: 1 << 36,
        output_bytes_max: Some(1 << 30),
    }
}

fn load() -> LoadDigest {
    LoadDigest {
        cpu_milli_free: 1_000,
        memory_bytes_free: 1 << 30,
        running: 3,
        eligible: true,
        disk_failing: false,
        disk_bytes_taken: 1 << 35,
    }
}

fn advert() -> Advert {
    Advert {
        job: JobId([1; 32]),
        cpu_milli: 1_000,
        memory_bytes: 0,
        labels: BTreeMap::new(),
        runners: Runners::PROCESS,
        volumes: volumes(),
        disk_bytes: 1 << 30,
        output_bytes_max: 1 << 30,
    }
}

fn volumes() -> Volumes {
    BTreeMap::from([("sets".to_owned(), false), ("out".to_owned(), true)]).try_into().expect("names")
}

/// What real detectors say to the one under test in their first seconds.
fn packets() -> Vec<Vec<u8>> {
    let mut sessions = Vec::new();
    for seed in 1..=3_u8 {
        let mut peer = Membership::new(who(seed).id(), 1, [seed; 32], MembershipConfig::default());
        let mut now = Time(1_000_000);
        peer.peer_up(now, who(9).id());
        let mut session = Vec::new();
        for _ in 0..40 {
            now = now + Span::ms(200);
            peer.tick(now);
            while let Some(effect) = peer.poll_effect() {
                if let MembershipEffect::Send { bytes, .. } = effect
                    && let Ok(len) = u8::try_from(bytes.len())
                {
                    session.extend([seed - 1, 200, len]);
                    session.extend(bytes);
                }
            }
        }
        assert!(!session.is_empty(), "a detector says something in eight seconds");
        sessions.push(session);
    }
    sessions
}

fn map_file() -> Vec<u8> {
    let (lines, header) = (b"a\t1\nb\t2\n", 16 + 2 * 24_u64);
    let mut out = b"SINEWMAP".to_vec();
    out.extend(1_u32.to_le_bytes());
    out.extend(2_u32.to_le_bytes());
    for field in [header, 8, 2, header + 8, 0, 0] {
        out.extend(field.to_le_bytes());
    }
    out.extend(lines);
    out
}

fn api() -> Vec<Vec<u8>> {
    let draft = JobDraft::batch(program_from_text("echo hi").expect("a program"));
    let job = JobId([1; 32]);
    let requests = [
        Request::Status,
        Request::Jobs { limit: 3 },
        Request::Submit { draft: Box::new(draft) },
        Request::Logs { job: job.to_string(), task: Some(1), attempt: None, follow: true },
        Request::BlobGet { hash: Hash([2; 32]), out: "/tmp/x".into() },
    ];
    let replies = [
        Reply::Submitted { job, alone: None },
        Reply::Output { task: 1, stderr: false, data: "aGk=".to_owned(), phase: 0, attempt: 1 },
        Reply::Error(ApiError::denied("no")),
        Reply::Done,
    ];
    let json = |v: Result<Vec<u8>, serde_json::Error>| v.expect("JSON");
    requests
        .iter()
        .map(|r| json(serde_json::to_vec(r)))
        .chain(replies.iter().map(|r| json(serde_json::to_vec(r))))
        .collect()
}
