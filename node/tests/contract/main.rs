//! The suite of all runners, passed by those that need nothing: processes and modules. Beside it what only one kind of runner has: the
//! module runner's limits, its determinism, and attempts to get out of it.

#[path = "../behaviours/mod.rs"]
mod behaviours;
#[path = "../behaviours/store.rs"]
mod store;

mod process;
mod wasm;

mod cost;
mod mesh;
mod modules;
mod wasm_escape;
mod wasm_limits;
mod wasm_same;
