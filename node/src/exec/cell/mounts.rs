//! What programs of a cell see: a root made of nothing but the system's program directories (read-only), a handful of files
//! of `/etc`, five devices, a `/proc` of the cell's own processes, an empty `/tmp`, and the job's directories.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, open};
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind_recursive, mount_change, unmount,
};

use super::wire::{Missing, Setup};
use super::{INPUT, SECRETS, SYSTEM, network, sys};
use crate::exec::volumes::Mounted;
use crate::secrets::files::SecretFile;

/// Where the new root is put together: a directory that every system has.
const STAGE: &str = "/tmp";
/// Files and directories of `/etc` that ordinary programs need: the loader's, time, certificates,
/// alternatives, and what interpreters read at start. Nothing about users, hosts or services of this machine.
const ETC: [&str; 16] = [
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "alternatives",
    "localtime",
    "timezone",
    "protocols",
    "services",
    "mime.types",
    "ssl/certs",
    "ca-certificates",
    "locale.alias",
    "fonts",
    "perl",
    "python3",
    "java",
];
/// Users and groups that exist for programs.
const PASSWD: &str = "root:x:0:0:root:/:/usr/sbin/nologin\ntask:x:1000:1000:task:/tmp:/bin/sh\n\
     nobody:x:65534:65534:nobody:/:/usr/sbin/nologin\n";
const GROUP: &str = "root:x:0:\ntask:x:1000:\nnogroup:x:65534:\n";
/// Where names are found: in these files, whatever this machine asks. There is no name server to ask.
const NSSWITCH: &str = "passwd: files\ngroup: files\nshadow: files\nhosts: files\nnetworks: files\nprotocols: files\n\
     services: files\nethers: files\nrpc: files\n";
/// Devices that programs have.
const DEVICES: [&str; 5] = ["null", "zero", "full", "random", "urandom"];
/// What programs see of `/proc` besides processes; all else that a kernel or a module of it has there is hidden. Programs ask
/// these about processors, memory, load, time and what the kernel can do, and start otherwise, or not at all, without them.
const PROC_SHOWN: [&str; 12] = [
    "cgroups",
    "cpuinfo",
    "filesystems",
    "loadavg",
    "meminfo",
    "stat",
    "swaps",
    "sys",
    "sysvipc",
    "uptime",
    "version",
    "vmstat",
];
/// What a file takes at least, for sizes of file systems: no machine has larger pages.
const PAGE: u64 = 64 * 1024;
/// Files in a temporary directory: their names are memory that its size does not count.
const TMP_FILES_MAX: u32 = 64 * 1024;

const OWN: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV);

/// The host's directories, opened before this process gives up the identity that may reach them.
#[derive(Debug)]
pub(super) struct Sources {
    job: OwnedFd,
    input: Option<OwnedFd>,
    readable: Vec<(PathBuf, OwnedFd)>,
    writable: Vec<(PathBuf, OwnedFd)>,
    volumes: Vec<(PathBuf, OwnedFd, Writable)>,
}

impl Sources {
    pub(super) fn open(setup: &Setup) -> io::Result<Self> {
        let fd = |path: &Path| -> io::Result<OwnedFd> {
            let opened = open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
            opened.map_err(|e| io::Error::other(format!("{}: {e}", path.display())))
        };
        let several = |paths: &[PathBuf]| -> io::Result<Vec<_>> {
            paths.iter().map(|path| Ok((path.clone(), fd(path)?))).collect()
        };
        let volume = |volume: &Mounted| -> io::Result<_> {
            let writable = if volume.read_only { Writable::No } else { Writable::Yes };
            Ok((volume.path.clone(), fd(&volume.host)?, writable))
        };
        Ok(Self {
            job: fd(&setup.job)?,
            input: setup.input.as_deref().map(fd).transpose()?,
            readable: several(&setup.readable)?,
            writable: several(&setup.writable)?,
            volumes: setup.volumes.iter().map(volume).collect::<io::Result<_>>()?,
        })
    }
}

/// Makes the new root and moves into it. What is missing but not needed comes back.
///
/// # Errors
/// Whatever the system refuses that nothing can go on without.
pub(super) fn enter(setup: &Setup, sources: Sources) -> io::Result<Vec<Missing>> {
    let root = Path::new(STAGE);
    // Nothing mounted here shows outside, or the other way round.
    let private = mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE);
    doing("make mounts private", private.map_err(Into::into))?;
    doing("mount a file system in memory", tmpfs(root, 1 << 20, 4_096))?;
    doing("show the system's programs", system(root))?;
    doing("show files of /etc", etc(root, setup))?;
    doing("show devices", devices(root, setup))?;
    doing("show the job's directories", job(root, &sources))?;
    for empty in ["proc", "run", "tmp", "var"] {
        doing("make directories", std::fs::create_dir_all(root.join(empty)))?;
    }
    doing("make /var/tmp", symlink("/tmp", root.join("var/tmp")))?;
    doing("mount secrets", secrets(&root.join(&SECRETS[1..]), &setup.secrets))?;
    let mut missing = Vec::new();
    if let Err(e) = doing("make /proc safe", proc(&root.join("proc")))? {
        missing.push(Missing { piece: "a private /proc (programs have none)".to_owned(), why: e.to_string() });
    }
    doing("mount /tmp", tmpfs(&root.join("tmp"), setup.tmp_bytes, TMP_FILES_MAX))?;
    // After the rest, because they may lie below directories made above.
    doing("show further directories", further(root, &sources))?;
    drop(sources);
    doing("change the root", pivot(root))?;
    Ok(missing)
}

fn doing<T>(what: &str, result: io::Result<T>) -> io::Result<T> {
    result.map_err(|e| io::Error::new(e.kind(), format!("cannot {what}: {e}")))
}

fn job(root: &Path, sources: &Sources) -> io::Result<()> {
    let at = root.join("job");
    std::fs::create_dir(&at)?;
    bind(&sources.job, &at, Writable::Yes)?;
    if let Some(input) = &sources.input {
        let at = root.join(&INPUT[1..]);
        std::fs::create_dir(&at)?;
        bind(input, &at, Writable::No)?;
    }
    Ok(())
}

fn further(root: &Path, sources: &Sources) -> io::Result<()> {
    let no = sources.readable.iter().map(|(path, fd)| (path, fd, Writable::No));
    let yes = sources.writable.iter().map(|(path, fd)| (path, fd, Writable::Yes));
    let volumes = sources.volumes.iter().map(|(path, fd, writable)| (path, fd, *writable));
    no.chain(yes).chain(volumes).try_for_each(|(path, fd, writable)| bind_at(root, path, fd, writable))
}

fn pivot(root: &Path) -> io::Result<()> {
    rustix::process::chdir(root)?;
    // The old root ends up on top of the new one and is taken off there.
    rustix::process::pivot_root(".", ".")?;
    unmount(".", UnmountFlags::DETACH)?;
    rustix::process::chdir("/")?;
    sys::set_mount_attributes(Path::new("/"), libc::MOUNT_ATTR_RDONLY, false)
}

fn tmpfs(at: &Path, bytes: u64, files: u32) -> io::Result<()> {
    let options = std::ffi::CString::new(format!("size={bytes},nr_inodes={files},mode=0755"))?;
    Ok(mount("cell", at, "tmpfs", OWN, options.as_c_str())?)
}

/// Secrets in a file system in memory, written before any program is there and read-only from then on.
fn secrets(at: &Path, files: &[SecretFile]) -> io::Result<()> {
    if files.is_empty() {
        return Ok(());
    }
    std::fs::create_dir(at)?;
    let pages = files.iter().map(|file| (file.value.bytes().len() as u64).next_multiple_of(PAGE)).sum::<u64>();
    let inodes = u32::try_from(files.len()).unwrap_or(u32::MAX).saturating_add(2);
    tmpfs(at, pages + PAGE, inodes)?;
    for file in files {
        let mut options = File::options();
        options.write(true).create_new(true).mode(0o400).open(at.join(&file.name))?.write_all(file.value.bytes())?;
    }
    sys::set_mount_attributes(at, libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV, false)
}

fn system(root: &Path) -> io::Result<()> {
    for path in SYSTEM {
        let path = Path::new(path);
        let at = root.join(path.strip_prefix("/").unwrap_or(path));
        match path.symlink_metadata() {
            Ok(meta) if meta.is_symlink() => symlink(std::fs::read_link(path)?, &at)?,
            Ok(meta) if meta.is_dir() => {
                std::fs::create_dir_all(&at)?;
                let fd = open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
                bind(&fd, &at, Writable::No)?;
            }
            _ => {}
        }
    }
    Ok(())
}

fn etc(root: &Path, setup: &Setup) -> io::Result<()> {
    let etc = root.join("etc");
    std::fs::create_dir(&etc)?;
    for name in ETC {
        let host = Path::new("/etc").join(name);
        let Ok(fd) = open(&host, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()) else { continue };
        bind_at(root, &host, &fd, Writable::No)?;
    }
    let hosts = network::hosts_file(&setup.routes);
    let own =
        [("passwd", PASSWD), ("group", GROUP), ("nsswitch.conf", NSSWITCH), ("hosts", &hosts), ("hostname", "cell\n")];
    for (name, text) in own {
        std::fs::write(etc.join(name), text)?;
    }
    Ok(())
}

fn devices(root: &Path, setup: &Setup) -> io::Result<()> {
    let dev = root.join("dev");
    std::fs::create_dir(&dev)?;
    for name in DEVICES {
        let fd = open(Path::new("/dev").join(name), OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        let at = dev.join(name);
        File::create_new(&at)?;
        // Without `nodev`, which would make it useless; which five these are is ours to say.
        mount_bind_recursive(through(&fd), &at)?;
    }
    for (name, target) in [
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
    ] {
        symlink(target, dev.join(name))?;
    }
    std::fs::create_dir(dev.join("shm"))?;
    tmpfs(&dev.join("shm"), setup.tmp_bytes, TMP_FILES_MAX)
}

/// A `/proc` of this process namespace, or, with why, none.
///
/// # Errors
/// When one that shows too much cannot be taken away again.
fn proc(at: &Path) -> io::Result<io::Result<()>> {
    if let Err(e) = mount("proc", at, "proc", OWN | MountFlags::NOEXEC, None) {
        return Ok(Err(e.into()));
    }
    let masked = mask_proc(at);
    if masked.is_err() {
        unmount(at, UnmountFlags::DETACH)?;
    }
    Ok(masked)
}

/// Makes a `/proc` read-only and hides in it what concerns the whole machine.
fn mask_proc(at: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(at)? {
        let entry = entry?;
        let (name, kind) = (entry.file_name(), entry.file_type()?);
        let is_process = name.as_encoded_bytes().iter().all(u8::is_ascii_digit);
        // Links lead to what is shown, or to what is hidden.
        if is_process || kind.is_symlink() || PROC_SHOWN.iter().any(|shown| name == *shown) {
            continue;
        }
        let hidden = if kind.is_dir() {
            mount("cell", entry.path(), "tmpfs", OWN | MountFlags::RDONLY, c"size=0,nr_inodes=1")
        } else {
            mount_bind_recursive("/dev/null", entry.path())
        };
        match hidden {
            // It was a module's, and is gone with it.
            Ok(()) | Err(rustix::io::Errno::NOENT) => {}
            Err(e) => return Err(e.into()),
        }
    }
    sys::set_mount_attributes(at, libc::MOUNT_ATTR_RDONLY, false)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Writable {
    Yes,
    No,
}

fn through(fd: &impl AsFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd()))
}

/// Mounts what `fd` is at `path` below `root`, making the way there.
fn bind_at(root: &Path, path: &Path, fd: &OwnedFd, writable: Writable) -> io::Result<()> {
    let at = root.join(path.strip_prefix("/").unwrap_or(path));
    let is_dir = rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(fd)?.st_mode) == rustix::fs::FileType::Directory;
    if is_dir {
        std::fs::create_dir_all(&at)?;
    } else {
        at.parent().map_or(Ok(()), std::fs::create_dir_all)?;
        File::create(&at)?;
    }
    bind(fd, &at, writable)
}

fn bind(fd: &OwnedFd, at: &Path, writable: Writable) -> io::Result<()> {
    mount_bind_recursive(through(fd), at)?;
    let own = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;
    let attributes = if writable == Writable::Yes { own } else { own | libc::MOUNT_ATTR_RDONLY };
    sys::set_mount_attributes(at, attributes, true)
}
