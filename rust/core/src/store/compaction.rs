//! Compaction: the live records of a segment are copied, so that its slot can be filled again.

use std::sync::atomic::Ordering::Relaxed;

use super::engine::Engine;
use crate::error::{ErrorKind, Result};
use crate::index::Location;
use crate::log::{Elders, FooterEntry, Read, Record, RecordView, SegmentId, Stream};
use crate::table::{stripe_of, Counters, Item, Table};
use crate::types::{hash, Place, TableId, BUCKETS};

/// So many freed slots are worth a short segment, which the sync costs that brings them back.
const FREED_MAX: u32 = 8;

impl Engine {
    /// Compacts while the log holds more than its live rows and tombstones justify.
    pub(super) fn compact(&self) -> Result<()> {
        loop {
            while self.compact_step()? {
                self.wake.tell_callers();
            }
            if !self.is_recall_due() || !self.recall()? {
                return Ok(());
            }
        }
    }

    /// Whether freed slots are worth the short segments of a sync. While segments are filled they
    /// come back by themselves; where nobody fills those that hold the copies they would not, and
    /// what was removed ages only as old segments are erased.
    fn is_recall_due(&self) -> bool {
        let log = &self.tier.log;
        let begun = log.begun_segments();
        let is_idle = self.wake.begun_segments.swap(begun, Relaxed) == begun;
        self.log_free() < self.log_reserve() || (is_idle && log.freed_segments() >= FREED_MAX)
    }

    /// Compacts until a row finds a slot, or nothing can be won now. For a call that waits for one.
    pub(super) fn compact_for_room(&self) -> Result<()> {
        let log = &self.tier.log;
        while !log.has_room() {
            if log.freed_segments() < FREED_MAX && self.compact_step()? {
                continue;
            }
            if !self.recall()? {
                break;
            }
        }
        Ok(())
    }

    /// Compacts one segment: the work that is done between two looks at what is needed, by one
    /// thread at a time. False if none is worth it, or there is no slot for its copies now.
    fn compact_step(&self) -> Result<bool> {
        let _alone = self.compacting.lock();
        let Some(segment) = self.tier.log.victim(self.is_log_short()) else { return Ok(false) };
        match self.compact_segment(segment) {
            // Slots come back when the calls that may look at them end: then it goes on.
            Err(error) if error.kind == ErrorKind::StoreFull => Ok(false),
            outcome => outcome.map(|()| true),
        }
    }

    /// Brings freed slots back by a sync. False if none came.
    fn recall(&self) -> Result<bool> {
        let log = &self.tier.log;
        let freed = log.freed_segments();
        if freed == 0 {
            return Ok(false);
        }
        match log.sync() {
            Err(error) if error.kind == ErrorKind::StoreFull => Ok(false),
            outcome => outcome.map(|_| log.freed_segments() < freed),
        }
    }

    /// Whether slots are short even with those that are on their way back.
    fn is_log_short(&self) -> bool {
        let log = &self.tier.log;
        let freed = u64::from(log.freed_segments()) * log.segment_bytes();
        self.log_free() + freed < self.log_reserve()
    }

    /// Copies the live records of a segment to the compaction stream, and frees it.
    fn compact_segment(&self, segment: SegmentId) -> Result<()> {
        let log = &self.tier.log;
        let copying = Copying { engine: self, segment, elders: log.elders() };
        let (mut outcome, mut is_damaged) = (Ok(()), false);
        let scanned = log.scan(segment, &mut |place, table, record| match record {
            Err(_) => is_damaged = true,
            Ok(record) if outcome.is_ok() => outcome = copying.copy(place, table, &record),
            Ok(_) => {}
        });
        outcome?;
        if is_damaged || scanned.is_err() {
            return copying.salvage();
        }
        // Its slot comes back by itself once the copies are on the device.
        log.free(segment);
        Ok(())
    }
}

/// What is copied from one segment.
struct Copying<'a> {
    engine: &'a Engine,
    segment: SegmentId,
    elders: Elders,
}

impl Copying<'_> {
    /// Copies a record that is live, or must stay.
    fn copy(&self, place: Place, table: TableId, record: &RecordView<'_>) -> Result<()> {
        if !record.tombstone {
            return self.copy_row(place, table, record);
        }
        let is_gone = self.elders.are_gone(self.segment, table, record.horizon());
        // Tables are never made again under the id of one that was dropped.
        if is_gone || !self.engine.catalog.read().by_id.contains_key(&table) {
            return Ok(());
        }
        self.engine.tier.log.copy_tombstone(table, record).map(drop)
    }

    fn copy_row(&self, place: Place, table: TableId, record: &RecordView<'_>) -> Result<()> {
        let (engine, log) = (self.engine, &self.engine.tier.log);
        let item = Item { key: record.key, hash: hash(record.key), index: 0 };
        // Here, and not under the lock, the device is waited for.
        log.wait_for_buffer()?;
        let mut state = engine.stripes[stripe_of(item.hash, engine.stripes.len())].lock();
        let Some(part) = state.parts.get_mut(&table) else { return Ok(()) };
        let Some(slot) = part.slot(item.hash, Location::nvme(place)) else {
            // Perhaps a row in DRAM whose record this is. Its present value is written instead.
            return state.rewrite(&engine.tier, table, &item, place);
        };
        let RecordView { key, sequence, last_seen, frequency, row, .. } = *record;
        let copy = Record { key, sequence, last_seen, frequency, row };
        let new = log.append(Stream::Compaction, table, &copy)?;
        part.index.relocate(slot, Location::nvme(new));
        log.release(place, part.table.floats);
        Ok(())
    }

    /// What a damaged segment still holds, by its footer: sound records are copied, rows that are
    /// in DRAM too are written anew. If a live row stays that cannot be read, so does the segment.
    fn salvage(&self) -> Result<()> {
        let log = &self.engine.tier.log;
        let mut entries = Vec::new();
        let mut is_whole =
            log.entries_of(self.segment, 0..BUCKETS, &mut |entry| entries.push(entry)).is_ok();
        for entry in entries {
            if !entry.tombstone {
                is_whole &= self.rescue(&entry)?;
            } else if self.engine.catalog.read().by_id.contains_key(&entry.table) {
                // A footer does not say its horizon: that of a removal now covers it.
                log.append_tombstone(Stream::Compaction, entry.table, entry.key, entry.sequence)?;
            }
        }
        if is_whole {
            log.free(self.segment);
        } else {
            log.set_aside(self.segment);
        }
        Ok(())
    }

    /// Moves the row of a record elsewhere, if it is live. False if it cannot be read.
    fn rescue(&self, entry: &FooterEntry) -> Result<bool> {
        let Engine { tier, stripes, .. } = self.engine;
        let item = Item { key: entry.key, hash: hash(entry.key), index: 0 };
        let stripe = &stripes[stripe_of(item.hash, stripes.len())];
        let (table, pin) = {
            let mut state = stripe.lock();
            let Some(part) = state.parts.get(&entry.table) else { return Ok(true) };
            let table = part.table.clone();
            if part.slot(item.hash, Location::nvme(entry.place)).is_none() {
                return state.rewrite(tier, table.id, &item, entry.place).map(|()| true);
            }
            (table, tier.log.pin())
        };
        let (mut outcome, mut is_read) = (Ok(()), false);
        let read = read_of(&table, entry);
        tier.log.read(&pin, 1, &|_| read, &mut |_, record| {
            if let Ok(record) = record {
                is_read = true;
                outcome = self.copy_row(entry.place, table.id, &record);
            }
        });
        Counters::add(&table.counters.corrupt_records, usize::from(!is_read));
        outcome.map(|()| is_read)
    }
}

fn read_of(table: &Table, entry: &FooterEntry) -> Read {
    Read { place: entry.place, row_floats: entry.row_floats, table: table.id }
}
