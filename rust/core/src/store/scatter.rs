//! `scatter`: arithmetic on values, as a mutating call like the others. Of a key that the call
//! repeats all operands lie side by side, in order, and are applied to its row as one change.

use super::engine::Engine;
use super::mutate::{check_finite, repeated, Change, Effect, Target};
use super::order::{Decision, Turn};
use super::revisit::{note_change, Revisit};
use super::walk::check_length;
use super::PushOutcome;
use crate::batch::Unique;
use crate::error::{Error, Result};
use crate::ledger::{Hold, Kind};
use crate::scatter::{scatter, Operation};
use crate::table::{Found, Item, RowMut, Table, Visitor};
use crate::types::{Push, TableId};

/// One table's part of a `scatter`.
pub struct Scatter<'a> {
    /// Table.
    pub table: TableId,
    /// What is done.
    pub operation: Operation,
    /// Keys; the operands of one that is repeated are applied one after the other.
    pub keys: &'a [u64],
    /// The operands, float32[n, dim].
    pub rows: &'a [f32],
}

/// The operands of a call's unique keys.
#[derive(Clone, Copy)]
pub(super) struct Operands<'a> {
    pub(super) operation: Operation,
    /// The key of each operand; equal ones lie side by side.
    pub(super) keys: &'a [u64],
    /// float32[n, dim].
    pub(super) rows: &'a [f32],
    /// Unique key n has the operands from `starts[n]` to `starts[n + 1]`; empty: one each.
    starts: &'a [u32],
}

impl<'a> Operands<'a> {
    /// As they come from the journal, where nobody asks for those of a unique key.
    pub(super) fn of_entry(operation: Operation, keys: &'a [u64], rows: &'a [f32]) -> Self {
        Self { operation, keys, rows, starts: &[] }
    }

    /// Those of unique key `n`.
    fn of(&self, n: u32, dim: usize) -> &'a [f32] {
        let n = n as usize;
        let (start, end) = match self.starts {
            [] => (n, n + 1),
            starts => (starts[n] as usize, starts[n + 1] as usize),
        };
        &self.rows[start * dim..end * dim]
    }

    /// Changes the value of a row; false if it stays as it was.
    pub(super) fn change(&self, n: u32, value: &mut [f32], scratch: &mut [f32]) -> bool {
        scatter(self.operation, value, self.of(n, value.len()), scratch)
    }
}

/// Operands of a call that repeats some keys, ordered by key.
struct Grouped {
    keys: Vec<u64>,
    rows: Vec<f32>,
    starts: Vec<u32>,
    _hold: Hold,
}

impl Engine {
    pub(super) fn scatter(&self, push: Push, scatter: &Scatter<'_>) -> Result<PushOutcome> {
        let Scatter { operation, keys, rows, .. } = *scatter;
        let table = self.table(scatter.table)?;
        check_length(&table, keys, rows.len())?;
        check_finite(&table, "rows", keys, rows)?;
        check_divisors(&table, operation, keys, rows)?;
        let tables = [table.clone()];
        let accepted = match self.accept(push, &tables, keys.len(), &[])? {
            Decision::Apply(accepted) => accepted,
            Decision::Duplicate(before) => {
                return self.acknowledge(push, &tables, before).map(|(outcome, _)| outcome)
            }
        };
        let unique = repeated(keys, accepted.window());
        let grouped = unique.as_ref().map(|unique| self.grouped(unique, rows, table.dim));
        let operands = match &grouped {
            None => Operands { operation, keys, rows, starts: &[] },
            Some(Grouped { keys, rows, starts, .. }) => Operands { operation, keys, rows, starts },
        };
        let keys = unique.as_ref().map_or(keys, |unique| &unique.keys).into();
        let target = Target { table, keys, change: Change::Scatter(operands), left_out: 0 };
        self.apply(push, accepted, vec![target]).map(|(outcome, _)| outcome)
    }

    /// The operands of `unique` keys side by side, in the order of the call.
    fn grouped(&self, unique: &Unique, rows: &[f32], dim: usize) -> Grouped {
        let Unique { keys: uniques, inverse, .. } = unique;
        let bytes = (12 + 4 * dim) * inverse.len() + 16 * uniques.len();
        let hold = self.ledger.hold(Kind::Calls, bytes as u64);
        let mut starts = vec![0; uniques.len() + 1];
        inverse.iter().for_each(|&n| starts[n as usize + 1] += 1);
        (0..uniques.len()).for_each(|n| starts[n + 1] += starts[n]);
        let mut next = starts.clone();
        let (mut keys, mut sorted) = (vec![0; inverse.len()], vec![0.0; rows.len()]);
        for (row, &n) in rows.chunks_exact(dim).zip(inverse) {
            let at = next[n as usize] as usize;
            next[n as usize] += 1;
            keys[at] = uniques[n as usize];
            sorted[at * dim..(at + 1) * dim].copy_from_slice(row);
        }
        Grouped { keys, rows: sorted, starts, _hold: hold }
    }
}

/// Nothing can be divided by zero, whatever the rows hold.
fn check_divisors(table: &Table, operation: Operation, keys: &[u64], rows: &[f32]) -> Result<()> {
    let zero = (operation == Operation::Div).then(|| rows.iter().position(|&x| x == 0.0));
    let Some(at) = zero.flatten() else { return Ok(()) };
    Err(Error::bad_input(format!(
        "table {:?}: rows of key {} hold {} at column {}; no value can be divided by it: leave the \
         key out, or give 1 where a column is to stay",
        table.name(),
        keys[at / table.dim],
        rows[at],
        at % table.dim
    )))
}

/// The rows in DRAM, where the probe saw them.
pub(super) fn scatter_seen(revisit: Revisit<'_>, operands: &Operands<'_>) {
    let Revisit { turn, effect, later, scratch, part, items, found } = revisit;
    let dim = part.table.dim;
    let mut pass = Pass { turn, effect, later, scratch, operands, dim };
    part.revisit(items, found, &mut pass);
}

struct Pass<'a> {
    turn: &'a Turn,
    effect: &'a mut Effect,
    later: &'a mut Vec<u32>,
    scratch: &'a mut [f32],
    operands: &'a Operands<'a>,
    dim: usize,
}

impl Visitor for Pass<'_> {
    fn hit(&mut self, (header, numbers): RowMut<'_>, item: &Item) {
        let value = &mut numbers[..self.dim];
        let is_changed = self.operands.change(item.index, value, self.scratch);
        note_change(self.turn, self.effect, header, is_changed);
    }

    fn miss(&mut self, n: usize, _: &Item, _: Found) {
        self.later.push(n as u32);
    }
}
