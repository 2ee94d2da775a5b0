//! The journal: one record for every mutating call, so that an acknowledged call survives although
//! its rows are only in DRAM. Knows keys, gradients and sessions, not what they do to rows.
//!
//! Invariant: what `replay` visits is a prefix of what was appended, whole entry by whole entry,
//! and no shorter than what was synced. Layout: docs/format.md. Lock order: turn > tail > sealed.

mod decode;
mod entry;
mod files;
mod format;
mod replay;
mod tail;
mod timer;
mod turn;

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::directory;
use crate::error::{Error, Result};
use crate::os;
use crate::types::{Durability, Epoch, Sequence};
use crate::vfs;

pub(crate) use entry::{Entry, GradientPart, SessionRecord, Stamp};
pub(crate) use files::NextFile;
use files::{Chain, Files, Listed};
pub(crate) use format::Frame;
use format::FILE_HEADER;
use tail::{Before, Tail};
use timer::Timer;
use turn::{Synced, Turns};

/// Written pages are dropped from the page cache in steps of this many bytes.
const FORGET_BYTES: u64 = 1 << 20;

/// How to open a journal.
#[derive(Debug, Clone)]
pub(crate) struct JournalConfig {
    /// The data directory, as `Directory::path` gives it; the journal lives in its `journal`.
    pub(crate) directory: PathBuf,
    /// Store id of the superblock; every file carries it.
    pub(crate) uuid: u128,
    /// Of entries to come; those that are there are of this one or an earlier.
    pub(crate) epoch: Epoch,
    /// What `commit` promises.
    pub(crate) durability: Durability,
}

/// A synced end of the journal. The superblock keeps one; (0, 0) is that of a new store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct JournalEnd {
    /// File.
    pub(crate) generation: u32,
    /// Bytes of it.
    pub(crate) offset: u64,
}

/// End of an appended entry; ask `commit` about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Position(u64);

/// The journal of one store. After `replay` all calls take `&self`, from any thread.
#[derive(Debug)]
pub(crate) struct Journal {
    config: JournalConfig,
    known: JournalEnd,
    /// What `open` found; `replay` takes it.
    chain: Chain,
    files: Arc<Files>,
    /// From `replay` on; the timer's thread shares it.
    open: Option<Arc<Open>>,
    timer: Option<Timer>,
}

/// What appenders and syncs share.
#[derive(Debug)]
struct Open {
    files: Arc<Files>,
    tail: Mutex<Tail>,
    turns: Turns,
    /// Older files, oldest first.
    sealed: Mutex<Vec<Listed>>,
    /// Synced bytes of the newest file that were dropped from the page cache.
    forgotten: AtomicU64,
    bytes: AtomicU64,
    bytes_written: AtomicU64,
}

impl Journal {
    /// Lists the files; reads none of them yet.
    ///
    /// # Errors
    /// `Corruption` naming a file that is missing, `Unavailable` when the directory fails.
    pub(crate) fn open(config: JournalConfig, known: JournalEnd) -> Result<Self> {
        let (files, chain) = Files::open(&config.directory, config.uuid, known.generation)?;
        Ok(Self { config, known, chain, files: Arc::new(files), open: None, timer: None })
    }

    /// Shows every entry once, in order, with where it stands; cuts the torn tail of a crash; then
    /// opens the journal for appending.
    ///
    /// # Errors
    /// `Corruption` naming file and offset, `Config` for a newer format, and what `visit` returns.
    pub(crate) fn replay(
        &mut self,
        visit: &mut dyn FnMut(Stamp, Entry<'_>) -> Result<()>,
    ) -> Result<()> {
        if self.open.is_some() {
            return Err(Error::unavailable("the journal was replayed already"));
        }
        self.sync_newest()?;
        let epoch = self.config.epoch;
        let reached = replay::replay(&self.files, &mut self.chain, self.known, epoch, visit)?;
        let mut sealed = std::mem::take(&mut self.chain.listed);
        let (tail, written) = match sealed.pop() {
            Some(newest) => (self.open_tail(newest.generation, &reached)?, 0),
            None => self.create_tail()?,
        };
        let open = Arc::new(Open::new(self.files.clone(), tail, sealed, written));
        if self.config.durability == Durability::Interval {
            let open = open.clone();
            // A failure is kept by `turns` and met by the next call.
            self.timer = Some(Timer::start(move || drop(open.sync()))?);
        }
        self.open = Some(open);
        Ok(())
    }

    /// Appends one entry, in one gathered write from the caller's arrays. Calls and their
    /// sequences come in order: the caller holds its own lock, under which only this is done; the
    /// frame with its checksum was made before.
    ///
    /// # Errors
    /// `StoreFull` when no space is left: nothing was appended then. `Unavailable` after a
    /// failure, for ever.
    pub(crate) fn append(&self, frame: &mut Frame<'_>, sequence: Sequence) -> Result<Position> {
        let open = self.opened()?;
        let position = open.append(frame, sequence)?;
        if let Some(timer) = &self.timer {
            timer.appended(frame.length());
        }
        Ok(position)
    }

    /// Fails, for ever, once a write or a sync has failed.
    pub(crate) fn check(&self) -> Result<()> {
        self.opened()?.turns.check()
    }

    /// Returns when the promise of the durability mode holds for what was appended up to
    /// `position`.
    ///
    /// # Errors
    /// `Unavailable` after a failure, for ever.
    pub(crate) fn commit(&self, position: Position) -> Result<()> {
        let open = self.opened()?;
        match self.config.durability {
            Durability::Always => open.reach(position.0).map(drop),
            // `append` handed the bytes to the kernel.
            _ => open.turns.check(),
        }
    }

    /// Returns when every entry up to `sequence` is on the device. Costs nothing if it is already.
    ///
    /// # Errors
    /// As `commit`.
    pub(crate) fn sync_to(&self, sequence: Sequence) -> Result<()> {
        let open = self.opened()?;
        open.turns.check()?;
        if open.turns.synced().sequence >= sequence {
            return Ok(());
        }
        open.sync().map(drop)
    }

    /// Returns the end when everything appended before the call is on the device.
    ///
    /// # Errors
    /// As `commit`.
    pub(crate) fn sync(&self) -> Result<JournalEnd> {
        self.opened()?.sync()
    }

    /// The newest file.
    pub(crate) fn generation(&self) -> u32 {
        match &self.open {
            Some(open) => open.tail.lock().generation,
            None => self.chain.listed.last().map_or(0, |file| file.generation),
        }
    }

    /// Length of all files.
    pub(crate) fn bytes(&self) -> u64 {
        match &self.open {
            Some(open) => open.bytes.load(Relaxed),
            None => self.chain.listed.iter().map(|file| file.length).sum(),
        }
    }

    /// Makes the file that is to follow the newest one, for `switch`. One at a time.
    ///
    /// # Errors
    /// `StoreFull` when no space is left; `Unavailable`.
    pub(crate) fn prepare(&self) -> Result<NextFile> {
        let open = self.opened()?;
        // A rotation that is under way ends first.
        open.sync()?;
        let generation = open.tail.lock().generation.checked_add(1).ok_or_else(|| {
            Error::unavailable("the journal has no generations left; give another directory")
        })?;
        self.files.create_next(generation)
    }

    /// From here on entries go to `next`, which opens with `sessions`, as of `sequence`; returns
    /// its generation. Waits for no device: the caller lets no append in between the making of
    /// `sessions` and the return. Until the next `sync` the file before may not be on the device.
    ///
    /// # Errors
    /// `StoreFull` when no space is left: appending goes on in the old file. `Unavailable` after a
    /// failure, for ever.
    pub(crate) fn switch(
        &self,
        next: NextFile,
        sessions: Vec<SessionRecord>,
        sequence: Sequence,
    ) -> Result<u32> {
        self.opened()?.switch(next, sessions, sequence)
    }

    /// Deletes the files up to and with `generation`, whose entries are in the log by now. Durable
    /// on return.
    ///
    /// # Errors
    /// `BadInput` for the newest file, which is in use; `Unavailable`.
    pub(crate) fn drop_through(&self, generation: u32) -> Result<()> {
        let open = self.opened()?;
        let newest = open.tail.lock().generation;
        if generation >= newest {
            return Err(Error::bad_input(format!(
                "journal generation {generation} is in use, the newest is {newest}; rotate first"
            )));
        }
        if open.turns.synced().end.generation < newest {
            open.sync()?;
        }
        let mut sealed = open.sealed.lock();
        let count = sealed.partition_point(|file| file.generation <= generation);
        if count == 0 {
            return Ok(());
        }
        let gone: Vec<u32> = sealed[..count].iter().map(|file| file.generation).collect();
        self.files.delete(&gone, generation)?;
        open.bytes_written.fetch_add(tail::PAGE, Relaxed);
        let bytes: u64 = sealed.drain(..count).map(|file| file.length).sum();
        open.bytes.fetch_sub(bytes, Relaxed);
        Ok(())
    }

    /// Bytes that this journal made the kernel write, counted as the kernel does (`write_bytes` of
    /// /proc/PID/io): whole pages, once each time they become dirty.
    pub(crate) fn bytes_written(&self) -> u64 {
        self.open.as_ref().map_or(0, |open| open.bytes_written.load(Relaxed))
    }

    fn opened(&self) -> Result<&Arc<Open>> {
        self.open.as_ref().ok_or_else(|| Error::unavailable("the journal was not replayed yet"))
    }

    /// What a killed process appended may be in the page cache only. Rows that are replayed from
    /// it can reach the log at once, and must not outlive it there. Older files were synced
    /// before the newest was born.
    fn sync_newest(&self) -> Result<()> {
        let newest = self.chain.listed.last().map(|file| self.files.path(file.generation));
        let next = self.chain.next.map(|file| self.files.next_path(file.generation));
        for path in newest.into_iter().chain(next) {
            File::open(&path)
                .and_then(|file| vfs::sync_data(&file))
                .map_err(|cause| Error::io("fdatasync", &path, &cause))?;
        }
        Ok(())
    }

    /// Opens the newest file behind its last whole entry.
    fn open_tail(&self, generation: u32, reached: &replay::Reached) -> Result<Tail> {
        let path = self.files.path(generation);
        let file = OpenOptions::new().append(true).open(&path);
        let file = file.map_err(|cause| Error::io("open", &path, &cause))?;
        let stamp = Stamp { generation, sequence: reached.sequence, epoch: self.config.epoch };
        Ok(Tail::new(file, path, stamp, reached.offset))
    }

    /// The first file of all, and the bytes that making it wrote.
    fn create_tail(&self) -> Result<(Tail, u64)> {
        let stamp = Stamp { generation: 1, sequence: 0, epoch: self.config.epoch };
        let opening = Entry::Sessions { before: 0, sessions: Vec::new() };
        let (file, length) = self.files.create(stamp, &opening)?;
        Ok((Tail::new(file, self.files.path(1), stamp, length), tail::pages(length)))
    }
}

impl Open {
    fn new(files: Arc<Files>, tail: Tail, sealed: Vec<Listed>, written: u64) -> Self {
        let bytes = sealed.iter().map(|file| file.length).sum::<u64>() + tail.offset;
        Self {
            files,
            turns: Turns::new(synced(&tail)),
            tail: Mutex::new(tail),
            sealed: Mutex::new(sealed),
            forgotten: AtomicU64::new(0),
            bytes: AtomicU64::new(bytes),
            bytes_written: AtomicU64::new(written),
        }
    }

    fn append(&self, frame: &mut Frame<'_>, sequence: Sequence) -> Result<Position> {
        let mut tail = self.tail.lock();
        self.turns.check()?;
        if sequence < tail.sequence {
            return Err(Error::bad_input(format!(
                "journal sequence {sequence} comes after {}; append in order",
                tail.sequence
            )));
        }
        match tail.append(frame, sequence) {
            Ok(dirtied) => {
                self.bytes.fetch_add(frame.length(), Relaxed);
                self.bytes_written.fetch_add(dirtied, Relaxed);
                Ok(Position(tail.position))
            }
            Err(cause) => Err(self.take_back(&tail, &cause)),
        }
    }

    /// A full device is no failure of it, if the file can be cut to its old end.
    fn take_back(&self, tail: &Tail, cause: &std::io::Error) -> Error {
        match tail.take_back() {
            Ok(()) if directory::is_full(cause) => directory::failed_write(&tail.path, cause),
            Ok(()) => self.turns.fail("write", &tail.path, cause),
            Err(second) => self.turns.fail("take back a failed write of", &tail.path, &second),
        }
    }

    fn sync(&self) -> Result<JournalEnd> {
        let position = self.tail.lock().position;
        Ok(self.reach(position)?.end)
    }

    fn reach(&self, position: u64) -> Result<Synced> {
        self.turns.reach(position, || {
            let mut tail = self.tail.lock();
            tail.begin_sync();
            let before = tail.before.take();
            let (file, path, reached) = (tail.file.clone(), tail.path.clone(), synced(&tail));
            // Appends go on while the device works.
            drop(tail);
            if let Some(before) = &before {
                self.sync_file(&before.file, &before.path)?;
            }
            self.sync_file(&file, &path)?;
            if let Some(before) = before {
                self.end_rotation(&before, reached.end.generation)?;
            }
            self.forget(&file, reached.end.offset);
            Ok(reached)
        })
    }

    fn sync_file(&self, file: &File, path: &Path) -> Result<()> {
        vfs::sync_data(file).map_err(|cause| self.turns.fail("fdatasync", path, &cause))
    }

    /// The file `generation` and the one before it are on the device: it gets its own name.
    fn end_rotation(&self, before: &Before, generation: u32) -> Result<()> {
        self.files
            .publish(generation)
            .map_err(|cause| self.turns.fail("name", &self.files.path(generation), &cause))?;
        os::forget_pages(&before.file, 0, before.length);
        self.forgotten.store(0, Relaxed);
        Ok(())
    }

    fn switch(
        &self,
        next: NextFile,
        sessions: Vec<SessionRecord>,
        sequence: Sequence,
    ) -> Result<u32> {
        let mut tail = self.tail.lock();
        self.turns.check()?;
        let generation = next.generation;
        if tail.generation + 1 != generation || tail.before.is_some() {
            return Err(Error::bad_input(format!(
                "journal file {generation} cannot follow file {}; prepare another",
                tail.generation
            )));
        }
        let mut frame = Frame::new(&Entry::Sessions { before: tail.offset, sessions })?;
        let stamp = Stamp { generation, sequence, epoch: tail.epoch };
        if let Err(cause) = vfs::append(&next.file, &frame.seal(stamp, FILE_HEADER as u64)) {
            return Err(self.files.discard(next, &cause));
        }
        let length = FILE_HEADER as u64 + frame.length();
        self.sealed.lock().push(Listed { generation: tail.generation, length: tail.offset });
        let mut new = Tail::new(next.file, self.files.path(generation), stamp, length);
        new.position = tail.position + length;
        let old = std::mem::replace(&mut *tail, new);
        tail.before = Some(Before { file: old.file, path: old.path, length: old.offset });
        self.bytes.fetch_add(length, Relaxed);
        self.bytes_written.fetch_add(tail::pages(length), Relaxed);
        Ok(generation)
    }

    /// Keeps synced bytes out of the page cache: nobody reads them before the next start.
    fn forget(&self, file: &File, end: u64) {
        // Only the holder of the turn comes here.
        let start = self.forgotten.load(Relaxed);
        if end >= start + FORGET_BYTES {
            os::forget_pages(file, start, end);
            self.forgotten.store(end & !(tail::PAGE - 1), Relaxed);
        }
    }
}

/// Everything in the tail, as a sync of it would leave it.
fn synced(tail: &Tail) -> Synced {
    let end = JournalEnd { generation: tail.generation, offset: tail.offset };
    Synced { position: tail.position, sequence: tail.sequence, end }
}

#[cfg(test)]
mod tests;
