//! Where a program's bytes go when they are neither a mapper's lines nor thrown away: to log files that exist only if there is
//! something in them, to files of results, and to whoever watches live.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use super::outcome::Failure;
use super::runner::Sink;
use super::slot::make;
use crate::secrets::redact::Redacting;

/// Most bytes kept of a stderr that accompanies data: a mapper that complains about each line must not fill the disk with it.
/// A batch task's output, stdout and stderr alike, is kept whole.
pub const STDERR_LOG_MAX: u64 = 16 * 1024 * 1024;

/// Which of a program's streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogStream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

impl LogStream {
    /// The name of its file.
    #[must_use]
    pub const fn file_name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// Somebody who watches a task live. Called on the thread that drives it, so it must not block.
pub trait LiveLog: Send + Sync {
    /// Sees `bytes` of `stream`.
    fn see(&self, stream: LogStream, bytes: &[u8]);
}

/// A log file of one stream, made at its first byte.
pub(super) struct Log<'a> {
    dir: &'a Path,
    stream: LogStream,
    live: Option<&'a dyn LiveLog>,
    file: Option<File>,
    left: u64,
    redacting: Option<Redacting>,
}

impl<'a> Log<'a> {
    /// A log under `dir/logs` that keeps at most `max` bytes.
    pub(super) const fn new(dir: &'a Path, stream: LogStream, live: Option<&'a dyn LiveLog>, max: u64) -> Self {
        Self { dir, stream, live, file: None, left: max, redacting: None }
    }

    /// The same, without what `redacting` takes out.
    pub(super) fn redacting(self, redacting: Option<Redacting>) -> Self {
        Self { redacting, ..self }
    }

    /// Nothing more comes: what may have been the beginning of something to take out was none.
    ///
    /// # Errors
    /// `E_STORAGE`, as for anything else that is kept.
    pub(super) fn finish(&mut self) -> Result<(), Failure> {
        let Some(redacting) = &mut self.redacting else { return Ok(()) };
        let mut rest = Vec::new();
        redacting.finish(&mut rest);
        self.pass(&rest)
    }

    fn pass(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        if bytes.is_empty() {
            return Ok(());
        }
        let kept = if self.left == 0 { Ok(()) } else { self.keep(bytes) };
        // After it is in the file: who misses what is pushed reads it there.
        if let Some(live) = self.live {
            live.see(self.stream, bytes);
        }
        kept.map_err(|e| Failure::storage("write the task's log", &e))
    }

    /// The file, if there was anything to keep.
    pub(super) fn path(&self) -> Option<PathBuf> {
        self.file.as_ref().map(|_| self.file_path())
    }

    fn file_path(&self) -> PathBuf {
        self.dir.join("logs").join(self.stream.file_name())
    }

    fn keep(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            empty => {
                make(&self.dir.join("logs"))?;
                let path = self.dir.join("logs").join(self.stream.file_name());
                empty.insert(File::options().append(true).create(true).open(path)?)
            }
        };
        let kept = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len());
        file.write_all(&bytes[..kept])?;
        self.left -= kept as u64;
        if kept < bytes.len() {
            file.write_all(b"\n[sinew: the rest of this log was not kept]\n")?;
            self.left = 0;
        }
        Ok(())
    }
}

impl Sink for Log<'_> {
    fn take(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        let Some(redacting) = &mut self.redacting else { return self.pass(bytes) };
        let mut shown = Vec::with_capacity(bytes.len());
        redacting.push(bytes, &mut shown);
        self.pass(&shown)
    }

    fn is_log(&self) -> bool {
        true
    }
}

/// A file of results.
#[derive(Debug)]
pub(super) struct FileSink(pub(super) File);

impl Sink for FileSink {
    fn take(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.0.write_all(bytes).map_err(|e| Failure::storage("write the results", &e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_exists_only_with_content_and_stops_at_its_cap() {
        let dir = tempfile::tempdir().expect("dir");
        let mut log = Log::new(dir.path(), LogStream::Stderr, None, 5);
        log.take(b"").expect("take");
        assert!(log.path().is_none() && !dir.path().join("logs").exists());
        for bytes in [&b"abc"[..], b"defg", b"h"] {
            log.take(bytes).expect("take");
        }
        let text = std::fs::read_to_string(log.path().expect("path")).expect("read");
        assert_eq!(text, "abcde\n[sinew: the rest of this log was not kept]\n");
    }
}
