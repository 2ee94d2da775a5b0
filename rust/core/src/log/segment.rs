//! A segment while it is filled: an aligned buffer, and one open page for each table.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::RwLock;

use super::footer::{footer_bytes_max, FooterEntry};
use super::page::{visit_page, PageHeader, PAGE_ROOM};
use super::record::{
    charge, put_record, record_bytes, record_pages, split_length, Record, PAGE_HEADER,
    RECORD_HEADER,
};
use super::slots::SegmentId;
use crate::device::{AlignedBuffer, PAGE};
use crate::layout::Layout;
use crate::types::{Place, Sequence, TableId};

/// Memory of one segment. Appender, writer thread and readers share it; it goes through many
/// segments, so a reader must compare the incarnation.
pub(super) struct SegmentBuffer(pub(super) RwLock<Contents>);

pub(super) struct Contents {
    pub(super) incarnation: u64,
    pub(super) bytes: AlignedBuffer,
}

impl SegmentBuffer {
    pub(super) fn new(segment_bytes: usize) -> Self {
        let bytes = AlignedBuffer::new(segment_bytes);
        Self(RwLock::new(Contents { incarnation: 0, bytes }))
    }

    /// Copies the record at `offset` to the front of `scratch`; none if the buffer has gone on to
    /// another segment. The caller checks what was copied.
    pub(super) fn copy(
        &self,
        incarnation: u64,
        offset: usize,
        scratch: &mut Option<AlignedBuffer>,
    ) -> Option<usize> {
        let contents = self.0.read();
        if contents.incarnation != incarnation {
            return None;
        }
        let from = &contents.bytes[offset.min(contents.bytes.len())..];
        let (row_floats, _) = match from.get(28..RECORD_HEADER) {
            Some(word) => split_length(super::bytes::u32_at(word, 0)),
            None => (0, false),
        };
        let bytes = record_bytes(row_floats.min(super::ROW_FLOATS_MAX)).min(from.len());
        if scratch.as_ref().is_none_or(|scratch| scratch.len() < bytes) {
            *scratch = Some(AlignedBuffer::new(bytes));
        }
        if let Some(scratch) = scratch {
            scratch[..bytes].copy_from_slice(&from[..bytes]);
        }
        Some(bytes)
    }
}

struct OpenPage {
    /// Index of the page in the segment; the header page is 0.
    page: u32,
    used: usize,
    count: u16,
    /// Of its rows; none while it has tombstones only.
    row_floats: Option<usize>,
}

/// A segment that takes records; owned by its stream's lock.
pub(super) struct OpenSegment {
    pub(super) slot: u32,
    pub(super) incarnation: u64,
    pub(super) buffer: Arc<SegmentBuffer>,
    pub(super) data_pages: u32,
    pub(super) data_bytes: u64,
    pub(super) max_sequence: Sequence,
    base: Place,
    segment_bytes: usize,
    entries: usize,
    open: HashMap<TableId, OpenPage>,
}

impl OpenSegment {
    pub(super) fn new(
        id: SegmentId,
        buffer: Arc<SegmentBuffer>,
        base: Place,
        segment_bytes: u64,
    ) -> Self {
        buffer.0.write().incarnation = id.incarnation;
        Self {
            slot: id.slot,
            incarnation: id.incarnation,
            buffer,
            data_pages: 0,
            data_bytes: 0,
            max_sequence: 0,
            base,
            segment_bytes: segment_bytes as usize,
            entries: 0,
            open: HashMap::new(),
        }
    }

    /// Adds a record; none if the segment has no room for it.
    pub(super) fn put(
        &mut self,
        table: TableId,
        record: &Record<'_>,
        tombstone: bool,
    ) -> Option<Place> {
        let row_floats = record.row.len();
        let offset = if record_pages(row_floats) > 1 {
            self.large_page(table, row_floats)?
        } else {
            self.room(table, row_floats, tombstone)?
        };
        let mut contents = self.buffer.0.write();
        put_record(&mut contents.bytes[offset..], table, record, tombstone);
        drop(contents);
        self.entries += 1;
        self.data_bytes += charge(row_floats);
        self.max_sequence = self.max_sequence.max(record.sequence);
        Some(self.base.plus(offset as u64))
    }

    /// Whether the segment stays within its slot with `pages` more pages and one more entry.
    fn fits(&self, pages: usize) -> bool {
        let pages = self.data_pages as usize + pages;
        let footer = footer_bytes_max(self.entries + 1, pages).next_multiple_of(PAGE);
        (1 + pages) * PAGE + footer <= self.segment_bytes
    }

    /// Offset for a record in the open page of its table, or in a new one.
    fn room(&mut self, table: TableId, row_floats: usize, tombstone: bool) -> Option<usize> {
        let bytes = record_bytes(row_floats);
        if let Some(open) = self.open.get(&table) {
            let same = tombstone || open.row_floats.is_none_or(|floats| floats == row_floats);
            if !same || open.used + bytes > PAGE_ROOM {
                self.close_page(table);
            }
        }
        if !self.fits(usize::from(!self.open.contains_key(&table))) {
            return None;
        }
        if !self.open.contains_key(&table) {
            let page = self.take_pages(1);
            self.open.insert(table, OpenPage { page, used: 0, count: 0, row_floats: None });
        }
        let open = self.open.get_mut(&table)?;
        let offset = open.page as usize * PAGE + PAGE_HEADER + open.used;
        open.used += bytes;
        open.count += 1;
        if !tombstone {
            open.row_floats = Some(row_floats);
        }
        Some(offset)
    }

    fn large_page(&mut self, table: TableId, row_floats: usize) -> Option<usize> {
        let pages = record_pages(row_floats);
        if !self.fits(pages) {
            return None;
        }
        let page = self.take_pages(pages);
        let record_bytes = record_bytes(row_floats) as u32;
        self.put_page_header(table, page, record_bytes, 1, pages as u16);
        Some(page as usize * PAGE + PAGE_HEADER)
    }

    /// Takes zeroed pages at the end of the segment; gives the index of the first.
    fn take_pages(&mut self, pages: usize) -> u32 {
        let page = 1 + self.data_pages;
        self.data_pages += pages as u32;
        let start = page as usize * PAGE;
        // The buffer has held other segments.
        self.buffer.0.write().bytes[start..start + pages * PAGE].fill(0);
        page
    }

    fn put_page_header(&self, table: TableId, page: u32, bytes: u32, count: u16, pages: u16) {
        let incarnation = self.incarnation;
        let layout = Layout::Float32;
        let header = PageHeader { table, incarnation, record_bytes: bytes, count, pages, layout };
        header.put(&mut self.buffer.0.write().bytes[page as usize * PAGE..]);
    }

    fn close_page(&mut self, table: TableId) {
        if let Some(open) = self.open.remove(&table) {
            self.put_page_header(table, open.page, open.used as u32, open.count, 1);
        }
    }

    /// Writes into every open page what it holds so far.
    pub(super) fn note_pages(&self) {
        for (&table, open) in &self.open {
            self.put_page_header(table, open.page, open.used as u32, open.count, 1);
        }
    }

    /// Closes all pages: nothing is added after.
    pub(super) fn close_pages(&mut self) {
        let tables: Vec<TableId> = self.open.keys().copied().collect();
        for table in tables {
            self.close_page(table);
        }
    }
}

/// Why the pages of a segment do not verify: the offset in the segment of what is damaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct DamagedAt(pub(super) usize);

/// Entries of all records in `bytes`, the pages of a segment from its header page on.
pub(super) fn collect_entries(
    bytes: &[u8],
    incarnation: u64,
    base: Place,
) -> Result<Vec<FooterEntry>, DamagedAt> {
    let mut entries = Vec::new();
    let mut start = PAGE;
    while start < bytes.len() {
        let Some(header) = PageHeader::decode(&bytes[start..])
            .filter(|header| header.incarnation == incarnation && header.pages > 0)
        else {
            return Err(DamagedAt(start));
        };
        let end = start + usize::from(header.pages) * PAGE;
        let Some(pages) = bytes.get(start..end) else { return Err(DamagedAt(start)) };
        let mut damaged = None;
        visit_page(pages, &header, &mut |offset, read| match read {
            Ok(record) => entries.push(FooterEntry {
                table: header.table,
                key: record.key,
                sequence: record.sequence,
                place: base.plus((start + offset) as u64),
                row_floats: record.row.len(),
                tombstone: record.tombstone,
            }),
            Err(_) => damaged = Some(start + offset),
        });
        if let Some(offset) = damaged {
            return Err(DamagedAt(offset));
        }
        start = end;
    }
    Ok(entries)
}
