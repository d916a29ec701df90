//! The `docker` runner against a real engine, which these tests start and end themselves: what a task gets, what it does not,
//! what becomes of images and containers, and a mesh of daemons on top.
//!
//! They need root on Linux, `dockerd` and a static `busybox`. Where these are missing they say so and pass, unless `CI` is
//! set: then they fail.

#[path = "../behaviours/mod.rs"]
mod behaviours;
#[path = "../behaviours/store.rs"]
mod store;

mod closed;
mod contract;
mod engine;
mod engines;
mod image;
mod images;
mod killed;
mod mesh;
mod network;
mod overhead;
mod rig;
mod secrets;
mod subject;
