//! Rows of a checkpoint become rows of a table that no call finds yet.

use std::sync::Arc;

use crate::columns::Columns;
use crate::error::Result;
use crate::store::engine::Engine;
use crate::store::pressure::Patience;
use crate::table::{stripe_of, Item, State, Table};
use crate::types::{bucket, hash, Sequence};

/// Rows that are put in under one lock.
const ROWS_A_LOCK: usize = 256;

impl Engine {
    /// Puts those of the rows in that count. They are of one group of buckets, and have no row yet.
    pub(super) fn install(
        &self,
        table: &Arc<Table>,
        rows: &Columns,
        counted: &[usize],
        with_slots: bool,
        sequence: Sequence,
    ) -> Result<()> {
        for some in counted.chunks(ROWS_A_LOCK) {
            self.wait_for_space()?;
            self.reserve_records(table, some.len())?;
            let mut filling = Filling { engine: self, table, rows, with_slots, sequence };
            let mut done = 0;
            let outcome = filling.put(some, &mut done);
            // What was not put in needs no room.
            self.release_records(table, some.len() - done);
            outcome?;
        }
        Ok(())
    }
}

struct Filling<'a> {
    engine: &'a Engine,
    table: &'a Arc<Table>,
    rows: &'a Columns,
    with_slots: bool,
    sequence: Sequence,
}

impl Filling<'_> {
    fn put(&mut self, some: &[usize], done: &mut usize) -> Result<()> {
        let stripes = &self.engine.stripes;
        let Some(first) = some.first() else { return Ok(()) };
        let stripe = &stripes[stripe_of(hash(self.rows.keys[*first]), stripes.len())];
        let mut patience = Patience::new(self.engine, false);
        while *done < some.len() {
            let outcome = {
                let mut state = stripe.lock();
                let hashes: Vec<u64> =
                    some[*done..].iter().map(|&at| hash(self.rows.keys[at])).collect();
                state
                    .check_room(&self.engine.tier, self.table, &hashes)
                    .and_then(|()| self.put_locked(&mut state, some, done))
            };
            if let Err(error) = outcome {
                patience.make_log_room(error)?;
            }
        }
        Ok(())
    }

    fn put_locked(&self, state: &mut State, some: &[usize], done: &mut usize) -> Result<()> {
        let Self { engine, table, rows, .. } = *self;
        let floats = rows.numbers.len() / rows.len();
        for &at in &some[*done..] {
            let key = rows.keys[at];
            let item = Item { key, hash: hash(key), index: 0 };
            debug_assert!(bucket(item.hash) / 64 == bucket(hash(rows.keys[some[0]])) / 64);
            let place = state.insert(&engine.tier, table, &item, self.sequence)?;
            let part = state.part(&engine.tier, table);
            let (header, numbers) = part.pool.row_mut(place);
            (header.last_seen, header.frequency) = (rows.last_seen[at], rows.frequency[at]);
            let saved = &rows.numbers[at * floats..(at + 1) * floats];
            if self.with_slots {
                numbers.copy_from_slice(saved);
            } else {
                table.initial_row(key, numbers);
                numbers[..table.dim].copy_from_slice(&saved[..table.dim]);
            }
            *done += 1;
        }
        Ok(())
    }
}
