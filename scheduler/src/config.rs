//! The core's constants and what an operator sets. Each constant says what it guards against.

use std::collections::BTreeMap;

use sinew_crdt_state::program::Runners;
use sinew_crdt_state::volume::VolumeRules;

use crate::time::Span;

/// Worker to brain, brain to steward. Design measurement: at 200 ms and the limits below, no double start in a million
/// jobs at 1 % loss.
pub const BEAT_EVERY: Span = Span::ms(200);
/// A worker whose beats were not answered for this long stops its attempts. Must be below [`LEASE`] by more than a beat
/// and a slow network's round trip, so that the worker stops before anyone else starts.
pub const FENCE_AFTER: Span = Span::ms(1_000);
/// What ends a worker's attempts when its core stands still does so this much after [`FENCE_AFTER`]: a core that runs comes first, since
/// it knows of answers that have only just come. Well below what is left of [`LEASE`] then.
pub const SWITCH_AFTER: Span = Span::ms(50);
/// A brain that heard nothing from a worker for this long awards its tasks anew.
pub const LEASE: Span = Span::ms(1_500);
/// A worker whose brain is silent for this long asks the whole brain set: three tries before it must fence itself.
pub const ASK_STEWARDS_AFTER: Span = Span::ms(400);
/// How long after the sending of its last answered set beat a brain may renew leases and decide: [`LEASE`] less
/// [`FENCE_AFTER`], so that workers it renewed last are fenced before a successor re-awards.
pub const IN_CHARGE_FOR: Span = Span::ms(500);
/// A member of the brain set keeps a worker's lease alive only once it has not heard the brain for this long. Not shorter than
/// [`IN_CHARGE_FOR`]: a brain that still decides on the strength of this member's last answer does so before, and every
/// later answer tells it which leases were kept.
pub const KEEP_AFTER: Span = IN_CHARGE_FOR;
/// A steward that heard no set beat for this long stands for brain.
pub const TAKEOVER_AFTER: Span = Span::ms(1_500);
/// Each further steward waits this much longer, so that the first usually wins unopposed.
pub const TAKEOVER_STAGGER: Span = Span::ms(250);
/// A member that heard the brain within this time refuses to elect another: a candidate with a bad link must not depose
/// a brain that works. And long enough that leases which that brain renewed last have run out when the next one awards anew:
/// [`IN_CHARGE_FOR`] and [`FENCE_AFTER`], less [`ADOPT_WAIT_GONE`]. Members count their silence from the same beat, so it must
/// stay below [`TAKEOVER_AFTER`] by more than beats differ in arrival.
pub const STICKY_FOR: Span = Span::ms(1_400);
/// Votes are asked for again after this.
pub const CAMPAIGN_EVERY: Span = Span::ms(400);
/// A member that lost its disk asks the others again after this, until all have answered.
pub const RECALL_EVERY: Span = Span::ms(400);
/// Outputs that a lost disk held are asked for again after this, while their other holder is away or cannot give them.
pub const RESTORE_EVERY: Span = Span::ms(2_000);
/// The same where there is no connection to the holder, as in a large mesh: it may be gone for good.
pub const RESTORE_FAR_EVERY: Span = Span::ms(20_000);
/// Fetches of such outputs under way at most: what nodes work on now should not wait for what is only kept safe.
pub const RESTORE_AT_ONCE: usize = 16;
/// Looks for silent brains come no sooner after each other than this, and only when one may have been silent for too long.
pub const CHECK_EVERY: Span = Span::ms(100);
/// A brain that is heard of, but not of a certain job for this long, is asked whether it still leads that job: it may have lost
/// its disk, or given the job up.
pub const QUIET_AFTER: Span = Span::ms(2_000);
/// A new brain waits this long for connected workers to say what they hold; their answers usually take a round trip.
pub const ADOPT_WAIT: Span = Span::ms(400);
/// ... and this long for those that are not connected: until their leases have run out.
pub const ADOPT_WAIT_GONE: Span = Span::ms(200);
/// ... and this long for those whose lease was renewed just before: [`FENCE_AFTER`] and a margin.
pub const ADOPT_WAIT_ALIVE: Span = Span::ms(1_200);
/// Workers that have not answered are asked again this often.
pub const ADOPT_AGAIN: Span = Span::ms(150);

/// Candidates asked for a job of one task: the power of two choices.
pub const OFFERS: usize = 2;
/// Awards of one job at most: bounds the brain's fan-out.
pub const SEATS_MAX: usize = 256;
/// Bids are compared after this at the latest: above a round trip across the world.
pub const BID_WINDOW: Span = Span::ms(400);
/// Jobs that found no node try again no sooner than after this, unless news of free resources come first; and after this, whatever
/// the news, where they chased room that others took.
pub const PLACE_AGAIN: Span = Span::ms(250);
/// Jobs that wait look for room this often without any news, the first of each class only: in case some was lost.
pub const WAITING_LOOK_EVERY: Span = Span::ms(5_000);
/// A node that had no room is asked again after this, by a brain that knows of none with room: in a mesh of a hundred its next
/// digest may be ten seconds away, and many short tasks end in that time. Each node so hears no more than one such offer a
/// second from each other, however many jobs wait ...
pub const ASK_AGAIN: Span = Span::ms(1_000);
/// ... and half as many after each that it declined, so often at most: where tasks take long, asking is in vain.
pub const ASK_AGAIN_DOUBLED_MAX: u32 = 5;
/// What waiting jobs need is advertised this often at first, once for all that need the same ...
pub const ADVERT_EVERY: Span = Span::ms(2_000);
/// ... and half as often each time that nothing came of it, down to this: nodes that get room tell their connections anyway.
pub const ADVERT_EVERY_MAX: Span = Span::ms(16_000);

/// Progress is written down this often while a phase runs: bounds what a takeover must ask workers for.
pub const PROGRESS_EVERY: Span = Span::ms(200);
/// Finished tasks are reported after this at the latest while others still run.
pub const REPORT_EVERY: Span = Span::ms(20);
/// ... or once so many wait.
pub const REPORT_ITEMS: usize = 1_024;
/// Facts and copies that were not acknowledged are sent again after this.
pub const RESEND_EVERY: Span = Span::ms(1_000);
/// A request for a copy that was not answered is repeated this often: it, or its answer, may be lost.
pub const COPY_AGAIN: Span = Span::ms(2_000);
/// A copy that took this long goes to somebody else, unless it still comes in at [`COPY_BYTES_PER_S`] or faster.
pub const COPY_TIMEOUT: Span = Span::ms(60_000);
/// ... and so does one of which the node that was asked says nothing for this long. A fetch that is under way tells of itself every
/// [`FETCHING_EVERY`], and a provider that stalls is given up after five seconds.
pub const COPY_SILENCE: Span = Span::ms(10_000);
/// The slowest that a copy may be in the mean once [`COPY_TIMEOUT`] is over, bytes a second: a modem's upstream.
pub const COPY_BYTES_PER_S: u64 = 64 << 10;
/// A node that was asked for a copy and said nothing is asked for none by the same job for this long, while there are others.
pub const MUTE_FOR: Span = Span::ms(300_000);
/// How far a fetch is, is told no more often than this.
pub const FETCHING_EVERY: Span = Span::ms(1_000);
/// An input of the mesh that nobody could fetch is asked for again after this, on all nodes that have room, ...
pub const BLOCKED_AGAIN: Span = Span::ms(500);
/// ... then after twice as long each time, up to this: a node that comes back is noticed sooner, if this one hears of it.
pub const BLOCKED_AGAIN_MAX: Span = Span::ms(8_000);
/// Blobs named as out of reach in one message, and remembered of one job: which ones there are shows as they come.
pub const MISSING_MAX: usize = 64;
/// Lost map outputs are looked for this often while tasks wait for some.
pub const LOST_LOOK_EVERY: Span = Span::ms(1_000);
/// Work queued at a worker: about this much time, so that it never idles for a round trip.
pub const QUEUE_AHEAD: Span = Span::ms(200);
/// Most tasks queued at one award.
pub const WINDOW_MAX: u32 = 16_384;
/// A task that runs longer than this and twice the mean of its phase is started elsewhere too.
pub const SPECULATE_AFTER: Span = Span::ms(2_000);
/// The only attempt of a job that has a time limit is started elsewhere too once half of that is over, and no sooner than this:
/// nothing else tells what is slow, and a second run of a short task would be waste.
pub const SPECULATE_ALONE_AFTER: Span = Span::ms(60_000);
/// ... and of a job without a limit after this.
pub const SPECULATE_UNLIMITED_AFTER: Span = Span::ms(600_000);
/// An attempt is past its limit once nothing was reported for the time limit and this: time to start and to report ...
pub const OVERDUE_MARGIN: Span = Span::ms(20_000);
/// ... and to store the largest output allowed, bytes a second: a slow disk.
pub const STORE_BYTES_PER_S: u64 = 64 << 20;
/// ... and to fetch inputs, bytes a second: a slow link.
pub const FETCH_BYTES_PER_S: u64 = 1 << 20;
/// ... and this where something has to come from outside of the mesh, or has to be made ready to run, whose size nobody knows.
pub const GATHER_MARGIN: Span = Span::ms(600_000);
/// A node that held tasks past their limit gets none of that job for this long while others can take them ...
pub const OVERDUE_SHUN_FOR: Span = Span::ms(600_000);
/// ... and none of others for this long; twice as long each time in a row, ...
pub const SHUN_ALL_FOR: Span = Span::ms(60_000);
/// ... that often.
pub const SHUN_ALL_DOUBLED_MAX: u32 = 6;
/// A node that could not fetch what a task needs gets no more of that job's tasks for this long while others can take them:
/// it fails fast, so it would soon have had every task more often than retries allow.
pub const SHUN_FOR: Span = Span::ms(30_000);
/// The same for a node that could not run a task for a reason of its own: one that knows what is wrong bids for no more by itself.
pub const SHUN_BRIEFLY: Span = Span::ms(2_000);
/// Attempts that nodes gave back count as none, up to so many for each task and term: with the waits between them some two
/// minutes. What comes back more often may be the task's own doing after all.
pub const GIVEN_BACK_MAX: u32 = 16;
/// A brain waits this long for executors' receipts before it seals without them.
pub const RECEIPTS_WAIT: Span = Span::ms(1_000);
/// So much longer it waits for programs of a job that failed or was cancelled to be gone: the grace that they are given, and some.
pub const STOPPED_WAIT: Span = Span::ms(2_500);
/// A node that knows three or more members and reaches too few for a brain set of three waits so long for them before it goes on
/// alone: after a restart connections come up within a second or two.
const REACH_WAIT_MS: u64 = 4_000;
/// Where nobody came or went for this long, waiting would change nothing: members may be gone for months.
pub const REACH_SETTLED: Span = Span::ms(60_000);
/// A cancel that is not decided by then is called undecided: time for a takeover, and for the verdict to reach a majority.
pub const CANCEL_WAIT: Span = Span::ms(10_000);
/// ... and by then where no majority of the job's set is in reach: only one who comes back could change that.
pub const CANCEL_WAIT_CUT_OFF: Span = Span::ms(2_000);
/// A cancel that waits is sent again this often.
pub const CANCEL_AGAIN: Span = Span::ms(1_000);
/// A member that was silent for so long is named as lost where a job waits for a majority. Not shorter than what a takeover needs.
pub const LOST_AFTER: Span = Span::ms(3_000);
/// Other nodes that hold what a job with a brain set of one consists of: with this node as many as a brain set has.
pub const WITNESSES: usize = 2;
/// What they lack is looked for this often.
pub const WITNESS_EVERY: Span = Span::ms(2_000);
/// A witness that has not answered is asked again after this: it may be fetching.
pub const WITNESS_AGAIN: Span = Span::ms(10_000);
/// A submit that is on no majority's disk by then has an unknown outcome, counted from when more of its inputs last came to a
/// member of its set.
pub const SUBMIT_TIMEOUT: Span = Span::ms(15_000);

/// A node whose load changed tells all its peers, no sooner than this after the last time ...
const LOAD_NEWS_EVERY: Span = Span::ms(500);
/// ... and longer with more connections than this: each hears ten a second at most, however busy all are.
const LOAD_NEWS_PEERS: u64 = 5;
/// Load digests go along with every packet of the failure detector, in case one was lost; cards with every so many.
pub const CARD_EVERY: u32 = 16;
/// A node that was silent for so long gets no offers and no copies even while its connection looks open: across a partition
/// that takes the transport half a minute to notice. The failure detector notices sooner, unless others can reach the node.
const SILENT_AFTER: Span = Span::ms(3_000);
/// ... times the share of peers above so many: of four a failure detector speaks to each, and hears from it, every four seconds.
const SILENT_PEERS: u64 = 2;

/// How soon after its last digest a node with so many connections tells a change of its load.
#[must_use]
pub fn load_news_every(peers: usize) -> Span {
    Span(LOAD_NEWS_EVERY.0.saturating_mul((peers as u64).max(LOAD_NEWS_PEERS)) / LOAD_NEWS_PEERS)
}

/// After which silence a peer is taken for gone, by a node with so many connections.
#[must_use]
pub fn silent_after(peers: usize) -> Span {
    Span(SILENT_AFTER.0.saturating_mul((peers as u64).max(SILENT_PEERS)) / SILENT_PEERS)
}
/// A connected member that answers nothing for so long is dialled anew: the connection may lead nowhere any more, because an address
/// changed or a router forgot it, and the transport takes half a minute to notice.
pub const REACH_AFTER: Span = Span::ms(2_000);
/// A node that leaves stays this long for the jobs that it led until another brain leads them: it may have to vote. Enough for two
/// tries of an election, each a fence's length after it left the lead.
pub const HANDED_OVER_WITHIN: Span = Span::ms(3_000);
/// A job that was forgotten here is not asked for during this time: others forget it too, within a few seconds as their clocks
/// and looks differ. Who still has it then never learned that it ended.
pub const FORGOTTEN_FOR: Span = Span::ms(60_000);
/// A neighbour is asked for differences this often.
pub const SYNC_EVERY: Span = Span::ms(1_500);
/// An entry in which nothing changed is compared with another node again after so many looks, and one in which much does too.
pub const LOOKS: u32 = 5;
/// An entry that came with an offer and led to nothing is dropped after this, where nodes keep only what concerns them.
pub const UNCONCERNED_FOR: Span = Span::ms(10_000);
/// Entries asked for in one message, and bytes of facts sent in one: keeps frames well below their limit.
pub const WANT_MAX: usize = 512;
/// See [`WANT_MAX`].
pub const FACTS_BYTES_MAX: usize = 1 << 20;
/// A restarted node that has not heard from all whom it should listen to goes on after this. Connections stand well within it
/// wherever a lease can be kept, and it is no longer than a brain's silence that others wait for.
pub const SURE_AFTER: Span = Span::ms(2_000);
/// How far another node's disk has come is written down this often at most, along with other records: what is lost with it
/// are the last seconds of what can tell an old copy of that disk.
pub const BOOT_NOTED_EVERY: Span = Span::ms(10_000);

/// Blobs named in one question about who holds them, or in one request to hold them: some 10 KiB.
pub const HELD_BLOBS_MAX: usize = 256;

/// With more open jobs than this a busy node's inputs are collected for [`PACE`] before they are answered. With fewer nobody
/// would be served better: what comes in then is mostly the answer to what just went out.
pub const PACE_JOBS: usize = 8;
/// One signature, one write and one frame to each peer stand for all that a node says at once, and each of its peers checks
/// that signature. Two milliseconds are some three jobs of sixty-four under way; a job takes eight turns, so that it ends
/// some ten milliseconds later than it would alone.
pub const PACE: Span = Span::ms(2);

/// What an operator sets.
#[derive(Debug, Clone)]
pub struct CoreConfig {
    /// Thousandths of a core that tasks may use; 0 on a node that runs nothing.
    pub cpu_milli: u32,
    /// Bytes of memory that tasks may use.
    pub memory_bytes: u64,
    /// Bytes of disk that tasks may reserve.
    pub disk_bytes: u64,
    /// What a job may let one of its tasks write at most, bytes; `u64::MAX` is no ceiling.
    pub output_bytes_max: u64,
    /// Tasks that may run at once, however little each needs: what the daemon has threads and descriptors for.
    pub tasks_max: u32,
    /// The operator's labels.
    pub labels: BTreeMap<String, String>,
    /// What can run here.
    pub runners: Runners,
    /// Directories that jobs may use here.
    pub volumes: VolumeRules,
    /// For people.
    pub about: String,
    /// Tasks handed to the driver ahead of a free slot, per slot: a short task's successor then starts without a round trip
    /// to the core. The driver keeps to [`crate::io::StartTask::job_slots`].
    pub start_ahead: u32,
    /// In a mesh of up to so many nodes every node keeps every job. In a larger one a node keeps the jobs that it submitted,
    /// decides, or works for: or else each would pay for all that the others do.
    pub keep_all_max: usize,
    /// How long a submit waits for members that are known and not in reach, ms, before it goes on alone.
    pub reach_wait_ms: u64,
    /// How long a sealed job's entry stays before only its receipt is kept, ms.
    pub ledger_grace_ms: u64,
    /// What a node held is copied again once it has been gone for this long, ms.
    pub copy_again_after_ms: u64,
    /// ... by each of those that hold it too at no more than so many bytes a second in the mean.
    pub copy_bytes_per_s: u64,
}

impl Default for CoreConfig {
    fn default() -> Self {
        Self {
            cpu_milli: 1_000,
            memory_bytes: 1 << 30,
            disk_bytes: 1 << 30,
            output_bytes_max: u64::MAX,
            tasks_max: u32::MAX,
            labels: BTreeMap::new(),
            runners: Runners::PROCESS,
            volumes: VolumeRules::default(),
            about: String::new(),
            start_ahead: 0,
            keep_all_max: 64,
            // An hour: longer than any reader or late message needs, short enough for thousands of jobs a second.
            ledger_grace_ms: 3_600_000,
            // Longer than a restart or a short cut takes, short against the time in which a second machine breaks.
            copy_again_after_ms: 60_000,
            // A quarter of a gigabit link: what nodes work on comes first.
            copy_bytes_per_s: 32 << 20,
            reach_wait_ms: REACH_WAIT_MS,
        }
    }
}
