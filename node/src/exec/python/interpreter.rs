//! Which interpreter runs functions, and what of the machine it needs to see.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::exec::cell::SYSTEM;

/// The interpreter where none is set.
const DEFAULT: &str = "python3";
/// Links from one name of an interpreter to the next: virtual environments of virtual environments have a handful.
const LINKS_MAX: usize = 16;

/// The `[python]` section of the settings.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PythonOptions {
    /// The interpreter: a name to look up in `PATH`, a file, or the directory of a virtual environment; `python3`, when not set.
    pub interpreter: Option<PathBuf>,
    /// Directories that modules are looked for in, before the job's own files.
    pub paths: Vec<PathBuf>,
}

impl PythonOptions {
    /// The interpreter by name or by file. A directory's own is meant where a directory is given.
    pub(super) fn program(&self) -> PathBuf {
        let given = self.interpreter.clone().unwrap_or_else(|| DEFAULT.into());
        if is_name(&given) || !given.is_dir() {
            return given;
        }
        let inside = ["bin/python3", "bin/python"].map(|name| given.join(name));
        inside.iter().find(|file| file.is_file()).unwrap_or(&inside[0]).clone()
    }

    /// What programs must be able to read so that the interpreter works and finds its modules, beyond what they see anyway:
    /// the module directories, the environment, and the installation that it was made from. What is not there is left out.
    #[must_use]
    pub fn readable(&self) -> Vec<PathBuf> {
        let mut shown: BTreeSet<PathBuf> = self.paths.iter().filter(|path| path.exists()).cloned().collect();
        let program = self.program();
        if !is_name(&program) {
            for name in names(&program) {
                shown.extend(installation(&name));
            }
        }
        shown.retain(|path| !SYSTEM.iter().any(|system| path.starts_with(system)));
        shown.into_iter().collect()
    }

    /// The first of the module directories that is none.
    pub(super) fn missing_path(&self) -> Option<&Path> {
        self.paths.iter().map(PathBuf::as_path).find(|path| !path.is_dir())
    }
}

/// Whether it is a name to be looked up.
pub(crate) fn is_name(program: &Path) -> bool {
    program.components().count() == 1 && !program.is_absolute()
}

/// The names by which links lead from `program` to the file itself.
fn names(program: &Path) -> Vec<PathBuf> {
    let mut names = vec![program.to_owned()];
    while let Some(target) = names.last().and_then(|last| Some(last.parent()?.join(std::fs::read_link(last).ok()?))) {
        if names.len() > LINKS_MAX {
            break;
        }
        names.push(target);
    }
    names.extend(program.canonicalize().ok());
    names
}

/// The directories of an interpreter by this name: its installation's or environment's, and that of the installation which an
/// environment names as its home. Just the file where it stands in no such directory: not everything beside it is Python's.
fn installation(program: &Path) -> Vec<PathBuf> {
    let Some(prefix) = program.parent().and_then(Path::parent).filter(|prefix| prefix.parent().is_some()) else {
        return vec![program.to_owned()];
    };
    if let Ok(text) = std::fs::read_to_string(prefix.join("pyvenv.cfg")) {
        let home = text.lines().filter_map(|line| line.split_once('=')).find(|(key, _)| key.trim() == "home");
        let home = home.map(|(_, value)| Path::new(value.trim()).join("python3"));
        let base = home.into_iter().flat_map(|home| names(&home)).flat_map(|name| installed(&name));
        return std::iter::once(prefix.to_owned()).chain(base).collect();
    }
    installed(program).map_or_else(|| vec![program.to_owned()], |prefix| vec![prefix])
}

/// The directory that an installation with `program` takes up, if it looks like one.
fn installed(program: &Path) -> Option<PathBuf> {
    let prefix = program.parent()?.parent().filter(|prefix| prefix.parent().is_some())?;
    let lib = std::fs::read_dir(prefix.join("lib")).ok()?;
    let has_modules = |name: &str| name.strip_prefix("python3").is_some_and(|rest| rest.starts_with('.'));
    let found = lib.flatten().any(|entry| entry.file_name().to_str().is_some_and(has_modules));
    found.then(|| prefix.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn touch(file: &Path) {
        std::fs::create_dir_all(file.parent().expect("parent")).expect("mkdir");
        std::fs::write(file, "").expect("write");
    }

    #[test]
    fn an_environment_shows_itself_and_what_it_was_made_from() {
        let dir = tempfile::tempdir().expect("dir");
        let dir = dir.path().canonicalize().expect("real");
        let base = dir.join("opt/python");
        touch(&base.join("bin/python3.12"));
        touch(&base.join("lib/python3.12/os.py"));
        let venv = dir.join("venv");
        touch(&venv.join("lib/python3.12/site-packages/x.py"));
        std::fs::create_dir(venv.join("bin")).expect("mkdir");
        std::os::unix::fs::symlink(base.join("bin/python3.12"), venv.join("bin/python3")).expect("link");
        let home = base.join("bin");
        std::fs::write(venv.join("pyvenv.cfg"), format!("home = {}\n", home.display())).expect("write");
        let paths = vec![dir.join("tasks"), dir.join("gone")];
        std::fs::create_dir(&paths[0]).expect("mkdir");
        let options = PythonOptions { interpreter: Some(venv.clone()), paths };
        assert_eq!(options.program(), venv.join("bin/python3"));
        assert_eq!(options.readable(), [base, dir.join("tasks"), venv]);
        assert_eq!(options.missing_path(), Some(dir.join("gone").as_path()));
    }

    #[test]
    fn a_lone_interpreter_does_not_show_what_is_beside_it() {
        let home = tempfile::tempdir().expect("dir");
        let home = home.path().canonicalize().expect("real");
        touch(&home.join("bin/python"));
        touch(&home.join(".ssh/id"));
        let options = PythonOptions { interpreter: Some(home.join("bin/python")), paths: Vec::new() };
        assert_eq!(options.readable(), [home.join("bin/python")]);
        assert_eq!(PythonOptions::default().readable(), [] as [PathBuf; 0]);
        let system = PythonOptions { interpreter: Some("/usr/bin/python3".into()), paths: Vec::new() };
        assert_eq!(system.readable(), [] as [PathBuf; 0]);
    }
}
