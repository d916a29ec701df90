//! The daemon's own program, as it was started: cells and guardians are made from it, whatever became of its file since. An upgrade
//! removes or replaces that, and a daemon is to go on as what it is.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::OnceLock;

static OPEN: OnceLock<File> = OnceLock::new();

/// A path to this program that stays good as long as this process lives. To be asked for first at the start, while the program
/// is surely there.
///
/// # Errors
/// When it cannot be opened.
pub fn path() -> std::io::Result<PathBuf> {
    let file = match OPEN.get() {
        Some(file) => file,
        None => {
            let opened = File::open("/proc/self/exe")?;
            OPEN.get_or_init(|| opened)
        }
    };
    // In a child that is about to become it, this is the child's own copy of the descriptor, which closes only then.
    Ok(PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_this_very_file() {
        use std::os::unix::fs::MetadataExt;
        let own = std::fs::metadata(std::env::current_exe().expect("exe")).expect("metadata");
        let open = std::fs::metadata(path().expect("path")).expect("metadata");
        assert_eq!((own.dev(), own.ino()), (open.dev(), open.ino()));
        assert_eq!(path().expect("path"), path().expect("path"), "one descriptor is enough");
    }
}
