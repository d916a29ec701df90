//! What strikes do to a world and how it is taken back.

use sinew_scheduler::time::{Span, Time};

use super::strike::Nemesis;
use super::{Class, Strike};
use crate::queue::{Index, Life};
use crate::rollback::Snapshot;
use crate::world::World;

/// The most frames lost, of 10,000.
const LOSS_MAX: u64 = 400;
/// Gossip that arrives twice, or messages that others overtake, of 10,000: least and most.
const MIXED_UP: (u64, u64) = (500, 4_000);
/// Bytes per second of each link, least and most: a telephone line and a cheap modem. A task's input of a mebibyte takes
/// ten seconds on the least, which is within what a run waits for.
const BANDWIDTH: (u64, u64) = (100_000, 1_000_000);
/// How much longer each way gets, most, ms.
const DETOUR_MAX_MS: u64 = 400;
/// A flapping link turns at least as often as this, and no more often than the other.
const FLAP_MS: (u64, u64) = (150, 1_650);

/// What a strike holds until its end.
#[derive(Debug)]
pub(super) enum Held {
    /// A process that is down.
    Down(Index),
    /// A process that ends by itself.
    Leaving(Index, Life),
    /// Directed cuts.
    Cuts(Vec<(Index, Index)>),
    /// A link that goes up and down.
    Flapping { pair: (Index, Index), is_cut: bool, period: Span },
    /// A disk that refuses writes.
    Disk(Index),
    /// A disk whose next sync fails.
    Sync(Index),
    /// A disk that does not answer.
    Hung(Index),
    /// A setting of all links.
    Network(Class),
    /// A disk that takes its time.
    Slow(Index),
    /// A date that is off by so many ms, and a clock that runs at a wrong speed.
    Clock(Index, i64),
    /// A machine that stands still since then.
    Paused(Index, Time),
    /// Nodes that can only dial out.
    Hidden(Vec<Index>),
    /// A node that goes down at one of its writes.
    Doomed(Index),
    /// No gossip is passed on.
    Censorship,
    /// A node's links are longer.
    Far(Index),
    /// A node begins no task that it takes.
    Hog(Index),
    /// A node hears and is heard through attackers.
    Eclipse(Index),
    /// A copy of a node runs in its place. This is the disk of the node itself.
    Copied(Index, Box<Snapshot>),
}

/// What grows while a strike of the class is felt. `None` for those that say so at their end, and, without `held`, for those
/// whose counter belongs to one node.
pub(super) fn gauge(world: &World, class: Class, held: Option<&Held>) -> Option<u64> {
    let counters = &world.counters;
    match class {
        Class::Drop => Some(counters.lost_frames),
        Class::Partition | Class::OneWay | Class::Deaf | Class::Flap => Some(counters.stalled_frames),
        Class::Duplicate => Some(counters.doubled_gossip),
        Class::Reorder => Some(counters.reordered),
        Class::Bandwidth => Some(counters.queued_frames),
        Class::TornWrite => Some(counters.torn_writes),
        Class::LostFsync => Some(counters.lost_syncs),
        Class::Nat => Some(counters.unreachable),
        Class::Censor | Class::Eclipse => Some(counters.gossip_withheld),
        Class::Hog => Some(counters.hogged),
        Class::Distance => Some(counters.detours),
        Class::SlowDisk => match held {
            Some(Held::Slow(node)) => Some(world.nodes[*node].disk.asked_to_write()),
            _ => None,
        },
        _ => None,
    }
}

impl Nemesis {
    /// Starts a strike, if there is a node or link that it can hit now.
    pub(super) fn begin(&mut self, world: &mut World, strike: &Strike) -> Option<Held> {
        let up: Vec<Index> = (0..world.nodes.len()).filter(|n| world.nodes[*n].is_up()).collect();
        let one = |dice: u64| super::one_of(up.clone(), dice);
        match strike.class {
            Class::Partition => partition(world, strike),
            Class::OneWay => {
                let (a, b) = (one(strike.dice[0])?, one(strike.dice[1])?);
                (a != b).then(|| {
                    world.cut(a, b);
                    Held::Cuts(vec![(a, b)])
                })
            }
            Class::Deaf => {
                let victim = one(strike.dice[0])?;
                let cuts: Vec<_> = (0..world.nodes.len()).filter(|n| *n != victim).map(|n| (n, victim)).collect();
                cuts.iter().for_each(|(from, to)| world.cut(*from, *to));
                Some(Held::Cuts(cuts))
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
            Class::Drop => {
                world.lose_frames(1 + strike.dice[0] % LOSS_MAX);
                Some(Held::Network(strike.class))
            }
            Class::Duplicate | Class::Reorder | Class::Bandwidth => {
                let between = |(low, high): (u64, u64)| low + strike.dice[0] % (high - low);
                let network = &mut world.links.network;
                match strike.class {
                    Class::Duplicate => network.duplicates = between(MIXED_UP),
                    Class::Reorder => network.reordered = between(MIXED_UP),
                    _ => network.bandwidth = Some(between(BANDWIDTH)),
                }
                Some(Held::Network(strike.class))
            }
            Class::Distance => {
                let node = one(strike.dice[0])?;
                let [out, back] = [strike.dice[1], strike.dice[2]].map(|dice| Span::ms(dice % DETOUR_MAX_MS));
                world.links.detours.insert(node, (out, back));
                Some(Held::Far(node))
            }
            Class::Nat => hide(world, strike),
            Class::Censor => {
                world.begin_censorship(&self.liars);
                Some(Held::Censorship)
            }
            Class::Hog => {
                let liars: Vec<Index> = self.liars.iter().copied().filter(|n| up.contains(n)).collect();
                let liar = super::one_of(liars, strike.dice[0])?;
                world.nodes[liar].hogs = true;
                Some(Held::Hog(liar))
            }
            Class::Eclipse => {
                let honest = up.into_iter().filter(|n| !self.liars.contains(n)).collect();
                let victim = super::one_of(honest, strike.dice[0])?;
                world.begin_eclipse(victim, &self.liars);
                Some(Held::Eclipse(victim))
            }
            _ => self.begin_on_machine(world, strike, &up),
        }
    }
}

impl Held {
    /// Takes the strike back, and says whether it was felt where no counter does. A setting stays while another strike of
    /// its class is in force.
    pub(super) fn release(self, world: &mut World, is_last: bool) -> bool {
        match self {
            Self::Cuts(cuts) => {
                for (a, b) in cuts {
                    world.mend(a, b);
                }
                true
            }
            Self::Flapping { pair: (a, b), .. } => {
                world.mend(a, b);
                world.mend(b, a);
                true
            }
            // As it always was: the first end of two that overlap ends both.
            Self::Network(Class::Drop) => {
                world.lose_frames(0);
                true
            }
            Self::Network(class) => {
                if is_last {
                    let network = &mut world.links.network;
                    match class {
                        Class::Duplicate => network.duplicates = 0,
                        Class::Reorder => network.reordered = 0,
                        _ => network.bandwidth = None,
                    }
                }
                true
            }
            Self::Hidden(nodes) => {
                show(world, &nodes);
                true
            }
            Self::Censorship => {
                world.end_censorship();
                true
            }
            Self::Eclipse(victim) => {
                world.end_eclipse(victim);
                true
            }
            Self::Far(node) => {
                world.links.detours.remove(&node);
                true
            }
            Self::Hog(node) => {
                world.nodes[node].hogs = !is_last;
                true
            }
            machine => machine.release_machine(world),
        }
    }

    /// How often it turns, if it does.
    pub(super) const fn period(&self) -> Option<Span> {
        match self {
            Self::Flapping { period, .. } => Some(*period),
            _ => None,
        }
    }

    /// A flapping link goes up or down; says when it does so again.
    pub(super) fn turn(&mut self, world: &mut World) -> Option<Span> {
        let Self::Flapping { pair: (a, b), is_cut, period } = self else { return None };
        for (from, to) in [(*a, *b), (*b, *a)] {
            if *is_cut {
                world.mend(from, to);
            } else {
                world.cut(from, to);
            }
        }
        *is_cut = !*is_cut;
        Some(*period)
    }
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

/// About half of the nodes go behind NATs: connections among them break, and none comes about again.
fn hide(world: &mut World, strike: &Strike) -> Option<Held> {
    let side = |n: Index| (strike.dice[n % 4] >> ((n / 4) % 64)) & 1;
    let open = |n: &Index| !world.nodes[*n].setup.dials_out_only;
    let hidden: Vec<Index> = (0..world.nodes.len()).filter(|n| side(*n) == 1).filter(open).collect();
    // One alone can be reached by dialling out to the others.
    if hidden.len() < 2 {
        return None;
    }
    world.say(0, format!("BEHIND NATS {hidden:?}"));
    for node in &hidden {
        world.nodes[*node].setup.dials_out_only = true;
    }
    for (a, b) in pairs(&hidden) {
        if world.links.is_connected(a, b) {
            world.disconnect(a, b, Span(0));
            world.connect_soon(a, b, false);
        }
    }
    Some(Held::Hidden(hidden))
}

/// The nodes can be dialled again.
fn show(world: &mut World, hidden: &[Index]) {
    for node in hidden {
        world.nodes[*node].setup.dials_out_only = false;
    }
    // To all, not only to each other: strikes overlap, and those of another may have hidden themselves from these.
    for node in hidden {
        for peer in world.links.partners(*node).collect::<Vec<_>>() {
            if !world.links.is_connected(*node, peer) {
                world.connect_soon(*node, peer, false);
            }
        }
    }
}

fn pairs(nodes: &[Index]) -> Vec<(Index, Index)> {
    nodes.iter().enumerate().flat_map(|(i, a)| nodes[..i].iter().map(|b| (*a, *b))).collect()
}
