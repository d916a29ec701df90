//! WebAssembly modules.

use std::sync::Arc;

use sinew_crdt_state::ids::Hash;
use sinew_crdt_state::program::Wasm as Module;
use sinew_crdt_state::spec::{BlobRef, Program};
use sinew_node::exec::runner::Runner;
use sinew_node::exec::set::Content;
use sinew_node::exec::wasm::{WasmOptions, WasmRunner};

use crate::behaviours::subject::{Bench, Does, Subject};
use crate::behaviours::suite::contract;
use crate::modules;
use crate::store::Store;

pub(crate) const OPTIONS: WasmOptions = WasmOptions { memory_bytes: 1 << 30, slots: 1, module_bytes_max: 1 << 20 };

type Make = fn() -> Vec<u8>;

const ALL: [(Does, Make); 11] = [
    (Does::Succeed, modules::succeed),
    (Does::ExitThree, modules::exit_three),
    (Does::Print, modules::print),
    (Does::CopyStdin, modules::copy_stdin),
    (Does::CopyFile, modules::copy_file),
    (Does::ShowVariables, modules::show_variables),
    (Does::Spin, modules::spin),
    (Does::Linger, modules::linger),
    (Does::Devour, modules::devour),
    (Does::FillStdout, modules::fill_stdout),
    (Does::FillFile, modules::fill_file),
];

pub(crate) struct Wasm {
    runner: Arc<WasmRunner>,
    store: Store,
    deterministic: bool,
    modules: Vec<(Does, BlobRef)>,
}

impl Wasm {
    pub(crate) fn new(deterministic: bool) -> Self {
        let mut store = Store::new();
        let modules = ALL.map(|(does, make)| (does, store.add(&make()))).into();
        Self { runner: Arc::new(WasmRunner::new(OPTIONS)), store, deterministic, modules }
    }
}

impl Subject for Wasm {
    fn runner(&self) -> Arc<dyn Runner> {
        Arc::clone(&self.runner) as Arc<dyn Runner>
    }

    fn program(&self, does: Does) -> Program {
        let found = self.modules.iter().find(|(known, _)| *known == does).map(|(_, blob)| *blob);
        let module = found.unwrap_or(BlobRef { hash: Hash::of(b"nowhere"), size: 7 });
        Program::Wasm(Module { module, argv: Vec::new(), fuel: None, deterministic: self.deterministic })
    }

    fn content(&self) -> Content {
        self.store.content().clone()
    }
}

contract!(plain, Some(Wasm::new(false)));

/// Where deterministic time stands still for whoever waits, waiting for ever ends at once: so that one is not in its suite.
mod deterministic {
    use super::*;
    use crate::behaviours::suite;

    #[test]
    fn it_behaves_like_any_other() {
        let subject = Wasm::new(true);
        suite::it_succeeds(&subject);
        suite::it_tells_the_exit_status(&subject);
        suite::it_prints(&subject);
        suite::it_copies_stdin(&subject);
        suite::it_reads_and_writes_files(&subject);
        suite::it_sees_its_variables(&subject);
        suite::it_keeps_to_its_memory(&subject);
        suite::it_keeps_to_its_output_on_stdout(&subject);
        suite::it_keeps_to_its_output_in_files(&subject);
    }
}

/// A slot for modules, and the store that they are put into.
pub(crate) struct Modules {
    pub(crate) bench: Bench,
    store: Store,
}

impl Modules {
    pub(crate) fn new() -> Self {
        Self::with(WasmRunner::new(OPTIONS))
    }

    pub(crate) fn with(runner: WasmRunner) -> Self {
        Self { bench: Bench::new(Arc::new(runner), Content::new()), store: Store::new() }
    }

    /// A program of this module, to be changed further.
    pub(crate) fn add(&mut self, module: &[u8]) -> Module {
        let module = self.store.add(module);
        self.bench.content = self.store.content().clone();
        Module { module, argv: Vec::new(), fuel: None, deterministic: false }
    }

    pub(crate) fn run(&mut self, module: &Module) -> crate::behaviours::subject::Ran {
        self.bench.run(&Program::Wasm(module.clone()))
    }

    /// Adds it and runs it.
    pub(crate) fn run_new(&mut self, module: &[u8]) -> crate::behaviours::subject::Ran {
        let module = self.add(module);
        self.run(&module)
    }
}
