//! The `python` runner: its contract, what its workers keep and what they must not, what hostile functions get to, and a mesh
//! of daemons that calls functions.

#[path = "../behaviours/mod.rs"]
mod behaviours;

mod contract;
mod hostile;
mod mesh;
mod rig;
mod secrets;
mod subject;
mod workers;
