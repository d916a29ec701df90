//! Processes, in cells and bare.

use std::path::PathBuf;
use std::sync::Arc;

use sinew_crdt_state::spec::Program;
use sinew_node::exec::cell::pool::{Sandbox, SandboxMode, SandboxOptions};
use sinew_node::exec::guardian::NodeTag;
use sinew_node::exec::process::ProcessRunner;
use sinew_node::exec::runner::Runner;

use crate::behaviours::subject::{Does, Subject};
use crate::behaviours::suite::contract;

pub(crate) struct Process {
    runner: Arc<ProcessRunner>,
    in_cells: bool,
    /// Names it: what carries the same name is taken for an earlier run's, and removed.
    _dir: tempfile::TempDir,
}

impl Process {
    pub(crate) fn in_cells() -> Self {
        let options = SandboxOptions {
            mode: SandboxMode::Required,
            exe: PathBuf::from(env!("CARGO_BIN_EXE_sinew")),
            readable: Vec::new(),
            writable: Vec::new(),
            tmp_bytes: 32 << 20,
            memory_bytes: 1 << 30,
            slots: 1,
        };
        let dir = tempfile::tempdir().expect("dir");
        let tag = NodeTag::new(dir.path().to_str().expect("utf-8"));
        let (sandbox, missing) = Sandbox::probe(options, &tag).expect("a machine that isolates");
        assert_eq!(missing, []);
        let runner = ProcessRunner::sandboxed(tag, sandbox.expect("a sandbox"));
        Self { runner: Arc::new(runner), in_cells: true, _dir: dir }
    }

    pub(crate) fn bare() -> Self {
        let dir = tempfile::tempdir().expect("dir");
        let runner = ProcessRunner::new(NodeTag::new(dir.path().to_str().expect("utf-8")));
        Self { runner: Arc::new(runner), in_cells: false, _dir: dir }
    }
}

impl Subject for Process {
    fn runner(&self) -> Arc<dyn Runner> {
        Arc::clone(&self.runner) as Arc<dyn Runner>
    }

    fn program(&self, does: Does) -> Program {
        let argv: &[&str] = match does {
            Does::Succeed => &["true"],
            Does::ExitThree => &["sh", "-c", "echo that was wrong >&2; exit 3"],
            Does::Print => &["echo", "hello"],
            Does::CopyStdin => &["cat"],
            Does::CopyFile => &["sh", "-c", "cat \"$SINEW_INPUT/in.txt\" > \"$SINEW_OUTPUT/out.txt\""],
            Does::ShowVariables => &["env"],
            Does::Spin => &["sh", "-c", "while :; do :; done"],
            Does::Linger => &["sh", "-c", "echo here >&2; exec sleep 1000"],
            // It looks for the end of a line that has none.
            Does::Devour => &["tail", "/dev/zero"],
            Does::FillStdout => &["yes"],
            Does::FillFile => &["sh", "-c", "yes > \"$SINEW_OUTPUT/big\""],
            Does::NotExist => &["no-such-program"],
        };
        Program::Exec(argv.iter().map(|word| (*word).to_owned()).collect())
    }

    fn limits_memory(&self) -> bool {
        self.in_cells
    }
}

contract!(in_cells, Some(Process::in_cells()));
contract!(bare, Some(Process::bare()));
