//! What a job costs on disk, in bytes, whatever the clock says.

use sinew_crdt_state::envelope::VerifiedRoots;
use sinew_crdt_state::ledger::OwnerMark;
use sinew_scheduler::io::{Record, Ticket};

use super::disk::SimDisk;
use super::jobs::{nodes, sealed, sign, usual};
use super::{LEDGER, Rig};
use crate::bench::ledger::MESH;
use crate::storage::packed::{Entry, Packer, deflate, inflate, pack_records, unpack, unpack_records};

/// Jobs under way at once, as in `sinew bench submit`: six levels of Merkle path.
const AT_ONCE: u64 = 64;

/// A usual job's entry takes 4 KiB at most, alone, and a fraction of that among its neighbours; what comes out again is what went in.
#[test]
fn a_packed_entry_is_small_and_comes_back_whole() {
    let jobs: Vec<_> = (0..AT_ONCE).map(usual).collect();
    let signed = sign(&jobs);
    let mut entries = Vec::new();
    for (job, facts) in jobs.iter().zip(&signed) {
        assert!(facts.iter().all(|(_, e)| e.path.len() == 6), "batches of 64");
        let facts: Vec<_> = facts.iter().map(|(_, envelope)| envelope.clone()).collect();
        let plain: usize = facts.iter().map(|e| sinew_crdt_state::cbor::to_vec(e).len()).sum();
        let entry = Entry { job: job.id, forgotten: false, facts };
        let mut packer = Packer::default();
        packer.push(&entry);
        let bytes = packer.finish();
        assert!(bytes.len() <= packer.size_max(), "{} of {}", bytes.len(), packer.size_max());
        let stored = deflate(&bytes).len();
        assert!(stored <= 4_096, "{stored} bytes, packed {}, plain {plain}", bytes.len());
        assert_eq!(unpack(&bytes).expect("it unpacks"), std::slice::from_ref(&entry));
        entries.push(entry);
    }
    let mut packer = Packer::default();
    entries[..24].iter().for_each(|entry| packer.push(entry));
    let stored = deflate(&packer.finish());
    assert!(stored.len() / 24 <= 1_280, "{} bytes a job among others", stored.len() / 24);
    let back = unpack(&inflate(&stored).expect("it inflates")).expect("it unpacks");
    assert_eq!(back, &entries[..24]);
    for envelope in back.iter().flat_map(|entry| &entry.facts) {
        envelope.open(MESH, &mut VerifiedRoots::default()).expect("its signature holds");
    }
}

#[test]
fn damaged_bytes_are_refused_without_a_panic() {
    let jobs: Vec<_> = (0..3).map(usual).collect();
    let signed = sign(&jobs);
    let records: Vec<Record> = signed
        .iter()
        .flatten()
        .map(|(id, envelope)| Record::Fact { id: *id, envelope: envelope.clone() })
        .chain([sealed(jobs[0].id, 0, &signed[0], true)])
        .collect();
    let bytes = pack_records(records.iter());
    assert_eq!(unpack_records(&bytes).expect("it unpacks"), records);
    for at in 0..bytes.len() {
        let mut spoiled = bytes.clone();
        spoiled[at] ^= 1 << (at % 8);
        let _ = unpack_records(&spoiled);
        let _ = unpack_records(&bytes[..at]);
        let _ = unpack(&spoiled);
        let _ = inflate(&spoiled);
    }
}

/// 24 KiB written and 4 KiB kept for each job: the journal, the checkpoints, and redb's own copies.
#[test]
fn a_job_costs_few_bytes() {
    const JOBS: u64 = 3_072;
    let disk = SimDisk::default();
    let rig = Rig::open(&disk).expect("a ledger");
    let length = |disk: &SimDisk| disk.books().len_of(LEDGER.as_ref());
    let (before, written) = (length(&disk), disk.books().written);
    let mut ticket = 0;
    let mut hand_over = |records: Vec<Record>| {
        ticket += 1;
        rig.storage.persist(Ticket(ticket), records, true);
        rig.until("a group", |(done, ..)| done == ticket);
    };
    for first in (0..JOBS).step_by(usize::try_from(AT_ONCE).expect("few")) {
        let jobs: Vec<_> = (first..first + AT_ONCE).map(usual).collect();
        let signed = sign(&jobs);
        // One group for each stage of all jobs.
        for stage in 0..signed[0].len() {
            let facts = signed.iter().map(|facts| facts[stage].clone());
            hand_over(facts.map(|(id, envelope)| Record::Fact { id, envelope }).collect());
        }
        let sealed = (first..).zip(&jobs).zip(&signed).map(|((n, job), facts)| sealed(job.id, n, facts, true));
        hand_over(sealed.collect());
    }
    rig.storage.close();
    let (kept, written) = ((length(&disk) - before) / JOBS, (disk.books().written - written) / JOBS);
    println!("a job: {written} bytes written, {kept} kept");
    assert!(written <= 24 << 10, "{written} bytes written a job");
    assert!(kept <= 4 << 10, "{kept} bytes kept a job");

    // An hour later all are forgotten but for their receipts.
    let rig = Rig::open(&disk).expect("a ledger");
    let before = disk.books().written;
    let mut mark = OwnerMark::default();
    for (ticket, chunk) in (1..).zip((0..JOBS).collect::<Vec<_>>().chunks(256)) {
        let forget = chunk.iter().map(|serial| {
            mark.add(*serial);
            Record::Forget { job: usual(*serial).id, owner: nodes()[0].id(), mark: mark.clone() }
        });
        rig.storage.persist(Ticket(ticket), forget.collect(), true);
        rig.until("a group", |(done, ..)| done == ticket);
    }
    rig.storage.close();
    let written = (disk.books().written - before) / JOBS;
    println!("to forget a job: {written} bytes written, {} kept", length(&disk) / JOBS);
    assert!(written <= 6 << 10, "{written} bytes written to forget a job");
    assert!(length(&disk) / JOBS <= 4 << 10);
}
