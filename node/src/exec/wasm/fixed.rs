//! What a deterministic module sees of files: names in order, and neither times, nor inodes, nor sizes of directories, which
//! differ from node to node.

use wasmtime::{Caller, Extern, Linker, Memory};
use wasmtime_wasi::p1::wasi_snapshot_preview1 as wasi;
use wiggle::GuestMemory;

use super::host::State;

const MODULE: &str = "wasi_snapshot_preview1";
const SUCCESS: i32 = 0;
const FAULT: i32 = 21;
/// Layout of a `filestat`.
const FILESTAT_LEN: usize = 64;
const TYPE_AT: usize = 16;
const DIRECTORY: u8 = 3;
/// What every device and inode is said to be: 0 would be none.
const INODE: u64 = 1;
/// Layout of a `dirent`, before its name.
const DIRENT_LEN: usize = 24;
/// Bytes of a directory read at first, and at most.
const LISTING_LEN: usize = 16 << 10;
const LISTING_MAX: usize = 64 << 20;

/// Puts itself in front of what `linker` has.
///
/// # Errors
/// When `linker` does not allow that.
pub(super) fn add_to(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    linker.func_wrap_async(MODULE, "fd_filestat_get", |caller, (fd, buf): (i32, i32)| {
        Box::new(fd_filestat_get(caller, fd, buf))
    })?;
    linker.func_wrap_async(MODULE, "path_filestat_get", |caller, args| Box::new(path_filestat_get(caller, args)))?;
    linker.func_wrap_async(MODULE, "fd_readdir", |caller, args| Box::new(fd_readdir(caller, args)))?;
    Ok(())
}

fn memory_of(caller: &mut Caller<'_, State>) -> wasmtime::Result<Memory> {
    let memory = caller.get_export("memory").and_then(Extern::into_memory);
    memory.ok_or_else(|| wasmtime::format_err!("the module exports no `memory`"))
}

async fn fd_filestat_get(mut caller: Caller<'_, State>, fd: i32, buf: i32) -> wasmtime::Result<i32> {
    let (bytes, state) = memory_of(&mut caller)?.data_and_store_mut(&mut caller);
    let errno = wasi::fd_filestat_get(&mut state.wasi, &mut GuestMemory::Unshared(bytes), fd, buf).await?;
    Ok(blank(bytes, buf, errno))
}

async fn path_filestat_get(
    mut caller: Caller<'_, State>,
    (fd, flags, path, path_len, buf): (i32, i32, i32, i32, i32),
) -> wasmtime::Result<i32> {
    let (bytes, state) = memory_of(&mut caller)?.data_and_store_mut(&mut caller);
    let memory = &mut GuestMemory::Unshared(bytes);
    let errno = wasi::path_filestat_get(&mut state.wasi, memory, fd, flags, path, path_len, buf).await?;
    Ok(blank(bytes, buf, errno))
}

/// Blanks what differs from node to node.
fn blank(bytes: &mut [u8], buf: i32, errno: i32) -> i32 {
    let at = buf.cast_unsigned() as usize;
    let stat = bytes.get_mut(at..).and_then(|rest| rest.get_mut(..FILESTAT_LEN));
    if let (SUCCESS, Some(stat)) = (errno, stat) {
        stat[..8].copy_from_slice(&INODE.to_le_bytes());
        stat[8..16].copy_from_slice(&INODE.to_le_bytes());
        let from = if stat[TYPE_AT] == DIRECTORY { 24 } else { 40 };
        stat[from..].fill(0);
    }
    errno
}

async fn fd_readdir(
    mut caller: Caller<'_, State>,
    (fd, buf, len, cookie, used): (i32, i32, i32, i64, i32),
) -> wasmtime::Result<i32> {
    let (bytes, state) = memory_of(&mut caller)?.data_and_store_mut(&mut caller);
    let all = match listing(state, fd).await? {
        Ok(all) => sorted(&all),
        Err(errno) => return Ok(errno),
    };
    let skip = usize::try_from(cookie.cast_unsigned()).unwrap_or(usize::MAX);
    let rest: Vec<u8> = all.into_iter().skip(skip).flatten().collect();
    let [at, len, used] = [buf, len, used].map(|n| n.cast_unsigned() as usize);
    let Some(to) = bytes.get_mut(at..).and_then(|rest| rest.get_mut(..len)) else { return Ok(FAULT) };
    let given = len.min(rest.len());
    to[..given].copy_from_slice(&rest[..given]);
    let Some(to) = bytes.get_mut(used..).and_then(|rest| rest.get_mut(..4)) else { return Ok(FAULT) };
    to.copy_from_slice(&u32::try_from(given).unwrap_or(u32::MAX).to_le_bytes());
    Ok(SUCCESS)
}

/// All entries of a directory as the system gives them, or the error number.
async fn listing(state: &mut State, fd: i32) -> wasmtime::Result<Result<Vec<u8>, i32>> {
    let mut len = LISTING_LEN;
    loop {
        // The call writes how much it used behind what it lists.
        let mut scratch = vec![0; len + 4];
        let end = i32::try_from(len)?;
        let memory = &mut GuestMemory::Unshared(&mut scratch);
        let errno = wasi::fd_readdir(&mut state.wasi, memory, fd, 0, end, 0, end).await?;
        if errno != SUCCESS {
            return Ok(Err(errno));
        }
        let used = u32::from_le_bytes(std::array::from_fn(|i| scratch[len + i])) as usize;
        if used < len {
            scratch.truncate(used);
            return Ok(Ok(scratch));
        }
        len *= 4;
        if len > LISTING_MAX {
            wasmtime::bail!("a directory with more than {LISTING_MAX} bytes of names is not listed");
        }
    }
}

/// The entries sorted by name and counted anew.
fn sorted(all: &[u8]) -> Vec<Vec<u8>> {
    let mut entries = Vec::new();
    let mut rest = all;
    while let Some((head, tail)) = rest.split_at_checked(DIRENT_LEN) {
        let len = u32::from_le_bytes(std::array::from_fn(|i| head[16 + i])) as usize;
        let Some((name, tail)) = tail.split_at_checked(len) else { break };
        entries.push((name, head));
        rest = tail;
    }
    entries.sort_unstable();
    let entry = |(next, (name, head)): (u64, (&[u8], &[u8]))| {
        let mut entry = next.to_le_bytes().to_vec();
        entry.extend_from_slice(&INODE.to_le_bytes());
        entry.extend_from_slice(&head[16..]);
        entry.extend_from_slice(name);
        entry
    };
    (1..).zip(entries).map(entry).collect()
}
