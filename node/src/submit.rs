//! From a draft with local paths to a job that any node can run: inputs are walked, split, taken into the blob store and
//! fsynced, and only then is the core asked to accept the job.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use sinew_blobs::{AddError, BlobStore, ImportMode, StoreError, TempTag};
use sinew_crdt_state::cbor;
use sinew_crdt_state::ids::{Hash, JobId};
use sinew_crdt_state::manifest::{
    DraftContent, DraftFile, DraftProgram, DraftRound, DraftSource, DraftWork, JobDraft, Problems, RoundInputs, Split,
};
use sinew_crdt_state::spec::{BlobRef, InputFile, Program, Source, Work};
use sinew_scheduler::io::{NewJob, SubmitKey};

use crate::exec::split::{SplitBy, SplitError, plan};
use crate::exec::walk::{LocalFile, WalkError, walk};
use crate::job_blobs::JobBlobs;

/// Called with what is being done, bytes done, and bytes in all.
pub type OnProgress<'a> = &'a (dyn Fn(&str, u64, u64) + Send + Sync);

/// Why a draft could not be made into a job.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// The draft is wrong.
    #[error("{0}")]
    Draft(#[from] Problems),
    /// A path cannot be read.
    #[error(transparent)]
    Walk(#[from] WalkError),
    /// An input cannot be split.
    #[error(transparent)]
    Split(#[from] SplitError),
    /// An input cannot be stored.
    #[error("cannot take in {path}: {source}")]
    Input {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: AddError,
    },
    /// The table of a round's chunks cannot be stored.
    #[error("cannot store the table of chunks: {0}")]
    Chunks(#[source] AddError),
    /// The store refused.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A file changed while it was read.
    #[error("{0} changed while it was being read: submit again once it stays the same")]
    Changed(PathBuf),
    /// A given file is none.
    #[error("input `{to}`: {path} has no files in it")]
    NoFiles {
        /// Where it was to go.
        to: String,
        /// What was given.
        path: PathBuf,
    },
    /// A name that tasks could not find again.
    #[error(
        "input `{to}`: the file name {path:?} is not UTF-8: rename the file, or pack the directory into an archive"
    )]
    Name {
        /// Where it was to go.
        to: String,
        /// What has the name.
        path: PathBuf,
    },
    /// A program's content is no file.
    #[error("{0} is not one file: name the image's archive or the module itself")]
    NotOneFile(PathBuf),
    /// A background thread ended unexpectedly.
    #[error("reading the inputs was interrupted")]
    Interrupted,
}

/// A job ready to be accepted, and the guards that keep its blobs until it is.
#[derive(Debug)]
pub struct Prepared {
    /// The job.
    pub job: NewJob,
    guards: Vec<TempTag>,
}

impl Prepared {
    /// The job was accepted as `id`: its blobs are now kept under its name.
    ///
    /// # Errors
    /// Whatever the store says.
    pub async fn keep(self, blobs: &JobBlobs, id: JobId) -> Result<(), StoreError> {
        for guard in &self.guards {
            blobs.keep(id, guard.hash()).await?;
        }
        Ok(())
    }
}

struct Taking<'a> {
    store: &'a BlobStore,
    progress: OnProgress<'a>,
    done: u64,
    total: u64,
    guards: Vec<TempTag>,
    hashes: Vec<Hash>,
}

/// Takes a draft's inputs in.
///
/// # Errors
/// [`PrepareError`], naming the path or field at fault.
pub async fn prepare(store: &BlobStore, draft: JobDraft, progress: OnProgress<'_>) -> Result<Prepared, PrepareError> {
    draft.check()?;
    let mut taking = Taking { store, progress, done: 0, total: 0, guards: Vec::new(), hashes: Vec::new() };
    let files = taking.files(draft.files()).await?;
    let work = match &draft.work {
        DraftWork::Batch(batch) => {
            let program = taking.program(&batch.program).await?;
            batch.resolve(draft.env.clone(), program, files)
        }
        DraftWork::MapReduce(round) => taking.round(round, &draft, files).await?,
    };
    store.ensure_all_durable(&taking.hashes).await?;
    let job = NewJob {
        name: draft.display_name(),
        work,
        resources: draft.resources,
        limits: draft.limits,
        retry: draft.retry,
        labels: draft.labels.clone(),
        strategy: draft.strategy,
        copies: draft.copies,
        network: draft.network.clone(),
        secrets: draft.secrets.clone(),
        volumes: draft.volumes.clone(),
        key: draft.key.clone().map(|text| SubmitKey { text, ended: None }),
    };
    Ok(Prepared { job, guards: taking.guards })
}

impl Taking<'_> {
    async fn round(
        &mut self,
        round: &DraftRound,
        draft: &JobDraft,
        files: Vec<InputFile>,
    ) -> Result<Work, PrepareError> {
        let paths: Vec<PathBuf> = round.inputs.iter().map(PathBuf::from).collect();
        let by = match round.split {
            Split::Lines(n) => SplitBy::Lines(n),
            Split::Bytes(n) => SplitBy::Bytes(n),
            Split::Files => SplitBy::Files,
        };
        let planned = tokio::task::spawn_blocking(move || -> Result<_, PrepareError> {
            let walked = walk(&paths)?;
            let chunks = plan(&walked.files, by)?;
            Ok((walked.files, chunks))
        });
        let (inputs, chunks) = planned.await.map_err(|_| PrepareError::Interrupted)??;
        self.total += inputs.iter().map(|f| f.size).sum::<u64>();
        let mut blobs = Vec::with_capacity(inputs.len());
        for file in &inputs {
            blobs.push(self.file(file).await?);
        }
        let table = self.store.add_bytes(cbor::to_vec(&chunks)).await.map_err(PrepareError::Chunks)?;
        self.hashes.push(table.hash);
        let chunk_table = BlobRef { hash: table.hash, size: table.size };
        self.guards.push(table.tag);
        let chunks = u32::try_from(chunks.len()).unwrap_or(u32::MAX);
        let combine = match &round.combine {
            Some(combine) => Some(self.program(combine).await?),
            None => None,
        };
        let programs = (self.program(&round.map).await?, combine, self.program(&round.reduce).await?);
        Ok(round.resolve(draft.env.clone(), RoundInputs { programs, chunk_table, chunks, inputs: blobs }, files))
    }

    /// Takes in the file that a program is, if it is one.
    async fn program(&mut self, program: &DraftProgram) -> Result<Program, PrepareError> {
        let taken = match program.content() {
            Some(DraftContent::Path(path)) => {
                let root = PathBuf::from(path);
                let walked = tokio::task::spawn_blocking(move || walk(&[root]));
                let walked = walked.await.map_err(|_| PrepareError::Interrupted)??;
                let [file] = &walked.files[..] else { return Err(PrepareError::NotOneFile(PathBuf::from(path))) };
                self.total += file.size;
                Some(self.file(file).await?)
            }
            Some(DraftContent::Blob(blob)) => Some(*blob),
            None => None,
        };
        program.clone().try_map(|_| taken.ok_or(PrepareError::Interrupted))
    }

    async fn files(&mut self, wanted: &[DraftFile]) -> Result<Vec<InputFile>, PrepareError> {
        let mut placed = Vec::new();
        for file in wanted {
            match &file.source {
                DraftSource::Inline(text) => placed.push(InputFile {
                    path: file.to.clone(),
                    source: Source::Inline(text.clone().into_bytes()),
                    executable: file.executable,
                }),
                DraftSource::Blob(blob) => placed.push(InputFile {
                    path: file.to.clone(),
                    source: Source::Blob(*blob),
                    executable: file.executable,
                }),
                DraftSource::Http(remote) => placed.push(remote_file(file, Source::Http(remote.clone()))),
                DraftSource::Object(remote) => placed.push(remote_file(file, Source::Object(remote.clone()))),
                DraftSource::Git(tree) => placed.push(remote_file(file, Source::Git(tree.clone()))),
                DraftSource::Path(path) => self.path(file, Path::new(path), &mut placed).await?,
            }
        }
        Ok(placed)
    }

    /// A file, or every file of a directory.
    async fn path(&mut self, file: &DraftFile, path: &Path, placed: &mut Vec<InputFile>) -> Result<(), PrepareError> {
        let root = path.to_owned();
        let walked =
            tokio::task::spawn_blocking(move || walk(&[root])).await.map_err(|_| PrepareError::Interrupted)??;
        if walked.files.is_empty() {
            return Err(PrepareError::NoFiles { to: file.to.clone(), path: path.to_owned() });
        }
        self.total += walked.files.iter().map(|f| f.size).sum::<u64>();
        for found in &walked.files {
            let below = found.path.strip_prefix(path).unwrap_or(Path::new(""));
            let Some(below) = below.to_str() else {
                return Err(PrepareError::Name { to: file.to.clone(), path: found.path.clone() });
            };
            let to = if below.is_empty() { file.to.clone() } else { format!("{}/{below}", file.to) };
            let mode = std::fs::metadata(&found.path).map(|m| m.permissions().mode()).unwrap_or(0);
            let executable = file.executable || mode & 0o100 != 0;
            let blob = self.file(found).await?;
            placed.push(InputFile { path: to, source: Source::Blob(blob), executable });
        }
        Ok(())
    }

    async fn file(&mut self, file: &LocalFile) -> Result<BlobRef, PrepareError> {
        let added = self.store.add_file(&file.path, ImportMode::Copy, None).await;
        let added = added.map_err(|source| PrepareError::Input { path: file.path.clone(), source })?;
        if added.size != file.size {
            return Err(PrepareError::Changed(file.path.clone()));
        }
        self.done += added.size;
        (self.progress)("taking in inputs", self.done, self.total);
        self.hashes.push(added.hash);
        self.guards.push(added.tag);
        Ok(BlobRef { hash: added.hash, size: added.size })
    }
}

/// A file that nodes fetch themselves.
fn remote_file(file: &DraftFile, source: Source) -> InputFile {
    InputFile { path: file.to.clone(), source, executable: file.executable }
}
