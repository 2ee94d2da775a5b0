//! Rows as they are stored, for people who ask why: no visit, no count, no change.

use super::engine::Engine;
use super::fetch::Damage;
use super::peek::{Look, Stored};
use crate::error::{Error, Result};
use crate::expiry::norm;
use crate::types::{Disk, Place, Sequence, TableId};

/// Most keys of one call.
const KEYS_MAX: usize = 1 << 16;

/// Where a row is served from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowTier {
    /// Memory.
    Dram,
    /// The log of the data directory.
    Nvme,
    /// The log of the cold directory.
    Cold,
}

impl RowTier {
    /// Its name, for reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Dram => "dram",
            Self::Nvme => "nvme",
            Self::Cold => "cold",
        }
    }

    pub(super) fn of(place: Place) -> Self {
        match place.disk() {
            Disk::Nvme => Self::Nvme,
            Disk::Cold => Self::Cold,
        }
    }
}

/// A key, and its row as it is stored now.
#[derive(Debug, Clone, PartialEq)]
pub struct Inspected {
    /// The key that was asked for.
    pub key: u64,
    /// `None`: it has no row, and all that follows is zero or absent.
    pub tier: Option<RowTier>,
    /// Byte offset of its record in the `rows.log` of its disk, if it has one.
    pub place: Option<u64>,
    /// The row in DRAM is newer than that record.
    pub is_dirty: bool,
    /// The last call that changed it.
    pub sequence: Sequence,
    /// Training reads, saturating.
    pub frequency: u32,
    /// Unix seconds when it was last seen in training: read for it, pushed or assigned.
    pub last_seen: u32,
    /// Euclidean length of the value, slots left out.
    pub norm: f64,
    /// Why the row cannot be read.
    pub error: Option<String>,
}

impl Inspected {
    fn absent(key: u64) -> Self {
        Self {
            key,
            tier: None,
            place: None,
            is_dirty: false,
            sequence: 0,
            frequency: 0,
            last_seen: 0,
            norm: 0.0,
            error: None,
        }
    }
}

impl Engine {
    pub(super) fn inspect(&self, table: TableId, keys: &[u64]) -> Result<Vec<Inspected>> {
        check_count("inspect", keys)?;
        let table = self.table(table)?;
        let rows = keys.iter().map(|&key| Inspected::absent(key)).collect();
        let mut inspection = Inspection { dim: table.dim, rows };
        self.peek(&table, keys, &mut inspection)?;
        Ok(inspection.rows)
    }
}

/// Refuses more keys than one call may look at.
pub(super) fn check_count(verb: &str, keys: &[u64]) -> Result<()> {
    if keys.len() <= KEYS_MAX {
        return Ok(());
    }
    Err(Error::bad_input(format!(
        "{verb}: {} keys in one call; give at most {KEYS_MAX}",
        keys.len()
    )))
}

/// The keys of a call.
struct Inspection {
    dim: usize,
    rows: Vec<Inspected>,
}

impl Look for Inspection {
    fn stored(&mut self, index: usize, stored: &Stored<'_>) -> Result<()> {
        let row = &mut self.rows[index];
        *row = Inspected {
            tier: Some(stored.tier),
            place: stored.place.map(|place| place.offset()),
            is_dirty: stored.is_dirty,
            sequence: stored.sequence,
            frequency: stored.frequency,
            last_seen: stored.last_seen,
            norm: norm(&stored.numbers[..self.dim]),
            ..Inspected::absent(row.key)
        };
        Ok(())
    }

    fn damaged(&mut self, index: usize, place: Place, damage: Damage) -> Result<()> {
        let row = &mut self.rows[index];
        *row = Inspected {
            tier: Some(RowTier::of(place)),
            place: Some(place.offset()),
            sequence: damage.sequence.unwrap_or(0),
            error: Some(damage.error.message),
            ..Inspected::absent(row.key)
        };
        Ok(())
    }
}
