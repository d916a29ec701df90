//! What work costs the disk in syncs and in bytes, by how much of it is under way: counted on a disk in memory. An idle node hands
//! nothing over, which the simulator counts, and without that the storage has nothing to sync.

use sinew_scheduler::io::{Record, Ticket};

use super::Rig;
use super::disk::SimDisk;
use super::jobs::{sealed, sign, usual};

/// What so many groups cost.
#[derive(Debug)]
struct Cost {
    groups: u64,
    syncs: u64,
    written: u64,
    journaled: u64,
}

impl Cost {
    fn each(count: u64, of: u64) -> f64 {
        count as f64 / of as f64
    }
}

/// Hands over groups of records, each when the one before it is on disk, and lets the last checkpoint be made.
fn cost(groups: impl Iterator<Item = Vec<Record>>) -> Cost {
    let disk = SimDisk::default();
    let rig = Rig::open(&disk).expect("a ledger");
    let before = {
        let books = disk.books();
        (books.syncs, books.written, books.journaled)
    };
    let mut ticket = 0;
    for records in groups {
        ticket += 1;
        rig.storage.persist(Ticket(ticket), records, true);
        rig.until("a group", |(done, ..)| done == ticket);
    }
    rig.storage.close();
    let books = disk.books();
    Cost {
        groups: ticket,
        syncs: books.syncs - before.0,
        written: books.written - before.1,
        journaled: books.journaled - before.2,
    }
}

/// Groups of jobs that go through a mesh of three, so many of them at a time. Two for each: the spec, and all that comes until the
/// verdict. The seal goes along with the next job.
fn jobs(jobs: u64, at_once: u64) -> impl Iterator<Item = Vec<Record>> {
    let mut seals: Vec<Record> = Vec::new();
    (0..jobs).step_by(usize::try_from(at_once).expect("few")).flat_map(move |first| {
        let jobs: Vec<_> = (first..first + at_once).map(usual).collect();
        let signed = sign(&jobs);
        let facts = |stages: std::ops::Range<usize>| {
            let facts = signed.iter().flat_map(move |facts| facts[stages.clone()].iter().cloned());
            facts.map(|(id, envelope)| Record::Fact { id, envelope })
        };
        let begun = facts(0..1).chain(std::mem::take(&mut seals)).collect();
        let done = facts(1..signed[0].len()).collect();
        seals.extend((first..).zip(&jobs).zip(&signed).map(|((n, job), facts)| sealed(job.id, n, facts, true)));
        [begun, done]
    })
}

/// Jobs that wait: their specs, so many at a time.
fn waiting(jobs: u64, at_once: u64) -> impl Iterator<Item = Vec<Record>> {
    (0..jobs).step_by(usize::try_from(at_once).expect("few")).map(move |first| {
        let jobs: Vec<_> = (first..first + at_once).map(usual).collect();
        let specs = sign(&jobs).into_iter().map(|mut facts| facts.swap_remove(0));
        specs.map(|(id, envelope)| Record::Fact { id, envelope }).collect()
    })
}

#[test]
fn work_costs_few_syncs() {
    let work = [
        ("200 jobs, one at a time", 200, cost(jobs(200, 1))),
        ("2,000 jobs, one at a time", 2_000, cost(jobs(2_000, 1))),
        ("4,096 jobs, 64 at once", 4_096, cost(jobs(4_096, 64))),
        ("4,096 waiting jobs, 32 at once", 4_096, cost(waiting(4_096, 32))),
    ];
    for (what, jobs, cost) in &work {
        println!(
            "{what}: {:.3} groups, {:.3} syncs, {:.0} bytes written of which {:.0} to the journal, each",
            Cost::each(cost.groups, *jobs),
            Cost::each(cost.syncs, *jobs),
            Cost::each(cost.written, *jobs),
            Cost::each(cost.journaled, *jobs)
        );
    }
}
