//! The content of programs.

use sinew_crdt_state::ids::Hash;
use sinew_crdt_state::spec::BlobRef;
use sinew_node::exec::set::Content;

/// A directory for content, each file of it under its hash.
#[derive(Debug)]
pub(crate) struct Store {
    dir: tempfile::TempDir,
    content: Content,
}

impl Store {
    pub(crate) fn new() -> Self {
        Self { dir: tempfile::tempdir().expect("dir"), content: Content::new() }
    }

    /// Puts content into it.
    pub(crate) fn add(&mut self, bytes: &[u8]) -> BlobRef {
        let hash = Hash::of(bytes);
        let path = self.dir.path().join(hash.to_string());
        std::fs::write(&path, bytes).expect("write");
        self.content.insert(hash, path);
        BlobRef { hash, size: bytes.len() as u64 }
    }

    pub(crate) fn content(&self) -> &Content {
        &self.content
    }
}
