//! Adding records: one short lock a stream around a copy into the segment buffer.

use std::sync::atomic::Ordering;

use super::record::Record;
use super::segment::OpenSegment;
use super::slots::SlotInfo;
use super::writer::Sealed;
use super::{Shared, Stream, ROW_FLOATS_MAX};
use crate::error::{Error, Result};
use crate::types::{Place, TableId};

/// Slots that only compaction may take: one to fill and one to go on with, or a full log could
/// never be compacted.
pub(super) const RESERVED: u32 = 2;

impl Shared {
    pub(super) fn append(
        &self,
        stream: Stream,
        table: TableId,
        record: &Record<'_>,
        tombstone: bool,
    ) -> Result<Place> {
        self.check()?;
        let row_floats = record.row.len();
        if row_floats > ROW_FLOATS_MAX {
            return Err(Error::bad_input(format!(
                "row of {row_floats} floats in table {table} is longer than {ROW_FLOATS_MAX}: \
                 lower the dimension or use an optimizer with fewer slots"
            )));
        }
        let mut may_sync = true;
        loop {
            let mut current = self.streams[stream as usize].lock();
            if current.is_none() {
                *current = self.begin(stream)?;
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
                self.slots.add_live(place, row_floats);
                return Ok(place);
            }
            self.seal(&mut current);
        }
    }

    /// Begins a segment; waits for a buffer, but not for a slot: none if there is none.
    fn begin(&self, stream: Stream) -> Result<Option<OpenSegment>> {
        let reserved = if stream == Stream::Rows { RESERVED } else { 0 };
        let mut state = self.state.lock();
        let (buffer, slot, incarnation) = loop {
            self.check()?;
            if state.available(self.slots_max) <= reserved {
                return Ok(None);
            }
            if let Some(buffer) = state.take_buffer(&self.config) {
                let (slot, incarnation) = state.take_slot();
                break (buffer, slot, incarnation);
            }
            self.progress.wait(&mut state);
        };
        drop(state);
        let base = self.slots.offset(slot);
        let segment_bytes = self.config.segment_bytes;
        let segment = OpenSegment::new(slot, incarnation, buffer, base, segment_bytes);
        self.slots.set(slot, SlotInfo::filling(incarnation, segment.buffer.clone()));
        Ok(Some(segment))
    }

    /// Hands the segment of a stream, if there is one, to the writer thread.
    pub(super) fn seal(&self, current: &mut Option<OpenSegment>) {
        let Some(mut segment) = current.take() else { return };
        segment.close_pages();
        let mut state = self.state.lock();
        let sealed_at = state.newest();
        state.queue.push_back(Sealed { segment, sealed_at });
        self.work.notify_one();
    }

    fn has_freed(&self) -> bool {
        let state = self.state.lock();
        !state.freed.is_empty()
    }

    fn full(&self) -> Error {
        self.refused.fetch_add(1, Ordering::Relaxed);
        Error::store_full(format!(
            "log {} is full: all {} slots of {} bytes are taken ({} bytes live): remove rows, let \
             compaction run, or raise nvme_bytes",
            self.device.path().display(),
            self.slots_max,
            self.config.segment_bytes,
            self.slots.live_bytes()
        ))
    }
}
