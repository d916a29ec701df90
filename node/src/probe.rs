//! What this machine is (M6, as far as CPU, memory and disk go).

use std::path::Path;

use sysinfo::{MemoryRefreshKind, RefreshKind, System};

/// Memory of a machine that does not say: little enough that any machine has it.
const MEMORY_FALLBACK: u64 = 1 << 30;

/// A machine's totals.
#[derive(Debug, Clone)]
pub struct Machine {
    /// Thousandths of a core that this process may use.
    pub cpu_milli: u32,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Host name, system, architecture and Sinew's version.
    pub about: String,
}

/// Looks at the machine.
#[must_use]
pub fn machine() -> Machine {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let memory = RefreshKind::nothing().with_memory(MemoryRefreshKind::nothing().with_ram());
    let system = System::new_with_specifics(memory).ok();
    // In a container the limit of its cgroup is what counts.
    let total = system.as_ref().map_or(MEMORY_FALLBACK, System::total_memory);
    let limit = system.and_then(|s| s.cgroup_limits()).map_or(u64::MAX, |limits| limits.total_memory);
    let host = System::host_name().unwrap_or_else(|_| "unknown".to_owned());
    let os = System::long_os_version().unwrap_or_else(|_| std::env::consts::OS.to_owned());
    let (arch, version) = (std::env::consts::ARCH, env!("CARGO_PKG_VERSION"));
    Machine {
        cpu_milli: u32::try_from(cores * 1000).unwrap_or(u32::MAX),
        memory_bytes: total.min(limit),
        about: format!("{host}, {os}, {arch}, sinew {version}"),
    }
}

/// Bytes of the file system that `path` is on; `None` when the system does not say.
#[must_use]
pub fn disk_size(path: &Path) -> Option<u64> {
    let stat = rustix::fs::statvfs(path).ok()?;
    stat.f_blocks.checked_mul(stat.f_frsize)
}
