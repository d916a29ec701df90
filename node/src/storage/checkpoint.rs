//! A checkpoint: the changes of a table go into the ledger's file, in one transaction with the number of the last journal
//! group among them. So it is there whole or not at all, and doing it again changes nothing.
//!
//! A job that began, was sealed and forgotten between two checkpoints costs the file nothing but its receipt and its row in the
//! list.

use std::collections::BTreeMap;

use redb::{Database, Durability, ReadableTable, Table as Rows, WriteTransaction};
use sinew_crdt_state::cbor;
use sinew_crdt_state::ids::JobId;
use sinew_crdt_state::ledger::SealedEntry;

use super::packed::{Entry, Packer, deflate, inflate, size_alone, unpack};
use super::rows::{
    APPLIED, DISK, ENDED, HEADS, INCARNATION, INDEX, KEYS, MEMBERS, META, NEXT_ROW, OWNERS, PIECES, SEEN, SEGMENTS,
    encode_head, encode_row, ended_key, fold_row, key_value, piece_key, pieces_of,
};
use super::table::{Change, Picture, Table};

/// Most bytes of packed entries in one segment. Larger ones share more, and cost more when one entry is read or changed.
const PACKED_MAX: usize = 64 << 10;
/// A segment that takes less is put together with a neighbour, if both then take no more than twice this: redb gives a value
/// the next power of two of pages, so that many small segments would waste the most.
const SEGMENT_SMALL: usize = 14 << 10;
/// Entries that are packed together, by what each would take alone: a few segments' worth, whatever a checkpoint has to write.
const PORTION: usize = 8 * PACKED_MAX;

/// Writes a table's changes; `group` is the last journal group among them.
pub(super) fn apply(db: &Database, table: &Table, group: u64) -> Result<(), redb::Error> {
    let txn = begin(db)?;
    fill(&txn, table, group)?;
    txn.open_table(META)?.insert(APPLIED, group)?;
    txn.commit()?;
    Ok(())
}

/// A transaction that is durable when it is committed, and after which a crash costs no walk through the whole file.
pub(super) fn begin(db: &Database) -> Result<WriteTransaction, redb::Error> {
    let mut txn = db.begin_write()?;
    txn.set_durability(Durability::Immediate)?;
    // The state of redb's allocator goes along with each commit: some KB, once per checkpoint.
    txn.set_quick_repair(true);
    Ok(txn)
}

/// Adds a table's changes to a transaction.
pub(super) fn fill(txn: &WriteTransaction, table: &Table, group: u64) -> Result<(), redb::Error> {
    if !table.members.is_empty() {
        let mut members = txn.open_table(MEMBERS)?;
        for (node, credential) in &table.members {
            members.insert(&node.0, &cbor::to_vec(credential)[..])?;
        }
    }
    if !table.owners.is_empty() {
        let mut owners = txn.open_table(OWNERS)?;
        for (owner, mark) in &table.owners {
            owners.insert(&owner.0, &cbor::to_vec(mark)[..])?;
        }
    }
    if !table.seen.is_empty() {
        let mut seen = txn.open_table(SEEN)?;
        for (node, start) in &table.seen {
            seen.insert(&node.0, &cbor::to_vec(start)[..])?;
        }
    }
    if let Some((disk, incarnation)) = table.disk {
        let mut meta = txn.open_table(META)?;
        let before = meta.get(INCARNATION)?.map_or(0, |v| v.value());
        meta.insert(INCARNATION, before.max(incarnation))?;
        meta.insert(DISK, disk.0)?;
    }
    let rows = table.jobs.iter().filter_map(|(job, change)| Some((job, change.row.as_ref()?.key?)));
    for (job, (key, request)) in rows {
        txn.open_table(KEYS)?.insert(&key.0, &key_value(*job, request))?;
    }
    Jobs::open(txn, group)?.add(table)
}

/// The tables that a job's changes go to.
struct Jobs<'txn> {
    group: u64,
    pieces: Rows<'txn, &'static [u8; 40], &'static [u8]>,
    segments: Rows<'txn, u64, &'static [u8]>,
    index: Rows<'txn, &'static [u8; 32], u64>,
    heads: Rows<'txn, u64, &'static [u8]>,
    ended: Rows<'txn, &'static [u8; 40], &'static [u8]>,
    meta: Rows<'txn, &'static str, u64>,
}

impl<'txn> Jobs<'txn> {
    fn open(txn: &'txn WriteTransaction, group: u64) -> Result<Self, redb::Error> {
        Ok(Self {
            group,
            pieces: txn.open_table(PIECES)?,
            segments: txn.open_table(SEGMENTS)?,
            index: txn.open_table(INDEX)?,
            heads: txn.open_table(HEADS)?,
            ended: txn.open_table(ENDED)?,
            meta: txn.open_table(META)?,
        })
    }

    fn add(mut self, table: &Table) -> Result<(), redb::Error> {
        let (mut ending, mut changed) = (Vec::new(), BTreeMap::new());
        for (job, change) in &table.jobs {
            let row = self.index.get(&job.0)?.map(|row| row.value());
            if let Some(row) = row {
                self.change_head(row, *job, change)?;
                if change.forgotten || !change.facts.is_empty() {
                    changed.insert(row, change);
                }
            } else if change.is_ended() {
                ending.push((*job, change));
            } else {
                self.add_piece(*job, change)?;
            }
        }
        self.change_entries(&changed)?;
        self.add_entries(ending)
    }

    /// Adds the facts of a job that goes on.
    fn add_piece(&mut self, job: JobId, change: &Change) -> Result<(), redb::Error> {
        if change.retracted {
            let all = pieces_of(&job);
            self.pieces.retain_in::<&[u8; 40], _>(all.start()..=all.end(), |_, _| false)?;
        }
        if !change.facts.is_empty() {
            let entry = Entry { job, forgotten: false, facts: change.facts.values().cloned().collect() };
            self.pieces.insert(&piece_key(&job, self.group), &pack(&[entry])[..])?;
        }
        Ok(())
    }

    /// All that is known of a job that ends with this change. Its pieces go.
    fn take_pieces(&mut self, job: &JobId, change: &Change) -> Result<Picture, redb::Error> {
        let mut picture = Picture::default();
        let all = pieces_of(job);
        for item in self.pieces.extract_from_if::<&[u8; 40], _>(all.start()..=all.end(), |_, _| true)? {
            let (_, bytes) = item?;
            for entry in decoded(bytes.value())? {
                picture.facts.extend(entry.facts.into_iter().map(|e| (e.fact_id(), e)));
            }
        }
        picture.add(change);
        Ok(picture)
    }

    /// What stays in memory of a job that had ended before.
    fn change_head(&mut self, row: u64, job: JobId, change: &Change) -> Result<(), redb::Error> {
        if change.forgotten {
            self.heads.remove(row)?;
        } else if let Some(sealed) = &change.sealed {
            // A forgotten job has no head, and gets none.
            let known = self.heads.get(row)?.is_some();
            if known {
                self.heads.insert(row, &encode_head(job, sealed)[..])?;
            }
        }
        Ok(())
    }

    /// Changes entries of jobs that had ended before: most often they are forgotten, many neighbours at once.
    fn change_entries(&mut self, changed: &BTreeMap<u64, &Change>) -> Result<(), redb::Error> {
        let mut rest = changed.iter().peekable();
        while let Some((row, _)) = rest.peek() {
            let Some((first, mut entries)) = self.segment_of(**row)? else {
                rest.next();
                continue;
            };
            let end = first + entries.len() as u64;
            while let Some((row, change)) = rest.next_if(|(row, _)| **row < end) {
                if let Some(entry) = usize::try_from(row - first).ok().and_then(|at| entries.get_mut(at)) {
                    change_entry(entry, change);
                }
            }
            self.put_smaller(first, entries)?;
        }
        Ok(())
    }

    /// The segment that a row is in. `None` where it cannot be read.
    fn segment_of(&self, row: u64) -> Result<Option<(u64, Vec<Entry>)>, redb::Error> {
        let Some(item) = self.segments.range(..=row)?.next_back() else { return Ok(None) };
        let (first, bytes) = item?;
        let entries = opened(bytes.value())?;
        let holds = row - first.value() < entries.len() as u64;
        Ok(holds.then(|| (first.value(), entries)))
    }

    /// Puts a segment back that lost something, together with the one before it where both have become small.
    fn put_smaller(&mut self, first: u64, entries: Vec<Entry>) -> Result<(), redb::Error> {
        let bytes = segment(&entries);
        let before = match self.segments.range(..first)?.next_back() {
            Some(item) => {
                let (start, before) = item?;
                let fits = before.value().len() + bytes.len() <= 2 * SEGMENT_SMALL;
                if fits { Some((start.value(), opened(before.value())?)) } else { None }
            }
            None => None,
        };
        match before {
            Some((start, mut both)) if start + both.len() as u64 == first => {
                both.extend(entries);
                self.segments.remove(first)?;
                self.segments.insert(start, &segment(&both)[..])?;
            }
            _ => {
                self.segments.insert(first, &bytes[..])?;
            }
        }
        Ok(())
    }

    /// Adds jobs that end with these changes, in order of sealing: as many at a time as fill a segment, whose facts are in memory
    /// once more meanwhile.
    fn add_entries(&mut self, mut ending: Vec<(JobId, &Change)>) -> Result<(), redb::Error> {
        if ending.is_empty() {
            return Ok(());
        }
        ending.sort_by_key(|(job, change)| (change.sealed.map_or(0, |sealed| sealed.sealed_ms), *job));
        let mut row = self.meta.get(NEXT_ROW)?.map_or(0, |row| row.value());
        let (mut first, mut open) = self.open_segment(row)?.unwrap_or_default();
        if open.is_empty() {
            first = row;
        }
        let mut size: usize = open.iter().map(size_alone).sum();
        for (job, change) in ending {
            let entry = self.add_entry(row, job, change)?;
            row += 1;
            size += size_alone(&entry);
            open.push(entry);
            // Packed together they take less than each alone, so this is more than one segment.
            if size > PORTION {
                let left = self.put_segments(first, open)?;
                (first, open) = (row - left.len() as u64, left);
                size = open.iter().map(size_alone).sum();
            }
        }
        self.meta.insert(NEXT_ROW, row)?;
        let left = self.put_segments(first, open)?;
        if !left.is_empty() {
            self.segments.insert(row - left.len() as u64, &segment(&left)[..])?;
        }
        Ok(())
    }

    /// Adds what is found by itself of a job that ends, and returns what goes into a segment.
    fn add_entry(&mut self, row: u64, job: JobId, change: &Change) -> Result<Entry, redb::Error> {
        let picture = self.take_pieces(&job, change)?;
        self.index.insert(&job.0, row)?;
        if let Some(sealed) = picture.sealed {
            self.heads.insert(row, &encode_head(job, &sealed)[..])?;
        }
        let folded = if change.row.is_none() { fold_row(picture.facts.values()) } else { None };
        if let Some(listed) = change.row.as_deref().or(folded.as_ref()) {
            self.ended.insert(&ended_key(listed.submitted_ms, &job), &encode_row(listed)[..])?;
        }
        Ok(Entry { job, forgotten: picture.forgotten, facts: picture.facts.into_values().collect() })
    }

    /// The last segment, if there is room in it for more.
    fn open_segment(&self, next: u64) -> Result<Option<(u64, Vec<Entry>)>, redb::Error> {
        let Some(item) = self.segments.last()? else { return Ok(None) };
        let (first, bytes) = item;
        if bytes.value().len() > SEGMENT_SMALL {
            return Ok(None);
        }
        let entries = opened(bytes.value())?;
        let whole = first.value() + entries.len() as u64 == next;
        Ok(whole.then(|| (first.value(), entries)))
    }

    /// Writes entries from row `first` on, as many to a segment as fit. Returns the last ones, which leave room for more.
    fn put_segments(&mut self, mut first: u64, mut entries: Vec<Entry>) -> Result<Vec<Entry>, redb::Error> {
        while let Some((taken, bytes)) = full_segment(&entries) {
            self.segments.insert(first, &deflate(&bytes)[..])?;
            first += taken as u64;
            entries.drain(..taken);
        }
        Ok(entries)
    }
}

/// How many entries fill a segment, and its bytes; `None` where they all fit and leave room.
fn full_segment(entries: &[Entry]) -> Option<(usize, Vec<u8>)> {
    let mut packer = Packer::default();
    for (taken, entry) in entries.iter().enumerate() {
        if taken > 0 && packer.size_max() + size_alone(entry) > PACKED_MAX {
            return Some((taken, packer.finish()));
        }
        packer.push(entry);
    }
    None
}

fn change_entry(entry: &mut Entry, change: &Change) {
    let facts = std::mem::take(&mut entry.facts);
    let facts = facts.into_iter().map(|e| (e.fact_id(), e)).collect();
    // Whether it is sealed is the head's to say; here it only keeps the entry from being withdrawn.
    let sealed = change.sealed.or(Some(NOT_LOOKED_AT));
    let mut picture = Picture { facts, sealed, forgotten: entry.forgotten };
    picture.add(change);
    entry.forgotten = picture.forgotten;
    entry.facts = picture.facts.into_values().collect();
}

/// Stands for a seal of which only counts that it is there.
const NOT_LOOKED_AT: SealedEntry = SealedEntry {
    submitter: sinew_crdt_state::ids::NodeId([0; 32]),
    serial: 0,
    seal: sinew_crdt_state::ids::FactId([0; 32]),
    sealed_ms: 0,
    lacks_outputs: false,
    says: 0,
};

fn pack(entries: &[Entry]) -> Vec<u8> {
    let mut packer = Packer::default();
    for entry in entries {
        packer.push(entry);
    }
    packer.finish()
}

fn segment(entries: &[Entry]) -> Vec<u8> {
    deflate(&pack(entries))
}

/// A segment's entries.
pub(super) fn opened(bytes: &[u8]) -> Result<Vec<Entry>, redb::Error> {
    decoded(&inflate(bytes).map_err(damaged)?)
}

/// A piece's entries. What does not decode was not written by this program: nothing is decided on the rest of it.
pub(super) fn decoded(bytes: &[u8]) -> Result<Vec<Entry>, redb::Error> {
    unpack(bytes).map_err(damaged)
}

fn damaged(error: cbor::DecodeError) -> redb::Error {
    redb::Error::Corrupted(format!("it holds a damaged record: {error}"))
}
