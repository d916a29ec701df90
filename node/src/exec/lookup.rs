//! Finds the file that an argument vector's first word names. It does what `execvp` does, ahead of time: so that a missing
//! program is reported by name before anything starts, and so that std can use `posix_spawn`, which it does not when it has
//! to search a changed `PATH` itself.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use sinew_crdt_state::error_code::ErrorCode;

use super::outcome::Failure;

/// Finds `name`: with a `/` in it, relative to `dir`; else among the files in `dir` if there are any; else in `path`.
///
/// # Errors
/// `E_INVALID`, naming the program and where it was looked for.
pub(super) fn find(name: &str, dir: &Path, has_files: bool, path: &str) -> Result<PathBuf, Failure> {
    if name.is_empty() || name.contains('\0') {
        return Err(invalid("the program's name is empty or holds a NUL byte".to_owned()));
    }
    if name.contains('/') {
        let file = dir.join(name);
        return check(&file).map(|()| file).map_err(|why| invalid(format!("program `{name}` {why}")));
    }
    let mut refused = None;
    let here = has_files.then_some(dir);
    // Empty and relative entries of PATH mean the daemon's own directory: never a place for a task's program.
    let absolute = path.split(':').map(Path::new).filter(|d| d.is_absolute());
    for place in here.into_iter().chain(absolute) {
        let file = place.join(name);
        match check(&file) {
            Ok(()) => return Ok(file),
            Err(Refusal::Missing) => {}
            Err(other) => refused = Some(other),
        }
    }
    let why = refused.unwrap_or(Refusal::Missing);
    Err(invalid(format!("program `{name}` {why}; looked in the task's directory and in PATH ({path})")))
}

#[derive(Debug, Clone, Copy, thiserror::Error)]
enum Refusal {
    #[error("is missing")]
    Missing,
    #[error("is there but is no file")]
    NoFile,
    #[error("is there but not executable")]
    NotExecutable,
}

fn check(file: &Path) -> Result<(), Refusal> {
    let Ok(meta) = file.metadata() else { return Err(Refusal::Missing) };
    if !meta.is_file() {
        return Err(Refusal::NoFile);
    }
    if meta.permissions().mode() & 0o111 == 0 {
        return Err(Refusal::NotExecutable);
    }
    Ok(())
}

/// The failure of a program that is not there.
pub(super) fn missing(name: &str) -> Failure {
    invalid(format!("program `{name}` {}", Refusal::Missing))
}

fn invalid(message: String) -> Failure {
    Failure::new(ErrorCode::Invalid, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shipped_files_come_before_path_and_refusals_say_why() {
        let dir = tempfile::tempdir().expect("dir");
        let file = dir.path().join("sh");
        std::fs::write(&file, "#!/bin/sh\n").expect("write");
        let refused = find("./sh", dir.path(), true, "/bin").expect_err("no x bit");
        assert!(refused.message.contains("not executable") && !refused.retryable, "{refused}");
        assert_eq!(find("sh", dir.path(), true, "/bin").expect("from PATH"), Path::new("/bin/sh"));
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).expect("chmod");
        assert_eq!(find("sh", dir.path(), true, "/bin").expect("shipped"), file);
        assert_eq!(find("sh", dir.path(), false, ".::/bin").expect("from PATH"), Path::new("/bin/sh"));
        let missing = find("no-such-program", dir.path(), true, "/bin").expect_err("missing");
        assert!(missing.message.contains("no-such-program") && missing.message.contains("PATH"), "{missing}");
        assert_eq!(missing.code, ErrorCode::Invalid);
    }
}
