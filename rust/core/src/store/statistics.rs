//! What is known of rows beside their numbers: no visit, no count, no change.

use super::engine::Engine;
use super::fetch::Damage;
use super::inspect::{check_count, RowTier};
use super::peek::{Look, Stored};
use crate::error::Result;
use crate::types::{Place, TableId};

/// One entry a key, in the order of the keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statistics {
    /// Where the row is served from; `None`: the key has none, and all else is 0.
    pub tiers: Vec<Option<RowTier>>,
    /// Training reads, saturating.
    pub frequencies: Vec<u32>,
    /// Unix seconds when it was last seen in training; 0: it has no row.
    pub last_seen: Vec<u32>,
}

impl Engine {
    pub(super) fn statistics(&self, table: TableId, keys: &[u64]) -> Result<Statistics> {
        check_count("statistics", keys)?;
        let table = self.table(table)?;
        let (tiers, zeros) = (vec![None; keys.len()], vec![0; keys.len()]);
        let mut statistics = Statistics { tiers, frequencies: zeros.clone(), last_seen: zeros };
        self.peek(&table, keys, &mut statistics)?;
        Ok(statistics)
    }
}

impl Look for Statistics {
    fn stored(&mut self, index: usize, stored: &Stored<'_>) -> Result<()> {
        self.tiers[index] = Some(stored.tier);
        self.frequencies[index] = stored.frequency;
        self.last_seen[index] = stored.last_seen;
        Ok(())
    }

    fn damaged(&mut self, _: usize, _: Place, damage: Damage) -> Result<()> {
        Err(damage.error)
    }
}
