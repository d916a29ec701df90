//! The daemon's side of the mesh: sending frames, opening blob streams, and counting what could not be sent.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures::FutureExt;
use sinew_blobs::{BoxRead, BoxWrite, Dial, Opening};
use sinew_crdt_state::ids::NodeId;
use sinew_mesh::{FrameClass, Mesh};

/// A cheap handle on the mesh.
#[derive(Debug, Clone)]
pub struct MeshLink {
    mesh: Mesh,
    unsent: Arc<AtomicU64>,
    messages: Arc<AtomicU64>,
}

impl MeshLink {
    /// Over `mesh`.
    #[must_use]
    pub fn new(mesh: Mesh) -> Self {
        Self { mesh, unsent: Arc::default(), messages: Arc::default() }
    }

    /// The mesh itself.
    #[must_use]
    pub const fn mesh(&self) -> &Mesh {
        &self.mesh
    }

    /// Sends a frame, or counts it as lost: every protocol above repeats what matters.
    pub fn send(&self, to: NodeId, class: FrameClass, frame: Bytes) {
        if self.mesh.send(to, class, frame).is_err() {
            self.unsent.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Sends a frame on the bulk stream.
    pub fn send_bulk(&self, to: NodeId, frame: Bytes) {
        self.send(to, FrameClass::Bulk, frame);
    }

    /// Counts messages of the core that go out in frames.
    pub fn count_messages(&self, messages: usize) {
        self.messages.fetch_add(messages as u64, Ordering::Relaxed);
    }

    /// Messages of the core that went out in frames.
    #[must_use]
    pub fn messages(&self) -> u64 {
        self.messages.load(Ordering::Relaxed)
    }

    /// Frames that could not be sent.
    #[must_use]
    pub fn unsent(&self) -> u64 {
        self.unsent.load(Ordering::Relaxed)
    }
}

impl Dial for MeshLink {
    fn open(&self, provider: NodeId) -> Opening<'_> {
        async move {
            let stream = self.mesh.open_blob_stream(provider).await.map_err(std::io::Error::other)?;
            let (reader, writer) = tokio::io::split(stream);
            Ok((Box::new(reader) as BoxRead, Box::new(writer) as BoxWrite))
        }
        .boxed()
    }
}
