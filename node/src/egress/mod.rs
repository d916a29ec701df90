//! Lets programs of jobs that name hosts reach those, and nothing else. A program connects to a listening socket inside its own
//! network namespace; the daemon accepts there, looks the host up itself, and passes bytes between the two. So TLS goes from
//! program to host, no address is the program's to choose, and there is no way but through here.
//!
//! Entry points: [`Rules`] (which hosts an operator allows), [`Egress`] (what tasks get), `gate` (the sockets of one sandbox),
//! `relay` (one connection). It makes no sandbox: [`crate::exec::cell`] does.

mod gate;
mod relay;
mod rules;

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use rustix::process::{Resource, getrlimit};
use sinew_crdt_state::error_code::ErrorCode;
use sinew_crdt_state::network::Network;
use tokio::runtime::Handle;

use crate::exec::outcome::Failure;

pub(crate) use gate::{Door, Gate};
pub use rules::Rules;

/// Connections that one sandbox may have at once, however few descriptors the daemon may open, and however many.
const CONNECTIONS: std::ops::RangeInclusive<u64> = 4..=128;
/// Of the daemon's descriptors this part, as the inverse, may be tasks' connections.
const DESCRIPTORS_SHARE: u64 = 4;
/// Two for each connection: the program's end and the host's.
const DESCRIPTORS_EACH: u64 = 2;
/// Where the system does not say how many descriptors there may be: what it commonly allows.
const DESCRIPTORS_DEFAULT: u64 = 1_024;
/// Hosts that are looked up at once before a job's first task.
const ADMISSIONS: usize = 4;
/// A look-up that takes longer does not keep a task from starting: its connections are checked all the same.
const ADMISSION_MAX: Duration = Duration::from_secs(5);

/// The way out of this node for programs.
#[derive(Debug, Clone)]
pub struct Egress {
    rules: Arc<Rules>,
    runtime: Handle,
    connections_max: usize,
}

impl Egress {
    /// To the hosts that `rules` allow, for `slots` tasks at a time. Connections are driven on `runtime`; callers must not be on
    /// one of its threads.
    #[must_use]
    pub fn new(rules: Rules, runtime: Handle, slots: u32) -> Self {
        let descriptors = getrlimit(Resource::Nofile).current.unwrap_or(DESCRIPTORS_DEFAULT);
        let each = descriptors / DESCRIPTORS_SHARE / DESCRIPTORS_EACH / u64::from(slots.max(1));
        let connections_max = usize::try_from(each.clamp(*CONNECTIONS.start(), *CONNECTIONS.end())).unwrap_or(1);
        Self { rules: Arc::new(rules), runtime, connections_max }
    }

    /// Connections that one sandbox may have at once.
    #[must_use]
    pub const fn connections_max(&self) -> usize {
        self.connections_max
    }

    /// Whether a job may have this network here, as far as can be known before it connects.
    ///
    /// # Errors
    /// `E_DENY`, naming the first host that may not be reached.
    pub(crate) fn admit(&self, network: &Network) -> Result<(), Failure> {
        let names = || network.hosts().map(|(name, _)| name);
        names().try_for_each(|name| self.rules.check(name))?;
        let looked =
            futures::stream::iter(names()).map(|name| self.rules.addresses(name, 0)).buffer_unordered(ADMISSIONS);
        let denied = looked.filter_map(async |found| found.err().filter(|why| why.code == ErrorCode::Deny));
        let first = async { Box::pin(denied).next().await };
        let first = self.runtime.block_on(async { tokio::time::timeout(ADMISSION_MAX, first).await });
        first.ok().flatten().map_or(Ok(()), Err)
    }

    /// The way out of one sandbox, through these doors. It is closed at first.
    pub(crate) fn gate(&self, doors: Vec<Door>) -> std::io::Result<Gate> {
        Gate::new(Arc::clone(&self.rules), self.runtime.clone(), self.connections_max, doors)
    }
}

/// Without a sandbox a program has the machine's own network, and no policy would hold.
pub(crate) fn needs_sandbox(network: &Network, is_sandboxed: bool) -> Result<(), Failure> {
    if network.is_none() || is_sandboxed {
        return Ok(());
    }
    Err(cannot("this node, whose sandbox is off, cannot hold it to them: leave `network` out for such nodes"))
}

/// A job that names hosts cannot run here; others may have what this node lacks.
pub(crate) fn cannot(why: &str) -> Failure {
    let mut failure = Failure::new(ErrorCode::Deny, format!("the job names hosts that it wants to reach, and {why}"));
    failure.retryable = true;
    failure
}
