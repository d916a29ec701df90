//! A disk in memory for tests: it counts, fails on demand, and loses what was not synced when the power goes.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use rand::RngExt as _;
use rand_chacha::ChaCha8Rng;

use crate::storage::disk::{Disk, DiskFile};

const PAGE: usize = 4096;

#[derive(Debug, Default)]
struct File {
    /// What reads show.
    cached: Vec<u8>,
    /// What the platter has.
    platter: Vec<u8>,
    dirty: BTreeSet<usize>,
    locked: bool,
    /// Since a sync of it failed.
    condemned: bool,
}

/// What the disk does from its next change on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Mood {
    #[default]
    Good,
    /// Writes and syncs fail. A sync that fails takes its pages for clean, as Linux does.
    Failing,
    /// Only syncs fail.
    SyncsFailing,
    /// Syncs say that all is well, and leave what was written in a cache.
    Lying,
    /// Syncs do not come back.
    Hanging,
    /// The power is off: nothing works, nothing changes.
    Off,
}

#[derive(Debug, Default)]
pub(super) struct Books {
    files: BTreeMap<PathBuf, Arc<Mutex<File>>>,
    pub(super) mood: Mood,
    /// The power goes after so many changes.
    pub(super) off_in: Option<u64>,
    /// This many syncs from now one fails, and loses its pages.
    pub(super) bad_sync_in: Option<u64>,
    /// Writes to journals one of whose syncs had failed.
    pub(super) sins: u64,
    pub(super) written: u64,
    /// Of these, bytes written to journals.
    pub(super) journaled: u64,
    pub(super) syncs: u64,
    pub(super) failures: u64,
    pub(super) changes: u64,
    pub(super) room: Option<u64>,
}

impl Books {
    fn is_bad_sync(&mut self) -> bool {
        let left = self.bad_sync_in.map(|left| left - 1);
        self.bad_sync_in = left.filter(|left| *left > 0);
        left == Some(0)
    }

    /// The length of a file, 0 of one that is not there.
    pub(super) fn len_of(&self, path: &Path) -> u64 {
        self.files.get(path).map_or(0, |file| file.lock().expect("file").cached.len() as u64)
    }
}

/// The disk. Clones are the same disk.
#[derive(Debug, Clone, Default)]
pub(super) struct SimDisk(Arc<Mutex<Books>>);

#[derive(Debug)]
struct Handle {
    disk: SimDisk,
    path: PathBuf,
    file: Arc<Mutex<File>>,
    is_journal: bool,
    locks: Mutex<bool>,
}

fn broken(what: &str) -> io::Error {
    io::Error::other(format!("the test's disk fails: {what}"))
}

impl SimDisk {
    pub(super) fn books(&self) -> MutexGuard<'_, Books> {
        self.0.lock().expect("books")
    }

    /// Counts a change; says how it goes.
    fn change(&self) -> io::Result<Mood> {
        let mut books = self.books();
        books.changes += 1;
        if let Some(left) = &mut books.off_in {
            *left = left.saturating_sub(1);
            if *left == 0 {
                books.mood = Mood::Off;
                books.off_in = None;
            }
        }
        if matches!(books.mood, Mood::Off) {
            return Err(broken("it is off"));
        }
        Ok(books.mood)
    }

    fn failed(&self, what: &str) -> io::Error {
        self.books().failures += 1;
        broken(what)
    }

    /// Power off and on again: pages that were not synced may be there, may not, or in part.
    pub(super) fn power_cycle(&self, rng: &mut ChaCha8Rng) {
        let mut books = self.books();
        books.mood = Mood::Good;
        books.off_in = None;
        for file in books.files.values() {
            let mut file = file.lock().expect("file");
            let File { cached, platter, dirty, locked, condemned } = &mut *file;
            (*locked, *condemned) = (false, false);
            for page in std::mem::take(dirty) {
                let whole = PAGE.min(cached.len().saturating_sub(page * PAGE));
                let kept = match rng.random_range(0..3) {
                    0 => 0,
                    1 => whole,
                    _ => rng.random_range(0..=whole),
                };
                put(platter, page * PAGE, &cached[page * PAGE..page * PAGE + kept]);
            }
            cached.clone_from(platter);
        }
    }

    /// The bytes of a file, to be looked at or spoiled.
    pub(super) fn edit(&self, path: &Path, edit: impl FnOnce(&mut Vec<u8>)) {
        let file = Arc::clone(&self.books().files[path]);
        let mut file = file.lock().expect("file");
        edit(&mut file.platter);
        file.cached = file.platter.clone();
        file.dirty.clear();
    }

    /// Another disk with the same on it.
    pub(super) fn copy(&self) -> Self {
        let copy = Self::default();
        for (path, file) in &self.books().files {
            let platter = file.lock().expect("file").platter.clone();
            let file = File { cached: platter.clone(), platter, ..File::default() };
            copy.books().files.insert(path.clone(), Arc::new(Mutex::new(file)));
        }
        copy
    }

    /// One bit flips somewhere in the bytes of a file that are not zero all around. `false` when there are none.
    pub(super) fn flip(&self, path: &Path, rng: &mut ChaCha8Rng) -> bool {
        let mut done = false;
        self.edit(path, |bytes| {
            let pages: Vec<usize> =
                bytes.chunks(PAGE).enumerate().filter(|(_, p)| p.iter().any(|b| *b != 0)).map(|(n, _)| n).collect();
            if let Some(at) = pages.get(rng.random_range(0..pages.len().max(1))) {
                let at = (at * PAGE + rng.random_range(0..PAGE)).min(bytes.len() - 1);
                bytes[at] ^= 1 << rng.random_range(0..8);
                done = true;
            }
        });
        done
    }

    pub(super) fn paths(&self) -> Vec<PathBuf> {
        self.books().files.keys().cloned().collect()
    }
}

fn put(bytes: &mut Vec<u8>, at: usize, new: &[u8]) {
    if bytes.len() < at + new.len() {
        bytes.resize(at + new.len(), 0);
    }
    bytes[at..at + new.len()].copy_from_slice(new);
}

impl Disk for SimDisk {
    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        if self.books().mood == Mood::Off {
            return Err(broken("it is off"));
        }
        let file = Arc::clone(self.books().files.entry(path.to_owned()).or_default());
        let is_journal = path.to_string_lossy().contains(".journal.");
        Ok(Box::new(Handle { disk: self.clone(), path: path.to_owned(), file, is_journal, locks: Mutex::new(false) }))
    }

    fn list(&self, _: &Path) -> io::Result<Vec<PathBuf>> {
        Ok(self.paths())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.change()?;
        self.books().files.remove(path);
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.change()?;
        let mut books = self.books();
        let file = books.files.remove(from).ok_or(io::ErrorKind::NotFound)?;
        books.files.insert(to.to_owned(), file);
        Ok(())
    }

    fn sync_dir(&self, _: &Path) -> io::Result<()> {
        self.change().map(|_| ())
    }

    fn room(&self, _: &Path) -> u64 {
        self.books().room.unwrap_or(u64::MAX)
    }
}

impl DiskFile for Handle {
    fn len(&self) -> io::Result<u64> {
        Ok(self.file.lock().expect("file").cached.len() as u64)
    }

    fn read_at(&self, at: u64, buffer: &mut [u8]) -> io::Result<()> {
        if self.disk.books().mood == Mood::Off {
            return Err(broken("it is off"));
        }
        let at = usize::try_from(at).expect("small");
        let file = self.file.lock().expect("file");
        let bytes = file.cached.get(at..at + buffer.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(bytes);
        Ok(())
    }

    fn write_at(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        let mood = self.disk.change()?;
        let at = usize::try_from(at).expect("small");
        // A write that fails may have got somewhere.
        let taken = if mood == Mood::Failing { &bytes[..bytes.len() / 2] } else { bytes };
        let sinned;
        {
            let mut file = self.file.lock().expect("file");
            sinned = file.condemned && self.path.to_string_lossy().contains("journal");
            put(&mut file.cached, at, taken);
            file.dirty.extend(at / PAGE..(at + taken.len()).div_ceil(PAGE));
        }
        self.disk.books().sins += u64::from(sinned);
        if mood == Mood::Failing {
            return Err(self.disk.failed("a write"));
        }
        let mut books = self.disk.books();
        books.written += bytes.len() as u64;
        books.journaled += if self.is_journal { bytes.len() as u64 } else { 0 };
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        if self.disk.change()? == Mood::Failing {
            return Err(self.disk.failed("a change of length"));
        }
        let len = usize::try_from(len).expect("small");
        let mut file = self.file.lock().expect("file");
        file.cached.resize(len, 0);
        file.platter.resize(len, 0);
        file.dirty.retain(|page| page * PAGE < len);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut mood = self.disk.change()?;
        while self.disk.books().mood == Mood::Hanging {
            std::thread::sleep(std::time::Duration::from_millis(1));
            mood = Mood::Good;
        }
        if self.disk.books().is_bad_sync() {
            mood = Mood::SyncsFailing;
        }
        let mut file = self.file.lock().expect("file");
        let File { cached, platter, dirty, condemned, .. } = &mut *file;
        if mood == Mood::Lying {
            return Ok(());
        }
        let lost = std::mem::take(dirty);
        if mood != Mood::Good {
            *condemned = true;
            drop(file);
            return Err(self.disk.failed("a sync"));
        }
        for page in lost {
            let end = ((page + 1) * PAGE).min(cached.len());
            put(platter, page * PAGE, &cached[page * PAGE..end]);
        }
        drop(file);
        self.disk.books().syncs += 1;
        Ok(())
    }

    fn lock(&self) -> io::Result<()> {
        let mut file = self.file.lock().expect("file");
        if std::mem::replace(&mut file.locked, true) {
            return Err(broken("it is locked"));
        }
        *self.locks.lock().expect("mine") = true;
        Ok(())
    }

    fn unlock(&self) -> io::Result<()> {
        if std::mem::take(&mut *self.locks.lock().expect("mine")) {
            self.file.lock().expect("file").locked = false;
        }
        Ok(())
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let _ = DiskFile::unlock(self);
    }
}
