//! Who is being refused, for how long, and what is said about it: counters, one log line per peer and reason, and bans
//! that double. Closing connections is the driver's business.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::{Duration, Instant};

use libp2p::PeerId;

use crate::config::{BAN_MAX, BAN_MIN, GUARD_LEN_MAX};
use crate::error::{Refusal, RefusalKind};

#[derive(Debug, Clone, Copy)]
struct Ban {
    until: Instant,
    strikes: u32,
}

/// See the module's description.
#[derive(Debug, Default)]
pub(crate) struct Guard {
    counts: BTreeMap<RefusalKind, u64>,
    logged: HashSet<(Option<PeerId>, RefusalKind)>,
    /// Members that are refused, or were until a while ago. There are no more of them than certificates.
    members: HashMap<PeerId, Ban>,
    /// Everybody else. Identities are free to make, so these can be many, and must not push out any other.
    strangers: HashMap<PeerId, Ban>,
    revoked: HashSet<PeerId>,
}

impl Guard {
    /// Counts a refusal and logs the first of its kind for this peer. Returns whether it was the first.
    pub(crate) fn count(&mut self, peer: Option<PeerId>, refusal: &Refusal) -> bool {
        let kind = refusal.kind();
        *self.counts.entry(kind).or_default() += 1;
        if self.logged.len() >= GUARD_LEN_MAX {
            self.logged.clear();
        }
        let first = self.logged.insert((peer, kind));
        if first {
            let who = peer.map_or_else(|| "unknown".to_owned(), |p| name(&p));
            tracing::warn!(peer = %who, reason = %kind, "peer refused: {refusal}");
        }
        first
    }

    /// Refuses `peer` for a while, longer each time, and returns until when. `None` of a stranger when the book of strangers is
    /// full: it can be had no better under a new identity, and those in the book are not forgiven for it.
    pub(crate) fn ban(&mut self, peer: PeerId, is_member: bool, now: Instant) -> Option<Instant> {
        let bans = if is_member { &mut self.members } else { &mut self.strangers };
        if bans.len() >= GUARD_LEN_MAX && !bans.contains_key(&peer) {
            // What members did is remembered beyond its time, as long as there is room, so that a ban doubles.
            bans.retain(|_, ban| ban.until > now);
            if !is_member && bans.len() >= GUARD_LEN_MAX {
                return None;
            }
        }
        let strikes = bans.get(&peer).map_or(0, |ban| ban.strikes.saturating_add(1));
        let time = BAN_MIN.saturating_mul(1 << strikes.min(16)).min(BAN_MAX);
        let until = now + time;
        bans.insert(peer, Ban { until, strikes });
        Some(until)
    }

    /// Until when `peer` is refused, if it is.
    pub(crate) fn banned_until(&self, peer: &PeerId, now: Instant) -> Option<Instant> {
        if self.revoked.contains(peer) {
            // Looked at again long after, should it be reinstated.
            return Some(now + BAN_MAX);
        }
        let bans = [&self.members, &self.strangers];
        bans.into_iter().filter_map(|bans| bans.get(peer)).map(|ban| ban.until).max().filter(|until| *until > now)
    }

    /// Whether the membership of `peer` was revoked.
    pub(crate) fn is_revoked(&self, peer: &PeerId) -> bool {
        self.revoked.contains(peer)
    }

    /// Refuses `peer` for good.
    pub(crate) fn revoke(&mut self, peer: PeerId) {
        self.revoked.insert(peer);
    }

    /// Forgives everything.
    pub(crate) fn reinstate(&mut self, peer: &PeerId) {
        self.revoked.remove(peer);
        self.members.remove(peer);
        self.strangers.remove(peer);
    }

    /// Refusals so far.
    pub(crate) fn counts(&self) -> BTreeMap<RefusalKind, u64> {
        self.counts.clone()
    }
}

/// How a peer is called in logs: its node id when it has one.
pub(crate) fn name(peer: &PeerId) -> String {
    crate::address::node_id(peer).map_or_else(|| peer.to_string(), |node| node.short())
}

/// A random duration in `[base, base × 1.2)`, so that a mesh does not redial in step.
pub(crate) fn jittered(base: Duration) -> Duration {
    use rand::TryRng as _;
    // A failing system RNG costs the jitter, not the redial.
    let random = rand::rngs::SysRng.try_next_u32().unwrap_or(0);
    base + base.mul_f64(0.2 * f64::from(random) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bans_double_and_end() {
        for is_member in [true, false] {
            let (mut guard, peer, now) = (Guard::default(), PeerId::random(), Instant::now());
            assert_eq!(guard.ban(peer, is_member, now), Some(now + BAN_MIN));
            assert_eq!(guard.ban(peer, is_member, now), Some(now + BAN_MIN * 2));
            assert!(guard.banned_until(&peer, now).is_some());
            assert_eq!(guard.banned_until(&peer, now + BAN_MIN * 2), None);
            for _ in 0..100 {
                guard.ban(peer, is_member, now);
            }
            assert_eq!(guard.banned_until(&peer, now), Some(now + BAN_MAX));
            guard.reinstate(&peer);
            assert_eq!(guard.banned_until(&peer, now), None);
        }
    }

    #[test]
    fn memory_has_an_end_and_a_crowd_of_strangers_gets_nobody_forgiven() {
        let (mut guard, now) = (Guard::default(), Instant::now());
        let (member, stranger) = (PeerId::random(), PeerId::random());
        guard.ban(member, true, now);
        guard.ban(stranger, false, now);
        for _ in 0..GUARD_LEN_MAX * 2 {
            let peer = PeerId::random();
            guard.ban(peer, false, now);
            guard.count(Some(peer), &Refusal::Stranger);
        }
        assert!(guard.strangers.len() <= GUARD_LEN_MAX && guard.logged.len() <= GUARD_LEN_MAX);
        assert_eq!(guard.counts()[&RefusalKind::Stranger], 2 * GUARD_LEN_MAX as u64);
        assert!([member, stranger].iter().all(|peer| guard.banned_until(peer, now).is_some()));
        let later = now + BAN_MIN * 2;
        assert!(guard.ban(PeerId::random(), false, later).is_some(), "bans that are over make room");
        assert_eq!(guard.ban(member, true, later), Some(later + BAN_MIN * 2), "what a member did is remembered");
    }

    #[test]
    fn no_number_of_members_gets_another_forgiven() {
        let (mut guard, first, now) = (Guard::default(), PeerId::random(), Instant::now());
        guard.ban(first, true, now);
        for _ in 0..GUARD_LEN_MAX * 2 {
            guard.ban(PeerId::random(), true, now);
        }
        assert!(guard.banned_until(&first, now).is_some());
    }
}
