//! How a store is opened, and how its budgets are cut.

use std::path::PathBuf;

use crate::error::{Error, Result};
use crate::types::{Durability, Place};

/// How to open a store.
#[derive(Debug, Clone)]
pub struct StoreConfig {
    /// Data directory, created if absent.
    pub path: PathBuf,
    /// Bound on rows, index, statistics and buffers; at least 8 MiB.
    pub dram_bytes: u64,
    /// Bound on all files of the directory; at least 64 MiB.
    pub nvme_bytes: u64,
    /// What an acknowledgement promises.
    pub durability: Durability,
    /// Engine threads.
    pub threads: usize,
    /// This server's shard and how many there are; stored in the directory.
    pub shard: (u32, u32),
    /// Where rarely read rows go when `nvme_bytes` run short, if anywhere.
    pub cold: Option<ColdConfig>,
}

/// A directory on a slower disk.
#[derive(Debug, Clone)]
pub struct ColdConfig {
    /// The directory, created if absent: this store's alone, outside of the data directory.
    pub path: PathBuf,
    /// Bound on all files of the directory; at least 16 MiB.
    pub cap_bytes: u64,
}

const MIB: u64 = 1 << 20;
pub(super) const DRAM_MIN: u64 = 8 * MIB;
pub(super) const NVME_MIN: u64 = 64 * MIB;
const COLD_MIN: u64 = 16 * MIB;
/// Segments that are filled or on their way to the device: two streams, each with a spare.
pub(super) const SEGMENT_BUFFERS: u64 = 4;
/// The same of the cold volume, which one thread fills: one, and one on its way.
pub(super) const COLD_BUFFERS: u64 = 2;
/// Superblock, manifest, lock: small files.
const SMALL_FILES: u64 = MIB;
/// Bytes of DRAM that the account of one segment takes, about.
const SLOT_BYTES: u64 = 128;
/// Share of DRAM that accounts of segments may take: 1 / this.
const SLOTS_SHARE: u64 = 12;
/// Share of the log's cap that rows may fill; the rest is what compaction works with.
const FILL: f64 = 0.7;
/// Share of that from which on rows go down to the cold volume.
const NEARLY_FULL: f64 = 0.9;

impl StoreConfig {
    pub(super) fn check(&self) -> Result<()> {
        at_least("dram", self.dram_bytes, DRAM_MIN)?;
        at_least("nvme", self.nvme_bytes, NVME_MIN)?;
        if let Some(cold) = &self.cold {
            at_least("cold_cap", cold.cap_bytes, COLD_MIN)?;
        }
        let (shard, shards) = self.shard;
        if shards == 0 || shards > crate::BUCKETS || shard >= shards {
            return Err(Error::config(format!(
                "shard is {shard}/{shards}; give I/N with I below N, N at most 4096"
            )));
        }
        if self.threads == 0 || self.threads > 1024 {
            return Err(Error::config(format!("threads is {}; give 1 to 1024", self.threads)));
        }
        Ok(())
    }

    /// Bytes of a segment of a new store: large appends on large stores, cheap buffers on small.
    pub(super) fn segment_bytes(&self) -> u64 {
        let wanted = (self.nvme_bytes / 4096).min(self.dram_bytes / 64);
        floor_power_of_two(wanted).clamp(256 << 10, 8 * MIB)
    }

    /// Most that the journal may hold before its oldest part is written back.
    pub(super) fn journal_bytes(&self) -> u64 {
        (self.nvme_bytes / 8).min(1 << 30)
    }

    /// Cap of the log file: what nvme leaves it, and no more than a small DRAM budget can keep
    /// account of, nor than places can name.
    pub(super) fn log_bytes(&self, segment_bytes: u64) -> u64 {
        // A journal file may grow past its share by one call: hence twice.
        let left = self.nvme_bytes - 2 * self.journal_bytes() - SMALL_FILES;
        self.accountable(left, segment_bytes)
    }

    /// Bytes of a segment of a new cold volume: as on NVMe, but for one with few of them.
    pub(super) fn cold_segment_bytes(&self, segment_bytes: u64) -> u64 {
        let cap = self.cold.as_ref().map_or(0, |cold| cold.cap_bytes);
        floor_power_of_two(cap / 64).min(segment_bytes).max(256 << 10)
    }

    /// Cap of the cold log file.
    pub(super) fn cold_log_bytes(&self, segment_bytes: u64) -> u64 {
        let cap = self.cold.as_ref().map_or(0, |cold| cold.cap_bytes);
        // A log that is opened full has two slots more.
        self.accountable(cap.saturating_sub(SMALL_FILES + 2 * segment_bytes), segment_bytes)
    }

    /// As many bytes of segments as DRAM can keep account of, and places can name.
    fn accountable(&self, bytes: u64, segment_bytes: u64) -> u64 {
        let segments = self.dram_bytes / SLOTS_SHARE / SLOT_BYTES;
        bytes.min(segments.saturating_mul(segment_bytes)).min(Place::BYTES_MAX)
    }

    /// Most bytes of records that all tables together may have on NVMe.
    pub(super) fn record_bytes_max(&self, segment_bytes: u64) -> u64 {
        filled(self.log_bytes(segment_bytes), segment_bytes)
    }

    /// Bytes of live rows on NVMe from which on rarely read ones go down: before there is no room.
    pub(super) fn demotes_from(&self, segment_bytes: u64) -> u64 {
        (self.record_bytes_max(segment_bytes) as f64 * NEARLY_FULL) as u64
    }

    /// And on the cold volume.
    pub(super) fn cold_record_bytes_max(&self, segment_bytes: u64) -> u64 {
        filled(self.cold_log_bytes(segment_bytes), segment_bytes)
    }

    /// Stripes: enough locks for the machine, few enough that each has room for large rows.
    pub(super) fn stripes(&self) -> usize {
        if self.dram_bytes < 256 * MIB {
            16
        } else {
            64
        }
    }

    /// Refuses a budget of which buffers and accounts leave little for rows, index, statistics.
    pub(super) fn check_rows(&self, left: u64) -> Result<()> {
        if left < self.dram_bytes / 2 {
            let taken = self.dram_bytes - left;
            return Err(Error::config(format!(
                "dram is {} bytes, of which the buffers of this store take {taken}; give at \
                 least {}",
                self.dram_bytes,
                2 * taken
            )));
        }
        Ok(())
    }
}

/// What rows may take of a log.
fn filled(log_bytes: u64, segment_bytes: u64) -> u64 {
    (log_bytes.saturating_sub(8 * segment_bytes) as f64 * FILL) as u64
}

fn at_least(name: &str, value: u64, minimum: u64) -> Result<()> {
    if value >= minimum {
        return Ok(());
    }
    Err(Error::config(format!("{name} is {value} bytes; give at least {} MiB", minimum / MIB)))
}

fn floor_power_of_two(x: u64) -> u64 {
    if x == 0 {
        0
    } else {
        1 << x.ilog2()
    }
}
