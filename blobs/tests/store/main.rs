//! The blob store against real files, real sockets and real faults.

mod disk;
mod local;
mod measure;
mod net;
mod transfer;
mod trees;

use std::path::Path;
use std::time::Duration;

use sinew_blobs::{BlobStore, GcOptions, StoreOptions};

/// Options for tests: collection only on demand, and no demand on the disk of whoever runs them.
pub(crate) fn options() -> StoreOptions {
    StoreOptions {
        reserve: 4 << 20,
        gc: GcOptions { interval: None, ..GcOptions::default() },
        ..StoreOptions::default()
    }
}

pub(crate) async fn open(dir: &Path) -> BlobStore {
    BlobStore::open(dir, options()).await.expect("open")
}

/// `len` bytes that do not compress and differ by `seed`.
pub(crate) fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(&state.to_le_bytes());
    }
    out.truncate(len);
    out
}

/// Fails a test that hangs instead of blocking the suite.
pub(crate) async fn within<T>(seconds: u64, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(seconds), future).await.expect("in time")
}
