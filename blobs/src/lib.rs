//! Content-addressed store and transfer: blobs named by the BLAKE3 hash of their content, kept in an
//! [`iroh_blobs`] file store, moved over any pair of byte streams a caller hands in.
//!
//! This crate opens no connection and knows no address: reaching a node is [`Dial`]'s business, accepting a stream
//! and calling [`BlobStore::serve`] is the mesh's. It decides nothing about who may read what: whoever knows a hash
//! and reaches the store may fetch it.
//!
//! # What goes over `/sinew/blobs/1`
//!
//! One bidirectional stream per request, then it is closed. The bytes are exactly iroh-blobs' get protocol
//! (`/iroh-bytes/4`), so a stock client's request is understood and a stock provider's answer is too.
//!
//! **Request**, requester to provider, at most [`REQUEST_LEN_MAX`] bytes, followed by the end of the requester's half
//! (the write half is closed; the provider reads to the end of the stream and answers only then). It is
//! [postcard](https://postcard.jamesmunns.com/wire-format): one tag byte, then the body.
//!
//! | tag | request | body | here |
//! |---|---|---|---|
//! | 0 | `Get` | hash (32 bytes), range sequence | answered |
//! | 1 | `Observe` | | refused |
//! | 8 | `Push` | | refused: nobody writes into another node's store |
//! | 9 | `GetMany` | list of hashes, range sequence | answered |
//!
//! A *range sequence* is a list of `(offset delta, spans)`: offset 0 is the blob itself, offset `n` the `n`-th hash in
//! it when it is a hash sequence; each entry holds until the next one, and a last entry with spans holds forever. *Spans*
//! are alternating lengths, unselected first, in chunks of 1024 bytes. Integers are LEB128 varints. Offsets beyond
//! [`CHILDREN_MAX`] are refused, because walking to them would cost the provider more than they cost the peer.
//!
//! **Response**, provider to requester: for every selected blob, in order, its size as 8 bytes little endian, then the
//! bao encoding of the selected ranges in pre-order: a parent is the 64 bytes of its two child hashes, a leaf is up to
//! 16 KiB of content (a chunk group). Every parent and leaf is checked against the requested hash as it arrives, so a
//! requester never stores a byte that does not belong to the blob, and whatever arrived before a cut is kept. A range
//! past the end selects the last chunk, which proves the size. The provider closes its half after the last byte.
//! A provider that lacks something closes early: nothing at all means it does not have the blob.
//!
//! Resuming is asking again for what is still missing; there is no session state on either side.

mod collection;
mod durable;
mod error;
mod export;
mod fetch;
mod gc;
mod import;
mod inventory;
mod names;
mod pins;
mod read;
mod serve;
mod space;
mod store;
mod stream;
mod tags;
mod target;
mod tree;
mod whole;

pub use collection::{AddedDir, Collection, CollectionEntry};
pub use error::{
    AddError, CollectionError, ExportError, FetchError, NameError, OpenError, ProviderFault, ReadError, ServeError,
    StoreError,
};
pub use fetch::{
    BoxRead, BoxWrite, Dial, FetchOptions, FetchProgress, FetchStats, OnFetchProgress, Opening, ProviderStats,
};
pub use gc::{GcOptions, GcStats, ProtectFn};
pub use import::{Added, ImportMode, ImportProgress, OnImportProgress};
pub use inventory::{BlobState, StoreStats};
pub use pins::TempTag;
pub use read::BlobReader;
pub use serve::{CHILDREN_MAX, REQUEST_LEN_MAX, ServeStats};
pub use store::{BlobStore, Format, StoreOptions};
pub use tags::Tag;
pub use target::write_tree;
pub use tree::{TREE_LEN_MAX, Tree, TreeError};
pub use whole::Whole;
