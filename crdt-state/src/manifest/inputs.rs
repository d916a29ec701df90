//! The input files of a manifest.

use super::draft::{DraftFile, DraftSource};
use super::fields::{Fields, Item, stand_in};
use super::problem::{Problem, quoted};
use super::tree::Node;
use crate::ids::Hash;
use crate::object::{ObjectFile, is_object_url};
use crate::remote::{ContentHash, GitTree, HttpFile};
use crate::spec::BlobRef;

/// The keys that say where a file's content is.
const CONTENTS: [&str; 5] = ["path", "inline", "blob", "url", "git"];
/// The keys that go with one of these only.
const EXTRAS: [(&str, &[&str]); 10] = [
    ("size", &["blob"]),
    ("hash", &["url"]),
    ("size_max", &["url", "git"]),
    ("endpoint", &["url"]),
    ("region", &["url"]),
    ("account", &["url"]),
    ("credentials", &["url"]),
    ("revision", &["git"]),
    ("subdir", &["git"]),
    ("token", &["git"]),
];
/// Most bytes of a remote input when nothing is said: as much as a task may write.
const SIZE_MAX_DEFAULT: u64 = 1 << 30;
const MEND_ONE: &str = "write exactly one of path, inline, blob, url and git";

/// The files of a list.
pub(super) fn read_files(item: &Item<'_>, out: &mut Vec<Problem>) -> Vec<DraftFile> {
    let items = item.list(out).into_iter().enumerate();
    items.map(|(i, item)| read_file(i, &item, out)).collect()
}

fn read_file(i: usize, item: &Item<'_>, out: &mut Vec<Problem>) -> DraftFile {
    let stand_in = DraftFile::inline(stand_in(i), "");
    match item.node {
        Node::Text(path) => DraftFile::from_path(path.as_str()).unwrap_or_else(|| {
            let mend = "name a file, or write { path = …, to = … }";
            out.push(Problem::new(&item.path, quoted(path), "this path ends in no file name", mend));
            stand_in
        }),
        Node::Table(_) => Fields::open(item, "[]", out)
            .map_or(stand_in.clone(), |fields| read_file_table(item, &fields, stand_in, out)),
        other => {
            let mend = "write a path, or a table with path, inline, blob, url or git";
            out.push(Problem::new(&item.path, other.describe(), "not an input file", mend));
            stand_in
        }
    }
}

fn read_file_table(item: &Item<'_>, fields: &Fields<'_>, stand_in: DraftFile, out: &mut Vec<Problem>) -> DraftFile {
    let executable = fields.get("executable").and_then(|item| item.flag(out)).unwrap_or(false);
    let contents: Vec<(&str, Item<'_>)> = CONTENTS.iter().filter_map(|key| Some((*key, fields.get(key)?))).collect();
    let [(kind, content)] = &contents[..] else {
        let problem = if contents.is_empty() { "no content" } else { "more than one content" };
        out.push(Problem::new(&item.path, None, problem, MEND_ONE));
        return stand_in;
    };
    for (key, goes_with) in EXTRAS {
        if let Some(extra) = fields.get(key).filter(|_| !goes_with.contains(kind)) {
            let problem = format!("only {} has a {key}", goes_with.join(" or "));
            out.push(Problem::new(extra.path, extra.node.describe(), problem, "leave it out"));
        }
    }
    let text = content.text(out);
    let to = match (fields.get("to"), *kind, text) {
        (Some(to), ..) => to.text(out).map(str::to_owned),
        (None, "path", Some(path)) if DraftFile::from_path(path).is_some() => {
            DraftFile::from_path(path).map(|file| file.to)
        }
        // What is no text may well have ended in a name.
        (None, "path", None) => None,
        _ => {
            fields.require("to", "write the relative path at which the task finds it", out);
            None
        }
    };
    let source = text.and_then(|text| read_source(kind, text, content, fields, out));
    DraftFile { to: to.unwrap_or(stand_in.to), source: source.unwrap_or(stand_in.source), executable }
}

fn read_source(
    kind: &str,
    text: &str,
    content: &Item<'_>,
    fields: &Fields<'_>,
    out: &mut Vec<Problem>,
) -> Option<DraftSource> {
    let size_max = |out: &mut Vec<Problem>| match fields.get("size_max") {
        Some(item) => item.size(out),
        None => Some(SIZE_MAX_DEFAULT),
    };
    let url = text.to_owned();
    match kind {
        "path" => Some(DraftSource::Path(url)),
        "inline" => Some(DraftSource::Inline(url)),
        "blob" => read_blob(content, fields, out).map(DraftSource::Blob),
        "url" => {
            let hash = fields.require("hash", "write sha256: or blake3: and the content's 64 digits", out);
            let (hash, size_max) = (hash.and_then(|item| read_hash(&item, out)), size_max(out));
            let store = ObjectKeys::read(fields, out);
            if is_object_url(&url) {
                let ObjectKeys { endpoint, region, account, credentials } = store;
                let (hash, size_max) = (hash?, size_max?);
                return Some(DraftSource::Object(ObjectFile {
                    url,
                    hash,
                    size_max,
                    endpoint,
                    region,
                    account,
                    credentials,
                }));
            }
            ObjectKeys::refuse(fields, out);
            Some(DraftSource::Http(HttpFile { url, hash: hash?, size_max: size_max? }))
        }
        _ => {
            let revision = fields.require("revision", "write the commit's id, as git rev-parse HEAD prints it", out);
            let revision = revision.and_then(|item| item.text(out)).map(str::to_owned);
            let subdir = fields.get("subdir").and_then(|item| item.text(out)).map(str::to_owned);
            let token = fields.get("token").and_then(|item| item.text(out)).map(str::to_owned);
            let size_max = size_max(out);
            Some(DraftSource::Git(GitTree { url, revision: revision?, subdir, token, size_max: size_max? }))
        }
    }
}

/// What goes with an object's address only.
struct ObjectKeys {
    endpoint: Option<String>,
    region: Option<String>,
    account: Option<String>,
    credentials: Option<String>,
}

impl ObjectKeys {
    const NAMES: [&str; 4] = ["endpoint", "region", "account", "credentials"];

    fn read(fields: &Fields<'_>, out: &mut Vec<Problem>) -> Self {
        let [endpoint, region, account, credentials] =
            Self::NAMES.map(|key| fields.get(key).and_then(|item| item.text(out)).map(str::to_owned));
        Self { endpoint, region, account, credentials }
    }

    fn refuse(fields: &Fields<'_>, out: &mut Vec<Problem>) {
        for key in Self::NAMES {
            if let Some(item) = fields.get(key) {
                let problem = format!("only an object store has a {key}");
                let mend = "leave it out, or write an s3://, az:// or gs:// address";
                out.push(Problem::new(item.path, item.node.describe(), problem, mend));
            }
        }
    }
}

fn read_hash(item: &Item<'_>, out: &mut Vec<Problem>) -> Option<ContentHash> {
    let text = item.text(out)?;
    let noted = |_| {
        let mend = "write sha256: or blake3: and 64 hexadecimal digits";
        out.push(Problem::new(&item.path, quoted(text), "not the hash of a content", mend));
    };
    text.parse().map_err(noted).ok()
}

fn read_blob(item: &Item<'_>, fields: &Fields<'_>, out: &mut Vec<Problem>) -> Option<BlobRef> {
    let hash = item.text(out).and_then(|text| {
        let noted = |_| {
            let mend = "copy the hash whole: 52 lower-case letters and digits 2-7, or 64 hexadecimal digits";
            out.push(Problem::new(&item.path, quoted(text), "not a blob's hash", mend));
        };
        text.parse::<Hash>().map_err(noted).ok()
    });
    let size = fields.require("size", "write the blob's size in bytes", out).and_then(|item| item.size(out));
    Some(BlobRef { hash: hash?, size: size? })
}
