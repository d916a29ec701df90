//! Checksums of the ledger file's pages, in a file beside it: what redb reads is what redb wrote, or the read fails.
//!
//! redb checks its own checksums only when it repairs, and believes, or panics at, everything else. Here every read is checked, page by
//! page, before redb sees it: keys, values, branches and redb's own tables alike. The sums of a commit's pages are synced before
//! its header is written. Pages that a root reaches are never written again, so a crash in between leaves no page that counts with a
//! wrong sum. Of the header, which alone is written in place, the bytes before and after each change are kept whole: after a
//! crash each byte must be one of these.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

use super::disk::{Disk, DiskFile};

pub(super) const PAGE: usize = 4096;
/// What redb writes at the file's beginning: its magic, flags, geometry and two commit slots.
const HEADER: usize = 320;
/// How a file of redb's begins. Before that is written, nothing was ever committed.
const BEGINS: &[u8] = b"redb\x1A\x0A\xA9\x0D\x0A";
const MAGIC: [u8; 4] = *b"SNS1";
/// Magic, how many headers, sequence number, checksum.
const HEAD: usize = 4 + 4 + 8 + 16;
/// Headers that a record has room for. More than two there are only after syncs that failed in a row.
const HEADERS_MAX: usize = (PAGE - HEAD) / HEADER;
/// Two records take turns, so that a torn one leaves the other; behind them are the sums.
const RECORDS: usize = 2;
const SUM: usize = 8;
const SUMS_PER_PAGE: usize = PAGE / SUM;
/// Pages read at once when a file's sums are made.
const AT_ONCE: usize = 64;

type Header = [u8; HEADER];

/// A page that is not what was written.
#[derive(Debug, thiserror::Error)]
#[error("page {page} of {} is not what was written: {what}", path.display())]
pub(super) struct Rotten {
    path: PathBuf,
    page: u64,
    what: &'static str,
}

/// The checksum of a page, never 0: that stands for a page that was never written.
fn sum_of(page: usize, bytes: &[u8]) -> u64 {
    static BASE: LazyLock<blake3::Hasher> = LazyLock::new(|| blake3::Hasher::new_derive_key("sinew ledger page 1"));
    let mut hasher = BASE.clone();
    let hash = hasher.update(&(page as u64).to_le_bytes()).update(bytes).finalize();
    let first = hash.as_bytes().first_chunk().expect("a hash of 32 bytes has 8");
    u64::from_le_bytes(*first).max(1)
}

#[derive(Debug, Default)]
struct Sums {
    pages: Vec<u64>,
    /// Pages of the file of sums that changed since they were written.
    dirty: BTreeSet<usize>,
    /// What the header may be on the platter.
    headers: Vec<Header>,
    /// What it will be after the next sync.
    next: Option<Header>,
    sequence: u64,
}

impl Sums {
    fn set(&mut self, page: usize, sum: u64) {
        if self.pages.len() <= page {
            self.pages.resize(page + 1, 0);
        }
        if std::mem::replace(&mut self.pages[page], sum) != sum {
            self.dirty.insert(page / SUMS_PER_PAGE);
        }
    }

    fn page(&self, number: usize) -> Vec<u8> {
        let sums = self.pages.iter().skip(number * SUMS_PER_PAGE).take(SUMS_PER_PAGE);
        let mut bytes: Vec<u8> = sums.flat_map(|sum| sum.to_le_bytes()).collect();
        bytes.resize(PAGE, 0);
        bytes
    }

    /// Whether each of these bytes is what some header that may be there has in its place.
    fn allows(&self, at: usize, bytes: &[u8]) -> bool {
        (at..).zip(bytes).all(|(at, byte)| self.headers.iter().any(|header| header[at] == *byte))
    }
}

/// What the record says.
fn record(sequence: u64, headers: &[Header]) -> Vec<u8> {
    let headers = &headers[headers.len().saturating_sub(HEADERS_MAX)..];
    let count = u32::try_from(headers.len()).expect("a dozen at most");
    let mut bytes = Vec::with_capacity(PAGE);
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&count.to_le_bytes());
    bytes.extend_from_slice(&sequence.to_le_bytes());
    let body = headers.as_flattened();
    let hash = blake3::Hasher::new().update(&bytes).update(body).finalize();
    bytes.extend_from_slice(&hash.as_bytes()[..16]);
    bytes.extend_from_slice(body);
    bytes.resize(PAGE, 0);
    bytes
}

/// The other way round.
fn parse(bytes: &[u8]) -> Option<(u64, Vec<Header>)> {
    let count = u32::from_le_bytes(*bytes.get(4..8)?.first_chunk()?) as usize;
    let sequence = u64::from_le_bytes(*bytes.get(8..16)?.first_chunk()?);
    let body = bytes.get(HEAD..HEAD + count.checked_mul(HEADER)?)?;
    let hash = blake3::Hasher::new().update(&bytes[..16]).update(body).finalize();
    let whole = bytes[..4] == MAGIC && bytes[16..HEAD] == hash.as_bytes()[..16];
    whole.then(|| (sequence, body.as_chunks().0.to_vec()))
}

/// The file of sums that belongs to a ledger.
pub(super) fn path_of(ledger: &Path) -> PathBuf {
    ledger.with_extension("sums")
}

/// A ledger's file whose reads are checked.
#[derive(Debug)]
pub(super) struct Checked {
    path: PathBuf,
    file: Box<dyn DiskFile>,
    beside: Box<dyn DiskFile>,
    sums: Mutex<Sums>,
}

/// What there is of a ledger's file and its sums.
pub(super) enum Found {
    /// Both, or neither.
    Checked(Box<Checked>),
    /// A ledger without sums: an older version's, or they were lost.
    Bare(Box<dyn DiskFile>),
}

impl Checked {
    /// Opens a ledger's file, locks it, and reads its sums.
    pub(super) fn open(disk: &dyn Disk, path: &Path) -> io::Result<Found> {
        let file = disk.open(path)?;
        file.lock()?;
        let beside = disk.open(&path_of(path))?;
        let len = file.len()?;
        if len == 0 {
            beside.set_len(0)?;
            let sums = Sums { headers: vec![[0; HEADER]], ..Sums::default() };
            return Ok(Found::Checked(Box::new(Self::with(path, file, beside, sums))));
        }
        let mut begins = [0; BEGINS.len()];
        let has_begun = file.read_at(0, &mut begins).is_ok() && begins == *BEGINS;
        let known = Self::records(&*beside)?;
        let Some((sequence, headers)) = known else {
            if begins.iter().any(|byte| *byte != 0) {
                return Ok(Found::Bare(file));
            }
            file.set_len(0)?;
            beside.set_len(0)?;
            let sums = Sums { headers: vec![[0; HEADER]], ..Sums::default() };
            return Ok(Found::Checked(Box::new(Self::with(path, file, beside, sums))));
        };
        if !has_begun && headers.contains(&[0; HEADER]) && begins.iter().all(|byte| *byte == 0) {
            // It was being made when the power went: nothing was committed.
            file.set_len(0)?;
            let sums = Sums { headers: vec![[0; HEADER]], sequence, ..Sums::default() };
            return Ok(Found::Checked(Box::new(Self::with(path, file, beside, sums))));
        }
        let pages = Self::read_sums(&*beside)?;
        let sums = Sums { pages, headers, sequence, ..Sums::default() };
        Ok(Found::Checked(Box::new(Self::with(path, file, beside, sums))))
    }

    fn with(path: &Path, file: Box<dyn DiskFile>, beside: Box<dyn DiskFile>, sums: Sums) -> Self {
        Self { path: path.to_owned(), file, beside, sums: Mutex::new(sums) }
    }

    /// Makes the sums of a file that was found whole in another way.
    pub(super) fn adopt(disk: &dyn Disk, path: &Path, file: Box<dyn DiskFile>) -> io::Result<Self> {
        let beside = disk.open(&path_of(path))?;
        beside.set_len(0)?;
        let mut header = [0; HEADER];
        file.read_at(0, &mut header)?;
        let mut sums = Sums::default();
        let pages = usize::try_from(file.len()?).map_err(io::Error::other)? / PAGE;
        let mut bytes = vec![0; AT_ONCE * PAGE];
        for first in (1..pages).step_by(AT_ONCE) {
            let bytes = &mut bytes[..AT_ONCE.min(pages - first) * PAGE];
            file.read_at((first * PAGE) as u64, bytes)?;
            for (page, bytes) in (first..).zip(bytes.as_chunks::<PAGE>().0) {
                sums.set(page, sum_of(page, bytes));
            }
        }
        let adopted = Self::with(path, file, beside, sums);
        // The record goes last: without it there are no sums.
        adopted.sync_sums()?;
        adopted.lock().headers = vec![header];
        adopted.sync_sums()?;
        disk.sync_dir(path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or_else(|| Path::new(".")))?;
        Ok(adopted)
    }

    fn records(beside: &dyn DiskFile) -> io::Result<Option<(u64, Vec<Header>)>> {
        let mut newest: Option<(u64, Vec<Header>)> = None;
        let len = beside.len()?;
        for number in 0..RECORDS {
            let mut bytes = [0; PAGE];
            let at = (number * PAGE) as u64;
            if at + PAGE as u64 > len {
                break;
            }
            beside.read_at(at, &mut bytes)?;
            let found = parse(&bytes);
            if found.as_ref().map(|(n, _)| *n) > newest.as_ref().map(|(n, _)| *n) {
                newest = found;
            }
        }
        Ok(newest)
    }

    fn read_sums(beside: &dyn DiskFile) -> io::Result<Vec<u64>> {
        let from = (RECORDS * PAGE) as u64;
        let len = beside.len()?.saturating_sub(from);
        let mut bytes = vec![0; usize::try_from(len).map_err(io::Error::other)?];
        beside.read_at(from, &mut bytes)?;
        Ok(bytes.as_chunks().0.iter().map(|sum| u64::from_le_bytes(*sum)).collect())
    }

    fn lock(&self) -> MutexGuard<'_, Sums> {
        self.sums.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn rotten(&self, page: usize, what: &'static str) -> io::Error {
        let rotten = Rotten { path: self.path.clone(), page: page as u64, what };
        io::Error::new(io::ErrorKind::InvalidData, rotten)
    }

    /// Writes the sums that changed, and the record of what the header may be from now on.
    fn write_sums(&self) -> io::Result<()> {
        let (pages, at, record) = {
            let mut sums = self.lock();
            let dirty = std::mem::take(&mut sums.dirty);
            let pages: Vec<(usize, Vec<u8>)> = dirty.into_iter().map(|number| (number, sums.page(number))).collect();
            if let Some(next) = sums.next.filter(|next| sums.headers.last() != Some(next)) {
                sums.headers.push(next);
            }
            // Until it is synced the last one that was must stay: a record written once more goes to the same place.
            let sequence = sums.sequence + 1;
            let turn = usize::from(sequence.is_multiple_of(2));
            let record = (!sums.headers.is_empty()).then(|| record(sequence, &sums.headers));
            (pages, (turn * PAGE) as u64, record)
        };
        let written = (|| {
            for (number, bytes) in &pages {
                self.beside.write_at(((RECORDS + number) * PAGE) as u64, bytes)?;
            }
            record.map_or(Ok(()), |record| self.beside.write_at(at, &record))
        })();
        if written.is_err() {
            self.lock().dirty.extend(pages.iter().map(|(number, _)| *number));
        }
        written
    }

    fn sync_sums(&self) -> io::Result<()> {
        self.write_sums()?;
        self.beside.sync()?;
        self.lock().sequence += 1;
        Ok(())
    }

    /// What the header most likely is: the one that the last sync wrote, or was to write.
    pub(super) fn last_header(&self) -> Option<Vec<u8>> {
        self.lock().headers.last().map(|header| header.to_vec())
    }

    /// Reads whole pages, or a part of the header.
    fn read_pages(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let at = usize::try_from(offset).map_err(io::Error::other)?;
        if at < PAGE {
            return self.read_header(at, out);
        }
        self.file.read_at(offset, out).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => self.rotten(at / PAGE, "the file ends before it"),
            _ => error,
        })?;
        let (pages, rest) = out.as_chunks::<PAGE>();
        if !at.is_multiple_of(PAGE) || !rest.is_empty() {
            return Err(io::Error::other("a read of the ledger's file is not of whole pages"));
        }
        let expected: Vec<u64> = {
            let sums = self.lock();
            (0..pages.len()).map(|n| sums.pages.get(at / PAGE + n).copied().unwrap_or(0)).collect()
        };
        for ((page, bytes), expected) in (at / PAGE..).zip(pages).zip(expected) {
            if expected == 0 {
                return Err(self.rotten(page, "it was never written"));
            }
            if sum_of(page, bytes) != expected {
                return Err(self.rotten(page, "its checksum is another"));
            }
        }
        Ok(())
    }

    fn read_header(&self, at: usize, out: &mut [u8]) -> io::Result<()> {
        if at + out.len() > HEADER {
            return Err(io::Error::other("a read of the ledger's file goes beyond its header"));
        }
        if let Some(next) = self.lock().next {
            out.copy_from_slice(&next[at..at + out.len()]);
            return Ok(());
        }
        self.file.read_at(at as u64, out).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => self.rotten(0, "the file ends before it"),
            _ => error,
        })?;
        if self.lock().allows(at, out) { Ok(()) } else { Err(self.rotten(0, "the header is another")) }
    }

    /// Writes whole pages, or the header; that only at the next sync, behind its sums.
    fn write_pages(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let at = usize::try_from(offset).map_err(io::Error::other)?;
        if at < PAGE {
            let mut sums = self.lock();
            let mut next = sums.next.or_else(|| sums.headers.last().copied()).unwrap_or([0; HEADER]);
            let place = next.get_mut(at..at + data.len());
            place.ok_or_else(|| io::Error::other("a write goes beyond the ledger's header"))?.copy_from_slice(data);
            sums.next = Some(next);
            return Ok(());
        }
        let (pages, rest) = data.as_chunks::<PAGE>();
        if !at.is_multiple_of(PAGE) || !rest.is_empty() {
            return Err(io::Error::other("a write of the ledger's file is not of whole pages"));
        }
        let sums: Vec<(usize, u64)> =
            (at / PAGE..).zip(pages).map(|(page, bytes)| (page, sum_of(page, bytes))).collect();
        self.file.write_at(offset, data)?;
        let mut known = self.lock();
        sums.into_iter().for_each(|(page, sum)| known.set(page, sum));
        Ok(())
    }

    fn cut(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)?;
        let mut sums = self.lock();
        // What comes back there is not what was there.
        for page in usize::try_from(len).unwrap_or(usize::MAX).div_ceil(PAGE)..sums.pages.len() {
            sums.set(page, 0);
        }
        Ok(())
    }

    /// Syncs the sums, then the pages with the header. An error of either is for good: the caller opens the file anew.
    fn sync_all(&self) -> io::Result<()> {
        let (changed, next) = {
            let sums = self.lock();
            (!sums.dirty.is_empty() || sums.next.is_some(), sums.next)
        };
        if changed {
            self.sync_sums()?;
        }
        if let Some(next) = next {
            self.file.write_at(0, &next)?;
        }
        self.file.sync()?;
        let mut sums = self.lock();
        if let Some(next) = next {
            sums.headers = vec![next];
            if sums.next == Some(next) {
                sums.next = None;
            }
        }
        Ok(())
    }
}

impl redb::StorageBackend for Checked {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.read_pages(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.cut(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.sync_all()
    }

    // A reader's transaction may keep the file open a moment longer; whoever opens it anew need not wait for that.
    fn close(&self) -> io::Result<()> {
        self.file.unlock()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.write_pages(offset, data)
    }
}

/// Whether an error says that bytes are not what was written: a sum that does not fit, an end that comes too soon, a sector that
/// the disk cannot read.
pub(super) fn is_rot(error: &io::Error) -> bool {
    const EIO: i32 = 5;
    matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof)
        || error.raw_os_error() == Some(EIO)
}
