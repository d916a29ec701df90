//! One simulated run: a mesh, a workload and a nemesis from one seed; first any faults with safety checked all the while,
//! then everything is healed and every acknowledged job must end.

mod clients;
mod collect;
mod growth;
mod options;
mod report;
mod shrink;
mod table;
mod workload;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

use sinew_crdt_state::ids::Hash;
use sinew_scheduler::io::RequestId;
use sinew_scheduler::time::{Span, Time};

pub use growth::Growth;
pub(crate) use growth::exponent;
pub use options::{InvalidOptions, Options, Workload};
pub use report::{Report, percentile};
pub use shrink::{Shrunk, shrink};
pub use table::csv;

use crate::check::Violation;
use crate::doubles::Doubles;
use crate::nemesis::{self, Nemesis};
use crate::report::Counters;
use crate::world::World;

/// Safety is checked this often. What it looks at is kept, so that nothing between two looks is missed.
const CHECK_EVERY: Span = Span::ms(500);
/// After the faults, before anything is demanded: connections come back, leases run out.
const CALM: Span = Span::ms(5_000);
/// Everything that is under way must have come to an end by so long after the faults.
const LIVENESS_MAX: Span = Span::ms(240_000);

/// Why a run is not as it must be.
#[derive(Debug, Clone)]
pub struct Failure {
    /// What does not hold.
    pub what: String,
    /// The virtual time at which it was found, from the beginning.
    pub at: Span,
    /// The last lines of the world's log.
    pub log: String,
    /// The trace until then.
    pub trace: Hash,
}

struct Running<'a> {
    options: &'a Options,
    world: World,
    doubles: Doubles,
    nemesis: Nemesis,
    begin: Time,
    /// What had been counted when the mesh was formed and the first job due.
    before: Counters,
    /// Those whose jobs were not dropped.
    submitted: BTreeMap<RequestId, Time>,
    jobs: collect::Jobs,
    clients: Option<clients::Clients>,
    refused: u64,
}

/// Runs `options`. The same options always give the same report, trace hash included.
///
/// # Errors
/// When an invariant does not hold, the mesh does not come to rest once healed, a core panics, or one asks to be called at
/// once for ever.
pub fn run(options: &Options) -> Result<Report, Box<Failure>> {
    let mut running = caught(|| Running::start(options)).map_err(|what| Failure::unstarted(&what))?;
    // What was left half done is only read from here on.
    caught(|| running.through()).unwrap_or_else(|what| {
        let who = running.world.at_work().map_or("the simulator".to_owned(), |name| format!("the core of {name}"));
        let what = if what.starts_with("the core of") { what } else { format!("{who} panicked: {what}") };
        Err(running.failure(&what))
    })
}

/// What `work` gives, or what it said when it panicked. Panics are as deterministic as all else.
fn caught<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned())).unwrap_or_default()
    })
}

impl Failure {
    /// The mesh did not even start.
    fn unstarted(what: &str) -> Box<Self> {
        Box::new(Self { what: what.to_owned(), at: Span(0), log: String::new(), trace: Hash([0; 32]) })
    }
}

impl<'a> Running<'a> {
    fn start(options: &'a Options) -> Self {
        let names: Vec<String> = (0..options.nodes).map(|n| format!("n{n}")).collect();
        let mut world = World::seed(options.seed).network(options.latency.network());
        if options.verbose {
            world = world.verbose();
        }
        let mut world = world.nodes(names.iter().map(String::as_str));
        let mut strikes = nemesis::schedule(options.seed, &options.faults, options.duration, options.churn_per_s());
        if let Some(only) = &options.strikes {
            strikes.retain(|s| only.contains(&s.number));
        }
        let liars = (options.nodes - options.liars()..options.nodes).collect();
        let nemesis = Nemesis::new(&mut world, strikes, liars);
        let (begin, before) = (world.now, world.counters);
        let (doubles, submitted) = (Doubles::default(), BTreeMap::new());
        let jobs = collect::Jobs::default();
        let clients = (options.workload == Workload::Clients).then(|| clients::Clients::new(options.seed));
        Self { options, world, doubles, nemesis, begin, before, submitted, jobs, clients, refused: 0 }
    }

    fn through(&mut self) -> Result<Report, Box<Failure>> {
        self.under_faults()?;
        self.nemesis.heal(&mut self.world);
        let healed = self.world.now;
        self.until_rest(healed)?;
        let mut found = self.world.violations_at_rest();
        found.extend(self.world.copies_missing());
        found.retain(|violation| !self.world.is_excused(violation));
        if !found.is_empty() {
            return Err(self.failure(&format!("{found:?}")));
        }
        let converged = self.world.now - healed;
        Ok(self.report(converged))
    }

    /// Jobs and faults, as their times come.
    fn under_faults(&mut self) -> Result<(), Box<Failure>> {
        let mut jobs = workload::jobs(self.options).peekable();
        let (end, mut check) = (self.begin + self.options.duration, self.begin + CHECK_EVERY);
        loop {
            let job = jobs.peek().map(|j| self.begin + j.at);
            let client = self.clients.as_ref().and_then(clients::Clients::next_at);
            let next = job.into_iter().chain(client).chain(self.nemesis.next_at()).fold(end.min(check), Time::min);
            self.world.run_for(next - self.world.now);
            self.nemesis.act(&mut self.world);
            if let Some(clients) = &mut self.clients {
                clients.act(&mut self.world);
            }
            while let Some(job) = jobs.next_if(|j| self.begin + j.at <= next) {
                self.submit(&job);
            }
            if next >= check {
                self.check()?;
                check = next + CHECK_EVERY;
            }
            if next >= end {
                return self.check();
            }
        }
    }

    /// Submits at the wanted node, or at the next one that is up.
    fn submit(&mut self, job: &workload::Due) {
        let honest = self.options.nodes - self.options.liars();
        let up = (0..honest).map(|i| (job.node + i) % honest).find(|n| self.world.nodes[*n].is_awake());
        let Some(node) = up else {
            self.refused += 1;
            return;
        };
        let id = match &mut self.clients {
            Some(clients) => clients.submit(&mut self.world, node, &job.plan),
            None => {
                let name = self.world.nodes[node].name.clone();
                self.world.submit_later(&name, &job.plan)
            }
        };
        self.submitted.insert(id, self.world.now);
    }

    fn until_rest(&mut self, healed: Time) -> Result<(), Box<Failure>> {
        self.world.run_for(CALM);
        loop {
            self.check()?;
            let why = self.world.restless();
            if why.is_empty() {
                return Ok(());
            }
            if self.world.now - healed > LIVENESS_MAX {
                if self.world.is_restless_by_excuse() {
                    return Ok(());
                }
                return Err(self.failure(&format!("not at rest: {why}")));
            }
            self.world.run_for(CHECK_EVERY);
        }
    }

    fn check(&mut self) -> Result<(), Box<Failure>> {
        self.doubles.look(&self.world);
        let mut found = self.world.violations_any_time();
        found.extend(self.world.old_disks());
        found.extend(self.close());
        found.extend(self.doubles.found().iter().map(|(job, phase, task)| Violation::DoubleStart(*job, *phase, *task)));
        found.retain(|violation| !self.world.is_excused(violation));
        if found.is_empty() {
            return Ok(());
        }
        let evidence = self.world.evidence(&found);
        Err(self.failure(&format!("{found:?}\n{evidence}")))
    }

    fn failure(&self, what: &str) -> Box<Failure> {
        let at = self.world.now - self.begin;
        Box::new(Failure { what: what.to_owned(), at, log: self.world.log_tail(), trace: self.world.trace() })
    }
}
