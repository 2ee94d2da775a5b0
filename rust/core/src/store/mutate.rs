//! Mutating verbs: probe and read what is needed, take a place in the order, journal, then change
//! every row under its stripe's lock, in that order. After the journal nothing may fail.
//!
//! 1. Probe: each key once, index lines only; room for new keys is checked (`stage`).
//! 2. Read: records of rows on NVMe are staged in memory of this call, without a lock; the first
//!    ones, where it has no memory for all.
//! 3. Order: the call gets its sequence, its journal entry and a ticket for each stripe that it
//!    touches (`order`). A push that was made before is acknowledged, once that one is applied.
//! 4. Change: stripe by stripe, in turn (`change`). Rows that stayed in DRAM are found where the
//!    probe saw them; staged ones are installed; new ones start at their initial row; what is left
//!    on NVMe is read then.
//! 5. Commit: wait for what the durability mode promises.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use super::change::{Course, Work};
use super::engine::Engine;
use super::order::{Decision, Ordered, Ready};
use super::scatter::Operands;
use super::stage::{Call, Memory};
use super::unadmitted::Present;
use super::walk::check_length;
use super::{GradientBatch, PushOutcome};
use crate::batch::{sum_rows, Unique};
use crate::error::{Error, Result};
use crate::ledger::{Hold, Kind};
use crate::optimizer::is_finite;
use crate::table::{Counters, Plan, Table};
use crate::types::{bucket, hash, Push};

/// What a call does to the rows of its keys.
#[derive(Clone, Copy)]
pub(super) enum Change<'a> {
    /// One optimizer step with this learning rate: float32[n, dim].
    Gradients(f32, &'a [f32]),
    /// New values: float32[n, dim].
    Rows(&'a [f32]),
    /// Rows whole, each of so many numbers; see `whole`.
    Whole(&'a [f32], usize),
    /// Arithmetic on the values.
    Scatter(Operands<'a>),
    /// The row goes.
    Remove,
}

impl<'a> Change<'a> {
    /// What comes with the keys, float32[n, width].
    pub(super) fn rows_mut(&mut self) -> Option<&mut &'a [f32]> {
        match self {
            Self::Gradients(_, rows) | Self::Rows(rows) | Self::Whole(rows, _) => Some(rows),
            Self::Scatter(operands) => Some(&mut operands.rows),
            Self::Remove => None,
        }
    }

    /// Numbers that come with a key, of a table of so many columns.
    pub(super) fn width(&self, dim: usize) -> usize {
        match self {
            Self::Gradients(..) | Self::Rows(_) | Self::Scatter(_) => dim,
            Self::Whole(_, width) => *width,
            Self::Remove => 0,
        }
    }

    /// Whether nothing that is known of the old row is needed but its slots.
    fn sets_values(&self) -> bool {
        matches!(self, Self::Rows(_) | Self::Whole(..))
    }
}

/// One table's share of a mutating call; keys are unique.
pub(super) struct Target<'a> {
    pub(super) table: Arc<Table>,
    pub(super) keys: Cow<'a, [u64]>,
    pub(super) change: Change<'a>,
    /// Keys that were left out, for they are not admitted.
    pub(super) left_out: usize,
}

/// A push that was not made before, and for which there is memory.
pub(super) struct Accepted {
    applies: Vec<bool>,
    memory: Memory,
    /// Of each batch of gradients.
    present: Vec<Option<Present>>,
}

impl Accepted {
    /// Keys for which there is memory at a time.
    pub(super) fn window(&self) -> usize {
        self.memory.window
    }
}

/// Unique keys of a batch that repeats some, with one row each.
pub(super) struct Merged {
    keys: Vec<u64>,
    rows: Vec<f32>,
    /// Where in the batch each key first occurs; empty for keys that were copied.
    pub(super) firsts: Vec<u32>,
    _hold: Hold,
}

/// What a call did.
#[derive(Default)]
pub(super) struct Effect {
    pub(super) updated: usize,
    pub(super) removed: usize,
    pub(super) created: usize,
    pub(super) poisoned: usize,
    /// The first row that could not be changed, since its record was damaged after the probe.
    pub(super) lost: Option<Error>,
}

impl Engine {
    pub(super) fn apply_gradients(
        &self,
        push: Push,
        batches: &[GradientBatch<'_>],
    ) -> Result<PushOutcome> {
        let mut tables = Vec::with_capacity(batches.len());
        for (n, batch) in batches.iter().enumerate() {
            let table = self.table(batch.table)?;
            check_length(&table, batch.keys, batch.gradients.len())?;
            if batches[..n].iter().any(|other| other.table == batch.table) {
                return Err(Error::bad_input(format!(
                    "table {:?} is named twice in one push; join its keys and gradients",
                    table.name()
                )));
            }
            tables.push(table);
        }
        let keys = batches.iter().map(|batch| batch.keys.len()).sum();
        let accepted = match self.accept(push, &tables, keys, batches)? {
            Decision::Apply(accepted) => accepted,
            Decision::Duplicate(before) => {
                return self.acknowledge(push, &tables, before).map(|(outcome, _)| outcome)
            }
        };
        let mut merged = Vec::with_capacity(batches.len());
        for ((batch, table), present) in batches.iter().zip(&tables).zip(&accepted.present) {
            let mut are_finite = true;
            let sum = |rows: &[f32], dim, inverse: &[u32], out: &mut [f32]| {
                are_finite = sum_rows(rows, dim, inverse, out);
            };
            let window = accepted.memory.window;
            let recent = self.recent.take(batch.table, batch.keys);
            let unique = recent.or_else(|| repeated(batch.keys, window));
            let mut summed = unique.map(|unique| self.merged(unique, batch.gradients, sum));
            if summed.is_none() || !are_finite {
                // Finite gradients whose sum is not are no error: their rows stay as they are.
                check_finite(table, "gradients", batch.keys, batch.gradients)?;
            }
            let strain = |present: &Present| present.strain(self, batch, &mut summed);
            let left_out = present.as_ref().map_or(0, strain);
            merged.push((summed, left_out));
        }
        let mut targets = Vec::with_capacity(batches.len());
        for ((batch, (merged, left_out)), table) in batches.iter().zip(&merged).zip(tables) {
            let (keys, gradients) = either(merged, batch.keys, batch.gradients);
            let change = Change::Gradients(table.learning_rate(), gradients);
            targets.push(Target { table, keys: keys.into(), change, left_out: *left_out });
        }
        self.apply(push, accepted, targets).map(|(outcome, _)| outcome)
    }

    pub(super) fn assign(&self, push: Push, assign: &super::Assign<'_>) -> Result<PushOutcome> {
        let table = self.table(assign.table)?;
        check_length(&table, assign.keys, assign.rows.len())?;
        check_finite(&table, "rows", assign.keys, assign.rows)?;
        let tables = [table.clone()];
        let accepted = match self.accept(push, &tables, assign.keys.len(), &[])? {
            Decision::Apply(accepted) => accepted,
            Decision::Duplicate(before) => {
                return self.acknowledge(push, &tables, before).map(|(outcome, _)| outcome)
            }
        };
        let unique = repeated(assign.keys, accepted.memory.window);
        let merged = unique.map(|unique| self.merged_last(unique, assign.rows));
        let (keys, rows) = either(&merged, assign.keys, assign.rows);
        let target = Target { table, keys: keys.into(), change: Change::Rows(rows), left_out: 0 };
        self.apply(push, accepted, vec![target]).map(|(outcome, _)| outcome)
    }

    pub(super) fn remove(&self, push: Push, id: crate::TableId, keys: &[u64]) -> Result<u64> {
        let table = self.table(id)?;
        let tables = [table.clone()];
        let accepted = match self.accept(push, &tables, keys.len(), &[])? {
            Decision::Apply(accepted) => accepted,
            Decision::Duplicate(before) => {
                return self.acknowledge(push, &tables, before).map(|(_, removed)| removed)
            }
        };
        let unique = repeated(keys, accepted.memory.window);
        let merged = unique.map(|unique| self.merged(unique, &[], |_, _, _, _| ()));
        let (keys, _) = either(&merged, keys, &[]);
        let target = Target { table, keys: keys.into(), change: Change::Remove, left_out: 0 };
        self.apply(push, accepted, vec![target]).map(|(_, removed)| removed)
    }

    /// Whether a push goes on, and memory and room for it. A duplicate needs neither: what its
    /// original met may be gone by now.
    pub(super) fn accept(
        &self,
        push: Push,
        tables: &[Arc<Table>],
        keys: usize,
        batches: &[GradientBatch<'_>],
    ) -> Result<Decision<Accepted>> {
        let applies = match self.decide(push, tables)? {
            Decision::Apply(applies) => applies,
            Decision::Duplicate(before) => return Ok(Decision::Duplicate(before)),
        };
        self.wait_for_space()?;
        // Before memory is booked: it asks for memory of its own.
        let asked = tables.iter().zip(batches);
        let present =
            asked.map(|(table, batch)| self.present(table, batch)).collect::<Result<_>>()?;
        let floats = tables.iter().map(|table| table.floats).max().unwrap_or(0);
        let memory = Memory::book(self, keys, floats)?;
        self.tier.arena.prepare();
        Ok(Decision::Apply(Accepted { applies, memory, present }))
    }

    /// Unique keys and one row for each by `merge`.
    fn merged(
        &self,
        unique: Unique,
        rows: &[f32],
        merge: impl FnOnce(&[f32], usize, &[u32], &mut [f32]),
    ) -> Merged {
        let ids = unique.inverse.len();
        let dim = rows.len() / ids;
        let bytes = 12 * ids + (12 + 4 * dim) * unique.keys.len();
        let hold = self.ledger.hold(Kind::Calls, bytes as u64);
        let mut merged = vec![0.0; unique.keys.len() * dim];
        merge(rows, dim, &unique.inverse, &mut merged);
        let Unique { keys, firsts, .. } = unique;
        Merged { keys, rows: merged, firsts, _hold: hold }
    }

    /// The last row of each key, of any width.
    pub(super) fn merged_last(&self, unique: Unique, rows: &[f32]) -> Merged {
        self.merged(unique, rows, last_rows)
    }

    /// Returns what became of the push, and how many rows it removed.
    pub(super) fn apply<'a>(
        &'a self,
        push: Push,
        accepted: Accepted,
        targets: Vec<Target<'a>>,
    ) -> Result<(PushOutcome, u64)> {
        let _watch = self.failure.watch();
        let Accepted { applies, memory, .. } = accepted;
        let call = Call::probe(self, targets, (memory.window, memory.records))?;
        call.check_operands()?;
        let repair = self.repair(&call)?;
        let first = repair.as_ref().map(|call| Ready::before(self, push, call)).transpose()?;
        let (first, ordered) = match self.order(first, Ready::new(self, push, &call, applies)?)? {
            Decision::Apply(places) => places,
            Decision::Duplicate(before) => return self.acknowledge(push, &call.tables(), before),
        };
        if let (Some(repair), Some(mut first)) = (repair, first) {
            self.change(&repair, &mut first);
        }
        self.finish(push, call, ordered)
    }

    /// Steps 4 and 5.
    fn finish(
        &self,
        push: Push,
        call: Call<'_>,
        mut ordered: Ordered<'_>,
    ) -> Result<(PushOutcome, u64)> {
        let effects = self.change(&call, &mut ordered);
        for (target, _) in call.targets.iter().zip(&ordered.applies).filter(|of| *of.1) {
            Counters::add(&target.table.counters.gradients_unadmitted, target.left_out);
            if target.table.admission().is_some() {
                self.candidates.note();
            }
        }
        let is_removal = call.targets.iter().any(|t| matches!(t.change, Change::Remove));
        drop(call);
        let effect = Effect::sum(&effects);
        let mut position = ordered.turn.position;
        if is_removal {
            position = self.note_removal(push, effect.removed as u64)?;
        }
        if ordered.applies.contains(&false) {
            // What a session before has applied of it may be on its way still.
            self.running.wait_before(ordered.turn.sequence);
        }
        // From here on duplicates are acknowledged.
        drop(ordered);
        self.commit(position)?;
        self.failure.check()?;
        effect.lost.map_or(Ok((PushOutcome::Applied, effect.removed as u64)), Err)
    }

    /// Rows to assign whose records are damaged are removed first, in an entry of its own: so the
    /// replay too begins them anew, whatever can be read of their slots then.
    fn repair<'a>(&'a self, call: &Call<'a>) -> Result<Option<Call<'a>>> {
        let mut targets = Vec::new();
        for (n, target) in call.targets.iter().enumerate() {
            let keys = call.damaged_keys(n);
            if target.change.sets_values() && !keys.is_empty() {
                let (table, keys, change) = (target.table.clone(), keys.into(), Change::Remove);
                targets.push(Target { table, keys, change, left_out: 0 });
            }
        }
        // Of the keys of a window: they were booked with the call.
        (!targets.is_empty())
            .then(|| Call::probe(self, targets, (usize::MAX, usize::MAX)))
            .transpose()
    }

    /// Step 4. A failure from here on fails the store: the journal has what the rows have not.
    fn change(&self, call: &Call<'_>, ordered: &mut Ordered<'_>) -> Vec<Effect> {
        let mut effects: Vec<Effect> = call.targets.iter().map(|_| Effect::default()).collect();
        let mut courses: Vec<Course<'_>> = call.probed.iter().map(Course::new).collect();
        while let Some((s, mut state)) = ordered.tickets.next_turn() {
            let applies = ordered.applies.iter().enumerate();
            for (n, _) in applies.filter(|(_, &applies)| applies) {
                let target = &call.targets[n];
                let turn = &ordered.turn;
                let mut effect = Effect::default();
                let mut work = Work::new(self, turn, target, &mut effect);
                if let Err(error) = courses[n].change_stripe(&mut work, &mut state, s) {
                    self.fail(&error);
                }
                call.charge_created(n, effect.created);
                effect.count(&target.table);
                effects[n].add(&effect);
            }
        }
        effects
    }

    /// Charges for `n` records; returns the sums over all tables and of this one.
    pub(super) fn charge_records(&self, table: &Table, n: usize) -> (u64, u64) {
        use std::sync::atomic::Ordering::Relaxed;
        let bytes = n as u64 * Self::record_bytes_of(table);
        let total = self.record_bytes.fetch_add(bytes, Relaxed) + bytes;
        (total, table.record_bytes.fetch_add(bytes, Relaxed) + bytes)
    }

    /// Sets record bytes of `n` new keys aside.
    pub(super) fn reserve_records(&self, table: &Table, n: usize) -> Result<()> {
        if n == 0 {
            return Ok(());
        }
        let (total, own) = self.charge_records(table, n);
        let cap = table.spec().nvme.unwrap_or(u64::MAX);
        let (whose, bytes, most, remedy) = if own > cap {
            ("its rows", own, cap, "raise the table's nvme")
        } else {
            let (whose, remedy) = match self.config.cold {
                None => ("all rows", "raise nvme (and dram, which bounds it too)"),
                Some(_) => (
                    "all rows, the cold disk's counted,",
                    "raise nvme or cold_cap (and dram, which bounds both too)",
                ),
            };
            (whose, total, self.record_bytes_max, remedy)
        };
        if bytes > most {
            self.release_records(table, n);
            return Err(Error::store_full(format!(
                "table {:?}: {n} new keys would take {whose} to {bytes} bytes on NVMe, of {most} \
                 allowed; {remedy}, or remove keys",
                table.name(),
            )));
        }
        Ok(())
    }

    pub(super) fn release_records(&self, table: &Table, n: usize) {
        use std::sync::atomic::Ordering::Relaxed;
        let bytes = n as u64 * Self::record_bytes_of(table);
        self.record_bytes.fetch_sub(bytes, Relaxed);
        table.record_bytes.fetch_sub(bytes, Relaxed);
    }
}

impl Merged {
    pub(super) fn arrays(&self) -> (&[u64], &[f32]) {
        (&self.keys, &self.rows)
    }

    /// A batch as it is.
    pub(super) fn copy(engine: &Engine, keys: &[u64], rows: &[f32]) -> Self {
        let bytes = size_of_val(keys) + size_of_val(rows);
        let hold = engine.ledger.hold(Kind::Calls, bytes as u64);
        Self { keys: keys.to_vec(), rows: rows.to_vec(), firsts: Vec::new(), _hold: hold }
    }

    /// Keeps some keys, by their numbers, with their rows. Returns how many go.
    pub(super) fn retain(&mut self, is_kept: impl Fn(usize) -> bool) -> usize {
        let (before, mut kept) = (self.keys.len(), 0);
        let dim = self.rows.len() / before.max(1);
        for n in (0..before).filter(|&n| is_kept(n)) {
            self.keys[kept] = self.keys[n];
            self.rows.copy_within(n * dim..(n + 1) * dim, kept * dim);
            kept += 1;
        }
        self.keys.truncate(kept);
        self.rows.truncate(kept * dim);
        before - kept
    }
}

impl Target<'_> {
    /// Of its keys and numbers, as the journal will hold them.
    pub(super) fn bytes(&self) -> u64 {
        let keys = match self.change {
            Change::Scatter(operands) => operands.keys.len(),
            _ => self.keys.len(),
        };
        let rows = { self.change }.rows_mut().map_or(0, |rows| rows.len());
        (keys * 8 + rows * 4) as u64
    }
}

impl Effect {
    fn sum(effects: &[Self]) -> Self {
        let mut sum = Self::default();
        effects.iter().for_each(|effect| sum.add(effect));
        sum
    }

    fn add(&mut self, other: &Self) {
        self.updated += other.updated;
        self.removed += other.removed;
        self.created += other.created;
        self.poisoned += other.poisoned;
        self.lost = self.lost.take().or_else(|| other.lost.clone());
    }

    fn count(&self, table: &Table) {
        Counters::add(&table.counters.bytes_updated, self.updated * table.floats * 4);
        Counters::add(&table.counters.rows_poisoned, self.poisoned);
    }
}

pub(super) fn check_finite(table: &Table, what: &str, keys: &[u64], numbers: &[f32]) -> Result<()> {
    if is_finite(numbers) {
        return Ok(());
    }
    let at = numbers.iter().position(|x| !x.is_finite()).unwrap_or(0);
    Err(Error::bad_input(format!(
        "table {:?}: {what} of key {} hold {} at column {}; only finite {what} are applied: find \
         its source, clip or skip it",
        table.name(),
        keys[at / table.dim],
        numbers[at].to_string().to_lowercase(),
        at % table.dim
    )))
}

/// The unique keys, if any is repeated. Looks for that in a window of keys at a time.
pub(super) fn repeated(keys: &[u64], window: usize) -> Option<Unique> {
    let unique_of = |some: &[u64]| {
        let unique = Unique::new(some, 1);
        (unique.keys.len() < some.len()).then_some(unique)
    };
    if keys.len() <= window {
        return unique_of(keys);
    }
    let is_repeated = |buckets: Range<u32>| {
        let is_own = |&&key: &&u64| buckets.contains(&bucket(hash(key)));
        let some: Vec<u64> = keys.iter().filter(is_own).copied().collect();
        unique_of(&some).is_some()
    };
    Plan::windows(keys, window).into_iter().any(is_repeated).then(|| Unique::new(keys, 1))
}

/// What was merged, or else what was given.
fn either<'a>(
    merged: &'a Option<Merged>,
    keys: &'a [u64],
    rows: &'a [f32],
) -> (&'a [u64], &'a [f32]) {
    merged.as_ref().map_or((keys, rows), Merged::arrays)
}

/// `out[inverse[i]] = rows[i]`: of repeated keys the last wins.
fn last_rows(rows: &[f32], dim: usize, inverse: &[u32], out: &mut [f32]) {
    for (row, &index) in rows.chunks_exact(dim).zip(inverse) {
        let start = index as usize * dim;
        out[start..start + dim].copy_from_slice(row);
    }
}
