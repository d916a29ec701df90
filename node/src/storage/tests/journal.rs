//! The journal's files: cut anywhere, spoiled anywhere.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::disk::SimDisk;
use super::{LEDGER, Rig};
use crate::storage::disk::Disk as _;
use crate::storage::journal::{Journal, JournalError, Key, LEN_MIN, PAGE};

fn journal(disk: &SimDisk) -> Journal {
    Journal::new(Arc::new(disk.clone()), Path::new(LEDGER), Key::new([1, 2]))
}

fn path(number: u32) -> PathBuf {
    PathBuf::from(format!("/disk/ledger.journal.{number}"))
}

/// A file with these groups; where each of them begins, and where the last one ends.
fn with(disk: &SimDisk, groups: &[Vec<u8>]) -> Vec<u64> {
    let journal = journal(disk);
    let mut file = journal.prepare(0, LEN_MIN).expect("a file");
    let mut starts = vec![0];
    for (number, group) in (1..).zip(groups) {
        let at = starts[starts.len() - 1];
        starts.push(at + journal.append(&mut file, at, number, group).expect("it is written"));
    }
    starts
}

fn some_groups() -> Vec<Vec<u8>> {
    [10, 4_064, 4_065, 9_000, 0, 100].iter().map(|len| vec![0xa5; *len]).collect()
}

/// The last frame was cut off at any byte: what is before it is there. The bytes behind the cut are what the file held before.
#[test]
fn a_tail_that_is_torn_anywhere_is_left_out() {
    let groups = some_groups();
    let disk = SimDisk::default();
    let starts = with(&disk, &groups);
    let whole = disk.paths().len();
    assert_eq!(whole, 1);
    for (count, group) in (1..).zip(&groups) {
        let (start, end) = (starts[count - 1], starts[count] - (PAGE as u64 - 1));
        for cut in (start..end).step_by(97).chain([end - 1]) {
            let disk = SimDisk::default();
            with(&disk, &groups[..count]);
            let used = 32 + group.len() as u64;
            let cut = cut.min(start + used - 1);
            disk.edit(&path(0), |bytes| bytes[usize::try_from(cut).expect("small")..].fill(0x5a));
            let replay = journal(&disk).replay(0).expect("a torn tail is no damage");
            let held: Vec<Vec<u8>> = replay.groups.into_iter().map(|(_, group)| group).collect();
            assert_eq!(held, groups[..count - 1], "cut at {cut}");
            assert_eq!(replay.last, count as u64 - 1);
        }
    }
}

/// A bit that flipped in the midst is found, and said where.
#[test]
fn damage_in_the_midst_is_told_and_not_passed_over() {
    let groups = some_groups();
    for spoiled in 0..groups.len() - 1 {
        let disk = SimDisk::default();
        let starts = with(&disk, &groups);
        let at = usize::try_from(starts[spoiled]).expect("small") + 20;
        disk.edit(&path(0), |bytes| bytes[at] ^= 4);
        let error = journal(&disk).replay(0).expect_err("damage");
        let JournalError::Damaged { path: file, offset, group, .. } = &error else { panic!("{error}") };
        assert_eq!((file, *offset, *group), (&path(0), starts[spoiled], spoiled as u64 + 1));
        // What a checkpoint took is not missed.
        assert!(journal(&disk).replay(spoiled as u64 + 1).is_ok());
    }
}

/// What a peer put into a fact cannot pass for a frame, though it begins a page of its own behind a torn one.
#[test]
fn frames_of_another_key_do_not_count() {
    let disk = SimDisk::default();
    let other = Journal::new(Arc::new(disk.clone()), Path::new(LEDGER), Key::new([1, 3]));
    let mut file = other.prepare(0, LEN_MIN).expect("a file");
    other.append(&mut file, PAGE as u64, 2, b"not ours").expect("it is written");
    assert_eq!(other.replay(1).expect("theirs").groups, [(2, b"not ours".to_vec())]);
    assert!(journal(&disk).replay(1).expect("nothing").groups.is_empty());
    assert!(disk.list(Path::new("/disk")).is_ok());
}

/// The same by way of the ledger: nothing panics, the damaged file is kept, and the node counts as one that lost its disk.
#[test]
fn a_ledger_with_a_damaged_journal_is_another_disk() {
    use sinew_scheduler::io::{Record, Ticket};
    let disk = SimDisk::default();
    let rig = Rig::open(&disk).expect("a ledger");
    let (.., number) = rig.storage.reader().load().expect("it reads");
    for ticket in 1..4 {
        rig.storage.persist(Ticket(ticket), vec![Record::Retract { job: sinew_crdt_state::ids::JobId([7; 32]) }], true);
        rig.until("the record", |(done, ..)| done == ticket);
    }
    disk.books().mood = super::disk::Mood::Off;
    rig.storage.close();
    disk.power_cycle(&mut rand::SeedableRng::seed_from_u64(1));
    for path in disk.paths().into_iter().filter(|p| p.to_string_lossy().contains("journal")) {
        disk.edit(&path, |bytes| bytes.get_mut(PAGE + 40..PAGE + 41).into_iter().flatten().for_each(|b| *b ^= 1));
    }
    let rig = Rig::open(&disk).expect("a ledger");
    let reader = rig.storage.reader();
    let remark = reader.remark().expect("it is told");
    assert!(remark.contains("record group 2 is not there") && remark.contains("lost its disk"), "{remark}");
    assert_ne!(reader.load().expect("it reads").2, number, "its word counts no more");
    assert!(disk.paths().iter().any(|p| p.to_string_lossy().contains(".damaged-")));
    rig.storage.close();
    assert_eq!(Rig::open(&disk).expect("a ledger").storage.reader().remark(), None);
}
