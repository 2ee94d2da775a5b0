//! Mutating verbs: probe and read what is needed, take a place in the order, journal, then change
//! every row under its stripe's lock, in that order. After the journal nothing may fail.
//!
//! 1. Probe: each key once, index lines only; room for new keys is checked (`stage`).
//! 2. Read: records of rows on NVMe are staged in memory of this call, without a lock.
//! 3. Order: under the sequencer's lock the call gets its sequence, its journal entry and a ticket
//!    for each stripe that it touches.
//! 4. Change: stripe by stripe, in turn (`change`). Rows that stayed in DRAM are found where the
//!    probe saw them; staged ones are installed; new ones start at their initial row.
//! 5. Commit: wait for what the durability mode promises.

use std::borrow::Cow;
use std::sync::Arc;

use super::change::Work;
use super::engine::{now, Engine, Sequencer};
use super::session::Verdict;
use super::stage::Call;
use super::walk::check_length;
use super::PushOutcome;
use crate::batch::{sum_rows, Unique};
use crate::error::{Error, Result};
use crate::journal::{Entry, GradientPart, Position};
use crate::optimizer::is_finite;
use crate::table::{Counters, Plan, Table, Tickets};
use crate::types::{Push, Sequence, TableId};

/// What a call does to the rows of its keys.
#[derive(Clone, Copy)]
pub(super) enum Change<'a> {
    /// One optimizer step with this learning rate: float32[n, dim].
    Gradients(f32, &'a [f32]),
    /// New values: float32[n, dim].
    Rows(&'a [f32]),
    /// The row goes.
    Remove,
}

/// One table's share of a mutating call; keys are unique.
pub(super) struct Target<'a> {
    pub(super) table: Arc<Table>,
    pub(super) keys: Cow<'a, [u64]>,
    pub(super) change: Change<'a>,
    pub(super) plan: Plan,
}

/// A call's place in the order.
pub(super) struct Turn {
    pub(super) sequence: Sequence,
    pub(super) generation: u32,
    pub(super) position: Option<Position>,
    /// True at recovery: rows that are already past the sequence are left alone.
    pub(super) is_replay: bool,
}

/// A call with its place in the order.
pub(super) struct Ordered<'a> {
    turn: Turn,
    tickets: Tickets<'a>,
    /// Targets that were not applied before.
    applies: Vec<bool>,
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
        batches: &[super::GradientBatch<'_>],
    ) -> Result<PushOutcome> {
        let mut merged = Vec::with_capacity(batches.len());
        for (n, batch) in batches.iter().enumerate() {
            let table = self.table(batch.table)?;
            check_length(&table, batch.keys, batch.gradients.len())?;
            check_finite(&table, "gradients", batch.gradients)?;
            if batches[..n].iter().any(|other| other.table == batch.table) {
                return Err(Error::bad_input(format!(
                    "table {:?} is named twice in one push; join its keys and gradients",
                    table.name()
                )));
            }
            merged.push((table, merge_gradients(batch)));
        }
        let targets: Vec<Target<'_>> = batches
            .iter()
            .zip(&merged)
            .map(|(batch, (table, merged))| {
                let (keys, gradients) = match merged {
                    Some((keys, gradients)) => (&keys[..], &gradients[..]),
                    None => (batch.keys, batch.gradients),
                };
                let change = Change::Gradients(table.learning_rate(), gradients);
                self.target(table.clone(), keys, change)
            })
            .collect();
        self.push(push, targets).map(|(outcome, _)| outcome)
    }

    pub(super) fn assign(&self, push: Push, assign: &super::Assign<'_>) -> Result<PushOutcome> {
        let table = self.table(assign.table)?;
        check_length(&table, assign.keys, assign.rows.len())?;
        check_finite(&table, "rows", assign.rows)?;
        let merged = last_rows(assign, table.dim);
        let (keys, rows) = match &merged {
            Some((keys, rows)) => (&keys[..], &rows[..]),
            None => (assign.keys, assign.rows),
        };
        let target = self.target(table, keys, Change::Rows(rows));
        self.push(push, vec![target]).map(|(outcome, _)| outcome)
    }

    pub(super) fn remove(&self, push: Push, id: crate::TableId, keys: &[u64]) -> Result<u64> {
        let table = self.table(id)?;
        let unique = Unique::new(keys, 1);
        let target = self.target(table, &unique.keys, Change::Remove);
        self.push(push, vec![target]).map(|(_, effect)| effect.removed as u64)
    }

    pub(super) fn target<'a>(
        &self,
        table: Arc<Table>,
        keys: impl Into<Cow<'a, [u64]>>,
        change: Change<'a>,
    ) -> Target<'a> {
        let keys = keys.into();
        let plan = Plan::new(&keys, self.stripes.len());
        Target { table, keys, change, plan }
    }

    pub(super) fn push<'a>(
        &'a self,
        push: Push,
        targets: Vec<Target<'a>>,
    ) -> Result<(PushOutcome, Effect)> {
        let _watch = self.failure.watch();
        self.wait_for_space()?;
        let call = Call::probe(self, targets)?;
        call.check_gradients()?;
        let repair = self.repair(&call)?;
        let Some((first, ordered)) = self.order(push, &call, repair.as_ref())? else {
            let position = self.sequencer.lock().position;
            self.commit(position)?;
            for target in &call.targets {
                Counters::add(&target.table.counters.duplicate_pushes, 1);
            }
            return Ok((PushOutcome::Duplicate, Effect::default()));
        };
        if let (Some(repair), Some(first)) = (repair, first) {
            let effects = self.change(&repair, first);
            repair.settle(&effects);
        }
        let position = ordered.turn.position;
        let effects = self.change(&call, ordered);
        call.settle(&effects);
        self.commit(position)?;
        self.failure.check()?;
        let mut total = Effect::default();
        effects.iter().for_each(|effect| total.add(effect));
        total.lost.take().map_or(Ok((PushOutcome::Applied, total)), Err)
    }

    /// Rows to assign whose records are damaged are removed first, in an entry of its own: so the
    /// replay too begins them anew, whatever can be read of their slots then.
    fn repair<'a>(&'a self, call: &Call<'a>) -> Result<Option<Call<'a>>> {
        let mut targets = Vec::new();
        for (n, target) in call.targets.iter().enumerate() {
            let keys = call.damaged_keys(n);
            if matches!(target.change, Change::Rows(_)) && !keys.is_empty() {
                targets.push(self.target(target.table.clone(), keys, Change::Remove));
            }
        }
        (!targets.is_empty()).then(|| Call::probe(self, targets)).transpose()
    }

    /// Re-applies a journal entry at recovery. Nothing else runs yet. Rows that need a damaged
    /// record are left as they are: damaged.
    pub(super) fn replay_change<'a>(
        &'a self,
        sequence: Sequence,
        generation: u32,
        targets: Vec<Target<'a>>,
    ) -> Result<()> {
        let call = Call::probe(self, targets)?;
        let tickets = {
            let mut sequencer = self.sequencer.lock();
            sequencer.last = sequencer.last.max(sequence);
            self.draw_tickets(&mut sequencer, sequence, &call.targets)
        };
        let turn = Turn { sequence, generation, position: None, is_replay: true };
        let applies = vec![true; call.targets.len()];
        let effects = self.change(&call, Ordered { turn, tickets, applies });
        call.settle(&effects);
        self.failure.check()
    }

    /// Step 3. `None` for a duplicate. A repair comes right before its call.
    fn order<'a>(
        &'a self,
        push: Push,
        call: &Call<'a>,
        repair: Option<&Call<'a>>,
    ) -> Result<Option<(Option<Ordered<'a>>, Ordered<'a>)>> {
        let mut sequencer = self.sequencer.lock();
        self.check_entry_size(&call.targets)?;
        self.check_present(&call.targets)?;
        let name = |id| {
            let mut tables = call.targets.iter().map(|target| &target.table);
            tables.find(|table| table.id == id).map_or_else(String::new, |table| table.name())
        };
        let applies = match sequencer.sessions.decide(push, &call.ids(), name)? {
            Verdict::Duplicate => return Ok(None),
            Verdict::Apply(applies) => applies,
        };
        let place = |call: &Call<'a>, push, applies, sequencer: &mut Sequencer| {
            self.take_place(sequencer, push, call, applies)
        };
        let Some(repair) = repair else {
            return Ok(Some((None, place(call, push, applies, &mut sequencer)?)));
        };
        // Number 0 is noted nowhere: the push itself is still to come.
        let own = Push { number: 0, step: None, ..push };
        let first = place(repair, own, vec![true; repair.targets.len()], &mut sequencer)?;
        let ordered = place(call, push, applies, &mut sequencer);
        // The journal says already that the rows are removed.
        let ordered = ordered.inspect_err(|error| self.fail(error))?;
        Ok(Some((Some(first), ordered)))
    }

    /// The next place in the order, once the journal has it.
    fn take_place<'a>(
        &'a self,
        sequencer: &mut Sequencer,
        push: Push,
        call: &Call<'a>,
        applies: Vec<bool>,
    ) -> Result<Ordered<'a>> {
        let sequence = sequencer.last + 1;
        let mut generation = 0;
        if self.is_journaled() {
            let entry = journal_entry(sequence, push, &call.targets, &applies);
            sequencer.position = Some(self.journal().append(&entry)?);
            generation = self.journal().generation();
            for target in &call.targets {
                Counters::add(&target.table.counters.journal_bytes, target.bytes() as usize);
            }
        }
        sequencer.sessions.note(push, &call.ids(), now());
        sequencer.last = sequence;
        let tickets = self.draw_tickets(sequencer, sequence, &call.targets);
        let position = sequencer.position;
        let turn = Turn { sequence, generation, position, is_replay: false };
        Ok(Ordered { turn, tickets, applies })
    }

    /// Step 4. A failure from here on fails the store: the journal has what the rows have not.
    fn change(&self, call: &Call<'_>, mut ordered: Ordered<'_>) -> Vec<Effect> {
        let mut effects: Vec<Effect> = call.targets.iter().map(|_| Effect::default()).collect();
        while let Some((s, mut state)) = ordered.tickets.next_turn() {
            let applies = ordered.applies.iter().enumerate();
            for (n, _) in applies.filter(|(_, &applies)| applies) {
                let (target, probed) = (&call.targets[n], &call.probed[n]);
                let turn = &ordered.turn;
                let mut effect = Effect::default();
                let mut work = Work { engine: self, turn, target, effect: &mut effect };
                if let Err(error) = work.change_stripe(&mut state, s, probed) {
                    self.fail(&error);
                }
                effect.count(&target.table);
                effects[n].add(&effect);
            }
        }
        effects
    }

    pub(super) fn draw_tickets(
        &self,
        sequencer: &mut Sequencer,
        sequence: Sequence,
        targets: &[Target<'_>],
    ) -> Tickets<'_> {
        let mut drawn = Vec::new();
        for (s, next) in sequencer.tickets.iter_mut().enumerate() {
            if targets.iter().any(|target| !target.plan.range(s).is_empty()) {
                drawn.push((s, *next));
                *next += 1;
            }
        }
        Tickets::new(&self.stripes, sequence, drawn)
    }

    pub(super) fn commit(&self, position: Option<Position>) -> Result<()> {
        let Some(position) = position else { return Ok(()) };
        self.journal().commit(position)?;
        if self.journal().bytes() > self.config.journal_bytes() {
            self.wake.ask();
        }
        Ok(())
    }

    /// A table that was dropped meanwhile: nothing of the call is applied.
    fn check_present(&self, targets: &[Target<'_>]) -> Result<()> {
        targets.iter().try_for_each(|target| self.table(target.table.id).map(drop))
    }

    fn check_entry_size(&self, targets: &[Target<'_>]) -> Result<()> {
        let bytes: u64 = targets.iter().map(Target::bytes).sum();
        let most = self.config.journal_bytes() / 2;
        if self.is_journaled() && bytes > most {
            return Err(Error::store_full(format!(
                "one push of {bytes} bytes; with this nvme cap the journal takes {most} at once; \
                 split the push or raise nvme"
            )));
        }
        Ok(())
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
            ("all rows", total, self.record_bytes_max, "raise nvme (and dram, which bounds it too)")
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

impl Call<'_> {
    fn ids(&self) -> Vec<TableId> {
        self.targets.iter().map(|target| target.table.id).collect()
    }
}

impl Target<'_> {
    fn bytes(&self) -> u64 {
        let rows = match self.change {
            Change::Gradients(_, rows) | Change::Rows(rows) => rows.len(),
            Change::Remove => 0,
        };
        (self.keys.len() * 8 + rows * 4) as u64
    }
}

impl Effect {
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

fn journal_entry<'a>(
    sequence: Sequence,
    push: Push,
    targets: &'a [Target<'_>],
    applies: &[bool],
) -> Entry<'a> {
    if let [Target { table, keys, change: Change::Rows(rows), .. }] = targets {
        return Entry::Assign { sequence, push, table: table.id, keys, rows };
    }
    if let [Target { table, keys, change: Change::Remove, .. }] = targets {
        return Entry::Remove { sequence, push, table: table.id, keys };
    }
    let part = |target: &'a Target<'_>| match target.change {
        Change::Gradients(learning_rate, gradients) => Some(GradientPart {
            table: target.table.id,
            learning_rate,
            keys: &target.keys,
            gradients,
        }),
        _ => None,
    };
    let applied = targets.iter().zip(applies).filter(|(_, &applies)| applies);
    let tables = applied.filter_map(|(target, _)| part(target)).collect();
    Entry::Gradients { sequence, push, tables }
}

fn check_finite(table: &Table, what: &str, numbers: &[f32]) -> Result<()> {
    if is_finite(numbers) {
        return Ok(());
    }
    let at = numbers.iter().position(|x| !x.is_finite()).unwrap_or(0);
    Err(Error::bad_input(format!(
        "table {:?}: {what} hold {} at row {}, column {}; only finite numbers are applied",
        table.name(),
        numbers[at],
        at / table.dim,
        at % table.dim
    )))
}

/// Unique keys and summed gradients, or `None` if the keys were unique.
fn merge_gradients(batch: &super::GradientBatch<'_>) -> Option<(Vec<u64>, Vec<f32>)> {
    let unique = Unique::new(batch.keys, 1);
    if unique.keys.len() == batch.keys.len() {
        return None;
    }
    let dim = batch.gradients.len() / batch.keys.len();
    let mut sums = vec![0.0; unique.keys.len() * dim];
    sum_rows(batch.gradients, dim, &unique.inverse, &mut sums);
    Some((unique.keys, sums))
}

/// Unique keys with the last row of each, or `None` if the keys were unique.
fn last_rows(assign: &super::Assign<'_>, dim: usize) -> Option<(Vec<u64>, Vec<f32>)> {
    let unique = Unique::new(assign.keys, 1);
    if unique.keys.len() == assign.keys.len() {
        return None;
    }
    let mut rows = vec![0.0; unique.keys.len() * dim];
    for (row, &index) in assign.rows.chunks_exact(dim).zip(&unique.inverse) {
        let start = index as usize * dim;
        rows[start..start + dim].copy_from_slice(row);
    }
    Some((unique.keys, rows))
}
