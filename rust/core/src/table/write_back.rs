//! Dirty rows go to the log and stay in DRAM, clean: in steps, at a cost that follows what is due.
//!
//! Marks beside the memory tell which groups of rows may be due (`arena`), so rows that are clean
//! are not looked at. A step goes on where the last one ended; where rows of a table moved
//! meanwhile that table begins anew.

use super::part::Part;
use super::pool::Pool;
use super::row::RowState;
use super::shape::{Counters, Table};
use super::stripe::{State, Tier};
use crate::arena::Mark;
use crate::error::Result;
use crate::log::{Record, Stream};

/// A write-back on its way through a stripe.
#[derive(Default)]
pub(super) struct WriteBack {
    /// Number of it: parts note which one has looked at them.
    number: u32,
    /// What it looks for; `None`: there is none.
    due: Option<Due>,
}

/// Rows that a step looks at for each that it may write.
const LOOKS: usize = 16;

/// What a step may still do.
struct Left {
    rows: usize,
    looks: usize,
}

/// Which dirty rows are written back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Due {
    All,
    /// Rows that need a journal file up to this generation.
    Journal(u32),
    /// Rows that a read made and that neither log nor journal knows.
    Made,
}

impl State {
    /// Writes rows back that are due, keeping them in DRAM: about `rows_max` at most. True when
    /// none is left.
    pub(crate) fn write_back(&mut self, tier: &Tier, due: Due, rows_max: usize) -> Result<bool> {
        let is_first = self.write_back.due != Some(due);
        if is_first {
            self.write_back = WriteBack { number: self.write_back.number + 1, due: Some(due) };
        }
        let mut left = Left { rows: rows_max, looks: rows_max.saturating_mul(LOOKS) };
        for part in self.parts.values_mut() {
            if !write_part_back(tier, part, self.write_back.number, due, &mut left)? {
                return Ok(false);
            }
        }
        self.write_back.due = None;
        // Between two steps others may make rows that are due, but none that an old journal file is
        // needed for.
        debug_assert!(
            !(is_first || matches!(due, Due::Journal(_)))
                || self.parts.values().all(|part| !holds_due(part, due))
        );
        Ok(true)
    }
}

/// True when no due row of the part is left.
fn write_part_back(
    tier: &Tier,
    part: &mut Part,
    number: u32,
    what: Due,
    left: &mut Left,
) -> Result<bool> {
    if part.written_back.0 != number {
        part.written_back = (number, (0, 0));
    }
    let mark = if matches!(what, Due::Journal(_)) { Mark::Journaled } else { Mark::Dirty };
    while let Some(group) = part.pool.next_marked(mark, part.written_back.1) {
        let (place, after, rows) = (group.place(), group.after(), group.rows());
        let due = |pool: &Pool, at: u64| is_due(pool.header(at).state, what);
        let due: Vec<u64> = rows.iter().copied().filter(|&at| due(&part.pool, at)).collect();
        if left.looks == 0 || !due.is_empty() && left.rows == 0 {
            return Ok(false);
        }
        for &at in &due {
            write_row(tier, Stream::Rows, &part.table, &mut part.pool, at)?;
        }
        left.rows = left.rows.saturating_sub(due.len());
        left.looks = left.looks.saturating_sub(rows.len());
        let stays = |state: RowState| match mark {
            Mark::Journaled => state.is_journaled(),
            Mark::Dirty => state.is_dirty(),
        };
        if !rows.iter().any(|&at| stays(part.pool.header(at).state)) {
            part.pool.unmark(mark, place);
        }
        part.written_back.1 = after;
    }
    Ok(true)
}

fn is_due(state: RowState, due: Due) -> bool {
    state.is_dirty()
        && match due {
            Due::All => true,
            Due::Journal(bound) => state.needs_journal(bound),
            Due::Made => state.place().is_none() && !state.is_journaled(),
        }
}

/// Looks at every row: what marks promise is held against it where assertions are compiled in.
fn holds_due(part: &Part, due: Due) -> bool {
    let mut hand = super::pool::Hand::default();
    (0..part.pool.capacity()).filter_map(|_| part.pool.next(&mut hand)).any(|at| {
        let state = part.pool.header(at).state;
        state.is_live() && is_due(state, due)
    })
}

/// Appends a dirty row to the log and marks it clean.
pub(super) fn write_row(
    tier: &Tier,
    stream: Stream,
    table: &Table,
    pool: &mut Pool,
    at: u64,
) -> Result<()> {
    let (header, numbers) = pool.row_unmarked(at);
    let record = Record {
        key: header.key,
        sequence: header.sequence,
        last_seen: header.last_seen,
        frequency: header.frequency,
        row: numbers,
    };
    let place = match (stream, header.state.place()) {
        // Reads alone have made it newer than its record.
        (Stream::Rows, Some(twin)) if !header.state.is_journaled() => {
            tier.log.try_append_behind(twin, table.id, &record)?
        }
        _ => tier.log.try_append(stream, table.id, &record)?,
    };
    if let Some(old) = header.state.place() {
        tier.log.release(old, table.floats);
    }
    header.state.make_clean(place);
    Counters::add(&table.counters.device_bytes_written, pool.row_bytes());
    Ok(())
}
