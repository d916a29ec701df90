//! What jobs take of memory: bytes of one that waits on the nodes that know it, and allocations of one that runs. Counted, not
//! estimated.
#![expect(unsafe_code, reason = "an allocator that counts can be written in no other way")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use sinew_simnet::{NodeSetup, World, answered, job, micros, millis, seconds};

/// The system's allocator, with counts. Each thread has its own, as each test has its own world, on its own thread.
struct Counting;

thread_local! {
    /// Bytes held.
    static HELD: Cell<usize> = const { Cell::new(0) };
    /// Allocations so far, and those that were made larger or smaller.
    static MADE: Cell<u64> = const { Cell::new(0) };
}

/// What an allocation takes beyond what was asked for, roughly: a word before it, and up to 16 bytes.
const fn taken(bytes: usize) -> usize {
    (bytes + 8).next_multiple_of(16)
}

fn hold(more: usize, less: usize) {
    // Not there any more while a thread ends: then nobody counts.
    let _ = HELD.try_with(|held| held.set(held.get().wrapping_add(more).wrapping_sub(less)));
}

fn make() {
    let _ = MADE.try_with(|made| made.set(made.get() + 1));
}

// SAFETY: every call goes to the system's allocator with the arguments that came; the counts are no part of it, and making them
// allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        hold(taken(layout.size()), 0);
        make();
        // SAFETY: the caller's promise about `layout` is the one that the system's allocator wants.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        hold(0, taken(layout.size()));
        // SAFETY: `at` came from `alloc` or `realloc` here, so from the system's allocator, with this layout.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        hold(taken(size), taken(layout.size()));
        make();
        // SAFETY: as for `dealloc`, and the caller's promise about `size` is the one that the system's allocator wants.
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Bytes that the core of a node holds: those that are free once it is gone.
fn bytes_of(world: &mut World, name: &str) -> usize {
    let before = HELD.get();
    world.kill(name);
    before.saturating_sub(HELD.get())
}

/// Bytes that a waiting job takes on the node that leads it, and on one that watches.
fn bytes_per_job(jobs: usize) -> [usize; 2] {
    let setup = NodeSetup { cpu_milli: 1_000, ..NodeSetup::default() };
    let mut world = World::seed(450).with(setup).nodes(["a", "b", "c"]);
    world.run_for(seconds(2));
    for _ in 0..3 {
        world.submit("a", &job().lasting_exactly(seconds(4_000)));
    }
    world.run_for(seconds(2));
    for n in 0..jobs {
        let id = world.submit_later("a", &job());
        world.run_for(millis(1));
        if n + 1 == jobs {
            world.run_until(answered(id));
        }
    }
    world.run_for(seconds(60));
    ["a", "b"].map(|name| bytes_of(&mut world, name) / jobs)
}

/// On the brain and on a steward: what is counted now and a twentieth, so that what comes to it unnoticed shows.
const BYTES_MAX: [usize; 2] = [2_400, 1_760];

#[test]
fn a_waiting_job_takes_little_memory() {
    let bytes = bytes_per_job(2_000);
    println!("a waiting job takes {} bytes on its brain, {} on a steward", bytes[0], bytes[1]);
    assert!(bytes[0] <= BYTES_MAX[0] && bytes[1] <= BYTES_MAX[1], "{bytes:?} bytes, of {BYTES_MAX:?}");
}

/// Allocations that a durable job costs, of all three nodes and the simulator between them, after as many to warm up.
fn allocations_per_job(at_once: usize) -> u64 {
    const JOBS: usize = 320;
    let setup = NodeSetup { cpu_milli: 100_000, ..NodeSetup::default() };
    let mut world = World::seed(451).with(setup).nodes(["a", "b", "c"]);
    world.run_for(seconds(3));
    let plan = job().cpus(0.01).lasting_exactly(micros(50));
    let mut submitted = 0;
    let mut before = 0;
    for until in [JOBS, 2 * JOBS] {
        before = MADE.get();
        while world.ended_jobs() < until {
            while submitted < until && submitted - world.ended_jobs() < at_once {
                world.submit_later("a", &plan);
                submitted += 1;
            }
            assert!(world.step(), "the mesh stands still");
        }
    }
    (MADE.get() - before) / JOBS as u64
}

#[test]
fn a_durable_job_makes_few_allocations() {
    // What is counted now and a twentieth. About nine facts on each of three nodes, each of which is packed, kept, queued for the
    // disk, and sent to two; a third is the simulator's own.
    for (at_once, max) in [(1, 712), (8, 706), (64, 640)] {
        let made = allocations_per_job(at_once);
        println!("a durable job, {at_once} at once: {made} allocations");
        assert!(made <= max, "{made} allocations a job with {at_once} at once, the bound is {max}");
    }
}
