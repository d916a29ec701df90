//! What is submitted when and where, drawn from a stream of its own: faults that are left out do not change the jobs.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sinew_scheduler::time::Span;

use super::options::{Options, Workload};
use crate::nemesis::Class;
use crate::plan::{Plan, job, round};

/// Sets this stream apart from the nemesis's and the world's.
const STREAM: u64 = 0x6a6f_6273;
/// Of so many jobs of a mixed workload, one is a round.
const ROUND_EVERY: u64 = 4;
/// ... and one leaves the same outputs as others.
const EQUAL_EVERY: u64 = 8;

/// How long an attempt may take where nodes may begin none: several times as long as any takes.
const LIMIT: Span = Span::ms(10_000);

/// A job to be submitted.
#[derive(Debug)]
pub(super) struct Due {
    pub(super) at: Span,
    pub(super) node: usize,
    pub(super) plan: Plan,
}

/// All jobs of a run, evenly spread over it with some jitter, in order of time.
pub(super) fn jobs(options: &Options) -> impl Iterator<Item = Due> {
    let mut rng = ChaCha8Rng::seed_from_u64(options.seed ^ STREAM);
    let count = u64::from(options.jobs);
    let hogs = options.faults.contains(&Class::Hog);
    let due = move |i: u64| {
        let jitter: u64 = rng.random_range(0..1_000);
        let at = (u128::from(options.duration.0) * (u128::from(i) * 1_000 + u128::from(jitter)))
            / (u128::from(count) * 1_000);
        let at = Span(u64::try_from(at).unwrap_or(u64::MAX));
        let node = usize::try_from(rng.random_range(0..u64::MAX)).unwrap_or(0) % options.nodes;
        let plan = plan(options.workload, i, &mut rng);
        Due { at, node, plan: if hogs { plan.limit(LIMIT) } else { plan } }
    };
    (0..count).map(due)
}

fn plan(workload: Workload, number: u64, rng: &mut ChaCha8Rng) -> Plan {
    let (tasks, ms) = (rng.random_range(1..=12_u32), rng.random_range(50..850_u64));
    match workload {
        Workload::Jobs => job().lasting(Span::ms(100)),
        Workload::Rounds => round(tasks * 2, 3).lasting(Span::ms(ms)),
        Workload::Mixed | Workload::Clients if number.is_multiple_of(ROUND_EVERY) => {
            round(tasks * 2, 3).lasting(Span::ms(ms)).spread()
        }
        // Jobs of many users often leave the same: an empty file, a line that says "ok".
        Workload::Mixed | Workload::Clients if number % EQUAL_EVERY == 3 => {
            job().tasks(tasks).lasting(Span::ms(ms)).spread().with_equal_outputs("ok")
        }
        Workload::Mixed | Workload::Clients => job().tasks(tasks).lasting(Span::ms(ms)).spread(),
    }
}
