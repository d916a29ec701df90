//! Tests of the ledger on disk.

mod crash;
mod disk;
mod faults;
mod jobs;
mod journal;
mod migrate;
mod reading;
mod rot;
mod size;
mod syncs;

use std::path::Path;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use disk::SimDisk;
use sinew_crdt_state::ids::{DiskId, NodeId};
use sinew_scheduler::io::{Record, Ticket};
use sinew_scheduler::wire::Seen;

use super::{Storage, StorageError, StorageEvent, check};

/// Long enough for a test's machine under load.
const HUNG_AFTER: Duration = Duration::from_secs(600);
/// What should come about at once has come about by then.
const PATIENCE: Duration = Duration::from_secs(60);

const LEDGER: &str = "/disk/ledger.redb";

/// A ledger, and what its writer says.
struct Rig {
    storage: Storage,
    events: Receiver<StorageEvent>,
    /// Batches acknowledged, and how often the disk was said to fail and to have recovered.
    heard: Mutex<(u64, usize, usize)>,
    /// Whether the disk was said to hang.
    hung: std::sync::atomic::AtomicBool,
}

impl Rig {
    fn open(disk: &SimDisk) -> Result<Self, StorageError> {
        Self::open_with(disk, HUNG_AFTER, check::WHOLE_MAX)
    }

    fn open_with(disk: &SimDisk, hung_after: Duration, whole_max: u64) -> Result<Self, StorageError> {
        let (tx, events) = channel();
        let tell = move |event| {
            let _ = tx.send(event);
        };
        let storage =
            Storage::open_on(Arc::new(disk.clone()), Path::new(LEDGER), hung_after, whole_max, Arc::new(tell))?;
        Ok(Self { storage, events, heard: Mutex::default(), hung: false.into() })
    }

    /// Reads what a node starts from, as a daemon does.
    fn load(self) -> Result<(Self, super::Loaded), StorageError> {
        let (storage, loaded) = self.storage.load()?;
        Ok((Self { storage, ..self }, loaded))
    }

    /// Takes in what the writer said.
    fn hear(&self, wait: Duration) -> (u64, usize, usize) {
        let mut heard = self.heard.lock().expect("heard");
        let mut next = self.events.recv_timeout(wait).ok();
        while let Some(event) = next {
            match event {
                StorageEvent::Persisted(tickets, _) => {
                    for Ticket(ticket) in tickets {
                        assert_eq!(ticket, heard.0 + 1, "acknowledged in order");
                        heard.0 = ticket;
                    }
                }
                StorageEvent::Failing(_) => heard.1 += 1,
                StorageEvent::Hung(reason) => {
                    assert!(reason.contains("has not answered for"), "{reason}");
                    self.hung.store(true, std::sync::atomic::Ordering::Relaxed);
                }
                StorageEvent::Recovered => heard.2 += 1,
            }
            next = self.events.try_recv().ok();
        }
        *heard
    }

    fn acknowledged(&self) -> u64 {
        self.hear(Duration::ZERO).0
    }

    /// Waits for something that the writer says.
    fn until(&self, what: &str, mut done: impl FnMut((u64, usize, usize)) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !done(self.hear(Duration::from_millis(20))) {
            assert!(Instant::now() < deadline, "waited too long: {what}");
        }
    }
}

#[test]
fn a_disk_keeps_its_number_and_each_start_gets_a_new_one() {
    let dir = tempfile::tempdir().expect("a directory");
    let start = |name: &str| {
        let storage = Storage::open(&dir.path().join(name), |_| {}).expect("a ledger");
        let (_, incarnation, disk) = storage.reader().load().expect("it reads");
        storage.close();
        (incarnation, disk)
    };
    let (first, disk) = start("ledger.redb");
    assert_eq!(start("ledger.redb"), (first + 1, disk), "the same file");
    let (_, other) = start("other.redb");
    assert_ne!(other, disk, "a file that was lost and made again is another disk");
}

/// A disk that turned out to be an old copy has another number after the next start, and what is remembered of others too.
#[test]
fn a_disk_is_renumbered_and_starts_of_others_are_remembered() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("ledger.redb");
    let (node, disk) = (NodeId([9; 32]), DiskId(77));
    let seen = Seen { disk: DiskId(3), incarnation: 4, nonce: 5, mark: 6, retired: vec![DiskId(2)] };
    let (told, heard) = channel();
    let storage = Storage::open(&path, move |event| _ = told.send(event)).expect("a ledger");
    let (stored, first, _) = storage.reader().load().expect("it reads");
    assert_eq!((stored.mark, stored.seen.len()), (0, 0));
    let records = vec![Record::Seen { node, seen: seen.clone() }, Record::Disk { disk, incarnation: first + 40 }];
    storage.persist(Ticket(1), records, true);
    let StorageEvent::Persisted(_, mark) = heard.recv().expect("it is written") else { panic!("no sync") };
    storage.close();
    let storage = Storage::open(&path, |_| {}).expect("a ledger");
    let (stored, incarnation, now) = storage.reader().load().expect("it reads");
    assert_eq!((stored.mark, incarnation, now), (mark, first + 41, disk));
    assert_eq!(stored.seen, [(node, seen)]);
    storage.close();
}

#[test]
fn a_ledger_that_is_open_is_not_opened_twice() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("ledger.redb");
    let first = Storage::open(&path, |_| {}).expect("a ledger");
    assert!(matches!(Storage::open(&path, |_| {}), Err(StorageError::Open { .. })));
    let reader = first.reader();
    first.close();
    let second = Storage::open(&path, |_| {}).expect("the first one let go, though a reader of it is left");
    assert!(matches!(reader.ended(1), Err(StorageError::Closed)));
    second.close();
}

/// A sync that does not come back is noticed; nothing is acknowledged meanwhile, and all of it once the disk goes on.
#[test]
fn a_disk_that_hangs_is_noticed_and_comes_back_by_itself() {
    let disk = SimDisk::default();
    let rig = Rig::open_with(&disk, Duration::from_millis(50), check::WHOLE_MAX).expect("a ledger");
    let retract = || vec![sinew_scheduler::io::Record::Retract { job: sinew_crdt_state::ids::JobId([7; 32]) }];
    rig.storage.persist(Ticket(1), retract(), true);
    rig.until("the first", |(done, ..)| done == 1);
    disk.books().mood = disk::Mood::Hanging;
    rig.storage.persist(Ticket(2), retract(), true);
    rig.until("the alarm", |_| rig.hung.load(std::sync::atomic::Ordering::Relaxed));
    assert_eq!(rig.acknowledged(), 1);
    disk.books().mood = disk::Mood::Good;
    rig.until("the rest", |(done, _, good)| done == 2 && good == 1);
    rig.storage.close();
}

/// What a failed sync left in a journal is written again into another file, and nothing is ever written to that one again.
#[test]
fn a_journal_whose_sync_failed_is_never_written_to_again() {
    let disk = SimDisk::default();
    let rig = Rig::open(&disk).expect("a ledger");
    for ticket in 1..40 {
        if ticket % 5 == 0 {
            disk.books().bad_sync_in = Some(1);
        }
        let retract = sinew_scheduler::io::Record::Retract { job: sinew_crdt_state::ids::JobId([7; 32]) };
        rig.storage.persist(Ticket(ticket), vec![retract], true);
        rig.until("the record", |(done, ..)| done == ticket);
    }
    assert!(disk.books().failures >= 7);
    assert_eq!(disk.books().sins, 0);
    rig.storage.close();
}
