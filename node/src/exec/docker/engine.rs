//! Where the Docker engine is, whether it answers, and whether it can hold a task to its limits.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use bollard::errors::Error;
use bollard::models::SystemInfo;
use bollard::{API_DEFAULT_VERSION, Docker};
use serde::{Deserialize, Serialize};
use sinew_crdt_state::error_code::ErrorCode;

use crate::exec::outcome::Failure;

/// Where engines listen unless told otherwise.
const SOCKET_DEFAULT: &str = "/var/run/docker.sock";
/// The variable by which other clients find their engine.
const HOST_VAR: &str = "DOCKER_HOST";
/// An engine that has not answered by then is not there for us. It may be busy: creating a container on a slow disk takes seconds.
const REQUEST_S: u64 = 60;
/// The same for a mere look.
const LOOK_MAX: Duration = Duration::from_secs(5);

/// Which engine this node uses.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum EngineSetting {
    /// The one at the Unix socket of `DOCKER_HOST`, or at `/var/run/docker.sock`, if there is one.
    #[default]
    Auto,
    /// None.
    Off,
    /// The one at this Unix socket.
    At(PathBuf),
}

/// A text that names no engine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is no Docker engine of this machine: write `auto`, `off`, or the absolute path of its socket, such as \
     /var/run/docker.sock (engines over the network cannot see this node's files)"
)]
pub struct NoEngine(String);

impl FromStr for EngineSetting {
    type Err = NoEngine;

    fn from_str(text: &str) -> Result<Self, NoEngine> {
        match text {
            "auto" => Ok(Self::Auto),
            "off" => Ok(Self::Off),
            _ => {
                let path = text.strip_prefix("unix://").unwrap_or(text);
                let plain = path.starts_with('/') && path.len() > 1 && !path.contains('\0');
                if plain { Ok(Self::At(path.into())) } else { Err(NoEngine(text.to_owned())) }
            }
        }
    }
}

impl TryFrom<String> for EngineSetting {
    type Error = NoEngine;

    fn try_from(text: String) -> Result<Self, NoEngine> {
        text.parse()
    }
}

impl From<EngineSetting> for String {
    fn from(setting: EngineSetting) -> Self {
        setting.to_string()
    }
}

impl fmt::Display for EngineSetting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Off => f.write_str("off"),
            Self::At(path) => path.display().fmt(f),
        }
    }
}

impl EngineSetting {
    /// The socket, or why there is none.
    pub(crate) fn socket(&self) -> Result<PathBuf, String> {
        self.socket_with(std::env::var(HOST_VAR).ok().as_deref())
    }

    fn socket_with(&self, host: Option<&str>) -> Result<PathBuf, String> {
        match (self, host) {
            (Self::Off, _) => Err("turned off by the setting `docker`".to_owned()),
            (Self::At(path), _) => Ok(path.clone()),
            (Self::Auto, None | Some("")) => Ok(SOCKET_DEFAULT.into()),
            (Self::Auto, Some(host)) => match host.strip_prefix("unix://") {
                Some(path) if path.starts_with('/') => Ok(path.into()),
                _ => Err(format!(
                    "{HOST_VAR} is {host}, which is no Unix socket: an engine elsewhere cannot see this node's files; set \
                     `docker` to the socket of an engine here"
                )),
            },
        }
    }
}

/// An engine that answered and will do.
#[derive(Debug, Clone)]
pub(super) struct Engine {
    pub(super) docker: Docker,
    pub(super) socket: PathBuf,
    /// Thousandths of cores that it can give.
    pub(super) cpu_milli: u32,
}

/// Connects, and looks whether the engine can do what is needed.
pub(super) async fn connect(socket: &Path) -> Result<Engine, String> {
    let silent = |why: &dyn fmt::Display| format!("no Docker engine answers at {}: {why}", socket.display());
    let look = async {
        let path = socket.to_string_lossy();
        let docker = Docker::connect_with_unix(&path, REQUEST_S, API_DEFAULT_VERSION)?.negotiate_version().await?;
        let info = docker.info().await?;
        Ok::<_, Error>((docker, info))
    };
    let (docker, info) = match tokio::time::timeout(LOOK_MAX, look).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(Error::SocketNotFoundError(_))) => return Err(silent(&"there is no such socket")),
        Ok(Err(error)) => return Err(silent(&told(&error))),
        Err(_) => return Err(silent(&format!("it is silent for {} s", LOOK_MAX.as_secs()))),
    };
    if let Some(why) = unfit(&info) {
        return Err(format!("the Docker engine at {} {why}", socket.display()));
    }
    let cpu_milli = u32::try_from(info.ncpu.unwrap_or(0).saturating_mul(1_000)).unwrap_or(u32::MAX);
    Ok(Engine { docker, socket: socket.to_owned(), cpu_milli })
}

impl Engine {
    /// Whether it still answers.
    pub(super) async fn answers(&self) -> bool {
        matches!(tokio::time::timeout(LOOK_MAX, self.docker.ping()).await, Ok(Ok(_)))
    }

    /// What a request's failure means for a task.
    pub(super) fn failure(&self, doing: &str, error: &Error) -> Failure {
        let Error::DockerResponseServerError { status_code, message } = error else {
            return self.gone(doing, error);
        };
        let is_gpu = ["could not select device driver", "unknown device", "no such device"];
        if is_gpu.iter().any(|part| message.contains(part)) && message.contains("gpu")
            || message.contains("nvidia-container-cli")
        {
            return Failure::new(ErrorCode::NoGpu, format!("this node's engine has no such GPU to give: {message}"));
        }
        match status_code {
            400..500 => Failure::new(ErrorCode::Invalid, format!("the Docker engine refuses to {doing}: {message}")),
            _ => Failure::new(ErrorCode::Oom, format!("this node's Docker engine could not {doing}: {message}")),
        }
    }

    /// The engine does not answer any more.
    pub(super) fn gone(&self, doing: &str, error: &Error) -> Failure {
        let at = self.socket.display();
        Failure::new(ErrorCode::Lost, format!("the Docker engine at {at} was lost ({doing}): {}", told(error)))
    }
}

/// An error with what is behind it, on one line: hyper keeps its reasons to itself otherwise.
fn told(error: &Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text = format!("{text}: {inner_text}");
        }
        source = inner.source();
    }
    text
}

/// What keeps the engine from holding tasks to their limits. Limits that are only hints are none.
fn unfit(info: &SystemInfo) -> Option<String> {
    if info.os_type.as_deref() != Some("linux") {
        return Some("does not run Linux containers".to_owned());
    }
    let limits = [("memory", info.memory_limit), ("the processor", info.cpu_cfs_quota), ("processes", info.pids_limit)];
    if let Some((what, _)) = limits.into_iter().find(|(_, can)| *can != Some(true)) {
        return Some(format!("cannot limit {what}: give it control groups that can"));
    }
    let options = info.security_options.as_deref().unwrap_or_default();
    let has = |name: &str| options.iter().any(|option| option.split(',').any(|part| part == format!("name={name}")));
    if !has("seccomp") || options.iter().any(|option| option.contains("profile=unconfined")) {
        return Some("filters no system calls: it lacks seccomp, or has it turned off".to_owned());
    }
    ["rootless", "userns"].into_iter().find(|name| has(name)).map(|name| {
        format!("maps users ({name}), so that tasks could not write into their directories: use one that does not")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_engine_is_found_by_setting_and_environment() {
        let socket = |text: &str, host| text.parse::<EngineSetting>().expect("setting").socket_with(host);
        assert_eq!(socket("auto", None), Ok(SOCKET_DEFAULT.into()));
        assert_eq!(socket("auto", Some("unix:///run/x.sock")), Ok("/run/x.sock".into()));
        assert_eq!(socket("/run/y.sock", Some("unix:///run/x.sock")), Ok("/run/y.sock".into()));
        assert!(socket("auto", Some("tcp://192.0.2.1:2375")).is_err_and(|why| why.contains("192.0.2.1")));
        assert!(socket("off", None).is_err_and(|why| why.contains("`docker`")));
        for wrong in ["", "on", "tcp://192.0.2.1", "relative.sock", "/"] {
            let error = wrong.parse::<EngineSetting>().expect_err("refused").to_string();
            assert!(error.contains("auto") && error.contains(&format!("`{wrong}`")), "{error}");
        }
        let text = String::from(EngineSetting::At("/run/y.sock".into()));
        assert_eq!(EngineSetting::try_from(text), Ok(EngineSetting::At("/run/y.sock".into())));
    }

    #[test]
    fn an_engine_that_cannot_enforce_a_limit_is_not_used() {
        let good = SystemInfo {
            os_type: Some("linux".to_owned()),
            memory_limit: Some(true),
            cpu_cfs_quota: Some(true),
            pids_limit: Some(true),
            security_options: Some(vec!["name=seccomp,profile=default".to_owned()]),
            ..SystemInfo::default()
        };
        assert_eq!(unfit(&good), None);
        let says = |info: SystemInfo, word: &str| assert!(unfit(&info).is_some_and(|why| why.contains(word)), "{word}");
        says(SystemInfo { memory_limit: Some(false), ..good.clone() }, "memory");
        says(SystemInfo { pids_limit: None, ..good.clone() }, "processes");
        says(SystemInfo { os_type: Some("windows".to_owned()), ..good.clone() }, "Linux");
        says(SystemInfo { security_options: None, ..good.clone() }, "seccomp");
        let off = vec!["name=seccomp,profile=unconfined".to_owned()];
        says(SystemInfo { security_options: Some(off), ..good.clone() }, "turned off");
        let rootless = vec!["name=seccomp,profile=default".to_owned(), "name=rootless".to_owned()];
        says(SystemInfo { security_options: Some(rootless), ..good }, "rootless");
    }
}
