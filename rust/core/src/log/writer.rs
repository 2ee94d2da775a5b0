//! The writer thread and what orders it: segments to the device, sync, erasing freed slots.

use std::collections::VecDeque;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::footer::encode_footer;
use super::header::SegmentHeader;
use super::segment::{collect_entries, OpenSegment, SegmentBuffer};
use super::slots::{Roster, SegmentId};
use super::volume::Volume;
use super::{LogConfig, LogEnd};
use crate::device::{AlignedBuffer, PAGE};
use crate::error::{Error, ErrorKind, Result};
use crate::types::Place;

/// Under one lock: which slots and buffers are free, what waits for the device.
pub(super) struct State {
    pub(super) roster: Roster,
    idle: Vec<Arc<SegmentBuffer>>,
    /// Buffers in all.
    pub(super) made: usize,
    pub(super) queue: VecDeque<Sealed>,
    /// The file system had no space for the first of the queue; it is tried again then.
    pub(super) no_space: Option<Error>,
    retry_at: Option<Instant>,
    closing: bool,
}

/// A full segment on its way to the device.
pub(super) struct Sealed {
    pub(super) segment: OpenSegment,
    pub(super) sealed_at: u64,
}

impl State {
    pub(super) fn new(roster: Roster) -> Self {
        Self {
            roster,
            idle: Vec::new(),
            made: 0,
            queue: VecDeque::new(),
            no_space: None,
            retry_at: None,
            closing: false,
        }
    }

    pub(super) fn has_buffer(&self, config: &LogConfig) -> bool {
        !self.idle.is_empty() || self.made < config.buffers
    }

    pub(super) fn take_buffer(&mut self, config: &LogConfig) -> Option<Arc<SegmentBuffer>> {
        self.idle.pop().or_else(|| {
            (self.made < config.buffers).then(|| {
                self.made += 1;
                Arc::new(SegmentBuffer::new(config.segment_bytes as usize))
            })
        })
    }
}

/// Freed slots that are worth the syncs which bring them back.
const ERASED_AT_ONCE: u32 = 8;
/// Pause before a segment that found no space is tried again.
const RETRY: Duration = Duration::from_millis(100);

impl Volume {
    /// Body of the writer thread.
    pub(super) fn write_segments(&self) {
        while let Some(sealed) = self.next_sealed() {
            match guarded(|| self.write_segment(&sealed)) {
                Ok(header) => self.note_written(sealed, header),
                Err(error) => self.note_unwritten(sealed, &error),
            }
            if let Err(error) = guarded(|| self.reclaim_if_due()) {
                self.fail(&error);
            }
        }
    }

    /// Waits for a sealed segment, or until it is time to try one again; none when the log closes
    /// and all are written, or cannot be.
    fn next_sealed(&self) -> Option<Sealed> {
        let mut state = self.state.lock();
        loop {
            let is_stuck = self.failure.get().is_some() || state.no_space.is_some();
            if state.closing && (is_stuck || state.queue.is_empty()) {
                return None;
            }
            let retry_at = state.retry_at;
            if self.failure.get().is_none() && retry_at.is_none_or(|at| at <= Instant::now()) {
                if let Some(sealed) = state.queue.pop_front() {
                    return Some(sealed);
                }
            }
            match retry_at {
                Some(at) => drop(self.work.wait_until(&mut state, at)),
                None => self.work.wait(&mut state),
            }
        }
    }

    fn note_written(&self, sealed: Sealed, header: SegmentHeader) {
        let mut state = self.state.lock();
        self.slots.complete(&mut state.roster, header);
        state.idle.push(sealed.segment.buffer);
        (state.no_space, state.retry_at) = (None, None);
        self.progress.notify_all();
    }

    /// The buffer stays with its slot, so that its rows can still be read. Where the file system
    /// is full the segment is next again; a part of it that was written counts for nothing, for it
    /// is written anew.
    fn note_unwritten(&self, sealed: Sealed, error: &Error) {
        self.fail(error);
        let mut state = self.state.lock();
        if error.kind == ErrorKind::StoreFull {
            state.queue.push_front(sealed);
            state.no_space = Some(error.clone());
            state.retry_at = Some(Instant::now() + RETRY);
        }
        self.progress.notify_all();
    }

    pub(super) fn close(&self) {
        self.state.lock().closing = true;
        self.work.notify_all();
    }

    fn write_segment(&self, sealed: &Sealed) -> Result<SegmentHeader> {
        let segment = &sealed.segment;
        (self.config.before_write)(segment.max_sequence)?;
        let base = self.slots.base(segment.slot);
        let header = self.complete(sealed, base)?;
        let bytes = header.written_bytes() as usize;
        self.write(&segment.buffer.0.read().bytes[..bytes], base.offset())?;
        Ok(header)
    }

    /// Adds footer and header to the pages in the buffer.
    fn complete(&self, sealed: &Sealed, base: Place) -> Result<SegmentHeader> {
        let segment = &sealed.segment;
        let pages_end = (1 + segment.data_pages as usize) * PAGE;
        // Readers of the buffer go on meanwhile.
        let mut entries = {
            let contents = segment.buffer.0.read();
            collect_entries(&contents.bytes[..pages_end], segment.incarnation, base)
        }
        .map_err(|damaged| {
            Error::corruption(format!(
                "memory of a segment changed before it was written: offset {} of slot {}: check \
                 the machine's memory",
                damaged.0, segment.slot
            ))
        })?;
        let footer = encode_footer(&mut entries, segment.incarnation, base);
        let header = SegmentHeader {
            incarnation: segment.incarnation,
            slot: segment.slot,
            data_pages: segment.data_pages,
            footer_bytes: footer.len() as u32,
            entries: entries.len() as u32,
            max_sequence: segment.max_sequence,
            sealed_at: sealed.sealed_at,
            data_bytes: segment.data_bytes,
            tables: self.slots.tables(segment.slot),
        };
        let mut contents = segment.buffer.0.write();
        let end = pages_end + footer.len();
        contents.bytes[pages_end..end].copy_from_slice(&footer);
        contents.bytes[end..header.written_bytes() as usize].fill(0);
        header.put(&mut contents.bytes[..PAGE]);
        Ok(header)
    }

    pub(super) fn sync(&self) -> Result<LogEnd> {
        self.check()?;
        let target = {
            // Both at once: a segment begun between two seals would be below the target.
            let mut rows = self.streams[0].lock();
            let mut compaction = self.streams[1].lock();
            self.seal(&mut rows);
            self.seal(&mut compaction);
            self.state.lock().roster.newest()
        };
        let mut state = self.state.lock();
        while state.roster.written_up_to() < target {
            self.check()?;
            if let Some(error) = &state.no_space {
                return Err(error.clone());
            }
            self.progress.wait(&mut state);
        }
        let synced = state.roster.synced();
        drop(state);
        if synced < target {
            self.sync_up_to(target)?;
        }
        self.reclaim().map_err(|error| self.fail(&error))?;
        Ok(LogEnd { incarnation: target })
    }

    /// Syncs the device; segments up to `target` are written already.
    fn sync_up_to(&self, target: u64) -> Result<()> {
        self.device_sync().map_err(|error| self.fail(&error))?;
        self.state.lock().roster.note_synced(target);
        Ok(())
    }

    pub(super) fn free(&self, segment: SegmentId) {
        let epoch = self.pins.advance();
        self.slots.free(&mut self.state.lock().roster, segment, epoch);
    }

    /// What was appended up to this incarnation is on a device.
    ///
    /// A record on the cold volume may be dead because of a newer one on the other, so what counts
    /// there is the end of that; its own copies are synced before an index names them.
    fn safe_up_to(&self) -> u64 {
        match &self.anchor {
            None => self.state.lock().roster.synced(),
            Some(anchor) => anchor.safe_up_to(),
        }
    }

    /// After each segment, so that compaction gets its slots back without sealing short segments.
    /// Some at a time: a round costs two syncs of the device, which appenders may have to wait for.
    fn reclaim_if_due(&self) -> Result<()> {
        let (oldest_pin, safe) = (self.pins.oldest(), self.safe_up_to());
        let (written, is_due) = {
            let roster = &self.state.lock().roster;
            let written = if self.anchor.is_none() { roster.written_up_to() } else { safe };
            let erasable = roster.erasable(written, oldest_pin);
            let is_short = roster.available() <= super::append::RESERVED + ERASED_AT_ONCE;
            (written, erasable >= ERASED_AT_ONCE || (is_short && erasable > 0))
        };
        if !is_due {
            return Ok(());
        }
        if safe < written {
            self.sync_up_to(written)?;
        }
        self.reclaim()
    }

    /// Erases the freed slots whose copies are synced and that no pin can see.
    ///
    /// The erasure is synced before a slot is filled again: else a crash could leave the old
    /// header over new pages, and that would look like damage.
    pub(super) fn reclaim(&self) -> Result<()> {
        let mut file_header = self.file_header.lock();
        let (oldest_pin, safe) = (self.pins.oldest(), self.safe_up_to());
        let (erasing, synced) = {
            let mut state = self.state.lock();
            let synced = state.roster.synced();
            (self.slots.begin_erasing(&mut state.roster, safe, oldest_pin), synced)
        };
        if erasing.is_empty() {
            return Ok(());
        }
        let (header, page) = &mut *file_header;
        header.synced = header.synced.max(synced);
        header.revision += 1;
        header.put(page);
        let slots: Vec<u32> = erasing.slots().collect();
        let outcome = self.write(page, 0).and_then(|()| self.erase(&slots));
        let mut state = self.state.lock();
        match outcome {
            Ok(()) => self.slots.erased(&mut state.roster, erasing),
            Err(_) => self.slots.restore(&mut state.roster, erasing),
        }
        self.progress.notify_all();
        outcome
    }

    /// Overwrites the headers of slots with zeros, syncs, and only then gives the rest back to the
    /// file system: a hole that is durable before its header's end would look like damage.
    pub(super) fn erase(&self, slots: &[u32]) -> Result<()> {
        let zeros = AlignedBuffer::new(PAGE);
        for &slot in slots {
            self.write(&zeros, self.slots.offset(slot))?;
        }
        self.device_sync()?;
        for &slot in slots {
            let offset = self.slots.offset(slot) + PAGE as u64;
            self.device
                .punch(offset, self.config.segment_bytes - PAGE as u64)
                .map_err(|e| Error::io("punch a hole into", self.device.path(), &e))?;
        }
        Ok(())
    }
}

/// Everyone would wait for a thread that is gone: a panic is an error that fails the log.
fn guarded<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    let panicked = |_| Err(Error::unavailable("the log's thread panicked"));
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(panicked)
}
