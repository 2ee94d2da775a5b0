//! Whole segments: all records for compaction, footers for recovery.

use std::ops::Range;
use std::sync::atomic::Ordering;

use super::footer::{FooterEntry, FooterHead};
use super::header::SegmentHeader;
use super::page::{visit_page, PageHeader};
use super::record::RecordView;
use super::slots::{SegmentId, SlotState};
use super::Shared;
use crate::device::{AlignedBuffer, PAGE};
use crate::error::{Error, Result};
use crate::types::{Place, TableId, BUCKETS};

/// One read of a scan: the device's full bandwidth from here on.
const SCAN_BYTES: usize = 1 << 20;

type VisitRecord<'a> = dyn FnMut(Place, TableId, Result<RecordView<'_>>) + 'a;

impl Shared {
    pub(super) fn scan(&self, segment: SegmentId, visit: &mut VisitRecord<'_>) -> Result<()> {
        let _pin = self.pins.pin();
        let found = (segment.slot < self.slots.count()).then(|| self.slots.info(segment.slot));
        let header = match found {
            Some(info)
                if info.state.is_written() && info.header.incarnation == segment.incarnation =>
            {
                info.header
            }
            _ => {
                return Err(Error::bad_input(format!(
                    "segment {segment:?} is not written, or was freed: ask for a victim again"
                )))
            }
        };
        let base = self.slots.offset(segment.slot);
        let end = header.footer_offset() as usize;
        let mut buffer = AlignedBuffer::new(SCAN_BYTES.min(end));
        let mut start = PAGE;
        while start < end {
            let bytes = buffer.len().min(end - start);
            self.read_at(&mut buffer[..bytes], base + start as u64)?;
            let at = base + start as u64;
            start += self.visit_pages(&buffer[..bytes], at, start + bytes == end, &header, visit);
        }
        Ok(())
    }

    /// Visits the pages in `bytes`; gives the bytes that are done, the rest is a large record that
    /// goes on.
    fn visit_pages(
        &self,
        bytes: &[u8],
        offset: u64,
        is_last: bool,
        segment: &SegmentHeader,
        visit: &mut VisitRecord<'_>,
    ) -> usize {
        let mut at = 0;
        while at < bytes.len() {
            let page = PageHeader::decode(&bytes[at..])
                .filter(|page| page.incarnation == segment.incarnation && page.pages > 0);
            let page_offset = offset + at as u64;
            let Some(page) = page else {
                let error = self.damage(page_offset, "table=unknown", "page header is damaged");
                visit(Place::at(page_offset), 0, Err(error));
                at += PAGE;
                continue;
            };
            let end = at + usize::from(page.pages) * PAGE;
            if end > bytes.len() && at > 0 && !is_last {
                break;
            }
            let end = end.min(bytes.len());
            visit_page(&bytes[at..end], &page, &mut |within, read| {
                let record = page_offset + within as u64;
                let read = read.map_err(|_| {
                    let what = format!("table={}", page.table);
                    self.damage(record, &what, "record checksum mismatch")
                });
                visit(Place::at(record), page.table, read);
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
            (SegmentId { incarnation, slot }, entries)
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
        let SegmentId { slot, incarnation } = segment;
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
    fn visit_footer(
        &self,
        segment: &SegmentHeader,
        buckets: &Range<u32>,
        visit: &mut dyn FnMut(FooterEntry),
    ) -> Result<bool> {
        let base = self.slots.offset(segment.slot);
        let footer = base + segment.footer_offset();
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
