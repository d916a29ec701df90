//! What foca asks of the outside, kept for later: timers in a queue, messages as effects. Nothing is done here.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use foca::{Member, Notification, Timer};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use sinew_crdt_state::ids::NodeId;

use super::MembershipEffect;
use super::packet::Identity;
use crate::time::{Span, Time};

/// Something to run once its time has come.
#[derive(Debug)]
pub(super) enum Due {
    /// foca's own.
    Foca(Timer<Identity>),
    /// Speak again to a connected node that has not answered yet.
    Reach,
    /// A node that has still never been heard of counts as lost.
    JoinOver(NodeId),
    /// The answers to a probe of our own should be in. The member as it stands if there are none.
    Probed(Member<Identity>),
    /// This suspect has had its time to object.
    SuspicionOver(Member<Identity>),
}

/// foca's runtime.
#[derive(Debug)]
pub(super) struct Io {
    /// Time of the input being handled.
    pub(super) now: Time,
    pub(super) effects: VecDeque<MembershipEffect>,
    /// The node foca probes in this period. foca does not compare it with what a forwarded answer is about; we do.
    pub(super) probing: Option<NodeId>,
    /// Probes that were not answered yet, and when they went out; `None` for a second one, whose answer might be the first one's.
    pub(super) unanswered: BTreeMap<NodeId, Option<Time>>,
    timers: BTreeMap<(Time, u64), Due>,
    /// When the first of them is due: nearly every call asks, and few find anything due.
    first: Option<Time>,
    /// foca's turn of passing on news, while there are none.
    parked: Option<Timer<Identity>>,
    /// Keeps timers of one instant in the order they were asked for.
    sequence: u64,
    rng: ChaCha8Rng,
}

impl Io {
    pub(super) fn new(rng: ChaCha8Rng) -> Self {
        Self {
            now: Time::default(),
            effects: VecDeque::new(),
            probing: None,
            unanswered: BTreeMap::new(),
            timers: BTreeMap::new(),
            first: None,
            parked: None,
            sequence: 0,
            rng,
        }
    }

    pub(super) fn send(&mut self, to: NodeId, bytes: Vec<u8>) {
        self.effects.push_back(MembershipEffect::Send { to, bytes });
    }

    pub(super) fn schedule(&mut self, after: Span, due: Due) {
        self.sequence += 1;
        let at = self.now + after;
        self.timers.insert((at, self.sequence), due);
        self.first = Some(self.first.map_or(at, |first| first.min(at)));
    }

    /// Timers went, or moved.
    fn look_first(&mut self) {
        self.first = self.timers.first_key_value().map(|((at, _), _)| *at);
    }

    /// `span` give or take a tenth, so that nodes started together do not stay in step.
    pub(super) fn jitter(&mut self, span: Span) -> Span {
        Span(span.0.saturating_mul(self.rng.random_range(900..=1100)) / 1000)
    }

    pub(super) const fn poll_timeout(&self) -> Option<Time> {
        self.first
    }

    pub(super) fn is_due(&self) -> bool {
        self.first.is_some_and(|at| at <= self.now)
    }

    pub(super) fn pop_due(&mut self) -> Option<Due> {
        if !self.is_due() {
            return None;
        }
        let (_, due) = self.timers.pop_first()?;
        self.look_first();
        Some(due)
    }

    /// After this process was held up for longer than `tolerated`, moves every timer by as much: what nobody could
    /// have answered in that time must not count as silence.
    pub(super) fn excuse_pause(&mut self, tolerated: Span) {
        let Some(first) = self.poll_timeout() else { return };
        let late = self.now - first;
        if late > tolerated {
            let timers = std::mem::take(&mut self.timers);
            self.timers = timers.into_iter().map(|((at, sequence), due)| ((at + late, sequence), due)).collect();
            self.look_first();
        }
    }

    pub(super) fn clear_timers(&mut self) {
        self.timers.clear();
        self.first = None;
        self.parked = None;
    }

    /// Takes out foca's second stage of a probe of `node`, if that is still to come.
    pub(super) fn take_second_stage(&mut self, node: NodeId) -> Option<Timer<Identity>> {
        let second =
            |due: &Due| matches!(due, Due::Foca(Timer::SendIndirectProbe { probed_id, .. }) if probed_id.node == node);
        let key = self.timers.iter().find(|(_, due)| second(due)).map(|(key, _)| *key)?;
        let second = self.timers.remove(&key);
        self.look_first();
        match second {
            Some(Due::Foca(timer)) => Some(timer),
            _ => None,
        }
    }

    /// Keeps foca's turn of passing on news until there are some: five times a second is often for nothing.
    pub(super) fn park(&mut self, turn: Timer<Identity>) {
        self.parked = Some(turn);
    }

    /// There are news.
    pub(super) fn unpark(&mut self, period: Span) {
        if let Some(turn) = self.parked.take() {
            let after = self.jitter(period);
            self.schedule(after, Due::Foca(turn));
        }
    }
}

impl foca::Runtime<Identity> for Io {
    fn notify(&mut self, _: Notification<'_, Identity>) {
        // States are read off foca after every input: suspicion has no notification, so these would be half the story.
    }

    fn send_to(&mut self, to: Identity, data: &[u8]) {
        self.send(to.node, data.to_vec());
    }

    fn submit_after(&mut self, event: Timer<Identity>, after: Duration) {
        let mut after = Span(u64::try_from(after.as_micros()).unwrap_or(u64::MAX));
        if let Timer::SendIndirectProbe { probed_id, .. } = &event {
            self.probing = Some(probed_id.node);
            let now = Some(self.now);
            self.unanswered.entry(probed_id.node).and_modify(|sent| *sent = None).or_insert(now);
        }
        if repeats(&event) {
            after = self.jitter(after);
            if matches!(event, Timer::PeriodicGossip(_)) {
                self.parked = None;
            }
            // foca tells an outdated chain by an 8-bit token only; with one chain of each kind it cannot mix them up.
            let kind = std::mem::discriminant(&event);
            self.timers.retain(|_, due| !matches!(due, Due::Foca(timer) if std::mem::discriminant(timer) == kind));
            self.look_first();
        }
        self.schedule(after, Due::Foca(event));
    }
}

/// Whether foca keeps exactly one such timer going.
const fn repeats(event: &Timer<Identity>) -> bool {
    matches!(
        event,
        Timer::ProbeRandomMember(_)
            | Timer::PeriodicAnnounce(_)
            | Timer::PeriodicAnnounceDown(_)
            | Timer::PeriodicGossip(_)
    )
}
