//! A data page: 32 bytes of header, then records of one table, one layout and one row length.

use super::bytes::{put_u16, put_u32, put_u64, u16_at, u32_at, u64_at};
use super::record::{decode_record, record_bytes, RecordView, Unreadable, PAGE_HEADER};
use crate::device::PAGE;
use crate::layout::Layout;
use crate::types::TableId;

const MAGIC: u32 = u32::from_le_bytes(*b"HPPG");
const CRC: usize = 28;

/// Bytes for records in a page.
pub(super) const PAGE_ROOM: usize = PAGE - PAGE_HEADER;

/// See `docs/format.md`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PageHeader {
    pub(super) table: TableId,
    pub(super) incarnation: u64,
    pub(super) record_bytes: u32,
    pub(super) count: u16,
    pub(super) pages: u16,
    /// Of its rows: what their words hold.
    pub(super) layout: Layout,
}

impl PageHeader {
    pub(super) fn put(&self, bytes: &mut [u8]) {
        put_u32(bytes, 0, MAGIC);
        put_u32(bytes, 4, self.table);
        put_u64(bytes, 8, self.incarnation);
        put_u32(bytes, 16, self.record_bytes);
        put_u16(bytes, 20, self.count);
        put_u16(bytes, 22, self.pages);
        put_u32(bytes, 24, self.layout.id());
        let crc = crc32c::crc32c(&bytes[..CRC]);
        put_u32(bytes, CRC, crc);
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        if bytes.len() < PAGE_HEADER
            || u32_at(bytes, 0) != MAGIC
            || u32_at(bytes, CRC) != crc32c::crc32c(&bytes[..CRC])
        {
            return None;
        }
        Some(Self {
            table: u32_at(bytes, 4),
            incarnation: u64_at(bytes, 8),
            record_bytes: u32_at(bytes, 16),
            count: u16_at(bytes, 20),
            pages: u16_at(bytes, 22),
            // The manifest names it too, and an unknown one fails the open there.
            layout: Layout::try_from(u32_at(bytes, 24)).ok()?,
        })
    }
}

/// Visits each record of a page, or of the pages of a large record, with its offset in `bytes`.
/// A damaged record ends the page, for its length is not known.
pub(super) fn visit_page(
    bytes: &[u8],
    header: &PageHeader,
    visit: &mut dyn FnMut(usize, Result<RecordView<'_>, Unreadable>),
) {
    let end = (PAGE_HEADER + header.record_bytes as usize).min(bytes.len());
    let mut offset = PAGE_HEADER;
    for _ in 0..header.count {
        let read = decode_record(&bytes[offset.min(end)..end], header.table);
        let row_floats = read.as_ref().map(|record| record.row.len());
        visit(offset, read);
        let Ok(row_floats) = row_floats else { return };
        offset += record_bytes(row_floats);
    }
}
