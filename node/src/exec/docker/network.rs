//! The network of a container whose job names hosts. A second container, which does nothing, holds a network namespace with
//! nothing but loopback; the daemon opens listening sockets in it, as a cell's first process does in a cell, and the task's
//! container joins it. Both are labelled alike, so whatever finds and removes the one finds and removes the other.

use std::fs::File;
use std::io;
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use bollard::models::{ContainerCreateBody, HostConfig, HostConfigLogConfig};
use bollard::query_parameters::{CreateContainerOptionsBuilder, InspectContainerOptions, StartContainerOptions};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use sinew_crdt_state::error_code::ErrorCode;

use super::Inner;
use super::engine::Engine;
use super::pause::Pause;
use crate::egress::{Gate, cannot};
use crate::exec::cell::network::{self, Route};
use crate::exec::guardian::{RUN_VAR, TAG_VAR};
use crate::exec::outcome::Failure;
use crate::exec::runner::Launch;

/// Memory of the container that does nothing: what engines ask for at least, and then some.
const MEMORY: i64 = 16 << 20;
/// Its processes: one.
const PROCESSES: i64 = 4;

/// A network namespace and the way out of it. The container stays until it is [removed](Inner::remove).
#[derive(Debug)]
pub(super) struct Net {
    /// The container that holds it.
    pub(super) name: String,
    /// Open while this is there.
    _gate: Gate,
}

impl Inner {
    /// The network of a task whose job names hosts.
    ///
    /// # Errors
    /// `E_DENY` where this node gives it none; what the engine says otherwise.
    pub(super) fn network(
        &self,
        engine: &Engine,
        launch: &Launch<'_>,
        user: (u32, u32),
    ) -> Result<Option<Net>, Failure> {
        let policy = launch.place.network;
        if policy.is_none() {
            return Ok(None);
        }
        let none = || cannot("this node lets no container reach any: its operator can, with job_hosts");
        let egress = self.egress.get().ok_or_else(none)?;
        egress.admit(policy)?;
        let routes = network::routes(policy);
        let name = format!("{}-net", self.name(launch.run));
        let held = self.runtime.block_on(self.hold(engine, launch, &name, &routes, user));
        let open = || -> Result<Gate, Failure> {
            let sockets = listen(held?, routes.clone(), &self.marks(launch.run)).map_err(|e| no_entry(&e))?;
            let fds = sockets.into_iter().map(Into::into).collect();
            let gate = network::doors(&routes, fds).and_then(|doors| egress.gate(doors));
            let mut gate = gate.map_err(|e| no_entry(&e))?;
            gate.open().map_err(|e| no_entry(&e))?;
            Ok(gate)
        };
        match open() {
            Ok(gate) => Ok(Some(Net { name, _gate: gate })),
            Err(failure) => {
                self.runtime.block_on(self.remove(engine, &name));
                Err(failure)
            }
        }
    }

    /// Variables by which processes of an attempt are found.
    pub(super) fn marks(&self, run: u64) -> Vec<(&'static str, String)> {
        vec![(TAG_VAR, self.tag.value().to_owned()), (RUN_VAR, run.to_string())]
    }

    /// Starts the container, and says which process it is.
    async fn hold(
        &self,
        engine: &Engine,
        launch: &Launch<'_>,
        name: &str,
        routes: &[Route],
        user: (u32, u32),
    ) -> Result<u32, Failure> {
        let storage = |e: io::Error| Failure::storage("make the image that holds a network", &e);
        let no_program = || cannot("this node's processor is one for which no container is made that holds a network");
        let pause = Pause::new().map_err(storage)?.ok_or_else(no_program)?;
        let image = self.images.own(engine, launch.place.job, &pause.id, || pause.archive()).await?;
        let body = ContainerCreateBody {
            image: Some(image.id),
            user: Some(format!("{}:{}", user.0, user.1)),
            hostname: Some("sinew".to_owned()),
            env: Some(self.marks(launch.run).into_iter().map(|(name, value)| format!("{name}={value}")).collect()),
            labels: Some(self.labels(launch)),
            host_config: Some(host_config(routes)),
            ..ContainerCreateBody::default()
        };
        let docker = &engine.docker;
        let options = CreateContainerOptionsBuilder::default().name(name).build();
        let made = docker.create_container(Some(options), body).await;
        made.map_err(|e| engine.failure("make a container that holds a network", &e))?;
        let started = docker.start_container(name, None::<StartContainerOptions>).await;
        started.map_err(|e| engine.failure("start a container that holds a network", &e))?;
        let found = docker.inspect_container(name, None::<InspectContainerOptions>).await;
        let found = found.map_err(|e| engine.failure("look at a container that holds a network", &e))?;
        let pid = found.state.and_then(|state| state.pid).and_then(|pid| u32::try_from(pid).ok());
        pid.filter(|pid| *pid > 0)
            .ok_or_else(|| Failure::new(ErrorCode::Lost, "the container that holds a network ended"))
    }
}

fn host_config(routes: &[Route]) -> HostConfig {
    HostConfig {
        cap_drop: Some(vec!["ALL".to_owned()]),
        security_opt: Some(vec!["no-new-privileges:true".to_owned()]),
        privileged: Some(false),
        readonly_rootfs: Some(true),
        network_mode: Some("none".to_owned()),
        // The files about names are those of whoever joins.
        extra_hosts: Some(routes.iter().map(Route::as_extra_host).collect()),
        dns: Some(vec!["127.0.0.1".to_owned()]),
        pids_limit: Some(PROCESSES),
        memory: Some(MEMORY),
        memory_swap: Some(MEMORY),
        log_config: Some(HostConfigLogConfig { typ: Some("none".to_owned()), config: None }),
        ..HostConfig::default()
    }
}

fn no_entry(error: &io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            cannot("this node's daemon may not enter a container's network: it would have to be root on this machine")
        }
        _ => Failure::new(ErrorCode::Oom, format!("this node could not give the container a network: {error}")),
    }
}

/// How often, and how many times, a container's first process is looked at until it is the program.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// See [`LOOK_EVERY`].
const LOOKS_MAX: u32 = 100;

/// Opens the routes' sockets in the network namespace of a process, which must have these variables: engines may count
/// processes otherwise than this machine does.
fn listen(pid: u32, routes: Vec<Route>, marks: &[(&'static str, String)]) -> io::Result<Vec<TcpListener>> {
    let environ = format!("/proc/{pid}/environ");
    let is_marked = || -> io::Result<bool> {
        let environ = std::fs::read(&environ)?;
        let has = |mark: &(&str, String)| {
            environ.split(|b| *b == 0).any(|v| v == format!("{}={}", mark.0, mark.1).as_bytes())
        };
        Ok(marks.iter().all(has))
    };
    // The engine calls a container started when its first process is about to become the program, with its variables.
    let mut looks = 0;
    while !is_marked()? && looks < LOOKS_MAX {
        std::thread::sleep(LOOK_EVERY);
        looks += 1;
    }
    let namespace = File::open(format!("/proc/{pid}/ns/net"))?;
    let own = std::fs::metadata("/proc/thread-self/ns/net")?;
    let entered = namespace.metadata()?;
    if !is_marked()? || (own.dev(), own.ino()) == (entered.dev(), entered.ino()) {
        return Err(io::Error::other("the engine counts processes otherwise, or gave no network namespace"));
    }
    // A thread of its own, which ends there.
    let thread = std::thread::Builder::new().name("sinew-net".to_owned()).spawn(move || {
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
        network::open(&routes)
    })?;
    thread.join().unwrap_or_else(|_| Err(io::Error::other("opening sockets failed")))
}
