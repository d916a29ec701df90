//! Fetches inputs from outside the mesh: files from web servers, trees from git repositories. Addresses come from specs that
//! peers signed, so a node fetches only from hosts that its operator allows, and by default from none inside its own network.

mod git;
mod hosts;
mod http;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use sinew_crdt_state::error_code::ErrorCode;

use crate::exec::guardian::NodeTag;
use crate::exec::outcome::Failure;

pub use git::Wanted;
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
    tag: NodeTag,
}

impl Gather {
    /// Set up as `options` say; processes it starts carry `tag`.
    ///
    /// # Errors
    /// [`GatherError`].
    pub fn new(options: GatherOptions, tag: NodeTag) -> Result<Self, GatherError> {
        let hosts = Arc::new(options.hosts);
        let client = http::client(&hosts, options.ca.as_deref())?;
        Ok(Self { hosts, ca: options.ca, client, tag })
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
