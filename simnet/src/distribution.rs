//! How delays and durations are spread. Samples are whole numbers; what they count is the caller's business.
//!
//! Logarithms and powers come from the platform: a seed gives the same trace wherever the same program runs, not
//! necessarily across programs built for different platforms.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use crate::world::World;

/// No sample is longer than this many times the median or the least: tails that reach past a run say nothing.
const TAIL_MAX: f64 = 1_000.0;

/// A distribution of whole numbers, in the unit that its use states.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Distribution {
    /// Always the same.
    Constant(u64),
    /// Anything between these, both included, with equal chance.
    Uniform {
        /// The least.
        low: u64,
        /// The most.
        high: u64,
    },
    /// Many small, few large: what networks and disks show.
    LogNormal {
        /// Half of all samples are below.
        median: u64,
        /// The standard deviation of the logarithm: 0.5 gives a p99 of about 3 times the median.
        sigma: f64,
    },
    /// A heavy tail: what task durations show.
    Pareto {
        /// The least.
        least: u64,
        /// The tail's exponent, above 0; at 1 and below there is no mean.
        shape: f64,
    },
}

impl Distribution {
    /// Draws one.
    pub(crate) fn sample(&self, rng: &mut ChaCha8Rng) -> u64 {
        match *self {
            Self::Constant(value) => value,
            Self::Uniform { low, high } => rng.random_range(low..=high.max(low)),
            Self::LogNormal { median, sigma } => scaled(median, (sigma * normal(rng)).exp()),
            Self::Pareto { least, shape } => scaled(least, open_unit(rng).powf(-1.0 / shape.max(f64::MIN_POSITIVE))),
        }
    }

    /// About the middle one.
    #[must_use]
    pub fn median(&self) -> u64 {
        match *self {
            Self::Constant(value) => value,
            Self::Uniform { low, high } => low.midpoint(high.max(low)),
            Self::LogNormal { median, .. } => median,
            Self::Pareto { least, shape } => scaled(least, 2_f64.powf(1.0 / shape.max(f64::MIN_POSITIVE))),
        }
    }
}

fn scaled(unit: u64, factor: f64) -> u64 {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a positive number, far below 2^53 microseconds"
    )]
    let value = (unit as f64 * factor.min(TAIL_MAX)) as u64;
    value
}

/// Uniform in (0, 1].
fn open_unit(rng: &mut ChaCha8Rng) -> f64 {
    1.0 - rng.random::<f64>()
}

/// A standard normal sample, by Box and Muller.
fn normal(rng: &mut ChaCha8Rng) -> f64 {
    let radius = (-2.0 * open_unit(rng).ln()).sqrt();
    radius * (std::f64::consts::TAU * rng.random::<f64>()).cos()
}

impl World {
    pub(crate) fn draw(&mut self, distribution: &Distribution) -> u64 {
        distribution.sample(&mut self.rng)
    }

    /// Whether something of this chance happens now. A chance of 0 draws nothing, so that worlds without the fault
    /// stay as they are.
    pub(crate) fn chance(&mut self, per_ten_thousand: u64) -> bool {
        per_ten_thousand > 0 && self.dice(10_000) < per_ten_thousand
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    fn sorted(distribution: &Distribution) -> Vec<u64> {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let mut all: Vec<u64> = (0..20_001).map(|_| distribution.sample(&mut rng)).collect();
        all.sort_unstable();
        all
    }

    #[test]
    fn samples_follow_their_distribution() {
        assert_eq!(sorted(&Distribution::Constant(7))[10_000], 7);
        let uniform = sorted(&Distribution::Uniform { low: 100, high: 300 });
        assert!(uniform[0] == 100 && uniform[20_000] == 300 && uniform[10_000].abs_diff(200) < 5);
        let normal = sorted(&Distribution::LogNormal { median: 10_000, sigma: 0.5 });
        // p99 of a log-normal: median times e^(2.326 sigma).
        assert!(normal[10_000].abs_diff(10_000) < 300 && normal[19_800].abs_diff(31_990) < 2_000);
        let pareto = sorted(&Distribution::Pareto { least: 1_000, shape: 2.0 });
        // Median: least times 2^(1/2); p99: least times 10.
        assert!(pareto[0] >= 1_000 && pareto[10_000].abs_diff(1_414) < 30 && pareto[19_800].abs_diff(10_000) < 900);
    }
}
