//! The terminal, or what stands in for it: lines and JSON on stdout, notes and questions on stderr. A reader that went away
//! is an error of its own kind, never a panic.

use std::io::{self, IsTerminal, Write};

use serde::Serialize;

use super::error::CliError;

/// How a command speaks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ui {
    /// JSON on stdout instead of text.
    pub(crate) json: bool,
    /// How often `-v` was said.
    pub(crate) verbose: u8,
}

impl Ui {
    /// Whether progress may be drawn: a person watches, and nothing else is being said there.
    pub(crate) fn draws(self) -> bool {
        !self.json && io::stderr().is_terminal()
    }

    /// Text on stdout, as it is.
    pub(crate) fn print(self, text: &str) -> Result<(), CliError> {
        write_all(&mut io::stdout().lock(), text.as_bytes())
    }

    /// A line on stdout.
    pub(crate) fn line(self, text: &str) -> Result<(), CliError> {
        self.print(&format!("{text}\n"))
    }

    /// An object on one line of stdout.
    pub(crate) fn object(self, value: &impl Serialize) -> Result<(), CliError> {
        let mut line = serde_json::to_vec(value).map_err(|e| CliError::Output(e.into()))?;
        line.push(b'\n');
        write_all(&mut io::stdout().lock(), &line)
    }

    /// The object with `--json`, else the text.
    pub(crate) fn show(self, value: &impl Serialize, text: impl FnOnce() -> String) -> Result<(), CliError> {
        if self.json { self.object(value) } else { self.print(&text()) }
    }

    /// What a program printed, to the same stream here.
    pub(crate) fn pass(self, stderr: bool, bytes: &[u8]) -> Result<(), CliError> {
        if stderr { write_all(&mut io::stderr().lock(), bytes) } else { write_all(&mut io::stdout().lock(), bytes) }
    }

    /// A line for the person at the terminal. Whether it arrives matters to nobody.
    pub(crate) fn note(self, text: &str) {
        let _ = writeln!(io::stderr().lock(), "{text}");
    }

    /// Asks before something is lost. Without a person to ask, the command line itself is the answer.
    pub(crate) fn confirm(self, question: &str, yes: bool) -> Result<(), CliError> {
        if yes || self.json || !io::stdin().is_terminal() || !io::stderr().is_terminal() {
            return Ok(());
        }
        let _ = write!(io::stderr().lock(), "{question} [y/N] ");
        let mut answer = String::new();
        io::stdin().read_line(&mut answer).map_err(|_| CliError::Declined)?;
        if matches!(answer.trim(), "y" | "Y" | "yes") { Ok(()) } else { Err(CliError::Declined) }
    }

    /// Says why the command failed: a line (and, for a task, the end of its stderr) on stderr, or an object on stdout.
    pub(crate) fn fail(self, error: &CliError) {
        if matches!(error, CliError::Exit(_)) || (error.is_silent() && !self.json) {
            return;
        }
        // There is nobody left to tell when this fails.
        let _ = if self.json {
            self.object(&error.json())
        } else {
            self.pass(true, format!("error: {error}\n").as_bytes())
        };
    }
}

fn write_all(out: &mut impl Write, bytes: &[u8]) -> Result<(), CliError> {
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Err(CliError::Closed),
        Err(e) => Err(CliError::Output(e)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_that_went_away_is_told_apart() {
        let (read, mut write) = io::pipe().expect("pipe");
        drop(read);
        assert!(matches!(write_all(&mut write, b"x"), Err(CliError::Closed)));
        let mut full: &mut [u8] = &mut [0; 1];
        assert!(matches!(write_all(&mut full, b"xy"), Err(CliError::Output(_))));
    }
}
