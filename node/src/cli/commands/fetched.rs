//! What a job's outputs became on this machine, and how that is told.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::super::error::CliError;
use super::super::human::clean;
use super::super::{App, render};
use super::{absolute, file_error};
use crate::api::client::ClientError;
use crate::api::{Reply, Request};

/// Things left out that are named one by one; the rest is counted.
const NAMED_MAX: usize = 10;

/// What was written.
#[derive(Debug, Default)]
pub(super) struct Fetched {
    /// Files and their bytes.
    pub(super) files: Vec<(PathBuf, u64)>,
    /// Symbolic links and where they lead.
    pub(super) links: Vec<(PathBuf, PathBuf)>,
    /// Empty directories.
    pub(super) directories: Vec<PathBuf>,
    /// What was not kept when the task ended, and what it is.
    pub(super) left_out: Vec<(String, String)>,
}

/// Writes a job's outputs into `out`, made if need be.
pub(super) async fn fetch(app: &App, job: &str, out: &Path) -> Result<Fetched, CliError> {
    let out = PathBuf::from(absolute(out)?);
    std::fs::create_dir_all(&out).map_err(file_error("create", &out))?;
    let mut replies = app.client.ask(&Request::Get { job: job.to_owned(), out }).await?;
    let mut fetched = Fetched::default();
    while let Some(reply) = replies.next().await? {
        match reply {
            Reply::File { path, size } => fetched.files.push((path, size)),
            Reply::Link { path, target } => fetched.links.push((path, target)),
            Reply::Directory { path } => fetched.directories.push(path),
            Reply::LeftOut { task, name, what } => {
                let name = task.map_or_else(|| name.clone(), |task| format!("output/{name} of task {task}"));
                fetched.left_out.push((name, what));
            }
            _ => return Err(ClientError::OtherReply.into()),
        }
    }
    Ok(fetched)
}

impl Fetched {
    /// Everything that was written, wherever it is.
    pub(super) fn paths(&self) -> impl Iterator<Item = &PathBuf> {
        self.files.iter().map(|(path, _)| path).chain(self.links.iter().map(|(path, _)| path)).chain(&self.directories)
    }

    /// One sentence.
    pub(super) fn text(&self, out: &str) -> String {
        render::files(&self.files, out)
    }

    pub(super) fn json(&self) -> Value {
        let files: Vec<Value> = self.files.iter().map(|(path, size)| json!({ "path": path, "size": size })).collect();
        let mut object = json!({ "files": files });
        if !self.links.is_empty() {
            let link = |(path, target): &(PathBuf, PathBuf)| json!({ "path": path, "target": target });
            object["links"] = self.links.iter().map(link).collect();
        }
        if !self.directories.is_empty() {
            object["directories"] = json!(self.directories);
        }
        if !self.left_out.is_empty() {
            object["left_out"] = left_out_json(&self.left_out);
        }
        object
    }

    /// Says what is missing, for people.
    pub(super) fn warn(&self, app: &App) {
        warn(app, &self.left_out);
    }
}

pub(super) fn left_out_json(left_out: &[(String, String)]) -> Value {
    left_out.iter().map(|(name, what)| json!({ "name": name, "what": what })).collect()
}

/// Says what was left out, unless it is in the JSON.
pub(super) fn warn(app: &App, left_out: &[(String, String)]) {
    if app.ui.json {
        return;
    }
    for (name, what) in left_out.iter().take(NAMED_MAX) {
        app.ui.note(&format!("left out: {} is {}", clean(name), clean(what)));
    }
    if left_out.len() > NAMED_MAX {
        app.ui.note(&format!("left out: {} more; --json names all", left_out.len() - NAMED_MAX));
    }
}
