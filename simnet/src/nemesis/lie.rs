//! What a lying member says. Its own core stays honest beside it: the lies are further messages under its name, signed with
//! its key, such as the wire's types permit. Nothing here tells a lie that the design does not promise to survive: a liar
//! that was awarded a task may return anything for it, and only replicas of the task could tell.

use sinew_crdt_state::envelope::{Envelope, seal_batch};
use sinew_crdt_state::fact::{Fact, Fence, ReportItem, Run, Statement, Usage};
use sinew_crdt_state::ids::JobId;
use sinew_crdt_state::spec::Phase;
use sinew_scheduler::wire::{Lease, Message};

use super::{Class, Strike};
use crate::queue::Index;
use crate::world::World;

/// Messages in one flood: more than a second's worth of any honest node.
const FLOOD_LEN: u64 = 300;
/// Slots that no machine has.
const SLOTS_TOO_MANY: u32 = 10_000;

/// A member with a good certificate that says what it likes.
#[derive(Debug)]
pub(super) struct Liar {
    node: Index,
}

/// A task that runs somewhere.
#[derive(Debug, Clone, Copy)]
struct Awarded {
    lease: Lease,
    phase: Phase,
    task: u32,
}

impl Liar {
    pub(super) const fn new(node: Index) -> Self {
        Self { node }
    }

    /// Tells the lie. `None` when there is nothing to lie about now, else whether anyone heard it.
    pub(super) fn lie(&self, world: &mut World, strike: &Strike) -> Option<bool> {
        if !world.nodes[self.node].is_up() {
            return None;
        }
        let [_, which, whom, salt] = strike.dice;
        if strike.class == Class::Flood {
            let to = self.other(world, whom)?;
            return Some(self.flood(world, to, salt));
        }
        let (brain, job) = self.led(world, which)?;
        match strike.class {
            Class::FalseBid => Some(self.bid(world, brain, job, SLOTS_TOO_MANY)),
            Class::Equivocate => {
                let other = self.other(world, whom)?;
                let first = self.bid(world, brain, job, 1);
                let claim = Fact::Claim { fence: Fence { term: 1, epoch: 1 }, slots: 1 };
                let another = Fact::Claim { fence: Fence { term: 1, epoch: 1 }, slots: 2 };
                let (one, two) = (self.sign(world, job, claim), self.sign(world, job, another));
                self.tell(world, brain, &Message::Facts(vec![one]));
                Some(self.bid(world, other, job, 7) && self.tell(world, other, &Message::Facts(vec![two])) && first)
            }
            Class::FalseResult => {
                let task = self.awarded_to_another(world, job)?;
                let items = vec![ReportItem::Plain { run: Run { start: task.task, len: 1 }, usage: Usage::default() }];
                let fact = Fact::Report { fence: task.lease.fence, phase: task.phase, items };
                let facts = vec![self.sign(world, job, fact)];
                Some(self.tell(world, brain, &Message::Report { lease: task.lease, facts }))
            }
            _ => None,
        }
    }

    /// A job that some other node leads, with that node.
    fn led(&self, world: &World, dice: u64) -> Option<(Index, JobId)> {
        let others = world.nodes.iter().enumerate().filter(|(n, _)| *n != self.node);
        let led =
            others.flat_map(|(n, node)| node.core.iter().flat_map(move |c| c.led().map(move |(job, _)| (n, job))));
        super::one_of(led.collect(), dice)
    }

    fn other(&self, world: &World, dice: u64) -> Option<Index> {
        let up = (0..world.nodes.len()).filter(|n| *n != self.node && world.nodes[*n].is_up());
        super::one_of(up.collect(), dice)
    }

    fn awarded_to_another(&self, world: &World, job: JobId) -> Option<Awarded> {
        let mut running = world.executions_of(&job).filter(|e| e.end.is_none() && e.node != self.node);
        running.next().map(|e| Awarded { lease: Lease { job, fence: e.fence }, phase: e.phase, task: e.task })
    }

    fn bid(&self, world: &mut World, to: Index, job: JobId, slots: u32) -> bool {
        let fact = Fact::Bid { slots, score: i32::MAX, held_bytes: u64::MAX, start_in_ms: 0 };
        let envelope = self.sign(world, job, fact);
        self.tell(world, to, &Message::Bid(Box::new(envelope)))
    }

    fn flood(&self, world: &mut World, to: Index, salt: u64) -> bool {
        let mut heard = false;
        for i in 0..FLOOD_LEN {
            let job = JobId(*blake3::hash(&(salt ^ i).to_le_bytes()).as_bytes());
            let lease = Lease { job, fence: Fence { term: 1, epoch: 1 } };
            let message = match i % 4 {
                0 => Message::Interest { job, slots: SLOTS_TOO_MANY },
                1 => Message::Beat { seq: u64::MAX - i, leases: vec![(lease, 1)] },
                2 => Message::WantSources { lease },
                _ => Message::Stored { job, term: 1, ids: Vec::new(), mark: 0 },
            };
            heard |= self.tell(world, to, &message);
        }
        heard
    }

    fn sign(&self, world: &World, job: JobId, fact: Fact) -> Envelope {
        let statement = Statement { at_ms: world.clock(self.node).unix_ms, fact };
        let identity = &world.nodes[self.node].identity;
        seal_batch(identity, world.mesh, &[(job, statement)]).swap_remove(0).1
    }

    /// Sends, and says whether there was a connection to send on.
    fn tell(&self, world: &mut World, to: Index, message: &Message) -> bool {
        let before = world.counters.frames;
        world.send(self.node, to, message.class(), vec![message.clone()]);
        world.counters.frames > before
    }
}
