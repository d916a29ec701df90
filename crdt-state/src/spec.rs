//! What a submitter asks for: the signed job spec. A spec is complete (no paths of anyone's disk, every default filled in),
//! so that any node can run it and its hash can be the job's id.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::cbor;
use crate::derivation::Derivation;
use crate::identity::{BadSignature, Domain, Identity, Signature, verify};
use crate::ids::{DiskId, Hash, JobId, MeshId, NodeId};
use crate::network::Network;
use crate::object::ObjectFile;
pub use crate::program::{Program, Runners};
use crate::remote::{GitTree, HttpFile};
use crate::secret::{self, SecretUse};
pub use crate::terms::{JobSpec, Terms};
use crate::volume::{Volume, check_volumes};

/// Longest encoded spec: it is replicated to every node, so bulk belongs in blobs.
pub const SPEC_LEN_MAX: usize = 256 * 1024;
/// Most tasks or chunks in one phase: task numbers are `u32`, and per-task state on the brain is a few bytes.
pub const TASKS_MAX: u32 = 100_000_000;
/// Most reduce partitions: a map output carries an index entry for each.
pub const PARTITIONS_MAX: u32 = 4_096;

/// The pace of a mesh whose nodes are near each other: every span of the protocol as it is.
pub const PACE_MIN: u8 = 1;
/// The slowest pace: leases of 24 s, for round trips of some seconds.
pub const PACE_MAX: u8 = 16;

/// The pace of what states none.
#[must_use]
pub const fn pace_min() -> u8 {
    PACE_MIN
}

/// Whether a pace need not be stated.
#[must_use]
pub const fn is_pace_min(pace: &u8) -> bool {
    *pace == PACE_MIN
}

/// A complete job, as it is written down and signed: every field by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename = "JobSpec")]
pub struct SpecFields {
    /// The mesh it is for.
    pub mesh: MeshId,
    /// Who asks; the only one besides admins who may cancel.
    pub submitter: NodeId,
    /// Counts the submitter's jobs, strictly growing: makes equal requests distinct and lets ledgers forget old ones.
    pub serial: u64,
    /// Unix ms on the submitter's clock.
    pub submitted_ms: u64,
    /// The brain of term 1, then the stewards. One or three nodes; decisions need a majority of them.
    pub brain_set: Vec<NodeId>,
    /// The disks that these nodes had when the job was submitted, in the same order: a member with another disk has
    /// forgotten what it promised, if anything, and counts only once it has caught up ([`crate::fact::Fact::Rejoin`]).
    pub brain_disks: Vec<DiskId>,
    /// For people; need not be unique.
    pub name: String,
    /// What to run.
    pub work: Work,
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
    /// Why one node alone decides although the mesh is large enough for three; nothing where three do, or in a small mesh.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alone: Option<Alone>,
    /// The submitter's own name for the request: of two with one key only the first makes a job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub submit_key: Option<String>,
    /// How much longer leases, silences and everything measured against them last in the first term than between nodes that are near
    /// each other: a factor, from the round trips that the submitter measured. Later terms state their own.
    #[serde(default = "pace_min", skip_serializing_if = "is_pace_min")]
    pub pace: u8,
}

/// How many members were in reach when a job was submitted, too few for a brain set of three. The submitter counts among both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alone {
    /// Members that run work and could be reached.
    pub in_reach: u32,
    /// Members that run work, as far as the submitter knew.
    pub known: u32,
}

impl std::fmt::Display for Alone {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let verb = if self.in_reach == 1 { "was" } else { "were" };
        write!(f, "{} of {} members {verb} in reach", self.in_reach, self.known)
    }
}

/// The kinds of work.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[expect(clippy::large_enum_variant, reason = "nearly all are batches")]
pub enum Work {
    /// `tasks` independent runs of one program.
    Batch(Batch),
    /// A map-reduce round. Boxed: twice as large as a batch, of which there are thousands.
    MapReduce(Box<MapReduce>),
}

/// Independent runs of one program, numbered from 0 (`SINEW_TASK`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Batch {
    /// What each task runs.
    pub program: Program,
    /// How many tasks.
    pub tasks: u32,
    /// Environment variables.
    pub env: BTreeMap<String, String>,
    /// Files placed in the working directory, under the paths given here.
    pub inputs: Vec<InputFile>,
    /// Runs once on each node that works for the job, before its first task; what it leaves in its output directory are
    /// further inputs. An argument vector.
    pub gather: Option<Vec<String>>,
    /// Paths under `output/` to keep; empty keeps everything found there.
    pub outputs: Vec<String>,
}

/// A round: chunks are mapped, shuffled by key into partitions, and reduced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MapReduce {
    /// Blob with the CBOR of `Vec<Chunk>`.
    pub chunk_table: BlobRef,
    /// How many chunks the table has.
    pub chunks: u32,
    /// The input files that chunks point into.
    pub inputs: Vec<BlobRef>,
    /// Lines in, `key\tvalue` lines out.
    pub map: Program,
    /// Pre-reduces one chunk's sorted output, if given.
    pub combine: Option<Program>,
    /// A partition's sorted lines in, result lines out.
    pub reduce: Program,
    /// How many partitions, hence reduce tasks.
    pub partitions: u32,
    /// Program files, placed in each task's working directory.
    pub files: Vec<InputFile>,
    /// Environment variables.
    pub env: BTreeMap<String, String>,
}

/// A slice of one input file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chunk {
    /// Index into [`MapReduce::inputs`].
    pub input: u32,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
}

/// Programs that every daemon has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Builtin {
    /// Map: each word of the input as `word\t1`.
    Wordcount,
    /// Reduce or combine: sums the integer values of each key.
    Sum,
    /// Map: the lines that contain the text, as `line\t1`.
    Grep(String),
    /// Does nothing, at once.
    Noop,
}

impl Builtin {
    /// The prefix of a built-in's name on the command line.
    pub const PREFIX: &'static str = "sinew:";

    /// Its name without the prefix.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Wordcount => "wordcount",
            Self::Sum => "sum",
            Self::Grep(_) => "grep",
            Self::Noop => "noop",
        }
    }

    /// Reads `sinew:NAME [ARG]` given as an argument vector; `None` when `argv` is no built-in at all.
    #[must_use]
    pub fn parse(argv: &[String]) -> Option<Result<Self, UnknownBuiltin>> {
        let (first, rest) = argv.split_first()?;
        let name = first.strip_prefix(Self::PREFIX)?;
        Some(match (name, rest) {
            ("wordcount", []) => Ok(Self::Wordcount),
            ("sum", []) => Ok(Self::Sum),
            ("noop", []) => Ok(Self::Noop),
            ("grep", [pattern]) => Ok(Self::Grep(pattern.clone())),
            _ => Err(UnknownBuiltin(argv.join(" "))),
        })
    }
}

/// A `sinew:` name or its arguments that do not exist.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no built-in: use sinew:wordcount, sinew:sum, sinew:grep PATTERN or sinew:noop")]
pub struct UnknownBuiltin(pub String);

/// A blob and its size in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct BlobRef {
    /// BLAKE3 of the content.
    pub hash: Hash,
    /// Bytes.
    pub size: u64,
}

/// A file that a task finds in its input directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InputFile {
    /// Relative path with `/`, no `..`, no empty part.
    pub path: String,
    /// Where the content is.
    pub source: Source,
    /// Whether it gets the executable bit.
    pub executable: bool,
}

/// Where a file's content is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Source {
    /// In the spec itself: for a few KiB at most.
    Inline(#[serde(with = "serde_bytes")] Vec<u8>),
    /// In the blob store.
    Blob(BlobRef),
    /// On a web server.
    Http(HttpFile),
    /// In a git repository: a directory of files.
    Git(GitTree),
    /// In an object store.
    Object(ObjectFile),
}

/// What a task reserves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// Thousandths of a CPU core.
    pub cpu_milli: u32,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Bytes of disk.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub disk_bytes: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
const fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl Default for Resources {
    fn default() -> Self {
        // One core and no claim of memory or disk: what a plain command needs, and what Nomad, Ray and HyperQueue assume.
        Self { cpu_milli: 1_000, memory_bytes: 0, disk_bytes: 0 }
    }
}

/// What a task may use before it is ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Wall-clock ms of one attempt; `None` is no limit.
    pub timeout_ms: Option<u64>,
    /// Bytes that one task may write to stdout, stderr and `output/` together.
    pub output_bytes_max: u64,
}

impl Default for Limits {
    fn default() -> Self {
        // 1 GiB: above any sane chunk's output, below what fills a laptop's disk before someone looks.
        Self { timeout_ms: None, output_bytes_max: 1 << 30 }
    }
}

/// What happens when a task's attempt fails with an error that a retry may cure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retry {
    /// Failed attempts tolerated per task before the job fails.
    pub attempts: u32,
    /// Wait before the next attempt, ms.
    pub delay_ms: u64,
}

impl Default for Retry {
    fn default() -> Self {
        // Three more tries, as features.md (J6) gives a batch job; the delay rides out a passing shortage.
        Self { attempts: 3, delay_ms: 200 }
    }
}

/// How candidates that fit are ranked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Strategy {
    /// Fill nodes that are already busy first, so that big tasks still find an empty one.
    #[default]
    Binpack,
    /// Prefer the emptiest node.
    Spread,
}

/// A phase of a job, by number.
pub type Phase = u8;
/// The only phase of a batch, the map phase of a round.
pub const PHASE_MAP: Phase = 0;
/// The reduce phase of a round.
pub const PHASE_REDUCE: Phase = 1;

impl JobSpec {
    /// Task counts, phase by phase; a phase starts only when the one before it is finished.
    #[must_use]
    pub fn phases(&self) -> Vec<u32> {
        match &*self.work {
            Work::Batch(batch) => vec![batch.tasks],
            Work::MapReduce(round) => vec![round.chunks, round.partitions],
        }
    }

    /// The program of `phase`.
    #[must_use]
    pub fn program(&self, phase: Phase) -> &Program {
        match &*self.work {
            Work::Batch(batch) => &batch.program,
            Work::MapReduce(round) if phase == PHASE_MAP => &round.map,
            Work::MapReduce(round) => &round.reduce,
        }
    }

    /// Every blob that must be at hand to run it.
    #[must_use]
    pub fn input_blobs(&self) -> Vec<BlobRef> {
        let of_files = |files: &[InputFile]| -> Vec<BlobRef> {
            files
                .iter()
                .filter_map(|f| match &f.source {
                    Source::Blob(blob) => Some(*blob),
                    Source::Inline(_) | Source::Http(_) | Source::Git(_) | Source::Object(_) => None,
                })
                .collect()
        };
        let of_programs = self.programs().filter_map(|program| program.content().copied());
        match &*self.work {
            Work::Batch(batch) => of_files(&batch.inputs).into_iter().chain(of_programs).collect(),
            Work::MapReduce(round) => {
                let mut all = of_files(&round.files);
                all.extend(of_programs);
                all.push(round.chunk_table);
                all.extend(round.inputs.iter().copied());
                all
            }
        }
    }

    /// Every program of the job.
    pub fn programs(&self) -> impl Iterator<Item = &Program> {
        let all = match &*self.work {
            Work::Batch(batch) => [Some(&batch.program), None, None],
            Work::MapReduce(round) => [Some(&round.map), round.combine.as_ref(), Some(&round.reduce)],
        };
        all.into_iter().flatten()
    }

    /// The runners that a node needs for it, and whether it must let programs reach hosts.
    #[must_use]
    pub fn runners(&self) -> Runners {
        let gathers = matches!(&*self.work, Work::Batch(Batch { gather: Some(_), .. }));
        let first = if gathers { Runners::PROCESS } else { Runners::NONE };
        let first = if self.network.is_none() { first } else { first.union(Runners::NETWORK) };
        self.programs().fold(first, |all, program| all.union(program.runner()))
    }

    /// The job's variables.
    #[must_use]
    pub fn env(&self) -> &BTreeMap<String, String> {
        match &*self.work {
            Work::Batch(batch) => &batch.env,
            Work::MapReduce(round) => &round.env,
        }
    }

    /// The files that tasks find.
    #[must_use]
    pub fn files(&self) -> &[InputFile] {
        match &*self.work {
            Work::Batch(batch) => &batch.inputs,
            Work::MapReduce(round) => &round.files,
        }
    }

    /// Every secret that a node needs for the job: those of its programs, and those with which its inputs are fetched.
    #[must_use]
    pub fn secret_names(&self) -> BTreeSet<&str> {
        let fetching = self.files().iter().filter_map(|file| match &file.source {
            Source::Git(tree) => tree.token.as_deref(),
            Source::Object(object) => object.credentials.as_deref(),
            Source::Inline(_) | Source::Blob(_) | Source::Http(_) => None,
        });
        self.secrets.iter().map(|secret| secret.name.as_str()).chain(fetching).collect()
    }

    /// The disk that `node` had when the job was submitted; `None` when it is not in the brain set.
    #[must_use]
    pub fn disk_of(&self, node: NodeId) -> Option<DiskId> {
        let place = self.brain_set.iter().position(|n| *n == node)?;
        self.brain_disks.get(place).copied()
    }

    /// How many of the brain set make a majority.
    #[must_use]
    pub fn majority(&self) -> usize {
        self.brain_set.len() / 2 + 1
    }
}

/// A spec with the submitter's signature; its hash is the job id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedSpec {
    /// CBOR of the [`JobSpec`], exactly as signed.
    #[serde(with = "serde_bytes")]
    pub spec: Vec<u8>,
    /// The submitter's signature, domain [`Domain::Spec`].
    pub signature: Signature,
}

/// Why a signed spec was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// Longer than [`SPEC_LEN_MAX`].
    #[error("the spec takes {0} bytes, more than {SPEC_LEN_MAX}: put inline inputs into blobs")]
    TooLong(usize),
    /// Not a spec.
    #[error("the spec does not decode: {0}")]
    Decode(#[from] cbor::DecodeError),
    /// The signature is wrong.
    #[error("the spec's {0}")]
    Signature(#[from] BadSignature),
    /// A field is out of its range.
    #[error("spec field `{field}`: {problem}")]
    Field {
        /// Which.
        field: &'static str,
        /// What is wrong with it and what would be right.
        problem: &'static str,
    },
}

impl SignedSpec {
    /// Signs `spec` as its submitter.
    #[must_use]
    pub fn sign(identity: &Identity, spec: &JobSpec) -> Self {
        let spec = cbor::to_vec(spec);
        let signature = identity.sign(Domain::Spec, &spec);
        Self { spec, signature }
    }

    /// The job's id.
    #[must_use]
    pub fn id(&self) -> JobId {
        static ID: Derivation = Derivation::new("sinew job id 1");
        let mut hasher = ID.hasher();
        hasher.update(&self.spec).update(&self.signature.0);
        JobId(*hasher.finalize().as_bytes())
    }

    /// Decodes, verifies the signature, and checks every bound.
    ///
    /// # Errors
    /// [`SpecError`].
    pub fn open(&self) -> Result<JobSpec, SpecError> {
        let spec = self.decode()?;
        verify(spec.submitter.as_bytes(), Domain::Spec, &self.spec, &self.signature)?;
        Ok(spec)
    }

    /// Decodes and checks every bound, but not the signature: for a spec that its submitter signed otherwise as well, as the
    /// one in an envelope that was checked, or that this node has signed or stored itself.
    ///
    /// # Errors
    /// [`SpecError`].
    pub fn decode(&self) -> Result<JobSpec, SpecError> {
        if self.spec.len() > SPEC_LEN_MAX {
            return Err(SpecError::TooLong(self.spec.len()));
        }
        let spec: JobSpec = cbor::from_slice(&self.spec)?;
        check(&spec)?;
        Ok(spec)
    }
}

fn check(spec: &JobSpec) -> Result<(), SpecError> {
    let bad = |field, problem| Err(SpecError::Field { field, problem });
    let set = &spec.brain_set;
    if !matches!(set.len(), 1 | 3) || (1..set.len()).any(|i| set[..i].contains(&set[i])) {
        return bad("brain_set", "must name one node or three different ones");
    }
    if spec.brain_disks.len() != set.len() {
        return bad("brain_disks", "must name one disk for each member of the brain set");
    }
    if spec.alone.is_some_and(|alone| set.len() > 1 || alone.in_reach == 0 || alone.in_reach >= alone.known) {
        return bad(
            "alone",
            "must say that fewer members were in reach than there are, of a job with one node in its set",
        );
    }
    if let Some(Err(problem)) = spec.submit_key.as_deref().map(crate::submit_key::check) {
        return bad("submit_key", problem);
    }
    if spec.phases().iter().any(|n| *n > TASKS_MAX) {
        return bad("tasks", "more than a job may have");
    }
    if crate::rules::check_pace(spec.pace).is_err() {
        return bad("pace", "must be from 1 to 16");
    }
    if !(1..=2).contains(&spec.copies) {
        return bad("copies", "must be 1 or 2");
    }
    if let Work::MapReduce(round) = &*spec.work
        && !(1..=PARTITIONS_MAX).contains(&round.partitions)
    {
        return bad("partitions", "must be 1 to 4096");
    }
    secret::check(&spec.secrets, |name| spec.env().contains_key(name))
        .or_else(|(_, (problem, _))| bad("secrets", problem))?;
    if spec.secret_names().len() > secret::SECRETS_MAX {
        return bad("secrets", "more than a job may have");
    }
    let files = spec.files();
    if files.iter().any(|f| !is_safe_relative(&f.path)) {
        return bad("inputs", "each path must be relative, without `..`");
    }
    for file in files {
        match &file.source {
            Source::Http(remote) => remote.check(),
            Source::Git(remote) => remote.check(),
            Source::Object(remote) => remote.check(),
            Source::Inline(_) | Source::Blob(_) => Ok(()),
        }
        .or_else(|(problem, _)| bad("inputs", problem))?;
    }
    if let Work::Batch(Batch { gather: Some(argv), .. }) = &*spec.work
        && argv.first().is_none_or(String::is_empty)
    {
        return bad("gather", "the argument vector is empty");
    }
    spec.network.check().or_else(|(problem, _)| bad("network", problem))?;
    check_volumes(&spec.volumes).or_else(|(_, (problem, _))| bad("volumes", problem))?;
    for program in spec.programs() {
        program.check().or_else(|(problem, _)| bad("program", problem))?;
    }
    Ok(())
}

/// Whether `path` stays inside whatever directory it is joined to: relative, `/`-separated, no `.`/`..`/empty part, no NUL.
#[must_use]
pub fn is_safe_relative(path: &str) -> bool {
    !path.is_empty()
        && path.len() <= 4_096
        && !path.contains(['\0', '\\'])
        && path.split('/').all(|part| !matches!(part, "" | "." | ".."))
}
