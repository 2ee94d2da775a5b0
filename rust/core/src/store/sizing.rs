//! What a table will take, before it exists: asked of the layouts themselves.

use super::config::{StoreConfig, DRAM_MIN, NVME_MIN};
use crate::admission::Admission;
use crate::error::{Error, Result};
use crate::index::Index;
use crate::log::footprint;
use crate::spec::TableSpec;
use crate::table::row_bytes;
use crate::types::Durability;

const MIB: u64 = 1 << 20;
/// No machine has more, and sums of it do not overflow.
const BYTES_MAX: u64 = 1 << 50;
/// Buffers and accounts of a store that do not grow with it; half of it is what compaction reads
/// into.
const FIXED_BYTES: u64 = 2 * MIB;

/// What so many rows of one table take of a store that holds nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Needs {
    /// Bytes of a row in DRAM, without its index entry.
    pub row_dram_bytes: u64,
    /// Bytes of a row on NVMe, as `stats` counts them.
    pub row_nvme_bytes: u64,
    /// Index of all rows, in DRAM whatever tier they are in.
    pub index_bytes: u64,
    /// Most that counts of keys which are not admitted take in DRAM, beside the index.
    pub candidates_bytes: u64,
    /// Least `dram` with which all rows can be kept, nearly all of them on NVMe.
    pub dram_smallest: u64,
    /// `dram` that holds every row.
    pub dram_whole: u64,
    /// `nvme` to ask for.
    pub nvme: u64,
}

/// Sizes a table of `rows` rows.
///
/// # Errors
/// `BadInput` for a spec out of range, or more rows than any store can hold.
pub fn needs(spec: &TableSpec, rows: u64) -> Result<Needs> {
    spec.check()?;
    let floats = spec.row_floats();
    let (row, record) = (row_bytes(floats) as u64, footprint(floats));
    let too_many = || Error::bad_input(format!("rows is {rows}; no store holds so many"));
    let records = rows.checked_mul(record).filter(|&n| n < BYTES_MAX / 4).ok_or_else(too_many)?;
    // Tables of which the number of stripes matters are those of small stores.
    let index = Index::bytes_of(rows, config(DRAM_MIN, NVME_MIN).stripes());
    let candidates = spec.admission.as_ref().map_or(0, Admission::bytes_max);
    let nvme = smallest(NVME_MIN, |nvme| {
        let config = config(BYTES_MAX, nvme);
        config.record_bytes_max(config.segment_bytes()) >= records
    });
    let fits = |dram, wanted| {
        let config = config(dram, nvme);
        let segment = config.segment_bytes();
        // A page of rows in every stripe, at least.
        let least = index + candidates + config.stripes() as u64 * row.max(64 << 10);
        let left = dram - dram / 10;
        left >= 4 * segment + FIXED_BYTES + least.max(wanted)
            && config.record_bytes_max(segment) >= records
    };
    Ok(Needs {
        row_dram_bytes: row,
        row_nvme_bytes: record,
        index_bytes: index,
        candidates_bytes: candidates,
        dram_smallest: smallest(DRAM_MIN, |dram| fits(dram, 0)),
        dram_whole: smallest(DRAM_MIN, |dram| fits(dram, index + candidates + rows * row)),
        nvme,
    })
}

fn config(dram_bytes: u64, nvme_bytes: u64) -> StoreConfig {
    let (path, durability) = (std::path::PathBuf::new(), Durability::None);
    StoreConfig { path, dram_bytes, nvme_bytes, durability, threads: 1, shard: (0, 1), cold: None }
}

/// The smallest budget from `least` on that is enough, in whole MiB.
fn smallest(least: u64, is_enough: impl Fn(u64) -> bool) -> u64 {
    let (mut low, mut high) = (least / MIB, BYTES_MAX / MIB);
    while low < high {
        let middle = low.midpoint(high);
        if is_enough(middle * MIB) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    low * MIB
}
