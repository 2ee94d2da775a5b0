//! Images of the index: for every bucket the entries of all tables, as of one moment, and what was
//! live of each segment of the log then.
//!
//! An image is a hint. It speaks for the segments up to its `end`; what came later is in the
//! footers of younger segments. Without one, or where it is damaged, all footers are read, which
//! gives the same index and takes longer. Layout: docs/format.md.

mod format;
#[cfg(test)]
mod tests;
mod writer;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::index::Entry;
use crate::log::Account;
use crate::types::{Sequence, TableId, BUCKETS};

pub(crate) use format::bytes_of;
pub(crate) use writer::Writer;

/// Keys of one table, in all buckets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TableKeys {
    pub(crate) table: TableId,
    /// Length of its rows.
    pub(crate) floats: u32,
    pub(crate) keys: u64,
}

/// Where the entries of a bucket are in the file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Block {
    offset: u64,
    bytes: u32,
    crc: u32,
    sequence: Sequence,
}

/// What an image says of the store as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Summary {
    /// The store whose index it is.
    pub(crate) uuid: u128,
    /// Segments up to this incarnation are spoken for: whatever lies in a later one was appended
    /// after all that lies in these.
    pub(crate) end: u64,
    pub(crate) tables: Vec<TableKeys>,
    /// Of every segment up to `end`.
    pub(crate) accounts: Vec<Account>,
}

/// The entries of one table in one bucket.
pub(crate) type Entries = (TableId, Vec<Entry>);

/// An image that can be read.
pub(crate) struct Image {
    file: File,
    summary: Summary,
    blocks: Vec<Block>,
    bytes: u64,
}

impl Image {
    /// Reads all but the entries. None where there is no image that this build can read whole.
    pub(crate) fn open(path: &Path) -> Option<Self> {
        let file = File::open(path).ok()?;
        let bytes = file.metadata().ok()?.len();
        let tail_at = bytes.checked_sub(format::TAIL as u64)?;
        let mut tail = [0; format::TAIL];
        file.read_exact_at(&mut tail, tail_at).ok()?;
        let tail = format::Tail::decode(&tail)?;
        let start = tail_at.checked_sub(tail.head_bytes())?;
        let mut head = vec![0; tail.head_bytes() as usize];
        file.read_exact_at(&mut head, start).ok()?;
        let (summary, blocks) = tail.head(&head, start)?;
        Some(Self { file, summary, blocks, bytes })
    }

    pub(crate) fn summary(&self) -> &Summary {
        &self.summary
    }

    /// Length of the file.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// All calls up to here that touch the bucket had been applied.
    pub(crate) fn sequence(&self, bucket: u32) -> Sequence {
        self.blocks[bucket as usize].sequence
    }

    /// The entries of a bucket, table by table. None if they are damaged, or cannot be read.
    pub(crate) fn read(&self, bucket: u32) -> Option<Vec<Entries>> {
        let block = self.blocks.get(bucket as usize)?;
        let mut bytes = vec![0; block.bytes as usize];
        self.file.read_exact_at(&mut bytes, block.offset).ok()?;
        // They are in memory now, and are not read again.
        crate::os::forget_pages(&self.file, block.offset, block.offset + bytes.len() as u64);
        (crc32c::crc32c(&bytes) == block.crc).then(|| format::decode_block(&bytes))?
    }
}

/// Every bucket, in the order of the file.
pub(crate) fn buckets() -> std::ops::Range<u32> {
    0..BUCKETS
}
