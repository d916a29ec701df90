//! What the engine is asked to make of a task: one container, closed on every side that the engine knows of.

use std::collections::HashMap;
use std::path::Path;

use bollard::models::{
    ContainerCreateBody, DeviceRequest, HealthConfig, HostConfig, HostConfigCgroupnsModeEnum, HostConfigLogConfig,
    Mount, MountBindOptions, MountBindOptionsPropagationEnum, MountType, ResourcesUlimits, RestartPolicy,
    RestartPolicyNameEnum,
};
use sinew_crdt_state::error_code::ErrorCode;
use sinew_crdt_state::program::{Container, HealthCheck};

use super::images::Image;
use crate::exec::cell;
use crate::exec::outcome::Failure;
use crate::exec::runner::{Launch, View};
use crate::exec::volumes;

/// Names this node on everything that is made for its tasks.
pub(super) const NODE_LABEL: &str = "sinew.node";
/// Names the daemon's run, so that a later one knows what is left over.
pub(super) const DAEMON_LABEL: &str = "sinew.daemon";
/// The job.
pub(super) const JOB_LABEL: &str = "sinew.job";
/// The attempt's number in its daemon.
pub(super) const RUN_LABEL: &str = "sinew.run";

/// Processes and threads of one task, as in cells; and one more that reaps them.
const PROCESSES_MAX: i64 = 1_024 + 1;
/// Open files of each process, as in cells.
const FILES_OPEN_MAX: i64 = 4_096;
/// Beyond what a task may write in all, as in cells: one that goes over its limit is told so rather than hit by a signal.
const FILE_SLACK: u64 = 64 << 20;
/// Less memory than this no engine gives.
const MEMORY_MIN: u64 = 6 << 20;
/// Less of a processor than this no engine gives, thousandths of a core.
const CPU_MIN: u32 = 10;
/// Volumes that an image may ask for: each becomes a mount.
const VOLUMES_MAX: usize = 16;

/// What a task gets.
#[derive(Debug, Clone, Copy)]
pub(super) struct Share {
    pub(super) memory_bytes: u64,
    /// Thousandths of cores; 0 is no limit of its own.
    pub(super) cpu_milli: u32,
    /// What fits into `/tmp`, and again into `/dev/shm` and each volume.
    pub(super) tmp_bytes: u64,
    /// User and group.
    pub(super) user: (u32, u32),
}

impl Share {
    /// Within what an engine takes.
    pub(super) fn within(mut self, engine_cpu_milli: u32) -> Self {
        self.memory_bytes = self.memory_bytes.max(MEMORY_MIN);
        if self.cpu_milli > 0 {
            self.cpu_milli = self.cpu_milli.max(CPU_MIN).min(engine_cpu_milli.max(CPU_MIN));
        }
        self
    }
}

/// Everything that a container is made from.
#[derive(Debug)]
pub(super) struct Order<'a> {
    pub(super) launch: &'a Launch<'a>,
    pub(super) container: &'a Container,
    pub(super) image: &'a Image,
    pub(super) share: Share,
    /// Numbers of the GPUs that it gets.
    pub(super) gpus: &'a [u32],
    pub(super) labels: HashMap<String, String>,
    /// Further variables, which the job cannot change.
    pub(super) marks: Vec<(&'static str, String)>,
    /// The container whose network it joins, if it has any.
    pub(super) joins: Option<String>,
}

/// What to ask the engine for.
///
/// # Errors
/// `E_INVALID` for volumes where none can be.
pub(super) fn body(order: Order<'_>) -> Result<ContainerCreateBody, Failure> {
    let host = host_config(&order)?;
    let Order { launch, container, image, share, labels, marks, joins, .. } = order;
    let (uid, gid) = share.user;
    Ok(ContainerCreateBody {
        image: Some(image.id.clone()),
        user: Some(format!("{uid}:{gid}")),
        // Who joins a network has the name of whoever holds it.
        hostname: joins.is_none().then(|| "sinew".to_owned()),
        env: Some(env(launch, marks)),
        entrypoint: container.entrypoint.clone(),
        cmd: (!container.argv.is_empty()).then(|| container.argv.clone()),
        working_dir: Some(cell::WORK.to_owned()),
        labels: Some(labels),
        healthcheck: Some(healthcheck(container.health.as_deref())),
        stop_signal: Some("SIGTERM".to_owned()),
        network_disabled: Some(joins.is_none()),
        tty: Some(false),
        open_stdin: Some(launch.feeds_stdin),
        stdin_once: Some(launch.feeds_stdin),
        attach_stdin: Some(launch.feeds_stdin),
        attach_stdout: Some(true),
        attach_stderr: Some(true),
        host_config: Some(host),
        ..ContainerCreateBody::default()
    })
}

/// The job's own check, or none: one that the image brings would run beside the task unasked.
fn healthcheck(check: Option<&HealthCheck>) -> HealthConfig {
    let Some(check) = check else {
        return HealthConfig { test: Some(vec!["NONE".to_owned()]), ..HealthConfig::default() };
    };
    let test = std::iter::once("CMD".to_owned()).chain(check.command.iter().cloned()).collect();
    let ns = |ms: u64| Some(i64::try_from(ms.saturating_mul(1_000_000)).unwrap_or(i64::MAX));
    HealthConfig {
        test: Some(test),
        interval: ns(check.interval_ms),
        timeout: ns(check.timeout_ms),
        retries: Some(i64::from(check.retries)),
        start_period: ns(check.start_ms),
        start_interval: None,
    }
}

/// The image's own variables stay where none of these has their name.
fn env(launch: &Launch<'_>, marks: Vec<(&'static str, String)>) -> Vec<String> {
    let mut all: HashMap<&str, &str> = [("HOME", cell::TMP), ("TMPDIR", cell::TMP)].into();
    all.extend(launch.env.iter().map(|(name, value)| (name.as_str(), value.as_str())));
    all.extend(launch.fixed_env.iter().map(|(name, value)| (*name, value.as_str())));
    let volumes: Vec<_> = volumes::variables(launch.place.volumes, View::Cell).collect();
    all.extend(volumes.iter().map(|(name, value)| (name.as_str(), value.as_str())));
    all.extend(marks.iter().map(|(name, value)| (*name, value.as_str())));
    all.into_iter().map(|(name, value)| format!("{name}={value}")).collect()
}

fn host_config(order: &Order<'_>) -> Result<HostConfig, Failure> {
    let share = order.share;
    let signed = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    let memory = signed(share.memory_bytes);
    let file_max = signed(order.launch.place.output_max.saturating_add(FILE_SLACK));
    let limit = |name: &str, n: i64| ResourcesUlimits { name: Some(name.to_owned()), soft: Some(n), hard: Some(n) };
    let gpus = (!order.gpus.is_empty()).then(|| {
        vec![DeviceRequest {
            device_ids: Some(order.gpus.iter().map(u32::to_string).collect()),
            capabilities: Some(vec![vec!["gpu".to_owned()]]),
            ..DeviceRequest::default()
        }]
    });
    Ok(HostConfig {
        cap_drop: Some(vec!["ALL".to_owned()]),
        security_opt: Some(vec!["no-new-privileges:true".to_owned()]),
        privileged: Some(false),
        readonly_rootfs: Some(true),
        network_mode: Some(order.joins.as_ref().map_or_else(|| "none".to_owned(), |name| format!("container:{name}"))),
        ipc_mode: Some("private".to_owned()),
        cgroupns_mode: Some(HostConfigCgroupnsModeEnum::PRIVATE),
        // Signals reach programs as they would outside: process 1 itself ignores what it has no handler for.
        init: Some(true),
        pids_limit: Some(PROCESSES_MAX),
        memory: Some(memory),
        // Together with swap: so there is none.
        memory_swap: Some(memory),
        nano_cpus: (share.cpu_milli > 0).then(|| i64::from(share.cpu_milli) * 1_000_000),
        ulimits: Some(vec![limit("nofile", FILES_OPEN_MAX), limit("core", 0), limit("fsize", file_max)]),
        tmpfs: Some(tmpfs(order)?),
        shm_size: Some(signed(share.tmp_bytes)),
        mounts: Some(mounts(order)?),
        // The engine keeps no copy of what a task prints: its disk would fill.
        log_config: Some(HostConfigLogConfig { typ: Some("none".to_owned()), config: None }),
        device_requests: gpus,
        auto_remove: Some(false),
        restart_policy: Some(RestartPolicy { name: Some(RestartPolicyNameEnum::NO), maximum_retry_count: None }),
        ..HostConfig::default()
    })
}

/// What is writable and forgotten: `/tmp`, and in place of volumes, which would be on the engine's disk, without a limit.
fn tmpfs(order: &Order<'_>) -> Result<HashMap<String, String>, Failure> {
    let options = format!("rw,exec,nosuid,nodev,mode=1777,size={}", order.share.tmp_bytes);
    let mut all: HashMap<String, String> = [(cell::TMP.to_owned(), options.clone())].into();
    let volumes = &order.image.volumes;
    let bad = |why: String| Err(Failure::new(ErrorCode::Invalid, why).for_good());
    if volumes.len() > VOLUMES_MAX {
        return bad(format!("the image asks for {} volumes; at most {VOLUMES_MAX} can be had", volumes.len()));
    }
    for volume in volumes {
        let path = Path::new(volume);
        let taken = [cell::WORK, cell::OUTPUT, cell::INPUT, cell::SECRETS, "/proc", "/sys", "/dev"];
        let clashes = taken.iter().any(|own| path.starts_with(own) || Path::new(own).starts_with(path));
        let plain = path.is_absolute() && !path.components().any(|part| part == std::path::Component::ParentDir);
        if clashes || !plain {
            return bad(format!("the image asks for a volume at `{volume}`, where none can be"));
        }
        // What the job puts there counts, not what the image does.
        let covered = order.launch.place.volumes.iter().any(|own| path.starts_with(&own.path));
        if !path.starts_with(cell::TMP) && !covered {
            all.insert(volume.clone(), options.clone());
        }
    }
    Ok(all)
}

fn mounts(order: &Order<'_>) -> Result<Vec<Mount>, Failure> {
    let bind = |source: &Path, target: &str, read_only| Mount {
        typ: Some(MountType::BIND),
        source: Some(source.to_string_lossy().into_owned()),
        target: Some(target.to_owned()),
        read_only: Some(read_only),
        bind_options: Some(MountBindOptions {
            propagation: Some(MountBindOptionsPropagationEnum::RPRIVATE),
            ..MountBindOptions::default()
        }),
        ..Mount::default()
    };
    let place = &order.launch.place;
    let secrets = place.secrets.map(|secrets| secrets.dir(place.slot, Some(order.share.user))).transpose()?.flatten();
    let own = [("work", cell::WORK), ("output", cell::OUTPUT)];
    let mut all: Vec<Mount> = own.iter().map(|(dir, target)| bind(&place.dir.join(dir), target, false)).collect();
    all.extend(place.input.map(|input| bind(input, cell::INPUT, true)));
    all.extend(place.volumes.iter().map(|volume| {
        let mut mount = bind(&volume.host, &volume.path.to_string_lossy(), volume.read_only);
        // What is mounted below it would stay writable: engines make only the mount itself read-only.
        mount.bind_options.get_or_insert_default().non_recursive = Some(true);
        mount
    }));
    all.extend(secrets.map(|dir| bind(&dir, cell::SECRETS, true)));
    Ok(all)
}
