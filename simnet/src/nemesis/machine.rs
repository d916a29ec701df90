//! Strikes on one machine: its process, its disk, its clocks.

use std::collections::BTreeSet;

use sinew_scheduler::io::Leave;

use super::hit::Held;
use super::strike::Nemesis;
use super::{Class, Strike};
use crate::disk::DiskSetup;
use crate::distribution::Distribution;
use crate::queue::Index;
use crate::world::World;
use crate::write::CrashPoint;

/// Of this many nodes, two may be down at once: what the run is meant to survive without standing still.
const DOWN_SHARE: (usize, usize) = (2, 5);
/// A slow disk's median sync lies between these, ms: a busy spindle, and an array that rebuilds itself.
const SYNC_MS: (u64, u64) = (20, 1_500);
/// A date is set wrong by this much at most, ms: two dates are then less apart than the hour for which sealed jobs are kept. A
/// node whose date is further ahead forgets before others do, and ledgers differ until all have forgotten.
const JUMP_MS_MAX: u64 = 1_500_000;
/// A clock runs this much too fast or too slow at most, parts per million: a hundred times what quartz does.
const DRIFT_PPM_MAX: u64 = 10_000;
/// A doomed node goes down at one of so many writes to come.
const WRITES_MAX: u64 = 6;
/// ... and, where its disk lies, at one of so many: what it only said to have written is to be worth losing.
const LIES_MAX: u64 = 24;

impl Nemesis {
    /// Starts a strike on one of the nodes that are up.
    pub(super) fn begin_on_machine(&mut self, world: &mut World, strike: &Strike, up: &[Index]) -> Option<Held> {
        let dice = strike.dice;
        let one = super::one_of(up.to_vec(), dice[0]);
        match strike.class {
            Class::Crash | Class::Restart | Class::Churn => kill(world, one?),
            Class::Wipe | Class::BitRot => {
                let node = super::one_of(up.iter().copied().filter(|n| self.may_lose(world, *n)).collect(), dice[0])?;
                let held = kill(world, node)?;
                self.wiped.insert(node);
                let name = world.nodes[node].name.clone();
                if strike.class == Class::Wipe {
                    world.wipe(&name);
                } else {
                    world.rot(&name);
                }
                Some(held)
            }
            Class::Leave => {
                let leaves = |n: &Index| self.holds(|held| matches!(held, Held::Leaving(of, _) if of == n));
                let node = one.filter(|n| world.nodes[*n].is_awake() && !leaves(n) && may_go_down(world))?;
                let (name, life) = (world.nodes[node].name.clone(), world.roll.life(node));
                world.leave(&name, super::one_of(vec![Leave::HandOver, Leave::WhenDone, Leave::AtOnce], dice[1])?);
                Some(Held::Leaving(node, life))
            }
            Class::Rollback | Class::Clone => self.age(world, strike, up),
            Class::FullDisk => {
                let node = one.filter(|n| !self.holds(|held| matches!(held, Held::Disk(of) if of == n)))?;
                let name = world.nodes[node].name.clone();
                world.fail_disk(&name);
                Some(Held::Disk(node))
            }
            Class::FailedSync => {
                let node = one.filter(|n| !self.holds(|held| matches!(held, Held::Sync(of) if of == n)))?;
                let name = world.nodes[node].name.clone();
                world.fail_next_sync(&name);
                Some(Held::Sync(node))
            }
            Class::HungDisk => {
                let busy = |n: &Index| self.holds(|held| matches!(held, Held::Hung(of) | Held::Disk(of) if of == n));
                let node = one.filter(|n| !busy(n) && may_go_down(world))?;
                let name = world.nodes[node].name.clone();
                world.hang_disk(&name);
                Some(Held::Hung(node))
            }
            Class::SlowDisk => {
                let node = one.filter(|n| !self.holds(|held| matches!(held, Held::Slow(of) if of == n)))?;
                let median = 1_000 * (SYNC_MS.0 + dice[1] % (SYNC_MS.1 - SYNC_MS.0));
                let fsync_us = Distribution::LogNormal { median, sigma: 0.5 };
                set_disk(world, node, |disk| disk.fsync_us = fsync_us);
                Some(Held::Slow(node))
            }
            Class::Clock => {
                let node = one.filter(|n| !self.holds(|held| matches!(held, Held::Clock(of, _) if of == n)))?;
                let (by_ms, ppm) = (around_zero(dice[1], JUMP_MS_MAX), around_zero(dice[2], DRIFT_PPM_MAX));
                let name = world.nodes[node].name.clone();
                world.jump_clock(&name, by_ms);
                world.drift_clock(&name, ppm);
                Some(Held::Clock(node, by_ms))
            }
            Class::Pause => {
                let node = one.filter(|n| world.nodes[*n].is_awake() && may_go_down(world))?;
                let name = world.nodes[node].name.clone();
                // Half of the time it is the daemon alone.
                if strike.dice[1].is_multiple_of(2) {
                    world.pause(&name)
                } else {
                    world.stall(&name)
                }
                Some(Held::Paused(node, world.now))
            }
            Class::CrashAtWrite | Class::TornWrite => self.doom(world, strike, one?),
            Class::LostFsync => {
                let alone = |n: &Index| self.wiped.iter().all(|wiped| wiped == n);
                let node = self.forgetful.or(one).filter(|n| world.nodes[*n].is_up() && alone(n))?;
                let held = self.doom(world, strike, node)?;
                self.forgetful = Some(node);
                Some(held)
            }
            _ => None,
        }
    }

    /// The node goes down at one of its next writes.
    fn doom(&self, world: &mut World, strike: &Strike, node: Index) -> Option<Held> {
        let busy = self.holds(|held| matches!(held, Held::Doomed(of) if *of == node));
        if busy || !world.nodes[node].is_awake() || !may_go_down(world) {
            return None;
        }
        let [_, writes, point, _] = strike.dice;
        let (writes, point) = match strike.class {
            Class::TornWrite => (writes % WRITES_MAX, CrashPoint::During),
            Class::LostFsync => (1 + writes % LIES_MAX, CrashPoint::After),
            _ => {
                let points = [CrashPoint::Before, CrashPoint::During, CrashPoint::After];
                (writes % WRITES_MAX, super::one_of(points.to_vec(), point)?)
            }
        };
        let (tears, lies) = (strike.class == Class::TornWrite, strike.class == Class::LostFsync);
        set_disk(world, node, |disk| (disk.tears, disk.lies) = (tears, lies));
        let name = world.nodes[node].name.clone();
        world.crash_at_write(&name, writes, point);
        Some(Held::Doomed(node))
    }

    /// A node's disk is replaced by the copy that was made of it at an earlier strike, where there is one; where there is none,
    /// and for the next time, copies are made of all.
    fn age(&mut self, world: &mut World, strike: &Strike, up: &[Index]) -> Option<Held> {
        // Somebody must be there to tell: the rest is luck, and not what is looked for.
        let calm = world.all_cuts().is_empty() && world.nodes.iter().all(|n| n.is_awake() && !n.disk.failing);
        let may = |n: &Index| {
            self.copies.contains_key(n)
                && !self.holds(|held| matches!(held, Held::Doomed(of) if of == n))
                && self.may_lose(world, *n)
        };
        let node = super::one_of(up.iter().copied().filter(|n| calm && may(n)).collect(), strike.dice[0]);
        let held = node.and_then(|node| {
            let held = kill(world, node)?;
            self.wiped.insert(node);
            let name = world.nodes[node].name.clone();
            let own = world.snapshot(&name);
            let copy = self.copies.remove(&node)?;
            world.roll_back(&name, copy);
            if strike.class == Class::Rollback {
                return Some(held);
            }
            world.restart(&name);
            Some(Held::Copied(node, Box::new(own)))
        });
        for node in up.iter().filter(|n| world.nodes[**n].is_up()) {
            let name = world.nodes[*node].name.clone();
            self.copies.insert(*node, world.snapshot(&name));
        }
        held
    }

    /// Whether a node may lose its disk. Beside a disk that lies no other may be lost; nor while a copy runs in some node's place,
    /// which is lost once more when the original comes back.
    fn may_lose(&self, world: &World, node: Index) -> bool {
        self.forgetful.is_none_or(|f| f == node)
            && !self.holds(|held| matches!(held, Held::Copied(..)))
            && world.may_lose_disk(node, &self.wiped)
    }

    /// Whether some strike in force holds such a thing.
    fn holds(&self, such: impl Fn(&Held) -> bool) -> bool {
        self.active.values().any(|active| such(&active.held))
    }
}

impl Held {
    /// Takes a strike on a machine back, and says whether it was felt.
    pub(super) fn release_machine(self, world: &mut World) -> bool {
        match self {
            Self::Down(node) => {
                restart(world, node);
                true
            }
            Self::Leaving(node, life) => {
                if world.is_alive(life) {
                    // Its user has no more patience.
                    let name = world.nodes[node].name.clone();
                    world.kill(&name);
                    restart(world, node);
                    return false;
                }
                // It may have been killed meanwhile: then another strike has it.
                let left = !world.nodes[node].is_up() && world.nodes[node].has_left;
                if left {
                    restart(world, node);
                }
                left
            }
            Self::Disk(node) => {
                let refused = world.nodes[node].disk.pending() > 0;
                let name = world.nodes[node].name.clone();
                world.mend_disk(&name);
                refused
            }
            Self::Sync(node) => !std::mem::take(&mut world.nodes[node].disk.fails_next),
            Self::Hung(node) => {
                let waited = world.nodes[node].disk.pending() > 0;
                let name = world.nodes[node].name.clone();
                world.thaw_disk(&name);
                waited
            }
            Self::Slow(node) => {
                let usual = world.nodes[node].setup.disk.fsync_us;
                set_disk(world, node, |disk| disk.fsync_us = usual);
                true
            }
            Self::Clock(node, by_ms) => {
                let (name, drift) = (world.nodes[node].name.clone(), world.nodes[node].setup.clock.drift_ppm);
                world.jump_clock(&name, -by_ms);
                world.drift_clock(&name, drift);
                true
            }
            Self::Paused(node, since) => {
                // Its process may have been killed, and its machine may stand still for another reason by now.
                let missed =
                    world.nodes[node].frozen.as_ref().filter(|f| f.since == since).map(|f| f.missed_something());
                if missed.is_some() {
                    let name = world.nodes[node].name.clone();
                    world.resume(&name);
                }
                missed == Some(true)
            }
            Self::Copied(node, own) => {
                let name = world.nodes[node].name.clone();
                // Down: another strike holds it, and starts it again. Jobs that the copy took alone are gone with it, as with any
                // disk that is lost: then the original stays away.
                if !world.nodes[node].is_up() || !world.may_lose_disk(node, &BTreeSet::from([node])) {
                    return false;
                }
                world.kill(&name);
                world.roll_back(&name, *own);
                restart(world, node);
                true
            }
            Self::Doomed(node) => {
                let fell = world.fell.remove(&node);
                let usual = world.nodes[node].setup.disk.clone();
                set_disk(world, node, |disk| (disk.tears, disk.lies) = (usual.tears, usual.lies));
                if fell {
                    restart(world, node);
                } else {
                    world.nodes[node].crash_at = None;
                }
                fell
            }
            _ => false,
        }
    }
}

/// Whether one more node may stand still or die.
fn may_go_down(world: &World) -> bool {
    let down = world.nodes.iter().filter(|n| !n.is_awake() || n.crash_at.is_some()).count();
    down < (world.nodes.len() * DOWN_SHARE.0 / DOWN_SHARE.1).max(1)
}

/// Ends a process, unless as many as may be are down already.
fn kill(world: &mut World, node: Index) -> Option<Held> {
    may_go_down(world).then(|| {
        let name = world.nodes[node].name.clone();
        world.kill(&name);
        Held::Down(node)
    })
}

fn restart(world: &mut World, node: Index) {
    let name = world.nodes[node].name.clone();
    world.restart(&name);
}

fn set_disk(world: &mut World, node: Index, change: impl FnOnce(&mut DiskSetup)) {
    let mut setup = world.nodes[node].disk.setup.clone();
    change(&mut setup);
    let name = world.nodes[node].name.clone();
    world.set_disk(&name, setup);
}

/// From `-most` to `most`.
fn around_zero(dice: u64, most: u64) -> i64 {
    i64::try_from(dice % (2 * most + 1)).unwrap_or(0) - i64::try_from(most).unwrap_or(0)
}
