//! One mistake of a manifest, and the list of all of them, for people and for `--json`.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Longest excerpt of the user's own text in a message, in characters: enough to recognise it, short enough for one line.
const EXCERPT_LEN_MAX: usize = 60;

/// One mistake: where, what was found there, what is wrong with it and how to mend it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// Where, as in `map_reduce.inputs[2]`; empty for the manifest as a whole.
    pub path: String,
    /// What is there, if anything is.
    pub found: Option<String>,
    /// What is wrong with it.
    pub problem: String,
    /// What to write instead.
    pub mend: String,
}

impl Problem {
    /// A problem with what was found at `path`.
    #[must_use]
    pub fn new(
        path: impl Into<String>,
        found: impl Into<Option<String>>,
        problem: impl Into<String>,
        mend: impl Into<String>,
    ) -> Self {
        Self { path: path.into(), found: found.into(), problem: problem.into(), mend: mend.into() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = if self.path.is_empty() { "the manifest" } else { &self.path };
        write!(f, "{path}: {}", self.problem)?;
        if let Some(found) = &self.found {
            write!(f, " (found {found})")?;
        }
        write!(f, "; {}", self.mend)
    }
}

/// Every mistake of one manifest or draft, in the order in which `docs/manifest.md` lists their keys. Never empty when returned as an error.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Problems(pub Vec<Problem>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_slice() {
            [only] => write!(f, "{only}"),
            all => {
                write!(f, "{} problems:", all.len())?;
                all.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
            }
        }
    }
}

impl std::error::Error for Problems {}

/// `text` on one line, cut to [`EXCERPT_LEN_MAX`] characters.
pub(super) fn excerpt(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars().take(EXCERPT_LEN_MAX) {
        // Control characters could redraw the reader's terminal.
        if c.is_control() { out.extend(c.escape_default()) } else { out.push(c) }
    }
    if text.chars().nth(EXCERPT_LEN_MAX).is_some() {
        out.push('…');
    }
    out
}

/// `text` as an [`excerpt`] in quotes.
pub(super) fn quoted(text: &str) -> String {
    format!("\"{}\"", excerpt(text))
}
