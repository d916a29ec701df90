//! What links are like: delays by region, loss, duplicates, overtaking, bandwidth. Settings only; `link` applies them.

use std::fmt;
use std::str::FromStr;

use sinew_scheduler::time::{Span, Time};

use crate::distribution::Distribution;
use crate::queue::Index;
use crate::world::World;

/// One-way delays between five regions, ms: Virginia, Frankfurt, São Paulo, Singapore, Sydney. Half of round-trip times that
/// cloud providers publish, rounded.
const GEO_MS: [[u64; 5]; 5] = [
    [1, 45, 60, 110, 100],
    [45, 1, 100, 80, 140],
    [60, 100, 1, 165, 155],
    [110, 80, 165, 1, 46],
    [100, 140, 155, 46, 1],
];
/// Bytes that one packet carries: what an Ethernet frame leaves.
const PACKET_LEN: u64 = 1_200;
/// The part of a probe timeout that is not the round trip: the peer's delay of acknowledgements.
const PROBE_TIMEOUT_MIN: Span = Span::ms(25);
/// A connection that loses so much has broken.
const RETRANSMIT_MAX: Span = Span::ms(5_000);

/// How long data travels one way.
#[derive(Debug, Clone, PartialEq)]
pub enum Latency {
    /// The same everywhere, microseconds.
    Same(Distribution),
    /// By the regions of both ends: the median from row to column, microseconds, spread log-normally.
    Regions {
        /// Medians. Nodes without a region of their own go round robin.
        median_us: Vec<Vec<u64>>,
        /// The spread: see [`Distribution::LogNormal`].
        sigma: f64,
    },
}

/// What the links of a world are like.
#[derive(Debug, Clone, PartialEq)]
pub struct Network {
    /// One-way delay.
    pub latency: Latency,
    /// Packets lost, per 10,000. A frame on a stream waits for the packet to be sent again; gossip is lost.
    pub loss: u64,
    /// Gossip messages that arrive twice, per 10,000.
    pub duplicates: u64,
    /// Frames and gossip messages that take several times as long, so that others overtake them, per 10,000. Frames of
    /// one stream keep their order.
    pub reordered: u64,
    /// Bytes per second, each way of each link; `None` for no limit.
    pub bandwidth: Option<u64>,
}

impl Default for Network {
    fn default() -> Self {
        Self {
            latency: Latency::Same(Distribution::Uniform { low: 200, high: 1_000 }),
            loss: 0,
            duplicates: 0,
            reordered: 0,
            bandwidth: None,
        }
    }
}

impl Network {
    /// One switch: 0.2 to 1 ms, nothing lost, bandwidth for everything. What a world has unless told otherwise.
    #[must_use]
    pub fn lan() -> Self {
        Self::default()
    }

    /// One country: 20 ms, one packet in a thousand lost, 100 Mbit per second.
    #[must_use]
    pub fn wan() -> Self {
        let latency = Latency::Same(Distribution::LogNormal { median: 20_000, sigma: 0.25 });
        Self { latency, loss: 10, reordered: 10, bandwidth: Some(12_500_000), ..Self::default() }
    }

    /// Five regions on five continents, with the losses and the bandwidth of [`Self::wan`].
    #[must_use]
    pub fn geo() -> Self {
        let median_us = GEO_MS.iter().map(|row| row.iter().map(|ms| ms * 1_000).collect()).collect();
        Self { latency: Latency::Regions { median_us, sigma: 0.1 }, ..Self::wan() }
    }

    /// Without loss, duplicates or overtaking.
    #[must_use]
    pub const fn clean(mut self) -> Self {
        (self.loss, self.duplicates, self.reordered) = (0, 0, 0);
        self
    }
}

/// Networks that have a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Preset {
    /// [`Network::lan`].
    Lan,
    /// [`Network::wan`].
    Wan,
    /// [`Network::geo`].
    Geo,
}

/// A name that no network has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("write lan, wan or geo")]
pub struct UnknownNetwork;

impl Preset {
    const ALL: [(Self, &'static str); 3] = [(Self::Lan, "lan"), (Self::Wan, "wan"), (Self::Geo, "geo")];

    /// What it stands for.
    #[must_use]
    pub fn network(self) -> Network {
        match self {
            Self::Lan => Network::lan(),
            Self::Wan => Network::wan(),
            Self::Geo => Network::geo(),
        }
    }
}

impl fmt::Display for Preset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Self::ALL[*self as usize].1)
    }
}

impl FromStr for Preset {
    type Err = UnknownNetwork;

    fn from_str(text: &str) -> Result<Self, UnknownNetwork> {
        Self::ALL.iter().find(|(_, name)| *name == text).map(|(preset, _)| *preset).ok_or(UnknownNetwork)
    }
}

impl World {
    /// Links are like this from here on.
    ///
    /// # Panics
    /// When a delay matrix is not square.
    #[must_use]
    pub fn network(mut self, network: Network) -> Self {
        self.set_network(network);
        self
    }

    /// Links are like this from now on.
    ///
    /// # Panics
    /// When a delay matrix is not square.
    pub fn set_network(&mut self, network: Network) {
        if let Latency::Regions { median_us, .. } = &network.latency {
            let square = !median_us.is_empty() && median_us.iter().all(|row| row.len() == median_us.len());
            assert!(square, "a delay matrix has as many rows as columns");
        }
        self.links.network = network;
    }

    /// Whether two nodes have a connection, cut or not.
    #[must_use]
    pub fn connected(&self, a: &str, b: &str) -> bool {
        self.links.is_connected(self.index(a), self.index(b))
    }

    /// What links are like.
    #[must_use]
    pub const fn network_now(&self) -> &Network {
        &self.links.network
    }

    /// One-way delays lie between these, microseconds.
    #[must_use]
    pub fn latency_us(mut self, low: u64, high: u64) -> Self {
        self.links.network.latency = Latency::Same(Distribution::Uniform { low, high });
        self
    }

    /// The region of a node: its own, or by number.
    pub(crate) fn region(&self, node: Index) -> usize {
        self.nodes[node].setup.region.unwrap_or(node)
    }

    fn delay(&self, from: Index, to: Index) -> Distribution {
        match &self.links.network.latency {
            Latency::Same(distribution) => *distribution,
            Latency::Regions { median_us, sigma } => {
                let row = &median_us[self.region(from) % median_us.len()];
                Distribution::LogNormal { median: row[self.region(to) % row.len()], sigma: *sigma }
            }
        }
    }

    /// How long a message of `len` bytes takes, without waiting for the link.
    pub(crate) fn latency(&mut self, from: Index, to: Index) -> Span {
        let delay = self.delay(from, to);
        let detour = self.links.detour(from, to);
        self.counters.detours += u64::from(detour.0 > 0);
        let once = self.draw(&delay) + detour.0;
        if self.chance(self.links.network.reordered) {
            self.counters.reordered += 1;
            return Span(once + delay.median() * (1 + self.dice(4)));
        }
        Span(once)
    }

    /// The usual round trip between two nodes.
    pub(crate) fn round_trip(&self, a: Index, b: Index) -> Span {
        let detours = self.links.detour(a, b) + self.links.detour(b, a);
        Span(self.delay(a, b).median() + self.delay(b, a).median()) + detours
    }

    /// How long a message waits for the link and is on its way into it. Whatever comes later waits for it.
    pub(crate) fn transmit(&mut self, from: Index, to: Index, len: u64) -> Span {
        let free = self.links.free_at.get(&(from, to)).copied().unwrap_or_default();
        let (free, wait) = self.transmit_after(free, len);
        if let Some(free) = free {
            self.links.free_at.insert((from, to), free);
        }
        wait
    }

    /// The same for blobs: they wait for each other, and frames do not wait for them, which share a link in small pieces.
    pub(crate) fn transmit_blob(&mut self, from: Index, to: Index, len: u64) -> Span {
        let free = self.links.blobs_free_at.get(&(from, to)).copied().unwrap_or_default();
        let (free, wait) = self.transmit_after(free, len);
        if let Some(free) = free {
            self.links.blobs_free_at.insert((from, to), free);
        }
        wait
    }

    /// When a way that is free from then on is free again after so many bytes, where it carries no more than so much, and how long
    /// they take from now.
    fn transmit_after(&mut self, free: Time, len: u64) -> (Option<Time>, Span) {
        let Some(bandwidth) = self.links.network.bandwidth else { return (None, Span(0)) };
        let start = free.max(self.now);
        self.counters.queued_frames += u64::from(start > self.now);
        let free = start + Span(len.saturating_mul(1_000_000) / bandwidth.max(1));
        (Some(free), free - self.now)
    }

    /// How much later a frame arrives because packets of it were lost: each loss costs a probe timeout, twice as long each
    /// time (RFC 9002, 6.2).
    pub(crate) fn retransmit(&mut self, from: Index, to: Index, len: u64) -> Span {
        let loss = self.links.network.loss;
        if loss == 0 {
            return Span(0);
        }
        let packets = len.div_ceil(PACKET_LEN).max(1);
        // For the small chances that are meant here, losses of packets add up.
        let chance = (loss * packets).min(9_999);
        let mut timeout = self.round_trip(from, to) + PROBE_TIMEOUT_MIN;
        let mut late = Span(0);
        while late < RETRANSMIT_MAX && self.chance(if late.0 == 0 { chance } else { loss.min(9_999) }) {
            self.counters.retransmitted += 1;
            late = late + timeout;
            timeout = timeout + timeout;
        }
        late
    }
}
