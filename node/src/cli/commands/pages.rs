//! Shell completions and man pages, made from the same definitions as `--help`.

use std::path::Path;

use clap::{Command, CommandFactory};
use clap_complete::Shell;
use serde_json::json;

use super::super::args::Cli;
use super::super::error::CliError;
use super::super::ui::Ui;
use super::file_error;

pub(crate) fn completions(ui: Ui, shell: Shell) -> Result<u8, CliError> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut shown(), "sinew", &mut script);
    ui.print(&String::from_utf8_lossy(&script))?;
    Ok(0)
}

pub(crate) fn man(ui: Ui, out: &Path) -> Result<u8, CliError> {
    std::fs::create_dir_all(out).map_err(file_error("create", out))?;
    clap_mangen::generate_to(shown(), out).map_err(file_error("write man pages into", out))?;
    ui.show(&json!({ "out": out }), || format!("man pages are in {}\n", out.display()))?;
    Ok(0)
}

/// The schema is JSON with `--json` and without.
pub(crate) fn schema(ui: Ui) -> Result<u8, CliError> {
    let schema = sinew_crdt_state::manifest::schema();
    ui.print(&format!("{schema:#}\n"))?;
    Ok(0)
}

/// The command without what only the daemon starts: completions know no hidden subcommands.
fn shown() -> Command {
    let whole = Cli::command();
    let subcommands: Vec<Command> = whole.get_subcommands().filter(|c| !c.is_hide_set()).cloned().collect();
    let arguments: Vec<clap::Arg> = whole.get_arguments().cloned().collect();
    let about = whole.get_about().cloned().unwrap_or_default();
    let after = whole.get_after_help().cloned().unwrap_or_default();
    Command::new("sinew")
        .version(env!("CARGO_PKG_VERSION"))
        .about(about)
        .after_help(after)
        .subcommand_required(true)
        .args(arguments)
        .subcommands(subcommands)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_a_page_for_every_command_and_none_for_hidden_ones() {
        let dir = tempfile::tempdir().expect("dir");
        man(Ui { json: true, verbose: 0 }, &dir.path().join("man")).expect("man");
        let names: Vec<String> = std::fs::read_dir(dir.path().join("man"))
            .expect("dir")
            .map(|e| e.expect("entry").file_name().to_string_lossy().into_owned())
            .collect();
        for wanted in ["sinew.1", "sinew-map-reduce.1", "sinew-blob-add.1", "sinew-bench-tasks.1"] {
            assert!(names.iter().any(|name| name == wanted), "{wanted} in {names:?}");
        }
        assert!(names.iter().all(|name| !name.contains("guardian")), "{names:?}");
    }

    #[test]
    fn every_shell_has_completions() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish, Shell::Elvish, Shell::PowerShell] {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut shown(), "sinew", &mut script);
            let script = String::from_utf8(script).expect("text");
            assert!(script.contains("map-reduce") && !script.contains("guardian"), "{shell}");
        }
    }
}
