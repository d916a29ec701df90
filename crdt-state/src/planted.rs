//! Deliberate mistakes, to measure what the simulator finds. Behind the feature `planted`, which no default build and no
//! dev-dependency turns on: without it [`planted`] is a constant and every site is as if it were not there.
//!
//! Here and not in the scheduler, so that both crates ask the same switch. One mistake at a time, per thread.

/// One deliberate mistake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bug {
    /// A brain takes results under awards that it has given up.
    SkipEpochCheck,
    /// A brain takes results from whoever sends them.
    AcceptUnawarded,
    /// A steward stores for a brain that it has voted out, and does not tell it.
    SkipTermCheck,
    /// A brain decides and renews leases although its set does not answer.
    SkipInCharge,
    /// A brain that learns of its successor goes on.
    IgnoreDeposed,
    /// "Stored" and votes leave before they are on disk.
    SendBeforePersist,
    /// One copy on disk counts as a majority.
    QuorumOfOne,
    /// A steward's vote does not bind it.
    ForgetVote,
    /// A member that lost its disk counts as if it had not.
    VoteForgotten,
    /// A steward votes although it hears the brain.
    VoteWhileHeard,
    /// A brain that was started just now votes for its successor at once.
    VoteAtStart,
    /// A job that its brain does not lead any more goes to another one at once.
    DisownedAtOnce,
    /// Every job has the pace of a LAN.
    OnePaceForAll,
    /// One vote elects a brain.
    ElectedByOne,
    /// Reserved slots are still offered to others.
    DoubleReserve,
    /// An award starts one task more than it has slots.
    OneTaskTooMany,
    /// Slots stay reserved when an award ends with work left.
    LeakReservation,
    /// Of several chunks finished in a row, one is counted.
    LostChunkCounter,
    /// A job completes with one task missing.
    FinishEarly,
    /// Results count before their second copy exists.
    SkipCopies,
    /// A brain never gives up a silent worker.
    LeaseNeverExpires,
    /// A brain awards a silent worker's tasks anew before the worker has stopped.
    LeaseTooShort,
    /// A worker that nobody answers goes on for too long.
    FenceTooLate,
    /// A worker that lost its lease lets its tasks end in good order.
    FenceWithGrace,
    /// Nothing but the core itself ends tasks whose lease is over.
    NoSwitch,
    /// A late answer renews a lease from when it arrived, not from when the beat was sent.
    RenewAtArrival,
    /// A new brain goes to work without waiting for what workers hold.
    AdoptAtOnce,
    /// A new brain has finished chunks done again.
    TakeoverForgets,
    /// A brain announces and seals a verdict that no majority has on disk.
    SealBeforeFinal,
    /// An award ends, and its tasks run on.
    TasksOutliveLease,
    /// A brain does not look at cancels.
    IgnoreCancel,
    /// Failed attempts are not counted.
    ForgetFailures,
    /// A fact counts without a valid signature.
    AcceptUnsigned,
    /// Anti-entropy leaves out the entry at a range's edge.
    ReconcileEdge,
    /// The ledger takes in again what it has forgotten.
    ResurrectForgotten,
    /// After its seal an entry's late results are waited for no longer, so that some replicas never learn where they are.
    SealUnseen,
    /// A worker never fences itself, and asks to be called at once to do so.
    FenceNever,
    /// A restarted node numbers its jobs on from the last number that its disk knows.
    SerialAgain,
    /// A job is forgotten because another one of its number was.
    TwiceForgotten,
    /// A node whose disk is an old copy goes on as if nothing were.
    RollbackUnseen,
    /// A brain panics at a result that comes too late.
    PanicAtStale,
    /// A node whose disk hangs goes on leading, and keeps its leases.
    HungDiskLeads,
    /// Records are acknowledged although their sync failed.
    PersistedAfterFailedSync,
    /// A sync that failed is tried again without writing anything, and says that all is well.
    SyncRetried,
    /// A damaged disk is taken for what it was: its number stays.
    DamageBelieved,
    /// A node says that it holds a second copy because it once had the blob, without looking and without keeping it for the job.
    HaveUnseen,
    /// A steward says that it stored a job without looking whether the job's inputs are here, and without keeping them for it.
    InputsUnseen,
    /// A second copy is recorded before it is there.
    CopiedTooSoon,
    /// Outputs whose holder is gone for good are not copied again.
    NoCopyAgain,
    /// A node asked to hold a lost copy keeps it for nobody.
    KeptForNobody,
    /// A submit whose outcome is unknown is called refused, and its entry is dropped.
    RefuseUnknown,
    /// A cancel is acknowledged as soon as it is stated.
    CancelAtOnce,
    /// Keys of submits are not read back after a restart.
    ForgetKeys,
    /// A node goes on alone without waiting for the members that it knows, and does not say so.
    AloneUnsaid,
    /// Nothing of a job with a brain set of one is copied to others.
    NoWitness,
    /// A withdrawal is not kept on disk.
    WithdrawInMemory,
    /// An attempt that could not begin, because an input of the mesh was out of reach, counts as a failed one.
    CountBlocked,
    /// A map output whose holders are gone for good is not made anew.
    NeverAnew,
    /// A node that keeps its lease and ends nothing keeps it for ever.
    HogUnseen,
    /// A node that never answers a request for a copy is waited for as long as one that copies.
    MuteUnseen,
    /// A job's only attempt is never started a second time.
    NoTwin,
    /// A submit's time runs from its beginning, whatever its inputs have to travel.
    SubmitByTheClock,
    /// A node that leaves gives its awards back while their programs still run.
    GiveBackWhileRunning,
    /// What a node that leaves ends counts as a failure of its own.
    LeaveFailsTasks,
    /// A node leaves without a word.
    LeaveUnsaid,
    /// A node that leaves acknowledges what it has yet to store.
    LeaveAcknowledges,
    /// The room of a task that was told to end counts as free before it is gone.
    RoomAtOnce,
    /// A job that failed or was cancelled is sealed while programs of it still run.
    SealBeforeGone,
}

#[cfg(feature = "planted")]
thread_local! {
    static ACTIVE: std::cell::Cell<Option<Bug>> = const { std::cell::Cell::new(None) };
}

/// Makes this mistake from now on in this thread, or none.
#[cfg(feature = "planted")]
pub fn plant(bug: Option<Bug>) {
    ACTIVE.set(bug);
}

/// Whether this mistake is to be made.
#[cfg(feature = "planted")]
#[must_use]
pub fn planted(bug: Bug) -> bool {
    ACTIVE.get() == Some(bug)
}

/// No mistake is to be made.
#[cfg(not(feature = "planted"))]
#[inline]
#[must_use]
pub const fn planted(_: Bug) -> bool {
    false
}
