//! Small hand-made views for tests.

use sinew_crdt_state::error_code::ErrorCode;
use sinew_crdt_state::fact::{Failure, Outcome, Output};
use sinew_crdt_state::ids::{Hash, JobId, NodeId};
use sinew_crdt_state::spec::BlobRef;
use sinew_crdt_state::state::Status;
use sinew_scheduler::view::{JobView, OutputView, PhaseView, ShareView};

use super::super::table::WIDTH;
use crate::api::{JobLine, PeerView};

/// When the hand-made jobs were submitted: 2026-07-31 11:59:29 UTC.
pub(crate) const SUBMITTED_MS: u64 = 1_785_499_169_000;

/// Fails unless every line fits.
pub(crate) fn assert_narrow(text: &str) {
    for line in text.lines() {
        assert!(line.chars().count() <= WIDTH, "{} columns: {line}", line.chars().count());
    }
}

pub(crate) fn peer(seed: u8, own: bool) -> PeerView {
    PeerView {
        node: NodeId([seed; 32]),
        own,
        state: "healthy".into(),
        roles: if own { "run,submit,admin".into() } else { "run,submit".into() },
        connected: !own,
        address: None,
        rtt_us: (!own).then_some(1_234),
        cpu_milli: Some((4_000, 3_500)),
        memory_bytes: Some((8 << 30, 3 << 29)),
        labels: Vec::new(),
        runners: "process".into(),
        about: "host linux x86_64 0.1.0".into(),
        offences: 0,
    }
}

pub(crate) fn job_line(seed: u8, status: &str) -> JobLine {
    JobLine {
        id: JobId([seed; 32]),
        name: "count".into(),
        kind: "batch".into(),
        status: status.into(),
        tasks: (4, 10),
        submitter: NodeId([7; 32]),
        submitted_ms: SUBMITTED_MS,
    }
}

pub(crate) fn failure(code: ErrorCode, exit: Option<i32>, message: &str, tail: &str) -> Failure {
    Failure { code, exit, message: message.into(), stderr_tail: tail.into(), retryable: false }
}

/// A round of 1,000 chunks on two nodes, 620 of them done.
pub(crate) fn view() -> JobView {
    let phase = |name: &str, tasks, done, running| PhaseView { name: name.into(), tasks, done, running };
    let share = |seed, done, slots| ShareView { node: NodeId([seed; 32]), done, slots };
    let output = |task, seed| OutputView {
        task,
        output: Output { name: "reduce".into(), blob: BlobRef { hash: Hash([seed; 32]), size: 1_536 } },
        node: NodeId([2; 32]),
        copy: Some(NodeId([3; 32])),
    };
    JobView {
        id: JobId([9; 32]),
        key: Hash([10; 32]),
        name: "wordcount".into(),
        kind: "map_reduce".into(),
        status: Status::Running,
        submitter: NodeId([1; 32]),
        submitted_ms: SUBMITTED_MS,
        brain: Some(NodeId([1; 32])),
        term: 1,
        brain_set: vec![NodeId([1; 32]), NodeId([2; 32]), NodeId([3; 32])],
        durability: "survives the loss of any one node".into(),
        phases: vec![phase("map", 1_000, 620, 8), phase("reduce", 4, 0, 0)],
        shares: vec![share(2, vec![310, 0], 4), share(3, vec![310, 0], 4)],
        placements: Vec::new(),
        outputs: vec![output(0, 4)],
        outcome: None,
        lost: Vec::new(),
        blocked: None,
        copied: None,
        cancelling: false,
        failures: Vec::new(),
    }
}

/// The round, failed for good in `phase` at `task` on node 2.
pub(crate) fn failed_view(phase: u8, task: u32, failure: Failure) -> JobView {
    let node = NodeId([2; 32]);
    JobView {
        status: Status::Failed,
        outcome: Some(Outcome::Failed { phase, task, node: Some(node), failure: failure.clone() }),
        failures: vec![(phase, task, node, failure)],
        ..view()
    }
}
