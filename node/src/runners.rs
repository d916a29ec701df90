//! The runners of this node as its operator set them up, and what is to be said of them.

use std::path::Path;
use std::sync::Arc;

use sinew_crdt_state::program::Runners;

use crate::config::Settings;
use crate::daemon::{DaemonError, io};
use crate::datadir::DataDir;
use crate::egress::Egress;
use crate::exec::allowlist::Allowlist;
use crate::exec::cell::pool::{Sandbox, SandboxMode, SandboxOptions};
use crate::exec::docker::{DockerOptions, DockerRunner, EngineSetting, IMAGE_KEEP};
use crate::exec::guardian::NodeTag;
use crate::exec::own_program;
use crate::exec::process::ProcessRunner;
use crate::exec::python::PythonRunner;
use crate::exec::runner::{Health, Runner};
use crate::exec::set::RunnerSet;
use crate::exec::volumes::NodeVolumes;
use crate::exec::wasm::{WasmOptions, WasmRunner};
use crate::gather::{Gather, GatherOptions};

/// What this node can do to isolate programs.
#[derive(Debug, Clone)]
pub struct SandboxState {
    /// What the operator wants.
    pub mode: SandboxMode,
    /// What is missing.
    pub missing: Vec<String>,
    /// Why no program runs, if none does.
    pub refusal: Option<String>,
    /// Whether programs run without any isolation.
    pub bare: bool,
}

/// What tasks may use in all.
#[derive(Debug, Clone, Copy)]
pub struct Shares {
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Thousandths of cores.
    pub cpu_milli: u32,
}

/// Finds out what this machine can run, and what it can do to isolate programs; says what it cannot.
///
/// # Errors
/// What in the settings cannot be.
pub fn open(
    settings: &Settings,
    shares: Shares,
    tag: &NodeTag,
    data_dir: &Path,
) -> Result<(Arc<RunnerSet>, SandboxState), DaemonError> {
    let (process, state) = isolate(settings, shares, tag, data_dir)?;
    let rules = settings.job_rules()?;
    let docker = containers(settings, shares, tag, data_dir)?;
    if !rules.is_none() {
        let egress = Egress::new(rules, tokio::runtime::Handle::current(), shares.cpu_milli.div_ceil(1_000));
        docker.let_out(egress.clone());
        if let Some(sandbox) = process.sandbox() {
            sandbox.let_out(egress);
        }
    }
    let (python, wasm) = (python(settings, &process), Arc::new(wasm(settings, shares)));
    let set = RunnerSet::new(process).with(Arc::new(docker)).with(python).with(wasm);
    Ok((Arc::new(set), state))
}

/// The name of the file in the data directory that says which images this node brought to its engine.
const IMAGES_FILE: &str = "docker-images.json";

fn containers(
    settings: &Settings,
    shares: Shares,
    tag: &NodeTag,
    data_dir: &Path,
) -> Result<DockerRunner, DaemonError> {
    let mut engine = settings.docker.clone();
    if settings.allowlist.is_some() && engine == EngineSetting::Auto {
        // Whoever lists the programs that may run does not mean any program of any image.
        tracing::info!("no containers are run: `allowlist` is set, and `docker` names no engine");
        engine = EngineSetting::Off;
    }
    let options = DockerOptions {
        engine,
        hosts: settings.hosts()?,
        node: DataDir::at(data_dir).identity()?.id().to_string(),
        images: data_dir.join(IMAGES_FILE),
        image_keep: IMAGE_KEEP,
        tmp_bytes: settings.sandbox_tmp_bytes,
        memory_bytes: shares.memory_bytes,
        slots: shares.cpu_milli.div_ceil(1_000),
    };
    Ok(DockerRunner::new(options, tag.clone(), tokio::runtime::Handle::current()))
}

/// The directories that jobs may use.
///
/// # Errors
/// What in the settings cannot be.
pub fn volumes(settings: &Settings, sandbox: &SandboxState, data_dir: &Path) -> Result<NodeVolumes, DaemonError> {
    let shown = [settings.sandbox_readable.clone(), settings.python.readable(), settings.sandbox_writable.clone()];
    let opened = NodeVolumes::open(&settings.volumes, shown.concat(), sandbox.bare, data_dir);
    opened.map_err(DaemonError::Volume)
}

/// Sets up the fetching of inputs.
///
/// # Errors
/// What in the settings cannot be.
pub fn gather(settings: &Settings, tag: &NodeTag) -> Result<Gather, DaemonError> {
    let options = GatherOptions { hosts: settings.hosts()?, ca: settings.gather_ca.clone() };
    let gather = Gather::new(options, tag.clone()).map_err(DaemonError::Gather)?;
    Ok(gather.with_object_dirs(settings.object_dirs.clone()))
}

/// The runner for modules, unless they are not wanted.
fn wasm(settings: &Settings, shares: Shares) -> WasmRunner {
    let options = WasmOptions {
        memory_bytes: shares.memory_bytes,
        slots: shares.cpu_milli.div_ceil(1_000),
        module_bytes_max: settings.wasm_module_bytes_max,
    };
    let why = match (settings.wasm, &settings.allowlist) {
        (Some(true), _) | (None, None) => return WasmRunner::new(options),
        (Some(false), _) => "turned off: wasm = false",
        (None, Some(_)) => "there is an allowlist, which names no modules; set wasm = true to let any run",
    };
    WasmRunner::refusing(options, why.to_owned())
}

/// Each runner and why it cannot run anything now, if so.
#[must_use]
pub fn health(set: &RunnerSet) -> Vec<(Runners, Option<String>)> {
    let why = |runner: &dyn Runner| match runner.health() {
        Health::Ready => None,
        Health::Unavailable(why) => Some(why),
    };
    set.iter().map(|runner| (runner.kind(), why(runner))).collect()
}

/// The runner of Python functions. Whether it works is found out while the daemon goes on starting.
fn python(settings: &Settings, process: &ProcessRunner) -> Arc<PythonRunner> {
    let runner = Arc::new(PythonRunner::new(settings.python.clone(), process));
    let tried = Arc::clone(&runner);
    let spawned = std::thread::Builder::new().name("sinew-python".to_owned()).spawn(move || tried.try_out());
    if let Err(error) = spawned {
        tracing::warn!(%error, "Python was not tried out, and is not used");
    }
    runner
}

fn isolate(
    settings: &Settings,
    shares: Shares,
    tag: &NodeTag,
    data_dir: &Path,
) -> Result<(ProcessRunner, SandboxState), DaemonError> {
    let options = SandboxOptions {
        mode: settings.sandbox,
        exe: own_program::path().map_err(io("open this program's file"))?,
        readable: [settings.sandbox_readable.clone(), settings.python.readable()].concat(),
        writable: settings.sandbox_writable.clone(),
        tmp_bytes: settings.sandbox_tmp_bytes,
        memory_bytes: shares.memory_bytes,
        slots: shares.cpu_milli.div_ceil(1_000),
    };
    if options.mode != SandboxMode::Off
        && let Some(shown) = options.showing(data_dir)
    {
        return Err(DaemonError::DataDirShown { dir: data_dir.to_owned(), shown: shown.to_owned() });
    }
    let list = settings.allowlist.as_deref().map(Allowlist::load).transpose()?;
    let mut state = SandboxState { mode: settings.sandbox, missing: Vec::new(), refusal: None, bare: false };
    let runner = match Sandbox::probe(options, tag) {
        Ok((sandbox, missing)) => {
            for piece in &missing {
                tracing::warn!(%piece, mode = %state.mode, "missing in the sandbox");
            }
            state.missing = missing.iter().map(ToString::to_string).collect();
            state.bare = sandbox.is_none();
            sandbox.map_or_else(
                || ProcessRunner::new(tag.clone()),
                |sandbox| ProcessRunner::sandboxed(tag.clone(), sandbox),
            )
        }
        Err(error) => {
            tracing::error!(%error, "this node runs no programs");
            state.refusal = Some(error.to_string());
            ProcessRunner::refusing(tag.clone(), error.to_string())
        }
    };
    Ok((runner.only(list), state))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_run_unless_an_operator_limits_programs() {
        let shares = Shares { memory_bytes: 1 << 30, cpu_milli: 2_000 };
        let health = |wasm, allowlist: Option<&str>| {
            let settings = Settings { wasm, allowlist: allowlist.map(Into::into), ..Settings::default() };
            super::wasm(&settings, shares).health()
        };
        for ready in [health(None, None), health(Some(true), None), health(Some(true), Some("list.toml"))] {
            assert_eq!(ready, Health::Ready);
        }
        let why = |health| match health {
            Health::Unavailable(why) => why,
            Health::Ready => panic!("ready"),
        };
        assert!(why(health(Some(false), None)).contains("wasm = false"));
        assert!(why(health(None, Some("list.toml"))).contains("allowlist"));
    }
}
