//! Collections: a directory as one hash. The format is iroh-blobs' (a hash sequence whose first child lists the names),
//! so stock clients read ours. Which files may be executed, empty directories and symbolic links are not part of the format: where
//! there are any, one more file beside the others says so ([`crate::Tree`]).

use std::collections::BTreeMap;
use std::fs::{DirEntry, FileType};
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use futures::StreamExt;
use iroh_blobs::format::collection::{Collection as IrohCollection, CollectionMeta};
use iroh_blobs::hashseq::HashSeq;
use sinew_crdt_state::ids::Hash;

use crate::error::{AddError, CollectionError, NameError, ReadError};
use crate::import::{Added, ImportMode};
use crate::inventory::BlobState;
use crate::names;
use crate::serve::CHILDREN_MAX;
use crate::store::{BlobStore, Format, from_iroh, to_iroh};
use crate::tree::{TREE_LEN_MAX, Tree};

/// Files per collection: as many children as a request may address, less the list of names.
const FILES_MAX: usize = CHILDREN_MAX - 1;
/// A hash sequence of [`CHILDREN_MAX`] hashes.
pub(crate) const ROOT_LEN_MAX: u64 = CHILDREN_MAX as u64 * 32;
/// Room for [`FILES_MAX`] names of ordinary length; a collection with longer ones must hold fewer.
pub(crate) const META_LEN_MAX: u64 = 64 << 20;
/// Files looked up at once: the database answers in order, and a few questions in flight hide the hops between tasks.
pub(crate) const LOOKUPS: usize = 64;
/// Files added at once: enough to keep hashing and copying both busy.
const ADD_AT_ONCE: usize = 8;

/// The file that says what the format cannot. No file of a user's can have this name.
pub(crate) const TREE_NAME: &str = ".sinew-tree";

/// The bit of a file's mode that says whether its owner may execute it.
const OWNER_MAY_EXECUTE: u32 = 0o100;

/// One file of a collection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CollectionEntry {
    /// Relative name, parts separated by `/`.
    pub name: String,
    /// The file's content.
    pub hash: Hash,
    /// Its size, if known here.
    pub size: Option<u64>,
}

/// The files of a collection, by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Collection {
    /// The hash of its root.
    pub hash: Hash,
    /// Its files.
    pub entries: Vec<CollectionEntry>,
}

impl Collection {
    /// The sum of the sizes, if all are known here.
    #[must_use]
    pub fn size(&self) -> Option<u64> {
        self.entries.iter().map(|entry| entry.size).sum()
    }
}

/// A directory that was added.
#[derive(Debug)]
pub struct AddedDir {
    /// What it became.
    pub collection: Collection,
    /// Keeps the collection and its files until dropped.
    pub tag: crate::TempTag,
    /// What was left out, by its path below the directory, and what it is: sockets, devices, links that lead outside.
    pub left_out: BTreeMap<String, String>,
}

impl BlobStore {
    /// Adds what is below `dir` as one collection: files, links that stay inside, empty directories. The same tree always
    /// gives the same hash.
    ///
    /// # Errors
    /// As [`Self::add_file`]; [`AddError::Name`] for names a collection cannot hold, [`AddError::TooMany`].
    pub async fn add_dir(&self, dir: &Path, mode: ImportMode) -> Result<AddedDir, AddError> {
        let root = dir.to_owned();
        let listed = tokio::task::spawn_blocking(move || Listing::of(&root)).await;
        let mut listing = listed.map_err(|error| AddError::Source(io::Error::other(error)))??;
        let left_out = std::mem::take(&mut listing.tree.left_out);
        let adds = listing.files.into_iter().map(|(name, path)| async move {
            let added = self.add_file(&path, mode, None).await?;
            Ok::<_, AddError>((name, added))
        });
        let mut added = Vec::new();
        let mut running = futures::stream::iter(adds).buffered(ADD_AT_ONCE);
        while let Some(one) = running.next().await {
            added.push(one?);
        }
        drop(running);
        if !listing.tree.is_empty() {
            added.push((TREE_NAME.to_owned(), self.add_bytes(listing.tree.encode()).await?));
        }
        let (collection, tag) = self.add_collection(added).await?;
        Ok(AddedDir { collection, tag, left_out })
    }

    /// Makes a collection of blobs that were added under the given names.
    ///
    /// # Errors
    /// [`AddError::Name`], [`AddError::TooMany`], or the store's failure.
    pub async fn add_collection(&self, files: Vec<(String, Added)>) -> Result<(Collection, crate::TempTag), AddError> {
        check_names(files.iter().map(|(name, _)| name.as_str()))?;
        let names: IrohCollection = files.iter().map(|(name, added)| (name.clone(), to_iroh(added.hash))).collect();
        let mut blobs = names.to_blobs();
        // The list of names, then the root, as the format says.
        let meta = self.add_bytes(blobs.next().unwrap_or_default()).await?;
        let root = self.add_bytes_as(blobs.next().unwrap_or_default(), Format::HashSeq).await?;
        // From here on the root's guard holds the names and the files too.
        drop(meta);
        let entries = files
            .iter()
            .map(|(name, added)| CollectionEntry { name: name.clone(), hash: added.hash, size: Some(added.size) })
            .collect();
        Ok((Collection { hash: root.hash, entries }, root.tag))
    }

    /// Reads the names, hashes and known sizes of a collection whose root and list of names are here.
    ///
    /// # Errors
    /// [`CollectionError`]; every name is checked, so the result is safe to turn into paths.
    pub async fn collection(&self, hash: Hash) -> Result<Collection, CollectionError> {
        let links = self.hash_seq(hash).await?;
        let malformed = |reason| CollectionError::Malformed { hash, reason };
        let (meta_hash, files) = links.split_first().ok_or(malformed("it is empty"))?;
        let names = parse_meta(&self.read(*meta_hash, META_LEN_MAX).await?).map_err(malformed)?;
        if names.len() != files.len() {
            return Err(malformed("it has more names than files or fewer"));
        }
        check_names(names.iter().map(String::as_str)).map_err(|error| match error {
            AddError::Name { path, source } => {
                CollectionError::Name { hash, name: path.to_string_lossy().escape_debug().take(80).collect(), source }
            }
            _ => malformed("it has too many files"),
        })?;
        let mut entries = Vec::with_capacity(names.len());
        let mut names = names.into_iter();
        for some in files.chunks(LOOKUPS) {
            let states = futures::future::try_join_all(some.iter().map(|file| self.has(*file))).await;
            let states = states.map_err(ReadError::Store)?;
            for ((file, state), name) in some.iter().zip(states).zip(names.by_ref()) {
                let size = match state {
                    BlobState::Complete { size } => Some(size),
                    BlobState::Partial { size, .. } => size,
                    BlobState::Missing => None,
                };
                entries.push(CollectionEntry { name, hash: *file, size });
            }
        }
        Ok(Collection { hash, entries })
    }

    /// What a collection holds besides files. The file that says it must be here.
    ///
    /// # Errors
    /// [`CollectionError`]; no path and no link in the result leads out of the collection.
    pub async fn tree_of(&self, collection: &Collection) -> Result<Tree, CollectionError> {
        let Some(entry) = collection.entries.iter().find(|entry| entry.name == TREE_NAME) else {
            return Ok(Tree::default());
        };
        let bytes = self.read(entry.hash, TREE_LEN_MAX).await?;
        Tree::decode(&bytes).map_err(|source| CollectionError::Tree { hash: collection.hash, source })
    }

    /// The hashes in a hash sequence that is here.
    pub(crate) async fn hash_seq(&self, hash: Hash) -> Result<Vec<Hash>, CollectionError> {
        let bytes = self.read(hash, ROOT_LEN_MAX).await?;
        let links = HashSeq::new(bytes);
        let links = links.ok_or(CollectionError::Malformed { hash, reason: "it is no sequence of hashes" })?;
        Ok(links.iter().map(from_iroh).collect())
    }
}

fn check_names<'a>(all: impl ExactSizeIterator<Item = &'a str> + Clone) -> Result<(), AddError> {
    if all.len() > FILES_MAX {
        return Err(AddError::TooMany { max: FILES_MAX });
    }
    let bad = |name: &str, source| AddError::Name { path: PathBuf::from(name), source };
    for name in all.clone() {
        names::check(name).map_err(|source| bad(name, source))?;
    }
    names::check_distinct(all).map_err(|name| bad(name, NameError::Duplicate))
}

fn parse_meta(bytes: &Bytes) -> Result<Vec<String>, &'static str> {
    let mut meta: CollectionMeta = postcard::from_bytes(bytes).map_err(|_| "its list of names is damaged")?;
    if !meta.check_header() {
        return Err("its list of names is of an unknown kind");
    }
    Ok(std::mem::take(meta.names_mut()))
}

/// What is below a directory, by collection name.
struct Listing {
    files: BTreeMap<String, PathBuf>,
    tree: Tree,
}

impl Listing {
    fn of(root: &Path) -> Result<Self, AddError> {
        let unreadable = |path: &Path| {
            let path = path.to_owned();
            move |source| AddError::Unreadable { path, source }
        };
        if !std::fs::metadata(root).map_err(unreadable(root))?.is_dir() {
            return Err(AddError::WrongKind { path: root.to_owned(), wanted: "a directory" });
        }
        let mut listing = Self { files: BTreeMap::new(), tree: Tree::default() };
        let mut todo = vec![(root.to_owned(), String::new())];
        while let Some((dir, prefix)) = todo.pop() {
            let mut empty = true;
            for entry in std::fs::read_dir(&dir).map_err(unreadable(&dir))? {
                let entry = entry.map_err(unreadable(&dir))?;
                empty = false;
                if let Some(below) = listing.take(&entry, &prefix)? {
                    todo.push(below);
                }
            }
            if empty && !prefix.is_empty() {
                listing.tree.empty_dirs.insert(prefix.trim_end_matches('/').to_owned());
            }
            if listing.len() > FILES_MAX {
                return Err(AddError::TooMany { max: FILES_MAX });
            }
        }
        listing.tree.leave_out_links();
        let paths = listing.tree.links.keys().chain(&listing.tree.empty_dirs);
        check_names(paths.map(String::as_str).collect::<Vec<_>>().into_iter())?;
        Ok(listing)
    }

    fn len(&self) -> usize {
        self.files.len() + self.tree.links.len() + self.tree.empty_dirs.len() + self.tree.left_out.len()
    }

    /// Notes one entry of a directory whose names begin with `prefix`; a directory is given back.
    fn take(&mut self, entry: &DirEntry, prefix: &str) -> Result<Option<(PathBuf, String)>, AddError> {
        let path = entry.path();
        let unreadable = |source| AddError::Unreadable { path: entry.path(), source };
        let unfit = |source| AddError::Name { path: entry.path(), source };
        let name = entry.file_name().into_string().map_err(|_| unfit(NameError::Encoding))?;
        let name = format!("{prefix}{name}");
        if name == TREE_NAME {
            return Err(unfit(NameError::Reserved));
        }
        let kind = entry.file_type().map_err(unreadable)?;
        if kind.is_dir() {
            return Ok(Some((path, format!("{name}/"))));
        }
        if kind.is_file() {
            if entry.metadata().map_err(unreadable)?.permissions().mode() & OWNER_MAY_EXECUTE != 0 {
                self.tree.executables.insert(name.clone());
            }
            self.files.insert(name, path);
        } else if kind.is_symlink() {
            let target = std::fs::read_link(&path).map_err(unreadable)?.into_os_string();
            self.tree.links.insert(name, target.into_string().map_err(|_| unfit(NameError::Encoding))?);
        } else {
            self.tree.left_out.insert(name, kind_name(kind).to_owned());
        }
        Ok(None)
    }
}

/// What something is that is no file, directory or link.
fn kind_name(kind: FileType) -> &'static str {
    match () {
        () if kind.is_socket() => "a socket",
        () if kind.is_fifo() => "a named pipe",
        () => "a device",
    }
}
