//! The dead man's switch: what ends an attempt whose lease is over where the daemon does not see to it, because it is stopped,
//! swapped out, in a debugger, or hangs.
//!
//! For each attempt there is an entry in memory that the daemon shares with its guardian ([`super::guardian`]): until when it may
//! run, and what is to be killed then. The daemon moves the end on with each renewed lease, which is one store; the guardian sleeps
//! until the first end of all, so that it wakes about once a second while anything runs. Ends are moments of `CLOCK_BOOTTIME`: a
//! machine that slept ends on waking what was not renewed meanwhile.
//!
//! What is inside the daemon (modules, built-in programs, sorting) stands still with it, and looks at the end itself through
//! [`super::stop::StopHandle::reason`].

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{MemfdFlags, SealFlags, SeekFrom, fcntl_add_seals, ftruncate, memfd_create, seek};
use rustix::time::{ClockId, clock_gettime};

use super::cell::SharedWords;

/// Attempts under way or waiting at most; more than a daemon has threads for.
pub const ENTRIES_MAX: u32 = 16 * 1_024;
/// Says that this memory is a switch, of this layout.
const MAGIC: u64 = 0x5349_4e45_5753_5701;
/// Words before the first entry: the magic number, when the guardian wakes next, and how many entries were ever used.
const HEADER: usize = 3;
const WAKES_AT: usize = 1;
const USED: usize = 2;
/// Words of an entry: its end, what is bound, the run, and a number that changes whenever these do.
const ENTRY: usize = 4;
const END: usize = 0;
const BOUND: usize = 1;
const RUN: usize = 2;
const CHANGES: usize = 3;
/// Where the kind is in the word that says what is bound; the process id is below.
const KIND_SHIFT: u32 = 32;
const WORDS: usize = HEADER + ENTRY * ENTRIES_MAX as usize;

/// What an attempt runs, and how it is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A cell: with its first process everything in it ends.
    Cell = 1,
    /// A process group, and whatever else carries the run's number.
    Group = 2,
    /// A container of the Docker engine, by its name and by whatever carries the run's number.
    Container = 3,
}

/// An attempt whose end has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Due {
    index: usize,
    changes: u64,
    pub(super) kind: Kind,
    /// 0 where it is not known.
    pub(super) pid: i32,
    pub(super) run: u64,
}

/// Nanoseconds of `CLOCK_BOOTTIME`.
#[must_use]
pub fn boot_ns() -> u64 {
    let time = clock_gettime(ClockId::Boottime);
    let (seconds, rest) = (u64::try_from(time.tv_sec).unwrap_or(0), u64::try_from(time.tv_nsec).unwrap_or(0));
    seconds.saturating_mul(1_000_000_000).saturating_add(rest)
}

/// The daemon's side.
pub struct Switch {
    words: SharedWords,
    memory: OwnedFd,
    free: Mutex<Vec<u32>>,
    /// Wakes the guardian.
    poke: Mutex<Option<OwnedFd>>,
}

impl fmt::Debug for Switch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Switch").finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Switch {
    /// One that nobody watches yet.
    ///
    /// # Errors
    /// When the system gives no such memory.
    pub fn new() -> io::Result<Arc<Self>> {
        let memory = memfd_create("sinew-switch", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        let bytes = (WORDS * size_of::<u64>()) as u64;
        ftruncate(&memory, bytes)?;
        // It never shrinks under whoever looks at it.
        fcntl_add_seals(&memory, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        // It is handed over as a standard stream: what is written to that by mistake goes nowhere.
        seek(&memory, SeekFrom::End(0))?;
        let words = SharedWords::map(memory.as_fd(), WORDS)?;
        words[WAKES_AT].store(u64::MAX, Ordering::SeqCst);
        words[0].store(MAGIC, Ordering::SeqCst);
        Ok(Arc::new(Self { words, memory, free: Mutex::default(), poke: Mutex::default() }))
    }

    /// The memory, for a guardian.
    pub(super) fn memory(&self) -> BorrowedFd<'_> {
        self.memory.as_fd()
    }

    /// A guardian watches, and can be woken through this.
    pub(super) fn connect(&self, poke: OwnedFd) {
        *lock(&self.poke) = Some(poke);
    }

    /// No guardian is to be kept waiting.
    pub(super) fn disconnect(&self) {
        *lock(&self.poke) = None;
    }

    /// An entry for an attempt that may run until then, unless there are too many.
    #[must_use]
    pub fn enter(self: &Arc<Self>, until_ns: u64) -> Option<Entry> {
        let index = {
            let mut free = lock(&self.free);
            match free.pop() {
                Some(index) => index as usize,
                None => {
                    let used = self.words[USED].load(Ordering::SeqCst);
                    let next = used.checked_add(1).filter(|n| *n <= u64::from(ENTRIES_MAX))?;
                    self.words[USED].store(next, Ordering::SeqCst);
                    usize::try_from(used).ok()?
                }
            }
        };
        let entry = Entry { switch: Arc::clone(self), index };
        entry.set_end(until_ns);
        Some(entry)
    }

    fn word(&self, index: usize, word: usize) -> &AtomicU64 {
        &self.words[HEADER + ENTRY * index + word]
    }

    /// Wakes the guardian if it would sleep beyond `ns`.
    fn see_to(&self, ns: u64) {
        if ns < self.words[WAKES_AT].load(Ordering::SeqCst)
            && let Some(poke) = &*lock(&self.poke)
        {
            // Full: then it is awake already. Gone: then another one is started, and looks first.
            let _ = rustix::io::write(poke, &[1]);
        }
    }
}

/// One attempt's entry. Dropping it clears it.
#[derive(Debug)]
pub struct Entry {
    switch: Arc<Switch>,
    index: usize,
}

impl Entry {
    fn word(&self, word: usize) -> &AtomicU64 {
        self.switch.word(self.index, word)
    }

    /// The attempt may run until then, and no longer.
    pub fn set_end(&self, until_ns: u64) {
        self.word(END).store(until_ns, Ordering::SeqCst);
        self.switch.see_to(until_ns);
    }

    /// Whether its end has come.
    #[must_use]
    pub fn is_over(&self) -> bool {
        boot_ns() >= self.word(END).load(Ordering::SeqCst)
    }

    /// Notes what is to be killed when the end comes. A process's number must be noted no longer than until it is reaped.
    pub(super) fn bind(&self, kind: Kind, pid: i32, run: u64) {
        self.clear();
        self.word(RUN).store(run, Ordering::SeqCst);
        let pid = u64::from(pid.unsigned_abs());
        self.word(BOUND).store((kind as u64) << KIND_SHIFT | pid, Ordering::SeqCst);
        // A guardian that looked just before has not seen it.
        self.switch.see_to(self.word(END).load(Ordering::SeqCst));
    }

    /// Nothing is to be killed.
    pub(super) fn clear(&self) {
        self.word(BOUND).store(0, Ordering::SeqCst);
        self.word(CHANGES).fetch_add(1, Ordering::SeqCst);
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.clear();
        self.word(END).store(0, Ordering::SeqCst);
        lock(&self.switch.free).push(u32::try_from(self.index).unwrap_or(0));
    }
}

/// The guardian's side.
pub(super) struct Watch {
    words: SharedWords,
    /// Killed already.
    done: Vec<Due>,
}

impl Watch {
    /// Takes over the memory behind `memory`, if it is a switch.
    pub(super) fn open(memory: BorrowedFd<'_>) -> Option<Self> {
        let seals = rustix::fs::fcntl_get_seals(memory).ok()?;
        let len = rustix::fs::fstat(memory).ok()?.st_size;
        if !seals.contains(SealFlags::SHRINK) || usize::try_from(len).ok()? != WORDS * size_of::<u64>() {
            return None;
        }
        let words = SharedWords::map(memory, WORDS).ok()?;
        (words[0].load(Ordering::SeqCst) == MAGIC).then(|| Self { words, done: Vec::new() })
    }

    /// Those whose end has come since this was asked last, and when to ask again.
    pub(super) fn look(&mut self) -> (Vec<Due>, u64) {
        loop {
            let (due, next) = self.scan();
            self.words[WAKES_AT].store(next, Ordering::SeqCst);
            // An end that was set in between, and whose setter saw the old moment of waking, shows now.
            let (_, again) = self.scan();
            if !due.is_empty() || again >= next {
                self.done.extend(&due);
                return (due, next);
            }
        }
    }

    fn scan(&mut self) -> (Vec<Due>, u64) {
        let now = boot_ns();
        let (mut due, mut next) = (Vec::new(), u64::MAX);
        let used = self.words[USED].load(Ordering::SeqCst).min(u64::from(ENTRIES_MAX));
        for index in 0..usize::try_from(used).unwrap_or(0) {
            let Some((end, found)) = self.read(index) else { continue };
            if end > now {
                next = next.min(end);
            } else if !self.done.contains(&found) {
                due.push(found);
            }
        }
        let words = &self.words;
        self.done.retain(|done| read(words, done.index).is_some_and(|(end, found)| end <= now && found == *done));
        (due, next)
    }

    fn read(&self, index: usize) -> Option<(u64, Due)> {
        read(&self.words, index)
    }

    /// Whether an entry is what it was when it was found: then its process has not been reaped.
    pub(super) fn stands(&self, due: &Due) -> bool {
        self.read(due.index).is_some_and(|(_, found)| found == *due)
    }
}

/// An entry that has something bound.
fn read(words: &SharedWords, index: usize) -> Option<(u64, Due)> {
    let word = |word: usize| words[HEADER + ENTRY * index + word].load(Ordering::SeqCst);
    let changes = word(CHANGES);
    let (end, bound, run) = (word(END), word(BOUND), word(RUN));
    let kind = match bound >> KIND_SHIFT {
        1 => Kind::Cell,
        2 => Kind::Group,
        3 => Kind::Container,
        _ => return None,
    };
    let pid = i32::try_from(bound & u64::from(u32::MAX)).ok()?;
    (end > 0 && changes == word(CHANGES)).then_some((end, Due { index, changes, kind, pid, run }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_over_is_found_once_and_what_was_renewed_is_not() {
        let switch = Switch::new().expect("switch");
        let mut watch = Watch::open(switch.memory()).expect("the same memory");
        assert_eq!(watch.look(), (Vec::new(), u64::MAX));
        let far = boot_ns() + 3_600_000_000_000;
        let (over, lives) = (switch.enter(far).expect("entry"), switch.enter(far).expect("entry"));
        over.bind(Kind::Cell, 7, 70);
        lives.bind(Kind::Group, 8, 80);
        assert_eq!(watch.look(), (Vec::new(), far));
        over.set_end(1);
        assert!(over.is_over() && !lives.is_over());
        let (due, next) = watch.look();
        assert!(next == far && due.len() == 1 && (due[0].kind, due[0].pid, due[0].run) == (Kind::Cell, 7, 70));
        assert!(watch.stands(&due[0]));
        assert_eq!(watch.look().0, [], "once");
        over.bind(Kind::Cell, 7, 71);
        assert!(!watch.stands(&due[0]), "it is another program now");
        assert_eq!(watch.look().0.len(), 1);
        drop(over);
        assert_eq!(watch.look(), (Vec::new(), far));
        let again = switch.enter(far + 1).expect("entry");
        assert_eq!(switch.words[USED].load(Ordering::SeqCst), 2, "an entry is used again");
        drop((again, lives));
        assert_eq!(watch.look(), (Vec::new(), u64::MAX));
    }

    #[test]
    fn no_more_entries_than_there_is_room_for_and_no_other_memory() {
        let switch = Switch::new().expect("switch");
        let all: Vec<_> = (0..ENTRIES_MAX).map_while(|_| switch.enter(u64::MAX)).collect();
        assert!(all.len() == ENTRIES_MAX as usize && switch.enter(u64::MAX).is_none());
        drop(all);
        assert!(switch.enter(u64::MAX).is_some());
        let other = memfd_create("other", MemfdFlags::CLOEXEC).expect("memfd");
        assert!(Watch::open(other.as_fd()).is_none());
        let file = std::fs::File::open("/dev/null").expect("open");
        assert!(Watch::open(file.as_fd()).is_none());
    }
}
