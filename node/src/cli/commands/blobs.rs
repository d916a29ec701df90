//! `sinew blob`: add, get, warm, ls, tag, untag, rm.

use std::path::{Path, PathBuf};

use serde_json::json;
use sinew_crdt_state::ids::Hash;

use super::super::error::CliError;
use super::super::human::{clean, size};
use super::super::{App, render};
use super::fetched::{left_out_json, warn};
use super::{absolute, file_error};
use crate::api::client::ClientError;
use crate::api::{Reply, Request};

pub(crate) async fn add(app: &App, path: &Path) -> Result<(), CliError> {
    std::fs::metadata(path).map_err(file_error("read", path))?;
    let mut replies = app.client.ask(&Request::BlobAdd { path: absolute(path)?.into() }).await?;
    let (mut added, mut left_out) = (None, Vec::new());
    while let Some(reply) = replies.next().await? {
        match reply {
            Reply::Blob { hash, size, tags } => added = Some((hash, size, tags)),
            Reply::LeftOut { name, what, .. } => left_out.push((name, what)),
            _ => return Err(ClientError::OtherReply.into()),
        }
    }
    let (hash, bytes, tags) = added.ok_or(ClientError::OtherReply)?;
    let mut object = json!({ "hash": hash, "size": bytes, "tags": tags });
    if !left_out.is_empty() {
        object["left_out"] = left_out_json(&left_out);
    }
    app.ui.show(&object, || format!("{hash}\n"))?;
    if app.ui.verbose > 0 && !app.ui.json {
        app.ui.note(&format!("{}, named {}", size(bytes), clean(&tags.join(" "))));
    }
    warn(app, &left_out);
    Ok(())
}

pub(crate) async fn get(app: &App, hash: Hash, out: &Path, yes: bool) -> Result<(), CliError> {
    if out.exists() && (!yes || out.is_dir()) {
        return Err(CliError::Exists(out.to_owned()));
    }
    // What is there is replaced only once the new content is whole.
    let out = PathBuf::from(absolute(out)?);
    let parent = out.parent().unwrap_or(Path::new("/"));
    let part =
        tempfile::Builder::new().prefix(".sinew-").tempdir_in(parent).map_err(file_error("write into", parent))?;
    let whole = part.path().join("blob");
    let mut replies = app.client.ask(&Request::BlobGet { hash, out: whole.clone() }).await?;
    let mut bytes = 0;
    while let Some(reply) = replies.next().await? {
        let Reply::File { size, .. } = reply else { return Err(ClientError::OtherReply.into()) };
        bytes = size;
    }
    std::fs::rename(&whole, &out).map_err(file_error("write", &out))?;
    app.ui.show(&json!({ "path": out, "size": bytes }), || format!("{} in {}\n", size(bytes), out.display()))
}

pub(crate) async fn warm(app: &App, hash: Hash) -> Result<(), CliError> {
    let here = blobs(app, &Request::BlobWarm { hash }).await?;
    let (_, bytes, _) = here.into_iter().next().ok_or(ClientError::OtherReply)?;
    app.ui.show(&json!({ "hash": hash, "size": bytes }), || format!("{} here\n", size(bytes)))
}

pub(crate) async fn remove(app: &App, hash: Hash, yes: bool) -> Result<(), CliError> {
    app.ui.confirm(&format!("Remove blob {hash} and its names from this node?"), yes)?;
    let mut replies = app.client.ask(&Request::BlobRemove { hash }).await?;
    while let Some(reply) = replies.next().await? {
        let Reply::Removed { tags, gone } = reply else { return Err(ClientError::OtherReply.into()) };
        let object = json!({ "hash": hash, "untagged": tags, "removed": gone });
        let kept = "its names are removed; it stays for as long as something else keeps it, such as a job\n";
        app.ui.show(&object, || if gone { "removed\n" } else { kept }.to_owned())?;
    }
    Ok(())
}

pub(crate) async fn list(app: &App) -> Result<(), CliError> {
    let all = blobs(app, &Request::BlobList).await?;
    let objects: Vec<_> =
        all.iter().map(|(hash, size, tags)| json!({ "hash": hash, "size": size, "tags": tags })).collect();
    app.ui.show(&json!({ "blobs": objects }), || render::blobs(&all, app.ui.verbose > 0))
}

pub(crate) async fn tag(app: &App, name: &str, hash: Hash) -> Result<(), CliError> {
    app.client.act(&Request::BlobTag { name: name.to_owned(), hash }).await?;
    app.ui.show(&json!({ "name": name, "hash": hash }), || format!("{} is {hash}\n", clean(name)))
}

pub(crate) async fn untag(app: &App, name: &str, yes: bool) -> Result<(), CliError> {
    app.ui.confirm(&format!("Remove the name {}? Its blob may then be collected.", clean(name)), yes)?;
    app.client.act(&Request::BlobUntag { name: name.to_owned() }).await?;
    app.ui.show(&json!({ "untagged": name }), || format!("{} is no name any more\n", clean(name)))
}

async fn blobs(app: &App, request: &Request) -> Result<Vec<(Hash, u64, Vec<String>)>, CliError> {
    let mut replies = app.client.ask(request).await?;
    let mut all = Vec::new();
    while let Some(reply) = replies.next().await? {
        let Reply::Blob { hash, size, tags } = reply else { return Err(ClientError::OtherReply.into()) };
        all.push((hash, size, tags));
    }
    Ok(all)
}
