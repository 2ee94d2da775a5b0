//! The superblock: who the store is, and the end it is known to have reached.
//!
//! Two slots are written in turn, so that one is whole at all times. Layout: docs/format.md.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::path::PathBuf;

use crate::directory::{self, Directory, SUPERBLOCK};
use crate::error::{Error, Result};
use crate::history::{History, HISTORY_BYTES};
use crate::journal::JournalEnd;
use crate::types::Epoch;
use crate::vfs;

const MAGIC: &[u8; 8] = b"HPSSUPER";
const VERSION: u32 = 2;
/// The atomic unit of the devices that we know is 4 KiB or less.
const SLOT: usize = 4096;
const CRC_AT: usize = SLOT - 4;
const CLEAN: u32 = 1;
const HISTORY_AT: usize = 96;

/// State of a store that is known to be on its device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Superblock {
    /// Random, drawn at creation; the store's files carry it.
    pub(crate) uuid: u128,
    /// This store's shard.
    pub(crate) shard: u32,
    /// Shards in all.
    pub(crate) shards: u32,
    /// Size of a log segment, fixed at creation.
    pub(crate) segment_bytes: u64,
    /// No smaller sequence will be given out again.
    pub(crate) next_sequence: u64,
    /// Known end of the log: segments up to this incarnation are on the device.
    pub(crate) log_incarnation_end: u64,
    /// Synced end of the journal.
    pub(crate) journal: JournalEnd,
    /// The greatest one in which an entry of the journal may have been written.
    pub(crate) epoch: Epoch,
    /// The store was closed in order and not opened since.
    pub(crate) clean: bool,
    /// What it can still tell of its past.
    pub(crate) history: History,
}

impl Superblock {
    /// State of a store that holds nothing.
    ///
    /// # Errors
    /// `Unavailable` if the system gives no random bytes.
    pub(crate) fn new(shard: (u32, u32), segment_bytes: u64) -> Result<Self> {
        Ok(Self {
            uuid: random_uuid()?,
            shard: shard.0,
            shards: shard.1,
            segment_bytes,
            next_sequence: 1,
            log_incarnation_end: 0,
            journal: JournalEnd { generation: 0, offset: 0 },
            epoch: 0,
            clean: false,
            history: History::default(),
        })
    }

    fn encode(&self, generation: u64) -> [u8; SLOT] {
        let mut slot = [0; SLOT];
        let mut put = |at: usize, bytes: &[u8]| slot[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, MAGIC);
        put(8, &VERSION.to_le_bytes());
        put(12, &(u32::from(self.clean) * CLEAN).to_le_bytes());
        put(16, &self.uuid.to_le_bytes());
        put(32, &self.shard.to_le_bytes());
        put(36, &self.shards.to_le_bytes());
        put(40, &self.segment_bytes.to_le_bytes());
        put(48, &generation.to_le_bytes());
        put(56, &self.next_sequence.to_le_bytes());
        put(64, &self.log_incarnation_end.to_le_bytes());
        put(72, &self.journal.generation.to_le_bytes());
        put(80, &self.journal.offset.to_le_bytes());
        put(88, &self.epoch.to_le_bytes());
        put(HISTORY_AT, &self.history.encode());
        let crc = crc32c::crc32c(&slot[..CRC_AT]);
        slot[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        slot
    }

    fn decode(slot: &[u8; SLOT]) -> Self {
        Self {
            uuid: u128::from_le_bytes(field(slot, 16)),
            shard: u32::from_le_bytes(field(slot, 32)),
            shards: u32::from_le_bytes(field(slot, 36)),
            segment_bytes: u64::from_le_bytes(field(slot, 40)),
            next_sequence: u64::from_le_bytes(field(slot, 56)),
            log_incarnation_end: u64::from_le_bytes(field(slot, 64)),
            journal: JournalEnd {
                generation: u32::from_le_bytes(field(slot, 72)),
                offset: u64::from_le_bytes(field(slot, 80)),
            },
            epoch: u64::from_le_bytes(field(slot, 88)),
            clean: u32::from_le_bytes(field(slot, 12)) & CLEAN != 0,
            history: History::decode(&field::<HISTORY_BYTES>(slot, HISTORY_AT)),
        }
    }
}

/// The file `superblock`, open for writing.
#[derive(Debug)]
pub(crate) struct SuperblockFile {
    file: File,
    path: PathBuf,
    generation: u64,
    current: Superblock,
    failed: bool,
}

impl SuperblockFile {
    /// Makes the directory a store. Call it after the first manifest was saved.
    ///
    /// # Errors
    /// `StoreFull`, `Unavailable`.
    pub(crate) fn create(directory: &Directory, first: Superblock) -> Result<Self> {
        let path = directory.file(SUPERBLOCK);
        let mut bytes = vec![0; SLOT];
        bytes.extend_from_slice(&first.encode(1));
        directory::replace(&path, &bytes)?;
        let file = open_file(&path)?;
        Ok(Self { file, path, generation: 1, current: first, failed: false })
    }

    /// Reads the newest state; `None` if the directory holds no store yet.
    ///
    /// # Errors
    /// `Corruption` if no slot is whole, `Config` if another version wrote one.
    pub(crate) fn open(directory: &Directory) -> Result<Option<Self>> {
        let path = directory.file(SUPERBLOCK);
        let Some(mut bytes) = directory::read_small(&path, 2 * SLOT as u64)? else {
            return Ok(None);
        };
        bytes.resize(2 * SLOT, 0);
        let mut newest: Option<(u64, Superblock)> = None;
        for slot in bytes.chunks_exact(SLOT) {
            let slot: &[u8; SLOT] = slot.try_into().unwrap_or(&[0; SLOT]);
            if !is_whole(slot) {
                continue;
            }
            directory::check_version(&path, u32::from_le_bytes(field(slot, 8)), VERSION)?;
            let generation = u64::from_le_bytes(field(slot, 48));
            if newest.as_ref().is_none_or(|(g, _)| generation > *g) {
                newest = Some((generation, Superblock::decode(slot)));
            }
        }
        let Some((generation, current)) = newest else {
            return Err(Error::corruption(format!(
                "{}: both slots are damaged; restore the data directory from a checkpoint",
                path.display()
            )));
        };
        Ok(Some(Self { file: open_file(&path)?, path, generation, current, failed: false }))
    }

    /// The state last read or written.
    pub(crate) fn current(&self) -> &Superblock {
        &self.current
    }

    /// Writes the next state; on the device when it returns.
    ///
    /// # Errors
    /// `Unavailable`, also for every later write: what the slot holds is unknown then.
    pub(crate) fn write(&mut self, next: Superblock) -> Result<()> {
        if self.failed {
            let path = self.path.display();
            return Err(Error::unavailable(format!(
                "an earlier write of {path} failed; open the store again"
            )));
        }
        let generation = self.generation + 1;
        let at = (generation % 2) * SLOT as u64;
        let written = vfs::write_at(&self.file, &next.encode(generation), at);
        if let Err(cause) = written.and_then(|()| vfs::sync_data(&self.file)) {
            self.failed = true;
            return Err(Error::io("write", &self.path, &cause));
        }
        (self.generation, self.current) = (generation, next);
        Ok(())
    }
}

fn is_whole(slot: &[u8; SLOT]) -> bool {
    let crc = u32::from_le_bytes(field(slot, CRC_AT));
    &slot[..8] == MAGIC && crc32c::crc32c(&slot[..CRC_AT]) == crc
}

fn open_file(path: &std::path::Path) -> Result<File> {
    let file = OpenOptions::new().read(true).write(true).open(path);
    file.map_err(|cause| Error::io("open", path, &cause))
}

/// N bytes at a constant place of a slot.
fn field<const N: usize>(slot: &[u8; SLOT], at: usize) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&slot[at..at + N]);
    bytes
}

/// A number that no other store has.
///
/// # Errors
/// `Unavailable` if the system gives no random bytes.
pub(crate) fn random_uuid() -> Result<u128> {
    let path = std::path::Path::new("/dev/urandom");
    let mut bytes = [0; 16];
    File::open(path)
        .and_then(|mut file| file.read_exact(&mut bytes))
        .map_err(|cause| Error::io("read", path, &cause))?;
    Ok(u128::from_le_bytes(bytes))
}

#[cfg(test)]
#[path = "superblock_tests.rs"]
mod tests;
