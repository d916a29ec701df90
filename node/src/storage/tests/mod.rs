//! Tests of the ledger on disk.

mod crash;
mod disk;
mod jobs;
mod journal;
mod migrate;
mod reading;
mod size;
mod syncs;

use std::path::Path;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use disk::SimDisk;
use sinew_scheduler::io::Ticket;

use super::{Storage, StorageError, StorageEvent};

const LEDGER: &str = "/disk/ledger.redb";

/// A ledger, and what its writer says.
struct Rig {
    storage: Storage,
    events: Receiver<StorageEvent>,
    /// Batches acknowledged, and how often the disk was said to fail and to have recovered.
    heard: Mutex<(u64, usize, usize)>,
}

impl Rig {
    fn open(disk: &SimDisk) -> Result<Self, StorageError> {
        let (tx, events) = channel();
        let tell = move |event| {
            let _ = tx.send(event);
        };
        let storage = Storage::open_on(Arc::new(disk.clone()), Path::new(LEDGER), tell)?;
        Ok(Self { storage, events, heard: Mutex::default() })
    }

    /// Takes in what the writer said.
    fn hear(&self, wait: Duration) -> (u64, usize, usize) {
        let mut heard = self.heard.lock().expect("heard");
        let mut next = self.events.recv_timeout(wait).ok();
        while let Some(event) = next {
            match event {
                StorageEvent::Persisted(tickets) => {
                    for Ticket(ticket) in tickets {
                        assert_eq!(ticket, heard.0 + 1, "acknowledged in order");
                        heard.0 = ticket;
                    }
                }
                StorageEvent::Failing(_) => heard.1 += 1,
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
