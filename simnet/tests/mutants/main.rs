//! Planted bugs: the core with one deliberate mistake each must be caught within a stated number of seeds, and without any
//! the same seeds must pass. The table is in `docs/simulator.md`; `measure` counts for it.
//!
//! `cargo nextest run -p sinew-simnet --features planted --test mutants`

mod broken;
mod leaving;
mod reach;
mod scenarios;
#[path = "../support/mod.rs"]
mod support;

use std::cell::Cell;
use std::panic::{catch_unwind, set_hook, take_hook};
use std::sync::Once;

use leaving::{leaving_brain, leaving_submitter, leaving_worker};
use reach::{cut_off_holders, hog, lost_holders, mute_holder, only_task, slow_inputs};
use scenarios::{
    alone, bad_link, calm, cancelled, cancelled_in_order, cut_off_worker, deaf_heir, deaf_submitter, disk_lost,
    equal_inputs, equal_jobs, failed_sync, failing, far_cancel, far_submitter, forgotten, gone_for_good, hung_disk,
    just_completed, late_answers, late_replication, late_result, liar, one_number_for_two, power_cut, quick_return,
    rolled_back, rotten_member, slow_submitter, split, stalled_worker, takeover_with_room, tried_again, wiped_member,
    withdrawn,
};
use sinew_crdt_state::planted::{Bug, plant};
use support::mixed;

/// The first seed; every bug is looked for from here on.
const FIRST: u64 = 7_000;

/// A mistake, the run that shows it, the seeds that suffice, and what may notice it.
struct Mutant {
    bug: Bug,
    run: fn(u64),
    seeds: u64,
    by: &'static [&'static str],
}

/// What a planted bug does to a run is a panic: not worth a page on the terminal each.
fn hush() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let loud = take_hook();
        set_hook(Box::new(move |info| {
            if !EXPECTED.get() {
                loud(info);
            }
        }));
    });
}

thread_local! {
    static EXPECTED: Cell<bool> = const { Cell::new(false) };
}

/// Runs one seed with the bug and tells what noticed it: the message's first line.
fn notices(bug: Bug, run: fn(u64), seed: u64) -> Option<String> {
    hush();
    EXPECTED.set(true);
    plant(Some(bug));
    let ended = catch_unwind(|| run(seed));
    plant(None);
    EXPECTED.set(false);
    let message = ended.err()?;
    let text = message.downcast_ref::<String>().cloned();
    let text = text.or_else(|| message.downcast_ref::<&str>().map(|s| (*s).to_owned())).unwrap_or_default();
    Some(text.lines().next().unwrap_or_default().chars().take(200).collect())
}

impl Mutant {
    fn is_caught(&self) {
        for seed in FIRST..FIRST + self.seeds {
            if let Some(why) = notices(self.bug, self.run, seed) {
                assert!(self.by.iter().any(|by| why.contains(by)), "noticed by something else: {why}");
                return;
            }
        }
        panic!("{:?} is not noticed in {} seeds", self.bug, self.seeds);
    }

    /// How many of so many seeds notice it, and the first, and by what.
    fn count(&self, seeds: u64) -> String {
        let found: Vec<(u64, String)> =
            (FIRST..FIRST + seeds).filter_map(|s| Some((s - FIRST + 1, notices(self.bug, self.run, s)?))).collect();
        let whys: Vec<&str> = found.iter().map(|(_, why)| why.split(['(', ':']).next().unwrap_or_default()).collect();
        format!("{:?}: {} of {seeds}, first {:?}, {whys:?}", self.bug, found.len(), found.first())
    }
}

macro_rules! mutants {
    ($($name:ident: $bug:ident, $run:ident, $seeds:expr, [$($by:expr),*];)*) => {
        const MUTANTS: &[Mutant] = &[
            $(Mutant { bug: Bug::$bug, run: $run, seeds: $seeds, by: &[$($by),*] }),*
        ];
        $(
            #[test]
            fn $name() {
                let bug = MUTANTS.iter().find(|m| m.bug == Bug::$bug).expect("it is in the list");
                bug.is_caught();
            }
        )*
    };
}

mutants! {
    a_result_after_the_award_was_given_up: SkipEpochCheck, late_result, 3, ["LateResult"];
    a_vote_of_a_brain_that_was_started_just_now: VoteAtStart, deaf_heir, 60, ["DoubleStart"];
    a_disowned_job_taken_at_once: DisownedAtOnce, quick_return, 400, ["DoubleStart"];
    one_pace_for_all: OnePaceForAll, far_submitter, 3, ["not within"];
    a_result_of_a_task_not_awarded: AcceptUnawarded, liar, 3, ["Invented"];
    an_unsigned_fact: AcceptUnsigned, liar, 3, ["Unsigned"];
    a_steward_that_stores_for_the_deposed: SkipTermCheck, late_replication, 30, ["not at rest", "Diverged"];
    a_forgotten_vote: ForgetVote, late_replication, 60, ["not at rest", "Diverged"];
    a_seal_before_the_verdict_is_final: SealBeforeFinal, late_replication, 3, ["not at rest", "Diverged"];
    a_wiped_member_that_votes: VoteForgotten, wiped_member, 3, ["know too little"];
    a_vote_against_a_living_brain: VoteWhileHeard, bad_link, 3, ["deposed"];
    an_election_by_one_vote: ElectedByOne, mixed, 3, ["not at rest", "Offences"];
    a_brain_out_of_touch_that_decides: SkipInCharge, split, 20, ["DoubleStart"];
    a_brain_that_does_not_step_down: IgnoreDeposed, split, 20, ["not at rest"];
    an_answer_before_the_disk: SendBeforePersist, power_cut, 40, ["Lost"];
    a_majority_of_one: QuorumOfOne, power_cut, 40, ["Lost"];
    a_double_reservation: DoubleReserve, mixed, 3, ["Overbooked"];
    one_task_too_many: OneTaskTooMany, mixed, 3, ["Overbooked"];
    a_leaked_reservation: LeakReservation, cut_off_worker, 3, ["Leak"];
    a_lost_chunk_counter: LostChunkCounter, mixed, 3, ["not at rest"];
    a_job_that_ends_early: FinishEarly, calm, 3, ["Miscounted", "not within"];
    a_result_without_its_copy: SkipCopies, disk_lost, 10, ["OutputGone"];
    a_lease_that_never_expires: LeaseNeverExpires, mixed, 10, ["not at rest"];
    a_lease_that_expires_too_soon: LeaseTooShort, cut_off_worker, 3, ["DoubleStart"];
    a_worker_that_fences_itself_too_late: FenceTooLate, cut_off_worker, 3, ["DoubleStart"];
    a_worker_that_fences_itself_with_grace: FenceWithGrace, cut_off_worker, 10, ["DoubleStart"];
    a_daemon_that_stands_still_with_no_switch: NoSwitch, stalled_worker, 3, ["DoubleStart"];
    a_renewal_counted_from_its_arrival: RenewAtArrival, late_answers, 40, ["DoubleStart"];
    a_takeover_in_a_hurry: AdoptAtOnce, takeover_with_room, 10, ["DoubleStart"];
    a_takeover_that_forgets_finished_chunks: TakeoverForgets, mixed, 10, ["Rerun"];
    tasks_that_outlive_their_lease: TasksOutliveLease, cut_off_worker, 3, ["Orphan", "DoubleStart"];
    an_ignored_cancel: IgnoreCancel, cancelled, 3, ["not within"];
    room_given_back_at_once: RoomAtOnce, cancelled_in_order, 3, ["Overbooked", "run on"];
    a_seal_before_all_is_gone: SealBeforeGone, cancelled_in_order, 3, ["run on"];
    failures_that_nobody_counts: ForgetFailures, failing, 3, ["not within"];
    an_entry_at_the_edge_of_a_range: ReconcileEdge, mixed, 3, ["not at rest"];
    a_forgotten_job_that_comes_back: ResurrectForgotten, forgotten, 3, ["Revived", "not at rest"];
    a_seal_without_what_it_seals: SealUnseen, mixed, 3, ["Diverged"];
    an_answer_after_a_failed_sync: PersistedAfterFailedSync, failed_sync, 40, ["Lost"];
    a_failed_sync_that_is_tried_again: SyncRetried, failed_sync, 3, ["Lost"];
    a_hung_disk_that_leads: HungDiskLeads, hung_disk, 3, ["not within"];
    a_damaged_disk_that_is_believed: DamageBelieved, rotten_member, 3, ["know too little"];
    a_copy_that_is_another_jobs: HaveUnseen, equal_jobs, 3, ["CopyMissing"];
    inputs_that_are_another_jobs: InputsUnseen, equal_inputs, 3, ["its inputs are kept by"];
    a_copy_recorded_before_it_is_there: CopiedTooSoon, just_completed, 3, ["CopyMissing"];
    a_lost_copy_that_is_not_made_again: NoCopyAgain, gone_for_good, 3, ["TooFewCopies"];
    a_copy_that_is_kept_for_nobody: KeptForNobody, gone_for_good, 3, ["TooFewCopies"];
    an_old_copy_that_counts: RollbackUnseen, rolled_back, 3, ["know too little", "not recovered"];
    a_number_for_two_jobs: SerialAgain, slow_submitter, 20, ["SerialTwice"];
    a_job_forgotten_with_another: TwiceForgotten, one_number_for_two, 3, ["is forgotten"];
    an_unknown_outcome_called_refused: RefuseUnknown, deaf_submitter, 3, ["RefusedRan"];
    a_withdrawal_that_a_restart_forgets: WithdrawInMemory, withdrawn, 3, ["a withdrawn job ran"];
    a_cancel_acknowledged_at_once: CancelAtOnce, far_cancel, 3, ["CancelUndone", "CancelledRan"];
    a_key_that_a_restart_forgets: ForgetKeys, tried_again, 3, ["KeyTwice"];
    a_node_alone_that_does_not_say_so: AloneUnsaid, alone, 3, ["AloneUnsaid"];
    a_lonely_job_that_nobody_else_holds: NoWitness, alone, 3, ["OutputGone"];
    an_input_out_of_reach_that_counts: CountBlocked, cut_off_holders, 10, ["not within", "nothing was out of reach"];
    a_lost_map_output_that_stays_lost: NeverAnew, lost_holders, 10, ["not within"];
    a_worker_that_ends_nothing: HogUnseen, hog, 3, ["not within"];
    a_copy_that_never_comes: MuteUnseen, mute_holder, 10, ["not within"];
    an_only_task_that_nobody_else_gets: NoTwin, only_task, 20, ["not within"];
    a_submit_by_the_clock: SubmitByTheClock, slow_inputs, 3, ["the job is taken"];
    awards_given_back_while_their_programs_run: GiveBackWhileRunning, leaving_worker, 3, ["DoubleStart"];
    a_node_that_fails_what_it_ends: LeaveFailsTasks, leaving_worker, 3, ["not within"];
    a_node_that_leaves_without_a_word: LeaveUnsaid, leaving_worker, 3, ["called suspect"];
    a_submit_acknowledged_by_leaving: LeaveAcknowledges, leaving_submitter, 3, ["Lost"];
    a_brain_that_leaves_without_a_word: LeaveUnsaid, leaving_brain, 3, ["called suspect"];
}

macro_rules! sound {
    ($($name:ident: $run:ident;)*) => {
        $(
            /// Nothing is planted: as many seeds as any bug is given pass.
            #[test]
            fn $name() {
                let run: fn(u64) = $run;
                let most = MUTANTS.iter().filter(|m| std::ptr::fn_addr_eq(m.run, run)).map(|m| m.seeds).max();
                for seed in FIRST..FIRST + most.expect("some bug needs it") {
                    run(seed);
                }
            }
        )*
    };
}

sound! {
    without_a_bug_mixed_faults_pass: mixed;
    without_a_bug_late_results_pass: late_result;
    without_a_bug_liars_pass: liar;
    without_a_bug_power_cuts_pass: power_cut;
    without_a_bug_forgetting_passes: forgotten;
    without_a_bug_lost_disks_pass: disk_lost;
    without_a_bug_cancels_pass: cancelled;
    without_a_bug_submitters_that_leave_pass: leaving_submitter;
    without_a_bug_cancels_in_order_pass: cancelled_in_order;
    without_a_bug_failures_pass: failing;
    without_a_bug_late_replication_passes: late_replication;
    without_a_bug_bad_links_pass: bad_link;
    without_a_bug_splits_pass: split;
    without_a_bug_cut_off_workers_pass: cut_off_worker;
    without_a_bug_stalled_daemons_pass: stalled_worker;
    without_a_bug_calm_runs_pass: calm;
    without_a_bug_late_answers_pass: late_answers;
    without_a_bug_takeovers_pass: takeover_with_room;
    without_a_bug_failed_syncs_pass: failed_sync;
    without_a_bug_hung_disks_pass: hung_disk;
    without_a_bug_rotten_disks_pass: rotten_member;
    without_a_bug_equal_jobs_pass: equal_jobs;
    without_a_bug_equal_inputs_pass: equal_inputs;
    without_a_bug_recorded_copies_exist: just_completed;
    without_a_bug_nodes_gone_for_good_pass: gone_for_good;
    without_a_bug_old_copies_pass: rolled_back;
    without_a_bug_slow_submitters_pass: slow_submitter;
    without_a_bug_shared_numbers_pass: one_number_for_two;
    without_a_bug_deaf_submitters_pass: deaf_submitter;
    without_a_bug_withdrawals_pass: withdrawn;
    without_a_bug_far_cancels_pass: far_cancel;
    without_a_bug_other_tries_pass: tried_again;
    without_a_bug_nodes_alone_pass: alone;
    without_a_bug_holders_out_of_reach_are_waited_for: cut_off_holders;
    without_a_bug_lost_map_outputs_are_made_anew: lost_holders;
    without_a_bug_workers_that_end_nothing_are_left: hog;
    without_a_bug_mute_holders_are_left: mute_holder;
    without_a_bug_only_tasks_are_started_again: only_task;
    without_a_bug_slow_inputs_come: slow_inputs;
    without_a_bug_workers_leave: leaving_worker;
    without_a_bug_brains_leave: leaving_brain;
}

/// Counts for the table, for longer than `nextest` lets a test run:
/// `MUTANTS=20 cargo test -p sinew-simnet --features planted --test mutants -- --ignored --nocapture measure`, or one bug's with
/// `MUTANTS_BUG=ForgetVote`.
#[test]
#[ignore = "takes many minutes"]
fn measure() {
    let seeds = std::env::var("MUTANTS").ok().and_then(|n| n.parse().ok()).unwrap_or(20);
    let only = std::env::var("MUTANTS_BUG").ok();
    for mutant in MUTANTS.iter().filter(|m| only.as_ref().is_none_or(|b| *b == format!("{:?}", m.bug))) {
        println!("{}", mutant.count(seeds));
    }
}
