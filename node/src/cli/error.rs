//! What a command can end with other than success: its exit code, its sentence on stderr, its object with `--json`.

use std::io;
use std::path::PathBuf;

use serde_json::{Value, json};
use sinew_crdt_state::certificate::TicketError;
use sinew_crdt_state::error_code::ErrorCode;
use sinew_crdt_state::fact::{Failure, Outcome};
use sinew_crdt_state::ids::{JobId, NodeId};
use sinew_crdt_state::manifest::{ManifestError, ProgramError};
use sinew_scheduler::view::JobView;

use super::human::{clean, clean_lines};
use crate::api::client::ClientError;
use crate::config::ConfigError;
use crate::daemon::DaemonError;
use crate::datadir::DataDirError;

/// Failed.
pub(crate) const EXIT_FAILED: u8 = 1;
/// Usage, or not found.
pub(crate) const EXIT_USAGE: u8 = 2;
/// Whether it was done is not known: try again. `EX_TEMPFAIL` of `sysexits.h`.
pub(crate) const EXIT_UNKNOWN: u8 = 75;
/// Denied.
pub(crate) const EXIT_DENIED: u8 = 13;
/// Interrupted from the terminal: 128 + SIGINT, as shells have it.
pub(crate) const EXIT_INTERRUPTED: u8 = 130;
/// Terminated: 128 + SIGTERM.
pub(crate) const EXIT_TERMINATED: u8 = 143;

/// Why a command did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CliError {
    /// The daemon.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The data dir.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// The settings.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The daemon itself, in `sinew up`.
    #[error(transparent)]
    Daemon(#[from] DaemonError),
    /// What was asked of the simulator.
    #[error(transparent)]
    Simulation(Box<sinew_simnet::run::InvalidOptions>),
    /// The ticket.
    #[error(transparent)]
    Ticket(#[from] TicketError),
    /// The manifest, or a draft made of flags.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// A command given as one text.
    #[error("{flag}: {source}; write a program and its arguments, such as 'python3 x.py'")]
    Program {
        /// Which.
        flag: &'static str,
        /// Why not.
        source: ProgramError,
    },
    /// A file of this machine.
    #[error("cannot {doing} {}: {source}", .path.display())]
    File {
        /// What was tried.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A path without a name of its own.
    #[error("{} has no name that a task could find it under: name a file or a directory", .0.display())]
    NoName(PathBuf),
    /// A path that is not UTF-8; JSON could not carry it.
    #[error("the path {} is not UTF-8: rename it", .0.display())]
    NotUtf8(PathBuf),
    /// It would overwrite something.
    #[error("{} is there already: choose another place, or say --yes to write into it", .0.display())]
    Exists(PathBuf),
    /// A wanted output is not among the job's.
    #[error("the task left no `{0}` in $SINEW_OUTPUT")]
    NoOutput(String),
    /// What was printed is the beginning of an attempt whose result does not count.
    #[error(
        "what was printed of task {task} is the beginning of an attempt that was given up; another one printed something else: \
         `sinew logs {}` prints that one, whole", .job.short()
    )]
    Spliced {
        /// Which job.
        job: JobId,
        /// Its task.
        task: u32,
    },
    /// Some of what a task printed cannot be had.
    #[error("some of the output is missing; `sinew logs {}` tries again", .job.short())]
    Missing {
        /// Which job.
        job: JobId,
    },
    /// The daemon went down while its job was waited for.
    #[error(
        "the daemon went down before job {0} had ended ({source}); the job goes on where other nodes can have it, and else once \
         this daemon is up again: `sinew wait {0}` on any of them waits for it", .job.short()
    )]
    WentDown {
        /// Which job.
        job: JobId,
        /// What was seen.
        source: ClientError,
    },
    /// The question was answered with no.
    #[error("not done")]
    Declined,
    /// No data dir is given and there is no home to have one in.
    #[error("there is no home directory: say where the node's directory is with --data-dir or SINEW_DATA_DIR")]
    NoHome,
    /// A job ended otherwise than completed.
    #[error("{}", .0.sentence())]
    Job(Box<JobEnd>),
    /// The job's program exited with a code of its own, which is all there is to say.
    #[error("the program exited with {0}")]
    Exit(u8),
    /// A signal, and its exit code.
    #[error("interrupted")]
    Interrupted(u8),
    /// Nobody reads our output any more.
    #[error("nobody reads the output any more")]
    Closed,
    /// The output cannot be written.
    #[error("cannot write the output: {0}")]
    Output(#[source] io::Error),
    /// The runtime cannot start.
    #[error("cannot start: {0}")]
    Start(#[source] io::Error),
    /// A demo or a benchmark.
    #[error("{0:#}")]
    Show(anyhow::Error),
}

/// A job that ended otherwise than completed, in the terms of its user.
#[derive(Debug)]
pub(crate) struct JobEnd {
    /// Which.
    pub(crate) job: JobId,
    /// What failed for good; none when it was cancelled.
    pub(crate) failed: Option<FailedTask>,
}

/// The task that a job failed of.
#[derive(Debug)]
pub(crate) struct FailedTask {
    /// `tasks`, `map` or `reduce`.
    pub(crate) phase: String,
    /// Its number.
    pub(crate) task: u32,
    /// Where it ran last.
    pub(crate) node: Option<NodeId>,
    /// Why.
    pub(crate) failure: Failure,
}

impl From<anyhow::Error> for CliError {
    /// Demos and benchmarks use this command line's own parts: what these say keeps its exit code.
    fn from(error: anyhow::Error) -> Self {
        let error = match error.downcast::<Self>() {
            Ok(own) => return own,
            Err(error) => error,
        };
        error.downcast::<ClientError>().map_or_else(Self::Show, Self::Client)
    }
}

impl JobEnd {
    /// How `view` ended, if badly. `None` when it completed or goes on.
    pub(crate) fn of(view: &JobView) -> Option<Self> {
        let failed = match view.outcome.as_ref()? {
            Outcome::Completed => return None,
            Outcome::Cancelled => None,
            Outcome::Failed { phase, task, node, failure } => Some(FailedTask {
                phase: view.phases.get(usize::from(*phase)).map_or_else(|| phase.to_string(), |p| p.name.clone()),
                task: *task,
                node: *node,
                failure: failure.clone(),
            }),
        };
        Some(Self { job: view.id, failed })
    }

    fn sentence(&self) -> String {
        let Some(failed) = &self.failed else {
            return format!("{}: job {} was cancelled", ErrorCode::Cancelled, self.job.short());
        };
        let FailedTask { node, failure, .. } = failed;
        let mut text = format!("{}: {} failed", failure.code, failed.who());
        if let Some(node) = node {
            text += &format!(" on node {}", node.short());
        }
        text += &format!(": {}", clean(&failure.message));
        let tail = clean_lines(failure.stderr_tail.trim_end());
        if !tail.is_empty() {
            text += "\n  the end of its stderr:";
            tail.lines().for_each(|line| text += &format!("\n    {line}"));
        }
        text += &format!("\n  `sinew job {}` has the whole story", self.job.short());
        text
    }

    fn json(&self) -> Value {
        let Some(failed) = &self.failed else {
            return json!({ "job": self.job });
        };
        json!({
            "job": self.job,
            "phase": failed.phase,
            "task": failed.task,
            "node": failed.node,
            "failure": failed.failure,
        })
    }
}

impl FailedTask {
    /// The task, called as its phase calls it.
    pub(crate) fn who(&self) -> String {
        match self.phase.as_str() {
            "map" => format!("map chunk {}", self.task),
            "reduce" => format!("reduce partition {}", self.task),
            _ => format!("task {}", self.task),
        }
    }
}

impl CliError {
    /// The process's exit code.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Client(error) => error.exit_code(),
            Self::DataDir(error) => error.exit_code(),
            Self::Daemon(error) => error.exit_code(),
            Self::File { source, .. } => match source.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::IsADirectory | io::ErrorKind::NotADirectory => EXIT_USAGE,
                io::ErrorKind::PermissionDenied => EXIT_DENIED,
                _ => EXIT_FAILED,
            },
            Self::Ticket(TicketError::Forged | TicketError::Expired(_)) => EXIT_DENIED,
            Self::Config(_)
            | Self::Ticket(_)
            | Self::Manifest(_)
            | Self::Simulation(_)
            | Self::Program { .. }
            | Self::NoName(_)
            | Self::NotUtf8(_)
            | Self::Exists(_)
            | Self::NoHome => EXIT_USAGE,
            Self::Job(_) if self.code() == Some(ErrorCode::Deny) => EXIT_DENIED,
            Self::WentDown { .. } => EXIT_UNKNOWN,
            Self::Exit(code) | Self::Interrupted(code) => *code,
            // As `head` would have it: the reader has what it wanted.
            Self::Closed => 0,
            Self::Job(_)
            | Self::NoOutput(_)
            | Self::Spliced { .. }
            | Self::Missing { .. }
            | Self::Declined
            | Self::Output(_)
            | Self::Start(_)
            | Self::Show(_) => EXIT_FAILED,
        }
    }

    /// The class of error, where there is one.
    fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::Client(error) => error.code(),
            Self::Job(end) => Some(end.failed.as_ref().map_or(ErrorCode::Cancelled, |f| f.failure.code)),
            _ if self.exit_code() == EXIT_USAGE => Some(ErrorCode::Invalid),
            _ if self.exit_code() == EXIT_DENIED => Some(ErrorCode::Deny),
            _ => None,
        }
    }

    /// Whether there is nothing left to say: the program or the user spoke already.
    pub(crate) const fn is_silent(&self) -> bool {
        matches!(self, Self::Exit(_) | Self::Interrupted(_) | Self::Closed)
    }

    /// The object that `--json` prints.
    pub(crate) fn json(&self) -> Value {
        let mut error = json!({ "exit": self.exit_code(), "message": self.to_string(), "code": self.code() });
        let more = match self {
            Self::Job(end) => end.json(),
            Self::Client(ClientError::Api(error)) if error.job.is_some() => json!({ "job": error.job }),
            Self::Manifest(problems) => serde_json::to_value(problems).unwrap_or_default(),
            _ => Value::Null,
        };
        if let (Value::Object(error), Value::Object(more)) = (&mut error, more) {
            error.extend(more);
        }
        json!({ "error": error })
    }
}

/// The exit code of `sinew run` for a job that failed: the program's own where it has one.
pub(crate) fn run_exit(view: &JobView) -> u8 {
    let Some(Outcome::Failed { failure, .. }) = &view.outcome else {
        return if matches!(view.outcome, Some(Outcome::Completed)) { 0 } else { EXIT_FAILED };
    };
    match (failure.code, failure.exit) {
        (ErrorCode::Deny, _) => EXIT_DENIED,
        (ErrorCode::Exit, Some(exit)) => u8::try_from(exit).ok().filter(|code| *code != 0).unwrap_or(EXIT_FAILED),
        (ErrorCode::Exit, None) => signal(&failure.message).map_or(EXIT_FAILED, |signal| 128 + signal),
        _ => EXIT_FAILED,
    }
}

/// The signal that a failure's message names, as in `the program was killed by signal 9`.
fn signal(message: &str) -> Option<u8> {
    let (_, rest) = message.split_once("signal ")?;
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok().filter(|signal| (1..=64).contains(signal))
}

#[cfg(test)]
mod tests {
    use super::super::render::testing::{failed_view, failure, view};
    use super::*;
    use crate::api::ApiError;

    #[test]
    fn exit_codes_are_the_documented_ones() {
        let api = |error: ApiError| CliError::Client(error.into());
        let file = |kind: io::ErrorKind| CliError::File { doing: "read", path: "x".into(), source: kind.into() };
        for (error, code) in [
            (api(ApiError::failed(ErrorCode::Lost, "x")), 1),
            (api(ApiError::invalid("x")), 2),
            (api(ApiError::denied("x")), 13),
            (api(ApiError::unknown(JobId([1; 32]), "x")), EXIT_UNKNOWN),
            (CliError::Client(ClientError::Gone), 1),
            (CliError::Client(ClientError::NoDaemon { data_dir: "x".into() }), 1),
            (CliError::Client(ClientError::Denied { socket: "x".into() }), 13),
            (file(io::ErrorKind::NotFound), 2),
            (file(io::ErrorKind::IsADirectory), 2),
            (file(io::ErrorKind::PermissionDenied), 13),
            (file(io::ErrorKind::StorageFull), 1),
            (CliError::Ticket(TicketError::Damaged), 2),
            (CliError::Ticket(TicketError::Expired(1)), 13),
            (CliError::Exists("x".into()), 2),
            (CliError::NoHome, 2),
            (CliError::Declined, 1),
            (CliError::WentDown { job: JobId([1; 32]), source: ClientError::Gone }, EXIT_UNKNOWN),
            (CliError::Interrupted(EXIT_INTERRUPTED), 130),
            (CliError::Exit(77), 77),
            (CliError::Closed, 0),
        ] {
            assert_eq!(error.exit_code(), code, "{error}");
        }
    }

    #[test]
    fn a_task_gives_its_own_code_and_a_signal_128_more() {
        let exit = |code, exit, message: &str| run_exit(&failed_view(0, 0, failure(code, exit, message, "")));
        assert_eq!(exit(ErrorCode::Exit, Some(7), "the program exited with 7"), 7);
        assert_eq!(exit(ErrorCode::Exit, Some(0), "the program exited with 0"), 1);
        assert_eq!(exit(ErrorCode::Exit, Some(-1), ""), 1);
        assert_eq!(exit(ErrorCode::Exit, None, "the program was killed by signal 11"), 139);
        assert_eq!(exit(ErrorCode::Exit, None, "the program was killed by signal 4000"), 1);
        assert_eq!(exit(ErrorCode::Timeout, None, "still running, signal 9"), 1);
        assert_eq!(exit(ErrorCode::Deny, None, "no"), 13);
        let mut done = view();
        done.outcome = Some(Outcome::Completed);
        assert_eq!(run_exit(&done), 0);
        done.outcome = Some(Outcome::Cancelled);
        assert_eq!(run_exit(&done), 1);
    }

    #[test]
    fn a_failed_job_says_what_where_and_why() {
        let failed =
            failed_view(0, 17, failure(ErrorCode::Exit, Some(3), "the program exited with 3", "Trace\n\x1b[2J!"));
        let end = CliError::Job(Box::new(JobEnd::of(&failed).expect("failed")));
        let text = end.to_string();
        let node = NodeId([2; 32]).short();
        assert!(text.starts_with(&format!("E_EXIT: map chunk 17 failed on node {node}: the program exited")), "{text}");
        assert!(text.contains("\n    Trace\n") && !text.contains('\x1b'), "{text}");
        let object = &end.json()["error"];
        assert_eq!((&object["code"], &object["exit"], &object["task"]), (&json!("E_EXIT"), &json!(1), &json!(17)));
        assert_eq!((&object["phase"], &object["failure"]["exit"]), (&json!("map"), &json!(3)));
        assert!(JobEnd::of(&view()).is_none());
    }

    #[test]
    fn denied_jobs_exit_with_13_and_bad_manifests_list_their_problems() {
        let denied = failed_view(1, 0, failure(ErrorCode::Deny, None, "not allowed", ""));
        let end = CliError::Job(Box::new(JobEnd::of(&denied).expect("failed")));
        assert_eq!(end.exit_code(), 13);
        let error = sinew_crdt_state::manifest::parse(b"{\"type\": 1}", None).expect_err("invalid");
        let error = CliError::from(error);
        assert_eq!(error.exit_code(), 2);
        let object = &error.json()["error"];
        assert_eq!(object["kind"], json!("invalid"));
        assert!(object["problems"].as_array().is_some_and(|p| !p.is_empty()), "{object}");
    }
}
