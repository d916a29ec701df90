//! The production core in virtual time.
