//! Short lives of a ledger on a disk that fails, tears, lies, fills up, flips bits and loses power, each from a seed.
//!
//! After each life: no panic, nothing that was never written, and what was acknowledged is there, or damage was named and the disk
//! has another number. Only what a disk that lies loses at the end of the journal can be noticed by nobody.

use std::collections::BTreeSet;
use std::time::Duration;

use rand::RngExt as _;
use sinew_crdt_state::ids::FactId;
use sinew_scheduler::io::{Record, Ticket};

use super::crash::{Source, Story};
use super::disk::{Mood, SimDisk};
use super::jobs::Oracle;
use super::{LEDGER, Rig};

/// Seeds that a plain run tries. `SINEW_STORAGE_SEEDS=5000` tries more.
const SEEDS: u64 = 150;

/// What a life's disk did, that matters to what may be missing afterwards.
#[derive(Debug, Default, Clone, Copy)]
struct Harm {
    lied: bool,
    flipped: bool,
}

/// Hands over some batches while the disk does what the seed says. How many were acknowledged.
fn live(
    rig: &Rig,
    disk: &SimDisk,
    source: &mut Source,
    (story, written): (&mut Story, &mut BTreeSet<FactId>),
    harm: &mut Harm,
) -> u64 {
    for _ in 0..source.rng.random_range(1..25) {
        let records = source.batch();
        written.extend(records.iter().filter_map(|record| match record {
            Record::Fact { id, .. } => Some(*id),
            _ => None,
        }));
        story.add(&records);
        let handed = story.oracles.len() as u64 - 1;
        rig.storage.persist(Ticket(handed), records, source.rng.random_range(0..4) > 0);
        match source.rng.random_range(0..24) {
            0 => disk.books().mood = Mood::Failing,
            1 => disk.books().mood = Mood::SyncsFailing,
            2 => disk.books().bad_sync_in = Some(source.rng.random_range(1..4)),
            3 => {
                disk.books().mood = Mood::Lying;
                harm.lied = true;
            }
            4 => disk.books().room = Some(source.rng.random_range(0..200_000)),
            5 => disk.books().off_in = Some(source.rng.random_range(1..60)),
            6..=12 => {
                disk.books().room = None;
                if disk.books().mood != Mood::Off {
                    disk.books().mood = Mood::Good;
                }
            }
            _ => {
                rig.hear(Duration::from_millis(2));
            }
        }
        if disk.books().mood == Mood::Off {
            break;
        }
    }
    rig.hear(Duration::from_millis(5)).0
}

fn run(seed: u64) -> [usize; 3] {
    let disk = SimDisk::default();
    let mut source = Source::new(seed);
    let mut story = Story { oracles: vec![Oracle::default()] };
    let mut ends = [0; 3];
    let mut written = BTreeSet::new();
    let mut number = None;
    for life in 0..3 {
        let what = format!("seed {seed}, life {life}");
        let mut harm = Harm::default();
        let begun = story.oracles.len() as u64 - 1;
        let mut acknowledged = begun;
        if let Ok(rig) = Rig::open(&disk) {
            rig.heard.lock().expect("heard").0 = begun;
            if let Ok((.., now)) = rig.storage.reader().load() {
                number = Some(now);
            }
            acknowledged = live(&rig, &disk, &mut source, (&mut story, &mut written), &mut harm);
            if source.rng.random_range(0..3) > 0 {
                // As after a kill.
                disk.books().mood = Mood::Off;
            }
            rig.storage.close();
        }
        harm.lied |= disk.books().mood == Mood::Lying;
        disk.books().room = None;
        disk.books().bad_sync_in = None;
        disk.power_cycle(&mut source.rng);
        if source.rng.random_range(0..4) == 0 {
            let path = if source.rng.random_range(0..6) == 0 { "/disk/ledger.sums" } else { LEDGER };
            harm.flipped = disk.flip(path.as_ref(), &mut source.rng);
        }
        let opened = Rig::open(&disk).and_then(Rig::load);
        let (rig, (stored, _, now)) = opened.unwrap_or_else(|error| panic!("{what}, {harm:?}: {error}"));
        let reader = rig.storage.reader();
        for envelope in &stored.facts {
            assert!(written.contains(&envelope.fact_id()), "{what}: a fact that was never written");
        }
        let last = story.oracles.len() as u64;
        let at = |n: u64| &story.oracles[usize::try_from(n).expect("few")];
        let from = if harm.lied { 0 } else { acknowledged };
        let held = (from..last).rev().find(|n| at(*n).differs_from(&reader, &stored).is_none());
        let remark = reader.remark();
        rig.storage.close();
        let is_other = number.is_some_and(|number| number != now);
        if held.is_none() && !harm.lied {
            // What was not acknowledged may be missing, and receipts of forgotten jobs.
            let is_there = |job| stored.sealed.iter().any(|(j, _)| j == job);
            let forgotten = |job| at(last - 1).forgotten.contains(job);
            let forgotten_only = at(acknowledged).sealed.keys().all(|job| is_there(job) || forgotten(job));
            assert!(remark.is_some(), "{what}, {harm:?}: {acknowledged} of {} acknowledged, nothing is said", last - 1);
            assert!(harm.flipped, "{what}: an honest disk lost what was acknowledged: {remark:?}");
            assert!(is_other || forgotten_only, "{what}, {harm:?}: its word counts as before: {remark:?}");
        }
        ends[if held.is_some() { 0 } else { usize::from(is_other) + 1 }] += 1;
        let Some(held) = held else { return ends };
        number = Some(now);
        story.oracles.truncate(usize::try_from(held).expect("few") + 1);
        source.live.clear();
        source.sealed.clear();
    }
    ends
}

#[test]
fn whatever_a_disk_does_is_survived_or_named() {
    let seeds = std::env::var("SINEW_STORAGE_SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(SEEDS);
    let mut ends = [0; 3];
    for seed in 0..seeds {
        for (sum, n) in ends.iter_mut().zip(run(seed)) {
            *sum += n;
        }
    }
    println!("whole, receipts lost, disks lost: {ends:?}");
    assert!(ends[0] > 0 && ends[2] > 0, "every kind of end was seen: {ends:?}");
}
