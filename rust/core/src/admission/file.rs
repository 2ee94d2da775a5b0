//! The bytes of the file of candidates: a block a table and bucket, each with its checksum. Layout:
//! docs/format.md.
//!
//! A count that is lost admits a key later, so damage is no failure: what cannot be read is counted
//! anew. Nothing is allocated on the word of a file that is longer than what is there.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;

use crate::types::{TableId, BUCKETS};
use crate::vfs;

const MAGIC: &[u8; 8] = b"HPSCANDS";
const VERSION: u32 = 1;
const HEADER: usize = 32;
const HEAD: usize = 24;
/// Bytes that are collected before they are written.
const CHUNK: usize = 1 << 20;
/// Bits of an entry that may hold its count.
const WIDTHS: std::ops::RangeInclusive<u32> = 1..=16;

/// The candidates of one table in one bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Block {
    pub(crate) table: TableId,
    pub(crate) bucket: u32,
    pub(crate) width: u32,
    /// Of the young generation and of the old one, in order.
    pub(crate) entries: [Vec<u32>; 2],
}

impl Block {
    pub(crate) fn is_empty(&self) -> bool {
        self.entries.iter().all(Vec::is_empty)
    }

    /// Most that `keys` candidates in `buckets` buckets take in a file.
    pub(crate) fn bytes_max(keys: usize, buckets: u32) -> u64 {
        (keys.min(buckets as usize) * HEAD + 4 * keys) as u64
    }
}

/// Writes a file of candidates, which has another name until all of it is on the device.
pub(crate) struct Writer<'a> {
    file: &'a File,
    pending: Vec<u8>,
}

impl<'a> Writer<'a> {
    /// Bytes of a file beside its blocks.
    pub(crate) const HEADER_BYTES: u64 = HEADER as u64;

    /// On a new file, which is opened for appending.
    pub(crate) fn new(file: &'a File, uuid: u128) -> Self {
        let mut pending = Vec::with_capacity(CHUNK);
        pending.extend_from_slice(MAGIC);
        pending.extend_from_slice(&VERSION.to_le_bytes());
        pending.extend_from_slice(&[0; 4]);
        pending.extend_from_slice(&uuid.to_le_bytes());
        Self { file, pending }
    }

    pub(crate) fn block(&mut self, block: &Block) -> io::Result<()> {
        let [young, old] = &block.entries;
        let start = self.pending.len();
        let lengths = [young.len() as u32, old.len() as u32];
        for field in [[block.table, block.bucket, block.width].as_slice(), &lengths].concat() {
            self.pending.extend_from_slice(&field.to_le_bytes());
        }
        let entries = young.iter().chain(old).flat_map(|entry| entry.to_le_bytes());
        let entries: Vec<u8> = entries.collect();
        let crc = crc32c::crc32c_append(crc32c::crc32c(&self.pending[start..]), &entries);
        self.pending.extend_from_slice(&crc.to_le_bytes());
        self.pending.extend_from_slice(&entries);
        if self.pending.len() >= CHUNK {
            self.flush()?;
        }
        Ok(())
    }

    /// Ends the file.
    pub(crate) fn finish(mut self) -> io::Result<()> {
        self.flush()
    }

    fn flush(&mut self) -> io::Result<()> {
        vfs::append(self.file, &[&self.pending])?;
        self.pending.clear();
        Ok(())
    }
}

/// Reads a file of candidates up to its end, or to the first byte that is not right.
pub(crate) struct Reader {
    file: BufReader<File>,
    left: u64,
}

impl Reader {
    /// None where there is no such file of this store that this build can read.
    pub(crate) fn open(path: &Path, uuid: u128) -> Option<Self> {
        let file = File::open(path).ok()?;
        let left = file.metadata().ok()?.len().checked_sub(HEADER as u64)?;
        let mut file = BufReader::with_capacity(CHUNK, file);
        let mut header = [0; HEADER];
        file.read_exact(&mut header).ok()?;
        let is_ours = &header[..8] == MAGIC
            && header[8..12] == VERSION.to_le_bytes()
            && header[16..] == uuid.to_le_bytes();
        is_ours.then_some(Self { file, left })
    }
}

impl Iterator for Reader {
    type Item = Block;

    fn next(&mut self) -> Option<Block> {
        let mut head = [0; HEAD];
        self.left = self.left.checked_sub(HEAD as u64)?;
        self.file.read_exact(&mut head).ok()?;
        let [table, bucket, width, young, old, crc] = std::array::from_fn(|n| u32_at(&head, 4 * n));
        let bytes = 4 * (u64::from(young) + u64::from(old));
        self.left = self.left.checked_sub(bytes)?;
        let mut entries = vec![0; bytes as usize];
        self.file.read_exact(&mut entries).ok()?;
        let actual = crc32c::crc32c_append(crc32c::crc32c(&head[..HEAD - 4]), &entries);
        if actual != crc || bucket >= BUCKETS || !WIDTHS.contains(&width) {
            return None;
        }
        let (young, old) = entries.split_at(4 * young as usize);
        let numbers = |bytes: &[u8]| bytes.chunks_exact(4).map(|entry| u32_at(entry, 0)).collect();
        Some(Block { table, bucket, width, entries: [numbers(young), numbers(old)] })
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut field = [0; 4];
    field.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(field)
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;

    use super::*;
    use crate::scratch::Scratch;

    fn blocks() -> Vec<Block> {
        let block = |n: u32| Block {
            table: n + 1,
            bucket: n * 7,
            width: 1 + n % 16,
            entries: [(0..n * 3).collect(), (n..2 * n).collect()],
        };
        (0..40).map(block).collect()
    }

    fn write(path: &Path, blocks: &[Block]) {
        let file = OpenOptions::new().create(true).append(true).open(path).unwrap();
        let mut writer = Writer::new(&file, 77);
        blocks.iter().for_each(|block| writer.block(block).unwrap());
        writer.finish().unwrap();
    }

    fn read(path: &Path) -> Vec<Block> {
        Reader::open(path, 77).into_iter().flatten().collect()
    }

    #[test]
    fn blocks_come_back_and_another_store_has_none() {
        let scratch = Scratch::new();
        let path = scratch.path().join("candidates");
        write(&path, &blocks());
        assert_eq!(read(&path), blocks());
        assert!(Reader::open(&path, 78).is_none());
    }

    /// Goal: hostile bytes cost counts, never more. Method: every byte of a file flipped, and every
    /// length of it: what is read is a prefix of what was written.
    #[test]
    fn damage_costs_what_lies_behind_it() {
        let scratch = Scratch::new();
        let path = scratch.path().join("candidates");
        write(&path, &blocks()[..6]);
        let whole = std::fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x81;
            for bytes in [&bytes[..], &whole[..at]] {
                std::fs::write(&path, bytes).unwrap();
                let found = read(&path);
                // Four bytes of the header mean nothing yet.
                assert!(found.len() < 6 || (12..16).contains(&at), "byte {at}");
                assert_eq!(found, blocks()[..found.len()], "byte {at}");
            }
        }
    }
}
