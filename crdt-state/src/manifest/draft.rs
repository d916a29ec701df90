//! A job as its user asked for it: typed, every default filled in, but still with paths of the submitter's disk and without
//! the facts that only the daemon knows. Travels from CLI to daemon as JSON; the daemon checks it again and resolves it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::outputs::plain_output;
use super::problem::Problems;
use crate::ids::{DiskId, MeshId, NodeId};
use crate::network::Network;
use crate::object::ObjectFile;
use crate::program::{ContainerOf, ImageOf, ProgramOf, WasmOf};
use crate::remote::{GitTree, HttpFile};
use crate::secret::SecretUse;
use crate::spec::{
    Batch, BlobRef, Builtin, InputFile, JobSpec, Limits, MapReduce, PACE_MIN, Program, Resources, Retry, SpecFields,
    Strategy, UnknownBuiltin, Work,
};
use crate::volume::Volume;

/// Copies of each output when nothing is said: one lost node then costs no finished work.
pub const COPIES_DEFAULT: u8 = 2;
/// Reduce partitions when nothing is said: two rounds of work for two cores, still few output files to look at.
pub const PARTITIONS_DEFAULT: u32 = 4;
/// Tasks of a batch when nothing is said.
pub const TASKS_DEFAULT: u32 = 1;

/// What the user asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobDraft {
    /// For people; `None` is named after the program.
    pub name: Option<String>,
    /// The submitter's own name for the request, so that trying again makes no second job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// What to run.
    pub work: DraftWork,
    /// Environment variables of every task.
    pub env: BTreeMap<String, String>,
    /// What one task reserves while it runs.
    pub resources: Resources,
    /// What one task may use.
    pub limits: Limits,
    /// What happens when a task fails.
    pub retry: Retry,
    /// Only nodes with all these labels run it.
    pub labels: BTreeMap<String, String>,
    /// How candidates are ranked.
    pub strategy: Strategy,
    /// Nodes that must hold each output before a task counts as finished (1 or 2).
    pub copies: u8,
    /// What its programs may connect to.
    #[serde(default, skip_serializing_if = "Network::is_none")]
    pub network: Network,
    /// Secrets of the submitter that the programs are given.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<SecretUse>,
    /// Directories of nodes that its programs use; only nodes that offer them run it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<Volume>,
}

/// The kinds of work, unresolved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[expect(clippy::large_enum_variant, reason = "one for each submit")]
pub enum DraftWork {
    /// Independent runs of one program.
    Batch(DraftBatch),
    /// A map-reduce round.
    MapReduce(DraftRound),
}

/// An unresolved [`Batch`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DraftBatch {
    /// What each task runs.
    pub program: DraftProgram,
    /// How many tasks.
    pub tasks: u32,
    /// Files placed in the working directory, under the paths given here.
    pub inputs: Vec<DraftFile>,
    /// Runs once on each node before its first task: what it leaves in its output directory are further inputs.
    pub gather: Option<Vec<String>>,
    /// Paths under `output/` to keep; empty keeps everything found there.
    pub outputs: Vec<String>,
}

/// An unresolved [`MapReduce`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DraftRound {
    /// Local files, or directories for all files in them.
    pub inputs: Vec<String>,
    /// How they are cut into chunks.
    pub split: Split,
    /// Lines in, `key\tvalue` lines out.
    pub map: DraftProgram,
    /// Pre-reduces one chunk's sorted output, if given.
    pub combine: Option<DraftProgram>,
    /// A partition's sorted lines in, result lines out.
    pub reduce: DraftProgram,
    /// How many partitions, hence reduce tasks.
    pub partitions: u32,
    /// Program files, placed in each task's working directory.
    pub files: Vec<DraftFile>,
}

/// How a round's input is cut into chunks. A chunk never spans two files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Split {
    /// So many lines each.
    Lines(u64),
    /// About so many bytes each, cut at line ends.
    Bytes(u64),
    /// One chunk per file.
    Files,
}

impl Default for Split {
    fn default() -> Self {
        // 16 MiB: a second or so of a streaming program's work, against some ten microseconds of dispatch.
        Self::Bytes(16 << 20)
    }
}

/// A file for a task, still to be resolved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DraftFile {
    /// Its relative path at the task.
    pub to: String,
    /// Where the content is now.
    pub source: DraftSource,
    /// Whether it gets the executable bit.
    pub executable: bool,
}

/// Where the content of a [`DraftFile`] is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum DraftSource {
    /// A file on the submitter's disk.
    Path(String),
    /// Here.
    Inline(String),
    /// In the blob store already.
    Blob(BlobRef),
    /// On a web server, where each node fetches it.
    Http(HttpFile),
    /// In a git repository, where each node fetches it; a directory of files.
    Git(GitTree),
    /// In an object store, where each node fetches it.
    Object(ObjectFile),
}

/// A program whose content may still be on the submitter's disk.
pub type DraftProgram = ProgramOf<DraftContent>;

/// Where the content of a program is: an image's archive, a WebAssembly module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum DraftContent {
    /// A file on the submitter's disk.
    Path(String),
    /// In the blob store already.
    Blob(BlobRef),
}

impl DraftFile {
    /// A file of the submitter's disk, placed under its own name. `None` when the path ends in none (`..`, `/`).
    #[must_use]
    pub fn from_path(path: impl Into<String>) -> Option<Self> {
        let path = path.into();
        let to = Path::new(&path).file_name()?.to_str()?.to_owned();
        Some(Self { to, source: DraftSource::Path(path), executable: false })
    }

    /// A small file with this text.
    #[must_use]
    pub fn inline(to: impl Into<String>, text: impl Into<String>) -> Self {
        Self { to: to.into(), source: DraftSource::Inline(text.into()), executable: false }
    }

    /// A file that the blob store has.
    #[must_use]
    pub fn blob(to: impl Into<String>, blob: BlobRef) -> Self {
        Self { to: to.into(), source: DraftSource::Blob(blob), executable: false }
    }
}

/// Why words are no program.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProgramError {
    /// There are none, or the first is empty.
    #[error("the command is empty")]
    Empty,
    /// A quote is not closed.
    #[error("a quote is not closed")]
    Quote,
    /// It names a built-in that does not exist.
    #[error(transparent)]
    Builtin(#[from] UnknownBuiltin),
}

/// The program that an argument vector names, built-ins (`sinew:NAME`) included.
///
/// # Errors
/// [`ProgramError`].
pub fn program_from_argv(argv: Vec<String>) -> Result<DraftProgram, ProgramError> {
    if argv.first().is_none_or(String::is_empty) {
        return Err(ProgramError::Empty);
    }
    match Builtin::parse(&argv) {
        Some(builtin) => Ok(ProgramOf::Builtin(builtin?)),
        None => Ok(ProgramOf::Exec(argv)),
    }
}

/// The program that one text names. It is split at blanks, with a shell's quotes and backslashes; nothing else of a shell is
/// understood: no variables, no patterns, no pipes.
///
/// # Errors
/// [`ProgramError`].
pub fn program_from_text(text: &str) -> Result<DraftProgram, ProgramError> {
    program_from_argv(shell_words::split(text).map_err(|_| ProgramError::Quote)?)
}

/// What the daemon adds to a draft.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DraftContext {
    /// The mesh it is for.
    pub mesh: MeshId,
    /// The daemon's own node.
    pub submitter: NodeId,
    /// The submitter's next serial.
    pub serial: u64,
    /// Unix ms, now.
    pub submitted_ms: u64,
    /// The brain of term 1, then the stewards.
    pub brain_set: Vec<NodeId>,
    /// Their disks.
    pub brain_disks: Vec<DiskId>,
}

/// A round's programs and inputs, once they are blobs and cut.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoundInputs {
    /// The mapper, the combiner and the reducer.
    pub programs: (Program, Option<Program>, Program),
    /// Blob with the CBOR of `Vec<Chunk>`.
    pub chunk_table: BlobRef,
    /// How many chunks the table has.
    pub chunks: u32,
    /// The input files that chunks point into.
    pub inputs: Vec<BlobRef>,
}

impl DraftWork {
    fn programs_mut(&mut self) -> impl Iterator<Item = &mut DraftProgram> {
        let all = match self {
            Self::Batch(batch) => [Some(&mut batch.program), None, None],
            Self::MapReduce(round) => [Some(&mut round.map), round.combine.as_mut(), Some(&mut round.reduce)],
        };
        all.into_iter().flatten()
    }
}

impl DraftBatch {
    /// The work, with its files resolved in order.
    #[must_use]
    pub fn resolve(&self, env: BTreeMap<String, String>, program: Program, inputs: Vec<InputFile>) -> Work {
        let gather = self.gather.clone();
        let outputs = self.outputs.iter().map(|output| plain_output(output)).collect();
        Work::Batch(Batch { program, tasks: self.tasks, env, inputs, gather, outputs })
    }
}

impl DraftRound {
    /// The work, with its inputs cut and its files resolved in order.
    #[must_use]
    pub fn resolve(&self, env: BTreeMap<String, String>, round: RoundInputs, files: Vec<InputFile>) -> Work {
        let (map, combine, reduce) = round.programs;
        Work::MapReduce(Box::new(MapReduce {
            chunk_table: round.chunk_table,
            chunks: round.chunks,
            inputs: round.inputs,
            map,
            combine,
            reduce,
            partitions: self.partitions,
            files,
            env,
        }))
    }
}

impl JobDraft {
    /// One task of `program`, with every default.
    #[must_use]
    pub fn batch(program: DraftProgram) -> Self {
        Self::of(DraftWork::Batch(DraftBatch {
            program,
            tasks: TASKS_DEFAULT,
            inputs: Vec::new(),
            gather: None,
            outputs: Vec::new(),
        }))
    }

    /// A round over local `inputs`, with every default.
    #[must_use]
    pub fn map_reduce(inputs: Vec<String>, map: DraftProgram, reduce: DraftProgram) -> Self {
        Self::of(DraftWork::MapReduce(DraftRound {
            inputs,
            split: Split::default(),
            map,
            combine: None,
            reduce,
            partitions: PARTITIONS_DEFAULT,
            files: Vec::new(),
        }))
    }

    fn of(work: DraftWork) -> Self {
        Self {
            name: None,
            key: None,
            work,
            env: BTreeMap::new(),
            resources: Resources::default(),
            limits: Limits::default(),
            retry: Retry::default(),
            labels: BTreeMap::new(),
            strategy: Strategy::default(),
            copies: COPIES_DEFAULT,
            network: Network::default(),
            secrets: Vec::new(),
            volumes: Vec::new(),
        }
    }

    /// Checks every bound, for drafts of a manifest and of the command line alike.
    ///
    /// # Errors
    /// All problems, with the paths that a manifest would have.
    pub fn check(&self) -> Result<(), Problems> {
        let problems = super::check::check(self);
        if problems.0.is_empty() { Ok(()) } else { Err(problems) }
    }

    /// Files for the tasks: a batch's inputs or a round's program files.
    #[must_use]
    pub fn files(&self) -> &[DraftFile] {
        match &self.work {
            DraftWork::Batch(batch) => &batch.inputs,
            DraftWork::MapReduce(round) => &round.files,
        }
    }

    /// Every secret that the job needs: those of its programs, and those with which its inputs are fetched.
    #[must_use]
    pub fn secret_names(&self) -> BTreeSet<&str> {
        let fetching = self.files().iter().filter_map(|file| match &file.source {
            DraftSource::Git(tree) => tree.token.as_deref(),
            DraftSource::Object(object) => object.credentials.as_deref(),
            _ => None,
        });
        self.secrets.iter().map(|secret| secret.name.as_str()).chain(fetching).collect()
    }

    /// Makes every local path start at `base`; absolute ones stay. The CLI calls it, as the daemon works elsewhere.
    pub fn anchor_paths(&mut self, base: &str) {
        let anchor = |path: &mut String| {
            if let Some(joined) = Path::new(base).join(&*path).to_str() {
                *path = joined.to_owned();
            }
        };
        for program in self.work.programs_mut() {
            if let Some(DraftContent::Path(path)) = program.content_mut() {
                anchor(path);
            }
        }
        let files = match &mut self.work {
            DraftWork::Batch(batch) => &mut batch.inputs,
            DraftWork::MapReduce(round) => {
                round.inputs.iter_mut().for_each(anchor);
                &mut round.files
            }
        };
        for file in files {
            if let DraftSource::Path(path) = &mut file.source {
                anchor(path);
            }
        }
    }

    /// The name given, or else the program's.
    #[must_use]
    pub fn display_name(&self) -> String {
        let program = match &self.work {
            DraftWork::Batch(batch) => &batch.program,
            DraftWork::MapReduce(round) => &round.map,
        };
        let last = |path: &'_ str| path.rsplit('/').next().map(str::to_owned);
        let of_content = |content: &DraftContent| match content {
            DraftContent::Path(path) => last(path),
            DraftContent::Blob(_) => None,
        };
        let word = match program {
            ProgramOf::Exec(argv) => argv.first().and_then(|word| last(word)),
            ProgramOf::Builtin(builtin) => Some(builtin.name().to_owned()),
            ProgramOf::Python(call) => Some(call.call.clone()),
            ProgramOf::Container(ContainerOf { image: ImageOf::Digest(name), .. }) => {
                name.split_once('@').and_then(|(name, _)| last(name))
            }
            ProgramOf::Container(ContainerOf { image: ImageOf::Archive(content), .. })
            | ProgramOf::Wasm(WasmOf { module: content, .. }) => of_content(content),
        };
        let word = word.unwrap_or_else(|| "job".to_owned());
        let short = || word.chars().filter(|c| !c.is_control()).take(super::check::NAME_LEN_MAX).collect();
        self.name.clone().unwrap_or_else(short)
    }

    /// The complete spec: this draft, the daemon's facts, and the work as [`DraftBatch::resolve`] or
    /// [`DraftRound::resolve`] gave it.
    #[must_use]
    pub fn into_spec(self, context: DraftContext, work: Work) -> JobSpec {
        let name = self.display_name();
        JobSpec::from(SpecFields {
            mesh: context.mesh,
            submitter: context.submitter,
            serial: context.serial,
            submitted_ms: context.submitted_ms,
            brain_set: context.brain_set,
            brain_disks: context.brain_disks,
            name,
            work,
            resources: self.resources,
            limits: self.limits,
            retry: self.retry,
            labels: self.labels,
            strategy: self.strategy,
            copies: self.copies,
            network: self.network,
            secrets: self.secrets,
            volumes: self.volumes,
            alone: None,
            submit_key: self.key,
            pace: PACE_MIN,
        })
    }
}
