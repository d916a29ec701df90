//! Files in directories that this node's operator offers. The kernel keeps the way to them inside: links that lead out of the
//! directory, absolute ones included, are not followed.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fstat, open, openat2};
use rustix::io::Errno;
use sinew_crdt_state::error_code::ErrorCode;

use super::super::receive::Receiving;
use super::wrong;
use crate::exec::outcome::Failure;

/// Bytes copied at a time.
const PIECE_LEN: usize = 64 * 1024;

/// Copies the file at `path`, if one of `dirs` holds it.
pub(super) fn copy(dirs: &[PathBuf], path: &str, mut receiving: Receiving<'_>) -> Result<File, Failure> {
    let (mut source, len) = find(dirs, path)?;
    receiving.announced(len)?;
    let mut piece = vec![0; PIECE_LEN];
    loop {
        match source.read(&mut piece) {
            Ok(0) => return receiving.finish(),
            Ok(len) => receiving.take(&piece[..len])?,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(Failure::new(ErrorCode::Fetch, format!("`file://{path}` cannot be read: {e}"))),
        }
    }
}

/// The file, and how long it is.
fn find(dirs: &[PathBuf], path: &str) -> Result<(File, u64), Failure> {
    let denied = |why: &str| Failure::new(ErrorCode::Deny, format!("`file://{path}` {why}"));
    let offered = dirs.iter().find_map(|dir| Some((dir, Path::new(path).strip_prefix(dir).ok()?)));
    let Some((dir, below)) = offered else {
        return Err(denied("is not offered by this node: its operator can with object_dirs"));
    };
    // Another node may have it.
    let missing = |e: Errno| Failure::new(ErrorCode::Fetch, format!("`file://{path}` cannot be had: {e}"));
    let found = beneath(dir, below).map_err(|e| match e {
        Errno::XDEV | Errno::LOOP => denied("leads out of the directory that this node offers"),
        Errno::NOSYS => denied("cannot be opened safely: the node's kernel is older than 5.6"),
        e => missing(e),
    })?;
    let stat = fstat(&found).map_err(missing)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(wrong(format!("`file://{path}` is no regular file")));
    }
    // What was looked at is what is opened: nothing but a regular file is, since opening others may do things.
    let own = format!("/proc/self/fd/{}", found.as_raw_fd());
    let opened = open(own, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).map_err(missing)?;
    Ok((File::from(opened), u64::try_from(stat.st_size).unwrap_or(0)))
}

fn beneath(dir: &Path, below: &Path) -> Result<OwnedFd, Errno> {
    let dir = open(dir, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    openat2(dir.as_fd(), below, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve)
}
