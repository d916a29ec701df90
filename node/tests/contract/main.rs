//! What every runner does, whatever it runs: one suite of behaviours ([`suite`]), passed by each [`subject::Subject`]. Beside it what
//! only one kind of runner has: the module runner's limits, its determinism, and attempts to get out of it.

mod subject;
mod suite;

mod process;
mod wasm;

mod cost;
mod mesh;
mod modules;
mod wasm_escape;
mod wasm_limits;
mod wasm_same;
