//! One row or tombstone as bytes: a 32-byte header, the row, padding.

use super::bytes::{put_u32, put_u64, u32_at, u64_at};
use crate::device::{bytes_as_floats, floats_as_bytes, EXTENT_BYTES_MAX, PAGE};
use crate::types::{Place, Sequence, TableId};

pub(super) const RECORD_HEADER: usize = 32;
pub(super) const PAGE_HEADER: usize = 32;
const LENGTH: usize = 28;
const CRC: usize = 24;
const TOMBSTONE: u32 = 1 << 31;

/// Longest row: its record and a page header fill the longest extent of a device.
pub(crate) const ROW_FLOATS_MAX: usize = (EXTENT_BYTES_MAX - PAGE_HEADER - RECORD_HEADER) / 4;

/// A row to append.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Record<'a> {
    /// Key of the row.
    pub(crate) key: u64,
    /// Sequence of the last change of the row.
    pub(crate) sequence: Sequence,
    /// When the key was last seen, in the unit of the table.
    pub(crate) last_seen: u32,
    /// How often the key was seen.
    pub(crate) frequency: u32,
    /// Value and optimizer slots.
    pub(crate) row: &'a [f32],
}

/// A record that was read and checked; valid during the visit only.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct RecordView<'a> {
    /// Key of the row.
    pub(crate) key: u64,
    /// Sequence of the last change of the row, or of the removal.
    pub(crate) sequence: Sequence,
    /// As appended.
    pub(crate) last_seen: u32,
    /// As appended.
    pub(crate) frequency: u32,
    /// Whether this marks a removed key; the row is empty then.
    pub(crate) tombstone: bool,
    /// Value and optimizer slots.
    pub(crate) row: &'a [f32],
}

impl RecordView<'_> {
    /// Of a tombstone: it must stay while a segment up to this incarnation may hold a row of its
    /// table.
    pub(crate) const fn horizon(&self) -> u64 {
        horizon(self.last_seen, self.frequency)
    }
}

impl<'a> Record<'a> {
    /// The mark of a removed key. Its horizon stands where a row has its statistics.
    pub(super) const fn tombstone(key: u64, sequence: Sequence, horizon: u64) -> Self {
        let (last_seen, frequency) = (horizon as u32, (horizon >> 32) as u32);
        Self { key, sequence, last_seen, frequency, row: &[] }
    }

    /// Of a tombstone.
    pub(super) const fn horizon(&self) -> u64 {
        horizon(self.last_seen, self.frequency)
    }
}

const fn horizon(low: u32, high: u32) -> u64 {
    (high as u64) << 32 | low as u64
}

/// Length word of a record: floats, or the mark of a tombstone.
pub(super) const fn length_word(row_floats: usize, tombstone: bool) -> u32 {
    if tombstone {
        TOMBSTONE
    } else {
        row_floats as u32
    }
}

/// Floats and tombstone mark of a length word.
pub(super) const fn split_length(word: u32) -> (usize, bool) {
    ((word & !TOMBSTONE) as usize, word & TOMBSTONE != 0)
}

/// Bytes of a record with its padding.
pub(super) const fn record_bytes(row_floats: usize) -> usize {
    (RECORD_HEADER + row_floats * 4).next_multiple_of(Place::UNIT as usize)
}

/// Pages that a record takes alone; 1 if it shares a page.
pub(super) const fn record_pages(row_floats: usize) -> usize {
    (PAGE_HEADER + record_bytes(row_floats)).div_ceil(PAGE)
}

/// Bytes that a record costs in a segment.
pub(crate) const fn charge(row_floats: usize) -> u64 {
    let pages = record_pages(row_floats);
    (if pages > 1 { pages * PAGE } else { record_bytes(row_floats) }) as u64
}

/// Most bytes that a record takes of a segment: with what its page cannot use, and its entry in
/// the footer.
pub(crate) const fn footprint(row_floats: usize) -> u64 {
    let pages = record_pages(row_floats);
    let shared = if pages > 1 { 1 } else { (PAGE - PAGE_HEADER) / record_bytes(row_floats) };
    ((pages * PAGE).div_ceil(shared) + super::footer::ENTRY) as u64
}

/// Writes a record at the front of `bytes`, whose rest stays as it is.
pub(super) fn put_record(bytes: &mut [u8], table: TableId, record: &Record<'_>, tombstone: bool) {
    put_u64(bytes, 0, record.key);
    put_u64(bytes, 8, record.sequence);
    put_u32(bytes, 16, record.last_seen);
    put_u32(bytes, 20, record.frequency);
    put_u32(bytes, LENGTH, length_word(record.row.len(), tombstone));
    let row = floats_as_bytes(record.row);
    bytes[RECORD_HEADER..RECORD_HEADER + row.len()].copy_from_slice(row);
    let crc = checksum(bytes, table, row.len());
    put_u32(bytes, CRC, crc);
}

fn checksum(bytes: &[u8], table: TableId, row_bytes: usize) -> u32 {
    // One call over a copy of the header is faster than three over its parts.
    let mut head = [0; 32];
    head[..CRC].copy_from_slice(&bytes[..CRC]);
    head[CRC..CRC + 4].copy_from_slice(&bytes[LENGTH..LENGTH + 4]);
    put_u32(&mut head, LENGTH, table);
    crc32c::crc32c_append(crc32c::crc32c(&head), &bytes[RECORD_HEADER..RECORD_HEADER + row_bytes])
}

/// Why bytes are not a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unreadable {
    /// The record has this many floats, more than the bytes given hold.
    Longer(usize),
    /// Not a record of that table.
    Damaged,
}

/// The record at the front of `bytes`, checked.
pub(super) fn decode_record(bytes: &[u8], table: TableId) -> Result<RecordView<'_>, Unreadable> {
    if bytes.len() < RECORD_HEADER {
        return Err(Unreadable::Damaged);
    }
    let (row_floats, tombstone) = split_length(u32_at(bytes, LENGTH));
    if row_floats > ROW_FLOATS_MAX || (tombstone && row_floats > 0) {
        return Err(Unreadable::Damaged);
    }
    let end = RECORD_HEADER + row_floats * 4;
    if end > bytes.len() {
        return Err(Unreadable::Longer(row_floats));
    }
    if u32_at(bytes, CRC) != checksum(bytes, table, row_floats * 4) {
        return Err(Unreadable::Damaged);
    }
    Ok(RecordView {
        key: u64_at(bytes, 0),
        sequence: u64_at(bytes, 8),
        last_seen: u32_at(bytes, 16),
        frequency: u32_at(bytes, 20),
        tombstone,
        row: bytes_as_floats(&bytes[RECORD_HEADER..end]).ok_or(Unreadable::Damaged)?,
    })
}
