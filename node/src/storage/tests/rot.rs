//! Bytes that rot: what is read is what was written, or it is named, set aside, and the node counts as one that lost its disk.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use sinew_crdt_state::ids::DiskId;
use sinew_scheduler::io::{Record, Ticket};

use redb::ReadableTable as _;

use super::super::rows::SEGMENTS;
use super::disk::SimDisk;
use super::jobs::{Oracle, nodes, sealed, sign, usual};
use super::{HUNG_AFTER, LEDGER, PATIENCE, Rig};

const SUMS: &str = "/disk/ledger.sums";
/// Jobs that are forgotten, that are sealed, and that go on.
const PARTS: (u64, u64, u64) = (24, 48, 60);

/// A ledger closed in good order, with all kinds of jobs.
pub(super) fn ledger(disk: &SimDisk) -> (Oracle, DiskId) {
    let rig = Rig::open(disk).expect("a ledger");
    let (.., number) = rig.storage.reader().load().expect("it reads");
    let (mut oracle, mut ticket) = (Oracle::default(), 0);
    let mut mark = sinew_crdt_state::ledger::OwnerMark::default();
    let jobs: Vec<_> = (0..PARTS.2).map(usual).collect();
    for ((serial, job), facts) in (0..).zip(&jobs).zip(sign(&jobs)) {
        let told = if serial < PARTS.1 { facts.len() } else { 4 };
        let told = facts[..told].iter();
        let mut records: Vec<Record> =
            told.map(|(id, envelope)| Record::Fact { id: *id, envelope: envelope.clone() }).collect();
        if serial < PARTS.1 {
            records.push(sealed(job.id, serial, &facts, true));
        }
        if serial < PARTS.0 {
            mark.add(serial);
            records.push(Record::Forget { job: job.id, owner: nodes()[0].id(), mark: mark.clone() });
        }
        records.iter().for_each(|record| oracle.add(record));
        ticket += 1;
        rig.storage.persist(Ticket(ticket), records, false);
    }
    rig.until("all of it", |(done, ..)| done == ticket);
    rig.storage.close();
    (oracle, number)
}

/// Opens what is left. Right is: all is there; or only of forgotten jobs something is missing; or the disk has another number. In
/// no case there is anything that was never written. Says which of the three it was.
pub(super) fn judge(disk: &SimDisk, oracle: &Oracle, number: DiskId, what: &str) -> usize {
    let opened = Rig::open(disk).and_then(Rig::load);
    let (rig, (stored, _, now)) = opened.unwrap_or_else(|error| panic!("{what}: {error}"));
    let reader = rig.storage.reader();
    let known = |job| oracle.facts.get(&job).cloned().unwrap_or_default();
    for envelope in &stored.facts {
        assert_eq!(known(envelope.entry).get(&envelope.fact_id()), Some(envelope), "{what}: never written");
    }
    for (job, head) in &stored.sealed {
        assert_eq!(oracle.sealed.get(job), Some(head), "{what}: never sealed so");
    }
    let mut missing = 0;
    for (job, facts) in &oracle.facts {
        let held: BTreeMap<_, _> = reader.entry(job).expect("it reads").into_iter().map(|e| (e.fact_id(), e)).collect();
        assert!(held.iter().all(|(id, e)| facts.get(id) == Some(e)), "{what}: never written");
        missing += usize::from(held != *facts && !oracle.forgotten.contains(job));
    }
    let whole = oracle.differs_from(&reader, &stored);
    let remark = reader.remark();
    rig.storage.close();
    let Some(why) = whole else { return 0 };
    assert!(remark.is_some(), "{what}: {why}, and nothing is said");
    let aside = disk.paths().iter().any(|path| path.to_string_lossy().contains(".redb.damaged-"));
    assert!(aside, "{what}: the damaged file is not kept");
    if now != number {
        return 2;
    }
    assert_eq!(missing, 0, "{what}: {why}, and its word counts as before");
    let owners: BTreeMap<_, _> = stored.owners.iter().cloned().collect();
    assert_eq!(owners, oracle.owners, "{what}: {why}");
    1
}

/// In keys, values, branches, redb's own tables, its header, and the sums.
#[test]
fn a_flipped_bit_anywhere_is_never_believed() {
    let whole = SimDisk::default();
    let (oracle, number) = ledger(&whole);
    assert_eq!(judge(&whole.copy(), &oracle, number, "unharmed"), 0);
    let mut outcomes = [0; 3];
    for seed in 0..80 {
        let disk = whole.copy();
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let path = if seed % 8 == 0 { SUMS } else { LEDGER };
        assert!(disk.flip(path.as_ref(), &mut rng));
        outcomes[judge(&disk, &oracle, number, &format!("seed {seed}"))] += 1;
    }
    println!("{outcomes:?}");
    assert!(outcomes[0] > 0 && outcomes[2] > 10, "{outcomes:?}");
    for at in (0..320).step_by(5) {
        let disk = whole.copy();
        disk.edit(LEDGER.as_ref(), |bytes| bytes[at] ^= 1 << (at % 8));
        judge(&disk, &oracle, number, &format!("byte {at} of the header"));
    }
}

/// A large ledger is not read whole before it is worked with: a node starts all the same, whichever bit it is.
#[test]
fn a_large_ledger_that_is_damaged_starts() {
    let whole = SimDisk::default();
    let (oracle, number) = ledger(&whole);
    let mut left = 0;
    for seed in 0..60 {
        let disk = whole.copy();
        assert!(disk.flip(LEDGER.as_ref(), &mut ChaCha8Rng::seed_from_u64(seed)));
        let opened = Rig::open_with(&disk, HUNG_AFTER, 0).and_then(Rig::load);
        let (rig, (stored, ..)) = opened.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        for envelope in &stored.facts {
            let known = oracle.facts.get(&envelope.entry).and_then(|facts| facts.get(&envelope.fact_id()));
            assert_eq!(known, Some(envelope), "seed {seed}: never written");
        }
        let is_mended = rig.storage.reader().remark().is_some_and(|remark| remark.contains("was damaged"));
        rig.storage.close();
        if !is_mended {
            judge(&disk, &oracle, number, &format!("seed {seed}, the next start"));
            left += 1;
        }
    }
    assert!((1..60).contains(&left), "{left} of 60 were left to the next start");
}

/// What ended jobs left in a large ledger is read while the node works. What is wrong with it is named, and mended at the next start.
#[test]
fn what_is_read_later_is_named_and_mended_at_the_next_start() {
    let whole = SimDisk::default();
    let (oracle, number) = ledger(&whole);
    let rig = Rig::open_with(&whole.copy(), HUNG_AFTER, 0).expect("a ledger");
    let segment = rig.storage.reader().with_view(|txn| {
        let table = txn.open_table(SEGMENTS)?;
        let (_, segment) = table.first()?.expect("jobs that have ended");
        Ok(segment.value().to_vec())
    });
    let segment = segment.expect("it reads");
    rig.storage.close();
    for at in [0, segment.len() / 2, segment.len() - 1] {
        let disk = whole.copy();
        disk.edit(LEDGER.as_ref(), |bytes| {
            // Pages that are free again may hold it too.
            let copies = |bytes: &[u8]| bytes.windows(segment.len()).position(|window| window == segment);
            let mut found = 0;
            while let Some(place) = copies(bytes) {
                bytes[place + at] ^= 4;
                found += 1;
            }
            assert!(found > 0, "it is in the file");
        });
        let opened = Rig::open_with(&disk, HUNG_AFTER, 0).and_then(Rig::load);
        let (rig, _) = opened.expect("nothing of it is needed at the start");
        let reader = rig.storage.reader();
        let end = Instant::now() + PATIENCE;
        let remark = loop {
            let checked = reader.inner.lock().checked;
            if let Some(remark) = reader.remark() {
                break remark;
            }
            assert!(Instant::now() < end && !checked, "byte {at}: read, and nothing is said");
            std::thread::sleep(Duration::from_millis(1));
        };
        drop(reader);
        rig.storage.close();
        assert!(remark.contains("Start this node again"), "{remark}");
        assert!(judge(&disk, &oracle, number, &format!("byte {at}")) > 0);
        assert!(!disk.paths().iter().any(|path| path.ends_with("ledger.suspect")), "it is mended");
    }
}

#[test]
fn zeroed_pages_and_files_that_end_too_soon_are_named() {
    let whole = SimDisk::default();
    let (oracle, number) = ledger(&whole);
    let pages = usize::try_from(whole.books().len_of(LEDGER.as_ref())).expect("small") / 4096;
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    for page in (0..6).chain((0..20).map(|_| rng.random_range(6..pages))).collect::<Vec<_>>() {
        let disk = whole.copy();
        disk.edit(LEDGER.as_ref(), |bytes| bytes[page * 4096..(page + 1) * 4096].fill(0));
        judge(&disk, &oracle, number, &format!("page {page} zeroed"));
        let disk = whole.copy();
        disk.edit(LEDGER.as_ref(), |bytes| bytes.truncate(page * 4096 + 17));
        let outcome = judge(&disk, &oracle, number, &format!("cut in page {page}"));
        assert!(outcome != 0 || page > 100, "cut in page {page}");
    }
}

/// A ledger that is gone is another disk; one whose sums are gone is checked by redb's own, and believed only if these fit.
#[test]
fn a_ledger_or_its_sums_that_are_gone() {
    let whole = SimDisk::default();
    let (oracle, number) = ledger(&whole);
    let remove = |disk: &SimDisk, path: &str| {
        crate::storage::disk::Disk::remove(disk, Path::new(path)).expect("it is removed");
    };
    let disk = whole.copy();
    remove(&disk, SUMS);
    assert_eq!(judge(&disk, &oracle, number, "without sums"), 0);
    assert!(disk.paths().contains(&PathBuf::from(SUMS)), "they are made anew");
    assert_eq!(judge(&disk, &oracle, number, "with new sums"), 0);
    for seed in 0..40 {
        let disk = whole.copy();
        remove(&disk, SUMS);
        assert!(disk.flip(LEDGER.as_ref(), &mut ChaCha8Rng::seed_from_u64(seed)));
        judge(&disk, &oracle, number, &format!("without sums, seed {seed}"));
    }
    let disk = whole.copy();
    remove(&disk, LEDGER);
    let rig = Rig::open(&disk).expect("a ledger");
    let (stored, _, now) = rig.storage.reader().load().expect("it reads");
    assert_ne!(now, number);
    assert!(stored.facts.is_empty() && stored.sealed.is_empty());
    rig.storage.close();
}
