//! The flags of `sinew up`, and how they go on top of `sinew.toml`: file first, then `SINEW_*`, then flags.

use std::path::{Path, PathBuf};

use clap::{ArgAction, Args, ValueEnum};
use sinew_crdt_state::manifest::units::{parse_duration, parse_size};

use super::values::{parse_label, parse_offered_cores};
use crate::config::{ConfigError, Settings};
use crate::exec::cell::pool::SandboxMode;
use crate::exec::docker::EngineSetting;

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One object a line.
    Json,
}

/// What `sinew up` is told. Whatever is not given stays as in `sinew.toml`, or else at its default.
#[derive(Debug, Clone, Default, Args)]
pub struct UpArgs {
    /// Settings [default: sinew.toml in the data dir, if it is there]
    #[arg(long, env = "SINEW_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Multiaddr to listen on; may be repeated [default: TCP and QUIC on port 9000]
    #[arg(long, env = "SINEW_LISTEN", value_name = "MULTIADDR", value_delimiter = ',')]
    pub listen: Vec<String>,
    /// Multiaddr of a node to dial at start; may be repeated
    #[arg(long, env = "SINEW_BOOTSTRAP", value_name = "MULTIADDR", value_delimiter = ',')]
    pub bootstrap: Vec<String>,
    /// Cores that tasks may use; 0 runs nothing here [default: all]
    #[arg(long, env = "SINEW_CPUS", value_name = "N", value_parser = parse_offered_cores)]
    pub cpus: Option<f64>,
    /// Memory that tasks may use [default: nine tenths]
    #[arg(long, env = "SINEW_MEMORY", value_name = "SIZE", value_parser = parse_size)]
    pub memory: Option<u64>,
    /// Disk that tasks may reserve [default: what is free, less a reserve]
    #[arg(long, env = "SINEW_DISK", value_name = "SIZE", value_parser = parse_size)]
    pub disk: Option<u64>,
    /// The most that a job may let one of its tasks write here [default: as much as it likes]
    #[arg(long, env = "SINEW_OUTPUT_MAX", value_name = "SIZE", value_parser = parse_size)]
    pub output_max: Option<u64>,
    /// A label that jobs can ask for; may be repeated
    #[arg(long, env = "SINEW_LABELS", value_name = "K=V", value_delimiter = ',', value_parser = parse_label)]
    pub label: Vec<(String, String)>,
    /// Find nodes on the local network
    #[arg(long, env = "SINEW_MDNS", value_name = "BOOL", num_args = 0..=1, require_equals = true,
          default_missing_value = "true", action = ArgAction::Set)]
    pub mdns: Option<bool>,
    /// The same as --mdns=false
    #[arg(long)]
    pub no_mdns: bool,
    /// Find nodes through others
    #[arg(long, env = "SINEW_KAD", value_name = "BOOL", num_args = 0..=1, require_equals = true,
          default_missing_value = "true", action = ArgAction::Set)]
    pub kad: Option<bool>,
    /// The same as --kad=false
    #[arg(long)]
    pub no_kad: bool,
    /// Relay for nodes that cannot be dialled
    #[arg(long, env = "SINEW_RELAY_SERVER", value_name = "BOOL", num_args = 0..=1, require_equals = true,
          default_missing_value = "true", action = ArgAction::Set)]
    pub relay_server: Option<bool>,
    /// The same as --relay-server=false
    #[arg(long)]
    pub no_relay_server: bool,
    /// Be reached through a relay when this node cannot be dialled
    #[arg(long, env = "SINEW_RELAY_CLIENT", value_name = "BOOL", num_args = 0..=1, require_equals = true,
          default_missing_value = "true", action = ArgAction::Set)]
    pub relay_client: Option<bool>,
    /// The same as --relay-client=false
    #[arg(long)]
    pub no_relay_client: bool,
    /// Find out whether this node can be dialled
    #[arg(long, env = "SINEW_AUTONAT", value_name = "BOOL", num_args = 0..=1, require_equals = true,
          default_missing_value = "true", action = ArgAction::Set)]
    pub autonat: Option<bool>,
    /// The same as --autonat=false
    #[arg(long)]
    pub no_autonat: bool,
    /// Turn relayed connections into direct ones
    #[arg(long, env = "SINEW_DCUTR", value_name = "BOOL", num_args = 0..=1, require_equals = true,
          default_missing_value = "true", action = ArgAction::Set)]
    pub dcutr: Option<bool>,
    /// The same as --dcutr=false
    #[arg(long)]
    pub no_dcutr: bool,
    /// How long a sealed job's entry stays before only its receipt is kept [default: 1h]
    #[arg(long, env = "SINEW_LEDGER_GRACE", value_name = "DURATION", value_parser = parse_duration)]
    pub ledger_grace: Option<u64>,
    /// How long outputs and logs stay after that; `sinew prune --all` does not wait [default: 7d]
    #[arg(long, env = "SINEW_OUTPUTS_KEPT", value_name = "DURATION", value_parser = parse_duration)]
    pub outputs_kept: Option<u64>,
    /// How long a node must be gone before what it held is copied again [default: 60s]
    #[arg(long, env = "SINEW_COPY_AGAIN_AFTER", value_name = "DURATION", value_parser = parse_duration)]
    pub copy_again_after: Option<u64>,
    /// Bytes a second that this may take, in the mean [default: 32MiB]
    #[arg(long, env = "SINEW_COPY_RATE", value_name = "SIZE", value_parser = parse_size)]
    pub copy_rate: Option<u64>,
    /// Whether programs are isolated from this machine [default: required]
    #[arg(long, env = "SINEW_SANDBOX", value_name = "MODE")]
    pub sandbox: Option<SandboxMode>,
    /// A file or directory, beyond the system's own, that programs may read and execute; may be repeated
    #[arg(long, env = "SINEW_SANDBOX_READABLE", value_name = "PATH", value_delimiter = ',')]
    pub sandbox_readable: Vec<PathBuf>,
    /// A directory that programs may write to; may be repeated
    #[arg(long, env = "SINEW_SANDBOX_WRITABLE", value_name = "DIR", value_delimiter = ',')]
    pub sandbox_writable: Vec<PathBuf>,
    /// Programs that may run here, in TOML or YAML [default: any]
    #[arg(long, env = "SINEW_ALLOWLIST", value_name = "FILE")]
    pub allowlist: Option<PathBuf>,
    /// A host that inputs may be fetched from: a name, *.NAME for all below, an address, or * for all public ones; may be repeated
    /// [default: *]
    #[arg(long, env = "SINEW_GATHER_HOST", value_name = "HOST", value_delimiter = ',')]
    pub gather_host: Vec<String>,
    /// Certificate authorities to trust for that besides the system's, in PEM
    #[arg(long, env = "SINEW_GATHER_CA", value_name = "FILE")]
    pub gather_ca: Option<PathBuf>,
    /// A host that jobs may connect to: a name, *.NAME for all below, NAME=ADDRESS for a name that is there, or * for all public
    /// ones; may be repeated [default: none]
    #[arg(long, env = "SINEW_JOB_HOST", value_name = "HOST", value_delimiter = ',')]
    pub job_host: Vec<String>,
    /// The Docker engine that runs containers: auto, off, or its socket [default: auto]
    #[arg(long, env = "SINEW_DOCKER", value_name = "ENGINE")]
    pub docker: Option<EngineSetting>,
    /// How log lines look [default: text]
    #[arg(long, env = "SINEW_LOG_FORMAT", value_name = "FORMAT")]
    pub log: Option<LogFormat>,
}

impl UpArgs {
    /// The settings of the file, with what was given here on top, in range.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn settings(&self, data_dir: &Path) -> Result<Settings, ConfigError> {
        let mut settings = Settings::load(self.config.as_deref(), data_dir)?;
        self.apply(&mut settings);
        settings.check()?;
        Ok(settings)
    }

    fn apply(&self, settings: &mut Settings) {
        if !self.listen.is_empty() {
            settings.listen.clone_from(&self.listen);
        }
        if !self.bootstrap.is_empty() {
            settings.bootstrap.clone_from(&self.bootstrap);
        }
        settings.cpus = self.cpus.or(settings.cpus);
        settings.memory = self.memory.or(settings.memory);
        settings.disk = self.disk.or(settings.disk);
        settings.output_max = self.output_max.or(settings.output_max);
        // Labels add up: a machine's own in the file, this start's in flags.
        settings.labels.extend(self.label.iter().cloned());
        switch(&mut settings.mdns, self.mdns, self.no_mdns);
        switch(&mut settings.kad, self.kad, self.no_kad);
        switch(&mut settings.relay_server, self.relay_server, self.no_relay_server);
        switch(&mut settings.relay_client, self.relay_client, self.no_relay_client);
        switch(&mut settings.autonat, self.autonat, self.no_autonat);
        switch(&mut settings.dcutr, self.dcutr, self.no_dcutr);
        if let Some(ms) = self.ledger_grace {
            settings.ledger_grace_s = ms / 1_000;
        }
        if let Some(ms) = self.outputs_kept {
            settings.outputs_kept_s = ms / 1_000;
        }
        if let Some(ms) = self.copy_again_after {
            settings.copy_again_after_s = ms.div_ceil(1_000);
        }
        settings.copy_bytes_per_s = self.copy_rate.unwrap_or(settings.copy_bytes_per_s);
        settings.sandbox = self.sandbox.unwrap_or(settings.sandbox);
        settings.sandbox_readable.extend(self.sandbox_readable.iter().cloned());
        settings.sandbox_writable.extend(self.sandbox_writable.iter().cloned());
        if self.allowlist.is_some() {
            settings.allowlist.clone_from(&self.allowlist);
        }
        if !self.gather_host.is_empty() {
            settings.gather_hosts.clone_from(&self.gather_host);
        }
        if !self.job_host.is_empty() {
            settings.job_hosts.clone_from(&self.job_host);
        }
        if self.gather_ca.is_some() {
            settings.gather_ca.clone_from(&self.gather_ca);
        }
        if let Some(docker) = &self.docker {
            settings.docker.clone_from(docker);
        }
        if let Some(format) = self.log {
            settings.log_json = format == LogFormat::Json;
        }
    }
}

/// `--no-X` beats `--X` and `SINEW_X`, which beat the file.
fn switch(setting: &mut bool, given: Option<bool>, no: bool) {
    *setting = !no && given.unwrap_or(*setting);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_go_on_top_of_the_file() {
        let dir = tempfile::tempdir().expect("dir");
        let file = "listen = [\"/ip4/1.2.3.4/tcp/1\"]\nkad = false\ncpus = 8.0\n[labels]\nzone = \"a\"\n";
        std::fs::write(dir.path().join("sinew.toml"), file).expect("write");
        let plain = UpArgs::default().settings(dir.path()).expect("settings");
        assert_eq!((plain.listen.len(), plain.kad, plain.mdns, plain.cpus), (1, false, true, Some(8.0)));

        let args = UpArgs {
            cpus: Some(2.0),
            label: vec![("disk".into(), "ssd".into())],
            kad: Some(true),
            mdns: Some(true),
            no_mdns: true,
            log: Some(LogFormat::Json),
            ledger_grace: Some(90_000),
            ..UpArgs::default()
        };
        let settings = args.settings(dir.path()).expect("settings");
        assert_eq!((settings.kad, settings.mdns, settings.cpus), (true, false, Some(2.0)));
        assert_eq!((settings.log_json, settings.ledger_grace_s, settings.labels.len()), (true, 90, 2));
        assert_eq!(settings.listen, plain.listen);
    }
}
