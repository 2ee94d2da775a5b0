//! The footer of a segment: one entry a record, sorted by bucket, readable a range at a time.

use super::bytes::{put_u16, put_u32, put_u64, u16_at, u32_at, u64_at};
use super::record::{length_word, split_length};
use crate::types::{bucket, hash, Place, Sequence, TableId, BUCKETS};
use std::collections::HashMap;

const MAGIC: u32 = u32::from_le_bytes(*b"HPFT");
const CRC: usize = 28;
/// Groups of the directory; more would cost more in short segments than they save.
const GROUPS: usize = 64;
const BUCKETS_OF_GROUP: u32 = BUCKETS / GROUPS as u32;
const DIRECTORY: usize = 32;
const SHAPES: usize = DIRECTORY + GROUPS * 8;
pub(super) const ENTRY: usize = 22;

/// A record as the footer of its segment knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FooterEntry {
    /// Table of the record.
    pub(crate) table: TableId,
    /// Key of the record.
    pub(crate) key: u64,
    /// Sequence of the row or of the removal.
    pub(crate) sequence: Sequence,
    /// Where the record is.
    pub(crate) place: Place,
    /// Length of the row; 0 for a tombstone.
    pub(crate) row_floats: usize,
    /// Whether this marks a removed key.
    pub(crate) tombstone: bool,
}

/// Most bytes that a footer of `entries` entries over `pages` pages can take. A page has rows of
/// one length and perhaps tombstones, so there are two shapes a page at most.
pub(super) const fn footer_bytes_max(entries: usize, pages: usize) -> usize {
    SHAPES + 2 * pages * 8 + entries * ENTRY
}

/// The footer of a segment that starts at `base`. Sorts `entries`.
pub(super) fn encode_footer(entries: &mut [FooterEntry], incarnation: u64, base: Place) -> Vec<u8> {
    entries.sort_unstable_by_key(|entry| (hash(entry.key), entry.place));
    let (shapes, shape_of) = shapes(entries);
    let head_bytes = SHAPES + shapes.len() * 8;
    let mut bytes = vec![0; head_bytes + entries.len() * ENTRY];
    put_u32(&mut bytes, 0, MAGIC);
    put_u32(&mut bytes, 4, shapes.len() as u32);
    put_u64(&mut bytes, 8, incarnation);
    put_u32(&mut bytes, 16, entries.len() as u32);
    put_u32(&mut bytes, 20, GROUPS as u32);
    for (index, (table, length)) in shapes.into_iter().enumerate() {
        put_u32(&mut bytes, SHAPES + index * 8, table);
        put_u32(&mut bytes, SHAPES + index * 8 + 4, length);
    }
    for (entry, slot) in entries.iter().zip(bytes[head_bytes..].chunks_exact_mut(ENTRY)) {
        put_u64(slot, 0, entry.key);
        put_u64(slot, 8, entry.sequence);
        put_u32(slot, 16, ((entry.place.offset() - base.offset()) / Place::UNIT) as u32);
        let shape = (entry.table, length_word(entry.row_floats, entry.tombstone));
        put_u16(slot, 20, shape_of[&shape]);
    }
    put_directory(&mut bytes, entries, head_bytes);
    let crc = head_checksum(&bytes[..head_bytes]);
    put_u32(&mut bytes, CRC, crc);
    bytes
}

type Shape = (TableId, u32);

fn shapes(entries: &[FooterEntry]) -> (Vec<Shape>, HashMap<Shape, u16>) {
    let mut shapes = Vec::new();
    let mut shape_of = HashMap::new();
    for entry in entries {
        let shape = (entry.table, length_word(entry.row_floats, entry.tombstone));
        shape_of.entry(shape).or_insert_with(|| {
            shapes.push(shape);
            shapes.len() as u16 - 1
        });
    }
    (shapes, shape_of)
}

fn put_directory(bytes: &mut [u8], entries: &[FooterEntry], head_bytes: usize) {
    let mut start = 0;
    for group in 0..GROUPS {
        let last = |entry: &FooterEntry| group_of(bucket(hash(entry.key))) <= group;
        let end = start + entries[start..].partition_point(last);
        let crc = crc32c::crc32c(&bytes[head_bytes + start * ENTRY..head_bytes + end * ENTRY]);
        put_u32(bytes, DIRECTORY + group * 8, end as u32);
        put_u32(bytes, DIRECTORY + group * 8 + 4, crc);
        start = end;
    }
}

fn group_of(bucket: u32) -> usize {
    (bucket / BUCKETS_OF_GROUP) as usize
}

fn head_checksum(head: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&head[..CRC]), &head[DIRECTORY..])
}

/// The checked head of a footer: what is needed to find and read a range of buckets.
pub(super) struct FooterHead {
    base: Place,
    entries: usize,
    /// Entries up to and with each group, and the checksum of each group.
    directory: Vec<(usize, u32)>,
    shapes: Vec<Shape>,
}

impl FooterHead {
    /// Bytes of the head, from its first 32 bytes; none if they are not a footer's.
    pub(super) fn bytes(start: &[u8]) -> Option<usize> {
        (start.len() >= DIRECTORY && u32_at(start, 0) == MAGIC)
            .then(|| SHAPES + u32_at(start, 4) as usize * 8)
    }

    /// Reads the head of the footer of the segment at `base`.
    pub(super) fn decode(bytes: &[u8], incarnation: u64, base: Place) -> Option<Self> {
        let head = bytes.get(..Self::bytes(bytes)?)?;
        if u32_at(head, CRC) != head_checksum(head)
            || u64_at(head, 8) != incarnation
            || u32_at(head, 20) as usize != GROUPS
        {
            return None;
        }
        let pair = |offset| (u32_at(head, offset), u32_at(head, offset + 4));
        let directory = (0..GROUPS).map(|group| pair(DIRECTORY + group * 8));
        Some(Self {
            base,
            entries: u32_at(head, 16) as usize,
            directory: directory.map(|(end, crc)| (end as usize, crc)).collect(),
            shapes: (SHAPES..head.len()).step_by(8).map(pair).collect(),
        })
    }

    /// Entries in all groups.
    pub(super) fn entries(&self) -> usize {
        self.entries
    }

    /// Byte range, in the footer, of the groups that hold `buckets`.
    pub(super) fn range(&self, buckets: &std::ops::Range<u32>) -> std::ops::Range<usize> {
        if buckets.is_empty() {
            return 0..0;
        }
        let first = self.start(group_of(buckets.start.min(BUCKETS - 1)));
        let last = self.directory[group_of((buckets.end - 1).min(BUCKETS - 1))].0;
        let head = SHAPES + self.shapes.len() * 8;
        head + first * ENTRY..head + last * ENTRY
    }

    fn start(&self, group: usize) -> usize {
        if group == 0 {
            0
        } else {
            self.directory[group - 1].0
        }
    }

    /// Visits the entries of `buckets`; `bytes` are those of `range(buckets)`. False if damaged.
    pub(super) fn visit(
        &self,
        buckets: &std::ops::Range<u32>,
        mut bytes: &[u8],
        visit: &mut dyn FnMut(FooterEntry),
    ) -> bool {
        if buckets.is_empty() {
            return true;
        }
        let first = group_of(buckets.start.min(BUCKETS - 1));
        for group in first..=group_of((buckets.end - 1).min(BUCKETS - 1)) {
            let (end, crc) = self.directory[group];
            let length = end.checked_sub(self.start(group)).map(|entries| entries * ENTRY);
            let Some((part, rest)) = length.and_then(|length| bytes.split_at_checked(length))
            else {
                return false;
            };
            if crc32c::crc32c(part) != crc || !self.visit_group(part, buckets, visit) {
                return false;
            }
            bytes = rest;
        }
        true
    }

    fn visit_group(
        &self,
        bytes: &[u8],
        buckets: &std::ops::Range<u32>,
        visit: &mut dyn FnMut(FooterEntry),
    ) -> bool {
        for entry in bytes.chunks_exact(ENTRY) {
            let key = u64_at(entry, 0);
            let Some(&(table, length)) = self.shapes.get(usize::from(u16_at(entry, 20))) else {
                return false;
            };
            if buckets.contains(&bucket(hash(key))) {
                let (row_floats, tombstone) = split_length(length);
                let place = self.base.plus(u64::from(u32_at(entry, 16)) * Place::UNIT);
                let sequence = u64_at(entry, 8);
                visit(FooterEntry { table, key, sequence, place, row_floats, tombstone });
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Disk;

    const BASE: Place = Place::at(Disk::Cold, 4096);

    fn entries() -> Vec<FooterEntry> {
        (0..5000u64)
            .map(|i| FooterEntry {
                table: (i % 7) as u32,
                key: i.wrapping_mul(0x9e37_79b9),
                sequence: i,
                place: BASE.plus(1024 + i * 16),
                row_floats: if i % 5 == 0 { 0 } else { 48 + (i % 3) as usize },
                tombstone: i % 5 == 0,
            })
            .collect()
    }

    #[test]
    fn ranges_of_buckets_are_read_alone() {
        let mut wanted = entries();
        let bytes = encode_footer(&mut wanted, 9, BASE);
        assert!(bytes.len() <= footer_bytes_max(5000, 100));
        let head = FooterHead::decode(&bytes, 9, BASE).expect("head");
        assert!(FooterHead::decode(&bytes, 8, BASE).is_none(), "another incarnation");
        for buckets in [0..BUCKETS, 0..1, 63..65, 4095..4096, 1000..3000, 7..7] {
            let mut seen = Vec::new();
            let range = head.range(&buckets);
            assert!(head.visit(&buckets, &bytes[range], &mut |entry| seen.push(entry)));
            let expected: Vec<_> =
                wanted.iter().filter(|e| buckets.contains(&bucket(hash(e.key)))).copied().collect();
            assert_eq!(seen, expected, "{buckets:?}");
        }
        assert!(head.range(&(0..64)).len() < bytes.len() / 32);
    }

    #[test]
    fn damage_is_found() {
        let mut wanted = entries();
        let good = encode_footer(&mut wanted, 9, BASE);
        for offset in (0..good.len()).step_by(13) {
            let mut bytes = good.clone();
            bytes[offset] ^= 4;
            let whole = FooterHead::decode(&bytes, 9, BASE).is_some_and(|head| {
                let range = head.range(&(0..BUCKETS));
                head.visit(&(0..BUCKETS), bytes.get(range).unwrap_or(&[]), &mut |_| ())
            });
            assert!(!whole, "offset {offset}");
        }
    }
}
