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

/// A sync for each group, and a few for each checkpoint, two of them for the checksums of pages. Bytes: whole pages of journal, of which a job alone needs two; zeros, of
/// which new journals are filled until they are as long as the load asks for, and which are most of what the first jobs cost; the
/// job's part of checkpoints. What 64 jobs at once share shows in all three. Each bound is what is counted now and a fifth of the
/// bytes, as checkpoints do not always begin at the same group.
#[test]
fn work_costs_few_syncs() {
    let work = [
        ("200 jobs, one at a time", 200, jobs(200, 1).collect::<Vec<_>>(), 2.2, 33_000.0),
        ("2,000 jobs, one at a time", 2_000, jobs(2_000, 1).collect(), 2.05, 15_500.0),
        ("4,096 jobs, 64 at once", 4_096, jobs(4_096, 64).collect(), 0.05, 8_600.0),
        ("4,096 waiting jobs, 32 at once", 4_096, waiting(4_096, 32).collect(), 0.05, 7_400.0),
    ];
    for (what, jobs, groups, syncs_max, written_max) in work {
        let cost = cost(groups.into_iter());
        let [groups, syncs] = [cost.groups, cost.syncs].map(|count| Cost::each(count, jobs));
        let [written, journaled] = [cost.written, cost.journaled].map(|count| Cost::each(count, jobs));
        println!(
            "{what}: {groups:.3} groups, {syncs:.3} syncs, {written:.0} bytes, {journaled:.0} of them to journals"
        );
        assert!(syncs <= syncs_max, "{what}: {syncs:.3} syncs a job, the bound is {syncs_max}");
        assert!(written <= written_max, "{what}: {written:.0} bytes written a job, the bound is {written_max}");
    }
}
