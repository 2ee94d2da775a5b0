//! Whole segments: all records for compaction, footers for recovery.

use std::ops::Range;
use std::sync::atomic::Ordering;

use super::footer::{FooterEntry, FooterHead};
use super::header::SegmentHeader;
use super::page::{visit_page, PageHeader};
use super::reader::ReadCounts;
use super::record::RecordView;
use super::slots::{SegmentId, SlotState};
use super::volume::Volume;
use crate::device::{AlignedBuffer, PAGE};
use crate::error::{Error, Result};
use crate::types::{Place, TableId, BUCKETS};

/// One read of a scan: larger ones are hardly faster, and hold up the reads of calls.
pub(crate) const SCAN_BYTES: usize = 256 << 10;

/// What was read of a segment, and whether it is what was written.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Verified {
    pub(crate) is_sound: bool,
    /// Records and tombstones that are sound.
    pub(crate) records: u64,
    /// Length, header and footer included.
    pub(crate) bytes: u64,
    /// Where it begins in the file.
    pub(crate) offset: u64,
    /// Reads of its records.
    pub(crate) counts: ReadCounts,
}

type VisitRecord<'a> = dyn FnMut(Place, TableId, Result<RecordView<'_>>) + 'a;

impl Volume {
    pub(super) fn scan(
        &self,
        segment: SegmentId,
        visit: &mut VisitRecord<'_>,
    ) -> Result<ReadCounts> {
        let _pin = self.pins.pin();
        let Some(header) = self.written_header(segment) else {
            return Err(Error::bad_input(format!(
                "segment {segment:?} is not written, or was freed: ask for a victim again"
            )));
        };
        self.scan_pages(&header, visit)
    }

    /// The header of a segment that is on the device, and was not freed.
    fn written_header(&self, segment: SegmentId) -> Option<SegmentHeader> {
        let SegmentId { slot, incarnation, .. } = segment;
        let info = (slot < self.slots.count()).then(|| self.slots.info(slot))?;
        (info.state.is_written() && info.header.incarnation == incarnation).then_some(info.header)
    }

    /// Visits all records of a segment; its slot is pinned.
    fn scan_pages(
        &self,
        segment: &SegmentHeader,
        visit: &mut VisitRecord<'_>,
    ) -> Result<ReadCounts> {
        let base = self.slots.base(segment.slot);
        let end = segment.footer_offset() as usize;
        let mut buffer = AlignedBuffer::new(SCAN_BYTES.min(end));
        let mut start = PAGE;
        let mut counts = ReadCounts::default();
        while start < end {
            let bytes = buffer.len().min(end - start);
            let at = base.plus(start as u64);
            self.read_at(&mut buffer[..bytes], at.offset())?;
            counts.device_reads += 1;
            counts.bytes += bytes as u64;
            start += self.visit_pages(&buffer[..bytes], at, start + bytes == end, segment, visit);
        }
        Ok(counts)
    }

    /// Reads all of a segment, header and footer too, and says whether it is what was written.
    /// `visit` is told every record, and what is damaged of the pages. `None` if it was freed.
    pub(super) fn verify(
        &self,
        segment: SegmentId,
        visit: &mut VisitRecord<'_>,
    ) -> Option<Verified> {
        let _pin = self.pins.pin();
        let header = self.written_header(segment)?;
        let (mut records, mut is_sound) = (0, true);
        let counts = self.scan_pages(&header, &mut |place, table, record| {
            match record {
                Ok(_) => records += 1,
                Err(_) => is_sound = false,
            }
            visit(place, table, record);
        });
        is_sound &= records == u64::from(header.entries);
        is_sound &= self.is_header_sound(&header).unwrap_or(false);
        is_sound &= self.visit_footer(&header, &(0..BUCKETS), &mut |_| {}).unwrap_or(false);
        let is_readable = counts.is_ok();
        let bytes = header.written_bytes();
        let offset = self.slots.offset(header.slot);
        let is_sound = is_sound && is_readable;
        Some(Verified { is_sound, records, bytes, offset, counts: counts.unwrap_or_default() })
    }

    fn is_header_sound(&self, header: &SegmentHeader) -> Result<bool> {
        let mut page = AlignedBuffer::new(PAGE);
        self.read_at(&mut page, self.slots.offset(header.slot))?;
        Ok(SegmentHeader::decode(&page).as_ref() == Some(header))
    }

    /// The first written segment in slot `first` or behind it, and its slot.
    pub(super) fn written_from(&self, first: u32) -> Option<(u32, SegmentId)> {
        (first..self.slots.count()).find_map(|slot| {
            let info = self.slots.info(slot);
            let id = self.slots.id(slot, info.header.incarnation);
            info.state.is_written().then_some((slot, id))
        })
    }

    /// Visits the pages in `bytes`; gives the bytes that are done, the rest is a large record that
    /// goes on.
    fn visit_pages(
        &self,
        bytes: &[u8],
        start: Place,
        is_last: bool,
        segment: &SegmentHeader,
        visit: &mut VisitRecord<'_>,
    ) -> usize {
        let mut at = 0;
        while at < bytes.len() {
            let page = PageHeader::decode(&bytes[at..])
                .filter(|page| page.incarnation == segment.incarnation && page.pages > 0);
            let page_place = start.plus(at as u64);
            let Some(page) = page else {
                let error =
                    self.damage(page_place.offset(), "table=unknown", "page header is damaged");
                visit(page_place, 0, Err(error));
                at += PAGE;
                continue;
            };
            let end = at + usize::from(page.pages) * PAGE;
            if end > bytes.len() && at > 0 && !is_last {
                break;
            }
            let end = end.min(bytes.len());
            visit_page(&bytes[at..end], &page, &mut |within, read| {
                let record = page_place.plus(within as u64);
                let read = read.map_err(|_| {
                    let what = format!("table={}", page.table);
                    self.damage(record.offset(), &what, "record checksum mismatch")
                });
                visit(record, page.table, read);
            });
            at = end;
        }
        at
    }

    /// Reads all of `buffer`; what lies past the end of the file reads as zeros.
    pub(super) fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        let read = self.device.read_at(buffer, offset).map_err(|e| {
            Error::io(&format!("read at offset {offset} of"), self.device.path(), &e)
        })?;
        buffer[read..].fill(0);
        self.bytes_read.fetch_add(read as u64, Ordering::Relaxed);
        Ok(())
    }

    /// All written segments in growing incarnation, with how many entries each has.
    pub(super) fn segments(&self) -> Result<Vec<(SegmentId, u32)>> {
        let is_damaged = |state| state == SlotState::Damaged;
        if let Some((slot, _)) = self.slots.each().find(|(_, info)| is_damaged(info.state)) {
            let what = format!("slot={slot}");
            return Err(self.damage(self.slots.offset(slot), &what, "segment header is damaged"));
        }
        let written = self.slots.written().into_iter().map(|header| {
            let SegmentHeader { incarnation, slot, entries, .. } = header;
            (self.slots.id(slot, incarnation), entries)
        });
        Ok(written.collect())
    }

    pub(super) fn entries(
        &self,
        buckets: &Range<u32>,
        visit: &mut dyn FnMut(FooterEntry),
    ) -> Result<()> {
        let _pin = self.pins.pin();
        self.segments()?;
        // A segment that is freed meanwhile keeps its footer as long as the pin is held.
        let mut written = self.slots.written().into_iter();
        written.try_for_each(|header| self.visit_checked(&header, buckets, visit))
    }

    pub(super) fn entries_of(
        &self,
        segment: SegmentId,
        buckets: &Range<u32>,
        visit: &mut dyn FnMut(FooterEntry),
    ) -> Result<()> {
        let _pin = self.pins.pin();
        let SegmentId { slot, incarnation, .. } = segment;
        let info = self.slots.info(slot);
        let is_there = info.state.is_written() && info.header.incarnation == incarnation;
        if is_there {
            return self.visit_checked(&info.header, buckets, visit);
        }
        let what = format!("slot={slot} incarnation={incarnation}");
        Err(self.damage(self.slots.offset(slot), &what, "segment was freed"))
    }

    fn visit_checked(
        &self,
        header: &SegmentHeader,
        buckets: &Range<u32>,
        visit: &mut dyn FnMut(FooterEntry),
    ) -> Result<()> {
        if self.visit_footer(header, buckets, visit)? {
            return Ok(());
        }
        let offset = self.slots.offset(header.slot) + header.footer_offset();
        let what = format!("slot={} incarnation={}", header.slot, header.incarnation);
        Err(self.damage(offset, &what, "segment footer is damaged"))
    }

    pub(super) fn entry_at(&self, place: Place, bucket: u32) -> Result<Option<FooterEntry>> {
        let _pin = self.pins.pin();
        let Some(slot) = self.slots.of(place) else { return Ok(None) };
        let info = self.slots.info(slot);
        if !info.state.is_written() && info.state != SlotState::Freed {
            return Ok(None);
        }
        let mut found = None;
        let is_whole = self.visit_footer(&info.header, &(bucket..bucket + 1), &mut |entry| {
            if entry.place == place {
                found = Some(entry);
            }
        })?;
        Ok(found.filter(|_| is_whole))
    }

    /// False if the footer is damaged; then some entries may have been visited.
    pub(super) fn visit_footer(
        &self,
        segment: &SegmentHeader,
        buckets: &Range<u32>,
        visit: &mut dyn FnMut(FooterEntry),
    ) -> Result<bool> {
        let base = self.slots.base(segment.slot);
        let footer = base.offset() + segment.footer_offset();
        let footer_bytes = segment.footer_bytes as usize;
        // One read where most of it is wanted.
        let is_most = buckets.len() > BUCKETS as usize / 2;
        let first = if is_most { footer_bytes } else { PAGE.min(footer_bytes) };
        let buffer = &mut AlignedBuffer::new(first.next_multiple_of(PAGE));
        self.read_part(buffer, footer, 0..first)?;
        let Some(head_bytes) = FooterHead::bytes(buffer).filter(|&bytes| bytes <= footer_bytes)
        else {
            return Ok(false);
        };
        if head_bytes > first {
            self.read_part(buffer, footer, 0..head_bytes)?;
        }
        let Some(head) = FooterHead::decode(buffer, segment.incarnation, base) else {
            return Ok(false);
        };
        let range = head.range(buckets);
        if head.entries() != segment.entries as usize || range.end > footer_bytes {
            return Ok(false);
        }
        let start = match range.end <= first {
            true => range.start,
            false => self.read_part(buffer, footer, range.clone())?,
        };
        Ok(head.visit(buckets, &buffer[start..start + range.len()], visit))
    }

    /// Reads a byte range of the footer at `footer`; gives where it begins in the buffer.
    fn read_part(
        &self,
        buffer: &mut AlignedBuffer,
        footer: u64,
        range: Range<usize>,
    ) -> Result<usize> {
        let first = range.start / PAGE * PAGE;
        let bytes = range.end.next_multiple_of(PAGE) - first;
        if buffer.len() < bytes {
            *buffer = AlignedBuffer::new(bytes);
        }
        self.read_at(&mut buffer[..bytes], footer + first as u64)?;
        Ok(range.start - first)
    }
}
