//! The directory that simulated runs are written into.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use serde_json::Value;
use sinew_simnet::files;
use sinew_simnet::run::{InvalidOptions, Report};

use super::super::super::error::CliError;
use super::super::file_error;

/// Failed runs, a line each, written as they fail.
const FAILURES: &str = "failures.jsonl";

/// The directory, known to be writable.
#[derive(Debug)]
pub(super) struct Out {
    dir: PathBuf,
    failures: File,
}

impl Out {
    /// Makes the directory before any run: hours later would be a bad time to learn that it cannot be written.
    pub(super) fn open(dir: &Path) -> Result<Self, InvalidOptions> {
        let made = fs::create_dir_all(dir).and_then(|()| File::create(dir.join(FAILURES)));
        let failures = made.map_err(|error| refuse(dir, &error))?;
        Ok(Self { dir: dir.to_owned(), failures })
    }

    pub(super) fn failed(&mut self, object: &Value) -> Result<(), CliError> {
        writeln!(self.failures, "{object}").map_err(file_error("write", &self.dir.join(FAILURES)))
    }

    /// Tables and plots of the runs that held.
    pub(super) fn write(&self, held: &[Report]) -> Result<(), CliError> {
        for (name, text) in files::of(held) {
            let path = self.dir.join(name);
            fs::write(&path, text).map_err(file_error("write", &path))?;
        }
        Ok(())
    }
}

fn refuse(dir: &Path, error: &io::Error) -> InvalidOptions {
    InvalidOptions {
        field: "--out",
        value: dir.display().to_string(),
        mend: format!("nothing can be written there ({error}); name a directory that is yours, or a new one"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_cannot_be_written_is_refused_by_name_and_what_can_is_there() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("file");
        fs::write(&file, "").expect("a file");
        let error = Out::open(&file.join("sub")).expect_err("a file is no directory");
        assert_eq!((error.field, error.value), ("--out", file.join("sub").display().to_string()));

        let path = dir.path().join("new/deep");
        let mut out = Out::open(&path).expect("it is made");
        out.failed(&json!({"failed": "x"})).expect("a line");
        out.write(&[]).expect("no runs");
        assert_eq!(fs::read_to_string(path.join(FAILURES)).expect("failures"), "{\"failed\":\"x\"}\n");
        assert!(fs::read_to_string(path.join("runs.csv")).expect("a table").starts_with("seed,nodes,"));
    }
}
