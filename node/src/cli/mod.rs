//! The command line: reads the arguments, asks the daemon (or starts one), prints what it answered. No decision about jobs
//! is made here; everything goes through the local API, as any other client's request would.

mod args;
pub mod bench;
mod commands;
mod error;
mod human;
mod interrupts;
mod logging;
mod render;
mod table;
mod ui;
mod up;
mod values;
mod watch;

#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

pub use up::{LogFormat, UpArgs};
pub use watch::{show_watch, show_watch_of};

use self::args::{BlobCommand, Cli, Command, SecretCommand};
use self::commands::{blobs, jobs, map_reduce, node, pages, run, secrets, sim};
use self::error::CliError;
use self::interrupts::Interrupts;
use self::ui::Ui;
use crate::api::client::Client;
use crate::datadir::DataDir;
use crate::exec::cell::{CELL_COMMAND, cell_main};

/// What every command that talks to a daemon needs.
#[derive(Debug)]
pub(crate) struct App {
    /// How it speaks.
    ui: Ui,
    /// The node's directory.
    data_dir: DataDir,
    /// The daemon that runs on it.
    client: Client,
    /// Ctrl-C.
    interrupts: Interrupts,
}

/// Unix ms as `2026-07-31`, UTC.
pub(crate) fn day(ms: u64) -> String {
    human::utc(ms).chars().take_while(|c| *c != ' ').collect()
}

/// Whether these words are a command line of this program.
#[cfg(test)]
pub(crate) fn is_command(words: impl IntoIterator<Item = String>) -> bool {
    Cli::try_parse_from(words).is_ok()
}

/// Runs the command that the process was started with.
#[must_use]
pub fn main() -> ExitCode {
    // Before anything else: a cell's first process is to hold as little as it can.
    if std::env::args_os().nth(1).is_some_and(|arg| arg == CELL_COMMAND) {
        return ExitCode::from(cell_main());
    }
    let cli = Cli::parse();
    let ui = Ui { json: cli.json, verbose: cli.verbose };
    match dispatch(cli, ui) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            ui.fail(&error);
            ExitCode::from(error.exit_code())
        }
    }
}

fn dispatch(cli: Cli, ui: Ui) -> Result<u8, CliError> {
    match cli.command {
        Command::Guardian { tag, engine } => Ok(crate::exec::guardian::guardian_main(&tag, engine.as_deref())),
        Command::Completions { shell } => pages::completions(ui, shell),
        Command::Man { out } => pages::man(ui, &out),
        Command::Schema => pages::schema(ui),
        Command::Bench(args) => node::bench(ui, args),
        Command::Sim(args) => sim::sim(ui, &args),
        Command::Demo { nodes, input } => node::demo(ui, nodes, input),
        Command::Up(args) => node::up(&data_dir(cli.data_dir)?, ui, &args),
        command => {
            // One thread beside this one: signals are heard while this one writes to a slow reader.
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
            let runtime = runtime.map_err(CliError::Start)?;
            let data_dir = data_dir(cli.data_dir)?;
            let done = runtime.block_on(async {
                let client = Client::new(data_dir.path(), data_dir.socket());
                let app = App { ui, data_dir, client, interrupts: Interrupts::listen()? };
                talk(app, command).await
            });
            // A prompt or a resolver may still sit in a blocking thread; nobody waits for it.
            runtime.shutdown_background();
            done
        }
    }
}

/// Commands that have something to tidy up hear the signals themselves; the others just end.
async fn talk(mut app: App, command: Command) -> Result<u8, CliError> {
    match command {
        Command::Run(args) => run::run(&mut app, *args).await,
        Command::MapReduce(args) => map_reduce::map_reduce(&mut app, *args).await,
        Command::Submit { manifest, key } => jobs::submit(&mut app, &manifest, key).await,
        command => {
            let mut interrupts = app.interrupts.clone();
            interrupts.or(ask(&app, command)).await
        }
    }
}

async fn ask(app: &App, command: Command) -> Result<u8, CliError> {
    match command {
        Command::Init { mesh } => node::init(app, &mesh)?,
        Command::Invite { role, expires } => node::invite(app, role, expires).await?,
        Command::Join { ticket } => node::join(app, &ticket).await?,
        Command::Down { wait, deadline } => node::down(app, wait, deadline).await?,
        Command::Peers => node::peers(app).await?,
        Command::Status => node::status(app).await?,
        Command::Prune { dry_run, all } => node::prune(app, dry_run, all).await?,
        Command::Jobs { limit } => jobs::list(app, limit).await?,
        Command::Job { job } => jobs::show(app, &job).await?,
        Command::Logs { job, follow, task, attempt } => jobs::logs(app, &job, (task, attempt), follow).await?,
        Command::Wait { jobs } => return jobs::wait(app, &jobs).await,
        Command::Cancel { job, reason, yes } => jobs::cancel(app, &job, &reason, yes).await?,
        Command::Get { job, out, yes } => jobs::get(app, &job, out, yes).await?,
        Command::Blob(BlobCommand::Add { path }) => blobs::add(app, &path).await?,
        Command::Blob(BlobCommand::Get { hash, out, yes }) => blobs::get(app, hash, &out, yes).await?,
        Command::Blob(BlobCommand::Warm { hash }) => blobs::warm(app, hash).await?,
        Command::Blob(BlobCommand::Rm { hash, yes }) => blobs::remove(app, hash, yes).await?,
        Command::Blob(BlobCommand::Ls) => blobs::list(app).await?,
        Command::Blob(BlobCommand::Tag { name, hash }) => blobs::tag(app, &name, hash).await?,
        Command::Blob(BlobCommand::Untag { name, yes }) => blobs::untag(app, &name, yes).await?,
        Command::Secret(SecretCommand::Set { name, file }) => secrets::set(app, &name, file.as_deref()).await?,
        Command::Secret(SecretCommand::Ls) => secrets::list(app).await?,
        Command::Secret(SecretCommand::Rm { name, yes }) => secrets::remove(app, &name, yes).await?,
        // The others never come here: they are answered in `dispatch` and `talk`, which keeps this match free of a catch-all.
        Command::Up(_)
        | Command::Run(_)
        | Command::Submit { .. }
        | Command::MapReduce(_)
        | Command::Demo { .. }
        | Command::Sim(_)
        | Command::Bench(_)
        | Command::Completions { .. }
        | Command::Schema
        | Command::Man { .. }
        | Command::Guardian { .. } => {}
    }
    Ok(0)
}

/// The data dir that was given, or the one in the home directory.
fn data_dir(given: Option<PathBuf>) -> Result<DataDir, CliError> {
    let path = match given {
        Some(path) => path,
        None => std::env::home_dir()
            .filter(|home| !home.as_os_str().is_empty())
            .ok_or(CliError::NoHome)?
            .join(".local/share/sinew"),
    };
    let path = std::path::absolute(&path).map_err(|source| CliError::File { doing: "find", path, source })?;
    Ok(DataDir::at(&path))
}
