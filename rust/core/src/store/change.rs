//! What a mutating call does under a stripe's lock, row by row. Part of step 4 of `mutate`.

use std::borrow::Cow;

use super::engine::Engine;
use super::mutate::{Change, Effect, Target};
use super::order::Turn;
use super::stage::{Probed, Staged};
use crate::error::{Error, ErrorKind, Result};
use crate::index::Location;
use crate::log::Stream;
use crate::table::{Found, Guard, Item, RowMut, State, Visitor};

/// One target's change in one stripe.
pub(super) struct Work<'a> {
    pub(super) engine: &'a Engine,
    pub(super) turn: &'a Turn,
    pub(super) target: &'a Target<'a>,
    pub(super) effect: &'a mut Effect,
}

/// Changes what is where the probe saw it; all else is for later.
struct Pass<'a, 'b> {
    work: &'a mut Work<'b>,
    scratch: Vec<f32>,
    later: &'a mut Vec<usize>,
    is_watching: bool,
}

impl Visitor for Pass<'_, '_> {
    #[inline(always)]
    fn prefetch(&self, item: &Item) {
        if let Change::Gradients(_, rows) | Change::Rows(rows) = self.work.target.change {
            crate::prefetch::row(rows, self.work.target.table.dim, item.index);
        }
    }

    #[inline(always)]
    fn hit(&mut self, row: RowMut<'_>, item: &Item) {
        if self.is_watching {
            row.0.state.warm();
        }
        self.work.change_row(row, item, &mut self.scratch);
    }

    fn miss(&mut self, n: usize, _: &Item, _: Found) {
        self.later.push(n);
    }
}

impl Work<'_> {
    pub(super) fn change_stripe(
        &mut self,
        state: &mut Guard<'_>,
        s: usize,
        probed: &Probed,
    ) -> Result<()> {
        let range = self.target.plan.range(s);
        let items = &self.target.plan.items[range.clone()];
        let found = &probed.found[range.clone()];
        let part = state.part(&self.engine.tier, &self.target.table);
        let mut later = Vec::new();
        if part.era == probed.eras[s] && !matches!(self.target.change, Change::Remove) {
            let scratch = vec![0.0; self.target.table.floats];
            let is_watching = part.policy.is_watching();
            let mut pass = Pass { work: self, scratch, later: &mut later, is_watching };
            part.revisit(items, found, &mut pass);
        } else {
            later.extend(0..items.len());
        }
        part.policy.age(&mut part.pool, items.len());
        for n in later {
            let staged = probed.staged.get(&((range.start + n) as u32));
            let engine = self.engine;
            engine.with_log_room(state, |state| self.change_other(state, &items[n], staged))?;
        }
        Ok(())
    }

    /// Changes a row that lies in DRAM.
    #[inline(always)]
    fn change_row(&mut self, (header, numbers): RowMut<'_>, item: &Item, scratch: &mut [f32]) {
        if self.turn.is_replay && header.sequence >= self.turn.sequence {
            return;
        }
        let table = &*self.target.table;
        let start = item.index as usize * table.dim;
        match self.target.change {
            Change::Gradients(rate, gradients) => {
                let gradient = &gradients[start..start + table.dim];
                if !table.optimizer.step(rate, numbers, gradient, scratch) {
                    self.effect.poisoned += 1;
                    return;
                }
            }
            Change::Rows(rows) => {
                numbers[..table.dim].copy_from_slice(&rows[start..start + table.dim]);
            }
            Change::Remove => return,
        }
        header.sequence = self.turn.sequence;
        header.state.make_dirty(Some(self.turn.generation));
        self.effect.updated += 1;
    }

    /// Changes a row that is new, staged, or has moved since the probe. What was not staged is
    /// read without the stripe's lock, but within the turn: reads may move the row meanwhile, no
    /// change can pass.
    fn change_other(
        &mut self,
        state: &mut Guard<'_>,
        item: &Item,
        staged: Option<&Staged>,
    ) -> Result<()> {
        let tier = &self.engine.tier;
        let table = &self.target.table;
        let mut rejected = Vec::new();
        let mut late: Option<Staged> = None;
        loop {
            let found = state.part(tier, table).find(item, |place| rejected.contains(&place));
            match found {
                Found::Dram(at) => return self.change_resident(state, item, at),
                Found::Absent if matches!(self.target.change, Change::Remove) => return Ok(()),
                Found::Absent => {
                    let at = self.create(state, item)?;
                    return self.change_resident(state, item, at);
                }
                Found::Nvme(place) => {
                    let mut known = late.as_ref().into_iter().chain(staged);
                    if let Some(staged) = known.find(|s| self.engine.is_there(s, place)) {
                        return self.change_staged(state, item, staged);
                    }
                    // Taken under the lock: what the index names now stays until it was read.
                    let pin = tier.log.pin();
                    let read = || self.engine.read_alone(&pin, table, item, place);
                    match Guard::unlocked(state, read) {
                        Ok(Some(staged)) => late = Some(staged),
                        Ok(None) => rejected.push(place),
                        Err(error) if error.kind == ErrorKind::Corruption => {
                            self.effect.lost.get_or_insert(error);
                            return Ok(());
                        }
                        Err(error) => return Err(error),
                    }
                }
            }
        }
    }

    fn change_resident(&mut self, state: &mut State, item: &Item, at: u64) -> Result<()> {
        if matches!(self.target.change, Change::Remove) {
            return self.remove_row(state, item, at);
        }
        let mut scratch = vec![0.0; self.target.table.floats];
        let part = state.part(&self.engine.tier, &self.target.table);
        self.change_row(part.pool.row_mut(at), item, &mut scratch);
        Ok(())
    }

    /// Changes a row whose record, read before, is still where it was.
    fn change_staged(&mut self, state: &mut State, item: &Item, staged: &Staged) -> Result<()> {
        if matches!(self.target.change, Change::Remove) {
            if !self.turn.is_replay || staged.sequence < self.turn.sequence {
                self.remove_at(state, item, Location::nvme(staged.place))?;
            }
            return Ok(());
        }
        let (tier, table) = (&self.engine.tier, &self.target.table);
        let row = match (staged.row(), self.row_instead(item, staged)) {
            (Ok(row), _) => Cow::Borrowed(row),
            (Err(_), Some(row)) => Cow::Owned(row),
            (Err(error), None) => {
                self.effect.lost.get_or_insert(error);
                return Ok(());
            }
        };
        let record = staged.view(item.key, &row);
        match state.install(tier, table, item, staged.place, &record)? {
            Some(at) => self.change_resident(state, item, at),
            None => Err(Error::unavailable(format!(
                "table {:?}: a row moved under its stripe's lock",
                table.name()
            ))),
        }
    }

    /// What a row whose record is damaged can go on from: only an assignment that leaves nothing of
    /// it needs no more. A record that has seen the call already stays as it is.
    fn row_instead(&self, item: &Item, staged: &Staged) -> Option<Vec<f32>> {
        let table = &self.target.table;
        let is_done = self.turn.is_replay && staged.sequence >= self.turn.sequence;
        let is_whole = matches!(self.target.change, Change::Rows(_)) && table.floats == table.dim;
        (staged.row().is_err() && is_whole && !is_done).then(|| {
            let mut row = vec![0.0; table.floats];
            table.initial_row(item.key, &mut row);
            row
        })
    }

    fn create(&mut self, state: &mut State, item: &Item) -> Result<u64> {
        let table = &self.target.table;
        // As of just before this call, so that recovery applies the call to it too.
        let before = self.turn.sequence - 1;
        let at = state.insert(&self.engine.tier, table, item, before)?;
        let part = state.part(&self.engine.tier, table);
        table.initial_row(item.key, part.pool.row_mut(at).1);
        self.effect.created += 1;
        Ok(at)
    }

    fn remove_row(&mut self, state: &mut State, item: &Item, at: u64) -> Result<()> {
        let table = &self.target.table;
        let row = state.part(&self.engine.tier, table).pool.header(at).sequence;
        if !self.turn.is_replay || row < self.turn.sequence {
            self.remove_at(state, item, Location::dram(at))?;
        }
        Ok(())
    }

    fn remove_at(&mut self, state: &mut State, item: &Item, location: Location) -> Result<()> {
        let (engine, table) = (self.engine, &self.target.table);
        if self.turn.is_replay {
            // An earlier replay, cut short, may have left a record of the key that is younger than
            // the mark of its removal knows.
            let log = &engine.tier.log;
            log.append_tombstone(Stream::Rows, table.id, item.key, self.turn.sequence)?;
        }
        if state.remove(&engine.tier, table.id, item, location, self.turn.sequence)? {
            self.effect.removed += 1;
            engine.release_records(table, 1);
        }
        Ok(())
    }
}
