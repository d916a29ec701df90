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
    bans: HashMap<PeerId, Ban>,
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

    /// Refuses `peer` for a while, longer each time, and returns until when.
    pub(crate) fn ban(&mut self, peer: PeerId, now: Instant) -> Instant {
        if self.bans.len() >= GUARD_LEN_MAX {
            self.bans.retain(|_, ban| ban.until > now);
        }
        if self.bans.len() >= GUARD_LEN_MAX {
            self.bans.clear();
        }
        let strikes = self.bans.get(&peer).map_or(0, |ban| ban.strikes.saturating_add(1));
        let time = BAN_MIN.saturating_mul(1 << strikes.min(16)).min(BAN_MAX);
        let until = now + time;
        self.bans.insert(peer, Ban { until, strikes });
        until
    }

    /// Until when `peer` is refused, if it is.
    pub(crate) fn banned_until(&self, peer: &PeerId, now: Instant) -> Option<Instant> {
        if self.revoked.contains(peer) {
            // Looked at again long after, should it be reinstated.
            return Some(now + BAN_MAX);
        }
        self.bans.get(peer).map(|ban| ban.until).filter(|until| *until > now)
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
        self.bans.remove(peer);
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
        let (mut guard, peer, now) = (Guard::default(), PeerId::random(), Instant::now());
        assert_eq!(guard.ban(peer, now), now + BAN_MIN);
        assert_eq!(guard.ban(peer, now), now + BAN_MIN * 2);
        assert!(guard.banned_until(&peer, now).is_some());
        assert_eq!(guard.banned_until(&peer, now + BAN_MIN * 2), None);
        for _ in 0..100 {
            guard.ban(peer, now);
        }
        assert_eq!(guard.banned_until(&peer, now), Some(now + BAN_MAX));
        guard.reinstate(&peer);
        assert_eq!(guard.banned_until(&peer, now), None);
    }

    #[test]
    fn memory_has_an_end() {
        let (mut guard, now) = (Guard::default(), Instant::now());
        for _ in 0..GUARD_LEN_MAX * 2 {
            let peer = PeerId::random();
            guard.ban(peer, now);
            guard.count(Some(peer), &Refusal::Stranger);
        }
        assert!(guard.bans.len() <= GUARD_LEN_MAX && guard.logged.len() <= GUARD_LEN_MAX);
        assert_eq!(guard.counts()[&RefusalKind::Stranger], 2 * GUARD_LEN_MAX as u64);
    }
}
