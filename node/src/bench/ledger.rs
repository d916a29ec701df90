//! Facts through the ledger on one core: verified, merged, folded, indexed; with few and with many jobs known.

use std::time::Instant;

use serde_json::{Value, json};
use sinew_crdt_state::certificate::Roles;
use sinew_crdt_state::envelope::{Envelope, seal_batch};
use sinew_crdt_state::fact::{Fact, Fence, Outcome, ReportItem, Run, Statement, Usage};
use sinew_crdt_state::identity::{Domain, Identity, verify};
use sinew_crdt_state::ids::{DiskId, JobId, MeshId};
use sinew_crdt_state::ledger::{Ledger, SealedEntry};
use sinew_crdt_state::spec::{
    Batch, Builtin, JobSpec, Limits, Program, Resources, Retry, SignedSpec, SpecFields, Strategy, Work,
};

use super::meter::rss_bytes;

pub(crate) const MESH: MeshId = MeshId([7; 32]);
/// Facts of one job from submit to seal, as a single task leaves them.
const FACTS_PER_JOB: u32 = 8;
/// Facts signed together: what a busy brain's flush holds.
const BATCH: usize = 64;

fn spec(identity: &Identity, serial: u64) -> SignedSpec {
    let work = Work::Batch(Batch {
        program: Program::Builtin(Builtin::Noop),
        tasks: 1,
        env: std::collections::BTreeMap::new(),
        inputs: Vec::new(),
        gather: None,
        outputs: Vec::new(),
    });
    let spec = JobSpec::from(SpecFields {
        mesh: MESH,
        submitter: identity.id(),
        serial,
        submitted_ms: 1,
        brain_set: vec![identity.id()],
        brain_disks: vec![DiskId(1)],
        name: "bench".to_owned(),
        work,
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
    SignedSpec::sign(identity, &spec)
}

/// The facts of one whole job.
pub(crate) fn facts_of(identity: &Identity, serial: u64) -> (JobId, Vec<(JobId, Statement)>) {
    let signed = spec(identity, serial);
    let job = signed.id();
    let fence = Fence { term: 1, epoch: 1 };
    let node = identity.id();
    let run = Run { start: 0, len: 1 };
    let accepted = sinew_crdt_state::fact::Accepted { run, node, fence, outputs: Vec::new(), copy: None, again: 0 };
    let facts = vec![
        Fact::Submit(signed),
        Fact::Bid { slots: 1, score: 50, held_bytes: 0, start_in_ms: 0 },
        Fact::Award { fence, node, slots: 1, lease_ms: 1_500 },
        Fact::Claim { fence, slots: 1 },
        Fact::Report { fence, phase: 0, items: vec![ReportItem::Plain { run, usage: Usage::default() }] },
        Fact::Accept { term: 1, phase: 0, items: vec![accepted] },
        Fact::Finish { term: 1, outcome: Outcome::Completed },
        Fact::Seal { term: 1, outcome: Outcome::Completed, receipts: Vec::new(), anew: 0 },
    ];
    (job, facts.into_iter().map(|fact| (job, Statement { at_ms: serial, fact })).collect())
}

/// Signed facts of `jobs` jobs, in the order in which a busy node would hear them.
fn envelopes(identity: &Identity, first: u64, jobs: u64) -> Vec<Envelope> {
    let statements: Vec<_> = (first..first + jobs).flat_map(|serial| facts_of(identity, serial).1).collect();
    statements.chunks(BATCH).flat_map(|batch| seal_batch(identity, MESH, batch)).map(|(_, e)| e).collect()
}

/// Admits everything; microseconds per fact.
fn admit(ledger: &mut Ledger, envelopes: &[Envelope], compact: bool) -> anyhow::Result<f64> {
    let began = Instant::now();
    for envelope in envelopes {
        ledger.admit(envelope, |_| Some(Roles::ALL), 1)?;
        if compact && ledger.sealed(&envelope.entry).is_some() {
            ledger.dehydrate(&envelope.entry);
            ledger.forget(&envelope.entry);
        }
    }
    #[expect(clippy::cast_precision_loss, reason = "a mean")]
    let count = envelopes.len() as f64;
    Ok(began.elapsed().as_secs_f64() * 1e6 / count)
}

pub(super) fn run(facts: u32, jobs: u32) -> anyhow::Result<Value> {
    let identity = Identity::from_seed([1; 32]);
    let count = u64::from((facts / FACTS_PER_JOB).max(1));
    let known = u64::from(jobs);
    let batch = envelopes(&identity, 1, count);
    let mut small = Ledger::new(MESH);
    let few_us = admit(&mut small, &batch, false)?;
    let mut large = Ledger::new(MESH);
    let rss_before = rss_bytes(std::process::id());
    for serial in 1_000_000_000..1_000_000_000 + known {
        let id = JobId(*blake3::hash(&serial.to_le_bytes()).as_bytes());
        let seal = sinew_crdt_state::ids::FactId(id.0);
        large.restore_sealed(
            id,
            SealedEntry { submitter: identity.id(), serial, seal, sealed_ms: 0, lacks_outputs: false, says: 0 },
        );
    }
    let sealed_bytes = rss_bytes(std::process::id()).saturating_sub(rss_before);
    let many_us = admit(&mut large, &batch, false)?;
    // History: jobs that come, end and are forgotten must leave nothing behind but a watermark.
    let mut history = Ledger::new(MESH);
    let mut compacted_us = 0.0;
    let rounds = known.div_ceil(count).clamp(2, 64);
    let mut rss_before = 0;
    for round in 0..rounds {
        if round == 1 {
            // The first round pays for the facts under way, which is not history.
            rss_before = rss_bytes(std::process::id());
        }
        let more = envelopes(&identity, 1 + round * count, count);
        compacted_us += admit(&mut history, &more, true)?;
    }
    #[expect(clippy::cast_precision_loss, reason = "a mean")]
    let compacted_us = compacted_us / rounds as f64;
    let history_bytes = rss_bytes(std::process::id()).saturating_sub(rss_before);
    Ok(json!({
        "bench": "ledger", "facts": batch.len(), "jobs_known": known, "floor_verify_us": verify_us(&identity),
        "admit_us_per_fact_few_known": few_us, "admit_us_per_fact_many_known": many_us,
        "facts_per_s_per_core": 1e6 / many_us, "ratio_many_to_few": many_us / few_us,
        "admit_and_forget_us_per_fact": compacted_us, "jobs_forgotten": rounds * count,
        "rss_growth_of_forgotten_bytes": history_bytes, "rss_per_sealed_entry_bytes": sealed_bytes / known.max(1),
    }))
}

/// What one strict signature check costs: the floor of a fact that is signed alone.
fn verify_us(identity: &Identity) -> f64 {
    const TIMES: u32 = 2_000;
    let signature = identity.sign(Domain::Envelope, &[0; 64]);
    let began = Instant::now();
    for _ in 0..TIMES {
        let checked = verify(identity.id().as_bytes(), Domain::Envelope, &[0; 64], &signature);
        std::hint::black_box(checked).ok();
    }
    began.elapsed().as_secs_f64() * 1e6 / f64::from(TIMES)
}
