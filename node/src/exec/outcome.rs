//! How a task ended, in the form that the report to the brain, the receipt and the command line share.

use std::fmt;

use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use sinew_crdt_state::error_code::ErrorCode;
use sinew_crdt_state::ids::Hash;

/// Bytes of stderr that travel with a failure: enough for the end of a stack trace, small enough to be replicated.
pub const STDERR_TAIL_MAX: usize = 4 * 1024;

/// How one attempt ended and what it used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskOutcome {
    /// Success, or why not.
    pub result: Result<Success, Failure>,
    /// What it used, also when it failed.
    pub usage: Usage,
}

/// A good end: the program exited with status 0, and its outputs are there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Success;

/// What an attempt used. All of it is measured on this node and none of it decides correctness.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Usage {
    /// Wall-clock ms from start to end.
    pub wall_ms: u64,
    /// CPU ms, user and system, of the program and the children it waited for.
    pub cpu_ms: u64,
    /// Peak resident bytes of its biggest process; 0 when it ended before it could be measured (programs are sampled five times a second).
    pub max_rss_bytes: u64,
    /// Bytes written to stdout, stderr and the output directory.
    pub output_bytes: u64,
}

impl Usage {
    /// Adds a later part of the same attempt: a combiner after its mapper.
    pub fn add(&mut self, later: Self) {
        self.wall_ms += later.wall_ms;
        self.cpu_ms += later.cpu_ms;
        self.max_rss_bytes = self.max_rss_bytes.max(later.max_rss_bytes);
        self.output_bytes = self.output_bytes.saturating_add(later.output_bytes);
    }
}

/// A bad end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What kind.
    pub code: ErrorCode,
    /// The program's exit status, if it exited.
    pub exit: Option<i32>,
    /// The signal that ended it, if one did.
    pub signal: Option<i32>,
    /// One sentence: what happened and, where something can be done, what.
    pub message: String,
    /// The last [`STDERR_TAIL_MAX`] bytes of its stderr; bytes that are no UTF-8 show as U+FFFD.
    pub stderr_tail: String,
    /// Whether another attempt may end differently.
    pub retryable: bool,
    /// Something of the mesh that the task needs was out of reach, before anything ran: these blobs, or what is no blob. It is no
    /// attempt then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub out_of_reach: Option<Box<[Hash]>>,
}

impl Failure {
    /// A failure without a program's exit, retryable as its code says.
    #[must_use]
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self {
            code,
            exit: None,
            signal: None,
            message: message.into(),
            stderr_tail: String::new(),
            retryable: code.retryable(),
            out_of_reach: None,
        }
    }

    /// The same failure, of a task that could not begin because these blobs of the mesh are out of reach.
    #[must_use]
    pub fn out_of_reach(mut self, blobs: Vec<Hash>) -> Self {
        self.out_of_reach = Some(blobs.into_boxed_slice());
        self
    }

    /// The same failure, but another attempt cannot help.
    #[must_use]
    pub fn for_good(mut self) -> Self {
        self.retryable = false;
        self
    }

    /// Our own disk or directory refused: `doing` says what, as in "create the output directory".
    #[must_use]
    pub fn storage(doing: &str, error: &std::io::Error) -> Self {
        let code = if is_the_nodes_own(error) { ErrorCode::Lost } else { ErrorCode::Storage };
        Self::new(code, format!("could not {doing}: {error}"))
    }

    /// More output than allowed.
    #[must_use]
    pub fn over_output_cap(cap: u64) -> Self {
        Self::new(
            ErrorCode::Storage,
            format!(
                "the task wrote more than {cap} bytes to stdout, stderr and output/ together; \
                 raise limits.output_bytes_max (--output-max) if that much is meant"
            ),
        )
        .for_good()
    }

    /// Over the time limit.
    #[must_use]
    pub fn timeout(after_ms: u64) -> Self {
        Self::new(
            ErrorCode::Timeout,
            format!(
                "still running after {after_ms} ms, its limit; raise limits.timeout_ms (--timeout) if it needs longer"
            ),
        )
    }

    /// Over the memory limit.
    #[must_use]
    pub fn out_of_memory(limit: u64) -> Self {
        Self::new(
            ErrorCode::Oom,
            format!(
                "used more than {limit} bytes of memory, its limit, and was killed; raise `memory` (--memory) if it needs more"
            ),
        )
    }

    /// What went wrong while reading an input: the failure inside, if ours made the error, else an `E_FETCH`.
    #[must_use]
    pub fn from_input(error: std::io::Error) -> Self {
        match error.downcast::<InputFailure>() {
            Ok(inner) => inner.0,
            Err(error) => Self::new(ErrorCode::Fetch, format!("the input could not be read: {error}")),
        }
    }

    /// Wraps it for a path that can only carry an [`std::io::Error`]; [`Self::from_input`] takes it out again.
    #[must_use]
    pub fn into_input_error(self) -> std::io::Error {
        std::io::Error::other(InputFailure(self))
    }
}

/// Whether the machine lacks something, or its disk is sick: no fault of the program that wanted to open or write a file. Another node may
/// have what is missing here.
#[must_use]
pub fn is_the_nodes_own(error: &std::io::Error) -> bool {
    matches!(
        error.raw_os_error().map(Errno::from_raw_os_error),
        Some(Errno::MFILE | Errno::NFILE | Errno::NOSPC | Errno::DQUOT | Errno::ROFS | Errno::IO)
    )
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.message)
    }
}

impl std::error::Error for Failure {}

/// A [`Failure`] on its way through `Read`.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct InputFailure(Failure);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_survives_the_way_through_read() {
        let failure = Failure::new(ErrorCode::Invalid, "map output 3 is not sorted");
        assert_eq!(Failure::from_input(failure.clone().into_input_error()), failure);
        let plain = Failure::from_input(std::io::Error::other("disk"));
        assert_eq!(plain.code, ErrorCode::Fetch);
    }

    #[test]
    fn a_full_disk_or_too_many_open_files_are_no_fault_of_the_task() {
        let code = |errno: Errno| Failure::storage("open it", &errno.into()).code;
        assert_eq!(
            [Errno::MFILE, Errno::NFILE, Errno::NOSPC, Errno::ROFS, Errno::NOTDIR].map(code),
            [ErrorCode::Lost, ErrorCode::Lost, ErrorCode::Lost, ErrorCode::Lost, ErrorCode::Storage]
        );
    }

    #[test]
    fn an_outcome_is_json() {
        let outcome = TaskOutcome { result: Err(Failure::over_output_cap(7)), usage: Usage::default() };
        let json = serde_json::to_string(&outcome).expect("json");
        assert!(json.contains("E_STORAGE") && json.contains("--output-max"), "{json}");
        assert_eq!(serde_json::from_str::<TaskOutcome>(&json).expect("json"), outcome);
    }
}
