//! The miss path: many records in one batch, each page read once. A batch of any length takes
//! memory for what is at the device alone.

use std::sync::atomic::Ordering;

use super::page::PageHeader;
use super::pins::Pin;
use super::record::{decode_record, record_bytes, RecordView, Unreadable, PAGE_HEADER};
use super::slots::{SlotInfo, SlotState};
use super::volume::Volume;
use crate::device::{AlignedBuffer, Extent, Reads, EXTENT_BYTES_MAX, PAGE};
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
    /// Table that it must belong to. Which key it has is for the visitor to see: a fingerprint in
    /// the index may have named another's.
    pub(crate) table: TableId,
}

/// What a batch has cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct ReadCounts {
    /// Reads given to the device.
    pub(crate) device_reads: u64,
    /// Of them, those of the slower disk.
    pub(crate) cold_reads: u64,
    /// Bytes of them.
    pub(crate) bytes: u64,
}

impl std::ops::AddAssign for ReadCounts {
    fn add_assign(&mut self, more: Self) {
        self.device_reads += more.device_reads;
        self.cold_reads += more.cold_reads;
        self.bytes += more.bytes;
    }
}

/// Told which record of a batch was read, and what it is.
type Visit<'a> = dyn FnMut(usize, Result<RecordView<'_>>) + 'a;

/// Records `first..end` of a batch, which one extent holds.
struct Piece {
    first: usize,
    end: usize,
    incarnation: u64,
}

/// The slot that the next records lie in.
struct Segment {
    slot: u32,
    start: u64,
    info: SlotInfo,
}

/// A batch on its way through the device: extents are planned as the device has room for them.
struct Batch<'a> {
    log: &'a Volume,
    wants: &'a mut dyn FnMut(usize) -> bool,
    read: &'a dyn Fn(usize) -> Read,
    visit: &'a mut Visit<'a>,
    count: usize,
    next: usize,
    segment: Option<Segment>,
    /// Planned, and not yet the device's: the next record may lie in it too.
    open: Option<(Extent, Piece)>,
    /// At the device, by number; and numbers that are free.
    pieces: Vec<Piece>,
    free: Vec<u32>,
    scratch: Option<AlignedBuffer>,
    /// Records that are longer than was thought.
    longer: Vec<(usize, Read)>,
    counts: ReadCounts,
}

impl Volume {
    /// Reads those of `count` records that `wants` says, of which `read` tells the `n`-th, in the
    /// order of their places.
    #[allow(clippy::only_used_in_recursion, reason = "the pin shows that the places stay")]
    pub(super) fn read(
        &self,
        pin: &Pin<'_>,
        count: usize,
        wants: &mut dyn FnMut(usize) -> bool,
        read: &dyn Fn(usize) -> Read,
        visit: &mut Visit<'_>,
    ) -> ReadCounts {
        let mut batch = Batch {
            log: self,
            wants: &mut |n| wants(n),
            read,
            visit: &mut |n, record| visit(n, record),
            count,
            next: 0,
            segment: None,
            open: None,
            pieces: Vec::new(),
            free: Vec::new(),
            scratch: None,
            longer: Vec::new(),
            counts: ReadCounts::default(),
        };
        self.device.read_batch(&mut batch);
        let (mut longer, mut counts) = (batch.longer, batch.counts);
        self.bytes_read.fetch_add(counts.bytes, Ordering::Relaxed);
        if !longer.is_empty() {
            longer.sort_unstable_by_key(|(_, read)| read.place);
            let visit_longer = &mut |n: usize, record: Result<RecordView<'_>>| {
                visit(longer[n].0, record);
            };
            let more = self.read(pin, longer.len(), &mut |_| true, &|n| longer[n].1, visit_longer);
            counts += more;
        }
        counts
    }
}

impl Batch<'_> {
    /// Serves record `n` from memory, or says which pages hold it, and of which filling.
    fn locate(&mut self, n: usize, read: &Read) -> Option<(u64, u64, u64)> {
        let slots = &self.log.slots;
        let Some(slot) = slots.of(read.place) else {
            (self.visit)(n, Err(self.log.damaged(read, "no segment has that place")));
            return None;
        };
        let segment = match self.segment.take().filter(|segment| segment.slot == slot) {
            Some(segment) => segment,
            None => Segment { slot, start: slots.offset(slot), info: slots.info(slot) },
        };
        slots.note_reads(slot, 1);
        let segment = self.segment.insert(segment);
        let incarnation = segment.info.header.incarnation;
        if let Some(buffer) = &segment.info.buffer {
            let offset = (read.place.offset() - segment.start) as usize;
            let copied = buffer.copy(incarnation, offset, &mut self.scratch);
            if let (Some(bytes), Some(scratch)) = (copied, self.scratch.as_ref()) {
                let record = check_record(&scratch[..bytes], read);
                (self.visit)(n, record.map_err(|cause| self.log.damaged(read, cause.text())));
                return None;
            }
            // Written meanwhile.
        }
        let (start, end) = page_range(read);
        let is_known = segment.info.state != SlotState::Damaged;
        let incarnation = if is_known { incarnation } else { ANY_INCARNATION };
        Some((start, end.min(segment.start + slots.segment_bytes), incarnation))
    }

    /// Takes record `n` into the open extent, if that has its pages or may grow to them.
    fn join(&mut self, n: usize, start: u64, end: u64, incarnation: u64) -> bool {
        let Some((extent, piece)) = &mut self.open else { return false };
        let extent_end = extent.offset + u64::from(extent.bytes);
        let merged_end = end.max(extent_end);
        let is_near = start <= extent_end && merged_end - extent.offset <= MERGED_BYTES_MAX;
        let follows = piece.incarnation == incarnation && piece.end == n;
        let joins = follows && (is_near || end <= extent_end);
        if joins {
            extent.bytes = (merged_end - extent.offset) as u32;
            piece.end += 1;
        }
        joins
    }

    /// Numbers an extent, which goes to the device.
    fn send(&mut self, (mut extent, piece): (Extent, Piece)) -> Extent {
        self.counts.device_reads += 1;
        self.counts.cold_reads += u64::from(self.log.anchor.is_some());
        self.counts.bytes += u64::from(extent.bytes);
        extent.number = match self.free.pop() {
            Some(number) => {
                self.pieces[number as usize] = piece;
                number
            }
            None => {
                self.pieces.push(piece);
                self.pieces.len() as u32 - 1
            }
        };
        extent
    }
}

impl Reads for Batch<'_> {
    fn next(&mut self) -> Option<Extent> {
        while self.next < self.count {
            let n = self.next;
            self.next += 1;
            if !(self.wants)(n) {
                continue;
            }
            let read = (self.read)(n);
            let Some((start, end, incarnation)) = self.locate(n, &read) else { continue };
            if self.join(n, start, end, incarnation) {
                continue;
            }
            let extent = Extent { offset: start, bytes: (end - start) as u32, number: 0 };
            let piece = Piece { first: n, end: n + 1, incarnation };
            if let Some(whole) = self.open.replace((extent, piece)) {
                return Some(self.send(whole));
            }
        }
        self.open.take().map(|last| self.send(last))
    }

    fn done(&mut self, number: u32, bytes: std::io::Result<&[u8]>) {
        let gone = Piece { first: 0, end: 0, incarnation: 0 };
        let piece = std::mem::replace(&mut self.pieces[number as usize], gone);
        self.free.push(number);
        match bytes {
            Ok(bytes) => self.visit_piece(bytes, &piece),
            Err(error) => {
                for n in piece.first..piece.end {
                    let offset = (self.read)(n).place.offset();
                    let action = format!("read at offset {offset} of");
                    (self.visit)(n, Err(Error::io(&action, self.log.device.path(), &error)));
                }
            }
        }
    }
}

impl Batch<'_> {
    /// Visits the records of one extent.
    fn visit_piece(&mut self, bytes: &[u8], piece: &Piece) {
        let page = PAGE as u64;
        let offset = (self.read)(piece.first).place.offset() / page * page;
        let mut page_start = usize::MAX;
        let mut header = None;
        for n in piece.first..piece.end {
            let read = (self.read)(n);
            let at = (read.place.offset() - offset) as usize;
            if at / PAGE * PAGE != page_start {
                page_start = at / PAGE * PAGE;
                header = bytes.get(page_start..).and_then(PageHeader::decode);
            }
            match check_page(bytes, at, header.as_ref(), piece.incarnation, &read) {
                Err(Cause::Longer(row_floats)) if row_floats > read.row_floats => {
                    self.longer.push((n, Read { row_floats, ..read }));
                }
                Err(cause) => (self.visit)(n, Err(self.log.damaged(&read, cause.text()))),
                Ok(record) => (self.visit)(n, Ok(record)),
            }
        }
    }
}

fn check_page<'a>(
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
    check_record(bytes.get(at..end.min(bytes.len())).ok_or(Cause::Record)?, read)
}

fn check_record<'a>(bytes: &'a [u8], read: &Read) -> std::result::Result<RecordView<'a>, Cause> {
    match decode_record(bytes, read.table) {
        Ok(record) => Ok(record),
        Err(Unreadable::Longer(row_floats)) => Err(Cause::Longer(row_floats)),
        Err(Unreadable::Damaged) => Err(Cause::Record),
    }
}

impl Volume {
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
