//! The node and its mesh: init, invite, join, up, down, peers, status, demo.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::json;
use sinew_crdt_state::certificate::{Roles, Ticket};

use super::super::bench::BenchArgs;
use super::super::error::CliError;
use super::super::human::{clean, span};
use super::super::interrupts::Interrupts;
use super::super::ui::Ui;
use super::super::{App, UpArgs, logging, render};
use crate::api::Request;
use crate::bench;
use crate::datadir::{DataDir, DataDirError};
use crate::demo::{self, DemoOptions};

/// Between two looks whether a daemon has ended.
const LOOK_EVERY: Duration = Duration::from_millis(100);

pub(crate) fn init(app: &App, mesh_name: &str) -> Result<(), CliError> {
    let made = app.data_dir.init(mesh_name)?;
    let object = json!({ "node": made.node, "mesh": made.mesh, "mesh_name": mesh_name });
    app.ui.show(&object, || {
        format!(
            "mesh {} ({})\nnode {}\nNow start it with `sinew up`; `sinew invite` then brings in more machines.\n",
            made.mesh,
            clean(mesh_name),
            made.node
        )
    })
}

pub(crate) async fn invite(app: &App, roles: Roles, expires_ms: u64) -> Result<(), CliError> {
    let ticket = app.client.invite(roles.to_string(), expires_ms).await?;
    let object = json!({ "ticket": ticket, "roles": roles.to_string(), "expires_ms": expires_ms });
    app.ui.show(&object, || format!("{ticket}\n"))?;
    if app.ui.draws() {
        app.ui.note(&format!("On the other machine, within {}: sinew join TICKET", span(expires_ms)));
    }
    Ok(())
}

pub(crate) async fn join(app: &App, ticket: &str) -> Result<(), CliError> {
    let ticket: Ticket = ticket.parse()?;
    let joined = app.data_dir.join(&ticket).await?;
    let roles = joined.roles.to_string();
    let object = json!({ "node": joined.node, "mesh": joined.mesh, "mesh_name": joined.mesh_name, "roles": roles });
    app.ui.show(&object, || {
        let name = clean(&joined.mesh_name);
        format!(
            "joined mesh {} ({name})\nnode {}, roles {roles}\nNow start it with `sinew up`.\n",
            joined.mesh, joined.node
        )
    })
}

/// Runs the daemon until it is told to end. It hears the signals itself.
pub(crate) fn up(data_dir: &DataDir, ui: Ui, args: &UpArgs) -> Result<u8, CliError> {
    let settings = args.settings(data_dir.path())?;
    logging::start(settings.log_json || ui.json, ui.verbose);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(CliError::Start)?;
    runtime.block_on(crate::daemon::run(data_dir.clone(), settings))?;
    // Whatever still reads from a dead peer must not hold up the end.
    runtime.shutdown_background();
    Ok(0)
}

pub(crate) async fn down(app: &App, wait: bool, deadline_ms: Option<u64>) -> Result<(), CliError> {
    app.client.act(&Request::Shutdown { wait, deadline_ms }).await?;
    if !wait {
        return app.ui.show(&json!({ "stopping": true }), || "the daemon is going down\n".to_owned());
    }
    // The lock is the last thing that a daemon lets go of.
    while let Err(DataDirError::Locked { .. }) = app.data_dir.lock() {
        tokio::time::sleep(LOOK_EVERY).await;
    }
    app.ui.show(&json!({ "stopped": true }), || "the daemon is down\n".to_owned())
}

pub(crate) async fn peers(app: &App) -> Result<(), CliError> {
    let peers = app.client.peers().await?;
    app.ui.show(&json!({ "peers": peers }), || render::peers(&peers, app.ui.verbose > 0))
}

pub(crate) async fn status(app: &App) -> Result<(), CliError> {
    let status = app.client.status().await?;
    app.ui.show(&status, || render::status(&status))
}

pub(crate) fn demo(ui: Ui, nodes: usize, inputs: Vec<PathBuf>) -> Result<u8, CliError> {
    show(demo::run(DemoOptions { nodes, inputs, json: ui.json }))
}

pub(crate) fn bench(ui: Ui, args: BenchArgs) -> Result<u8, CliError> {
    show(bench::run(args, ui.json))
}

/// Runs a demo or a benchmark. Interrupted, it is dropped, and with it the daemons and directories that it made.
fn show(work: impl Future<Output = anyhow::Result<u8>>) -> Result<u8, CliError> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(CliError::Start)?;
    let done = runtime.block_on(async { Interrupts::listen()?.or(async { work.await.map_err(CliError::from) }).await });
    runtime.shutdown_background();
    done
}

pub(crate) async fn prune(app: &App, dry_run: bool, all: bool) -> Result<(), CliError> {
    let items = app.client.prune(dry_run, all).await?;
    app.ui.show(&json!({ "dry_run": dry_run, "items": items }), || render::pruned(&items, dry_run))
}
