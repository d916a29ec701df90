//! What an operator sets: `sinew.toml` in the data dir, overridden by `SINEW_*` variables and flags (which the command
//! line applies on top).

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::egress::Rules;
use crate::exec::cell::pool::SandboxMode;
use crate::exec::docker::EngineSetting;
use crate::exec::python::{PythonOptions, is_name};
use crate::exec::volumes::{self, VolumeSetting};
use crate::gather::{BadHostRule, Hosts};

/// The file's name in the data dir.
pub const FILE_NAME: &str = "sinew.toml";

/// Every setting. Missing keys have the defaults of [`Settings::default`]; unknown ones are an error.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Multiaddrs to listen on.
    pub listen: Vec<String>,
    /// Multiaddrs of nodes to dial at start.
    pub bootstrap: Vec<String>,
    /// Cores that tasks may use; all, when not set.
    pub cpus: Option<f64>,
    /// Bytes of memory that tasks may use; nine tenths of the machine's, when not set.
    pub memory: Option<u64>,
    /// Bytes of disk that tasks may reserve; what is free at the start, less what tasks leave free, when not set.
    pub disk: Option<u64>,
    /// Bytes that a job may let one of its tasks write at most; as many as it likes, when not set.
    pub output_max: Option<u64>,
    /// Labels that jobs can ask for.
    pub labels: BTreeMap<String, String>,
    /// Find nodes of this mesh on the local network.
    pub mdns: bool,
    /// Find nodes through others.
    pub kad: bool,
    /// Relay for nodes that cannot be dialled.
    pub relay_server: bool,
    /// Be reached through a relay when this node cannot be dialled.
    pub relay_client: bool,
    /// Find out whether this node can be dialled.
    pub autonat: bool,
    /// Turn relayed connections into direct ones.
    pub dcutr: bool,
    /// Log lines as JSON.
    pub log_json: bool,
    /// How long a sealed job's entry stays before only its receipt is kept, seconds.
    pub ledger_grace_s: u64,
    /// How long outputs and logs stay after that, seconds: a week, for what ran over a holiday.
    pub outputs_kept_s: u64,
    /// What a node held is copied again once it has been gone for this long, seconds.
    pub copy_again_after_s: u64,
    /// Bytes a second that copying again may take, in the mean.
    pub copy_bytes_per_s: u64,
    /// Whether programs are isolated: `required`, `best-effort` or `off`.
    pub sandbox: SandboxMode,
    /// Files and directories of this machine, beyond the system's own, that programs may read and execute.
    pub sandbox_readable: Vec<PathBuf>,
    /// Directories of this machine that programs may write to.
    pub sandbox_writable: Vec<PathBuf>,
    /// Bytes that fit into a task's `/tmp`, and again into its `/dev/shm`. They are memory.
    pub sandbox_tmp_bytes: u64,
    /// A file that lists the programs that may run here; any, when not set.
    pub allowlist: Option<PathBuf>,
    /// Hosts that inputs may be fetched from: names, `*.NAME` for all below, addresses, and `*` for all that have public addresses.
    pub gather_hosts: Vec<String>,
    /// A PEM file of certificate authorities to trust for that besides the system's.
    pub gather_ca: Option<PathBuf>,
    /// Hosts that jobs may connect to, if they name them: as above, without addresses, and `NAME=ADDRESS` for a name that is there.
    pub job_hosts: Vec<String>,
    /// Directories of this machine whose files jobs may take as inputs (`file:///…`).
    pub object_dirs: Vec<PathBuf>,
    /// Which Docker engine runs containers: `auto`, `off` or the path of its socket.
    pub docker: EngineSetting,
    /// Whether WebAssembly modules may run here; when not set, they may unless there is an allowlist, which names none.
    pub wasm: Option<bool>,
    /// Bytes of the largest WebAssembly module that is compiled.
    pub wasm_module_bytes_max: u64,
    /// How Python functions are called.
    pub python: PythonOptions,
    /// Directories of this machine that jobs may use, by name.
    pub volumes: BTreeMap<String, VolumeSetting>,
}

/// What fits into `/tmp` where nothing else is set: plenty for a sort or a build, and a small machine survives two of them.
const TMP_BYTES: u64 = 256 << 20;

/// Largest module: interpreters as modules have 30 MB, and compiling takes about a second of processor time a megabyte.
const WASM_MODULE_BYTES_MAX: u64 = 64 << 20;

impl Default for Settings {
    fn default() -> Self {
        Self {
            listen: vec!["/ip4/0.0.0.0/tcp/9000".to_owned(), "/ip4/0.0.0.0/udp/9000/quic-v1".to_owned()],
            bootstrap: Vec::new(),
            cpus: None,
            memory: None,
            disk: None,
            output_max: None,
            labels: BTreeMap::new(),
            mdns: true,
            kad: true,
            relay_server: true,
            relay_client: true,
            autonat: true,
            dcutr: true,
            log_json: false,
            ledger_grace_s: 3_600,
            outputs_kept_s: 604_800,
            copy_again_after_s: 60,
            copy_bytes_per_s: 32 << 20,
            sandbox: SandboxMode::Required,
            sandbox_readable: Vec::new(),
            sandbox_writable: Vec::new(),
            sandbox_tmp_bytes: TMP_BYTES,
            allowlist: None,
            gather_hosts: vec!["*".to_owned()],
            gather_ca: None,
            // Whoever connects from here is taken for this machine's owner: nothing without the owner's word.
            job_hosts: Vec::new(),
            object_dirs: Vec::new(),
            docker: EngineSetting::Auto,
            wasm: None,
            wasm_module_bytes_max: WASM_MODULE_BYTES_MAX,
            python: PythonOptions::default(),
            volumes: BTreeMap::new(),
        }
    }
}

/// Why settings were refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the settings in {path}: {source}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not what it should be.
    #[error("{path}: {source}")]
    Syntax {
        /// Which.
        path: PathBuf,
        /// Where and what.
        source: Box<toml::de::Error>,
    },
    /// A value is out of range.
    #[error("setting `{key}` is {value}: {mend}")]
    Value {
        /// Which.
        key: &'static str,
        /// What it is.
        value: String,
        /// What would be right.
        mend: &'static str,
    },
}

impl Settings {
    /// Reads `file`, or `sinew.toml` in the data dir if there is one.
    ///
    /// # Errors
    /// [`ConfigError`]; a `file` that was named must exist.
    pub fn load(file: Option<&Path>, data_dir: &Path) -> Result<Self, ConfigError> {
        let path = file.map_or_else(|| data_dir.join(FILE_NAME), Path::to_owned);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound && file.is_none() => return Ok(Self::default()),
            Err(source) => return Err(ConfigError::Read { path, source }),
        };
        toml::from_str(&text).map_err(|source| ConfigError::Syntax { path, source: Box::new(source) })
    }

    /// The hosts that inputs may be fetched from.
    ///
    /// # Errors
    /// [`ConfigError::Value`] for the first rule that is none.
    pub fn hosts(&self) -> Result<Hosts, ConfigError> {
        let mend =
            "give names such as data.example.org, *.example.org for all below it, addresses, or * for all public hosts";
        let bad = |rule: BadHostRule| ConfigError::Value { key: "gather_hosts", value: rule.0, mend };
        Hosts::parse(&self.gather_hosts).map_err(bad)
    }

    /// The hosts that jobs may connect to.
    ///
    /// # Errors
    /// [`ConfigError::Value`] for the first rule that is none.
    pub fn job_rules(&self) -> Result<Rules, ConfigError> {
        let mend = "give names such as pypi.org, *.example.org for all below it, NAME=ADDRESS for a name that is at this \
                    address, or * for all public hosts";
        let bad = |rule: BadHostRule| ConfigError::Value { key: "job_hosts", value: rule.0, mend };
        Rules::parse(&self.job_hosts).map_err(bad)
    }

    /// Checks ranges.
    ///
    /// # Errors
    /// [`ConfigError::Value`] for the first key that is out of its range.
    pub fn check(&self) -> Result<(), ConfigError> {
        if let Some(cpus) = self.cpus
            && !(0.0..=65_536.0).contains(&cpus)
        {
            let mend = "give a number of cores from 0 (run nothing) to 65536";
            return Err(ConfigError::Value { key: "cpus", value: cpus.to_string(), mend });
        }
        if self.output_max == Some(0) {
            let mend = "give a number of bytes from 1, such as 1073741824, or leave it out; cpus = 0 runs nothing here";
            return Err(ConfigError::Value { key: "output_max", value: "0".to_owned(), mend });
        }
        if self.listen.is_empty() {
            let mend = "give at least one multiaddr, such as /ip4/0.0.0.0/tcp/9000";
            return Err(ConfigError::Value { key: "listen", value: "[]".to_owned(), mend });
        }
        if self.copy_bytes_per_s == 0 {
            let mend = "give a number of bytes from 1, such as 33554432";
            return Err(ConfigError::Value { key: "copy_bytes_per_s", value: "0".to_owned(), mend });
        }
        self.hosts()?;
        self.job_rules()?;
        if self.wasm_module_bytes_max == 0 {
            let mend = "give a number of bytes from 1, or set wasm = false";
            return Err(ConfigError::Value { key: "wasm_module_bytes_max", value: "0".to_owned(), mend });
        }
        volumes::check(&self.volumes).map_err(|(value, mend)| ConfigError::Value { key: "volumes", value, mend })?;
        let volumes: Vec<PathBuf> = self.volumes.values().map(|volume| volume.path.clone()).collect();
        for (key, paths) in [
            ("volumes", &volumes),
            ("sandbox_readable", &self.sandbox_readable),
            ("sandbox_writable", &self.sandbox_writable),
            ("python.paths", &self.python.paths),
            ("object_dirs", &self.object_dirs),
        ] {
            if let Some(bad) = paths.iter().find(|path| !is_plain(path)) {
                let mend = "give absolute paths without `..`, none of them `/` itself";
                return Err(ConfigError::Value { key, value: bad.display().to_string(), mend });
            }
        }
        if let Some(bad) = self.python.interpreter.as_ref().filter(|given| !is_name(given) && !is_plain(given)) {
            let mend = "give a name such as python3, or the absolute path of an interpreter or a virtual environment";
            return Err(ConfigError::Value { key: "python.interpreter", value: bad.display().to_string(), mend });
        }
        Ok(())
    }
}

/// Whether it can be shown under its own name: absolute, no way up, and not everything.
fn is_plain(path: &Path) -> bool {
    let mut parts = path.components();
    parts.next() == Some(Component::RootDir)
        && path.components().count() > 1
        && parts.all(|part| matches!(part, Component::Normal(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_file_is_the_defaults_and_a_named_one_must_exist() {
        let dir = tempfile::tempdir().expect("dir");
        assert_eq!(Settings::load(None, dir.path()).expect("defaults"), Settings::default());
        assert!(matches!(Settings::load(Some(&dir.path().join("x")), dir.path()), Err(ConfigError::Read { .. })));
    }

    #[test]
    fn unknown_keys_and_bad_values_are_named() {
        let dir = tempfile::tempdir().expect("dir");
        std::fs::write(dir.path().join(FILE_NAME), "lisen = []\n").expect("write");
        let error = Settings::load(None, dir.path()).expect_err("unknown key").to_string();
        assert!(error.contains("lisen") && error.contains("listen"), "{error}");
        let bad = Settings { cpus: Some(-1.0), ..Settings::default() };
        assert!(bad.check().expect_err("range").to_string().contains("cpus"));
        let bad = Settings { gather_hosts: vec!["http://x".to_owned()], ..Settings::default() };
        let error = bad.check().expect_err("refused").to_string();
        assert!(error.contains("gather_hosts") && error.contains("http://x"), "{error}");
        let bad = Settings { job_hosts: vec!["10.0.0.1".to_owned()], ..Settings::default() };
        let error = bad.check().expect_err("refused").to_string();
        assert!(error.contains("job_hosts") && error.contains("NAME=ADDRESS"), "{error}");
        let bad = Settings { copy_bytes_per_s: 0, ..Settings::default() };
        let error = bad.check().expect_err("refused").to_string();
        assert!(error.contains("copy_bytes_per_s") && error.contains("33554432"), "{error}");
        let bad = Settings { wasm_module_bytes_max: 0, ..Settings::default() };
        let error = bad.check().expect_err("refused").to_string();
        assert!(error.contains("wasm_module_bytes_max") && error.contains("wasm = false"), "{error}");
        for path in ["/", "data", "/srv/../etc"] {
            let bad = Settings { sandbox_writable: vec![path.into()], ..Settings::default() };
            let error = bad.check().expect_err("refused").to_string();
            assert!(error.contains("sandbox_writable") && error.contains(path), "{error}");
        }
        std::fs::write(dir.path().join(FILE_NAME), "docker = \"/run/x.sock\"\n").expect("write");
        let docker = Settings::load(None, dir.path()).expect("settings").docker;
        assert_eq!(docker, EngineSetting::At("/run/x.sock".into()));
        std::fs::write(dir.path().join(FILE_NAME), "docker = \"tcp://192.0.2.1\"\n").expect("write");
        let error = Settings::load(None, dir.path()).expect_err("no socket").to_string();
        assert!(error.contains("tcp://192.0.2.1") && error.contains("/var/run/docker.sock"), "{error}");
        for interpreter in ["", "/", "venv/bin/python", "/srv/../venv"] {
            let python = PythonOptions { interpreter: Some(interpreter.into()), paths: Vec::new() };
            let error = Settings { python, ..Settings::default() }.check().expect_err("refused").to_string();
            assert!(error.contains("python.interpreter"), "{error}");
        }
        for (text, word) in [
            ("[volumes.Sets]\npath = \"/srv/sets\"\n", "lower-case"),
            ("[volumes.sets]\npath = \"sets\"\n", "absolute"),
        ] {
            std::fs::write(dir.path().join(FILE_NAME), text).expect("write");
            let error = Settings::load(None, dir.path()).expect("settings").check().expect_err("refused").to_string();
            assert!(error.contains("volumes") && error.contains(word), "{error}");
        }
        std::fs::write(dir.path().join(FILE_NAME), "[volumes.sets]\npath = \"/srv/sets\"\nsubmitters = [\"x\"]\n")
            .expect("write");
        assert!(Settings::load(None, dir.path()).is_err(), "x is no node");
        std::fs::write(dir.path().join(FILE_NAME), "[volumes.sets]\npath = \"/srv/sets\"\n").expect("write");
        let settings = Settings::load(None, dir.path()).expect("settings");
        assert!(settings.check().is_ok() && settings.volumes["sets"].read_only, "unless said otherwise");
        let python = "[python]\ninterpreter = \"/srv/venv\"\npaths = [\"tasks\"]\n";
        std::fs::write(dir.path().join(FILE_NAME), python).expect("write");
        let settings = Settings::load(None, dir.path()).expect("settings");
        assert_eq!(settings.python.interpreter.as_deref(), Some(Path::new("/srv/venv")));
        assert!(settings.check().expect_err("relative").to_string().contains("python.paths"));
        std::fs::write(dir.path().join(FILE_NAME), "sandbox = \"best-effort\"\n").expect("write");
        assert_eq!(Settings::load(None, dir.path()).expect("settings").sandbox, SandboxMode::BestEffort);
        std::fs::write(dir.path().join(FILE_NAME), "sandbox = \"none\"\n").expect("write");
        let error = Settings::load(None, dir.path()).expect_err("unknown mode").to_string();
        assert!(error.contains("none") && error.contains("best-effort"), "{error}");
    }
}
