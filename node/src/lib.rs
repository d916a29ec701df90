//! The sinew daemon and command line.
