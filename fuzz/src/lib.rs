//! The fuzz targets as plain functions; the files in `fuzz_targets/` only call them.

pub mod targets;
