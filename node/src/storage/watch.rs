//! A disk that does not answer: every operation on it is noted while it lasts, and a thread of its own looks whether one lasts too
//! long. Nothing is interrupted: nobody can end a system call that hangs. But the node stops counting on it.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::disk::{Disk, DiskFile};
use super::state::{Inner, Part};

/// An operation that takes longer is taken for one that never ends. Disks under load have been seen to take a second or two for a
/// sync; leases of other nodes on what this one holds run out after one and a half.
pub(super) const HUNG_AFTER: Duration = Duration::from_secs(5);
/// How often it is looked.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// What is under way.
#[derive(Debug, Default)]
pub(super) struct Watch {
    under_way: Mutex<(u64, BTreeMap<u64, Instant>)>,
}

impl Watch {
    fn lock(&self) -> MutexGuard<'_, (u64, BTreeMap<u64, Instant>)> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn during<T>(&self, run: impl FnOnce() -> T) -> T {
        let number = {
            let mut under_way = self.lock();
            under_way.0 += 1;
            let number = under_way.0;
            under_way.1.insert(number, Instant::now());
            number
        };
        let done = run();
        self.lock().1.remove(&number);
        done
    }

    /// How long the oldest operation has been under way.
    fn longest(&self) -> Duration {
        self.lock().1.values().next().map(Instant::elapsed).unwrap_or_default()
    }
}

/// Looks until the ledger is closed.
pub(super) fn run(inner: &Inner, watch: &Watch) {
    let mut state = inner.lock();
    while !state.ended {
        state = Inner::wait(&inner.watched, state, Some(LOOK_EVERY));
        drop(state);
        let longest = watch.longest();
        let hung = longest >= inner.hung_after;
        let problem = format!("the disk has not answered for {} s", longest.as_secs());
        inner.note(Part::Watch, hung.then_some(problem));
        state = inner.lock();
    }
}

/// A disk whose operations are noted.
#[derive(Debug)]
pub(super) struct Watched {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) watch: Arc<Watch>,
}

#[derive(Debug)]
struct WatchedFile {
    file: Box<dyn DiskFile>,
    watch: Arc<Watch>,
}

impl Disk for Watched {
    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let file = self.watch.during(|| self.disk.open(path))?;
        Ok(Box::new(WatchedFile { file, watch: Arc::clone(&self.watch) }))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>> {
        self.watch.during(|| self.disk.list(dir))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.watch.during(|| self.disk.remove(path))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.watch.during(|| self.disk.rename(from, to))
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.watch.during(|| self.disk.sync_dir(dir))
    }

    fn room(&self, path: &Path) -> u64 {
        self.watch.during(|| self.disk.room(path))
    }
}

impl DiskFile for WatchedFile {
    fn len(&self) -> io::Result<u64> {
        self.watch.during(|| self.file.len())
    }

    fn read_at(&self, at: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.watch.during(|| self.file.read_at(at, buffer))
    }

    fn write_at(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.watch.during(|| self.file.write_at(at, bytes))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.watch.during(|| self.file.set_len(len))
    }

    fn sync(&self) -> io::Result<()> {
        self.watch.during(|| self.file.sync())
    }

    fn lock(&self) -> io::Result<()> {
        self.file.lock()
    }

    fn unlock(&self) -> io::Result<()> {
        self.file.unlock()
    }
}
