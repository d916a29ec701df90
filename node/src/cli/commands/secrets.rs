//! `sinew secret`: set, ls, rm. Values come in from a file, a pipe or a prompt, and never go out.

use std::io::{self, BufRead, IsTerminal, Read, Write};
use std::path::Path;

use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use serde_json::json;
use sinew_crdt_state::secret::VALUE_LEN_MAX;
use zeroize::Zeroizing;

use super::super::error::CliError;
use super::super::human::clean;
use super::super::{App, render};
use super::file_error;
use crate::api::Request;
use crate::clock::unix_ms;
use crate::secrets::SecretBytes;

pub(crate) async fn set(app: &App, name: &str, file: Option<&Path>) -> Result<(), CliError> {
    let value = match file {
        Some(path) => {
            let opened = std::fs::File::open(path).map_err(file_error("read", path))?;
            read(opened).map_err(file_error("read", path))?
        }
        None if io::stdin().is_terminal() && io::stderr().is_terminal() => prompt(name).await?,
        None => read(io::stdin().lock()).map_err(from_stdin)?,
    };
    let replaced = app.client.secret_set(name, value).await?;
    let did = if replaced { "replaced" } else { "set" };
    app.ui.show(&json!({ "secret": name, "replaced": replaced }), || format!("{did} {}\n", clean(name)))
}

pub(crate) async fn list(app: &App) -> Result<(), CliError> {
    let secrets = app.client.secrets().await?;
    app.ui.show(&json!({ "secrets": secrets }), || render::secrets(&secrets, unix_ms()))
}

pub(crate) async fn remove(app: &App, name: &str, yes: bool) -> Result<(), CliError> {
    app.ui.confirm(&format!("Remove the secret {}? Its value cannot be had back.", clean(name)), yes)?;
    app.client.act(&Request::SecretRemove { name: name.to_owned() }).await?;
    app.ui.show(&json!({ "removed": name }), || format!("removed {}\n", clean(name)))
}

fn from_stdin(error: io::Error) -> CliError {
    file_error("read", Path::new("standard input"))(error)
}

/// Everything, up to a byte more than a secret may have: the daemon says what is wrong with that.
fn read(from: impl Read) -> io::Result<SecretBytes> {
    // All of it from the start: no copy is left behind where it has grown.
    let mut bytes = Zeroizing::new(Vec::with_capacity(VALUE_LEN_MAX + 2));
    from.take(VALUE_LEN_MAX as u64 + 1).read_to_end(&mut bytes)?;
    Ok(SecretBytes::new(std::mem::take(&mut *bytes)))
}

/// A terminal that shows nothing of what is typed, for as long as this lives.
struct Silent(Termios);

impl Silent {
    fn new() -> io::Result<Self> {
        let before = tcgetattr(io::stdin())?;
        let mut silent = before.clone();
        silent.local_modes.remove(LocalModes::ECHO);
        silent.local_modes.insert(LocalModes::ECHONL);
        tcsetattr(io::stdin(), OptionalActions::Flush, &silent)?;
        Ok(Self(before))
    }
}

impl Drop for Silent {
    fn drop(&mut self) {
        // There is nobody to be told where it fails.
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.0);
    }
}

/// One line that a person types. On a thread of its own: an interrupt drops this, and gives the terminal its echo back.
async fn prompt(name: &str) -> Result<SecretBytes, CliError> {
    let _silent = Silent::new().map_err(from_stdin)?;
    let _ = write!(io::stderr().lock(), "Value of {} (not shown): ", clean(name));
    let line = tokio::task::spawn_blocking(|| {
        let mut line = Zeroizing::new(Vec::with_capacity(VALUE_LEN_MAX + 2));
        io::stdin().lock().take(VALUE_LEN_MAX as u64 + 2).read_until(b'\n', &mut line)?;
        Ok(SecretBytes::new(line.strip_suffix(b"\n").unwrap_or(&line).to_vec()))
    });
    line.await.map_err(|_| CliError::Declined)?.map_err(from_stdin)
}
