//! The bytes of an image: blocks of entries, the head that finds them, and the tail that finds the
//! head. Nothing is allocated on the word of a file before its checksum has held.

use super::{Block, Entries, Summary, TableKeys};
use crate::index::Entry;
use crate::log::{Account, SegmentId};
use crate::types::{Disk, TableId, BUCKETS};

const MAGIC: &[u8; 8] = b"HPSINDEX";
const VERSION: u32 = 1;
pub(super) const TAIL: usize = 64;
const TAIL_CRC: usize = TAIL - 4;
const HEAD_CRC: usize = TAIL - 8;
const BLOCK: usize = 24;
const TABLE: usize = 16;
const ACCOUNT: usize = 40;
/// Of a table in a block: its id, and how many entries follow.
const RUN: usize = 8;
const ENTRY: usize = 8;
/// Bit of a slot's number that names the disk.
const COLD: u32 = 1 << 31;

/// Length of an image of so many keys in so many runs of one table and bucket.
pub(crate) fn bytes_of(keys: u64, runs: u64, tables: u64, segments: u64) -> u64 {
    let head = BUCKETS as u64 * BLOCK as u64 + tables * TABLE as u64 + segments * ACCOUNT as u64;
    keys * ENTRY as u64 + runs * RUN as u64 + head + TAIL as u64
}

/// The last bytes of the file.
pub(super) struct Tail {
    uuid: u128,
    end: u64,
    tables: u32,
    segments: u32,
    head_crc: u32,
}

impl Tail {
    pub(super) fn decode(bytes: &[u8; TAIL]) -> Option<Self> {
        let is_whole = &bytes[..8] == MAGIC
            && u32_at(bytes, TAIL_CRC) == crc32c::crc32c(&bytes[..TAIL_CRC])
            && u32_at(bytes, 8) == VERSION;
        is_whole.then(|| Self {
            uuid: u128::from(u64_at(bytes, 24)) << 64 | u128::from(u64_at(bytes, 16)),
            end: u64_at(bytes, 32),
            tables: u32_at(bytes, 12),
            segments: u32_at(bytes, 40),
            head_crc: u32_at(bytes, HEAD_CRC),
        })
    }

    fn encode(&self) -> [u8; TAIL] {
        let mut bytes = [0; TAIL];
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(0, MAGIC);
        put(8, &VERSION.to_le_bytes());
        put(12, &self.tables.to_le_bytes());
        put(16, &self.uuid.to_le_bytes());
        put(32, &self.end.to_le_bytes());
        put(40, &self.segments.to_le_bytes());
        put(HEAD_CRC, &self.head_crc.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..TAIL_CRC]);
        bytes[TAIL_CRC..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Length of the head, which ends where the tail begins.
    pub(super) fn head_bytes(&self) -> u64 {
        bytes_of(0, 0, self.tables.into(), self.segments.into()) - TAIL as u64
    }

    /// What the head says; `bytes` are all of it. No block reaches past `blocks_end`.
    pub(super) fn head(&self, bytes: &[u8], blocks_end: u64) -> Option<(Summary, Vec<Block>)> {
        if crc32c::crc32c(bytes) != self.head_crc {
            return None;
        }
        let (blocks, rest) = bytes.split_at_checked(BUCKETS as usize * BLOCK)?;
        let (tables, accounts) = rest.split_at_checked(self.tables as usize * TABLE)?;
        let blocks: Vec<Block> = blocks.chunks_exact(BLOCK).map(decode_directory).collect();
        let fits = |block: &Block| {
            let end = block.offset.checked_add(block.bytes.into());
            end.is_some_and(|end| end <= blocks_end)
        };
        let summary = Summary {
            uuid: self.uuid,
            end: self.end,
            tables: tables.chunks_exact(TABLE).map(decode_table).collect(),
            accounts: accounts.chunks_exact(ACCOUNT).map(decode_account).collect(),
        };
        blocks.iter().all(fits).then_some((summary, blocks))
    }
}

/// Head and tail of a file whose blocks were written.
pub(super) fn encode_end(summary: &Summary, blocks: &[Block]) -> Vec<u8> {
    let mut head = Vec::new();
    for block in blocks {
        head.extend_from_slice(&block.offset.to_le_bytes());
        head.extend_from_slice(&block.bytes.to_le_bytes());
        head.extend_from_slice(&block.crc.to_le_bytes());
        head.extend_from_slice(&block.sequence.to_le_bytes());
    }
    for table in &summary.tables {
        head.extend_from_slice(&table.table.to_le_bytes());
        head.extend_from_slice(&table.floats.to_le_bytes());
        head.extend_from_slice(&table.keys.to_le_bytes());
    }
    for account in &summary.accounts {
        let counts = [account.live_bytes, account.tombstone_bytes, account.horizon];
        head.extend_from_slice(&account.segment.incarnation.to_le_bytes());
        counts.iter().for_each(|count| head.extend_from_slice(&count.to_le_bytes()));
        let disk = u32::from(account.segment.disk == Disk::Cold) * COLD;
        head.extend_from_slice(&(account.segment.slot | disk).to_le_bytes());
        head.extend_from_slice(&account.removed_from.to_le_bytes());
    }
    let tail = Tail {
        uuid: summary.uuid,
        end: summary.end,
        tables: summary.tables.len() as u32,
        segments: summary.accounts.len() as u32,
        head_crc: crc32c::crc32c(&head),
    };
    head.extend_from_slice(&tail.encode());
    head
}

/// Adds the entries of one table to a block; without entries nothing.
pub(super) fn encode_run(block: &mut Vec<u8>, table: TableId, entries: &[Entry]) {
    if entries.is_empty() {
        return;
    }
    block.extend_from_slice(&table.to_le_bytes());
    block.extend_from_slice(&(entries.len() as u32).to_le_bytes());
    entries.iter().for_each(|entry| block.extend_from_slice(&entry.bits().to_le_bytes()));
}

/// The entries of a block whose checksum held. None if it was written wrong.
pub(super) fn decode_block(mut bytes: &[u8]) -> Option<Vec<Entries>> {
    let mut runs = Vec::new();
    while !bytes.is_empty() {
        let (run, rest) = bytes.split_at_checked(RUN)?;
        let count = u32_at(run, 4) as usize;
        let (entries, rest) = rest.split_at_checked(count * ENTRY)?;
        let entries = entries.chunks_exact(ENTRY).map(|bits| Entry::from_bits(u64_at(bits, 0)));
        runs.push((u32_at(run, 0), entries.collect::<Option<Vec<_>>>()?));
        bytes = rest;
    }
    Some(runs)
}

fn decode_directory(bytes: &[u8]) -> Block {
    Block {
        offset: u64_at(bytes, 0),
        bytes: u32_at(bytes, 8),
        crc: u32_at(bytes, 12),
        sequence: u64_at(bytes, 16),
    }
}

fn decode_table(bytes: &[u8]) -> TableKeys {
    TableKeys { table: u32_at(bytes, 0), floats: u32_at(bytes, 4), keys: u64_at(bytes, 8) }
}

fn decode_account(bytes: &[u8]) -> Account {
    let slot = u32_at(bytes, 32);
    let disk = if slot & COLD == 0 { Disk::Nvme } else { Disk::Cold };
    Account {
        segment: SegmentId { incarnation: u64_at(bytes, 0), disk, slot: slot & !COLD },
        live_bytes: u64_at(bytes, 8),
        tombstone_bytes: u64_at(bytes, 16),
        horizon: u64_at(bytes, 24),
        removed_from: u32_at(bytes, 36),
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut field = [0; 4];
    field.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(field)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut field = [0; 8];
    field.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(field)
}
