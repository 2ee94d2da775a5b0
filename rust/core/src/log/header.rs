//! The two 64-byte headers: of the file (two copies in one page) and of a segment.

use super::bytes::{put_u32, put_u64, u32_at, u64_at};
use crate::device::PAGE;

const FILE_MAGIC: u64 = u64::from_le_bytes(*b"HPSROWS1");
const SEGMENT_MAGIC: u64 = u64::from_le_bytes(*b"HPSSEGM1");
const HEADER_BYTES: usize = 64;
const CRC: usize = 60;
/// Where the second copy of the file header begins: in another sector than the first.
const SECOND_COPY: usize = PAGE / 2;

/// Version of the log file that this code reads and writes.
pub(super) const VERSION: u32 = 2;

/// See `docs/format.md`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FileHeader {
    pub(super) version: u32,
    pub(super) segment_bytes: u64,
    pub(super) generation: u64,
    pub(super) synced: u64,
    pub(super) revision: u64,
}

impl FileHeader {
    /// Writes this header over the older copy of `page`.
    pub(super) fn put(&self, page: &mut [u8]) {
        let start = if self.revision % 2 == 0 { 0 } else { SECOND_COPY };
        let bytes = &mut page[start..start + HEADER_BYTES];
        bytes.fill(0);
        put_u64(bytes, 0, FILE_MAGIC);
        put_u32(bytes, 8, self.version);
        put_u64(bytes, 16, self.segment_bytes);
        put_u64(bytes, 24, self.generation);
        put_u64(bytes, 32, self.synced);
        put_u64(bytes, 40, self.revision);
        close(bytes);
    }

    /// The newer of the valid copies.
    pub(super) fn newest(page: &[u8]) -> Option<Self> {
        [0, SECOND_COPY]
            .into_iter()
            .filter_map(|start| Self::decode(&page[start..start + HEADER_BYTES]))
            .max_by_key(|header| header.revision)
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        is_whole(bytes, FILE_MAGIC).then(|| Self {
            version: u32_at(bytes, 8),
            segment_bytes: u64_at(bytes, 16),
            generation: u64_at(bytes, 24),
            synced: u64_at(bytes, 32),
            revision: u64_at(bytes, 40),
        })
    }
}

/// See `docs/format.md`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SegmentHeader {
    pub(super) incarnation: u64,
    pub(super) slot: u32,
    pub(super) data_pages: u32,
    pub(super) footer_bytes: u32,
    pub(super) entries: u32,
    pub(super) max_sequence: u64,
    pub(super) sealed_at: u64,
    pub(super) data_bytes: u64,
    /// Tables of its rows, as a set of `slots::table_bit`.
    pub(super) tables: u32,
}

impl SegmentHeader {
    /// Of a segment that is not written.
    pub(super) const NONE: Self = Self {
        incarnation: 0,
        slot: 0,
        data_pages: 0,
        footer_bytes: 0,
        entries: 0,
        max_sequence: 0,
        sealed_at: 0,
        data_bytes: 0,
        tables: 0,
    };

    pub(super) fn put(&self, page: &mut [u8]) {
        page.fill(0);
        let bytes = &mut page[..HEADER_BYTES];
        put_u64(bytes, 0, SEGMENT_MAGIC);
        put_u64(bytes, 8, self.incarnation);
        put_u32(bytes, 16, self.slot);
        put_u32(bytes, 20, self.data_pages);
        put_u32(bytes, 24, self.footer_bytes);
        put_u32(bytes, 28, self.entries);
        put_u64(bytes, 32, self.max_sequence);
        put_u64(bytes, 40, self.sealed_at);
        put_u64(bytes, 48, self.data_bytes);
        put_u32(bytes, 56, self.tables);
        close(bytes);
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        is_whole(bytes.get(..HEADER_BYTES)?, SEGMENT_MAGIC).then(|| Self {
            incarnation: u64_at(bytes, 8),
            slot: u32_at(bytes, 16),
            data_pages: u32_at(bytes, 20),
            footer_bytes: u32_at(bytes, 24),
            entries: u32_at(bytes, 28),
            max_sequence: u64_at(bytes, 32),
            sealed_at: u64_at(bytes, 40),
            data_bytes: u64_at(bytes, 48),
            tables: u32_at(bytes, 56),
        })
    }

    /// Offset of the footer in the segment.
    pub(super) fn footer_offset(&self) -> u64 {
        (1 + u64::from(self.data_pages)) * PAGE as u64
    }

    /// Bytes of the segment as written.
    pub(super) fn written_bytes(&self) -> u64 {
        self.footer_offset() + u64::from(self.footer_bytes).next_multiple_of(PAGE as u64)
    }
}

fn close(bytes: &mut [u8]) {
    let crc = crc32c::crc32c(&bytes[..CRC]);
    put_u32(bytes, CRC, crc);
}

fn is_whole(bytes: &[u8], magic: u64) -> bool {
    u64_at(bytes, 0) == magic && u32_at(bytes, CRC) == crc32c::crc32c(&bytes[..CRC])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_torn_file_header_leaves_the_copy_before() {
        let mut page = vec![0; PAGE];
        let mut header = FileHeader {
            version: 1,
            segment_bytes: 1 << 18,
            generation: 1,
            synced: 0,
            revision: 1,
        };
        header.put(&mut page);
        let old = header;
        header.revision = 2;
        header.synced = 77;
        header.put(&mut page);
        assert_eq!(FileHeader::newest(&page), Some(header));
        page[40] ^= 1;
        assert_eq!(FileHeader::newest(&page), Some(old));
    }

    #[test]
    fn segment_header_round_trip() {
        let header = SegmentHeader {
            incarnation: 1 << 33,
            slot: 5,
            data_pages: 9,
            footer_bytes: 4097,
            entries: 3,
            max_sequence: u64::MAX,
            sealed_at: 1 << 34,
            data_bytes: 288,
            tables: 1 << 31 | 1,
        };
        let mut page = vec![1; PAGE];
        header.put(&mut page);
        assert_eq!(SegmentHeader::decode(&page), Some(header));
        assert_eq!(header.written_bytes(), 12 * 4096);
        for bit in 0..HEADER_BYTES * 8 {
            page[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(SegmentHeader::decode(&page), None, "bit {bit}");
            page[bit / 8] ^= 1 << (bit % 8);
        }
    }
}
