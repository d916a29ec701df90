//! Jobs that are there: list, show, logs, wait, cancel, get; and `submit`.

use std::io::Read;
use std::path::{Path, PathBuf};

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use serde::Serialize;
use serde_json::{Value, json};
use sinew_crdt_state::manifest::{Format, MANIFEST_LEN_MAX, parse};
use sinew_crdt_state::state::Event;
use sinew_scheduler::view::JobView;

use super::super::error::{CliError, EXIT_FAILED, JobEnd};
use super::super::watch::{Say, watch};
use super::super::{App, render};
use super::output::Output;
use super::{absolute, check_target, fetch, file_error};
use crate::api::Request;
use crate::api::client::Taken;
use crate::clock::unix_ms;

/// A job with its history, as `sinew job --json` prints it.
#[derive(Serialize)]
struct JobPage<'a> {
    #[serde(flatten)]
    view: &'a JobView,
    timeline: &'a [Event],
}

pub(crate) async fn list(app: &App, limit: usize) -> Result<(), CliError> {
    let jobs = app.client.jobs(limit).await?;
    app.ui.show(&json!({ "jobs": jobs }), || render::jobs(&jobs, unix_ms()))
}

pub(crate) async fn show(app: &App, job: &str) -> Result<(), CliError> {
    let (view, timeline) = app.client.job(job).await?;
    let page = JobPage { view: &view, timeline: &timeline };
    app.ui.show(&page, || render::job(&view, &timeline, unix_ms(), app.ui.verbose > 0))
}

pub(crate) async fn logs(
    app: &App,
    job: &str,
    (task, attempt): (Option<u32>, Option<u32>),
    follow: bool,
) -> Result<(), CliError> {
    let (view, _) = app.client.job(job).await?;
    let job = view.id;
    let mut output = Output::new(app.ui, false);
    let mut replies = app.client.ask(&Request::Logs { job: job.to_string(), task, attempt, follow }).await?;
    while let Some(reply) = replies.next().await? {
        output.take(reply)?;
    }
    output.finish(job)
}

/// Waits for all of them; says of each how it ended as soon as it does.
pub(crate) async fn wait(app: &App, jobs: &[String]) -> Result<u8, CliError> {
    // Bars for several jobs at once would fight for the terminal.
    let say = if jobs.len() == 1 && app.ui.draws() { Say::Progress } else { Say::Nothing };
    let mut waiting: FuturesUnordered<_> = jobs.iter().map(|job| watch(&app.client, app.ui, job, say)).collect();
    let mut exit = 0;
    while let Some(view) = waiting.next().await {
        let view = view?;
        let end = JobEnd::of(&view).map(|end| CliError::Job(Box::new(end)));
        let mut object = json!({ "job": view.id, "state": render::outcome_word(&view) });
        if let (Some(end), Value::Object(object)) = (&end, &mut object) {
            object.insert("error".to_owned(), end.json()["error"].clone());
        }
        app.ui.show(&object, || format!("{} {}\n", view.id, render::outcome_word(&view)))?;
        if let Some(end) = end {
            exit = EXIT_FAILED;
            if !app.ui.json {
                app.ui.fail(&end);
            }
        }
    }
    Ok(exit)
}

pub(crate) async fn cancel(app: &App, job: &str, reason: &str, yes: bool) -> Result<(), CliError> {
    let (view, _) = app.client.job(job).await?;
    app.ui.confirm(&format!("Cancel job {}?", view.id.short()), yes)?;
    app.client.act(&Request::Cancel { job: view.id.to_string(), reason: reason.to_owned() }).await?;
    app.ui.show(&json!({ "job": view.id, "cancelled": true }), || format!("cancelled {}\n", view.id))
}

pub(crate) async fn get(app: &App, job: &str, out: Option<PathBuf>, yes: bool) -> Result<(), CliError> {
    let (view, _) = app.client.job(job).await?;
    let out = out.unwrap_or_else(|| PathBuf::from(format!("sinew-{}", view.id.short())));
    check_target(&out, yes)?;
    let fetched = fetch(app, &view.id.to_string(), &out).await?;
    app.ui.show(&fetched.json(), || format!("{}\n", fetched.text(&out.display().to_string())))?;
    fetched.warn(app);
    Ok(())
}

pub(crate) async fn submit(app: &mut App, manifest: &Path, key: Option<String>) -> Result<u8, CliError> {
    let bytes = read_manifest(manifest)?;
    let mut draft = parse(&bytes, Format::of_path(manifest))?;
    let base = if is_stdin(manifest) { Path::new("") } else { manifest.parent().unwrap_or(Path::new("")) };
    let here = Path::new(".").join(base);
    draft.anchor_paths(&absolute(&here)?);
    draft.key = key.or(draft.key);
    let Taken { job, alone } = super::submit(app, draft).await?;
    let mut object = json!({ "job": job });
    if let Some(alone) = alone {
        object["alone"] = json!(alone);
    }
    app.ui.show(&object, || format!("{job}\n"))?;
    Ok(0)
}

fn is_stdin(manifest: &Path) -> bool {
    manifest == Path::new("-")
}

/// The manifest's bytes; of an oversized one just enough to see that it is.
fn read_manifest(manifest: &Path) -> Result<Vec<u8>, CliError> {
    let mut bytes = Vec::new();
    let most = MANIFEST_LEN_MAX as u64 + 1;
    let read = if is_stdin(manifest) {
        std::io::stdin().lock().take(most).read_to_end(&mut bytes)
    } else {
        std::fs::File::open(manifest).and_then(|file| file.take(most).read_to_end(&mut bytes))
    };
    read.map_err(file_error("read", manifest))?;
    Ok(bytes)
}
