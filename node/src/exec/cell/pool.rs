//! Which cell a task gets. Each slot keeps the cell of the job that it ran last; a task of another job, other limits or
//! directories made anew get a new one. Cells that nobody needs end: with their job, or after a while.

use std::collections::HashMap;
use std::fmt;
use std::os::fd::BorrowedFd;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use sinew_crdt_state::network::{NO_NETWORK, Network};
use sinew_crdt_state::spec::Resources;

use super::cgroup::{Cgroups, Share};
use super::host::{Cell, CellError, Plan};
use super::init::NETWORK_NAMESPACE;
use super::wire::{Missing, Setup, Spawn};
use super::{SYSTEM, network};
use crate::egress::{self, Egress};
use crate::exec::guardian::NodeTag;
use crate::exec::volumes::Mounted;
use crate::secrets::job::JobSecrets;

/// A cell without a task ends after this: its job's next task would find a slot sooner, if there were one.
pub const IDLE_MAX: Duration = Duration::from_secs(10);
/// Beyond what a task may write in all: one that goes over its limit is told so rather than hit by a signal.
const FILE_SLACK: u64 = 64 << 20;
/// Processes and threads of one task: a compiler or a JVM on a big machine has hundreds.
const PROCESSES_MAX: u64 = 1_024;

/// Whether programs run in cells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum SandboxMode {
    /// Always, and with every piece; a machine that lacks one runs nothing.
    #[default]
    Required,
    /// With whatever pieces the machine has; programs run bare where it cannot be at all.
    BestEffort,
    /// Never: programs run as the daemon's user and can do what it can.
    Off,
}

impl std::fmt::Display for SandboxMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Required => "required",
            Self::BestEffort => "best-effort",
            Self::Off => "off",
        })
    }
}

/// How cells are made on this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SandboxOptions {
    /// Whether at all.
    pub mode: SandboxMode,
    /// This program, or another that answers to [`super::CELL_COMMAND`].
    pub exe: PathBuf,
    /// Further paths that programs may read and execute.
    pub readable: Vec<PathBuf>,
    /// Further directories that programs may write to.
    pub writable: Vec<PathBuf>,
    /// Bytes that fit into a task's `/tmp`, and again into its `/dev/shm`.
    pub tmp_bytes: u64,
    /// Bytes of memory for all tasks together.
    pub memory_bytes: u64,
    /// How many tasks share that: one that reserves none gets this part of it.
    pub slots: u32,
}

impl SandboxOptions {
    /// Parts of the host that cells show.
    fn shown(&self) -> impl Iterator<Item = &Path> {
        SYSTEM.iter().map(Path::new).chain(self.readable.iter().chain(&self.writable).map(PathBuf::as_path))
    }

    /// The part of the host that cells show and that `dir` is in, links resolved, if there is one.
    #[must_use]
    pub fn showing(&self, dir: &Path) -> Option<&Path> {
        let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
        let dir = real(dir);
        self.shown().find(|shown| dir.starts_with(real(shown)))
    }
}

/// Where a task runs and what decides whether a cell fits it.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// The slot's number.
    pub slot: u32,
    /// Holds the slot's `work` and `output`.
    pub dir: &'a Path,
    /// Counts how often one of these was made anew.
    pub generation: u64,
    /// The job.
    pub job: &'a str,
    /// The job's files.
    pub input: Option<&'a Path>,
    /// Directories of this node that the job has.
    pub volumes: &'a [Mounted],
    /// Bytes that one task may write.
    pub output_max: u64,
    /// What one task reserves, and is held to.
    pub resources: Resources,
    /// What the job's programs may connect to.
    pub network: &'a Network,
    /// The job's secrets.
    pub secrets: Option<&'a JobSecrets>,
}

/// What must be the same for a task to find what an earlier one had.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::exec) struct Fit {
    dir: PathBuf,
    generation: u64,
    job: String,
    input: Option<PathBuf>,
    volumes: Vec<Mounted>,
    output_max: u64,
    resources: Resources,
    network: Network,
}

impl Fit {
    pub(in crate::exec) fn of(place: &Place<'_>) -> Self {
        let (dir, input) = (place.dir.to_owned(), place.input.map(Path::to_owned));
        let (generation, output_max, resources) = (place.generation, place.output_max, place.resources);
        let network = place.network.clone();
        let (job, volumes) = (place.job.to_owned(), place.volumes.to_vec());
        Self { dir, generation, job, input, volumes, output_max, resources, network }
    }

    /// The job.
    pub(in crate::exec) fn job(&self) -> &str {
        &self.job
    }

    pub(in crate::exec) fn fits(&self, place: &Place<'_>) -> bool {
        self.generation == place.generation
            && self.output_max == place.output_max
            && self.resources == place.resources
            && self.network == *place.network
            && self.job == place.job
            && self.dir == place.dir
            && self.input.as_deref() == place.input
            && self.volumes == place.volumes
    }
}

#[derive(Debug)]
struct Idle {
    fit: Fit,
    cell: Cell,
    since: Instant,
}

/// Makes cells and keeps those that may be needed again.
#[derive(Debug)]
pub struct Sandbox {
    options: SandboxOptions,
    tag: NodeTag,
    missing: Vec<Missing>,
    cgroups: Arc<Cgroups>,
    idle: Mutex<HashMap<u32, Idle>>,
    egress: OnceLock<Egress>,
    /// Why the last cell could not be started, if it could not.
    trouble: Mutex<Option<String>>,
}

/// A cell while a task has it. Dropping it ends the cell.
#[derive(Debug)]
pub(in crate::exec) struct Lease {
    sandbox: Arc<Sandbox>,
    slot: u32,
    fit: Fit,
    pub(in crate::exec) cell: Cell,
}

impl Lease {
    /// Bytes of memory that its task may use.
    pub(in crate::exec) fn memory_bytes(&self) -> u64 {
        self.sandbox.memory_bytes(self.fit.resources)
    }

    /// Keeps the cell for the job's next task in this slot.
    pub(in crate::exec) fn give_back(self) {
        let idle = Idle { fit: self.fit, cell: self.cell, since: Instant::now() };
        let before = self.sandbox.idle().insert(self.slot, idle);
        // Outside the lock: the end of a cell takes a moment.
        drop(before);
    }
}

/// Why no program can be run here.
#[derive(Debug, thiserror::Error)]
pub enum CannotIsolate {
    /// The machine lacks a piece.
    #[error(
        "programs cannot be isolated here: {0}; give the daemon what is missing, or set sandbox = \"best-effort\" or \"off\" \
         if every submitter is trusted"
    )]
    Missing(String),
}

impl Sandbox {
    /// Tries out what this machine can do, in a cell that does nothing. `None` when programs are to run bare, which then
    /// was asked for, or is all there is. Where something went wrong that says nothing about the machine, the sandbox is in
    /// [`Self::trouble`] at first, whatever is required but `off`.
    ///
    /// # Errors
    /// [`CannotIsolate`] when a piece is missing and every piece is required.
    pub fn probe(options: SandboxOptions, tag: &NodeTag) -> Result<(Option<Arc<Self>>, Vec<Missing>), CannotIsolate> {
        if options.mode == SandboxMode::Off {
            return Ok((None, vec![all_off("sandbox = \"off\"")]));
        }
        let (cgroups, unlimited) = Cgroups::open(tag, options.memory_bytes);
        let (cgroups, idle) = (Arc::new(cgroups), Mutex::default());
        let (egress, trouble) = (OnceLock::new(), Mutex::default());
        let mut sandbox = Self { options, tag: tag.clone(), missing: Vec::new(), cgroups, idle, egress, trouble };
        let strict = sandbox.options.mode == SandboxMode::Required;
        let tried = sandbox.trial().map(|missing| [unlimited, missing].concat());
        match tried {
            Ok(missing) if strict && !missing.is_empty() => Err(CannotIsolate::Missing(list(&missing))),
            Ok(missing) => {
                sandbox.missing.clone_from(&missing);
                Ok((Some(Arc::new(sandbox)), missing))
            }
            Err(CellError::Missing(piece)) if strict => Err(CannotIsolate::Missing(piece.to_string())),
            Err(e @ CellError::Missing(_)) => Ok((None, vec![all_off(&e.to_string())])),
            // The second is of a job's wishes, and this cell is nobody's.
            Err(e @ (CellError::Broken { .. } | CellError::Denied(_))) => {
                sandbox.in_trouble(&e);
                Ok((Some(Arc::new(sandbox)), Vec::new()))
            }
        }
    }

    fn trial(&self) -> Result<Vec<Missing>, CellError> {
        let broken = |e: std::io::Error| CellError::Broken { doing: "trying it out", problem: e.to_string() };
        let dir = tempfile::tempdir().map_err(broken)?;
        for name in ["work", "output"] {
            std::fs::create_dir(dir.path().join(name)).map_err(broken)?;
        }
        let (dir, resources) = (dir.path(), Resources::default());
        let place = Place {
            slot: 0,
            dir,
            generation: 0,
            job: "",
            input: None,
            output_max: FILE_SLACK,
            resources,
            network: &NO_NETWORK,
            secrets: None,
            volumes: &[],
        };
        Ok(self.make(&place)?.missing().to_vec())
    }

    /// Gives programs whose jobs name hosts this way out. Without it there is none.
    pub fn let_out(&self, egress: Egress) {
        // Whoever comes second finds what the first has set.
        let _ = self.egress.set(egress);
    }

    /// Whether programs may reach hosts at all.
    #[must_use]
    pub fn has_way_out(&self) -> bool {
        self.egress.get().is_some() && self.missing.iter().all(|m| m.piece != NETWORK_NAMESPACE)
    }

    /// The way out for a job, if it wants one.
    fn way_out(&self, network: &Network) -> Result<Option<&Egress>, CellError> {
        if network.is_none() {
            return Ok(None);
        }
        let none =
            || CellError::Denied(egress::cannot("this node lets no job reach any: its operator can, with job_hosts"));
        let egress = self.egress.get().ok_or_else(none)?;
        egress.admit(network).map_err(CellError::Denied)?;
        Ok(Some(egress))
    }

    /// What this machine lacks.
    #[must_use]
    pub fn missing(&self) -> &[Missing] {
        &self.missing
    }

    /// Whether `dir`, which programs write to, holds directories of the host.
    #[must_use]
    pub(in crate::exec) fn shows_below(&self, dir: &Path) -> bool {
        self.options.readable.iter().chain(&self.options.writable).any(|path| path.starts_with(dir))
    }

    /// Whether programs of a cell see `path` of the host under the same name. Not if it has `..` in it, which may lead
    /// anywhere.
    #[must_use]
    pub fn shows(&self, path: &Path) -> bool {
        !path.components().any(|part| part == Component::ParentDir)
            && self.options.shown().any(|shown| path.starts_with(shown))
    }

    /// A cell for a task: the slot's own if it fits, else a new one.
    ///
    /// # Errors
    /// When none can be made.
    pub(in crate::exec) fn take(self: &Arc<Self>, place: &Place<'_>) -> Result<Lease, CellError> {
        let idle = self.idle().remove(&place.slot);
        let (fit, cell) = match idle {
            Some(idle) if idle.fit.fits(place) && idle.cell.is_alive() => (idle.fit, idle.cell),
            other => {
                drop(other);
                (Fit::of(place), self.start(place)?)
            }
        };
        Ok(Lease { sandbox: Arc::clone(self), slot: place.slot, fit, cell })
    }

    fn start(&self, place: &Place<'_>) -> Result<Cell, CellError> {
        // What was there when it was tried out can be taken away later.
        let started = self.make(place).and_then(|cell| match self.lacks(cell.missing()) {
            Some(new) => Err(CellError::Missing(new)),
            None => Ok(cell),
        });
        match &started {
            Ok(_) => self.out_of_trouble(),
            // That is the job's trouble.
            Err(CellError::Denied(_)) => {}
            Err(error) => self.in_trouble(error),
        }
        started
    }

    /// A piece among `missing` that was there at the start, and is required.
    fn lacks(&self, missing: &[Missing]) -> Option<Missing> {
        let strict = self.options.mode == SandboxMode::Required;
        missing.iter().find(|m| strict && !self.missing.contains(m)).cloned()
    }

    /// Why no cell can be started, as far as that was tried. It is tried again now and then.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn in_trouble(&self, error: &CellError) {
        let why = format!("no sandbox can be started now: {error}");
        let before = self.trouble.lock().unwrap_or_else(PoisonError::into_inner).replace(why.clone());
        if before.is_none() {
            tracing::error!(%why, "this node takes no programs until that is mended; it looks again by itself");
        }
    }

    fn out_of_trouble(&self) {
        if self.trouble.lock().unwrap_or_else(PoisonError::into_inner).take().is_some() {
            tracing::info!("sandboxes can be started again");
        }
    }

    /// Looks whether the trouble is over.
    fn try_again(&self) {
        if self.trouble().is_none() {
            return;
        }
        match self.trial() {
            Ok(missing) => match self.lacks(&missing) {
                Some(new) => self.in_trouble(&CellError::Missing(new)),
                None => self.out_of_trouble(),
            },
            Err(error) => self.in_trouble(&error),
        }
    }

    fn memory_bytes(&self, resources: Resources) -> u64 {
        let most = self.options.memory_bytes;
        // Not all of it: with that, whom the kernel kills for want of memory might be a neighbour within its reservation.
        let share = most / u64::from(self.options.slots.max(1));
        if resources.memory_bytes == 0 { share } else { resources.memory_bytes.min(most) }
    }

    fn make(&self, place: &Place<'_>) -> Result<Cell, CellError> {
        let egress = self.way_out(place.network)?;
        let setup = Setup {
            job: place.dir.to_owned(),
            input: place.input.map(Path::to_owned),
            readable: self.options.readable.clone(),
            writable: self.options.writable.clone(),
            volumes: place.volumes.to_vec(),
            tmp_bytes: self.options.tmp_bytes,
            file_bytes_max: place.output_max.saturating_add(FILE_SLACK),
            processes_max: PROCESSES_MAX,
            drop_groups: false,
            routes: network::routes(place.network),
            secrets: place.secrets.map_or_else(Vec::new, |secrets| secrets.files().to_vec()),
        };
        let (cpu_milli, memory_bytes) = (place.resources.cpu_milli, self.memory_bytes(place.resources));
        // The first process counts too.
        let share = Share { memory_bytes, cpu_milli, processes: PROCESSES_MAX + 1 };
        let (tag, cgroups) = (&self.tag, &self.cgroups);
        Cell::start(&Plan { exe: &self.options.exe, tag, slot: place.slot, setup, cgroups, share, egress })
    }

    /// Ends a job's idle cells.
    pub fn end_job(&self, job: &str) {
        self.end(|idle| idle.fit.job == job);
    }

    /// Ends cells that have had nothing to do for [`IDLE_MAX`].
    pub fn end_idle(&self) {
        self.cgroups.sweep();
        self.try_again();
        self.end(|idle| idle.since.elapsed() >= IDLE_MAX);
    }

    fn end(&self, which: impl Fn(&Idle) -> bool) {
        let ended: Vec<Idle> = self.idle().extract_if(|_, idle| which(idle)).map(|(_, idle)| idle).collect();
        drop(ended);
    }

    fn idle(&self) -> MutexGuard<'_, HashMap<u32, Idle>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn all_off(why: &str) -> Missing {
    Missing { piece: "isolation: programs run as the daemon's user".to_owned(), why: why.to_owned() }
}

fn list(missing: &[Missing]) -> String {
    missing.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// A program to start in a cell.
pub(in crate::exec) struct CellProgram<'a> {
    pub(in crate::exec) program: PathBuf,
    pub(in crate::exec) argv: &'a [String],
    pub(in crate::exec) env: Vec<(String, String)>,
    pub(in crate::exec) stdio: [BorrowedFd<'a>; 3],
}

impl fmt::Debug for CellProgram<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CellProgram({})", self.program.display())
    }
}

impl CellProgram<'_> {
    pub(in crate::exec) fn start_in(self, cell: &mut Cell) -> Result<(), CellError> {
        cell.spawn(Spawn { program: self.program, argv: self.argv.to_vec(), env: self.env }, self.stdio)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exec::outcome::Failure;

    fn options(readable: &[&Path]) -> SandboxOptions {
        SandboxOptions {
            mode: SandboxMode::BestEffort,
            exe: "/no/such/program".into(),
            readable: readable.iter().map(|path| (*path).to_owned()).collect(),
            writable: Vec::new(),
            tmp_bytes: 1 << 20,
            memory_bytes: 1 << 30,
            slots: 4,
        }
    }

    #[test]
    fn what_says_nothing_about_the_machine_does_not_turn_isolation_off() {
        let (sandbox, missing) =
            Sandbox::probe(options(&[]), &NodeTag::new("no program")).expect("not refused for good");
        let trouble = sandbox.as_ref().expect("not bare").trouble().expect("nothing runs");
        assert!(missing.is_empty() && trouble.contains("starting"), "{trouble}");
    }

    /// A program that is no cell's, and then is.
    #[test]
    fn trouble_ends_by_itself_once_cells_can_be_started() {
        let dir = tempfile::tempdir().expect("dir");
        let exe = dir.path().join("sinew");
        let options = SandboxOptions { exe: exe.clone(), ..options(&[]) };
        let (sandbox, _) = Sandbox::probe(options, &NodeTag::new("trouble")).expect("not refused for good");
        let sandbox = sandbox.expect("not bare");
        sandbox.end_idle();
        assert!(sandbox.trouble().is_some(), "it is as it was");
        sandbox.out_of_trouble();
        assert_eq!(sandbox.trouble(), None);
        let (place_dir, network) = (dir.path().to_owned(), &NO_NETWORK);
        let place = Place {
            slot: 0,
            dir: &place_dir,
            generation: 0,
            job: "",
            input: None,
            output_max: 1,
            resources: Resources::default(),
            network,
            secrets: None,
            volumes: &[],
        };
        let failure = Failure::from(sandbox.take(&place).expect_err("no such program"));
        assert_eq!(failure.code, sinew_crdt_state::error_code::ErrorCode::Lost, "given back");
        assert!(sandbox.trouble().is_some(), "and nothing more is taken");
    }

    #[test]
    fn a_task_without_a_reservation_gets_its_share_and_nothing_is_shown_through_dots() {
        let (cgroups, _) = Cgroups::open(&NodeTag::new("share"), 1 << 30);
        let (cgroups, idle) = (Arc::new(cgroups), Mutex::default());
        let (tag, egress, trouble) = (NodeTag::new("share"), OnceLock::new(), Mutex::default());
        let sandbox = Sandbox { options: options(&[]), tag, missing: Vec::new(), cgroups, idle, egress, trouble };
        let bytes = |memory_bytes| sandbox.memory_bytes(Resources { memory_bytes, ..Resources::default() });
        assert_eq!((bytes(0), bytes(1 << 29), bytes(1 << 31)), (1 << 28, 1 << 29, 1 << 30));
        let shows = |path: &str| sandbox.shows(Path::new(path));
        assert!(shows("/usr/bin/sh") && !shows("/usr/../etc/shadow") && !shows("/usr/bin/../../root/x"));
        assert!(!shows("/etc/shadow") && !shows("usr/bin"));
    }

    #[test]
    fn a_directory_below_what_cells_show_is_found_through_links_too() {
        let dir = tempfile::tempdir().expect("dir");
        let (data, link) = (dir.path().join("data"), dir.path().join("link"));
        std::fs::create_dir(&data).expect("mkdir");
        std::os::unix::fs::symlink(dir.path(), &link).expect("link");
        assert_eq!(options(&[&link]).showing(&data), Some(link.as_path()));
        assert_eq!(options(&[]).showing(&data), None);
        assert_eq!(options(&[]).showing(Path::new("/usr/bin")), Some(Path::new("/usr")));
    }
}
