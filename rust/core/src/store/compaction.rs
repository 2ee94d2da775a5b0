//! Compaction: the live records of a segment are copied, so that its slot can be filled again.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering::Relaxed;

use super::damaged::Damaged;
use super::engine::Engine;
use super::fetch::count_reads;
use crate::error::{ErrorKind, Result};
use crate::index::Location;
use crate::log::{Elders, ReadCounts, Record, RecordView, SegmentId, Stream};
use crate::table::Item;
use crate::types::{hash, Place, TableId};

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
        let is_short = self.is_log_short();
        if self.demote(is_short)? {
            return Ok(true);
        }
        let Some(segment) = self.victim()? else { return Ok(false) };
        match self.compact_segment(segment) {
            // Slots come back when the calls that may look at them end: then it goes on.
            Err(error) if error.kind == ErrorKind::StoreFull => Ok(false),
            outcome => outcome.map(|_| true),
        }
    }

    /// The segment to compact next. Traces of removals give way to rows: the oldest when there are
    /// many, all of them when slots are short and nothing else is to be won.
    fn victim(&self) -> Result<Option<SegmentId>> {
        let (log, is_short) = (&self.tier.log, self.is_log_short());
        if let Some(floor) = log.floor_due(false) {
            self.raise_floor(floor)?;
        }
        let victim = log.victim(is_short);
        if victim.is_some() || !is_short {
            return Ok(victim);
        }
        let Some(floor) = log.floor_due(true) else { return Ok(None) };
        self.raise_floor(floor)?;
        Ok(log.victim(is_short))
    }

    /// Brings freed slots back by a sync. False if none came.
    pub(super) fn recall(&self) -> Result<bool> {
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

    /// Copies the live records of a segment to the compaction stream, and frees it. Returns what
    /// is damaged of it. The caller holds `compacting`.
    pub(super) fn compact_segment(&self, segment: SegmentId) -> Result<Vec<Damaged>> {
        // Of keys that are not in the index it would take the records for dead.
        self.load_rest()?;
        let log = &self.tier.log;
        let copying = Copying::of(self, segment);
        let (mut outcome, mut is_damaged) = (Ok(()), false);
        let mut records: BTreeMap<TableId, u64> = BTreeMap::new();
        let scanned = log.scan(segment, &mut |place, table, record| match record {
            Err(_) => is_damaged = true,
            Ok(record) if outcome.is_ok() => {
                *records.entry(table).or_default() += 1;
                outcome = copying.copy(place, table, &record);
            }
            Ok(_) => {}
        });
        self.count_scan(&records, scanned.as_ref().copied().unwrap_or_default());
        outcome?;
        if is_damaged || scanned.is_err() {
            return copying.salvage();
        }
        // Its slot comes back by itself once the copies are on the device.
        log.free(segment);
        Ok(Vec::new())
    }

    /// Attributes the reads of a scan to the tables whose records it has met.
    pub(super) fn count_scan(&self, records: &BTreeMap<TableId, u64>, counts: ReadCounts) {
        let catalog = self.catalog.read();
        let shares = records.iter().filter_map(|(id, &n)| Some((&**catalog.by_id.get(id)?, n)));
        count_reads(shares, records.values().sum(), counts, true);
    }
}

/// What is copied from one segment.
pub(super) struct Copying<'a> {
    pub(super) engine: &'a Engine,
    pub(super) segment: SegmentId,
    elders: Elders,
}

impl<'a> Copying<'a> {
    pub(super) fn of(engine: &'a Engine, segment: SegmentId) -> Self {
        Self { engine, segment, elders: engine.tier.log.elders() }
    }

    /// Copies a record that is live, or must stay.
    pub(super) fn copy(&self, place: Place, table: TableId, record: &RecordView<'_>) -> Result<()> {
        if !record.tombstone {
            return self.copy_row(place, table, record);
        }
        let is_needless = self.elders.are_gone(self.segment, table, record.horizon());
        let is_gone = is_needless && record.sequence <= self.engine.tier.log.floor();
        // Tables are never made again under the id of one that was dropped.
        if is_gone || !self.engine.catalog.read().by_id.contains_key(&table) {
            return Ok(());
        }
        self.engine.tier.log.copy_tombstone(table, record).map(drop)
    }

    pub(super) fn copy_row(
        &self,
        place: Place,
        table: TableId,
        record: &RecordView<'_>,
    ) -> Result<()> {
        let (engine, log) = (self.engine, &self.engine.tier.log);
        let item = Item { key: record.key, hash: hash(record.key), index: 0 };
        engine.outside_of_turns(item.hash, |state| {
            let Some(part) = state.parts.get_mut(&table) else { return Ok(()) };
            let Some(slot) = part.slot(item.hash, Location::nvme(place)) else {
                // Perhaps a row in DRAM whose record this is. Its present value is written instead.
                return state.rewrite(&engine.tier, table, &item, place).map(drop);
            };
            let RecordView { key, sequence, last_seen, frequency, row, .. } = *record;
            let copy = Record { key, sequence, last_seen, frequency, row };
            let new = log.try_append(Stream::Compaction, table, &copy)?;
            part.index.relocate(slot, Location::nvme(new));
            log.release(place, part.table.floats);
            Ok(())
        })
    }
}
