//! What readers see: everything that was handed over, the newest jobs first, and jobs by the beginning of their ids.

use std::collections::BTreeSet;
use std::sync::Arc;

use redb::ReadableTable as _;
use sinew_crdt_state::ids::JobId;
use sinew_scheduler::io::{Record, Ticket};

use super::disk::{Mood, SimDisk};
use super::jobs::{Oracle, sealed, sign, usual};
use super::{LEDGER, Rig, StorageError};
use crate::storage::keeper::open_database;
use crate::storage::rows::ENDED;

/// Hands over whole jobs; what they add up to.
fn hand_over(rig: &Rig, serials: std::ops::Range<u64>, oracle: &mut Oracle) {
    let jobs: Vec<_> = serials.clone().map(usual).collect();
    for ((serial, job), facts) in serials.zip(&jobs).zip(sign(&jobs)) {
        let mut records: Vec<Record> =
            facts.iter().map(|(id, envelope)| Record::Fact { id: *id, envelope: envelope.clone() }).collect();
        records.push(sealed(job.id, serial, &facts, true));
        records.iter().for_each(|record| oracle.add(record));
        rig.storage.persist(Ticket(serial + 1), records, true);
    }
}

/// A reader waits for no disk, and misses nothing that was handed over.
#[test]
fn readers_see_what_is_not_on_disk_yet() {
    let disk = SimDisk::default();
    let rig = Rig::open(&disk).expect("a ledger");
    let mut oracle = Oracle::default();
    disk.books().mood = Mood::Failing;
    hand_over(&rig, 0..20, &mut oracle);
    assert_eq!(oracle.differs_in(&rig.storage.reader()), None);
    rig.until("the failure", |(_, failing, _)| failing > 0);
    assert_eq!(oracle.differs_in(&rig.storage.reader()), None);
    assert_eq!(rig.acknowledged(), 0);
    disk.books().mood = Mood::Good;
    rig.until("all of it", |(done, ..)| done == 20);
    assert_eq!(oracle.differs_in(&rig.storage.reader()), None);
    rig.storage.close();
}

/// Reading makes nobody sync: it did once for each entry.
#[test]
fn reading_costs_no_sync() {
    let disk = SimDisk::default();
    let rig = Rig::open(&disk).expect("a ledger");
    let mut oracle = Oracle::default();
    hand_over(&rig, 0..3, &mut oracle);
    rig.until("all of it", |(done, ..)| done == 3);
    let job = *oracle.facts.keys().next().expect("a job");
    let before = disk.books().changes;
    for _ in 0..100 {
        assert!(!rig.storage.reader().entry(&job).expect("it reads").is_empty());
    }
    // The other thread may still be getting the next journal ready: that is a few changes, not one a read.
    let changes = disk.books().changes - before;
    assert!(changes < 20, "{changes} changes to the disk by 100 reads");
    rig.storage.close();
}

#[test]
fn lists_and_parts_of_ids_find_what_a_walk_would() {
    let disk = SimDisk::default();
    let mut oracle = Oracle::default();
    let rig = Rig::open(&disk).expect("a ledger");
    hand_over(&rig, 0..400, &mut oracle);
    rig.storage.close();
    let rig = Rig::open(&disk).expect("a ledger");
    rig.heard.lock().expect("heard").0 = 400;
    // Some in the file, some not.
    hand_over(&rig, 400..450, &mut oracle);
    let reader = rig.storage.reader();
    let mut newest: Vec<(u64, JobId)> = oracle.rows.iter().map(|(job, row)| (row.submitted_ms, *job)).collect();
    newest.sort_unstable_by(|a, b| b.cmp(a));
    for limit in [0, 1, 5, 60, 449, 450, 1_000] {
        let shown: Vec<JobId> = reader.ended(limit).expect("it reads").into_iter().map(|(job, _)| job).collect();
        assert_eq!(shown, newest.iter().map(|(_, job)| *job).take(limit).collect::<Vec<_>>(), "{limit}");
    }
    let all: BTreeSet<JobId> = oracle.rows.keys().copied().collect();
    let mut texts: Vec<String> =
        ["", "a", "7", "zz", "1", "A", "ä", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"]
            .map(str::to_owned)
            .to_vec();
    for job in all.iter().step_by(40) {
        texts.extend([1, 2, 3, 8, 51, 52].map(|len| job.to_string()[..len].to_owned()));
    }
    for text in texts {
        let walked: Vec<JobId> = all.iter().filter(|job| job.to_string().starts_with(&text)).copied().collect();
        assert_eq!(reader.find(&text, 1_000).expect("it reads"), walked, "`{text}`");
        assert_eq!(reader.find(&text, 2).expect("it reads").len(), walked.len().min(2), "`{text}`");
    }
    rig.storage.close();
}

/// The file is closed, to be opened anew, while somebody reads: that is no fault of what is read, and trying again helps.
#[test]
fn a_file_that_is_closed_under_a_reader_is_called_closed() {
    let disk = SimDisk::default();
    let rig = Rig::open(&disk).expect("a ledger");
    hand_over(&rig, 0..300, &mut Oracle::default());
    rig.storage.close();
    let rig = Rig::open(&disk).expect("a ledger");
    let reader = rig.storage.reader();
    // Opened anew, so that no page is in memory that was read before.
    drop(reader.inner.lock().db.take());
    let anew = open_database(&disk, LEDGER.as_ref()).expect("a ledger");
    reader.inner.lock().db = Some(Arc::new(anew));
    let read = reader.with_view(|txn| {
        drop(reader.inner.lock().db.take());
        Ok(txn.open_table(ENDED)?.iter()?.count())
    });
    assert!(matches!(read, Err(StorageError::Closed)), "{read:?}");
    assert!(matches!(reader.ended(1), Err(StorageError::Closed)));
    rig.storage.close();
}
