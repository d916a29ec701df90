//! The runners of a node, each program going to its own.

use std::path::PathBuf;
use std::sync::Arc;

use sinew_crdt_state::error_code::ErrorCode;
use sinew_crdt_state::program::{Program, Runners};

use super::outcome::Failure;
use super::process::ProcessRunner;
use super::runner::{Execution, Health, Launch, Prepared, Runner, View};

/// Every runner of this node.
#[derive(Debug)]
pub struct RunnerSet {
    process: ProcessRunner,
    others: Vec<Arc<dyn Runner>>,
}

impl RunnerSet {
    /// With `process` alone.
    #[must_use]
    pub const fn new(process: ProcessRunner) -> Self {
        Self { process, others: Vec::new() }
    }

    /// With one more.
    #[must_use]
    pub fn with(mut self, runner: Arc<dyn Runner>) -> Self {
        self.others.push(runner);
        self
    }

    /// The one for processes.
    #[must_use]
    pub const fn process(&self) -> &ProcessRunner {
        &self.process
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &dyn Runner> {
        let others = self.others.iter().map(AsRef::as_ref);
        std::iter::once(&self.process as &dyn Runner).chain(others)
    }

    /// Those that could run something now, and whether programs may reach hosts that their jobs name.
    #[must_use]
    pub fn ready(&self) -> Runners {
        let ready = self.iter().filter(|runner| runner.health() == Health::Ready);
        let first = if self.process.has_way_out() { Runners::NETWORK } else { Runners::NONE };
        ready.fold(first, |all, runner| all.union(runner.kind()))
    }

    fn of(&self, program: &Program) -> Option<&dyn Runner> {
        self.iter().find(|runner| runner.kind() == program.runner())
    }
}

impl Runner for RunnerSet {
    fn kind(&self) -> Runners {
        self.iter().fold(Runners::NONE, |all, runner| all.union(runner.kind()))
    }

    fn health(&self) -> Health {
        let first = |best, runner: &dyn Runner| if best == Health::Ready { best } else { runner.health() };
        self.iter().fold(Health::Unavailable("there are no runners".to_owned()), first)
    }

    fn view(&self, program: &Program) -> View {
        self.of(program).map_or(View::Host, |runner| runner.view(program))
    }

    fn prepare(&self, launch: &Launch<'_>) -> Result<Prepared, Failure> {
        let missing = || {
            let what = launch.program.runner();
            Failure::new(ErrorCode::Invalid, format!("this node has no `{what}` runner"))
        };
        self.of(launch.program).ok_or_else(missing)?.prepare(launch)
    }

    fn start(&self, launch: &Launch<'_>, prepared: Prepared) -> Result<Box<dyn Execution>, Failure> {
        let gone = || Failure::new(ErrorCode::Invalid, "a program was prepared by no runner of this node");
        self.of(launch.program).ok_or_else(gone)?.start(launch, prepared)
    }

    fn make_way(&self, slot: u32, job: &str, program: &Program) {
        self.iter().for_each(|runner| runner.make_way(slot, job, program));
    }

    fn end_job(&self, job: &str) {
        self.iter().for_each(|runner| runner.end_job(job));
    }

    fn end_idle(&self) {
        self.iter().for_each(Runner::end_idle);
    }
}

/// Where a job's content (images, modules) lies on this node, by hash.
pub type Content = std::collections::BTreeMap<sinew_crdt_state::ids::Hash, PathBuf>;

/// Of a job whose programs have none.
pub static NO_CONTENT: Content = Content::new();
