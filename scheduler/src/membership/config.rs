//! Timings: the few that a mesh may choose, and what foca is told because of them.

use std::num::{NonZeroU8, NonZeroU32, NonZeroUsize};
use std::time::Duration;

use foca::PeriodicParams;

use super::packet::PACKET_MAX;
use crate::time::Span;

/// Others asked to try a member that does not answer. foca's own default, from the SWIM paper's evaluation.
pub(super) const HELPERS: usize = 3;

/// How often a node passes on one piece of news, at least. Each time misses a given node as if by dice, so that e^-10 or 1
/// in 20,000 remain without it; and in a mesh of three it outlasts some lost messages. foca says 2 there.
const TRANSMISSIONS_MIN: u8 = 10;

/// And beyond foca's logarithm, which counts on a full exchange of states that we do not have, by so many: of 100 nodes
/// then all but 1 in 1,600 times everyone hears, of 1,000 all but 1 in 9,000.
const TRANSMISSIONS_MORE: u8 = 4;

/// Timings. The same on every node of a mesh, or the impatient ones will suspect the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MembershipConfig {
    /// One member is probed per period, give or take a tenth.
    pub probe_period: Span,
    /// How long a direct answer may take before others are asked to try. At most half of `probe_period` is used.
    pub probe_rtt: Span,
    /// How long a suspect has to object in a mesh of up to ten nodes; grows with the logarithm beyond that.
    pub suspicion: Span,
    /// How often news are passed on, while there are any.
    pub gossip_period: Span,
    /// A known member that was never heard of counts as lost after this long.
    pub join_deadline: Span,
}

impl Default for MembershipConfig {
    fn default() -> Self {
        Self {
            // The heartbeat promised to users.
            probe_period: Span::ms(1_000),
            // Slower than nearly all round trips, between continents too; leaves two thirds of the period for detours.
            probe_rtt: Span::ms(300),
            // Four periods: a suspect is told directly and through gossip, several times over, before it ends.
            suspicion: Span::ms(4_000),
            // Five rounds within a period spread news to a hundred nodes before the next probe.
            gossip_period: Span::ms(200),
            // Longer than connecting through a relay takes.
            join_deadline: Span::ms(15_000),
        }
    }
}

const fn duration(span: Span) -> Duration {
    Duration::from_micros(span.0)
}

/// foca's LAN settings for a mesh of `size`, with our timings.
pub(super) fn foca_config(config: &MembershipConfig, size: usize) -> foca::Config {
    let size = u32::try_from(size).ok().and_then(NonZeroU32::new).unwrap_or(NonZeroU32::MAX);
    let lan = foca::Config::new_lan(size);
    // foca insists on a round trip shorter than the period, and on neither being zero.
    let period = Span(config.probe_period.0.max(2));
    let rtt = Span(config.probe_rtt.0.clamp(1, period.0 / 2));
    // foca's suspicion is 4 s times a factor that grows with the mesh: keep the factor.
    let grown = lan.suspect_to_down_after.as_secs_f64() / 4.0;
    let periodic = |frequency, count| PeriodicParams {
        frequency: duration(frequency),
        num_members: NonZeroUsize::new(count).unwrap_or(NonZeroUsize::MIN),
    };
    foca::Config {
        probe_period: duration(period),
        probe_rtt: duration(rtt),
        num_indirect_probes: NonZeroUsize::new(HELPERS).unwrap_or(NonZeroUsize::MIN),
        max_transmissions: lan
            .max_transmissions
            .saturating_add(TRANSMISSIONS_MORE)
            .max(NonZeroU8::new(TRANSMISSIONS_MIN).unwrap_or(NonZeroU8::MIN)),
        suspect_to_down_after: duration(Span(config.suspicion.0.max(1))).mul_f64(grown),
        // The verified members bound what is remembered, and a forgotten end would show a lost node as joining.
        remove_down_after: None,
        max_packet_size: NonZeroUsize::new(PACKET_MAX).unwrap_or(NonZeroUsize::MIN),
        // How a node learns that it was given up, and comes back.
        notify_down_members: true,
        // One round trip each half minute repairs what gossip missed.
        periodic_announce: Some(periodic(Span::ms(30_000), 1)),
        // `Membership::reach` does this, for the connected ones, also when nobody is left.
        periodic_announce_to_down_members: None,
        periodic_gossip: Some(periodic(Span(config.gossip_period.0.max(1)), HELPERS)),
    }
}
