//! Fetches inputs from outside the mesh: files from web servers, trees from git repositories, objects from stores. Addresses come from specs that
//! peers signed, so a node fetches only from hosts that its operator allows, and by default from none inside its own network.

mod git;
mod hosts;
mod http;
mod near;
mod objects;
mod receive;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use reqwest::redirect::Policy;
use sinew_crdt_state::error_code::ErrorCode;

use crate::exec::guardian::NodeTag;
use crate::exec::outcome::Failure;

pub use git::GitInput;
pub use hosts::{BadHostRule, Hosts};

/// What an operator sets.
#[derive(Debug, Clone)]
pub struct GatherOptions {
    /// Where to fetch from.
    pub hosts: Hosts,
    /// Certificates of authorities to trust besides the system's: a PEM file.
    pub ca: Option<PathBuf>,
}

/// Why nothing can be fetched at all.
#[derive(Debug, thiserror::Error)]
pub enum GatherError {
    /// The file of certificates is none.
    #[error("setting `gather_ca`: {path}: {problem}; name a PEM file of certificates")]
    Ca {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// The client cannot be set up.
    #[error("cannot set up the fetching of inputs: {0}")]
    Client(String),
}

/// Fetches inputs for this node's tasks.
#[derive(Debug, Clone)]
pub struct Gather {
    hosts: Arc<Hosts>,
    ca: Option<PathBuf>,
    client: reqwest::Client,
    /// Follows no redirects.
    direct: reqwest::Client,
    object_dirs: Arc<[PathBuf]>,
    tag: NodeTag,
}

impl Gather {
    /// Set up as `options` say; processes it starts carry `tag`.
    ///
    /// # Errors
    /// [`GatherError`].
    pub fn new(options: GatherOptions, tag: NodeTag) -> Result<Self, GatherError> {
        let hosts = Arc::new(options.hosts);
        let client = http::client(&hosts, options.ca.as_deref(), http::redirects(&hosts), http::SILENCE_MAX)?;
        let direct = http::client(&hosts, options.ca.as_deref(), Policy::none(), http::SILENCE_MAX)?;
        Ok(Self { hosts, ca: options.ca, client, direct, object_dirs: Arc::default(), tag })
    }

    /// Offers jobs the files in these directories of this node.
    #[must_use]
    pub fn with_object_dirs(self, dirs: Vec<PathBuf>) -> Self {
        Self { object_dirs: dirs.into(), ..self }
    }

    /// Gives up object stores that say nothing for so long, instead of half a minute.
    ///
    /// # Errors
    /// [`GatherError`].
    pub fn with_silence_max(self, silence_max: Duration) -> Result<Self, GatherError> {
        let direct = http::client(&self.hosts, self.ca.as_deref(), Policy::none(), silence_max)?;
        Ok(Self { direct, ..self })
    }
}

/// Where half-fetched content is kept: next to the job's other files, deleted with them.
fn scratch(dir: &Path) -> Result<tempfile::TempDir, Failure> {
    let made = std::fs::create_dir_all(dir).and_then(|()| tempfile::Builder::new().prefix("gather-").tempdir_in(dir));
    made.map_err(|e| Failure::storage("make a directory for fetched inputs", &e))
}

/// The content is not there, or not what it should be: nobody else would find it otherwise.
fn wrong(message: impl Into<String>) -> Failure {
    Failure::new(ErrorCode::Fetch, message).for_good()
}
