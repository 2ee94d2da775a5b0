//! Rows as they are stored, for people who ask why: no visit, no count, no change.

use super::engine::Engine;
use super::fetch::{Damage, Miss, Receiver, Source, Wanted};
use crate::error::{Error, Result};
use crate::ledger::Kind;
use crate::log::RecordView;
use crate::table::{stripe_of, Found, Item, State};
use crate::types::{hash, Disk, Place, Sequence, TableId};

/// Most keys of one call.
const KEYS_MAX: usize = 1 << 16;
/// Keys that are fetched together.
const WINDOW_KEYS: usize = 512;

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
}

/// A key, and its row as it is stored now.
#[derive(Debug, Clone, PartialEq)]
pub struct Inspected {
    /// The key that was asked for.
    pub key: u64,
    /// `None`: it has no row, and all that follows is zero or absent.
    pub tier: Option<RowTier>,
    /// Byte offset of its record in the log of its disk, if it has one.
    pub place: Option<u64>,
    /// The row in DRAM is newer than that record.
    pub is_dirty: bool,
    /// The last call that changed it.
    pub sequence: Sequence,
    /// Training reads, saturating.
    pub frequency: u32,
    /// Unix seconds of the last training read; 0: never read.
    pub last_seen: u32,
    /// Euclidean length of the value, slots left out.
    pub norm: f64,
    /// Why the row cannot be read.
    pub error: Option<String>,
}

impl RowTier {
    fn of(place: Place) -> Self {
        match place.disk() {
            Disk::Nvme => Self::Nvme,
            Disk::Cold => Self::Cold,
        }
    }
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
        if keys.len() > KEYS_MAX {
            return Err(Error::bad_input(format!(
                "inspect: {} keys in one call; give at most {KEYS_MAX}",
                keys.len()
            )));
        }
        let table = self.table(table)?;
        self.load_for(keys.iter().copied())?;
        let _memory = self.ledger.hold(Kind::Buffers, (WINDOW_KEYS * 4 * table.floats) as u64);
        let mut rows = Vec::with_capacity(keys.len());
        for keys in keys.chunks(WINDOW_KEYS) {
            let mut inspection = Inspection {
                dim: table.dim,
                rows: keys.iter().map(|&key| Inspected::absent(key)).collect(),
            };
            // Before the places are looked up, until they were read.
            let pin = self.tier.log.pin();
            let mut misses = Vec::new();
            for (index, &key) in keys.iter().enumerate() {
                let item = Item { key, hash: hash(key), index: index as u32 };
                let mut state = self.stripes[stripe_of(item.hash, self.stripes.len())].lock();
                let part = state.parts.get(&table.id);
                match part.map_or(Found::Absent, |part| part.find(&item, |_| false)) {
                    Found::Dram(at) => inspection.look(&mut state, table.id, &item, at),
                    Found::Nvme(place) => {
                        misses.push(Miss { source: 0, index: item.index, place });
                    }
                    Found::Absent => {}
                }
            }
            let sources = [Source { table: &table, keys }];
            self.fetch(&pin, &sources, &mut misses, &mut inspection)?;
            rows.append(&mut inspection.rows);
        }
        Ok(rows)
    }
}

/// The keys of a window.
struct Inspection {
    dim: usize,
    rows: Vec<Inspected>,
}

impl Inspection {
    /// Looks at a row in DRAM.
    fn look(&mut self, state: &mut State, table: TableId, item: &Item, at: u64) {
        let Some(part) = state.parts.get_mut(&table) else { return };
        let (header, numbers) = part.pool.row_unmarked(at);
        self.rows[item.index as usize] = Inspected {
            key: item.key,
            tier: Some(RowTier::Dram),
            place: header.state.place().map(|place| place.offset()),
            is_dirty: header.state.is_dirty(),
            sequence: header.sequence,
            frequency: header.frequency,
            last_seen: header.last_seen,
            norm: norm(&numbers[..self.dim]),
            error: None,
        };
    }
}

fn norm(value: &[f32]) -> f64 {
    value.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt()
}

impl Receiver for Inspection {
    const IS_BACKGROUND: bool = true;

    fn record(
        &mut self,
        _: &mut State,
        wanted: &Wanted<'_>,
        record: &RecordView<'_>,
    ) -> Result<bool> {
        self.rows[wanted.item.index as usize] = Inspected {
            tier: Some(RowTier::of(wanted.place)),
            place: Some(wanted.place.offset()),
            sequence: record.sequence,
            frequency: record.frequency,
            last_seen: record.last_seen,
            norm: norm(&record.row[..self.dim]),
            ..Inspected::absent(wanted.item.key)
        };
        Ok(true)
    }

    fn resident(&mut self, state: &mut State, wanted: &Wanted<'_>, at: u64) -> Result<()> {
        self.look(state, wanted.table.id, &wanted.item, at);
        Ok(())
    }

    fn absent(&mut self, _: &mut State, _: &Wanted<'_>) -> Result<()> {
        Ok(())
    }

    fn damaged(&mut self, _: &mut State, wanted: &Wanted<'_>, damage: Damage) -> Result<()> {
        self.rows[wanted.item.index as usize] = Inspected {
            tier: Some(RowTier::of(wanted.place)),
            place: Some(wanted.place.offset()),
            sequence: damage.sequence.unwrap_or(0),
            error: Some(damage.error.message),
            ..Inspected::absent(wanted.item.key)
        };
        Ok(())
    }
}
