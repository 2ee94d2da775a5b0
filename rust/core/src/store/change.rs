//! What a mutating call does under a stripe's lock, row by row. Part of step 4 of `mutate`.
//!
//! Rows in DRAM first, in one pass; then new rows and those whose records were staged; then, with
//! the lock given up and the turn kept, what is still on NVMe: reads may move a row meanwhile, no
//! other change can pass.

use super::engine::Engine;
use super::fetch::{Damage, Miss, Receiver, Source, Wanted};
use super::mutate::{Change, Effect, Target};
use super::order::Turn;
use super::revisit::{assign, note_change, Revisit, Stepping};
use super::scatter::scatter_seen;
use super::stage::{Ahead, Probed, Record};
use super::whole::Written;
use crate::batch::by_width;
use crate::error::Result;
use crate::index::Location;
use crate::log::RecordView;
use crate::sequence::before_call;
use crate::table::{Found, Guard, Item, Plan, State};
use crate::types::{Place, BUCKETS};

/// Bytes of rows that are changed before others that wait for the stripe's lock get it, and keys.
const STEP_BYTES: usize = 1 << 20;
const STEP_KEYS: usize = 1024;
const STEP_KEYS_MIN: usize = 16;

/// One target's change in one stripe.
pub(super) struct Work<'a> {
    pub(super) engine: &'a Engine,
    pub(super) turn: &'a Turn,
    pub(super) target: &'a Target<'a>,
    pub(super) effect: &'a mut Effect,
    /// For one row and its gradient.
    scratch: Vec<f32>,
}

/// How far a call has come with one of its targets: stripes and windows come in the same order.
pub(super) struct Course<'a> {
    probed: &'a Probed,
    window: usize,
    /// Of a window behind the first.
    plan: Option<Plan>,
}

impl<'a> Course<'a> {
    pub(super) fn new(probed: &'a Probed) -> Self {
        Self { probed, window: 0, plan: None }
    }

    /// Changes the keys of stripe `s`, window by window.
    pub(super) fn change_stripe(
        &mut self,
        work: &mut Work<'_>,
        state: &mut Guard<'_>,
        s: usize,
    ) -> Result<()> {
        let stripes = work.engine.stripes.len() as u32;
        let end = (s as u32 + 1) * (BUCKETS / stripes);
        while let Some(window) = self.probed.windows.get(self.window) {
            if window.start >= end {
                break;
            }
            if matches!(work.target.change, Change::Remove) {
                state.note_passed(work.turn.sequence, window.start);
            }
            if self.window == 0 {
                let ahead = &self.probed.ahead;
                let range = ahead.plan.range(s);
                work.change_items(state, &ahead.plan.items[range.clone()], Some((ahead, s)))?;
            } else {
                let keys = &work.target.keys;
                let plan = self
                    .plan
                    .get_or_insert_with(|| Plan::of(keys, window.clone(), stripes as usize));
                work.change_items(state, plan.group(s), None)?;
            }
            if window.end > end {
                break;
            }
            self.window += 1;
            self.plan = None;
        }
        Ok(())
    }
}

impl<'a> Work<'a> {
    pub(super) fn new(
        engine: &'a Engine,
        turn: &'a Turn,
        target: &'a Target<'a>,
        effect: &'a mut Effect,
    ) -> Self {
        let scratch = vec![0.0; target.table.floats + target.table.dim];
        Self { engine, turn, target, effect, scratch }
    }

    /// Changes items of one stripe; what was seen of them ahead is used while it holds.
    fn change_items(
        &mut self,
        state: &mut Guard<'_>,
        items: &[Item],
        ahead: Option<(&Ahead, usize)>,
    ) -> Result<()> {
        let most = (STEP_BYTES / (4 * self.target.table.floats)).clamp(STEP_KEYS_MIN, STEP_KEYS);
        let mut first = 0;
        for items in items.chunks(most) {
            if first > 0 {
                self.let_others_pass(state);
            }
            let mut later = self.change_seen(state, items, ahead, first);
            self.engine.with_log_room(state, |state| {
                self.change_others(state, items, ahead.map(|ahead| ahead.0), &mut later)
            })?;
            first += items.len();
        }
        Ok(())
    }

    /// Reads that wait for the stripe go first, and memory that will be needed is touched.
    fn let_others_pass(&self, state: &mut Guard<'_>) {
        let arena = &self.engine.tier.arena;
        if arena.is_short() {
            Guard::unlocked(state, || arena.prepare());
        } else {
            Guard::yield_lock(state);
        }
    }

    /// The rows in DRAM; the first is number `first` of the stripe's. Returns which items are left.
    fn change_seen(
        &mut self,
        state: &mut State,
        items: &[Item],
        ahead: Option<(&Ahead, usize)>,
        first: usize,
    ) -> Vec<u32> {
        let part = state.part(&self.engine.tier, &self.target.table);
        let mut later = Vec::new();
        let fresh;
        let found = match ahead {
            _ if matches!(self.target.change, Change::Remove | Change::Whole(..)) => {
                return (0..items.len() as u32).collect();
            }
            Some((ahead, s)) if ahead.eras[s] == part.era => {
                &ahead.found[ahead.plan.range(s)][first..first + items.len()]
            }
            _ => {
                let mut found = Vec::with_capacity(items.len());
                part.probe(items, &mut found);
                fresh = found;
                &fresh[..]
            }
        };
        let revisit = Revisit {
            turn: self.turn,
            effect: self.effect,
            later: &mut later,
            scratch: &mut self.scratch,
            part: &mut *part,
            items,
            found,
        };
        let table = &self.target.table;
        match self.target.change {
            Change::Gradients(rate, gradients) => {
                let decay = table.gradients.decay;
                table.optimizer.with(rate, decay, Stepping { revisit, gradients });
            }
            Change::Rows(rows) => by_width!(table.dim, assign(revisit, rows)),
            Change::Scatter(operands) => scatter_seen(revisit, &operands),
            Change::Remove | Change::Whole(..) => {}
        }
        later
    }

    /// All other rows. What was changed is taken out of `later`, also when an error is returned.
    fn change_others(
        &mut self,
        state: &mut Guard<'_>,
        items: &[Item],
        ahead: Option<&Ahead>,
        later: &mut Vec<u32>,
    ) -> Result<()> {
        let (mut misses, mut outcome) = (Vec::new(), Ok(()));
        // Taken under the lock: what the index names now stays until it was read.
        let pin = self.engine.tier.log.pin();
        later.retain(|&n| {
            let item = &items[n as usize];
            match outcome.is_ok().then(|| self.change_other(state, item, ahead)) {
                Some(Ok(None)) => return false,
                Some(Ok(Some(place))) => {
                    misses.push(Miss { source: 0, index: item.index, place });
                }
                Some(Err(error)) => outcome = Err(error),
                None => {}
            }
            true
        });
        outcome?;
        if misses.is_empty() {
            return Ok(());
        }
        let sources = [Source { table: &self.target.table, keys: &self.target.keys }];
        let engine = self.engine;
        let mut changing = Changing { work: self, told: Vec::with_capacity(misses.len()) };
        let fetch = || engine.fetch(&pin, &sources, &mut misses, &mut changing);
        let outcome = Guard::unlocked(state, fetch);
        let mut told = changing.told;
        told.sort_unstable();
        later.retain(|&n| told.binary_search(&items[n as usize].index).is_err());
        outcome
    }

    /// Changes a row that is new, staged, or has come to DRAM since the probe; else returns where
    /// its record is.
    fn change_other(
        &mut self,
        state: &mut State,
        item: &Item,
        ahead: Option<&Ahead>,
    ) -> Result<Option<Place>> {
        let found = state.part(&self.engine.tier, &self.target.table).find(item, |_| false);
        match found {
            Found::Dram(at) => self.change_resident(state, item, at)?,
            Found::Absent => self.change_absent(state, item)?,
            Found::Nvme(place) => {
                let staged = ahead.and_then(|ahead| ahead.staged(self.engine, item, place));
                let Some(record) = staged else { return Ok(Some(place)) };
                if !self.change_record(state, item, place, record)? {
                    return Ok(Some(place));
                }
            }
        }
        Ok(None)
    }

    fn change_resident(&mut self, state: &mut State, item: &Item, at: u64) -> Result<()> {
        if matches!(self.target.change, Change::Remove) {
            return self.remove_at(state, item, Location::dram(at)).map(drop);
        }
        let table = &*self.target.table;
        let part = state.part(&self.engine.tier, &self.target.table);
        let (header, numbers) = part.row_to_change(at);
        let start = item.index as usize * self.target.change.width(table.dim);
        let scratch = &mut self.scratch;
        let is_changed = match self.target.change {
            Change::Gradients(rate, gradients) => {
                let gradient = &gradients[start..start + table.dim];
                table.optimizer.step_one(rate, table.gradients, numbers, gradient, scratch)
            }
            Change::Rows(rows) => {
                numbers[..table.dim].copy_from_slice(&rows[start..start + table.dim]);
                true
            }
            Change::Scatter(operands) => {
                operands.change(item.index, &mut numbers[..table.dim], scratch)
            }
            Change::Whole(rows, width) => {
                let written = Written::of(&rows[start..start + width]);
                numbers[..written.numbers.len()].copy_from_slice(written.numbers);
                header.frequency = written.frequency;
                true
            }
            Change::Remove => true,
        };
        note_change(self.turn, self.effect, header, is_changed);
        if let Change::Whole(rows, width) = self.target.change {
            header.last_seen = Written::of(&rows[start..start + width]).seen(self.turn.seen);
        }
        Ok(())
    }

    fn change_absent(&mut self, state: &mut State, item: &Item) -> Result<()> {
        if matches!(self.target.change, Change::Remove) {
            // A read may make it while the lock is given up: a row that is newer than the removal.
            state.note_removed(item.hash);
            state.forget_candidate(self.target.table.id, item.hash);
            return Ok(());
        }
        let at = self.create(state, item)?;
        self.change_resident(state, item, at)
    }

    /// Changes a row whose record was read from `place`. Returns false if it is no longer there.
    fn change_record(
        &mut self,
        state: &mut State,
        item: &Item,
        place: Place,
        record: Record<'_>,
    ) -> Result<bool> {
        if matches!(self.target.change, Change::Remove) {
            return self.remove_record(state, item, place, record);
        }
        let (tier, table) = (&self.engine.tier, &self.target.table);
        let row;
        let record = match record {
            Record::Whole(record) => record,
            Record::Damaged(damage) => {
                let Some(instead) = self.row_instead(item, &damage) else {
                    self.effect.lost.get_or_insert(damage.error);
                    return Ok(true);
                };
                state.keep_nothing(table);
                row = instead;
                let (key, sequence) = (item.key, damage.sequence.unwrap_or(0));
                let (last_seen, frequency, tombstone) = (0, 0, false);
                RecordView { key, sequence, last_seen, frequency, tombstone, row: &row }
            }
        };
        match state.install(tier, table, item, place, &record)? {
            Some(at) => self.change_resident(state, item, at).map(|()| true),
            None => Ok(false),
        }
    }

    /// Of a record that nothing can be read of it is not known whether it is the key's.
    fn remove_record(
        &mut self,
        state: &mut State,
        item: &Item,
        place: Place,
        record: Record<'_>,
    ) -> Result<bool> {
        let table = &self.target.table;
        match record {
            Record::Damaged(Damage { error, sequence: None }) => {
                self.effect.lost.get_or_insert(error);
                return Ok(true);
            }
            Record::Damaged(_) => state.keep_nothing(table),
            Record::Whole(record) => state.keep_record(table, item, place, &record),
        }
        self.remove_at(state, item, Location::nvme(place))
    }

    /// What a row whose record is damaged can go on from: only an assignment that leaves nothing of
    /// it needs no more.
    fn row_instead(&self, item: &Item, damage: &Damage) -> Option<Vec<f32>> {
        let table = &self.target.table;
        let is_known = damage.sequence.is_some();
        let is_whole = match self.target.change {
            Change::Rows(_) => table.floats == table.dim,
            Change::Whole(_, width) => width > table.floats,
            _ => false,
        };
        (is_whole && is_known).then(|| {
            let mut row = vec![0.0; table.floats];
            table.initial_row(item.key, &mut row);
            row
        })
    }

    fn create(&mut self, state: &mut State, item: &Item) -> Result<u64> {
        let table = &self.target.table;
        // As of just before this call, so that recovery applies the call to it too.
        let before = before_call(self.turn.sequence);
        let at = state.insert(&self.engine.tier, table, item, before)?;
        let occurrences = state.forget_candidate(table.id, item.hash);
        let part = state.part(&self.engine.tier, table);
        let (header, numbers) = part.pool.row_mut(at);
        header.frequency = occurrences;
        // Also where it refuses the change: the entry has made it, and may be all that knows of it.
        header.state.make_dirty(Some(self.turn.generation));
        table.initial_row(item.key, numbers);
        self.effect.created += 1;
        Ok(at)
    }

    /// False if the index names another location.
    fn remove_at(&mut self, state: &mut State, item: &Item, location: Location) -> Result<bool> {
        let (engine, table) = (self.engine, &self.target.table);
        let was_there = state.remove(&engine.tier, table.id, item, location, self.turn.sequence)?;
        if was_there {
            self.effect.removed += 1;
            state.note_removed(item.hash);
            state.forget_candidate(table.id, item.hash);
            engine.release_records(table, 1);
        }
        Ok(was_there)
    }
}

/// Changes rows as they are read, in turn.
struct Changing<'a, 'b> {
    work: &'a mut Work<'b>,
    /// Items that are done, by their index.
    told: Vec<u32>,
}

impl Receiver for Changing<'_, '_> {
    fn record(
        &mut self,
        state: &mut State,
        wanted: &Wanted<'_>,
        record: &RecordView<'_>,
    ) -> Result<bool> {
        let record = Record::Whole(*record);
        let is_done = self.work.change_record(state, &wanted.item, wanted.place, record)?;
        if is_done {
            self.told.push(wanted.item.index);
        }
        Ok(is_done)
    }

    fn resident(&mut self, state: &mut State, wanted: &Wanted<'_>, at: u64) -> Result<()> {
        self.work.change_resident(state, &wanted.item, at)?;
        self.told.push(wanted.item.index);
        Ok(())
    }

    fn absent(&mut self, state: &mut State, wanted: &Wanted<'_>) -> Result<()> {
        self.work.change_absent(state, &wanted.item)?;
        self.told.push(wanted.item.index);
        Ok(())
    }

    fn damaged(&mut self, state: &mut State, wanted: &Wanted<'_>, damage: Damage) -> Result<()> {
        let record = Record::Damaged(damage);
        // Its place was looked up under this lock.
        self.work.change_record(state, &wanted.item, wanted.place, record)?;
        self.told.push(wanted.item.index);
        Ok(())
    }
}
