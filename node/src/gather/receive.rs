//! Takes in what a server sends: into a file without a name, no more than was agreed, and checked against its hash.

use std::fs::File;
use std::io::{Seek, Write};
use std::path::Path;

use sha2::Digest;
use sinew_crdt_state::remote::ContentHash;

use super::wrong;
use crate::exec::outcome::Failure;

enum Hasher {
    Sha256(sha2::Sha256),
    Blake3(Box<blake3::Hasher>),
}

impl Hasher {
    fn new(hash: ContentHash) -> Self {
        match hash {
            ContentHash::Sha256(_) => Self::Sha256(sha2::Sha256::new()),
            ContentHash::Blake3(_) => Self::Blake3(Box::new(blake3::Hasher::new())),
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hasher) => hasher.update(bytes),
            Self::Blake3(hasher) => {
                hasher.update(bytes);
            }
        }
    }

    fn finish(self) -> ContentHash {
        match self {
            Self::Sha256(hasher) => ContentHash::Sha256(hasher.finalize().into()),
            Self::Blake3(hasher) => ContentHash::Blake3(sinew_crdt_state::ids::Hash(*hasher.finalize().as_bytes())),
        }
    }
}

/// A content on its way.
pub(super) struct Receiving<'a> {
    shown: &'a str,
    hash: ContentHash,
    size_max: u64,
    target: File,
    hasher: Hasher,
    len: u64,
}

impl<'a> Receiving<'a> {
    /// For what messages call `shown`, next to the job's other files in `dir`.
    pub(super) fn new(shown: &'a str, hash: ContentHash, size_max: u64, dir: &Path) -> Result<Self, Failure> {
        std::fs::create_dir_all(dir).map_err(|e| storage(&e))?;
        let target = tempfile::tempfile_in(dir).map_err(|e| storage(&e))?;
        Ok(Self { shown, hash, size_max, target, hasher: Hasher::new(hash), len: 0 })
    }

    /// So much is said to come.
    pub(super) fn announced(&self, len: u64) -> Result<(), Failure> {
        if len <= self.size_max {
            return Ok(());
        }
        Err(wrong(format!("`{}` has more than {} bytes: raise size_max", self.shown, self.size_max)))
    }

    pub(super) fn take(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.len = self.len.saturating_add(bytes.len() as u64);
        self.announced(self.len)?;
        self.hasher.update(bytes);
        self.target.write_all(bytes).map_err(|e| storage(&e))
    }

    /// All is here: the file, ready to be read, if it is what it should be.
    pub(super) fn finish(mut self) -> Result<File, Failure> {
        let found = self.hasher.finish();
        if found != self.hash {
            let (shown, hash) = (self.shown, self.hash);
            return Err(wrong(format!("`{shown}` is not what it should be: its hash is {found}, not {hash}")));
        }
        self.target.rewind().map_err(|e| storage(&e))?;
        Ok(self.target)
    }
}

fn storage(error: &std::io::Error) -> Failure {
    Failure::storage("write a fetched input", error)
}
