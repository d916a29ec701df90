//! The job manifest: what `sinew submit MANIFEST` reads, in TOML, YAML or JSON, as a checked [`JobDraft`].
//!
//! One text becomes one generic tree whatever its format, and one hand-written reader walks the tree. It does not stop at
//! the first mistake: every [`Problem`] comes back with its path. Nothing here opens a file: local paths stay paths in the
//! draft, and the daemon turns them into blobs before [`JobDraft::into_spec`].
//!
//! ```toml
//! name = "count"                      # default: the program's name
//! type = "batch"                      # batch | map_reduce
//! cpus = 1.0                          # cores per task; fractions down to 0.001
//! memory = "512MiB"                   # bytes, or with kB MB GB TB KiB MiB GiB TiB
//! disk = "2GiB"
//! strategy = "binpack"                # binpack | spread
//! copies = 2                          # nodes that must hold each output: 1 | 2
//! labels = { zone = "a" }             # only nodes with all of these
//! network = ["pypi.org"]              # hosts that programs may connect to; default: none
//!
//! [limits]
//! timeout = "30s"                     # ms s m h d; default: none
//! output_max = "1GiB"
//!
//! [retry]
//! attempts = 3
//! delay = "200ms"
//!
//! [env]
//! LEVEL = "debug"                     # SINEW_ is reserved
//!
//! [[secrets]]                         # of `sinew secret set`, by name
//! name = "db"
//! env = "DB_PASSWORD"                 # or file = "NAME", below SINEW_SECRETS
//!
//! [batch]                             # with type = "batch"
//! command = ["python3", "x.py"]       # or one string, split at quotes and blanks; never a shell
//! tasks = 1
//! inputs = ["x.py", { inline = "text", to = "a.txt" }]
//! outputs = ["result.json"]           # under output/; default: all
//! ```
//! `docs/manifest.md` has the whole table, and `[map_reduce]`.

mod check;
mod draft;
mod fields;
mod inputs;
mod network;
mod outputs;
mod parse;
mod problem;
mod programs;
mod read;
mod schema;
mod secrets;
mod suggest;
mod tree;
pub mod units;

#[cfg(test)]
mod tests;

pub use draft::{
    COPIES_DEFAULT, PARTITIONS_DEFAULT, ProgramError, TASKS_DEFAULT, program_from_argv, program_from_text,
};
pub use draft::{
    DraftBatch, DraftContent, DraftContext, DraftFile, DraftProgram, DraftRound, DraftSource, DraftWork, JobDraft,
    RoundInputs, Split,
};
pub use outputs::plain_output;
pub use parse::{Format, SyntaxError};
pub use problem::{Problem, Problems};
pub use schema::schema;

use serde::Serialize;

/// Longest manifest, bytes. Four times the longest spec it could lead to; a longer one carries bulk that belongs in files.
pub const MANIFEST_LEN_MAX: usize = 1 << 20;

/// Why a manifest yields no draft.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, thiserror::Error)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum ManifestError {
    /// Longer than [`MANIFEST_LEN_MAX`].
    #[error("the manifest has {len} bytes, more than {MANIFEST_LEN_MAX}: put bulk into files and name them as inputs")]
    TooLong {
        /// Bytes found.
        len: usize,
    },
    /// Not UTF-8.
    #[error("the manifest is not text: byte {at} begins no UTF-8 character; save it as UTF-8")]
    NotText {
        /// Offset of the first bad byte.
        at: usize,
    },
    /// It does not parse: one entry for each format that was tried.
    #[error("{}", parse::join(.errors))]
    Syntax {
        /// What each parser said.
        errors: Vec<SyntaxError>,
    },
    /// It parses, but does not describe a job.
    #[error("{problems}")]
    Invalid {
        /// Every mistake found.
        problems: Problems,
    },
}

/// Reads a manifest. With `format: None` (standard input, an unknown extension) each format is tried.
///
/// # Errors
/// [`ManifestError`]; its `Invalid` holds every mistake, not only the first.
pub fn parse(bytes: &[u8], format: Option<Format>) -> Result<JobDraft, ManifestError> {
    if bytes.len() > MANIFEST_LEN_MAX {
        return Err(ManifestError::TooLong { len: bytes.len() });
    }
    let text = std::str::from_utf8(bytes).map_err(|e| ManifestError::NotText { at: e.valid_up_to() })?;
    // Editors on Windows begin files with a byte order mark, which only some of the parsers skip.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let tree = match format {
        Some(format) => parse::parse_as(text, format).map_err(|e| vec![e]),
        None => parse::parse_any(text),
    }
    .map_err(|errors| ManifestError::Syntax { errors })?;
    read::read(&tree).map_err(|problems| ManifestError::Invalid { problems })
}
