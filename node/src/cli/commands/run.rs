//! `sinew run`: one task somewhere in the mesh that feels like one here: its output, its exit code, Ctrl-C.

use std::path::{Component, Path, PathBuf};

use serde_json::json;
use sinew_crdt_state::error_code::ErrorCode;
use sinew_crdt_state::ids::JobId;
use sinew_crdt_state::manifest::{DraftWork, JobDraft, plain_output, program_from_argv};
use sinew_crdt_state::spec::Resources;
use sinew_scheduler::view::JobView;

use super::super::args::RunArgs;
use super::super::error::{CliError, JobEnd, run_exit};
use super::super::watch::{Say, watch};
use super::super::{App, render};
use super::output::Output;
use super::{cancel_quietly, draft_files, fetch, file_error, gone_down, submit, submitted};
use crate::api::Request;
use crate::api::client::{ClientError, Taken};

/// 128 + SIGPIPE: what a shell reports of a program that nobody reads any more.
const EXIT_UNREAD: u8 = 141;

pub(crate) async fn run(app: &mut App, args: RunArgs) -> Result<u8, CliError> {
    let here = Path::new(".");
    if let Some(there) =
        args.output.iter().map(|path| here.join(plain_output(path))).find(|path| path.exists() && !args.yes)
    {
        return Err(CliError::Exists(there));
    }
    let taken = submit(app, draft(&args)?).await?;
    let job = taken.job;
    say_submitted(app, taken)?;
    let mut interrupts = app.interrupts.clone();
    let (view, whole) = match interrupts.or(follow(app, job, args.retries > 0)).await {
        Ok(followed) => followed,
        Err(error) => return Err(stop(app, job, error).await),
    };
    let exit = run_exit(&view);
    if view.outcome.is_some() && exit == 0 && !args.output.is_empty() {
        interrupts.or(collect(app, job, &args.output)).await?;
    }
    say_ended(app, &view, exit)?;
    match whole {
        Ok(()) => Ok(exit),
        Err(error) if exit == 0 => Err(error),
        Err(error) => {
            if !app.ui.json {
                app.ui.fail(&error);
            }
            Ok(exit)
        }
    }
}

pub(crate) fn draft(args: &RunArgs) -> Result<JobDraft, CliError> {
    let program = program_from_argv(args.command.clone());
    let mut draft = JobDraft::batch(program.map_err(|source| CliError::Program { flag: "CMD", source })?);
    draft.name.clone_from(&args.name);
    draft.key.clone_from(&args.key);
    draft.resources = Resources { cpu_milli: args.cpus, memory_bytes: args.memory, disk_bytes: args.disk };
    draft.limits.timeout_ms = args.timeout;
    // What a task reserves it may use.
    let reserved = (args.disk > 0).then_some(args.disk);
    draft.limits.output_bytes_max = args.output_max.or(reserved).unwrap_or(draft.limits.output_bytes_max);
    draft.retry.attempts = args.retries;
    draft.env.extend(args.env.iter().cloned());
    draft.labels.extend(args.label.iter().cloned());
    if let DraftWork::Batch(batch) = &mut draft.work {
        batch.inputs = draft_files(&args.input)?;
        batch.outputs.clone_from(&args.output);
    }
    Ok(draft)
}

fn say_submitted(app: &App, taken: Taken) -> Result<(), CliError> {
    if app.ui.json {
        app.ui.object(&submitted(taken))?;
    } else if app.ui.verbose > 0 {
        app.ui.note(&format!("job {}", taken.job));
    }
    Ok(())
}

/// Passes the output on, live, until the job has ended; says how, and whether the output is whole.
async fn follow(app: &App, job: JobId, again: bool) -> Result<(JobView, Result<(), CliError>), CliError> {
    let mut output = Output::new(app.ui, again);
    let mut replies =
        app.client.ask(&Request::Logs { job: job.to_string(), task: None, attempt: None, follow: true }).await?;
    let whole = loop {
        match replies.next().await {
            Ok(Some(reply)) => output.take(reply)?,
            Ok(None) => break output.finish(job),
            // Output that is lost does not change how the task ended.
            Err(error @ ClientError::Api(_)) => break Err(error.into()),
            Err(error) => return Err(error.into()),
        }
    };
    let whole = match whole {
        // That nobody reads, or it cannot be written, says nothing of the output.
        Err(error @ (CliError::Closed | CliError::Output(_))) => return Err(error),
        whole => whole,
    };
    Ok((watch(&app.client, app.ui, &job.to_string(), Say::Nothing).await?, whole))
}

/// Ends the job of a command that ends early: by a signal, or because nobody reads it.
async fn stop(app: &App, job: JobId, error: CliError) -> CliError {
    match error {
        CliError::Interrupted(_) => {
            cancel_quietly(app, job).await;
            error
        }
        CliError::Closed => {
            cancel_quietly(app, job).await;
            CliError::Exit(EXIT_UNREAD)
        }
        other => gone_down(job, other),
    }
}

/// Says how it ended, unless the program has said it with its own exit code and output.
fn say_ended(app: &App, view: &JobView, exit: u8) -> Result<(), CliError> {
    let end = JobEnd::of(view);
    if app.ui.json {
        let state = render::outcome_word(view);
        let failed = end.and_then(|end| end.failed);
        let (node, failure) = failed.map(|f| (f.node, f.failure)).unzip();
        let object =
            json!({ "event": "ended", "job": view.id, "state": state, "exit": exit, "node": node, "failure": failure });
        return app.ui.object(&object);
    }
    if let Some(mut end) = end {
        let own_exit = |code, exit: Option<i32>| code == ErrorCode::Exit && exit.is_some();
        if end.failed.as_ref().is_some_and(|f| own_exit(f.failure.code, f.failure.exit)) {
            return Ok(());
        }
        if let Some(failed) = &mut end.failed {
            // It was on this stderr already.
            failed.failure.stderr_tail.clear();
        }
        app.ui.fail(&CliError::Job(Box::new(end)));
    }
    Ok(())
}

/// Brings the wanted outputs into the current directory: all of them, or an error.
async fn collect(app: &App, job: JobId, wanted: &[String]) -> Result<(), CliError> {
    let here = PathBuf::from(super::absolute(Path::new("."))?);
    // Beside where they go, so that each arrives with one rename.
    let dir = tempfile::Builder::new().prefix(".sinew-").tempdir_in(&here).map_err(file_error("write into", &here))?;
    let fetched = fetch(app, &job.to_string(), dir.path()).await?;
    for wanted in wanted {
        let wanted = plain_output(wanted);
        let mut found = false;
        for path in fetched.paths() {
            let Some(to) = path.strip_prefix(dir.path()).ok().filter(|p| is_within(p, Path::new(&wanted))) else {
                continue;
            };
            place(path, &here.join(to), &here)?;
            found = true;
        }
        if !found {
            return Err(CliError::NoOutput(wanted));
        }
    }
    fetched.warn(app);
    Ok(())
}

/// Moves a file or a link to its place. A directory, which is empty, is made there.
fn place(path: &Path, to: &Path, here: &Path) -> Result<(), CliError> {
    if path.symlink_metadata().is_ok_and(|meta| meta.is_dir()) {
        return std::fs::create_dir_all(to).map_err(file_error("create", to));
    }
    let parent = to.parent().unwrap_or(here);
    std::fs::create_dir_all(parent).map_err(file_error("create", parent))?;
    std::fs::rename(path, to).map_err(file_error("write", to))
}

/// Whether `path` is `wanted`, or a file below it. The names come from a peer: nothing but plain parts is let through.
fn is_within(path: &Path, wanted: &Path) -> bool {
    path.starts_with(wanted) && path.components().all(|part| matches!(part, Component::Normal(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outputs_are_matched_by_whole_names() {
        let within = |path: &str, wanted: &str| is_within(Path::new(path), Path::new(wanted));
        assert!(within("result.json", "result.json") && within("dir/a/b", "dir"));
        assert!(!within("result.json.bak", "result.json") && !within("stdout", "result.json"));
        assert!(!within("dir/../../x", "dir"));
    }
}
