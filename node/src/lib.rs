//! The sinew daemon and command line.

pub mod api;
pub mod bench;
pub mod cli;
pub mod clock;
pub mod config;
pub mod daemon;
pub mod datadir;
pub mod demo;
pub mod effects;
pub mod egress;
pub mod engine;
pub mod exec;
pub mod frames;
pub mod gather;
pub mod job_blobs;
pub mod local_mesh;
pub mod logs;
pub mod mesh_link;
pub mod probe;
pub mod prune;
pub mod runners;
pub mod secrets;
pub mod sightings;
pub mod storage;
pub mod submit;
pub mod tasks;
