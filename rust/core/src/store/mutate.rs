//! Mutating verbs: probe and read what is needed, take a place in the order, journal, then change
//! every row under its stripe's lock, in that order. After the journal nothing may fail.
//!
//! 1. Probe: each key once, index lines only; room for new keys is checked.
//! 2. Read: records of rows on NVMe are staged in memory of this call, without a lock.
//! 3. Order: under the sequencer's lock the call gets its sequence, its journal entry and a ticket
//!    for each stripe that it touches.
//! 4. Change: stripe by stripe, in turn. Rows that stayed in DRAM are found where the probe saw
//!    them; staged ones are installed; new ones start at their initial row.
//! 5. Commit: wait for what the durability mode promises.

use std::collections::HashMap;
use std::sync::Arc;

use super::change::Work;
use super::engine::{now, Engine, Sequencer};
use super::read::{check_length, count_reads};
use super::session::Verdict;
use super::PushOutcome;
use crate::batch::{sum_rows, Unique};
use crate::error::{Error, Result};
use crate::journal::{Entry, GradientPart, Position};
use crate::log::{Pin, Read, RecordView};
use crate::optimizer::is_finite;
use crate::table::{Counters, Found, Plan, Table, Tickets};
use crate::types::{Place, Push, Sequence};

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
    pub(super) keys: &'a [u64],
    pub(super) change: Change<'a>,
    pub(super) plan: Plan,
}

/// What the probe saw of one target.
pub(super) struct Probed {
    /// For each item of the plan.
    pub(super) found: Vec<Found>,
    /// Era of the part in each stripe: addresses in DRAM hold while it lasts.
    pub(super) eras: Vec<u64>,
    pub(super) staged: HashMap<u32, Staged>,
}

/// A record read ahead of its change.
pub(super) struct Staged {
    pub(super) place: Place,
    pub(super) sequence: Sequence,
    last_seen: u32,
    frequency: u32,
    row: Vec<f32>,
}

/// Record bytes set aside for new keys, table by table.
type Reserved = Vec<(Arc<Table>, usize)>;

/// A call's place in the order.
pub(super) struct Turn {
    pub(super) sequence: Sequence,
    pub(super) generation: u32,
    pub(super) position: Option<Position>,
    /// True at recovery: rows that are already past the sequence are left alone.
    pub(super) is_replay: bool,
}

/// A place in the order: the turn, its tickets, and which of the targets are applied.
type Ordered<'a> = (Turn, Tickets<'a>, Vec<bool>);

/// What a call did.
#[derive(Default)]
pub(super) struct Effect {
    pub(super) updated: usize,
    pub(super) removed: usize,
    pub(super) created: usize,
    pub(super) poisoned: usize,
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
        keys: &'a [u64],
        change: Change<'a>,
    ) -> Target<'a> {
        let plan = Plan::new(keys, self.stripes.len());
        Target { table, keys, change, plan }
    }

    pub(super) fn push(
        &self,
        push: Push,
        targets: Vec<Target<'_>>,
    ) -> Result<(PushOutcome, Effect)> {
        self.check_open()?;
        let _watch = self.failure.watch();
        self.wait_for_space()?;
        let pin = self.tier.log.pin();
        let (probed, reserved) = self.probe(&pin, &targets)?;
        let ordered = self.order(push, &targets);
        let Some((turn, tickets, applies)) = ordered.inspect_err(|_| self.give_back(&reserved))?
        else {
            self.give_back(&reserved);
            let position = self.sequencer.lock().position;
            self.commit(position)?;
            for target in &targets {
                Counters::add(&target.table.counters.duplicate_pushes, 1);
            }
            return Ok((PushOutcome::Duplicate, Effect::default()));
        };
        let effects = self.change(&pin, &turn, tickets, &targets, &probed, &applies);
        self.settle(&reserved, &effects);
        self.commit(turn.position)?;
        self.check_open()?;
        let mut total = Effect::default();
        effects.iter().for_each(|effect| total.add(effect));
        Ok((PushOutcome::Applied, total))
    }

    /// Re-applies a journal entry at recovery. Nothing else runs yet.
    pub(super) fn replay_change(
        &self,
        sequence: Sequence,
        generation: u32,
        targets: &[Target<'_>],
    ) -> Result<()> {
        let pin = self.tier.log.pin();
        let (probed, reserved) = self.probe(&pin, targets)?;
        let tickets = {
            let mut sequencer = self.sequencer.lock();
            sequencer.last = sequencer.last.max(sequence);
            self.draw_tickets(&mut sequencer, sequence, targets)
        };
        let turn = Turn { sequence, generation, position: None, is_replay: true };
        let applies = vec![true; targets.len()];
        let effects = self.change(&pin, &turn, tickets, targets, &probed, &applies);
        self.settle(&reserved, &effects);
        self.check_open()
    }

    /// Step 1 and 2. Also returns the record bytes reserved for new keys of each target.
    fn probe(&self, pin: &Pin<'_>, targets: &[Target<'_>]) -> Result<(Vec<Probed>, Reserved)> {
        let mut reserved = Vec::with_capacity(targets.len());
        let mut all = Vec::with_capacity(targets.len());
        for target in targets {
            let (probed, new) =
                self.probe_and_reserve(pin, target).inspect_err(|_| self.give_back(&reserved))?;
            reserved.push((target.table.clone(), new));
            all.push(probed);
        }
        Ok((all, reserved))
    }

    fn probe_and_reserve(&self, pin: &Pin<'_>, target: &Target<'_>) -> Result<(Probed, usize)> {
        let mut probed = self.probe_target(target)?;
        self.stage(pin, target, &mut probed)?;
        if matches!(target.change, Change::Remove) {
            return Ok((probed, 0));
        }
        let new = probed.found.iter().filter(|&&f| f == Found::Absent).count();
        self.reserve_records(&target.table, new)?;
        Ok((probed, new))
    }

    fn probe_target(&self, target: &Target<'_>) -> Result<Probed> {
        let mut found = Vec::with_capacity(target.keys.len());
        let mut eras = vec![0; self.stripes.len()];
        for (s, stripe) in self.stripes.iter().enumerate() {
            let items = target.plan.group(s);
            if items.is_empty() {
                continue;
            }
            let state = stripe.lock();
            let before = found.len();
            match state.parts.get(&target.table.id) {
                None => found.resize(before + items.len(), Found::Absent),
                Some(part) => {
                    eras[s] = part.era;
                    part.probe(items, &mut found);
                }
            }
            if !matches!(target.change, Change::Remove) {
                let is_new = |&(_, found): &(_, &Found)| *found == Found::Absent;
                let new = items.iter().zip(&found[before..]).filter(is_new);
                let new: Vec<u64> = new.map(|(item, _)| item.hash).collect();
                state.check_room(&self.tier, &target.table, &new)?;
            }
        }
        let on_nvme = found.iter().filter(|found| matches!(found, Found::Nvme(_))).count();
        let in_dram = found.iter().filter(|found| matches!(found, Found::Dram(_))).count();
        let counters = &target.table.counters;
        Counters::add(&counters.unique_keys, found.len());
        Counters::add(&counters.probes, found.len());
        Counters::add(&counters.cache_hits, in_dram);
        Counters::add(&counters.cache_misses, on_nvme);
        Ok(Probed { found, eras, staged: HashMap::new() })
    }

    /// Reads the records of rows on NVMe; a record of another key sends its own to the next place.
    fn stage(&self, pin: &Pin<'_>, target: &Target<'_>, probed: &mut Probed) -> Result<()> {
        let mut rejected: HashMap<u32, Vec<Place>> = HashMap::new();
        let mut pending: Vec<u32> = (0..probed.found.len() as u32)
            .filter(|&n| matches!(probed.found[n as usize], Found::Nvme(_)))
            .collect();
        let mut is_first = true;
        while !pending.is_empty() {
            let others = self.read_staged(pin, target, probed, &pending, is_first)?;
            pending.clear();
            for n in others {
                let item = &target.plan.items[n as usize];
                let refused = rejected.entry(n).or_default();
                if let Found::Nvme(place) = probed.found[n as usize] {
                    refused.push(place);
                }
                let s = crate::table::stripe_of(item.hash, self.stripes.len());
                let state = self.stripes[s].lock();
                let part = state.parts.get(&target.table.id);
                let found =
                    part.map_or(Found::Absent, |part| part.find(item, |p| refused.contains(&p)));
                probed.found[n as usize] = found;
                if matches!(found, Found::Nvme(_)) {
                    pending.push(n);
                }
            }
            is_first = false;
        }
        Ok(())
    }

    /// Reads the places of `pending`; returns those whose record is another key's.
    fn read_staged(
        &self,
        pin: &Pin<'_>,
        target: &Target<'_>,
        probed: &mut Probed,
        pending: &[u32],
        is_first: bool,
    ) -> Result<Vec<u32>> {
        let table = &target.table;
        let Probed { found, staged, .. } = probed;
        let mut reads: Vec<Read> = pending
            .iter()
            .filter_map(|&n| match found[n as usize] {
                Found::Nvme(place) => {
                    Some(Read { place, row_floats: table.floats, table: table.id, tag: n })
                }
                _ => None,
            })
            .collect();
        let (mut others, mut outcome) = (Vec::new(), Ok(()));
        let counts = self.tier.log.read(pin, &mut reads, &mut |n, record| match record {
            Ok(record) if record.key == target.plan.items[n as usize].key => {
                if let Found::Nvme(place) = found[n as usize] {
                    staged.insert(n, Staged::new(place, &record));
                }
            }
            Ok(_) => others.push(n),
            Err(error) => {
                Counters::add(&table.counters.corrupt_records, 1);
                outcome = Err(error);
            }
        });
        let tables = pending.iter().map(|_| &**table);
        count_reads(tables, counts.device_reads, counts.bytes, !is_first);
        outcome.map(|()| others)
    }

    /// Step 3. `None` for a duplicate.
    fn order(&self, push: Push, targets: &[Target<'_>]) -> Result<Option<Ordered<'_>>> {
        let mut sequencer = self.sequencer.lock();
        let ids: Vec<_> = targets.iter().map(|target| target.table.id).collect();
        self.check_entry_size(targets)?;
        self.check_present(targets)?;
        let applies = match sequencer.sessions.decide(push, &ids)? {
            Verdict::Duplicate => return Ok(None),
            Verdict::Apply(applies) => applies,
        };
        let sequence = sequencer.last + 1;
        let mut generation = 0;
        if self.is_journaled() {
            let entry = journal_entry(sequence, push, targets, &applies);
            sequencer.position = Some(self.journal().append(&entry)?);
            generation = self.journal().generation();
            for target in targets {
                Counters::add(&target.table.counters.journal_bytes, target.bytes() as usize);
            }
        }
        sequencer.sessions.note(push, &ids, now());
        sequencer.last = sequence;
        let tickets = self.draw_tickets(&mut sequencer, sequence, targets);
        let position = sequencer.position;
        let turn = Turn { sequence, generation, position, is_replay: false };
        Ok(Some((turn, tickets, applies)))
    }

    /// Step 4. A failure from here on fails the store: the journal has what the rows have not.
    fn change(
        &self,
        pin: &Pin<'_>,
        turn: &Turn,
        mut tickets: Tickets<'_>,
        targets: &[Target<'_>],
        probed: &[Probed],
        applies: &[bool],
    ) -> Vec<Effect> {
        let mut effects: Vec<Effect> = targets.iter().map(|_| Effect::default()).collect();
        while let Some((s, mut state)) = tickets.next_turn() {
            for (n, _) in applies.iter().enumerate().filter(|(_, &applies)| applies) {
                let (target, probed) = (&targets[n], &probed[n]);
                let mut effect = Effect::default();
                let mut work = Work { engine: self, pin, turn, target, effect: &mut effect };
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
        if total > self.record_bytes_max || own > cap {
            self.release_records(table, n);
            return Err(Error::store_full(format!(
                "table {:?}: {n} new keys would take its rows to {own} bytes and all rows to \
                 {total}, of {cap} and {} allowed on NVMe; raise nvme, or remove keys",
                table.name(),
                self.record_bytes_max
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

    fn give_back(&self, reserved: &[(Arc<Table>, usize)]) {
        reserved.iter().for_each(|(table, n)| self.release_records(table, *n));
    }

    /// Returns what was reserved for keys that others created meanwhile, and charges for keys that
    /// the probe saw but that were gone, or others', when their turn came.
    fn settle(&self, reserved: &[(Arc<Table>, usize)], effects: &[Effect]) {
        for ((table, n), effect) in reserved.iter().zip(effects) {
            if effect.created <= *n {
                self.release_records(table, n - effect.created);
            } else {
                self.charge_records(table, effect.created - n);
            }
        }
    }
}

impl Staged {
    pub(super) fn new(place: Place, record: &RecordView<'_>) -> Self {
        Self {
            place,
            sequence: record.sequence,
            last_seen: record.last_seen,
            frequency: record.frequency,
            row: record.row.to_vec(),
        }
    }

    pub(super) fn view(&self, key: u64) -> RecordView<'_> {
        RecordView {
            key,
            sequence: self.sequence,
            last_seen: self.last_seen,
            frequency: self.frequency,
            tombstone: false,
            row: &self.row,
        }
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
    }

    fn count(&self, table: &Table) {
        Counters::add(&table.counters.bytes_updated, self.updated * table.floats * 4);
        Counters::add(&table.counters.rows_poisoned, self.poisoned);
    }
}

fn journal_entry<'a>(
    sequence: Sequence,
    push: Push,
    targets: &[Target<'a>],
    applies: &[bool],
) -> Entry<'a> {
    if let [Target { table, keys, change: Change::Rows(rows), .. }] = targets {
        return Entry::Assign { sequence, push, table: table.id, keys, rows };
    }
    if let [Target { table, keys, change: Change::Remove, .. }] = targets {
        return Entry::Remove { sequence, push, table: table.id, keys };
    }
    let part = |target: &Target<'a>| match target.change {
        Change::Gradients(learning_rate, gradients) => Some(GradientPart {
            table: target.table.id,
            learning_rate,
            keys: target.keys,
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
