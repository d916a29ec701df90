//! What programs of a cell may do: user, limits, landlock, capabilities, system calls. All of it is put on the cell's first
//! process, and its children cannot take it off.

use std::io;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, PathBeneath, PathFd, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError, RulesetStatus,
    Scope,
};
use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
use rustix::thread::{CapabilitySet, CapabilitySets};

use super::wire::{Missing, Setup};
use super::{INPUT, OUTPUT, SECRETS, SYSTEM, TMP, WORK, sys, syscalls};

/// Programs and what they start leave the processor to the daemon, whose leases depend on it, when both want it.
const NICE: i32 = 5;
/// Best effort, the lowest but one: the daemon's ledger comes first on the disk.
const IO_PRIORITY: i32 = (2 << 13) | 6;
/// Open files of one process: enough for a merge of many files, short of what exhausts the system.
const OPEN_FILES_MAX: u64 = 4_096;
/// The version of landlock whose rights are asked for; an older kernel gives as much as it has.
const LANDLOCK: ABI = ABI::V6;

/// Puts everything on this process. Pieces that the system does not give come back.
pub(super) fn confine(setup: &Setup) -> Vec<Missing> {
    let mut missing = Vec::new();
    let mut note = |piece: &str, why: Option<String>| {
        missing.extend(why.map(|why| Missing { piece: piece.to_owned(), why }));
    };
    note("resource limits", limits(setup).err().map(|e| e.to_string()));
    note("no-new-privileges", rustix::thread::set_no_new_privs(true).err().map(|e| e.to_string()));
    note("landlock", landlock(setup));
    note("dropped capabilities", drop_capabilities().err().map(|e| e.to_string()));
    // From here on no program can open this process's memory or executable through /proc.
    let dumpable = set_dumpable_behavior(DumpableBehavior::NotDumpable);
    note("a closed first process", dumpable.err().map(|e| e.to_string()));
    note("seccomp", seccomp(setup).err());
    missing
}

fn limits(setup: &Setup) -> io::Result<()> {
    let at_most = |resource: Resource, most: u64| {
        let allowed = rustix::process::getrlimit(resource).maximum.map_or(most, |maximum| maximum.min(most));
        setrlimit(resource, Rlimit { current: Some(allowed), maximum: Some(allowed) })
    };
    at_most(Resource::Core, 0)?;
    at_most(Resource::Nofile, OPEN_FILES_MAX)?;
    at_most(Resource::Fsize, setup.file_bytes_max)?;
    at_most(Resource::Nproc, setup.processes_max)?;
    at_most(Resource::Msgqueue, 0)?;
    at_most(Resource::Rtprio, 0)?;
    rustix::process::setpriority_process(None, NICE)?;
    sys::set_io_priority(IO_PRIORITY)
}

/// Reading and executing where the system is, everything in the program's own directories, nothing elsewhere, and no signal
/// or abstract socket to the outside.
fn landlock(setup: &Setup) -> Option<String> {
    match restrict(setup) {
        Ok(RulesetStatus::NotEnforced) => Some("this kernel does not have it".to_owned()),
        // An older kernel that knows fewer rights still confines files to where they belong.
        Ok(_) => None,
        Err(e) => Some(e.to_string()),
    }
}

fn restrict(setup: &Setup) -> Result<RulesetStatus, RulesetError> {
    let (read, all) = (AccessFs::from_read(LANDLOCK), AccessFs::from_all(LANDLOCK));
    let device = AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::ReadDir | AccessFs::IoctlDev;
    let own = [WORK, OUTPUT, TMP, "/dev/shm"].map(PathBuf::from);
    let seen = SYSTEM.iter().chain(&["/etc", "/proc", INPUT, SECRETS]).map(PathBuf::from);
    let mut ruleset =
        Ruleset::default().handle_access(all)?.scope(Scope::AbstractUnixSocket | Scope::Signal)?.create()?;
    for path in seen.chain(setup.readable.iter().cloned()) {
        ruleset = allow(ruleset, &path, read)?;
    }
    // Names of directories are no secret here: whatever is below the root was put there for programs.
    ruleset = allow(ruleset, Path::new("/"), AccessFs::ReadDir.into())?;
    ruleset = allow(ruleset, Path::new("/dev"), device)?;
    for volume in &setup.volumes {
        ruleset = allow(ruleset, &volume.path, if volume.read_only { read } else { all })?;
    }
    for path in own.iter().chain(&setup.writable) {
        ruleset = allow(ruleset, path, all)?;
    }
    Ok(ruleset.restrict_self()?.ruleset)
}

fn allow(
    ruleset: landlock::RulesetCreated,
    path: &Path,
    access: landlock::BitFlags<AccessFs>,
) -> Result<landlock::RulesetCreated, RulesetError> {
    // What is not there needs no rule.
    let Ok(fd) = PathFd::new(path) else { return Ok(ruleset) };
    let access = if path.is_dir() { access } else { access & AccessFs::from_file(LANDLOCK) };
    ruleset.add_rule(PathBeneath::new(fd, access))
}

fn drop_capabilities() -> rustix::io::Result<()> {
    for capability in CapabilitySet::all().iter() {
        match rustix::thread::remove_capability_from_bounding_set(capability) {
            // The kernel has fewer than the library knows.
            Ok(()) | Err(rustix::io::Errno::INVAL) => {}
            Err(e) => return Err(e),
        }
    }
    // A kernel without ambient capabilities has none to clear.
    let _ = rustix::thread::clear_ambient_capability_set();
    let none = CapabilitySet::empty();
    rustix::thread::set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })
}

fn seccomp(setup: &Setup) -> Result<(), String> {
    // Where there is a way out it is for TCP: what else leaves nothing behind would only look as if it arrived.
    let filters = syscalls::filters(setup.routes.is_empty()).map_err(|e| e.to_string())?;
    filters.iter().try_for_each(|filter| seccompiler::apply_filter(filter).map_err(|e| e.to_string()))
}
