//! Tasks as core and driver speak of them.

use std::sync::Arc;

use sinew_crdt_state::fact::{Failure, Output, Usage};
use sinew_crdt_state::ids::NodeId;
use sinew_crdt_state::spec::{JobSpec, Phase};

use crate::time::Time;
use crate::wire::{Lease, Located};

/// One attempt of one task, as the runner knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct TaskKey {
    /// The award it runs under.
    pub lease: Lease,
    /// The phase.
    pub phase: Phase,
    /// The task.
    pub task: u32,
}

/// An attempt under way on this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RunId(pub u64);

/// How an attempt ended. Outputs are on disk, fsynced, when the core hears of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskResult {
    /// What it left, or why it failed.
    pub result: Result<Vec<Output>, Failure>,
    /// What it used.
    pub usage: Usage,
}

/// Why a task is to be stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StopWhy {
    /// This node has no right to run it any more, and others may have: it is to be dead at once.
    Fenced,
    /// Its brain does not want it any more: it may end in good order as long as its lease lasts.
    Unwanted,
    /// Its job is sealed: it may end in good order whatever becomes of its lease. Comes after [`Self::Unwanted`] too.
    Over,
}

/// A task to run.
#[derive(Debug, Clone)]
pub struct StartTask {
    /// For its end, or to stop it.
    pub run: RunId,
    /// The end of its lease, as far as it is known: it must not run beyond, unless [`super::Effect::Lease`] moves that.
    pub until: Time,
    /// Which attempt. A new brain may renew the lease under another fence while it runs.
    pub key: TaskKey,
    /// How often this task was started before: attempts that failed, were lost, or go on elsewhere.
    pub attempt: u32,
    /// Tasks of this job that may run here at once. A driver that asked for tasks ahead
    /// ([`crate::config::CoreConfig::start_ahead`]) keeps the others ready.
    pub job_slots: u32,
    /// The job.
    pub spec: Arc<JobSpec>,
    /// The nodes most likely to have the inputs, best first.
    pub providers: Arc<Vec<NodeId>>,
    /// For a reduce task: every map output, in order of chunks.
    pub sources: Option<Arc<Vec<Located>>>,
}
