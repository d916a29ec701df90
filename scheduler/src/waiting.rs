//! Jobs of this node that wait for room: in order of arrival, class by class of what they need. Whether there is room anywhere
//! is asked for the first of a class only, and only when there is news; a job that waits behind others costs nothing.
//!
//! Who gets the room is decided here; how it is asked for, in `brain/place.rs`.

use std::collections::{BTreeMap, VecDeque};

use sinew_crdt_state::ids::JobId;
use sinew_crdt_state::program::Runners;
use sinew_crdt_state::spec::{JobSpec, Resources};
use sinew_crdt_state::volume::Volumes;

use crate::config::{ADVERT_EVERY, ADVERT_EVERY_MAX, PLACE_AGAIN, WAITING_LOOK_EVERY};
use crate::peers::Peers;
use crate::time::{Span, Time};
use crate::wire::Advert;

/// What a job asks of a node. Where one job finds no room, no other that asks for the same does.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Need {
    cpu_milli: u32,
    memory_bytes: u64,
    disk_bytes: u64,
    output_bytes_max: u64,
    labels: BTreeMap<String, String>,
    runners: Runners,
    volumes: Volumes,
}

impl Need {
    pub(crate) fn of(spec: &JobSpec) -> Self {
        let Resources { cpu_milli, memory_bytes, disk_bytes } = spec.resources;
        let output_bytes_max = spec.limits.output_bytes_max;
        let volumes = if spec.volumes.is_empty() { Volumes::default() } else { spec.needed_volumes() };
        let (labels, runners) = (spec.labels.clone(), spec.runners());
        Self { cpu_milli, memory_bytes, disk_bytes, output_bytes_max, labels, runners, volumes }
    }

    /// What tells nodes of it, in the name of `job`.
    pub(crate) fn advert(&self, job: JobId) -> Advert {
        Advert {
            job,
            cpu_milli: self.cpu_milli,
            memory_bytes: self.memory_bytes,
            labels: self.labels.clone(),
            runners: self.runners,
            volumes: self.volumes.clone(),
            disk_bytes: self.disk_bytes,
            output_bytes_max: self.output_bytes_max,
        }
    }
}

/// The number of a class.
pub(crate) type ClassId = u64;

/// Jobs that need the same.
#[derive(Debug)]
struct Class {
    need: Need,
    /// By their numbers in order of arrival.
    jobs: BTreeMap<u64, JobId>,
    /// Whether its first job may find room for all that is known here: somebody joined it, or a node showed interest.
    fresh: bool,
    /// Looks for room without news then.
    look_at: Time,
    /// Not before this: it had chased room that others took first.
    rests_until: Time,
    advert_at: Time,
    advert_every: Span,
}

/// The queue.
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    ids: BTreeMap<Need, ClassId>,
    classes: BTreeMap<ClassId, Class>,
    last: ClassId,
    seen_news: u64,
    /// Whether a class may have become fresh since all were looked after.
    stirred: bool,
    /// The class that was served last: the one after it is first the next time.
    turn: ClassId,
    /// When the first class is due to look, with or without news.
    look_at: Option<Time>,
}

impl Waiting {
    /// Puts a job into the queue, at the place that its arrival gives it.
    pub(crate) fn join(&mut self, spec: &JobSpec, arrival: u64, job: JobId, now: Time) -> ClassId {
        let need = Need::of(spec);
        let id = self.ids.get(&need).copied().unwrap_or_else(|| {
            self.last += 1;
            self.ids.insert(need.clone(), self.last);
            let class = Class {
                need,
                jobs: BTreeMap::new(),
                fresh: true,
                look_at: now,
                rests_until: Time::default(),
                advert_at: now,
                advert_every: ADVERT_EVERY,
            };
            self.classes.insert(self.last, class);
            self.last
        });
        if let Some(class) = self.classes.get_mut(&id) {
            // Behind another job that found no room there is nothing to look for.
            let first = class.jobs.first_key_value().is_none_or(|(first, _)| arrival < *first);
            class.fresh |= first;
            self.stirred |= first;
            class.jobs.insert(arrival, job);
        }
        id
    }

    pub(crate) fn leave(&mut self, id: ClassId, arrival: u64) {
        let Some(class) = self.classes.get_mut(&id) else { return };
        class.jobs.remove(&arrival);
        if class.jobs.is_empty()
            && let Some(class) = self.classes.remove(&id)
        {
            self.ids.remove(&class.need);
        }
    }

    /// A node wants jobs of this class.
    pub(crate) fn interest(&mut self, id: ClassId) {
        if let Some(class) = self.classes.get_mut(&id) {
            class.fresh = true;
            self.stirred = true;
        }
    }

    /// Whether some class has a reason to look for room.
    pub(crate) fn is_due(&self, peers: &Peers, now: Time) -> bool {
        let due = self.stirred || self.seen_news != peers.news || self.look_at.is_some_and(|at| at <= now);
        due && !self.classes.is_empty()
    }

    /// The classes that have a reason to look, the one first whose turn it is. They have looked once this was asked.
    pub(crate) fn take_due(&mut self, peers: &Peers, now: Time) -> VecDeque<ClassId> {
        let news = self.seen_news != peers.news;
        self.seen_news = peers.news;
        self.stirred = false;
        let mut due = VecDeque::new();
        for (id, class) in &mut self.classes {
            class.fresh |= news;
            if class.rests_until <= now && (class.fresh || class.look_at <= now) {
                class.fresh = false;
                due.push_back(*id);
            }
        }
        let behind = due.iter().take_while(|id| **id <= self.turn).count();
        due.rotate_left(behind % due.len().max(1));
        due
    }

    /// The job of this class that has waited longest.
    pub(crate) fn first(&self, id: ClassId) -> Option<JobId> {
        self.classes.get(&id)?.jobs.first_key_value().map(|(_, job)| *job)
    }

    pub(crate) const fn served(&mut self, id: ClassId) {
        self.turn = id;
    }

    /// The first of this class, with or without slots elsewhere, found no room; a node that may have some by then can be asked at
    /// `ask_at`. Returns what to tell the mesh now, if anything.
    pub(crate) fn no_room(&mut self, id: ClassId, has_slots: bool, ask_at: Option<Time>, now: Time) -> Option<Advert> {
        let class = self.classes.get_mut(&id)?;
        let (_, job) = class.jobs.first_key_value()?;
        class.fresh = false;
        let slow = now + WAITING_LOOK_EVERY;
        class.look_at = ask_at.map_or(slow, |at| at.max(now + PLACE_AGAIN).min(slow));
        if has_slots && class.jobs.len() == 1 {
            return None;
        }
        if now < class.advert_at {
            class.look_at = class.look_at.min(class.advert_at);
            return None;
        }
        class.advert_at = now + class.advert_every;
        class.look_at = class.look_at.min(class.advert_at);
        class.advert_every = Span((2 * class.advert_every.0).min(ADVERT_EVERY_MAX.0));
        Some(class.need.advert(*job))
    }

    /// One of this class was offered to somebody: the mesh is not as it was.
    pub(crate) fn moved(&mut self, id: ClassId) {
        if let Some(class) = self.classes.get_mut(&id) {
            class.advert_every = ADVERT_EVERY;
        }
    }

    /// A job that needs this chases room in vain: so would the others.
    pub(crate) fn rest(&mut self, spec: &JobSpec, now: Time) {
        let class = self.ids.get(&Need::of(spec)).and_then(|id| self.classes.get_mut(id));
        if let Some(class) = class {
            class.rests_until = now + PLACE_AGAIN;
            class.fresh = true;
            self.stirred = true;
        }
    }

    /// All classes have been looked after.
    pub(crate) fn looked(&mut self, now: Time) {
        let due = |class: &Class| {
            let at = if class.fresh { class.rests_until.max(now) } else { class.look_at };
            at.max(class.rests_until)
        };
        self.look_at = self.classes.values().map(due).min();
    }

    /// When a class is due to look whatever happens.
    pub(crate) fn timeout(&self) -> Option<Time> {
        self.look_at.filter(|_| !self.classes.is_empty())
    }
}
