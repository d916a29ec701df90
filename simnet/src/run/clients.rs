//! Clients that try again and change their minds: a third of the jobs is submitted under a key, and again some seconds later and
//! much later, whatever the answer was; of the others some are cancelled. Drawn from a stream of its own.

use std::collections::BTreeMap;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sinew_crdt_state::ids::JobId;
use sinew_scheduler::io::{RequestId, Response, SubmitError};
use sinew_scheduler::time::{Span, Time};

use crate::plan::Plan;
use crate::queue::Index;
use crate::world::World;

/// Sets this stream apart from the others.
const STREAM: u64 = 0x636c_6e74;
/// When a request is asked again: soon, and when the first answer is certainly in.
const AGAIN_MS: [u64; 2] = [2_000, 18_000];

/// What a client does next.
#[derive(Debug)]
enum Step {
    Again { node: Index, plan: Box<Plan>, key: String },
    Cancel { node: Index, request: RequestId },
}

/// All clients of a run.
#[derive(Debug)]
pub(super) struct Clients {
    rng: ChaCha8Rng,
    steps: BTreeMap<(Time, u64), Step>,
    count: u64,
}

impl Clients {
    pub(super) fn new(seed: u64) -> Self {
        Self { rng: ChaCha8Rng::seed_from_u64(seed ^ STREAM), steps: BTreeMap::new(), count: 0 }
    }

    fn then(&mut self, at: Time, step: Step) {
        self.count += 1;
        self.steps.insert((at, self.count), step);
    }

    /// Submits as one of the clients would.
    pub(super) fn submit(&mut self, world: &mut World, node: Index, plan: &Plan) -> RequestId {
        let name = world.nodes[node].name.clone();
        let (dice, wait) = (self.rng.random_range(0..6_u32), self.rng.random_range(100..8_000_u64));
        if dice < 2 {
            self.count += 1;
            let key = format!("key-{}", self.count);
            for after in AGAIN_MS {
                let step = Step::Again { node, plan: Box::new(plan.clone()), key: key.clone() };
                self.then(world.now + Span::ms(after + wait), step);
            }
            return world.submit_keyed(&name, plan, &key);
        }
        let request = world.submit_later(&name, plan);
        if dice == 2 {
            self.then(world.now + Span::ms(wait), Step::Cancel { node, request });
        }
        request
    }

    /// When something is to be done.
    pub(super) fn next_at(&self) -> Option<Time> {
        self.steps.first_key_value().map(|((at, _), _)| *at)
    }

    /// Does what is due. A client whose node is down has gone.
    pub(super) fn act(&mut self, world: &mut World) {
        while let Some(entry) = self.steps.first_entry().filter(|entry| entry.key().0 <= world.now) {
            match entry.remove() {
                Step::Again { node, plan, key } if world.nodes[node].is_awake() => {
                    let name = world.nodes[node].name.clone();
                    world.submit_keyed(&name, &plan, &key);
                }
                Step::Cancel { node, request } if world.nodes[node].is_awake() => {
                    let name = world.nodes[node].name.clone();
                    if let Some(job) = job_of(world, request) {
                        world.cancel_later(&name, job);
                    }
                }
                Step::Again { .. } | Step::Cancel { .. } => {}
            }
        }
    }
}

fn job_of(world: &World, request: RequestId) -> Option<JobId> {
    match &world.answers.get(&request)?.1 {
        Response::Submitted(Ok(job) | Err(SubmitError::Unknown { job, .. })) => Some(*job),
        _ => None,
    }
}
