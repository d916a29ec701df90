//! What a starting node reads from its disk.

use sinew_crdt_state::cbor;
use sinew_crdt_state::envelope::{Envelope, Opened};
use sinew_crdt_state::fact::{Fact, Statement};
use sinew_crdt_state::ids::JobId;
use sinew_crdt_state::ledger::Admitted;

use crate::ctx::Ctx;

/// Takes in facts in the order of the disk, which is none. Gives the jobs of which the seal is there but not the mark that
/// goes with it: a write was torn between the two.
pub(crate) fn take_in(ctx: &mut Ctx, facts: &[Envelope]) -> Vec<JobId> {
    let (mut seals, mut others) = (Vec::new(), Vec::new());
    for envelope in facts {
        let Ok(statement) = cbor::from_slice::<Statement>(&envelope.payload) else { continue };
        let kind = if matches!(statement.fact, Fact::Seal { .. }) { &mut seals } else { &mut others };
        kind.push((envelope, Opened { id: envelope.fact_id(), statement }));
    }
    let now_ms = ctx.now.unix_ms;
    // Twice: a spec may be stored after facts that need it. What was admitted once is admitted again; a refusal can only
    // mean a forgotten entry.
    for _ in 0..2 {
        for (envelope, opened) in &others {
            let _ = ctx.ledger.admit_own(envelope, opened, now_ms);
        }
    }
    // After a seal nothing more is taken in.
    let mut sealed = Vec::new();
    for (envelope, opened) in &seals {
        if let Ok(Admitted::New(_)) = ctx.ledger.admit_own(envelope, opened, now_ms) {
            sealed.push(envelope.entry);
        }
    }
    sealed
}
