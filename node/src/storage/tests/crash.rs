//! Whatever the disk does, and whenever the power goes: what was acknowledged is there, and nothing is there in part.

use proptest::prelude::*;
use rand::{RngExt, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use sinew_crdt_state::envelope::Envelope;
use sinew_crdt_state::ids::{FactId, JobId};
use sinew_crdt_state::ledger::OwnerMark;
use sinew_scheduler::io::{Record, Ticket};

use super::disk::{Mood, SimDisk};
use super::jobs::{Oracle, nodes, sealed, sign, usual};
use super::{LEDGER, Rig};
use crate::storage::checkpoint::apply;
use crate::storage::keeper::open_database;
use crate::storage::set_up;
use crate::storage::table::Table;

/// A job under way: its serial, its facts, and how many of them were told.
type UnderWay = (u64, JobId, Vec<(FactId, Envelope)>, usize);

/// Makes records as cores do, of many jobs at once.
pub(super) struct Source {
    pub(super) rng: ChaCha8Rng,
    serial: u64,
    pub(super) live: Vec<UnderWay>,
    pub(super) sealed: Vec<(u64, JobId)>,
    mark: OwnerMark,
}

impl Source {
    pub(super) fn new(seed: u64) -> Self {
        let rng = ChaCha8Rng::seed_from_u64(seed);
        Self { rng, serial: 0, live: Vec::new(), sealed: Vec::new(), mark: OwnerMark::default() }
    }

    fn begin(&mut self) {
        let jobs: Vec<_> = (0..self.rng.random_range(1..6u64)).map(|n| usual(self.serial + n)).collect();
        for (job, facts) in jobs.iter().zip(sign(&jobs)) {
            self.live.push((self.serial, job.id, facts, 0));
            self.serial += 1;
        }
    }

    pub(super) fn batch(&mut self) -> Vec<Record> {
        let mut records = Vec::new();
        if self.live.len() < 8 {
            self.begin();
        }
        for _ in 0..self.rng.random_range(1..12) {
            let at = self.rng.random_range(0..self.live.len());
            let (serial, job, facts, told) = &mut self.live[at];
            if *told < facts.len() {
                let (id, envelope) = facts[*told].clone();
                *told += 1;
                records.push(Record::Fact { id, envelope });
            }
            if *told == facts.len() {
                records.push(sealed(*job, *serial, facts, true));
                if self.rng.random_range(0..4) == 0 {
                    // Outputs turned out to be missing.
                    let Record::Sealed { job, mut entry, .. } = sealed(*job, *serial, facts, false) else { continue };
                    entry.lacks_outputs = true;
                    records.push(Record::Sealed { job, entry, row: None });
                }
                self.sealed.push((*serial, *job));
                self.live.swap_remove(at);
                self.begin();
            } else if self.rng.random_range(0..40) == 0 {
                records.push(Record::Retract { job: *job });
                self.live.swap_remove(at);
                self.begin();
            }
        }
        while !self.sealed.is_empty() && self.rng.random_range(0..3) == 0 {
            let (serial, job) = self.sealed.swap_remove(0);
            self.mark.add(serial);
            records.push(Record::Forget { job, owner: nodes()[0].id(), mark: self.mark.clone() });
        }
        records
    }
}

/// What the ledger should be after each number of batches.
pub(super) struct Story {
    pub(super) oracles: Vec<Oracle>,
}

impl Story {
    pub(super) fn add(&mut self, records: &[Record]) {
        let mut next = self.oracles.last().cloned().unwrap_or_default();
        records.iter().for_each(|record| next.add(record));
        self.oracles.push(next);
    }
}

/// Hands batches over until the power goes, or all `batches` are acknowledged. How many were.
pub(super) fn write(rig: &Rig, disk: &SimDisk, source: &mut Source, story: &mut Story, batches: usize) -> u64 {
    for _ in 0..batches {
        let records = source.batch();
        story.add(&records);
        rig.storage.persist(Ticket(story.oracles.len() as u64 - 1), records, source.rng.random_range(0..4) > 0);
        if source.rng.random_range(0..3) == 0 {
            let handed = story.oracles.len() as u64 - 1;
            rig.until("the disk, or the end of it", |(done, ..)| done >= handed || disk.books().mood == Mood::Off);
        }
        if disk.books().mood == Mood::Off {
            break;
        }
    }
    let handed = story.oracles.len() as u64 - 1;
    rig.until("the disk, or the end of it", |(done, ..)| done >= handed || disk.books().mood == Mood::Off);
    rig.acknowledged()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// The power goes at any change of any file: in the midst of a frame, between a commit's pages, while a journal is prepared,
    /// at the start, or not at all but for the kill of the process.
    #[test]
    fn after_a_power_cut_the_ledger_is_what_was_acknowledged(seed in any::<u64>(), cuts in prop::collection::vec(1u64..700, 1..4)) {
        let disk = SimDisk::default();
        let mut source = Source::new(seed);
        let mut story = Story { oracles: vec![Oracle::default()] };
        for cut in cuts {
            disk.books().off_in = Some(cut);
            let begun = story.oracles.len() as u64 - 1;
            let mut acknowledged = begun;
            if let Ok(rig) = Rig::open(&disk) {
                rig.heard.lock().expect("heard").0 = begun;
                acknowledged = write(&rig, &disk, &mut source, &mut story, 120);
                // All is written, if the power lasts; whatever a close does is part of the test.
                rig.storage.close();
            }
            disk.power_cycle(&mut source.rng);
            let rig = Rig::open(&disk);
            prop_assert!(rig.is_ok(), "{:?}", rig.err());
            let rig = rig.expect("checked");
            let reader = rig.storage.reader();
            let (stored, ..) = reader.load().expect("it loads");
            let held = (acknowledged..story.oracles.len() as u64).find(|at| {
                story.oracles[usize::try_from(*at).expect("few")].differs_from(&reader, &stored).is_none()
            });
            let why = story.oracles[usize::try_from(acknowledged).expect("few")].differs_from(&reader, &stored);
            prop_assert!(held.is_some(), "{} of {} acknowledged; {:?}", acknowledged, story.oracles.len() - 1, why);
            story.oracles.truncate(usize::try_from(held.unwrap_or(0)).expect("few") + 1);
            // What was lost was never handed over, as far as the next run is concerned.
            source.live.clear();
            source.sealed.clear();
            rig.storage.close();
        }
    }

    /// The disk fails for a while, and syncs that failed say afterwards that all is well. Everything is acknowledged in the end, only
    /// when it is on the platter, and a reader sees it all the time.
    #[test]
    fn a_disk_that_fails_for_a_while_loses_nothing(seed in any::<u64>(), moods in prop::collection::vec(any::<bool>(), 1..3)) {
        let disk = SimDisk::default();
        let mut source = Source::new(seed);
        let mut story = Story { oracles: vec![Oracle::default()] };
        let rig = Rig::open(&disk).expect("a ledger");
        for (round, syncs_only) in (1..).zip(moods) {
            write(&rig, &disk, &mut source, &mut story, 60);
            disk.books().mood = if syncs_only { Mood::SyncsFailing } else { Mood::Failing };
            let before = disk.books().failures;
            let records = source.batch();
            story.add(&records);
            let ticket = story.oracles.len() as u64 - 1;
            rig.storage.persist(Ticket(ticket), records, true);
            rig.until("the failure", |(_, failing, _)| failing >= round && disk.books().failures > before);
            prop_assert!(rig.acknowledged() < ticket, "acknowledged on a disk that fails");
            prop_assert_eq!(story.oracles[story.oracles.len() - 1].differs_in(&rig.storage.reader()), None);
            disk.books().mood = Mood::Good;
            rig.until("the recovery", |(done, _, good)| done == ticket && good >= round);
        }
        let acknowledged = write(&rig, &disk, &mut source, &mut story, 20);
        disk.books().mood = Mood::Off;
        rig.storage.close();
        disk.power_cycle(&mut source.rng);
        let rig = Rig::open(&disk).expect("a ledger");
        let reader = rig.storage.reader();
        let (stored, ..) = reader.load().expect("it loads");
        let last = &story.oracles[usize::try_from(acknowledged).expect("few")];
        prop_assert_eq!(last.differs_from(&reader, &stored), None);
        rig.storage.close();
    }
}

/// One sync of a checkpoint fails and loses its pages, each in turn; the file is opened anew and the checkpoint made again. Then the
/// power goes.
#[test]
fn a_checkpoint_whose_sync_failed_is_made_again_for_good() {
    let mut failed = 0;
    for bad in 1..6 {
        let disk = SimDisk::default();
        let mut source = Source::new(bad);
        let mut oracle = Oracle::default();
        let mut tables: Vec<Table> = Vec::new();
        for _ in 0..4 {
            let mut table = Table::default();
            for record in (0..20).flat_map(|_| source.batch()) {
                oracle.add(&record);
                table.add(record);
            }
            tables.push(table);
        }
        let open = || open_database(&disk, LEDGER.as_ref()).expect("a ledger");
        let mut db = open();
        set_up(&db).expect("it is set up");
        for (group, table) in (1..).zip(&tables) {
            disk.books().bad_sync_in = (group == 3).then_some(bad);
            while let Err(error) = apply(&db, table, group) {
                failed += 1;
                assert!(failed < 10, "{error}");
                drop(db);
                db = open();
            }
        }
        // As after a kill: nothing is closed in good order.
        disk.books().mood = Mood::Off;
        drop(db);
        disk.power_cycle(&mut source.rng);
        let rig = Rig::open(&disk).expect("a ledger");
        let reader = rig.storage.reader();
        let (stored, ..) = reader.load().expect("it loads");
        assert_eq!(oracle.differs_from(&reader, &stored), None, "sync {bad}");
        rig.storage.close();
    }
    assert_eq!(failed, 4, "a commit has two steps, of each its sums and itself are synced, and each failed once");
}
