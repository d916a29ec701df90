//! What can go wrong, one enum per operation. Nothing here acts; each variant says whether trying again can help.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use sinew_crdt_state::ids::{Hash, NodeId};

/// Why a store could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The directory cannot be made or written. Trying again does not help.
    #[error("cannot use `{path}` for blobs: {source}")]
    Directory {
        /// The directory or the file in it.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another store, as a rule another process, has it open. Trying again helps once that one ends.
    #[error("the blob store in `{path}` is in use")]
    Locked {
        /// The store's directory.
        path: PathBuf,
    },
    /// The database in it does not open: damaged, or the disk is full.
    #[error("the blob database in `{path}` does not open: {source}")]
    Database {
        /// The store's directory.
        path: PathBuf,
        /// What the database said.
        source: io::Error,
    },
}

/// Why the store itself failed, whatever was asked of it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The store was shut down.
    #[error("the blob store is closed")]
    Closed,
    /// The file store failed. It is reopened when that is needed, so a later call may well succeed.
    #[error("the blob store failed to {action}: {source}")]
    Backend {
        /// What was being done, as a verb phrase.
        action: &'static str,
        /// The underlying failure.
        source: io::Error,
    },
    /// A file of the store could not be written through to the disk.
    #[error("cannot make `{path}` durable: {source}")]
    Sync {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The blob to be made durable is not complete here.
    #[error("blob {hash} is not complete here, so it cannot be made durable")]
    NotComplete {
        /// The blob.
        hash: Hash,
    },
    /// Several waiters shared one attempt that failed; this is its message.
    #[error("{0}")]
    Shared(Arc<Self>),
}

impl StoreError {
    pub(crate) fn backend(action: &'static str, source: impl Into<iroh_blobs::api::Error>) -> Self {
        let iroh_blobs::api::Error::Io(source) = source.into();
        Self::Backend { action, source }
    }
}

/// Why something could not be added.
#[derive(Debug, thiserror::Error)]
pub enum AddError {
    /// A file or directory could not be read.
    #[error("cannot read `{path}`: {source}")]
    Unreadable {
        /// The path as given.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The path names something other than a file (or directory, for a directory).
    #[error("`{path}` is not {wanted}")]
    WrongKind {
        /// The path as given.
        path: PathBuf,
        /// What was needed: "a file" or "a directory".
        wanted: &'static str,
    },
    /// A name below the directory cannot be used in a collection.
    #[error("`{path}` cannot be part of a collection: {source}")]
    Name {
        /// The offending path.
        path: PathBuf,
        /// What is wrong with it.
        source: NameError,
    },
    /// More files than a collection may hold.
    #[error("more than {max} files")]
    TooMany {
        /// The limit.
        max: usize,
    },
    /// The disk would be, or is, full. Helps once something was freed.
    #[error("not enough room on the disk: {needed} bytes needed, {free} free, {reserve} kept in reserve")]
    NoSpace {
        /// Bytes the blob needs.
        needed: u64,
        /// Bytes free on the store's file system.
        free: u64,
        /// Bytes the store keeps free for its own database.
        reserve: u64,
    },
    /// The caller's stream failed.
    #[error("the source failed: {0}")]
    Source(#[source] io::Error),
    /// A collection swept the blob while it was being added again. Adding it once more helps.
    #[error("blob {hash} was collected while it was being added; add it again")]
    Collected {
        /// The blob.
        hash: Hash,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why a blob could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The store has nothing of it. Helps after a fetch.
    #[error("blob {hash} is not here")]
    Missing {
        /// The blob.
        hash: Hash,
    },
    /// The store has only part of it, and not the part asked for. Helps after a fetch.
    #[error("blob {hash} is here only in part")]
    Incomplete {
        /// The blob.
        hash: Hash,
    },
    /// It is larger than the caller allows.
    #[error("blob {hash} holds {size} bytes, more than the {max} allowed")]
    TooLarge {
        /// The blob.
        hash: Hash,
        /// Its size.
        size: u64,
        /// The limit given.
        max: u64,
    },
    /// The stored bytes are damaged or unreadable.
    #[error("blob {hash} cannot be read: {source}")]
    Damaged {
        /// The blob.
        hash: Hash,
        /// What the store said.
        source: io::Error,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why a name may not be used inside a collection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Empty, or with an empty part (`a//b`, a trailing slash).
    #[error("empty name or part of a name")]
    Empty,
    /// Starts at the root.
    #[error("absolute name")]
    Absolute,
    /// Holds `.` or `..` as a part.
    #[error("`.` or `..` in a name")]
    Dots,
    /// Holds a NUL or another control character.
    #[error("control character in a name")]
    Control,
    /// One that collections use themselves.
    #[error("name that directories in the store use themselves")]
    Reserved,
    /// Longer than file systems allow.
    #[error("name too long")]
    Long,
    /// Not UTF-8.
    #[error("name is not UTF-8")]
    Encoding,
    /// The same name twice, or one name as both file and directory.
    #[error("name used twice")]
    Duplicate,
}

/// Why something could not be written out of the store.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The blob could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The collection could not be read.
    #[error(transparent)]
    Collection(#[from] CollectionError),
    /// The target could not be written; a symbolic link in the way also ends here.
    #[error("cannot write `{path}`: {source}")]
    Target {
        /// The path being written.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Why a blob could not be read as a collection.
#[derive(Debug, thiserror::Error)]
pub enum CollectionError {
    /// A part of it could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The blob is not a collection.
    #[error("blob {hash} is not a collection: {reason}")]
    Malformed {
        /// The blob.
        hash: Hash,
        /// What does not fit.
        reason: &'static str,
    },
    /// What it says of links, modes and empty directories is no good.
    #[error("the file `.sinew-tree` of collection {hash} is malformed: {source}")]
    Tree {
        /// The collection.
        hash: Hash,
        /// What is wrong with it.
        source: crate::tree::TreeError,
    },
    /// A name in it cannot be used.
    #[error("collection {hash} holds the name `{name}`: {source}")]
    Name {
        /// The collection.
        hash: Hash,
        /// The name, shortened.
        name: String,
        /// What is wrong with it.
        source: NameError,
    },
}

/// What one provider did wrong in a fetch.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ProviderFault {
    /// No stream could be opened.
    #[error("unreachable: {0}")]
    Unreachable(Arc<io::Error>),
    /// It does not have the blob.
    #[error("does not have it")]
    Missing,
    /// It closed the stream before everything asked for was sent.
    #[error("ended early")]
    Ended,
    /// The stream broke.
    #[error("connection lost: {0}")]
    Cut(Arc<io::Error>),
    /// Nothing useful came for too long.
    #[error("sent nothing for {0:?}")]
    Stalled(Duration),
    /// It sent bytes that do not belong to the blob. It is not asked again in this fetch.
    #[error("sent bytes that do not match the hash")]
    Corrupt,
    /// It says the blob is larger than allowed.
    #[error("says it holds {size} bytes, more than the {max} allowed")]
    TooLarge {
        /// The size it announced.
        size: u64,
        /// The limit given.
        max: u64,
    },
}

/// Why a fetch failed. Cloneable, because several waiters may share one download.
#[derive(Debug, Clone, thiserror::Error)]
pub enum FetchError {
    /// Nobody to ask. Helps once a provider is known.
    #[error("blob {hash} is not here and no provider is known")]
    NoProviders {
        /// The blob.
        hash: Hash,
    },
    /// Every provider failed. What arrived is kept, so trying again resumes.
    #[error("blob {hash} could not be fetched: {}", describe(.faults))]
    AllFailed {
        /// The blob.
        hash: Hash,
        /// Each provider's last fault, in the order given.
        faults: Vec<(NodeId, ProviderFault)>,
    },
    /// The disk has no room for it. Helps once something was freed.
    #[error("blob {hash}: {source}")]
    NoSpace {
        /// The blob.
        hash: Hash,
        /// The figures.
        source: Arc<AddError>,
    },
    /// The blob is not the collection it should be.
    #[error(transparent)]
    Collection(Arc<CollectionError>),
    /// The local store failed.
    #[error("blob {hash} could not be stored: {source}")]
    Local {
        /// The blob.
        hash: Hash,
        /// What failed.
        source: Arc<StoreError>,
    },
}

fn describe(faults: &[(NodeId, ProviderFault)]) -> String {
    faults.iter().map(|(node, fault)| format!("{} {fault}", node.short())).collect::<Vec<_>>().join("; ")
}

/// Why a request was not (fully) answered. The stream is over in every case.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The peer's bytes are no request.
    #[error("not a request: {0}")]
    Garbage(#[source] io::Error),
    /// Longer than [`crate::REQUEST_LEN_MAX`].
    #[error("request longer than {max} bytes")]
    TooLong {
        /// The limit.
        max: usize,
    },
    /// A kind of request this node does not answer, or one that would cost it too much.
    #[error("request refused: {0}")]
    Refused(&'static str),
    /// The blob is not here.
    #[error("blob {hash} is not here")]
    Missing {
        /// The blob.
        hash: Hash,
    },
    /// The peer sent or read nothing for too long.
    #[error("peer idle for {0:?}")]
    Stalled(Duration),
    /// The stream broke, or part of the blob is missing or unreadable here.
    #[error("answer not finished: {0}")]
    Cut(#[source] io::Error),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl ServeError {
    /// Whether only a peer that is faulty or hostile can have caused it. Streams that break or end early are not among these:
    /// every cut of a link, and every fetch that is given up, leaves some.
    #[must_use]
    pub const fn is_offence(&self) -> bool {
        matches!(self, Self::Garbage(_) | Self::TooLong { .. } | Self::Refused(_))
    }
}
