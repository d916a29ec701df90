//! Places a job's files and measures what a task left. Paths come from a spec that a peer signed, and what lies in an output
//! directory was put there by its program: neither may lead outside, so every step of a path is opened without following links.

use std::fs::{File, Permissions};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, mkdirat, open, openat, statat};
use rustix::io::Errno;
use sinew_crdt_state::error_code::ErrorCode;
use sinew_crdt_state::spec::is_safe_relative;

use super::outcome::Failure;
use super::removal::remove;

/// Deepest directory nesting taken from an output directory: descriptors and recursion stay bounded.
pub(super) const DEPTH_MAX: usize = 128;
/// Bytes that each entry of a directory takes, at least: an inode and its name.
const ENTRY_BYTES: u64 = 4_096;
/// Entries that are not counted: ordinary tasks leave a few, and are to find their files counted as long as they are.
const ENTRIES_FREE: u64 = 1_024;
/// The largest block that file systems give out.
const BLOCK_MAX: u64 = 64 << 10;

/// The files of a job on this node, shared read-only by its tasks.
#[derive(Debug, Clone, Default)]
pub struct JobFiles {
    dir: Option<PathBuf>,
    top: Vec<String>,
}

impl JobFiles {
    /// For a job without files.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// Begins placing files into `dir`, which is made anew.
    ///
    /// # Errors
    /// `E_STORAGE` when the directory cannot be made.
    pub fn place_in(dir: &Path) -> Result<Placing, Failure> {
        let made = remove(dir).and_then(|()| std::fs::create_dir_all(dir));
        // A sandboxed program is another user. Where it must not look, the directories above this one keep it out.
        let made = made.and_then(|()| std::fs::set_permissions(dir, Permissions::from_mode(0o755)));
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let root = made.and_then(|()| Ok(open(dir, flags, Mode::empty())?));
        let root = root.map_err(|e| Failure::storage("make the job's input directory", &e))?;
        Ok(Placing { dir: dir.to_owned(), root, top: Vec::new() })
    }

    /// To add more.
    ///
    /// # Errors
    /// `E_STORAGE` when there is no directory for them, or it is gone.
    pub fn reopen(&self) -> Result<Placing, Failure> {
        let dir = self.dir.as_deref().unwrap_or(Path::new(""));
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let root = open(dir, flags, Mode::empty());
        let root = root.map_err(|e| Failure::storage("open the job's input directory", &e.into()))?;
        Ok(Placing { dir: dir.to_owned(), root, top: self.top.clone() })
    }

    /// Where they are, if there are any.
    #[must_use]
    pub fn dir(&self) -> Option<&Path> {
        self.dir.as_deref()
    }

    /// The names directly in it.
    #[must_use]
    pub fn top(&self) -> &[String] {
        &self.top
    }
}

/// A job's files being placed.
#[derive(Debug)]
pub struct Placing {
    dir: PathBuf,
    root: OwnedFd,
    top: Vec<String>,
}

impl Placing {
    /// Places one file.
    ///
    /// # Errors
    /// `E_INVALID` when the path is unsafe or clashes with another, `E_FETCH` when the content cannot be read, `E_STORAGE`
    /// when the disk refuses.
    pub fn add(&mut self, path: &str, executable: bool, content: &mut dyn Read) -> Result<(), Failure> {
        if !is_safe_relative(path) {
            return Err(Failure::new(ErrorCode::Invalid, format!("input path {path:?} is not relative and plain")));
        }
        let mut file = self.create(path, executable).map_err(|e| match e {
            Errno::EXIST | Errno::NOTDIR | Errno::ISDIR | Errno::LOOP => {
                Failure::new(ErrorCode::Invalid, format!("input path `{path}` clashes with another input"))
            }
            e => Failure::storage(&format!("place the input `{path}`"), &e.into()),
        })?;
        let mut content = Tell { inner: content, failed: false };
        if let Err(e) = io::copy(&mut content, &mut file) {
            let read = content.failed;
            return Err(if read { Failure::from_input(e) } else { Failure::storage("write an input", &e) });
        }
        let top = path.split('/').next().unwrap_or(path);
        if !self.top.iter().any(|t| t == top) {
            self.top.push(top.to_owned());
        }
        Ok(())
    }

    fn create(&self, path: &str, executable: bool) -> Result<File, Errno> {
        let directory = OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let mut parts: Vec<&str> = path.split('/').collect();
        let name = parts.pop().unwrap_or(path);
        let mut at = rustix::io::dup(&self.root)?;
        for part in parts {
            match mkdirat(&at, part, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(e) => return Err(e),
            }
            at = openat(&at, part, directory, Mode::empty())?;
        }
        // Read-only, so that a task does not change by accident what the next one reads.
        let mode = if executable { 0o555 } else { 0o444 };
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        Ok(File::from(openat(&at, name, flags, Mode::from_raw_mode(mode))?))
    }

    /// All files are placed.
    #[must_use]
    pub fn finish(self) -> JobFiles {
        JobFiles { dir: Some(self.dir), top: self.top }
    }
}

/// Writes one file that is not for programs, anew.
///
/// # Errors
/// `E_FETCH` when the content cannot be read, `E_STORAGE` when the disk refuses.
pub fn place_one(path: &Path, content: &mut dyn Read) -> Result<(), Failure> {
    let storage = |e: &io::Error| Failure::storage("place a program's content", e);
    let dir = path.parent().unwrap_or(path);
    super::slot::make(dir).and_then(|()| remove(path)).map_err(|e| storage(&e))?;
    let file = File::options().write(true).create_new(true).open(path);
    let mut content = Tell { inner: content, failed: false };
    io::copy(&mut content, &mut file.map_err(|e| storage(&e))?)
        .map(|_| ())
        .map_err(|e| if content.failed { Failure::from_input(e) } else { storage(&e) })
}

/// Remembers which side of a copy failed.
struct Tell<'a> {
    inner: &'a mut dyn Read,
    failed: bool,
}

impl Read for Tell<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        self.inner.read(out).inspect_err(|e| self.failed = e.kind() != io::ErrorKind::Interrupted)
    }
}

/// A file that a task left in its output directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutputFile {
    /// Relative to the output directory, with `/`.
    pub name: String,
    /// Where it is now.
    pub path: PathBuf,
    /// Bytes.
    pub size: u64,
}

impl OutputFile {
    /// Opens it, unless it has become a link.
    ///
    /// # Errors
    /// What the system says.
    pub fn open(&self) -> io::Result<File> {
        Ok(File::from(open(&self.path, OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty())?))
    }
}

/// Bytes that what is under `dir` takes, as far as it can be read: of each file its length, or what is set aside for it
/// where that is clearly more, and [`ENTRY_BYTES`] for each entry beyond [`ENTRIES_FREE`] and `ours`. The program may be changing
/// what is there: no link is followed, however quickly it takes the place of something else.
///
/// # Errors
/// `E_INVALID` when it is nested deeper than anybody looks.
pub(crate) fn size_under(dir: &Path, ours: usize) -> Result<u64, Failure> {
    let mut found = Found::default();
    if let Ok(fd) = open(dir, WALK, Mode::empty()) {
        size_in(&fd, DEPTH_MAX, &mut found)?;
    }
    let counted = found.entries.saturating_sub(ENTRIES_FREE + ours as u64);
    Ok(found.bytes.saturating_add(counted.saturating_mul(ENTRY_BYTES)))
}

/// What was found in a directory and below.
#[derive(Debug, Default)]
struct Found {
    bytes: u64,
    entries: u64,
}

/// How directories are opened on the way.
const WALK: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC).union(OFlags::NOFOLLOW);

fn size_in(dir: &OwnedFd, depth: usize, found: &mut Found) -> Result<(), Failure> {
    let Ok(entries) = Dir::read_from(dir) else { return Ok(()) };
    for entry in entries.flatten() {
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let Ok(stat) = statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
        found.entries += 1;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => {
                let number = |n: i64| u64::try_from(n).unwrap_or(0);
                found.bytes = found.bytes.saturating_add(taken(number(stat.st_size), number(stat.st_blocks)));
            }
            FileType::Directory if depth == 0 => {
                let message = format!("the task's directories are nested more than {DEPTH_MAX} deep");
                return Err(Failure::new(ErrorCode::Invalid, message));
            }
            FileType::Directory => {
                if let Ok(fd) = openat(dir, name, WALK, Mode::empty()) {
                    size_in(&fd, depth - 1, found)?;
                }
            }
            _ => {}
        }
    }
    Ok(())
}

/// Bytes that a file takes: its length, unless more than rounding up to blocks is set aside for it, in blocks of 512 bytes.
pub(super) fn taken(len: u64, blocks: u64) -> u64 {
    let held = blocks.saturating_mul(512);
    if held > len.next_multiple_of(BLOCK_MAX) { held } else { len }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn files_are_placed_and_unsafe_or_clashing_paths_refused() {
        let dir = tempfile::tempdir().expect("dir");
        let mut placing = JobFiles::place_in(&dir.path().join("in")).expect("begin");
        placing.add("a/b.sh", true, &mut &b"x"[..]).expect("place");
        placing.add("a/c", false, &mut &b"y"[..]).expect("place");
        for bad in ["../x", "/x", "a//b", "", "a/./b"] {
            assert_eq!(placing.add(bad, false, &mut io::empty()).expect_err(bad).code, ErrorCode::Invalid);
        }
        for clash in ["a/b.sh", "a/b.sh/c", "a"] {
            let failure = placing.add(clash, false, &mut io::empty()).expect_err(clash);
            assert!(failure.message.contains("clashes"), "{failure}");
        }
        let files = placing.finish();
        assert_eq!(files.top(), ["a"]);
        let meta = files.dir().expect("dir").join("a/b.sh").metadata().expect("file");
        assert_eq!((meta.len(), meta.permissions().mode() & 0o777), (1, 0o555));
    }

    #[test]
    fn a_name_that_is_no_text_is_told_without_where_this_node_keeps_it() {
        use std::os::unix::ffi::OsStrExt;
        let dir = tempfile::tempdir().expect("dir");
        let name = Path::new("d").join(std::ffi::OsStr::from_bytes(b"caf\xe9"));
        std::fs::create_dir(dir.path().join("d")).expect("mkdir");
        std::fs::write(dir.path().join(name), "1").expect("write");
        let message = super::super::outputs::outputs(dir.path(), &[]).expect_err("refused").message;
        assert!(message.contains("\"/job/output/d/caf\\xE9\""), "{message}");
        assert!(!message.contains(dir.path().to_str().expect("utf-8")), "{message}");
    }

    #[test]
    fn a_link_in_the_way_is_not_followed() {
        let (dir, outside) = (tempfile::tempdir().expect("dir"), tempfile::tempdir().expect("dir"));
        let mut placing = JobFiles::place_in(dir.path()).expect("begin");
        symlink(outside.path(), dir.path().join("l")).expect("link");
        assert!(placing.add("l/x", false, &mut io::empty()).is_err());
        assert_eq!(std::fs::read_dir(outside.path()).expect("read").count(), 0);
        std::fs::write(outside.path().join("secret"), "s").expect("write");
        std::fs::write(dir.path().join("o"), "out").expect("write");
        let found = super::super::outputs::outputs(dir.path(), &[]).expect("outputs").files;
        assert_eq!(found.iter().map(|f| (f.name.as_str(), f.size)).collect::<Vec<_>>(), [("o", 3)]);
        assert_eq!(size_under(dir.path(), 0), Ok(3));
        assert!(OutputFile { name: "l".into(), path: dir.path().join("l"), size: 0 }.open().is_err());
    }

    #[test]
    fn space_is_counted_however_it_is_taken() {
        let dir = tempfile::tempdir().expect("dir");
        let size = || size_under(dir.path(), 0).expect("size");
        let file = File::create(dir.path().join("empty")).expect("file");
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::KEEP_SIZE, 0, 8 << 20).expect("fallocate");
        assert!((8 << 20..9 << 20).contains(&size()), "{}", size());
        drop(file);
        std::fs::remove_file(dir.path().join("empty")).expect("remove");
        std::fs::write(dir.path().join("small"), "12").expect("write");
        let kinds = ENTRIES_FREE + 9;
        for i in 0..kinds {
            let at = dir.path().join(i.to_string());
            match i % 3 {
                0 => drop(File::create(at).expect("file")),
                1 => std::fs::create_dir(at).expect("mkdir"),
                _ => symlink("x", at).expect("link"),
            }
        }
        assert_eq!(size(), 10 * ENTRY_BYTES + 2);
        assert_eq!(size_under(dir.path(), 4), Ok(6 * ENTRY_BYTES + 2));
        std::fs::create_dir_all(dir.path().join("1").join("d/".repeat(DEPTH_MAX + 1))).expect("mkdir");
        assert_eq!(size_under(dir.path(), 0).expect_err("too deep").code, ErrorCode::Invalid);
    }
}
