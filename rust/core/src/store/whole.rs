//! Rows whole, as an export reads them and an import writes them: numbers with their statistics.
//!
//! A written row is one float32 array: the value (and the slots, if they come along), then training
//! reads and Unix seconds of the last as the bits of two uint32.

use std::ops::Range;

use super::changes::{ChangesPage, Detail, PageQuery};
use super::engine::Engine;
use super::mutate::{repeated, Change, Merged, Target};
use super::order::Decision;
use super::PushOutcome;
use crate::error::{Error, Result};
use crate::optimizer::is_finite;
use crate::table::Table;
use crate::types::{Push, TableId};

/// Numbers of a written row behind value and slots.
const STATISTICS: usize = 2;

/// The rows of an `import_rows`.
pub struct Import<'a> {
    /// Table.
    pub table: TableId,
    /// Keys; of repeats the last wins.
    pub keys: &'a [u64],
    /// float32[n, dim + 2], or float32[n, dim + slots + 2].
    pub rows: &'a [f32],
}

/// A written row, taken apart.
pub(super) struct Written<'a> {
    /// Value, or value and slots.
    pub(super) numbers: &'a [f32],
    pub(super) frequency: u32,
    pub(super) last_seen: u32,
}

impl<'a> Written<'a> {
    pub(super) fn of(row: &'a [f32]) -> Self {
        let (numbers, statistics) = row.split_at(row.len() - STATISTICS);
        let [frequency, last_seen] = [statistics[0].to_bits(), statistics[1].to_bits()];
        Self { numbers, frequency, last_seen }
    }

    /// Its stamp; one that has none is seen now.
    pub(super) fn seen(&self, now: u32) -> u32 {
        if self.last_seen > 0 {
            self.last_seen
        } else {
            now
        }
    }
}

/// Numbers of each of `keys` written rows.
pub(super) fn check_width(table: &Table, keys: usize, floats: usize) -> Result<usize> {
    let widths = [table.floats + STATISTICS, table.dim + STATISTICS];
    widths.into_iter().find(|width| width * keys == floats).ok_or_else(|| {
        Error::bad_input(format!(
            "table {:?}: {floats} float32 numbers for {keys} whole rows; give {} a row, or {} with \
             slots",
            table.name(),
            widths[1],
            widths[0]
        ))
    })
}

impl Engine {
    pub(super) fn export_rows(
        &self,
        table: TableId,
        cells: Range<u64>,
        with_slots: bool,
        bytes: u64,
    ) -> Result<ChangesPage> {
        let detail = if with_slots { Detail::Rows } else { Detail::Values };
        self.changes_page(&PageQuery { table, cells, since: None, detail, bytes })
    }

    pub(super) fn import_rows(&self, push: Push, import: &Import<'_>) -> Result<PushOutcome> {
        let Import { keys, rows, .. } = *import;
        let table = self.table(import.table)?;
        let width = check_width(&table, keys.len(), rows.len())?;
        check_numbers(&table, keys, rows, width)?;
        let tables = [table.clone()];
        let accepted = match self.accept(push, &tables, keys.len(), &[])? {
            Decision::Apply(accepted) => accepted,
            Decision::Duplicate(before) => {
                return self.acknowledge(push, &tables, before).map(|(outcome, _)| outcome)
            }
        };
        let unique = repeated(keys, accepted.window());
        let merged = unique.map(|unique| self.merged_last(unique, rows));
        let (keys, rows) = merged.as_ref().map_or((keys, rows), Merged::arrays);
        let target =
            Target { table, keys: keys.into(), change: Change::Whole(rows, width), left_out: 0 };
        self.apply(push, accepted, vec![target]).map(|(outcome, _)| outcome)
    }
}

/// What would poison every later step is refused; statistics may be any bits.
fn check_numbers(table: &Table, keys: &[u64], rows: &[f32], width: usize) -> Result<()> {
    for (key, row) in keys.iter().zip(rows.chunks_exact(width)) {
        let Written { numbers, .. } = Written::of(row);
        if is_finite(numbers) {
            continue;
        }
        let at = numbers.iter().position(|x| !x.is_finite()).unwrap_or(0);
        let (what, column) = if at < table.dim { ("value", at) } else { ("slots", at - table.dim) };
        return Err(Error::bad_input(format!(
            "table {:?}: the {what} of key {key} hold {} at column {column}; only finite rows are \
             stored: leave the row out, or mend it",
            table.name(),
            numbers[at].to_string().to_lowercase(),
        )));
    }
    Ok(())
}
