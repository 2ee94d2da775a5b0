//! The file of candidates: counts of keys that are not admitted, kept over restarts.
//!
//! It is replaced as a whole by a flush, a checkpoint and a clean end, if anything was counted
//! since. Later counts are lost with the process, as those of rows are. Each bucket is as of a
//! moment of its own: who is admitted is decided by the counts of its bucket alone. Counts are
//! worth less than rows: where the files take all that `nvme` allows, the file goes.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use parking_lot::Mutex;

use super::engine::Engine;
use crate::admission::{Block, Reader, Writer};
use crate::directory;
use crate::error::{Error, Result};
use crate::types::BUCKETS;

/// The file in the data directory.
const NAME: &str = "candidates";

/// What is known of the file.
#[derive(Default)]
pub(super) struct CandidatesFile {
    bytes: AtomicU64,
    /// Grows with whatever changes a count.
    counted: AtomicU64,
    /// What `counted` was when the file was written. Held while that is done.
    written: Mutex<u64>,
}

impl CandidatesFile {
    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Relaxed)
    }

    /// Counts changed: the file is out of date.
    pub(super) fn note(&self) {
        self.counted.fetch_add(1, Relaxed);
    }
}

impl Engine {
    fn candidates_path(&self) -> PathBuf {
        self.config.path.join(NAME)
    }

    /// Reads what was counted before. Counts that are damaged, of tables that admit all keys now,
    /// or for which there is no room, begin anew.
    pub(super) fn load_candidates(&self, uuid: u128) {
        let path = self.candidates_path();
        let bytes = std::fs::metadata(&path).map_or(0, |file| file.len());
        self.candidates.bytes.store(bytes, Relaxed);
        for block in Reader::open(&path, uuid).into_iter().flatten() {
            let table = self.catalog.read().by_id.get(&block.table).cloned();
            let Some(table) = table.filter(|table| table.admission().is_some()) else { continue };
            let stripe = &self.stripes[(block.bucket / self.tier.buckets_per_stripe) as usize];
            stripe.lock().restore_candidates(&self.tier, &table, block);
        }
    }

    /// Brings the file up to date. Without room for it the store says so, and the old one stays.
    ///
    /// # Errors
    /// `Unavailable` for a device that failed.
    pub(super) fn write_candidates(&self) -> Result<()> {
        let mut written = self.candidates.written.lock();
        let counted = self.candidates.counted.load(Relaxed);
        if *written == counted {
            return Ok(());
        }
        let bytes = self.candidates_bytes_max();
        if bytes == 0 {
            self.remove_candidates()?;
        } else if let Err(error) = self.check_room_for_candidates(bytes) {
            self.note_refusal(&error);
            return Ok(());
        } else {
            self.replace_candidates()?;
        }
        *written = counted;
        Ok(())
    }

    fn replace_candidates(&self) -> Result<()> {
        let path = self.candidates_path();
        let uuid = self.superblock.lock().current().uuid;
        let (file, temporary) = directory::write_temporary(&path, |file| {
            let mut writer = Writer::new(file, uuid);
            for bucket in 0..BUCKETS {
                let blocks = self.candidates_of(bucket);
                blocks.iter().try_for_each(|block| writer.block(block))?;
            }
            writer.finish()
        })?;
        directory::publish(&temporary, &path)?;
        let bytes = file.metadata().map_err(|cause| Error::io("measure", &path, &cause))?.len();
        self.candidates.bytes.store(bytes, Relaxed);
        Ok(())
    }

    /// Copies of one bucket: no stripe is locked while they are written.
    fn candidates_of(&self, bucket: u32) -> Vec<Block> {
        let stripe = &self.stripes[(bucket / self.tier.buckets_per_stripe) as usize];
        stripe.lock().candidates_of(&self.tier, bucket)
    }

    /// Most bytes of a file of all candidates; 0 if there are none.
    fn candidates_bytes_max(&self) -> u64 {
        let states = self.stripes.iter().map(|stripe| stripe.lock());
        let bytes: u64 = states.map(|state| state.candidates_bytes_max(&self.tier)).sum();
        bytes + if bytes > 0 { Writer::HEADER_BYTES } else { 0 }
    }

    fn check_room_for_candidates(&self, bytes: u64) -> Result<()> {
        // The old file and the new one are there together for a moment.
        let left = self.config.nvme_bytes.saturating_sub(self.files_bytes());
        if bytes <= left {
            return Ok(());
        }
        Err(Error::store_full(format!(
            "no room for the counts of keys that are not admitted: a file of {bytes} bytes, {left} \
             are left of nvme={}; raise nvme, or alter admissions to smaller capacities",
            self.config.nvme_bytes
        )))
    }

    /// Takes the file away: nothing is in it, or rows need its room.
    pub(super) fn remove_candidates(&self) -> Result<()> {
        if self.candidates.bytes() > 0 {
            directory::remove_if_present(&self.candidates_path())?;
        }
        self.candidates.bytes.store(0, Relaxed);
        Ok(())
    }
}
