//! Functions pass the suite of all runners, in cells and bare.

use std::sync::Arc;

use sinew_crdt_state::program::{Params, PythonCall};
use sinew_crdt_state::spec::Program;
use sinew_node::exec::cell::pool::Sandbox;
use sinew_node::exec::guardian::NodeTag;
use sinew_node::exec::process::ProcessRunner;
use sinew_node::exec::python::{PythonOptions, PythonRunner};
use sinew_node::exec::runner::{Health, Runner};

use crate::behaviours::subject::{Does, Subject};
use crate::behaviours::suite::contract;

const MODULE: &str = r#"
import os, sys, time

def succeed(): pass
def exit_three():
    print("that was wrong", file=sys.stderr)
    sys.exit(3)
def say(): print("hello")
def copy_stdin():
    for line in sys.stdin: sys.stdout.write(line)
def copy_file():
    with open(os.environ["SINEW_INPUT"] + "/in.txt") as source, open(os.environ["SINEW_OUTPUT"] + "/out.txt", "w") as target:
        target.write(source.read())
def show_variables():
    for name, value in os.environ.items(): print(f"{name}={value}")
def spin():
    while True: pass
def linger():
    print("here", file=sys.stderr, flush=True)
    time.sleep(1000)
def devour():
    taken = []
    while True: taken.append(bytearray(b"x") * (1 << 20))
def fill_stdout():
    while True: os.write(1, b"x" * 65536)
def fill_file():
    with open(os.environ["SINEW_OUTPUT"] + "/big", "wb") as file:
        while True: file.write(b"x" * 65536)
"#;

struct Functions {
    runner: Arc<PythonRunner>,
    in_cells: bool,
    /// Its worker processes are of this one's cells.
    _process: ProcessRunner,
    _dir: tempfile::TempDir,
}

fn functions(in_cells: bool) -> Functions {
    let dir = tempfile::tempdir().expect("dir");
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(dir.path(), open).expect("chmod");
    std::fs::write(dir.path().join("behaviour.py"), MODULE).expect("write");
    let python = PythonOptions { interpreter: Some("/usr/bin/python3".into()), paths: vec![dir.path().to_owned()] };
    let tag = NodeTag::new(dir.path().to_str().expect("utf-8"));
    let process = if in_cells {
        let (sandbox, missing) = Sandbox::probe(crate::rig::options(&python), &tag).expect("a machine that isolates");
        assert_eq!(missing, []);
        ProcessRunner::sandboxed(tag, sandbox.expect("a sandbox"))
    } else {
        ProcessRunner::new(tag)
    };
    let runner = PythonRunner::new(python, &process);
    runner.try_out();
    assert_eq!(runner.health(), Health::Ready);
    Functions { runner: Arc::new(runner), in_cells, _process: process, _dir: dir }
}

impl Subject for Functions {
    fn runner(&self) -> Arc<dyn Runner> {
        Arc::clone(&self.runner) as Arc<dyn Runner>
    }

    fn program(&self, does: Does) -> Program {
        let function = match does {
            Does::Succeed => "succeed",
            Does::ExitThree => "exit_three",
            Does::Print => "say",
            Does::CopyStdin => "copy_stdin",
            Does::CopyFile => "copy_file",
            Does::ShowVariables => "show_variables",
            Does::Spin => "spin",
            Does::Linger => "linger",
            Does::Devour => "devour",
            Does::FillStdout => "fill_stdout",
            Does::FillFile => "fill_file",
            Does::NotExist => "no_such_function",
        };
        Program::Python(PythonCall { call: format!("behaviour:{function}"), params: Params::Json("{}".to_owned()) })
    }

    fn limits_memory(&self) -> bool {
        self.in_cells
    }

    fn knows_absence(&self) -> bool {
        // Only the interpreter knows what a module has.
        false
    }
}

contract!(in_cells, Some(functions(true)));
contract!(bare, Some(functions(false)));
