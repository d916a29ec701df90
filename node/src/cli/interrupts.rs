//! Ctrl-C and SIGTERM: the first is an event that a command may answer by tidying up, the second ends the process at once,
//! even where it is stuck.

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use super::error::{CliError, EXIT_INTERRUPTED, EXIT_TERMINATED};

/// The signals of this process, once [`Interrupts::listen`] was called.
#[derive(Debug, Clone)]
pub(crate) struct Interrupts {
    first: watch::Receiver<Option<u8>>,
}

impl Interrupts {
    /// Takes the signals over. Needs a runtime with a thread of its own, so that a blocked write cannot block this too.
    pub(crate) fn listen() -> Result<Self, CliError> {
        let mut int = signal(SignalKind::interrupt()).map_err(CliError::Start)?;
        let mut term = signal(SignalKind::terminate()).map_err(CliError::Start)?;
        let (tell, first) = watch::channel(None);
        tokio::spawn(async move {
            loop {
                let code = tokio::select! {
                    _ = int.recv() => EXIT_INTERRUPTED,
                    _ = term.recv() => EXIT_TERMINATED,
                };
                if tell.send_replace(Some(code)).is_some() {
                    std::process::exit(code.into());
                }
            }
        });
        Ok(Self { first })
    }

    /// The exit code of the first signal, once it comes.
    pub(crate) async fn first(&mut self) -> u8 {
        let came = self.first.wait_for(Option::is_some).await.ok().and_then(|code| *code);
        match came {
            Some(code) => code,
            // The runtime ends, and this with it.
            None => std::future::pending().await,
        }
    }

    /// `work`, unless a signal comes first.
    pub(crate) async fn or<T>(&mut self, work: impl Future<Output = Result<T, CliError>>) -> Result<T, CliError> {
        tokio::select! {
            done = work => done,
            code = self.first() => Err(CliError::Interrupted(code)),
        }
    }
}
