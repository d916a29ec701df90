//! Strikes carried out on a world, and taken back.

use std::collections::{BTreeMap, BTreeSet};

use sinew_crdt_state::ids::NodeId;
use sinew_scheduler::time::{Span, Time};

use super::lie::Liar;
use super::{Class, FiredByClass, Strike};
use crate::queue::Index;
use crate::world::World;

/// Of this many nodes, two may be down at once: what the run is meant to survive without standing still.
const DOWN_SHARE: (usize, usize) = (2, 5);
/// The most frames lost, of 10,000.
const LOSS_MAX: u64 = 400;
/// A flapping link turns at least as often as this, and no more often than the other.
const FLAP_MS: (u64, u64) = (150, 1_650);

/// What a strike holds until its end.
#[derive(Debug)]
enum Held {
    Down(Index),
    Cuts(Vec<(Index, Index)>),
    Flapping { pair: (Index, Index), is_cut: bool, period: Span },
    Disk(Index),
    Loss,
}

#[derive(Debug)]
struct Active {
    class: Class,
    held: Held,
    ends: Time,
    turns: Time,
    /// The counter that says whether it was felt, as it stood at the beginning.
    before: u64,
}

/// Carries a schedule out.
#[derive(Debug)]
pub(crate) struct Nemesis {
    strikes: std::iter::Peekable<std::vec::IntoIter<Strike>>,
    begin: Time,
    active: BTreeMap<u32, Active>,
    fired: FiredByClass,
    /// Nodes that lost their disk at some time.
    wiped: BTreeSet<Index>,
    liars: Vec<Liar>,
}

impl Nemesis {
    /// A nemesis whose strikes count from now. `liars` are nodes that may be made to lie.
    pub(crate) fn new(world: &mut World, strikes: Vec<Strike>, liars: Vec<Index>) -> Self {
        let classes: BTreeSet<Class> = strikes.iter().map(|s| s.class).collect();
        world.watch.liars.extend(liars.iter().map(|n| world.nodes[*n].id()).collect::<Vec<NodeId>>());
        Self {
            begin: world.now,
            strikes: strikes.into_iter().peekable(),
            active: BTreeMap::new(),
            fired: classes.into_iter().map(|c| (c, super::Fired::default())).collect(),
            wiped: BTreeSet::new(),
            liars: liars.into_iter().map(Liar::new).collect(),
        }
    }

    /// When it wants to act next.
    pub(crate) fn next_at(&mut self) -> Option<Time> {
        let begins = self.strikes.peek().map(|s| self.begin + s.at);
        let turns = self.active.values().map(|a| a.ends.min(a.turns)).min();
        begins.into_iter().chain(turns).min()
    }

    /// Does what is due.
    pub(crate) fn act(&mut self, world: &mut World) {
        let now = world.now;
        let due: Vec<u32> = self.active.iter().filter(|(_, a)| a.ends <= now).map(|(n, _)| *n).collect();
        for number in due {
            self.end(world, number);
        }
        for active in self.active.values_mut().filter(|a| a.turns <= now) {
            turn(world, active);
        }
        while let Some(strike) = self.strikes.next_if(|s| self.begin + s.at <= now) {
            self.strike(world, &strike);
        }
    }

    /// Takes everything back.
    pub(crate) fn heal(&mut self, world: &mut World) {
        for number in self.active.keys().copied().collect::<Vec<_>>() {
            self.end(world, number);
        }
        world.heal();
    }

    pub(crate) const fn fired(&self) -> &FiredByClass {
        &self.fired
    }

    fn strike(&mut self, world: &mut World, strike: &Strike) {
        let fired = self.fired.entry(strike.class).or_default();
        if strike.class.is_byzantine() {
            let Some(liar) = super::one_of(self.liars.iter().collect(), strike.dice[0]) else { return };
            if let Some(heard) = liar.lie(world, strike) {
                fired.struck += 1;
                fired.felt += u64::from(heard);
            }
            return;
        }
        let before = felt_counter(world, strike.class);
        let Some(held) = begin(world, strike, &mut self.wiped, &self.active) else { return };
        fired.struck += 1;
        let turns = match held {
            Held::Flapping { period, .. } => world.now + period,
            _ => Time(u64::MAX),
        };
        let active = Active { class: strike.class, held, ends: world.now + strike.lasts, turns, before };
        self.active.insert(strike.number, active);
    }

    fn end(&mut self, world: &mut World, number: u32) {
        let Some(active) = self.active.remove(&number) else { return };
        let felt = match active.held {
            Held::Down(node) => {
                let name = world.nodes[node].name.clone();
                world.restart(&name);
                true
            }
            Held::Cuts(cuts) => {
                for (a, b) in cuts {
                    world.mend(a, b);
                }
                felt_counter(world, active.class) > active.before
            }
            Held::Flapping { pair: (a, b), .. } => {
                world.mend(a, b);
                world.mend(b, a);
                felt_counter(world, active.class) > active.before
            }
            Held::Disk(node) => {
                let refused = world.nodes[node].disk.pending() > 0;
                let name = world.nodes[node].name.clone();
                world.mend_disk(&name);
                refused
            }
            Held::Loss => {
                world.lose_frames(0);
                felt_counter(world, active.class) > active.before
            }
        };
        self.fired.entry(active.class).or_default().felt += u64::from(felt);
    }
}

/// What grows when a strike of the class is felt; strikes that are always felt have none.
const fn felt_counter(world: &World, class: Class) -> u64 {
    match class {
        Class::Drop => world.counters.lost_frames,
        _ => world.counters.stalled_frames,
    }
}

/// Starts a strike, if there is a node or link that it can hit now.
fn begin(
    world: &mut World,
    strike: &Strike,
    wiped: &mut BTreeSet<Index>,
    active: &BTreeMap<u32, Active>,
) -> Option<Held> {
    let up: Vec<Index> = (0..world.nodes.len()).filter(|n| world.nodes[*n].is_up()).collect();
    let one = |dice: u64| super::one_of(up.clone(), dice);
    match strike.class {
        Class::Crash | Class::Restart | Class::Churn => kill(world, one(strike.dice[0])?),
        Class::Wipe => {
            let may = up.iter().copied().filter(|n| world.may_lose_disk(*n, wiped));
            let node = super::one_of(may.collect(), strike.dice[0])?;
            let held = kill(world, node)?;
            wiped.insert(node);
            let name = world.nodes[node].name.clone();
            world.wipe(&name);
            Some(held)
        }
        Class::Partition => partition(world, strike),
        Class::OneWay => {
            let (a, b) = (one(strike.dice[0])?, one(strike.dice[1])?);
            (a != b).then(|| {
                world.cut(a, b);
                Held::Cuts(vec![(a, b)])
            })
        }
        Class::Flap => {
            let (a, b) = (one(strike.dice[0])?, one(strike.dice[1])?);
            let period = Span::ms(FLAP_MS.0 + strike.dice[2] % (FLAP_MS.1 - FLAP_MS.0));
            (a != b).then(|| {
                world.cut(a, b);
                world.cut(b, a);
                Held::Flapping { pair: (a, b), is_cut: true, period }
            })
        }
        Class::FullDisk => {
            let node = one(strike.dice[0])?;
            let busy = active.values().any(|a| matches!(a.held, Held::Disk(n) if n == node));
            (!busy).then(|| {
                let name = world.nodes[node].name.clone();
                world.fail_disk(&name);
                Held::Disk(node)
            })
        }
        Class::Drop => {
            world.lose_frames(1 + strike.dice[0] % LOSS_MAX);
            Some(Held::Loss)
        }
        Class::Equivocate | Class::FalseBid | Class::FalseResult | Class::Flood => None,
    }
}

/// Ends a process, unless as many as may be are down already.
fn kill(world: &mut World, node: Index) -> Option<Held> {
    let down = world.nodes.iter().filter(|n| !n.is_up()).count();
    let down_max = (world.nodes.len() * DOWN_SHARE.0 / DOWN_SHARE.1).max(1);
    (down < down_max).then(|| {
        let name = world.nodes[node].name.clone();
        world.kill(&name);
        Held::Down(node)
    })
}

/// Two groups, of any sizes.
fn partition(world: &mut World, strike: &Strike) -> Option<Held> {
    let len = world.nodes.len();
    let mut cuts = Vec::new();
    let side = |n: Index| (strike.dice[n % 4] >> ((n / 4) % 64)) & 1;
    for a in 0..len {
        for b in (0..len).filter(|b| side(*b) != side(a)) {
            world.cut(a, b);
            cuts.push((a, b));
        }
    }
    (!cuts.is_empty()).then(|| {
        world.say(0, format!("PARTITION {:?}", (0..len).filter(|n| side(*n) == 1).collect::<Vec<_>>()));
        Held::Cuts(cuts)
    })
}

/// A flapping link goes up or down.
fn turn(world: &mut World, active: &mut Active) {
    let Held::Flapping { pair: (a, b), is_cut, period } = &mut active.held else { return };
    for (from, to) in [(*a, *b), (*b, *a)] {
        if *is_cut {
            world.mend(from, to);
        } else {
            world.cut(from, to);
        }
    }
    *is_cut = !*is_cut;
    active.turns = world.now + *period;
}
