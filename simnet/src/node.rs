//! One node of the world: a core while it is up, and what outlives it: identity, disk, blobs.

use std::collections::BTreeMap;

use sinew_crdt_state::certificate::{Credential, Roles};
use sinew_crdt_state::identity::Identity;
use sinew_crdt_state::ids::{Hash, JobId, NodeId};
use sinew_crdt_state::spec::BlobRef;
use sinew_scheduler::config::CoreConfig;
use sinew_scheduler::core::Core;
use sinew_scheduler::io::{FetchId, RunId};
use sinew_scheduler::time::Time;

use crate::clock::{Clock, ClockSetup};
use crate::disk::{Disk, DiskSetup};
use crate::write::CrashAt;

/// What a scenario may choose about a node.
#[derive(Debug, Clone)]
pub struct NodeSetup {
    /// Thousandths of a core; 0 on a node that runs nothing.
    pub cpu_milli: u32,
    /// How fast tasks run on it, in percent of the usual.
    pub speed_percent: u32,
    /// Its certificate's roles.
    pub roles: Roles,
    /// How long sealed jobs are kept whole, ms.
    pub ledger_grace_ms: u64,
    /// How long a node must be gone before this one has copied again what it held, ms.
    pub copy_again_after_ms: u64,
    /// Its region, where delays go by regions; by number of joining when `None`.
    pub region: Option<usize>,
    /// Whether it can only dial out, as behind a NAT. Two such nodes never connect: relays and hole punching are not modelled.
    pub dials_out_only: bool,
    /// How its clocks are off.
    pub clock: ClockSetup,
    /// What its disk is like.
    pub disk: DiskSetup,
}

impl Default for NodeSetup {
    fn default() -> Self {
        Self {
            cpu_milli: 2_000,
            speed_percent: 100,
            roles: Roles::ALL,
            ledger_grace_ms: CoreConfig::default().ledger_grace_ms,
            copy_again_after_ms: CoreConfig::default().copy_again_after_ms,
            region: None,
            dials_out_only: false,
            clock: ClockSetup::default(),
            disk: DiskSetup::default(),
        }
    }
}

/// A task under way.
#[derive(Debug)]
pub(crate) struct Running {
    /// Its number in the world's list of executions.
    pub(crate) execution: usize,
    pub(crate) cpu_milli: u32,
    /// What it needs and nobody in reach gives: then it ends without having begun.
    pub(crate) missing: Vec<Hash>,
    /// When it will have ended, if it was told to.
    pub(crate) ends_at: Option<Time>,
    /// When its lease ends, by the node's clock, as the core said last.
    pub(crate) until: Time,
}

/// A task on its way out.
#[derive(Debug)]
pub(crate) struct Stopping {
    /// Its number in the world's list of executions.
    pub(crate) execution: usize,
    /// When it would be gone in good order, and when its lease ends; `None` if it was killed.
    pub(crate) graceful: Option<(Time, Time)>,
    pub(crate) cpu_milli: u32,
}

/// A fetch under way.
#[derive(Debug)]
pub(crate) struct Fetching {
    pub(crate) job: JobId,
    pub(crate) blobs: Vec<BlobRef>,
    pub(crate) providers: Vec<NodeId>,
}

#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) identity: Identity,
    pub(crate) credential: Credential,
    pub(crate) setup: NodeSetup,
    pub(crate) config: CoreConfig,
    pub(crate) disk: Disk,
    pub(crate) clock: Clock,
    pub(crate) core: Option<Core>,
    pub(crate) runs: BTreeMap<RunId, Running>,
    /// Tasks that the core stopped and that are not gone yet, each with its number in the world's list of executions.
    pub(crate) stopping: BTreeMap<RunId, Stopping>,
    pub(crate) fetches: BTreeMap<FetchId, Fetching>,
    pub(crate) disk_at: Option<Time>,
    /// What reached it while it stands still.
    pub(crate) frozen: Option<crate::pause::Frozen>,
    /// Inputs that its core has handled but not answered yet.
    pub(crate) batch: crate::batch::Batch,
    /// How often its core asked to be called of late.
    pub(crate) busy: crate::busy::Busy,
    /// It takes tasks, keeps its leases, and begins none.
    pub(crate) hogs: bool,
    /// It ends none of its fetches.
    pub(crate) mute: bool,
    /// The write that it crashes at.
    pub(crate) crash_at: Option<CrashAt>,
    /// Whether it is down because it left.
    pub(crate) has_left: bool,
}

impl Node {
    pub(crate) fn new(name: &str, identity: Identity, credential: Credential, setup: NodeSetup) -> Self {
        let config = CoreConfig {
            cpu_milli: setup.cpu_milli,
            ledger_grace_ms: setup.ledger_grace_ms,
            copy_again_after_ms: setup.copy_again_after_ms,
            about: name.to_owned(),
            ..CoreConfig::default()
        };
        Self {
            name: name.to_owned(),
            clock: Clock::new(setup.clock),
            disk: Disk::new(setup.disk.clone(), identity.id(), None),
            identity,
            credential,
            setup,
            config,
            core: None,
            runs: BTreeMap::new(),
            stopping: BTreeMap::new(),
            fetches: BTreeMap::new(),
            disk_at: None,
            frozen: None,
            batch: crate::batch::Batch::default(),
            busy: crate::busy::Busy::default(),
            hogs: false,
            mute: false,
            crash_at: None,
            has_left: false,
        }
    }

    pub(crate) const fn id(&self) -> NodeId {
        self.identity.id()
    }

    pub(crate) const fn is_up(&self) -> bool {
        self.core.is_some()
    }

    /// Up, and not standing still.
    pub(crate) const fn is_awake(&self) -> bool {
        self.core.is_some() && self.frozen.is_none()
    }

    pub(crate) fn cpu_used(&self) -> u32 {
        let stopping = self.stopping.values().map(|s| s.cpu_milli);
        self.runs.values().map(|r| r.cpu_milli).chain(stopping).sum()
    }
}
