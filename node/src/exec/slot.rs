//! Where tasks work. Directories cost more than a short task, so they are kept and reused:
//!
//! ```text
//! work/slots/N/job/work   working directory of whatever slot N runs; links to the job's files in it, nothing else
//! work/slots/N/job/output SINEW_OUTPUT of the same
//! work/stuck/N            what could not be deleted, out of the way of later tasks until the next start
//! work/JOB/input          the job's files, placed once per node, read-only; SINEW_INPUT
//! work/JOB/content        images and modules of the job's programs; no program sees them
//! work/JOB/PHASE-TASK-ATTEMPT/{output,logs,map-output,result}     what an attempt left; made when there is something to keep
//! ```
//!
//! A program always finds an empty output directory and a working directory with the job's files and nothing else. After a
//! task both are looked at (two system calls each); what it left in `output` is moved, what it left in `work` is deleted. So a
//! task that writes no files costs no directory, and one that does pays for it. The two directories themselves stay where
//! they can, because a sandbox that shows them would have to be made anew with them.

use std::ffi::{CString, OsStr};
use std::fs::Permissions;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, RawDir, SeekFrom, StatVfs, fstatvfs, open, renameat, seek, unlinkat,
};
use rustix::io::Errno;
use sinew_crdt_state::error_code::ErrorCode;
use sinew_crdt_state::network::Network;
use sinew_crdt_state::spec::{Phase, Resources};

use super::attributes::Attributes;
use super::cell;
use super::cell::pool::Place;
use super::files::JobFiles;
use super::outcome::Failure;
use super::removal::{remove, remove_in};
use super::runner::View;
use super::shown::as_programs_know;
use super::sweep::next_run;

/// Tasks' directories are for the daemon's user alone.
const DIR_MODE: u32 = 0o700;
/// Bytes of the disk that tasks leave free, so that the daemon's ledger can go on: what blobs leave free, and on a small disk
/// this part of it.
const DISK_RESERVE_MAX: u64 = 256 << 20;
const DISK_RESERVE_SHARE: u64 = 20;
/// More entries than this are not dealt with one by one: a directory made anew costs less.
const NAMES_MAX: usize = 1_024;
/// Bytes of directory entries read at once: a clean directory fits, and one that does not is dirty.
const ENTRIES_LEN: usize = 2_048;

/// The directory that holds all work of a node.
#[derive(Debug, Clone)]
pub struct WorkRoot(PathBuf);

impl WorkRoot {
    /// Takes over `path`, moving aside whatever an earlier daemon left there: for its start, after leftover processes are gone.
    /// A thread of its own deletes that.
    ///
    /// # Errors
    /// When an empty directory cannot be had.
    pub fn open(path: &Path) -> io::Result<Self> {
        let aside = path.with_extension("old");
        if path.symlink_metadata().is_ok() {
            make(&aside)?;
            let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
            let moved = std::fs::rename(path, aside.join(format!("{:x}-{}", since.as_nanos(), next_run())));
            // It cannot be moved where it is a file system of its own.
            if moved.is_err()
                && let Err(error) = empty(path)
            {
                tracing::warn!(dir = %path.display(), %error, "files of earlier tasks stay: they could not be deleted");
            }
        }
        make(path)?;
        if aside.symlink_metadata().is_ok() {
            let delete = move || {
                if let Err(error) = remove(&aside) {
                    tracing::warn!(dir = %aside.display(), %error, "files of earlier tasks stay: they could not be deleted");
                }
            };
            std::thread::Builder::new().name("sinew-leftovers".to_owned()).spawn(delete)?;
        }
        Ok(Self(path.to_owned()))
    }

    /// The same failure, for the one who submitted the task: no directory of this node is named in it.
    #[must_use]
    pub fn shown(&self, mut failure: Failure) -> Failure {
        // The data directory, under the name that it was given and its own.
        for work in [Some(self.0.clone()), self.0.canonicalize().ok()].into_iter().flatten() {
            if let Some(data) = work.parent() {
                failure.message = as_programs_know(&failure.message, data, &work);
            }
        }
        failure
    }

    /// Where goes what cannot be deleted.
    fn stuck(&self) -> PathBuf {
        self.0.join("stuck")
    }

    /// A job's directory.
    #[must_use]
    pub fn job(&self, job: &str) -> PathBuf {
        self.0.join(job)
    }

    /// Where the job's files are placed.
    #[must_use]
    pub fn input(&self, job: &str) -> PathBuf {
        self.job(job).join("input")
    }

    /// Where images and modules of the job's programs are, out of sight of its programs.
    #[must_use]
    pub fn content(&self, job: &str) -> PathBuf {
        self.job(job).join("content")
    }

    /// An attempt's directory.
    #[must_use]
    pub fn attempt(&self, job: &str, phase: Phase, task: u32, attempt: u64) -> PathBuf {
        self.job(job).join(format!("{phase}-{task}-{attempt}"))
    }

    /// Deletes a job's directory.
    ///
    /// # Errors
    /// What the system says.
    pub fn remove_job(&self, job: &str) -> io::Result<()> {
        remove(&self.job(job))
    }

    /// Directories of jobs that are not `known`: names, and where they are now. Moved out of the way unless `dry_run`.
    pub fn set_aside(&self, known: impl Fn(&str) -> bool, dry_run: bool) -> Vec<(String, PathBuf)> {
        let entries = std::fs::read_dir(&self.0).into_iter().flatten().filter_map(Result::ok);
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        let unknown = names.filter(|name| !matches!(name.as_str(), "slots" | "stuck") && !known(name));
        let moved = unknown.filter_map(|name| {
            let path = self.0.join(&name);
            if dry_run {
                return Some((name, path));
            }
            let aside = self.stuck().join(next_run().to_string());
            make(&self.stuck()).and_then(|()| std::fs::rename(&path, &aside)).ok().map(|()| (name, aside))
        });
        moved.collect()
    }

    /// Deletes an attempt's directory, once what it left is stored elsewhere.
    ///
    /// # Errors
    /// What the system says.
    pub fn remove_attempt(&self, job: &str, phase: Phase, task: u32, attempt: u64) -> io::Result<()> {
        remove(&self.attempt(job, phase, task, attempt))
    }

    /// The directories of slot `number`, which one thread uses.
    ///
    /// # Errors
    /// What the system says.
    pub fn slot(&self, number: u32) -> io::Result<Slot> {
        let path = self.0.join("slots").join(number.to_string());
        let job = path.join("job");
        let work = ReusableDir::new(job.join("work"), self.stuck())?;
        let output = ReusableDir::new(job.join("output"), self.stuck())?;
        // A sandboxed program is another user, and finds its directories through this one.
        std::fs::set_permissions(&job, Permissions::from_mode(0o755))?;
        let job_fd = open_dir(&job)?;
        let job_own = Attributes::of(&job_fd)?;
        let (linked, links) = (None, Vec::new());
        let (root, last_job) = (self.clone(), None);
        Ok(Slot { number, root, path, job, job_fd, job_own, work, output, linked, links, last_job, empty: false })
    }
}

/// Bytes that are free, and how many of them are to stay so.
fn free_and_reserve(stat: &StatVfs) -> (u64, u64) {
    let reserve = DISK_RESERVE_MAX.min(stat.f_blocks.saturating_mul(stat.f_frsize) / DISK_RESERVE_SHARE);
    (stat.f_bavail.saturating_mul(stat.f_frsize), reserve)
}

/// Bytes that tasks may take now of the disk that `dir` is on; 0 where the system does not say.
#[must_use]
pub fn free_for_tasks(dir: &Path) -> u64 {
    let found = rustix::fs::statvfs(dir).map(|stat| free_and_reserve(&stat));
    found.map_or(0, |(free, reserve)| free.saturating_sub(reserve))
}

/// Deletes what a task may have left, whatever that is.
///
/// # Errors
/// Whatever the system says.
pub fn delete(path: &Path) -> io::Result<()> {
    remove(path)
}

pub(super) fn make(path: &Path) -> io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(DIR_MODE).create(path)
}

fn open_dir(path: &Path) -> io::Result<OwnedFd> {
    Ok(open(path, OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty())?)
}

fn empty(path: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(path)? {
        remove(&entry?.path())?;
    }
    Ok(())
}

#[derive(Debug)]
struct ReusableDir {
    path: PathBuf,
    /// Where it goes if it cannot be deleted.
    stuck: PathBuf,
    fd: OwnedFd,
    /// What it had when it was made.
    own: Attributes,
    /// How often it was made anew.
    generation: u64,
}

impl ReusableDir {
    fn new(path: PathBuf, stuck: PathBuf) -> io::Result<Self> {
        if let Err(error) = remove(&path) {
            // A task may have left what even root cannot delete: where no later task sees it, until the daemon restarts.
            let moved = make(&stuck).and_then(|()| std::fs::rename(&path, stuck.join(next_run().to_string())));
            // Nothing to move: then it is something else that is missing, such as a descriptor to look with.
            moved.map_err(|_| error)?;
        }
        make(&path)?;
        let fd = open_dir(&path)?;
        let own = Attributes::of(&fd)?;
        Ok(Self { path, stuck, fd, own, generation: 0 })
    }

    /// Makes it anew, whatever became of it.
    fn renew(&mut self) -> io::Result<()> {
        let made = Self::new(std::mem::take(&mut self.path), std::mem::take(&mut self.stuck))?;
        *self = Self { generation: self.generation + 1, ..made };
        Ok(())
    }

    /// The names in it, at most [`NAMES_MAX`].
    fn names(&self) -> io::Result<Vec<CString>> {
        seek(&self.fd, SeekFrom::Start(0))?;
        let mut buffer = [MaybeUninit::uninit(); ENTRIES_LEN];
        let mut entries = RawDir::new(&self.fd, &mut buffer);
        let mut names = Vec::new();
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let name = entry.file_name();
            if ![c".", c".."].contains(&name) {
                names.push(name.to_owned());
            }
            if names.len() > NAMES_MAX {
                return Err(Errno::NOBUFS.into());
            }
        }
        Ok(names)
    }

    /// Empties it, in place where that is possible.
    fn clear(&mut self) -> io::Result<()> {
        match self.own.restore(&self.fd).and_then(|()| self.clear_in_place()) {
            Ok(()) => Ok(()),
            Err(_) => self.renew(),
        }
    }

    fn clear_in_place(&self) -> io::Result<()> {
        for name in self.names()? {
            match unlinkat(&self.fd, &name, AtFlags::empty()) {
                Ok(()) => {}
                Err(Errno::ISDIR) => remove_in(&self.fd, OsStr::from_bytes(name.as_bytes()))?,
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }

    /// Moves what is in it into the new directory `to`, itself staying; or moves it whole where that does not work.
    fn move_to(&mut self, to: &Path) -> io::Result<()> {
        let moved = self.names().and_then(|names| {
            make(to)?;
            let target = open_dir(to)?;
            names.iter().try_for_each(|name| Ok(renameat(&self.fd, name, &target, name)?))
        });
        if moved.is_ok() {
            return Ok(());
        }
        remove(to)?;
        std::fs::rename(&self.path, to)?;
        self.renew()
    }

    /// Whether it holds exactly the links named. An error counts as no: a directory that was deleted gives one.
    fn holds_only(&self, links: &[String]) -> bool {
        if seek(&self.fd, SeekFrom::Start(0)).is_err() {
            return false;
        }
        let mut buffer = [MaybeUninit::uninit(); ENTRIES_LEN];
        let mut entries = RawDir::new(&self.fd, &mut buffer);
        let mut seen = 0;
        while let Some(entry) = entries.next() {
            let Ok(entry) = entry else { return false };
            let name = entry.file_name().to_bytes();
            if name == b"." || name == b".." {
                continue;
            }
            if entry.file_type() != FileType::Symlink || !links.iter().any(|link| link.as_bytes() == name) {
                return false;
            }
            seen += 1;
        }
        seen == links.len()
    }
}

/// The directories of one slot.
#[derive(Debug)]
pub struct Slot {
    number: u32,
    root: WorkRoot,
    path: PathBuf,
    /// Holds `work` and `output` and nothing else.
    job: PathBuf,
    job_fd: OwnedFd,
    /// What `job` has. Programs may change it where they are the daemon's user.
    job_own: Attributes,
    work: ReusableDir,
    output: ReusableDir,
    /// Whose files are linked into `work`, and as whom they are seen.
    linked: Option<(PathBuf, View)>,
    links: Vec<String>,
    /// Whose task ran last.
    last_job: Option<String>,
    /// Whether `output` was found empty after the task.
    empty: bool,
}

impl Slot {
    /// The root it belongs to.
    #[must_use]
    pub const fn root(&self) -> &WorkRoot {
        &self.root
    }

    /// The working directory.
    #[must_use]
    pub fn work(&self) -> &Path {
        &self.work.path
    }

    /// The output directory.
    #[must_use]
    pub fn output(&self) -> &Path {
        &self.output.path
    }

    /// The directory that holds both.
    pub(super) fn job(&self) -> &Path {
        &self.job
    }

    /// Which slot it is.
    pub(super) const fn number(&self) -> u32 {
        self.number
    }

    /// How many links to the job's files are in the working directory.
    pub(super) const fn links(&self) -> usize {
        self.links.len()
    }

    /// Where unnamed temporary files go.
    #[must_use]
    pub fn scratch(&self) -> &Path {
        &self.path
    }

    /// Fails when the disk is nearly full: whatever a task does to hide what it writes, it does not get further.
    pub(super) fn check_disk(&self) -> Result<(), Failure> {
        let Ok(stat) = fstatvfs(&self.output.fd) else { return Ok(()) };
        let (free, reserve) = free_and_reserve(&stat);
        // File systems without a fixed number of files say 0.
        let files_left = stat.f_files == 0 || stat.f_favail >= stat.f_files / DISK_RESERVE_SHARE;
        if free >= reserve && files_left {
            return Ok(());
        }
        let message =
            format!("the disk of this node is nearly full: {free} bytes are left, and {reserve} are kept free");
        Err(Failure::new(ErrorCode::Storage, message))
    }

    /// What a sandbox needs to know.
    pub(super) fn place<'a>(
        &'a self,
        job: &'a str,
        files: &'a JobFiles,
        output_max: u64,
        resources: Resources,
        network: &'a Network,
    ) -> Place<'a> {
        let generation = self.work.generation + self.output.generation;
        let (slot, dir, input) = (self.number, &self.job, files.dir());
        Place { slot, dir, generation, job, input, output_max, resources, network, secrets: None, volumes: &[] }
    }

    /// Makes both directories anew if `job` is another than the last: one job's program is not to find what another's made of
    /// them, access control lists for example.
    pub(super) fn change_job(&mut self, job: &str) -> io::Result<()> {
        if self.last_job.as_deref() != Some(job) {
            if self.last_job.is_some() {
                self.output.renew()?;
                self.work.renew()?;
                (self.linked, self.links) = (None, Vec::new());
            }
            self.last_job = Some(job.to_owned());
        }
        Ok(())
    }

    /// Makes the working directory show `files`, as programs see them.
    pub(super) fn prepare(&mut self, files: &JobFiles, view: View) -> io::Result<()> {
        let linked = self.linked.as_ref().map(|(dir, view)| (dir.as_path(), *view));
        if linked == files.dir().map(|dir| (dir, view)) && self.links.len() == files.top().len() {
            return Ok(());
        }
        if !self.links.is_empty() {
            self.work.clear()?;
        }
        (self.linked, self.links) = (None, Vec::new());
        if let Some(dir) = files.dir() {
            let shown = if view == View::Cell { Path::new(cell::INPUT) } else { dir };
            for name in files.top() {
                symlink(shown.join(name), self.work.path.join(name))?;
                self.links.push(name.clone());
            }
            self.linked = Some((dir.to_owned(), view));
        }
        Ok(())
    }

    /// Whether the task left something in the output directory.
    pub(super) fn has_output(&mut self) -> bool {
        self.empty = self.output.holds_only(&[]);
        !self.empty
    }

    /// Moves the output directory to `to`.
    pub(super) fn move_output(&mut self, to: &Path) -> io::Result<()> {
        if let Some(parent) = to.parent() {
            make(parent)?;
        }
        self.output.move_to(to)
    }

    /// Cleans up after a task. After one that failed everything is made anew, in case it did something odd.
    pub(super) fn tidy(&mut self, failed: bool) -> io::Result<()> {
        self.job_own.restore(&self.job_fd)?;
        // What does not become as it was is made anew.
        let is_odd = |dir: &ReusableDir| failed || dir.own.restore(&dir.fd).is_err();
        let (output_is_odd, work_is_odd) = (is_odd(&self.output), is_odd(&self.work));
        if output_is_odd {
            self.output.renew()?;
        } else if !(std::mem::take(&mut self.empty) || self.output.holds_only(&[])) {
            self.output.clear()?;
        }
        if work_is_odd || !self.work.holds_only(&self.links) {
            (self.linked, self.links) = (None, Vec::new());
            if work_is_odd {
                self.work.renew()?;
            } else {
                self.work.clear()?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_clean_again_after_whatever_a_task_left() {
        let dir = tempfile::tempdir().expect("dir");
        let root = WorkRoot::open(&dir.path().join("work")).expect("root");
        let mut placing = JobFiles::place_in(&root.input("j")).expect("place");
        placing.add("p/q", false, &mut &b"text"[..]).expect("add");
        let files = placing.finish();
        let mut slot = root.slot(0).expect("slot");
        slot.prepare(&files, View::Host).expect("prepare");
        assert_eq!(std::fs::read(slot.work().join("p/q")).expect("read"), b"text");
        slot.tidy(false).expect("tidy");
        assert!(slot.linked.is_some(), "a clean slot keeps its links");
        std::fs::remove_file(slot.work().join("p")).expect("unlink");
        std::fs::write(slot.work().join("p"), "swapped").expect("write");
        std::fs::write(slot.output().join("o"), "1").expect("write");
        assert!(slot.has_output());
        slot.move_output(&root.attempt("j", 0, 1, 2).join("output")).expect("move");
        assert!(!slot.has_output() && dir.path().join("work/j/0-1-2/output/o").is_file());
        slot.tidy(false).expect("tidy");
        slot.prepare(&files, View::Host).expect("prepare");
        assert!(slot.work().join("p/q").is_file());
        std::fs::remove_dir_all(slot.work()).expect("remove");
        slot.tidy(false).expect("tidy");
        slot.prepare(&JobFiles::none(), View::Host).expect("prepare");
        assert_eq!(std::fs::read_dir(slot.work()).expect("read").count(), 0);
        root.remove_job("j").expect("remove");
        assert!(!root.job("j").exists());
    }

    #[test]
    fn a_start_moves_leftovers_aside_and_deletes_them() {
        let dir = tempfile::tempdir().expect("dir");
        let work = dir.path().join("work");
        for round in 0..2 {
            std::fs::create_dir_all(work.join("slots/0/job/work/a/b")).expect("mkdir");
            std::fs::set_permissions(work.join("slots/0/job/work/a"), Permissions::from_mode(0o0)).expect("chmod");
            let root = WorkRoot::open(&work).expect("root");
            assert_eq!(std::fs::read_dir(&work).expect("read").count(), 0, "{round}");
            drop(root.slot(0).expect("slot"));
        }
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
        while dir.path().join("work.old").exists() {
            assert!(std::time::Instant::now() < deadline, "the leftovers are not deleted");
            std::thread::yield_now();
        }
    }
}
