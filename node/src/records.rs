//! Which outputs an ended job has, as the nodes that hold some keep it on record: the ledger forgets that long before they go. The record
//! is a blob with a tag of the job, and goes with the outputs.

use serde::{Deserialize, Serialize};
use sinew_blobs::{BlobStore, Format, StoreError};
use sinew_crdt_state::cbor;
use sinew_crdt_state::fact::Output;
use sinew_crdt_state::ids::{JobId, NodeId};
use sinew_crdt_state::spec::BlobRef;
use sinew_scheduler::view::{JobView, OutputView};

/// Tags of records begin with this.
const PREFIX: &str = "record/";
/// Most bytes of a record: a million outputs or so.
pub const RECORD_LEN_MAX: u64 = 256 << 20;

/// The outputs of a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The job.
    pub job: JobId,
    /// Each output of its last phase.
    pub outputs: Vec<Recorded>,
}

/// One output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recorded {
    /// Its task.
    pub task: u32,
    /// Its name and blob.
    pub output: Output,
    /// Who made it.
    pub node: NodeId,
    /// Who else had it.
    pub copy: Option<NodeId>,
}

impl Record {
    /// What a job's page says; equal on all nodes that know the job.
    #[must_use]
    pub fn of(view: &JobView) -> Self {
        let one = |o: &OutputView| Recorded { task: o.task, output: o.output.clone(), node: o.node, copy: o.copy };
        Self { job: view.id, outputs: view.outputs.iter().map(one).collect() }
    }

    /// Puts the outputs back into the page of a job that the ledger has forgotten.
    pub fn restore(self, view: &mut JobView) {
        let one = |r: Recorded| OutputView { task: r.task, output: r.output, node: r.node, copy: r.copy };
        view.outputs = self.outputs.into_iter().map(one).collect();
    }

    /// Reads a record of `job`, which may come from anybody.
    #[must_use]
    pub fn parse(job: JobId, bytes: &[u8]) -> Option<Self> {
        cbor::from_slice::<Self>(bytes).ok().filter(|record| record.job == job)
    }
}

/// The tag of a job's record.
#[must_use]
pub fn record_tag(job: JobId) -> String {
    format!("{PREFIX}{job}")
}

/// Keeps the record of a job.
///
/// # Errors
/// [`StoreError`], or what the disk says.
pub async fn keep(store: &BlobStore, record: &Record) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let mut bytes = Vec::new();
    ciborium::into_writer(record, &mut bytes)?;
    let added = store.add_bytes(bytes).await?;
    store.tag(&record_tag(record.job), added.hash, Format::Raw).await?;
    Ok(())
}

/// The record of a job, if one is kept here, as a blob.
///
/// # Errors
/// [`StoreError`].
pub async fn find(store: &BlobStore, job: JobId) -> Result<Option<BlobRef>, StoreError> {
    let name = record_tag(job);
    let Some(tag) = store.tags(&name).await?.into_iter().find(|tag| tag.name == name) else { return Ok(None) };
    Ok(store.reader(tag.hash).await.ok().map(|reader| BlobRef { hash: tag.hash, size: reader.size() }))
}
