//! Random faults from many seeds: first safety under all of them, then, healed, every job must end.

mod support;

use support::mixed;

/// Runs one seed again: `SIMNET_SEED=1013 cargo nextest run -p sinew-simnet replay`.
#[test]
fn replay() {
    if let Some(seed) = std::env::var("SIMNET_SEED").ok().and_then(|seed| seed.parse().ok()) {
        mixed(seed);
    }
}

macro_rules! soaks {
    ($($name:ident: $from:expr),*) => {
        $(
            #[test]
            fn $name() {
                for seed in $from..$from + 10 {
                    mixed(seed);
                }
            }
        )*
    };
}

soaks!(seeds_1000: 1_000, seeds_1010: 1_010, seeds_1020: 1_020, seeds_1030: 1_030, seeds_1040: 1_040);
