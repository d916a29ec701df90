//! Daemons that call functions.
