//! What every runner does, whatever it runs: one suite of behaviours ([`suite`]), passed by each [`subject::Subject`]. Each runner's
//! tests include it and call [`suite::contract`] with a subject of their own.

pub(crate) mod subject;
pub(crate) mod suite;
