//! What a scenario submits: a job, and how its tasks will behave when they run.

use std::collections::BTreeMap;

use sinew_crdt_state::error_code::ErrorCode;
use sinew_crdt_state::fact::Failure;
use sinew_crdt_state::ids::Hash;
use sinew_crdt_state::spec::{Batch, BlobRef, Limits, MapReduce, Phase, Program, Resources, Retry, Strategy, Work};
use sinew_scheduler::io::NewJob;
use sinew_scheduler::time::Span;

use crate::distribution::Distribution;

/// Size of a modelled blob, unless a plan says otherwise.
const BLOB_LEN: u64 = 10_000;

/// A job and the behaviour of its tasks.
#[derive(Debug, Clone)]
pub struct Plan {
    work: Shape,
    cpu_milli: u32,
    retry: Retry,
    limit: Option<Span>,
    copies: u8,
    strategy: Strategy,
    outputs: bool,
    /// What the outputs are called, where they are the same as another job's.
    equal: Option<&'static str>,
    duration: Span,
    spread: Option<Distribution>,
    failing_chance: u64,
    blob_len: u64,
    input_len: Option<u64>,
    jitter: bool,
    slow: BTreeMap<(Phase, u32), Span>,
    /// How often tasks are given back first, and then fail.
    failing: BTreeMap<(Phase, u32), (u32, u32)>,
    fatal: BTreeMap<(Phase, u32), ErrorCode>,
}

#[derive(Debug, Clone, Copy)]
enum Shape {
    Batch { tasks: u32 },
    Round { chunks: u32, partitions: u32 },
}

/// A batch of one task that takes 100 ms and leaves nothing.
#[must_use]
pub fn job() -> Plan {
    Plan {
        work: Shape::Batch { tasks: 1 },
        cpu_milli: 1_000,
        retry: Retry { attempts: 3, delay_ms: 100 },
        limit: None,
        copies: 2,
        strategy: Strategy::Binpack,
        outputs: false,
        equal: None,
        duration: Span::ms(100),
        spread: None,
        failing_chance: 0,
        blob_len: BLOB_LEN,
        input_len: None,
        jitter: true,
        slow: BTreeMap::new(),
        failing: BTreeMap::new(),
        fatal: BTreeMap::new(),
    }
}

/// A map-reduce round; every task leaves one blob.
#[must_use]
pub fn round(chunks: u32, partitions: u32) -> Plan {
    Plan { work: Shape::Round { chunks, partitions }, outputs: true, strategy: Strategy::Spread, ..job() }
}

impl Plan {
    /// So many tasks.
    #[must_use]
    pub fn tasks(mut self, tasks: u32) -> Self {
        self.work = Shape::Batch { tasks };
        self
    }

    /// Cores per task.
    #[must_use]
    pub fn cpus(mut self, cpus: f64) -> Self {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a few cores in a test")]
        let milli = (cpus * 1_000.0) as u32;
        self.cpu_milli = milli;
        self
    }

    /// How long each task takes, give or take a tenth.
    #[must_use]
    pub const fn lasting(mut self, duration: Span) -> Self {
        self.duration = duration;
        self
    }

    /// How long each attempt takes, microseconds on a machine of usual speed.
    #[must_use]
    pub const fn taking(mut self, microseconds: Distribution) -> Self {
        self.spread = Some(microseconds);
        self
    }

    /// So many of 10,000 attempts fail with `E_EXIT`.
    #[must_use]
    pub const fn failing_at_random(mut self, per_ten_thousand: u64) -> Self {
        self.failing_chance = per_ten_thousand;
        self
    }

    /// The size of each blob that goes in or comes out, bytes.
    #[must_use]
    pub const fn blobs_of(mut self, bytes: u64) -> Self {
        self.blob_len = bytes;
        self
    }

    /// The size of each blob that goes in, bytes.
    #[must_use]
    pub const fn inputs_of(mut self, bytes: u64) -> Self {
        self.input_len = Some(bytes);
        self
    }

    /// How long each task takes, exactly.
    #[must_use]
    pub const fn lasting_exactly(mut self, duration: Span) -> Self {
        self.duration = duration;
        self.jitter = false;
        self
    }

    /// One task takes longer, every time.
    #[must_use]
    pub fn slow_task(mut self, phase: Phase, task: u32, duration: Span) -> Self {
        self.slow.insert((phase, task), duration);
        self
    }

    /// Each task leaves a blob.
    #[must_use]
    pub const fn with_outputs(mut self) -> Self {
        self.outputs = true;
        self
    }

    /// Each task leaves a blob, the same as any other job's of this kind, and its inputs are the same too.
    #[must_use]
    pub const fn with_equal_outputs(mut self, kind: &'static str) -> Self {
        self.outputs = true;
        self.equal = Some(kind);
        self
    }

    /// Nodes that must hold each output.
    #[must_use]
    pub const fn copies(mut self, copies: u8) -> Self {
        self.copies = copies;
        self
    }

    /// Spread over the emptiest nodes first.
    #[must_use]
    pub const fn spread(mut self) -> Self {
        self.strategy = Strategy::Spread;
        self
    }

    /// Failed attempts tolerated per task.
    #[must_use]
    pub const fn retries(mut self, attempts: u32) -> Self {
        self.retry.attempts = attempts;
        self
    }

    /// A task's attempt may take so long. The model's machines do not end those that do: give more than tasks take.
    #[must_use]
    pub const fn limit(mut self, limit: Span) -> Self {
        self.limit = Some(limit);
        self
    }

    /// A task's first attempts come back because their nodes cannot run it, with `E_LOST`.
    #[must_use]
    pub fn given_back(mut self, phase: Phase, task: u32, times: u32) -> Self {
        self.failing.entry((phase, task)).or_default().0 = times;
        self
    }

    /// A task's first attempts fail with `E_EXIT`.
    #[must_use]
    pub fn failing(mut self, phase: Phase, task: u32, times: u32) -> Self {
        self.failing.entry((phase, task)).or_default().1 = times;
        self
    }

    /// A task fails with an error that no retry cures.
    #[must_use]
    pub fn fatal(mut self, phase: Phase, task: u32, code: ErrorCode) -> Self {
        self.fatal.insert((phase, task), code);
        self
    }

    pub(crate) fn spread_of(&self, phase: Phase, task: u32) -> Option<Distribution> {
        self.spread.filter(|_| !self.slow.contains_key(&(phase, task)))
    }

    pub(crate) const fn failing_chance(&self) -> u64 {
        self.failing_chance
    }

    pub(crate) const fn cpu_milli(&self) -> u32 {
        self.cpu_milli
    }

    pub(crate) const fn is_copied(&self) -> bool {
        self.copies > 1
    }

    /// How many tasks each phase has.
    pub(crate) fn tasks_by_phase(&self) -> Vec<u32> {
        match self.work {
            Shape::Batch { tasks } => vec![tasks],
            Shape::Round { chunks, partitions } => vec![chunks, partitions],
        }
    }

    /// Blobs that the submitter has before it submits.
    pub(crate) fn inputs(&self, name: &str) -> Vec<BlobRef> {
        match self.work {
            Shape::Batch { .. } => Vec::new(),
            Shape::Round { .. } => {
                let name = self.equal.unwrap_or(name);
                vec![self.blob(name, "table", 0, 0), self.blob(name, "input", 0, 0)]
            }
        }
    }

    pub(crate) fn new_job(&self, name: &str) -> NewJob {
        let program = || Program::Exec(vec!["work".to_owned()]);
        let work = match self.work {
            Shape::Batch { tasks } => Work::Batch(Batch {
                program: program(),
                tasks,
                env: BTreeMap::new(),
                inputs: Vec::new(),
                gather: None,
                outputs: Vec::new(),
            }),
            Shape::Round { chunks, partitions } => Work::MapReduce(Box::new(MapReduce {
                chunk_table: self.blob(self.equal.unwrap_or(name), "table", 0, 0),
                chunks,
                inputs: vec![self.blob(self.equal.unwrap_or(name), "input", 0, 0)],
                map: program(),
                combine: None,
                reduce: program(),
                partitions,
                files: Vec::new(),
                env: BTreeMap::new(),
            })),
        };
        NewJob {
            name: name.to_owned(),
            work,
            resources: Resources { cpu_milli: self.cpu_milli, ..Resources::default() },
            limits: Limits {
                timeout_ms: self.limit.map(Span::as_ms),
                output_bytes_max: self.limit.map_or(Limits::default().output_bytes_max, |_| 1 << 20),
            },
            retry: self.retry,
            labels: BTreeMap::new(),
            strategy: self.strategy,
            copies: self.copies,
            network: sinew_crdt_state::network::Network::default(),
            secrets: Vec::new(),
            volumes: Vec::new(),
            key: None,
        }
    }

    /// How long an attempt takes; `dice` is in `0..1000`.
    pub(crate) fn duration(&self, phase: Phase, task: u32, dice: u64) -> Span {
        let base = self.slow.get(&(phase, task)).copied().unwrap_or(self.duration);
        if self.jitter { Span(base.0 * 9 / 10 + base.0 * dice / 5_000) } else { base }
    }

    fn blob(&self, name: &str, kind: &str, phase: Phase, task: u32) -> BlobRef {
        let size = self.input_len.filter(|_| kind != "output").unwrap_or(self.blob_len);
        BlobRef { hash: Hash::of(format!("{name} {kind} {phase} {task}").as_bytes()), size }
    }

    /// The blob that a task leaves, if it does.
    pub(crate) fn output(&self, name: &str, phase: Phase, task: u32) -> Option<BlobRef> {
        self.outputs.then(|| self.blob(self.equal.unwrap_or(name), "output", phase, task))
    }

    /// Why the attempt fails after `before` earlier ones, if it does.
    pub(crate) fn failure(&self, phase: Phase, task: u32, before: u32) -> Option<Failure> {
        if let Some(code) = self.fatal.get(&(phase, task)) {
            return Some(failure(*code, code.retryable()));
        }
        let (back, times) = self.failing.get(&(phase, task)).copied().unwrap_or_default();
        if before < back {
            return Some(failure(ErrorCode::Lost, true));
        }
        (before - back < times).then(|| failure(ErrorCode::Exit, true))
    }
}

pub(crate) fn failure(code: ErrorCode, retryable: bool) -> Failure {
    Failure { code, exit: Some(1), message: "modelled".to_owned(), stderr_tail: String::new(), retryable }
}
