//! The writer thread and what orders it: segments to the device, sync, erasing freed slots.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, VecDeque};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::Arc;

use super::footer::encode_footer;
use super::header::SegmentHeader;
use super::segment::{collect_entries, OpenSegment, SegmentBuffer};
use super::slots::{SegmentId, SlotInfo};
use super::{LogConfig, LogEnd, Shared};
use crate::device::{AlignedBuffer, PAGE};
use crate::error::{Error, Result};

/// Under one lock: which slots and buffers are free, what waits for the device.
pub(super) struct State {
    idle: Vec<Arc<SegmentBuffer>>,
    /// Buffers in all.
    pub(super) made: usize,
    free: BinaryHeap<Reverse<u32>>,
    /// Slots from here on were never used.
    fresh: u32,
    pub(super) queue: VecDeque<Sealed>,
    /// Incarnations that were given out and are not on the device.
    unwritten: BTreeSet<u64>,
    next_incarnation: u64,
    pub(super) freed: Vec<Freed>,
    /// Segments up to this incarnation are synced.
    synced: u64,
    closing: bool,
}

/// A full segment on its way to the device.
pub(super) struct Sealed {
    pub(super) segment: OpenSegment,
    pub(super) sealed_at: u64,
}

/// A slot whose records were copied.
pub(super) struct Freed {
    slot: u32,
    /// The copies are in segments up to this incarnation.
    copies: u64,
    /// Pins before this epoch may look at it.
    epoch: u64,
}

impl State {
    pub(super) fn new(free: Vec<u32>, fresh: u32, next_incarnation: u64) -> Self {
        Self {
            idle: Vec::new(),
            made: 0,
            free: free.into_iter().map(Reverse).collect(),
            fresh,
            queue: VecDeque::new(),
            unwritten: BTreeSet::new(),
            next_incarnation,
            freed: Vec::new(),
            synced: next_incarnation - 1,
            closing: false,
        }
    }

    /// Slots that can be filled now.
    pub(super) fn available(&self, slots_max: u32) -> u32 {
        self.free.len() as u32 + slots_max.saturating_sub(self.fresh)
    }

    /// A slot, the lowest so that the file stays short, and its new incarnation.
    pub(super) fn take_slot(&mut self) -> (u32, u64) {
        let slot = self.free.pop().map_or(self.fresh, |Reverse(slot)| slot);
        self.fresh = self.fresh.max(slot + 1);
        let incarnation = self.next_incarnation;
        self.next_incarnation += 1;
        self.unwritten.insert(incarnation);
        (slot, incarnation)
    }

    pub(super) fn take_buffer(&mut self, config: &LogConfig) -> Option<Arc<SegmentBuffer>> {
        self.idle.pop().or_else(|| {
            (self.made < config.buffers).then(|| {
                self.made += 1;
                Arc::new(SegmentBuffer::new(config.segment_bytes as usize))
            })
        })
    }

    /// Greatest incarnation given out.
    pub(super) fn newest(&self) -> u64 {
        self.next_incarnation - 1
    }

    /// All segments up to this incarnation are written, though perhaps not synced.
    fn written_up_to(&self) -> u64 {
        self.unwritten.first().map_or(self.newest(), |first| first - 1)
    }
}

impl Shared {
    /// Body of the writer thread.
    pub(super) fn write_segments(&self) {
        while let Some(sealed) = self.next_sealed() {
            // Everyone would wait for a thread that is gone: a panic fails the log instead.
            let work = || self.write_segment(sealed).and_then(|()| self.reclaim_if_due());
            let panicked = || Err(Error::unavailable("the log's thread panicked"));
            let outcome = catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| panicked());
            if let Err(error) = outcome {
                self.fail(&error);
            }
        }
    }

    /// Waits for a sealed segment; none when the log closes and all are written or it has failed.
    fn next_sealed(&self) -> Option<Sealed> {
        let mut state = self.state.lock();
        loop {
            if self.failure.get().is_none() {
                if let Some(sealed) = state.queue.pop_front() {
                    return Some(sealed);
                }
            }
            if state.closing {
                return None;
            }
            self.work.wait(&mut state);
        }
    }

    pub(super) fn close(&self) {
        self.state.lock().closing = true;
        self.work.notify_all();
    }

    /// If it fails, the buffer stays with its slot, so that its rows can still be read.
    fn write_segment(&self, sealed: Sealed) -> Result<()> {
        let segment = &sealed.segment;
        (self.config.before_write)(segment.max_sequence)?;
        let base = self.slots.offset(segment.slot);
        let header = self.complete(&sealed, base)?;
        let bytes = header.written_bytes() as usize;
        self.write(&segment.buffer.0.read().bytes[..bytes], base)?;
        self.slots.set(segment.slot, SlotInfo::written(header));
        let mut state = self.state.lock();
        state.unwritten.remove(&segment.incarnation);
        state.idle.push(sealed.segment.buffer);
        self.progress.notify_all();
        Ok(())
    }

    /// Adds footer and header to the pages in the buffer.
    fn complete(&self, sealed: &Sealed, base: u64) -> Result<SegmentHeader> {
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
            self.state.lock().newest()
        };
        let mut state = self.state.lock();
        while state.written_up_to() < target {
            self.check()?;
            self.progress.wait(&mut state);
        }
        let synced = state.synced;
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
        let mut state = self.state.lock();
        state.synced = state.synced.max(target);
        Ok(())
    }

    pub(super) fn free(&self, segment: SegmentId) {
        if !self.slots.set_freed(segment) {
            return;
        }
        let epoch = self.pins.advance();
        let mut state = self.state.lock();
        let copies = state.newest();
        state.freed.push(Freed { slot: segment.slot, copies, epoch });
    }

    /// After each segment, so that compaction gets its slots back without sealing short segments.
    fn reclaim_if_due(&self) -> Result<()> {
        let oldest_pin = self.pins.oldest();
        let state = self.state.lock();
        let written = state.written_up_to();
        let due = |freed: &Freed| freed.copies <= written && freed.epoch <= oldest_pin;
        let (due, synced) = (state.freed.iter().any(due), state.synced);
        drop(state);
        if !due {
            return Ok(());
        }
        if synced < written {
            self.sync_up_to(written)?;
        }
        self.reclaim()
    }

    /// Erases the freed slots whose copies are synced and that no pin can see.
    ///
    /// The erasure is synced before a slot is filled again: else a crash could leave the old
    /// header over new pages, and that would look like damage.
    fn reclaim(&self) -> Result<()> {
        let mut file_header = self.file_header.lock();
        let (slots, synced) = self.take_erasable();
        if slots.is_empty() {
            return Ok(());
        }
        let (header, page) = &mut *file_header;
        header.synced = header.synced.max(synced);
        header.revision += 1;
        header.put(page);
        self.write(page, 0)?;
        self.erase(&slots)?;
        for &slot in &slots {
            self.slots.set(slot, SlotInfo::FREE);
        }
        let mut state = self.state.lock();
        state.free.extend(slots.into_iter().filter(|&slot| slot < self.slots_max).map(Reverse));
        self.progress.notify_all();
        Ok(())
    }

    fn take_erasable(&self) -> (Vec<u32>, u64) {
        let oldest_pin = self.pins.oldest();
        let mut state = self.state.lock();
        let synced = state.synced;
        let erasable = |freed: &Freed| freed.copies <= synced && freed.epoch <= oldest_pin;
        let (due, kept): (Vec<Freed>, Vec<Freed>) =
            std::mem::take(&mut state.freed).into_iter().partition(erasable);
        state.freed = kept;
        (due.into_iter().map(|freed| freed.slot).collect(), synced)
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
