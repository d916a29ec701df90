//! `sinew map-reduce`: submits a round, shows how it goes, and brings the result into a directory.

use std::path::Path;

use serde_json::json;
use sinew_crdt_state::ids::JobId;
use sinew_crdt_state::manifest::{DraftProgram, DraftWork, JobDraft, program_from_text};
use sinew_crdt_state::spec::Resources;

use super::super::App;
use super::super::args::MapReduceArgs;
use super::super::error::{CliError, JobEnd};
use super::super::human::span;
use super::super::watch::{Say, watch};
use super::{absolute, cancel_quietly, check_target, draft_files, fetch, file_error, gone_down, submit, submitted};
use crate::clock::unix_ms;

pub(crate) async fn map_reduce(app: &mut App, args: MapReduceArgs) -> Result<u8, CliError> {
    check_target(&args.out, args.yes)?;
    let started_ms = unix_ms();
    let taken = submit(app, draft(&args)?).await?;
    let job = taken.job;
    if app.ui.json {
        app.ui.object(&submitted(taken))?;
    } else {
        app.ui.note(&format!("job {job}"));
    }
    let mut interrupts = app.interrupts.clone();
    match interrupts.or(finish(app, job, &args, started_ms)).await {
        Ok(()) => Ok(0),
        Err(error) => {
            // A progress line that nobody reads is no reason to stop; a result that nobody waits for is.
            if matches!(error, CliError::Interrupted(_)) {
                cancel_quietly(app, job).await;
            }
            Err(gone_down(job, error))
        }
    }
}

pub(crate) fn draft(args: &MapReduceArgs) -> Result<JobDraft, CliError> {
    let mut inputs = Vec::with_capacity(args.input.len());
    for path in &args.input {
        std::fs::metadata(path).map_err(file_error("read", path))?;
        inputs.push(absolute(path)?);
    }
    let mut draft = JobDraft::map_reduce(inputs, program("--map", &args.map)?, program("--reduce", &args.reduce)?);
    if let DraftWork::MapReduce(round) = &mut draft.work {
        round.split = args.split;
        round.combine = args.combine.as_deref().map(|text| program("--combine", text)).transpose()?;
        round.partitions = args.partitions;
        round.files = draft_files(&args.file)?;
    }
    draft.name.clone_from(&args.name);
    draft.key.clone_from(&args.key);
    draft.resources = Resources { cpu_milli: args.cpus, memory_bytes: args.memory, disk_bytes: args.disk };
    draft.limits.timeout_ms = args.timeout;
    // What a task reserves it may use.
    let reserved = (args.disk > 0).then_some(args.disk);
    draft.limits.output_bytes_max = args.output_max.or(reserved).unwrap_or(draft.limits.output_bytes_max);
    draft.env.extend(args.env.iter().cloned());
    draft.labels.extend(args.label.iter().cloned());
    Ok(draft)
}

fn program(flag: &'static str, text: &str) -> Result<DraftProgram, CliError> {
    program_from_text(text).map_err(|source| CliError::Program { flag, source })
}

async fn finish(app: &App, job: JobId, args: &MapReduceArgs, started_ms: u64) -> Result<(), CliError> {
    let view = watch(&app.client, app.ui, &job.to_string(), Say::Progress).await?;
    if let Some(end) = JobEnd::of(&view) {
        return Err(CliError::Job(Box::new(end)));
    }
    remove_old_parts(&args.out)?;
    let fetched = fetch(app, &job.to_string(), &args.out).await?;
    let took_ms = unix_ms().saturating_sub(started_ms);
    let mut object = fetched.json();
    object["event"] = json!("completed");
    object["job"] = json!(job);
    object["took_ms"] = json!(took_ms);
    app.ui.show(&object, || {
        let nodes = view.shares.iter().filter(|share| share.done.iter().any(|n| *n > 0)).count();
        let files = fetched.text(&args.out.display().to_string());
        format!("{files}, after {} on {nodes} node{}\n", span(took_ms), super::super::human::plural(nodes))
    })
}

/// An earlier result with more partitions would leave parts that look like this one's. Nothing else is touched.
fn remove_old_parts(out: &Path) -> Result<(), CliError> {
    let Ok(entries) = std::fs::read_dir(out) else { return Ok(()) };
    for entry in entries.filter_map(Result::ok) {
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix("part-"));
        let is_part = number.is_some_and(|n| n.len() == 5 && n.bytes().all(|b| b.is_ascii_digit()));
        if is_part && entry.file_type().is_ok_and(|t| t.is_file()) {
            std::fs::remove_file(entry.path()).map_err(file_error("replace", &entry.path()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_parts_of_an_earlier_result_are_replaced() {
        let dir = tempfile::tempdir().expect("dir");
        for name in ["part-00000", "part-00017", "part-1", "part-0000x", "notes.txt"] {
            std::fs::write(dir.path().join(name), "x").expect("write");
        }
        std::fs::create_dir(dir.path().join("part-00001")).expect("mkdir");
        remove_old_parts(dir.path()).expect("removed");
        let mut left: Vec<_> =
            std::fs::read_dir(dir.path()).expect("dir").map(|e| e.expect("entry").file_name()).collect();
        left.sort();
        assert_eq!(left, ["notes.txt", "part-00001", "part-0000x", "part-1"]);
        remove_old_parts(&dir.path().join("none")).expect("nothing to do");
    }
}
