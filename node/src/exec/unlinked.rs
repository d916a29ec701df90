//! Files of a task that no directory shows any more, because it has deleted them, and that take up the disk all the same, because
//! it holds them open or mapped. They are found through `/proc` of the processes that hold them. Not found is what nobody but a
//! message on its way through a socket holds, and, by a daemon that is not root, what a process holds that closes itself to others
//! of its user (`PR_SET_DUMPABLE`).

use std::collections::HashSet;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Instant;

use rustix::fs::{AtFlags, CWD, FileType, Statx, StatxFlags, statx};

use super::cell::same_files;
use super::files::taken;
use super::procfs;

/// Longest part of a processor that looking takes, as the inverse: where a task makes a look expensive it happens less often.
const SHARE: u32 = 20;
/// Descriptors and mapped ranges looked at in one look, so that it ends: more than ordinary programs have.
const ENTRIES_MAX: usize = 100_000;
/// What the system appends to the name of a file that was deleted.
const DELETED: &str = " (deleted)";

/// Who may hold files that a task has deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holders<'a> {
    /// Nobody: it has ended.
    Nobody,
    /// These processes, as the host counts.
    Processes(&'a [i32]),
    /// This process, for a task that runs inside it.
    Daemon,
}

/// What was found at the last look.
#[derive(Debug)]
pub(super) struct Unlinked {
    /// Where the task's files are: as its processes name it, if they see it elsewhere, and as this process does.
    inside: Option<&'static Path>,
    outside: PathBuf,
    next: Instant,
    bytes: u64,
}

impl Unlinked {
    /// For files below a directory, which the daemon calls `outside`, and processes of the task `inside`, if that is another name.
    pub(super) fn below(inside: Option<&'static Path>, outside: &Path) -> Self {
        Self { inside, outside: outside.to_owned(), next: Instant::now(), bytes: 0 }
    }

    /// Bytes of deleted files that are still held, at a look now or, where that was expensive, some time ago.
    pub(super) fn bytes(&mut self, holders: Holders<'_>) -> u64 {
        let own = [i32::try_from(std::process::id()).unwrap_or(0)];
        let (pids, inside) = match holders {
            Holders::Nobody => return 0,
            Holders::Processes(pids) => (pids, self.inside),
            Holders::Daemon => (&own[..], None),
        };
        let began = Instant::now();
        if began >= self.next {
            // As the kernel names it: without links.
            let real = || self.outside.canonicalize().unwrap_or_else(|_| self.outside.clone());
            let dir = &inside.map_or_else(real, Path::to_owned);
            let mut look = Look { dir, seen: HashSet::new(), bytes: 0, left: ENTRIES_MAX };
            pids.iter().for_each(|pid| look.process(*pid));
            self.bytes = look.bytes;
            self.next = Instant::now() + began.elapsed() * SHARE;
        }
        self.bytes
    }
}

/// A look under way.
struct Look<'a> {
    dir: &'a Path,
    /// Device, as two numbers, and inode.
    seen: HashSet<(u32, u32, u64)>,
    bytes: u64,
    left: usize,
}

impl Look<'_> {
    fn process(&mut self, pid: i32) {
        for thread in procfs::threads(pid) {
            // A thread may have a table of descriptors of its own.
            if thread == pid || !same_files(pid, thread) {
                self.descriptors(&PathBuf::from(format!("/proc/{pid}/task/{thread}/fd")));
            }
        }
        self.mapped(&PathBuf::from(format!("/proc/{pid}")));
    }

    fn descriptors(&mut self, dir: &Path) {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            if !self.may_go_on() {
                return;
            }
            let at = entry.path();
            if let Some(found) = deleted(&at)
                && self.is_below(&at)
            {
                self.count(&found);
            }
        }
    }

    /// Files that are mapped: their descriptor may be closed.
    fn mapped(&mut self, process: &Path) {
        let maps = std::fs::read(process.join("maps")).unwrap_or_default();
        for line in maps.split(|byte| *byte == b'\n').filter(|line| line.ends_with(DELETED.as_bytes())) {
            if !self.may_go_on() {
                return;
            }
            let Ok(line) = std::str::from_utf8(line) else { continue };
            let mut fields = line.split_ascii_whitespace();
            let (Some(range), Some(name)) = (fields.next(), fields.nth(4)) else { continue };
            if !Path::new(name).starts_with(self.dir) {
                continue;
            }
            match deleted(&process.join("map_files").join(range)) {
                Some(found) => self.count(&found),
                // Only root may ask for the file: what is mapped of it is known at least.
                None => self.count_mapped(line),
            }
        }
    }

    /// `START-END RIGHTS OFFSET DEVICE INODE NAME`, all numbers but the inode in hexadecimal.
    fn count_mapped(&mut self, line: &str) {
        let hex = |text: &str| u64::from_str_radix(text, 16).ok();
        let mut fields = line.split_ascii_whitespace();
        let range = fields.next().and_then(|range| range.split_once('-'));
        let offset = fields.nth(1).and_then(hex);
        let device = fields.next().and_then(|device| device.split_once(':'));
        let inode = fields.next().and_then(|inode| inode.parse::<u64>().ok());
        let (Some((start, end)), Some(offset), Some((major, minor)), Some(inode)) = (range, offset, device, inode)
        else {
            return;
        };
        let device = |text: &str| u32::from_str_radix(text, 16).unwrap_or(0);
        if self.seen.insert((device(major), device(minor), inode)) {
            let len = hex(end).unwrap_or(0).saturating_sub(hex(start).unwrap_or(0));
            self.bytes = self.bytes.saturating_add(offset.saturating_add(len));
        }
    }

    const fn may_go_on(&mut self) -> bool {
        self.left = self.left.saturating_sub(1);
        self.left > 0
    }

    /// Whether what is open at `at` was in the task's directory.
    fn is_below(&self, at: &Path) -> bool {
        match std::fs::read_link(at) {
            Ok(name) => name.starts_with(self.dir),
            // Its name is longer than the system tells: only programs that hide something make such names.
            Err(e) => e.kind() == ErrorKind::InvalidFilename,
        }
    }

    fn count(&mut self, found: &Statx) {
        if self.seen.insert((found.stx_dev_major, found.stx_dev_minor, found.stx_ino)) {
            self.bytes = self.bytes.saturating_add(taken(found.stx_size, found.stx_blocks));
        }
    }
}

/// What is open or mapped at `at`, if it is a plain file without a name.
fn deleted(at: &Path) -> Option<Statx> {
    // Not asking a server, which may not answer.
    let found = statx(CWD, at, AtFlags::STATX_DONT_SYNC, StatxFlags::BASIC_STATS).ok()?;
    let is_file = FileType::from_raw_mode(found.stx_mode.into()) == FileType::RegularFile;
    (is_file && found.stx_nlink == 0).then_some(found)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write;

    use super::*;

    fn file(at: &Path, bytes: usize) -> File {
        let mut file = File::options().read(true).write(true).create_new(true).open(at).expect("file");
        file.write_all(&vec![1; bytes]).expect("write");
        file
    }

    #[test]
    fn what_is_deleted_and_held_counts_once_and_what_is_elsewhere_does_not() {
        let (dir, other) = (tempfile::tempdir().expect("dir"), tempfile::tempdir().expect("dir"));
        let at = |name: &str| dir.path().join(name);
        let link = other.path().join("link");
        std::os::unix::fs::symlink(dir.path(), &link).expect("link");
        let held: Vec<File> = ["a", "b", "kept"].map(|name| file(&at(name), 100_000)).into();
        let twice = held[0].try_clone().expect("clone");
        let elsewhere = file(&other.path().join("c"), 100_000);
        let bytes = |holders| Unlinked::below(None, &link).bytes(holders);
        let own = [i32::try_from(std::process::id()).expect("pid")];
        assert_eq!([bytes(Holders::Daemon), bytes(Holders::Processes(&own))], [0, 0]);
        for path in [at("a"), at("b"), other.path().join("c")] {
            std::fs::remove_file(path).expect("remove");
        }
        assert_eq!(
            [bytes(Holders::Daemon), bytes(Holders::Processes(&own)), bytes(Holders::Nobody)],
            [200_000, 200_000, 0]
        );
        drop((held, twice, elsewhere));
        assert_eq!(bytes(Holders::Daemon), 0);
    }

    #[test]
    fn a_mapped_file_whose_length_is_not_told_counts_as_far_as_it_is_mapped() {
        let mut look = Look { dir: Path::new("/job"), seen: HashSet::new(), bytes: 0, left: 9 };
        for line in [
            "7f0000000000-7f0000002000 r--s 00001000 fe:00 77 /job/work/x (deleted)",
            "7f0000004000-7f0000005000 r--s 00000000 fe:00 77 /job/work/x (deleted)",
            "garbage",
        ] {
            look.count_mapped(line);
        }
        assert_eq!(look.bytes, 0x3000);
    }
}
