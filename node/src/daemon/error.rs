//! Why a daemon could not start or go on.

use sinew_blobs::OpenError;
use sinew_mesh::{Boot, Multiaddr, StartError};

use crate::config::ConfigError;
use crate::datadir::DataDirError;
use crate::exec::allowlist::AllowlistError;
use crate::exec::volumes::BadVolume;
use crate::gather::GatherError;
use crate::storage::StorageError;

/// Why a daemon could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The data dir.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// The settings.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Inputs cannot be fetched from outside.
    #[error(transparent)]
    Gather(GatherError),
    /// A multiaddr in the settings.
    #[error("`{value}` in `{key}` is no multiaddr: write it like /ip4/192.0.2.1/tcp/9000 ({problem})")]
    Multiaddr {
        /// Which setting.
        key: &'static str,
        /// Its value.
        value: String,
        /// What is wrong.
        problem: String,
    },
    /// The list of programs that may run.
    #[error(transparent)]
    Allowlist(#[from] AllowlistError),
    /// Programs would see the daemon's key and every job's files.
    #[error(
        "the data directory {} is below {}, which programs in the sandbox may read: choose another with --data-dir, or leave \
         that path out of sandbox_readable and sandbox_writable", dir.display(), shown.display()
    )]
    DataDirShown {
        /// The data directory.
        dir: std::path::PathBuf,
        /// What programs see.
        shown: std::path::PathBuf,
    },
    /// A directory cannot be offered.
    #[error(transparent)]
    Volume(BadVolume),
    /// The ledger.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The blob store.
    #[error(transparent)]
    Blobs(#[from] OpenError),
    /// The names of what the blob store keeps.
    #[error("cannot read which blobs belong to which job: {0}")]
    Tags(#[source] sinew_blobs::StoreError),
    /// The mesh.
    #[error(transparent)]
    Mesh(#[from] StartError),
    /// The data directory is a copy of another daemon's.
    #[error(
        "another daemon runs with this node's key{place}: {} is a copy of its data directory. It was here before, so this one \
         stops. Every node needs a key of its own: stop one of the two for good, or run `sinew invite` on an admin's node and \
         `sinew join TICKET` with a new --data-dir (`sinew init` for a mesh of its own) here", path.display()
    )]
    Twin {
        /// This daemon's data directory.
        path: std::path::PathBuf,
        /// Where the other one is, and which of its starts it is, for people.
        place: String,
    },
    /// The system.
    #[error("cannot {doing}: {source}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// Why not.
        source: std::io::Error,
    },
}

impl DaemonError {
    pub(super) fn twin(path: std::path::PathBuf, boot: Boot, addr: Option<Multiaddr>) -> Self {
        let place = addr.map_or_else(String::new, |addr| format!(" at {addr}"));
        Self::Twin { path, place: format!("{place} (start {} of it)", boot.number) }
    }

    /// For the command line.
    #[must_use]
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::DataDir(e) => e.exit_code(),
            Self::Gather(GatherError::Ca { .. })
            | Self::Config(_)
            | Self::Allowlist(_)
            | Self::DataDirShown { .. }
            | Self::Volume(_)
            | Self::Multiaddr { .. } => 2,
            _ => 1,
        }
    }
}

pub(crate) fn io(doing: &'static str) -> impl FnOnce(std::io::Error) -> DaemonError {
    move |source| DaemonError::Io { doing, source }
}
