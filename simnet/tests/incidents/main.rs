//! Incidents, one test each: something goes wrong at a bad moment, and what users were promised holds all the same.
//!
//! Each is run with a few seeds, so that delays and choices differ. Incidents that concern healthy meshes, load and
//! forgetting are in the neighbouring test files.

mod attacks;
mod blobs;
mod clients;
mod clocks;
mod copies;
mod custody;
mod disks;
mod far;
mod kills;
mod late;
mod leases;
mod links;
mod meshes;
mod pauses;
mod places;
mod results;
mod serials;
mod splits;
mod stewards;
mod wiped;

use sinew_simnet::{NodeSetup, World};

/// A node with so many cores for tasks; none makes a brain that runs nothing itself.
fn cores(n: u32) -> NodeSetup {
    NodeSetup { cpu_milli: n * 1_000, ..NodeSetup::default() }
}

/// A mesh of `brain`, which runs nothing, and workers of one core each.
fn brain_and_workers<'a>(seed: u64, workers: impl IntoIterator<Item = &'a str>) -> World {
    World::seed(seed).with(cores(0)).nodes(["brain"]).with(cores(1)).nodes(workers)
}

/// Every link is mended, everything under way ends, and what must hold at rest holds.
fn all_ends_well(world: &mut World) {
    world.heal();
    world.run_until_idle();
    world.check_invariants();
}
