//! What is newer than a sequence, as segments tell it: their footers, and the pages of those that
//! are not written yet.
//!
//! Whoever is to miss nothing takes a pin before it lists the segments. A segment that is freed
//! later keeps its footer as long as the pin is held; one that was freed before has its copies in
//! segments that are listed too.

use std::ops::Range;

use super::footer::FooterEntry;
use super::page::{visit_page, PageHeader};
use super::pins::Pin;
use super::slots::{SegmentId, SlotState};
use super::{Log, Volume};
use crate::device::PAGE;
use crate::error::Result;
use crate::types::{bucket, hash, Place, Sequence, TableId};

/// What is looked for.
pub(crate) struct Newer {
    pub(crate) table: TableId,
    pub(crate) buckets: Range<u32>,
    /// Records above this one.
    pub(crate) since: Sequence,
}

impl Log {
    /// Segments that may hold records newer than `since`.
    ///
    /// # Errors
    /// `Corruption` if the header of a segment is damaged: what it holds is not known.
    pub(crate) fn newer_segments(&self, _: &Pin<'_>, since: Sequence) -> Result<Vec<SegmentId>> {
        let mut found = Vec::new();
        self.volumes().try_for_each(|volume| volume.newer_segments(since, &mut found))?;
        Ok(found)
    }

    /// Visits those records of a listed segment; returns how many entries were looked at.
    ///
    /// # Errors
    /// `Corruption` if the footer is damaged; `Unavailable` if a read fails.
    pub(crate) fn newer_entries(
        &self,
        _: &Pin<'_>,
        segment: SegmentId,
        newer: &Newer,
        visit: &mut dyn FnMut(FooterEntry),
    ) -> Result<u64> {
        self.on(segment.disk).newer_entries(segment, newer, visit)
    }

    /// Whether `place`, which the index named when `newest` was the greatest incarnation, still
    /// holds that record, and will as long as `pin`, taken before the question.
    pub(crate) fn still_holds(&self, _: &Pin<'_>, place: Place, newest: u64) -> bool {
        let slots = &self.on(place.disk()).slots;
        let info = slots.of(place).map(|slot| slots.info(slot));
        info.is_some_and(|info| {
            let is_there = info.state == SlotState::Buffered || info.state.is_written();
            is_there && info.header.incarnation <= newest
        })
    }
}

impl Volume {
    fn newer_segments(&self, since: Sequence, found: &mut Vec<SegmentId>) -> Result<()> {
        for (slot, info) in self.slots.each() {
            let may_hold = match info.state {
                SlotState::Free | SlotState::Erasing => false,
                // What it holds is not summed up yet.
                SlotState::Buffered => true,
                SlotState::Written | SlotState::Aside | SlotState::Freed => {
                    info.header.max_sequence > since
                }
                SlotState::Damaged => {
                    let (at, what) = (self.slots.offset(slot), format!("slot={slot}"));
                    return Err(self.damage(at, &what, "segment header is damaged"));
                }
            };
            if may_hold {
                found.push(self.slots.id(slot, info.header.incarnation));
            }
        }
        Ok(())
    }

    fn newer_entries(
        &self,
        segment: SegmentId,
        newer: &Newer,
        visit: &mut dyn FnMut(FooterEntry),
    ) -> Result<u64> {
        let mut looked_at = 0;
        let mut look = |entry: FooterEntry| {
            looked_at += 1;
            let is_wanted = entry.table == newer.table && entry.sequence > newer.since;
            if is_wanted && newer.buckets.contains(&bucket(hash(entry.key))) {
                visit(entry);
            }
        };
        let is_read = self.visit_buffered(segment, newer.table, &mut look)
            || match self.listed_header(segment) {
                None => true,
                Some(header) => self.visit_footer(&header, &newer.buckets, &mut look)?,
            };
        // A slot that was freed before the pin was taken may be erased by now.
        if is_read || self.listed_header(segment).is_none() {
            return Ok(looked_at);
        }
        let what = format!("slot={} incarnation={}", segment.slot, segment.incarnation);
        Err(self.damage(self.slots.offset(segment.slot), &what, "segment footer is damaged"))
    }

    /// The header of a segment that is on the device.
    fn listed_header(&self, segment: SegmentId) -> Option<super::header::SegmentHeader> {
        let info = self.slots.info(segment.slot);
        let is_there = info.state.is_written() || info.state == SlotState::Freed;
        (is_there && info.header.incarnation == segment.incarnation).then_some(info.header)
    }

    /// Visits the records of a table in a segment that is not written yet. False if it is.
    fn visit_buffered(
        &self,
        segment: SegmentId,
        table: TableId,
        visit: &mut dyn FnMut(FooterEntry),
    ) -> bool {
        let info = self.slots.info(segment.slot);
        let Some(buffer) = info.buffer.filter(|_| info.header.incarnation == segment.incarnation)
        else {
            return false;
        };
        for stream in &self.streams {
            // Open pages say what they hold; those that are begun later lie behind them.
            if let Some(open) = &*stream.lock() {
                if open.incarnation == segment.incarnation {
                    open.note_pages();
                }
            }
        }
        let base = self.slots.base(segment.slot);
        let mut start = PAGE;
        loop {
            // Page by page: who appends waits for this lock.
            let contents = buffer.0.read();
            if contents.incarnation != segment.incarnation {
                return false;
            }
            let Some(page) = contents.bytes.get(start..).and_then(PageHeader::decode) else {
                return true;
            };
            if page.incarnation != segment.incarnation || page.pages == 0 {
                return true;
            }
            let end = (start + usize::from(page.pages) * PAGE).min(contents.bytes.len());
            if page.table == table {
                visit_page(&contents.bytes[start..end], &page, &mut |offset, record| {
                    // One that is being put there now is newer than what was asked for.
                    let Ok(record) = record else { return };
                    let place = base.plus((start + offset) as u64);
                    let (key, sequence, tombstone) =
                        (record.key, record.sequence, record.tombstone);
                    let row_floats = record.row.len();
                    visit(FooterEntry { table, key, sequence, place, row_floats, tombstone });
                });
            }
            start = end;
        }
    }
}
