//! Adding records: one short lock a stream around a copy into the segment buffer.

use std::sync::atomic::Ordering;

use super::record::Record;
use super::segment::OpenSegment;
use super::volume::Volume;
use super::writer::Sealed;
use super::{Stream, ROW_FLOATS_MAX};
use crate::error::{Error, Result};
use crate::types::{Place, TableId};

/// Slots that only compaction may take: one to fill and one to go on with, or a full log could
/// never be compacted. (Where syncs seal one after the other short, there are `SPARE` more.)
pub(super) const RESERVED: u32 = 2;

impl Volume {
    /// `may_wait`: for the device, if all buffers are on their way there or slots come back by a
    /// sync; else `Busy` or `StoreFull` is returned at once.
    pub(super) fn append(
        &self,
        stream: Stream,
        table: TableId,
        record: &Record<'_>,
        tombstone: bool,
        may_wait: bool,
    ) -> Result<Place> {
        self.check()?;
        let row_floats = record.row.len();
        if row_floats > ROW_FLOATS_MAX {
            return Err(Error::bad_input(format!(
                "row of {row_floats} floats in table {table} is longer than {ROW_FLOATS_MAX}: \
                 lower the dimension or use an optimizer with fewer slots"
            )));
        }
        // Who appends to the cold volume syncs by itself, when no lock is held.
        let mut may_sync = may_wait && self.anchor.is_none();
        loop {
            let mut current = self.streams[stream as usize].lock();
            if current.is_none() {
                *current = self.begin(stream, may_wait)?;
            }
            let Some(segment) = current.as_mut() else {
                drop(current);
                if !(std::mem::take(&mut may_sync) && self.has_freed()) {
                    return Err(self.full());
                }
                self.sync()?;
                continue;
            };
            if let Some(place) = segment.put(table, record, tombstone) {
                if tombstone {
                    self.slots.add_tombstone(place, table, record.horizon(), record.sequence);
                } else {
                    self.slots.add_live(place, row_floats);
                    self.slots.note_table(place, table);
                }
                return Ok(place);
            }
            self.seal(&mut current);
        }
    }

    /// Begins a segment; may wait for a buffer, but not for a slot: none if there is none.
    fn begin(&self, stream: Stream, may_wait: bool) -> Result<Option<OpenSegment>> {
        let mut state = self.state.lock();
        let (buffer, id) = loop {
            self.check()?;
            let has_slot = match stream {
                Stream::Rows => state.roster.available() > RESERVED,
                Stream::Compaction => state.roster.available() > 0 || state.roster.spare() > 0,
            };
            if !has_slot {
                return Ok(None);
            }
            if let Some(buffer) = state.take_buffer(&self.config) {
                let id = self.slots.fill(&mut state.roster, buffer.clone());
                break (buffer, id);
            }
            if let Some(error) = &state.no_space {
                self.refused.fetch_add(1, Ordering::Relaxed);
                return Err(error.clone());
            }
            if !may_wait {
                return Err(Error::busy("all segment buffers are on their way to the device"));
            }
            self.progress.wait(&mut state);
        };
        drop(state);
        let base = self.slots.base(id.slot);
        Ok(Some(OpenSegment::new(id, buffer, base, self.config.segment_bytes)))
    }

    /// Whether rows have no open segment, and none can be begun.
    #[cfg(test)]
    pub(super) fn is_stuck(&self) -> bool {
        let rows = self.streams[Stream::Rows as usize].lock();
        rows.is_none() && !self.state.lock().has_buffer(&self.config)
    }

    /// Waits until a segment could be begun at once.
    pub(crate) fn wait_for_buffer(&self) -> Result<()> {
        let mut state = self.state.lock();
        loop {
            self.check()?;
            if state.has_buffer(&self.config) {
                return Ok(());
            }
            if let Some(error) = &state.no_space {
                return Err(error.clone());
            }
            self.progress.wait(&mut state);
        }
    }

    /// Hands the segment of a stream, if there is one, to the writer thread.
    pub(super) fn seal(&self, current: &mut Option<OpenSegment>) {
        let Some(mut segment) = current.take() else { return };
        segment.close_pages();
        let mut state = self.state.lock();
        let sealed_at = state.roster.newest();
        state.queue.push_back(Sealed { segment, sealed_at });
        self.work.notify_one();
    }

    /// Ends the open segment of a stream if it began before the filling `incarnation`: compaction
    /// has one of its own, begun at another time.
    pub(super) fn seal_older(&self, stream: Stream, incarnation: u64) {
        let mut current = self.streams[stream as usize].lock();
        if current.as_ref().is_some_and(|segment| segment.incarnation < incarnation) {
            self.seal(&mut current);
        }
    }

    fn has_freed(&self) -> bool {
        self.state.lock().roster.freed() > 0
    }

    fn full(&self) -> Error {
        self.refused.fetch_add(1, Ordering::Relaxed);
        Error::store_full(format!(
            "log {} is full: all {} slots of {} bytes are taken ({} bytes of rows are live, {} of \
             marks of removals kept): remove rows, let compaction run, or raise {}",
            self.device.path().display(),
            self.slots_max,
            self.config.segment_bytes,
            self.slots.live_bytes(),
            self.slots.tombstone_bytes(),
            if self.anchor.is_none() { "nvme_bytes" } else { "cold_cap" }
        ))
    }
}
