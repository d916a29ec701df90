//! What a job that waits takes of memory on the nodes that know it: counted, not estimated.
#![expect(unsafe_code, reason = "an allocator that counts can be written in no other way")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use sinew_simnet::{NodeSetup, World, answered, job, millis, seconds};

/// The system's allocator, with a count of what is held.
struct Counting;

static HELD: AtomicUsize = AtomicUsize::new(0);

/// What an allocation takes beyond what was asked for, roughly: a word before it, and up to 16 bytes.
const fn taken(bytes: usize) -> usize {
    (bytes + 8).next_multiple_of(16)
}

// SAFETY: every call goes to the system's allocator with the arguments that came; the count is no part of it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        HELD.fetch_add(taken(layout.size()), Relaxed);
        // SAFETY: the caller's promise about `layout` is the one that the system's allocator wants.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        HELD.fetch_sub(taken(layout.size()), Relaxed);
        // SAFETY: `at` came from `alloc` above, so from the system's allocator, with this layout.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Bytes that the core of a node holds: those that are free once it is gone.
fn bytes_of(world: &mut World, name: &str) -> usize {
    let before = HELD.load(Relaxed);
    world.kill(name);
    before.saturating_sub(HELD.load(Relaxed))
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
const BYTES_MAX: [usize; 2] = [3_800, 2_770];

#[test]
fn a_waiting_job_takes_little_memory() {
    let bytes = bytes_per_job(2_000);
    println!("a waiting job takes {} bytes on its brain, {} on a steward", bytes[0], bytes[1]);
    assert!(bytes[0] <= BYTES_MAX[0] && bytes[1] <= BYTES_MAX[1], "{bytes:?} bytes, of {BYTES_MAX:?}");
}
