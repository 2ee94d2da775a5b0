//! The miss path: many records in one batch, each page read once.

use std::sync::atomic::Ordering;

use super::page::PageHeader;
use super::pins::Pin;
use super::record::{decode_record, record_bytes, RecordView, Unreadable, PAGE_HEADER};
use super::slots::SlotState;
use super::Shared;
use crate::device::{AlignedBuffer, Extent, EXTENT_BYTES_MAX, PAGE};
use crate::error::{Error, Result};
use crate::types::{Place, TableId};

/// Neighbouring pages are read together up to this: 16 KiB cost the device hardly more than 4.
const MERGED_BYTES_MAX: u64 = 16 << 10;

/// Instead of an incarnation, where none is known: in a slot whose header is damaged.
const ANY_INCARNATION: u64 = u64::MAX;

/// A record to read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Read {
    /// Where it is.
    pub(crate) place: Place,
    /// Length of the row as far as known; a record that is longer costs a second read.
    pub(crate) row_floats: usize,
    /// Given to the visitor.
    pub(crate) tag: u32,
    /// Table that it must belong to. Which key it has is for the visitor to see: a fingerprint in
    /// the index may have named another's.
    pub(crate) table: TableId,
}

/// What a batch has cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct ReadCounts {
    /// Reads given to the device.
    pub(crate) device_reads: u64,
    /// Bytes of them.
    pub(crate) bytes: u64,
}

type Visit<'a> = dyn FnMut(u32, Result<RecordView<'_>>) + 'a;

/// The reads that an extent serves.
struct Piece {
    first: u32,
    end: u32,
    incarnation: u64,
}

#[derive(Default)]
struct Plan {
    extents: Vec<Extent>,
    pieces: Vec<Piece>,
}

impl Plan {
    /// Adds read `index` of the sorted batch, whose pages are `start..end` of the file.
    fn add(&mut self, index: usize, start: u64, end: u64, incarnation: u64) {
        let last = self.extents.last_mut().zip(self.pieces.last_mut());
        if let Some((extent, piece)) = last {
            let extent_end = extent.offset + u64::from(extent.bytes);
            let merged_end = end.max(extent_end);
            let near = start <= extent_end && merged_end - extent.offset <= MERGED_BYTES_MAX;
            let follows = piece.incarnation == incarnation && piece.end as usize == index;
            if follows && (near || end <= extent_end) {
                extent.bytes = (merged_end - extent.offset) as u32;
                piece.end += 1;
                return;
            }
        }
        self.extents.push(Extent { offset: start, bytes: (end - start) as u32 });
        self.pieces.push(Piece { first: index as u32, end: index as u32 + 1, incarnation });
    }
}

impl Shared {
    pub(super) fn read(
        &self,
        pin: &Pin<'_>,
        reads: &mut [Read],
        visit: &mut Visit<'_>,
    ) -> ReadCounts {
        reads.sort_unstable_by_key(|read| read.place);
        let mut plan = Plan::default();
        let mut scratch = None;
        let mut at = 0;
        while at < reads.len() {
            let Some(slot) = self.slots.of(reads[at].place) else {
                visit(reads[at].tag, Err(self.damaged(&reads[at], "no segment has that place")));
                at += 1;
                continue;
            };
            let slot_end = self.slots.offset(slot) + self.slots.segment_bytes;
            let rest = reads[at..].iter().position(|read| read.place.offset() >= slot_end);
            let end = rest.map_or(reads.len(), |count| at + count);
            self.plan_slot(slot, reads, at..end, &mut plan, &mut scratch, visit);
            at = end;
        }
        let mut counts = self.read_plan(&plan, reads, visit, pin);
        counts.device_reads += plan.extents.len() as u64;
        counts.bytes += plan.extents.iter().map(|extent| u64::from(extent.bytes)).sum::<u64>();
        counts
    }

    /// Serves the reads of one slot from memory, or plans them for the device.
    fn plan_slot(
        &self,
        slot: u32,
        reads: &[Read],
        range: std::ops::Range<usize>,
        plan: &mut Plan,
        scratch: &mut Option<AlignedBuffer>,
        visit: &mut Visit<'_>,
    ) {
        let info = self.slots.info(slot);
        let incarnation = info.header.incarnation;
        let base = self.slots.offset(slot);
        let slot_end = base + self.slots.segment_bytes;
        for index in range {
            let read = &reads[index];
            let offset = read.place.offset();
            if let Some(buffer) = &info.buffer {
                let copied = buffer.copy(incarnation, (offset - base) as usize, scratch);
                if let (Some(bytes), Some(scratch)) = (copied, scratch.as_ref()) {
                    let read_back = self.check_record(&scratch[..bytes], read);
                    visit(read.tag, read_back.map_err(|cause| self.damaged(read, cause.text())));
                    continue;
                }
                // Written meanwhile.
            }
            let (start, end) = page_range(read);
            let known = info.state != SlotState::Damaged;
            let incarnation = if known { incarnation } else { ANY_INCARNATION };
            plan.add(index, start, end.min(slot_end), incarnation);
        }
    }

    fn read_plan(
        &self,
        plan: &Plan,
        reads: &[Read],
        visit: &mut Visit<'_>,
        pin: &Pin<'_>,
    ) -> ReadCounts {
        let mut longer = Vec::new();
        self.device.read_batch(&plan.extents, &mut |index, bytes| {
            let piece = &plan.pieces[index];
            let reads = &reads[piece.first as usize..piece.end as usize];
            match bytes {
                Ok(bytes) => {
                    let offset = plan.extents[index].offset;
                    self.visit_piece(bytes, offset, piece, reads, visit, &mut longer);
                }
                Err(error) => {
                    for read in reads {
                        let action = format!("read at offset {} of", read.place.offset());
                        let error = Error::io(&action, self.device.path(), &error);
                        visit(read.tag, Err(error));
                    }
                }
            }
        });
        let bytes = plan.extents.iter().map(|extent| u64::from(extent.bytes)).sum();
        self.bytes_read.fetch_add(bytes, Ordering::Relaxed);
        if longer.is_empty() {
            return ReadCounts::default();
        }
        self.read(pin, &mut longer, visit)
    }

    /// Visits the records of one extent. Reads that need more bytes go to `longer`.
    fn visit_piece(
        &self,
        bytes: &[u8],
        offset: u64,
        piece: &Piece,
        reads: &[Read],
        visit: &mut Visit<'_>,
        longer: &mut Vec<Read>,
    ) {
        let mut page_start = usize::MAX;
        let mut header = None;
        for read in reads {
            let at = (read.place.offset() - offset) as usize;
            if at / PAGE * PAGE != page_start {
                page_start = at / PAGE * PAGE;
                header = bytes.get(page_start..).and_then(PageHeader::decode);
            }
            match self.check_page(bytes, at, header.as_ref(), piece.incarnation, read) {
                Err(Cause::Longer(row_floats)) if row_floats > read.row_floats => {
                    longer.push(Read { row_floats, ..*read });
                }
                Err(cause) => visit(read.tag, Err(self.damaged(read, cause.text()))),
                Ok(record) => visit(read.tag, Ok(record)),
            }
        }
    }

    fn check_page<'a>(
        &self,
        bytes: &'a [u8],
        at: usize,
        header: Option<&PageHeader>,
        incarnation: u64,
        read: &Read,
    ) -> std::result::Result<RecordView<'a>, Cause> {
        let header = header.ok_or(Cause::Page)?;
        if incarnation != ANY_INCARNATION && header.incarnation != incarnation {
            return Err(Cause::Incarnation);
        }
        if header.table != read.table {
            return Err(Cause::Table);
        }
        let end = if header.pages > 1 { bytes.len() } else { at / PAGE * PAGE + PAGE };
        self.check_record(bytes.get(at..end.min(bytes.len())).ok_or(Cause::Record)?, read)
    }

    fn check_record<'a>(
        &self,
        bytes: &'a [u8],
        read: &Read,
    ) -> std::result::Result<RecordView<'a>, Cause> {
        match decode_record(bytes, read.table) {
            Ok(record) => Ok(record),
            Err(Unreadable::Longer(row_floats)) => Err(Cause::Longer(row_floats)),
            Err(Unreadable::Damaged) => Err(Cause::Record),
        }
    }

    fn damaged(&self, read: &Read, cause: &str) -> Error {
        Error::corruption(format!(
            "{cause}: file={} offset={} table={}: assign or remove its key, or restore the store \
             from a checkpoint",
            self.device.path().display(),
            read.place.offset(),
            read.table
        ))
    }

    pub(super) fn damage(&self, offset: u64, what: &str, cause: &str) -> Error {
        Error::corruption(format!(
            "{cause}: file={} offset={offset} {what}: restore the store from a checkpoint",
            self.device.path().display()
        ))
    }
}

/// Pages of the file that hold a record.
fn page_range(read: &Read) -> (u64, u64) {
    let page = PAGE as u64;
    let offset = read.place.offset();
    let start = offset / page * page;
    // Only a record right behind the page header can run on into further pages.
    if offset - start != PAGE_HEADER as u64 {
        return (start, start + page);
    }
    let end = offset + record_bytes(read.row_floats) as u64;
    (start, end.next_multiple_of(page).min(start + EXTENT_BYTES_MAX as u64))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cause {
    Page,
    Incarnation,
    Table,
    Record,
    Longer(usize),
}

impl Cause {
    fn text(self) -> &'static str {
        match self {
            Self::Page => "page header is damaged",
            Self::Incarnation => "page is of another filling of its slot",
            Self::Table => "page is of another table",
            Self::Record => "record checksum mismatch",
            Self::Longer(_) => "record runs past its pages",
        }
    }
}
