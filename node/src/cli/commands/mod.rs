//! What each subcommand does, and what several of them share: absolute paths, target directories, submitting, fetching.

pub(super) mod blobs;
mod fetched;
pub(super) mod jobs;
pub(super) mod map_reduce;
pub(super) mod node;
pub(super) mod output;
pub(super) mod pages;
pub(super) mod run;
pub(super) mod secrets;
pub(super) mod sim;

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use sinew_crdt_state::ids::JobId;
use sinew_crdt_state::manifest::{DraftFile, JobDraft, ManifestError};

use self::fetched::fetch;
use super::App;
use super::error::CliError;
use super::watch::Intake;
use crate::api::Request;
use crate::api::client::Taken;

/// How long an interrupted command waits for the daemon before it ends all the same: a person waits too.
const TIDY_UP_MAX: Duration = Duration::from_secs(5);

/// Makes the error of a file operation that failed.
fn file_error(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CliError {
    let path = path.to_owned();
    move |source| CliError::File { doing, path, source }
}

/// `path` from the root on, as the daemon needs it, in text, as JSON needs it.
fn absolute(path: &Path) -> Result<String, CliError> {
    let absolute = std::path::absolute(path).map_err(file_error("find", path))?;
    absolute.into_os_string().into_string().map_err(|_| CliError::NotUtf8(path.to_owned()))
}

/// Local paths as files for tasks, each under its own name. They must be there.
fn draft_files(paths: &[PathBuf]) -> Result<Vec<DraftFile>, CliError> {
    let file = |path: &PathBuf| {
        std::fs::metadata(path).map_err(file_error("read", path))?;
        DraftFile::from_path(absolute(path)?).ok_or_else(|| CliError::NoName(path.clone()))
    };
    paths.iter().map(file).collect()
}

/// Refuses a target that is no directory, or one with something in it unless `yes`.
fn check_target(out: &Path, yes: bool) -> Result<(), CliError> {
    match std::fs::read_dir(out) {
        Ok(mut entries) => {
            let free = yes || entries.next().is_none();
            if free { Ok(()) } else { Err(CliError::Exists(out.to_owned())) }
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(CliError::File { doing: "write into", path: out.to_owned(), source }),
    }
}

/// Submits a draft with absolute paths and returns once the job is accepted. A signal that comes before that cancels it.
async fn submit(app: &mut App, draft: JobDraft) -> Result<Taken, CliError> {
    draft.check().map_err(|problems| ManifestError::Invalid { problems })?;
    let mut intake = Intake::new(app.ui);
    let client = app.client.clone();
    let submitting = client.submit_told(draft, |what, done, total| intake.see(what, done, total));
    tokio::pin!(submitting);
    tokio::select! {
        taken = &mut submitting => {
            let taken = taken?;
            if let Some(alone) = taken.alone {
                let text = "the job rests on this node alone until others are back";
                app.ui.note(&format!("warning: {alone}: {text}"));
            }
            Ok(taken)
        }
        code = app.interrupts.first() => {
            // It may be accepted at this very moment: then it must not run on without anyone who knows its id.
            if let Ok(Ok(taken)) = tokio::time::timeout(TIDY_UP_MAX, &mut submitting).await {
                cancel_quietly(app, taken.job).await;
            }
            Err(CliError::Interrupted(code))
        }
    }
}

/// The object that says that a job is taken.
fn submitted(taken: Taken) -> Value {
    let mut object = json!({ "event": "submitted", "job": taken.job });
    if let Some(alone) = taken.alone {
        object["alone"] = json!(alone);
    }
    object
}

/// What to say of an error that ended the wait for a job: without its daemon the job may go on all the same.
fn gone_down(job: JobId, error: CliError) -> CliError {
    use crate::api::client::ClientError::{Broken, Connect, Gone, NoDaemon};
    match error {
        CliError::Client(source @ (NoDaemon { .. } | Broken(_) | Gone | Connect { .. })) => {
            CliError::WentDown { job, source }
        }
        other => other,
    }
}

/// Cancels a job whose waiting command was interrupted, and says so.
async fn cancel_quietly(app: &App, job: JobId) {
    let reason = "its command was interrupted".to_owned();
    let request = Request::Cancel { job: job.to_string(), reason };
    let said = match tokio::time::timeout(TIDY_UP_MAX, app.client.act(&request)).await {
        Ok(Ok(())) => format!("cancelled job {}", job.short()),
        Ok(Err(error)) => format!("job {} was not cancelled: {error}", job.short()),
        Err(_) => format!("job {} may go on: its cancel is not decided yet; `sinew job {}`", job.short(), job.short()),
    };
    app.ui.note(&said);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_new_or_empty_unless_one_says_yes() {
        let dir = tempfile::tempdir().expect("dir");
        check_target(&dir.path().join("new"), false).expect("new");
        check_target(dir.path(), false).expect("empty");
        let file = dir.path().join("x");
        std::fs::write(&file, "x").expect("write");
        assert!(matches!(check_target(dir.path(), false), Err(CliError::Exists(_))));
        check_target(dir.path(), true).expect("yes");
        assert!(matches!(check_target(&file, true), Err(CliError::File { .. })));
    }

    #[test]
    fn files_of_tasks_are_there_and_have_a_name() {
        let dir = tempfile::tempdir().expect("dir");
        let file = dir.path().join("x.py");
        let error = draft_files(std::slice::from_ref(&file)).expect_err("missing");
        assert_eq!(error.exit_code(), 2);
        std::fs::write(&file, "x").expect("write");
        assert_eq!(draft_files(&[file]).expect("there")[0].to, "x.py");
        assert!(matches!(draft_files(&["/".into()]), Err(CliError::NoName(_))));
    }
}
