//! The nemesis at work: strikes begin, turn and end when they are due, and are counted. What each does to the world is in
//! `hit`, `machine` and `attack`.

use std::collections::{BTreeMap, BTreeSet};

use sinew_crdt_state::ids::NodeId;
use sinew_scheduler::time::Time;

use super::hit::{self, Held};
use super::lie::Liar;
use super::{Class, FiredByClass, Strike};
use crate::queue::Index;
use crate::rollback::Snapshot;
use crate::world::World;

/// A strike in force.
#[derive(Debug)]
pub(super) struct Active {
    pub(super) class: Class,
    pub(super) held: Held,
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
    pub(super) active: BTreeMap<u32, Active>,
    fired: FiredByClass,
    /// Nodes that lost their disk at some time.
    pub(super) wiped: BTreeSet<Index>,
    /// Copies of disks, of some time ago.
    pub(super) copies: BTreeMap<Index, Snapshot>,
    /// The one node whose disk may lie, and nobody can tell: more would cost a job the majority that keeps it.
    pub(super) forgetful: Option<Index>,
    pub(super) liars: Vec<Index>,
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
            copies: BTreeMap::new(),
            forgetful: None,
            liars,
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
            if let Some(period) = active.held.turn(world) {
                active.turns = now + period;
            }
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
        if strike.class.is_said_at_once() {
            let Some(liar) = super::one_of(self.liars.clone(), strike.dice[0]).map(Liar::new) else { return };
            if let Some(heard) = liar.lie(world, strike) {
                let fired = self.fired.entry(strike.class).or_default();
                fired.struck += 1;
                fired.felt += u64::from(heard);
            }
            return;
        }
        let before = hit::gauge(world, strike.class, None);
        let Some(held) = self.begin(world, strike) else { return };
        let before = before.unwrap_or_else(|| hit::gauge(world, strike.class, Some(&held)).unwrap_or(0));
        self.fired.entry(strike.class).or_default().struck += 1;
        let turns = held.period().map_or(Time(u64::MAX), |period| world.now + period);
        let active = Active { class: strike.class, held, ends: world.now + strike.lasts, turns, before };
        self.active.insert(strike.number, active);
    }

    fn end(&mut self, world: &mut World, number: u32) {
        let Some(Active { class, held, before, .. }) = self.active.remove(&number) else { return };
        let grown = hit::gauge(world, class, Some(&held)).map(|gauge| gauge > before);
        let is_last = self.active.values().all(|other| other.class != class);
        let felt = held.release(world, is_last);
        self.fired.entry(class).or_default().felt += u64::from(grown.unwrap_or(felt));
    }
}
