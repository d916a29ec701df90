//! A ledger of the version before the journal is taken over whole, whenever the power goes.

use rand::SeedableRng as _;
use rand_chacha::ChaCha8Rng;
use sinew_crdt_state::cbor;
use sinew_crdt_state::envelope::Envelope;
use sinew_crdt_state::ledger::OwnerMark;
use sinew_scheduler::io::Record;

use super::disk::SimDisk;
use super::jobs::{Oracle, nodes, sealed, sign, usual};
use super::{LEDGER, Rig};
use crate::storage::disk::{Disk as _, Plain};
use crate::storage::migrate::{FACTS, RECEIPTS, SEALED};
use crate::storage::rows::{META, OWNERS};

/// Forgotten, sealed and running jobs, as that version left them. More than go into one transaction.
fn old_ledger(disk: &SimDisk) -> Oracle {
    let jobs: Vec<_> = (0..1_300).map(usual).collect();
    let mut oracle = Oracle::default();
    let mut mark = OwnerMark::default();
    let file = disk.open(LEDGER.as_ref()).expect("a file");
    let db = redb::Database::builder().create_with_backend(Plain(file)).expect("a ledger");
    let txn = db.begin_write().expect("a transaction");
    {
        let mut facts = txn.open_table(FACTS).expect("a table");
        let mut sealed_table = txn.open_table(SEALED).expect("a table");
        let mut receipts = txn.open_table(RECEIPTS).expect("a table");
        let mut owners = txn.open_table(OWNERS).expect("a table");
        let mut meta = txn.open_table(META).expect("a table");
        meta.insert("incarnation", 41).expect("it is written");
        meta.insert("disk", 99).expect("it is written");
        for ((serial, job), signed) in (0..).zip(&jobs).zip(sign(&jobs)) {
            let forgotten = serial < 600;
            let told = if serial < 1_200 { signed.len() } else { 4 };
            let mut records: Vec<Record> = signed[..told]
                .iter()
                .map(|(id, envelope)| Record::Fact { id: *id, envelope: envelope.clone() })
                .collect();
            if serial < 1_200 {
                records.push(sealed(job.id, serial, &signed, false));
            }
            if forgotten {
                mark.add(serial);
                records.push(Record::Forget { job: job.id, owner: nodes()[0].id(), mark: mark.clone() });
            }
            records.iter().for_each(|record| oracle.add(record));
            let held: Vec<Envelope> = oracle.facts[&job.id].values().cloned().collect();
            if forgotten {
                receipts.insert(&job.id.0, &cbor::to_vec(&held)[..]).expect("it is written");
                continue;
            }
            for envelope in &held {
                let mut key = [0; 64];
                key[..32].copy_from_slice(&job.id.0);
                key[32..].copy_from_slice(&envelope.fact_id().0);
                facts.insert(&key, &cbor::to_vec(envelope)[..]).expect("it is written");
            }
            if let Some(entry) = oracle.sealed.get(&job.id) {
                sealed_table.insert(&job.id.0, &cbor::to_vec(entry)[..]).expect("it is written");
            }
        }
        owners.insert(&nodes()[0].id().0, &cbor::to_vec(&mark)[..]).expect("it is written");
    }
    txn.commit().expect("it is written");
    // What counts of a forgotten job's row is what its receipt says.
    for (job, facts) in oracle.facts.iter().filter(|(job, _)| oracle.forgotten.contains(job)) {
        let row = crate::storage::rows::fold_row(facts.values()).expect("a row");
        oracle.rows.insert(*job, row);
    }
    oracle
}

#[test]
fn an_old_ledger_is_taken_over_whole_whenever_the_power_goes() {
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    // How many changes of files an undisturbed start makes; the last cut lies behind them.
    for cut in [2, 40, 90, 150, 220, 400, 100_000] {
        let disk = SimDisk::default();
        let oracle = old_ledger(&disk);
        disk.books().off_in = Some(cut);
        drop(Rig::open(&disk));
        disk.power_cycle(&mut rng);
        let rig = Rig::open(&disk).expect("a ledger");
        let reader = rig.storage.reader();
        let (stored, incarnation, id) = reader.load().expect("it loads");
        assert_eq!(oracle.differs_from(&reader, &stored), None, "cut after {cut}");
        assert_eq!((incarnation, id.0), (42, 99), "it is the same disk");
        rig.storage.close();
    }
}
