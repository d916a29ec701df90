//! What the settings and the machine mean for the parts of a daemon.

use std::path::Path;

use sinew_blobs::{GcOptions, StoreOptions};
use sinew_crdt_state::certificate::Roles;
use sinew_crdt_state::ids::NodeId;
use sinew_crdt_state::program::Runners;
use sinew_mesh::{MeshConfig, Multiaddr};
use sinew_scheduler::config::CoreConfig;

use super::error::DaemonError;
use crate::config::Settings;
use crate::datadir::{DataDir, Membership};
use crate::exec::slot::free_for_tasks;
use crate::probe;

/// Longest frame between nodes: the facts of a large round in one vote. Far below what would hurt a small node.
const FRAME_LEN_MAX: usize = 16 << 20;

pub(super) fn store_options(data_dir: &DataDir) -> StoreOptions {
    let mut options = StoreOptions { gc: GcOptions::default(), ..StoreOptions::default() };
    // A small disk cannot spare the default reserve: keep a twentieth of it.
    if let Some(size) = probe::disk_size(data_dir.path()) {
        options.reserve = options.reserve.min(size / 20);
    }
    options
}

pub(super) fn mesh_config(
    settings: &Settings,
    membership: &Membership,
    known: &[(NodeId, Vec<String>)],
) -> Result<MeshConfig, DaemonError> {
    let mut config = MeshConfig::default();
    config.listen = multiaddrs("listen", &settings.listen)?;
    config.bootstrap = multiaddrs("bootstrap", &settings.bootstrap)?;
    config.bootstrap.extend(multiaddrs("the ticket", &membership.bootstrap)?);
    // Written down by this node, told by others: what is no address is none.
    let addrs = |texts: &[String]| texts.iter().filter_map(|text| text.parse().ok()).collect();
    config.known = known.iter().map(|(node, texts)| (*node, addrs(texts))).collect();
    config.mdns = settings.mdns;
    config.kad = settings.kad;
    config.relay_server = settings.relay_server;
    config.relay_client = settings.relay_client;
    config.autonat = settings.autonat;
    config.dcutr = settings.dcutr;
    config.frame_len_max = FRAME_LEN_MAX;
    Ok(config)
}

fn multiaddrs(key: &'static str, values: &[String]) -> Result<Vec<Multiaddr>, DaemonError> {
    let parse = |value: &String| {
        let parsed = value.parse::<Multiaddr>();
        parsed.map_err(|e| DaemonError::Multiaddr { key, value: value.clone(), problem: e.to_string() })
    };
    values.iter().map(parse).collect()
}

pub(super) fn core_config(settings: &Settings, roles: Roles, runners: Runners) -> CoreConfig {
    let machine = probe::machine();
    CoreConfig {
        cpu_milli: if roles.contains(Roles::RUN) { cpu_milli(settings) } else { 0 },
        // What cannot be isolated is not offered, so that no job is awarded here only to be refused.
        runners,
        memory_bytes: memory_bytes(settings),
        output_bytes_max: settings.output_max.unwrap_or(u64::MAX),
        labels: settings.labels.clone(),
        about: machine.about,
        start_ahead: 1,
        ledger_grace_ms: settings.ledger_grace_s.saturating_mul(1_000),
        copy_again_after_ms: settings.copy_again_after_s.saturating_mul(1_000),
        copy_bytes_per_s: settings.copy_bytes_per_s,
        ..CoreConfig::default()
    }
}

/// Thousandths of cores for tasks.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked to be 0 to 65536 cores")]
pub(super) fn cpu_milli(settings: &Settings) -> u32 {
    settings.cpus.map_or_else(|| probe::machine().cpu_milli, |cpus| (cpus * 1000.0).round() as u32)
}

/// Bytes of disk that tasks may reserve, where their directories are in `work`.
pub(super) fn disk_bytes(settings: &Settings, work: &Path) -> u64 {
    settings.disk.unwrap_or_else(|| free_for_tasks(work))
}

/// Bytes of memory for tasks.
pub(super) fn memory_bytes(settings: &Settings) -> u64 {
    settings.memory.unwrap_or_else(|| probe::machine().memory_bytes / 10 * 9)
}
