//! Image archives as `docker save` writes them, checked before any engine sees them, and written anew without the names in them:
//! an engine that loads the result gains an image, and no tag of its host changes.
//!
//! Nothing of an archive is passed on but the bytes of one configuration and its layers, under names chosen here.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Component, Path};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use sinew_crdt_state::error_code::ErrorCode;

use crate::exec::outcome::Failure;

/// Longest `manifest.json` and configuration: real ones have a few KB.
const JSON_LEN_MAX: u64 = 4 << 20;
/// Files in an archive: three for each layer, and engines take 127 layers.
const FILES_MAX: usize = 4_096;
/// Files in one layer, and bytes of all unpacked layers together: what a large image has, several times over. An engine's disk
/// belongs to others too.
const LAYER_FILES_MAX: u64 = 4_000_000;
const UNPACKED_MAX: u64 = 64 << 30;

/// An image in an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Archived {
    /// `sha256:…` of its configuration.
    pub(super) id: String,
    /// Hashes of its unpacked layers, lowest first.
    pub(super) diff_ids: Vec<String>,
    config: Vec<u8>,
    layers: Vec<Span>,
}

/// Where in the archive a file's bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Span {
    at: u64,
    len: u64,
}

/// One image of `manifest.json`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ManifestEntry {
    config: String,
    layers: Vec<String>,
}

/// The part of an image's configuration that says what its layers are.
#[derive(Debug, Deserialize)]
struct Config {
    rootfs: RootFs,
}

#[derive(Debug, Deserialize)]
struct RootFs {
    diff_ids: Vec<String>,
}

/// What an archive's names stand for.
#[derive(Debug, Default)]
struct Names {
    files: BTreeMap<String, Span>,
    /// Older engines save a layer that occurs twice as a link.
    links: BTreeMap<String, String>,
}

fn bad(what: impl std::fmt::Display) -> Failure {
    Failure::new(ErrorCode::Invalid, format!("the image's archive {what}; make it with `docker save IMAGE`")).for_good()
}

fn unreadable(error: &io::Error) -> Failure {
    bad(format!("is no tar file that can be read ({error})"))
}

/// Reads an archive and checks it.
///
/// # Errors
/// `E_INVALID` with what is wrong with it.
pub(super) fn open(path: &Path) -> Result<Archived, Failure> {
    let mut file = File::open(path).map_err(|e| Failure::storage("open the image's archive", &e))?;
    let names = names(&mut file)?;
    let manifest = names.json(&mut file, "manifest.json")?;
    let mut images: Vec<ManifestEntry> =
        serde_json::from_slice(&manifest).map_err(|e| bad(format!("has a malformed manifest.json ({e})")))?;
    let (Some(image), true) = (images.pop(), images.is_empty()) else {
        return Err(bad("does not hold exactly one image"));
    };
    let config = names.json(&mut file, &image.config)?;
    let parsed: Config =
        serde_json::from_slice(&config).map_err(|e| bad(format!("has a malformed configuration ({e})")))?;
    let diff_ids = parsed.rootfs.diff_ids;
    if diff_ids.len() != image.layers.len() {
        return Err(bad(format!("has {} layers and {} hashes of layers", image.layers.len(), diff_ids.len())));
    }
    let layers = image.layers.iter().map(|name| names.span(name)).collect::<Result<Vec<_>, _>>()?;
    let mut left = UNPACKED_MAX;
    for span in &layers {
        left = check_layer(&mut file, *span, left)?;
    }
    let id = format!("sha256:{}", data_encoding::HEXLOWER.encode(&Sha256::digest(&config)));
    Ok(Archived { id, diff_ids, config, layers })
}

fn names(file: &mut File) -> Result<Names, Failure> {
    let len = file.metadata().map_err(|e| unreadable(&e))?.len();
    let mut names = Names::default();
    let mut archive = tar::Archive::new(file);
    for entry in archive.entries_with_seek().map_err(|e| unreadable(&e))? {
        let entry = entry.map_err(|e| unreadable(&e))?;
        let kind = entry.header().entry_type();
        let path = entry.path().map_err(|e| unreadable(&e))?.into_owned();
        let name = plain(&path).ok_or_else(|| bad(format!("has the unsafe name `{}` in it", path.display())))?;
        let fresh = match kind {
            tar::EntryType::Directory | tar::EntryType::XGlobalHeader => true,
            tar::EntryType::Regular => {
                let span = Span { at: entry.raw_file_position(), len: entry.size() };
                if span.at.checked_add(span.len).is_none_or(|end| end > len) {
                    return Err(bad(format!("is cut off within `{name}`")));
                }
                names.files.insert(name.clone(), span).is_none()
            }
            tar::EntryType::Symlink => {
                let link = entry.link_name().map_err(|e| unreadable(&e))?;
                let target = link.and_then(|link| joined(&path, &link));
                let target = target.ok_or_else(|| bad(format!("has a link that leads out of it, `{name}`")))?;
                names.links.insert(name.clone(), target).is_none()
            }
            _ => return Err(bad(format!("has something in it that is no file, `{name}`"))),
        };
        if !fresh {
            return Err(bad(format!("has `{name}` in it twice")));
        }
        if names.files.len() + names.links.len() > FILES_MAX {
            return Err(bad(format!("has more than {FILES_MAX} files")));
        }
    }
    Ok(names)
}

/// A relative path without ways up, as a text.
fn plain(path: &Path) -> Option<String> {
    let mut parts = Vec::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::Normal(name) => parts.push(name.to_str()?),
            _ => return None,
        }
    }
    Some(parts.join("/"))
}

/// Where a link at `path` leads, if that is within the archive.
fn joined(path: &Path, link: &Path) -> Option<String> {
    let mut parts: Vec<&str> = Vec::new();
    let from = path.parent().into_iter().flat_map(Path::components);
    for part in from.chain(link.components()) {
        match part {
            Component::CurDir => {}
            Component::Normal(name) => parts.push(name.to_str()?),
            Component::ParentDir => drop(parts.pop()?),
            _ => return None,
        }
    }
    Some(parts.join("/"))
}

impl Names {
    fn span(&self, name: &str) -> Result<Span, Failure> {
        let name = plain(Path::new(name)).ok_or_else(|| bad(format!("names the unsafe path `{name}`")))?;
        // A link to a link would be no engine's.
        let name = self.links.get(&name).unwrap_or(&name);
        self.files.get(name).copied().ok_or_else(|| bad(format!("lacks `{name}`")))
    }

    fn json(&self, file: &mut File, name: &str) -> Result<Vec<u8>, Failure> {
        let span = self.span(name)?;
        if span.len > JSON_LEN_MAX {
            return Err(bad(format!("has {} bytes of `{name}`, more than {JSON_LEN_MAX}", span.len)));
        }
        let mut bytes = Vec::new();
        span.reader(file).and_then(|mut r| r.read_to_end(&mut bytes)).map_err(|e| unreadable(&e))?;
        Ok(bytes)
    }
}

impl Span {
    fn reader(self, file: &mut File) -> io::Result<io::Take<&mut File>> {
        file.seek(SeekFrom::Start(self.at))?;
        Ok(file.take(self.len))
    }
}

/// Adds up what a layer unpacks to; a few KB can stand for terabytes. Gives what is left of `most`.
fn check_layer(file: &mut File, span: Span, most: u64) -> Result<u64, Failure> {
    let mut magic = [0; 6];
    let read = span.reader(file).and_then(|mut r| r.read(&mut magic)).map_err(|e| unreadable(&e))?;
    let reader = span.reader(file).map_err(|e| unreadable(&e))?;
    match &magic[..read] {
        [0x1f, 0x8b, ..] => unpacked(flate2::read::MultiGzDecoder::new(io::BufReader::new(reader)), most),
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [b'B', b'Z', b'h', ..] | [0xfd, b'7', b'z', b'X', b'Z', 0] => {
            Err(bad("has layers that are compressed, and not with gzip"))
        }
        _ => unpacked(io::BufReader::new(reader), most),
    }
}

fn unpacked(reader: impl Read, most: u64) -> Result<u64, Failure> {
    let wrong = |e: &io::Error| bad(format!("has a layer that is no tar file ({e})"));
    let too_big = || bad(format!("unpacks to more than {} GiB or {LAYER_FILES_MAX} files a layer", UNPACKED_MAX >> 30));
    // A compressed layer may hold more than its files say; that is passed over below, within the same bound.
    let mut archive = tar::Archive::new(reader.take(most.saturating_add(1)));
    let (mut bytes, mut files) = (0_u64, 0_u64);
    for entry in archive.entries().map_err(|e| wrong(&e))? {
        let mut entry = entry.map_err(|e| wrong(&e))?;
        let sparse = entry.header().entry_type() == tar::EntryType::GNUSparse
            || entry
                .pax_extensions()
                .map_err(|e| wrong(&e))?
                .is_some_and(|extensions| extensions.flatten().any(|x| x.key_bytes().starts_with(b"GNU.sparse")));
        if sparse {
            return Err(bad("has a layer with sparse files, whose size cannot be told"));
        }
        bytes = bytes.saturating_add(entry.size());
        files += 1;
        if bytes > most || files > LAYER_FILES_MAX {
            return Err(too_big());
        }
    }
    let mut rest = archive.into_inner();
    io::copy(&mut rest, &mut io::sink()).map_err(|e| wrong(&e))?;
    if rest.limit() == 0 { Err(too_big()) } else { Ok(most - bytes) }
}

impl Archived {
    /// Writes the archive anew for an engine, without any tag.
    ///
    /// # Errors
    /// Whatever reading or `to` says.
    pub(super) fn write(&self, path: &Path, to: impl Write) -> io::Result<()> {
        let mut file = File::open(path)?;
        let mut tar = tar::Builder::new(to);
        let config = format!("{}.json", self.id.trim_start_matches("sha256:"));
        let layers: Vec<String> = (0..self.layers.len()).map(|n| format!("{n}/layer.tar")).collect();
        for (name, span) in layers.iter().zip(&self.layers) {
            append(&mut tar, name, span.len, span.reader(&mut file)?)?;
        }
        append(&mut tar, &config, self.config.len() as u64, &self.config[..])?;
        let manifest = serde_json::to_vec(&[ManifestEntry { config, layers }])?;
        append(&mut tar, "manifest.json", manifest.len() as u64, &manifest[..])?;
        tar.into_inner()?.flush()
    }
}

fn append(tar: &mut tar::Builder<impl Write>, name: &str, len: u64, content: impl Read) -> io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_size(len);
    header.set_mode(0o444);
    tar.append_data(&mut header, name, content)
}
