//! What a mutating call does under a stripe's lock, row by row. Part of step 4 of `mutate`.

use super::engine::Engine;
use super::mutate::{Change, Effect, Probed, Staged, Target, Turn};
use super::read::count_reads;
use crate::error::Result;
use crate::index::Location;
use crate::log::{Pin, Read};
use crate::table::{make_dirty, Found, Item, Pool, State};
use crate::types::Place;

/// One target's change in one stripe.
pub(super) struct Work<'a> {
    pub(super) engine: &'a Engine,
    pub(super) pin: &'a Pin<'a>,
    pub(super) turn: &'a Turn,
    pub(super) target: &'a Target<'a>,
    pub(super) effect: &'a mut Effect,
}

impl Work<'_> {
    pub(super) fn change_stripe(
        &mut self,
        state: &mut State,
        s: usize,
        probed: &Probed,
    ) -> Result<()> {
        let range = self.target.plan.range(s);
        let items = &self.target.plan.items[range.clone()];
        let found = &probed.found[range.clone()];
        let part = state.part(&self.engine.tier, &self.target.table);
        let mut later = Vec::new();
        if part.era == probed.eras[s] && !matches!(self.target.change, Change::Remove) {
            let mut scratch = vec![0.0; self.target.table.floats];
            crate::prefetch::vectorized(|| {
                part.revisit(
                    items,
                    found,
                    |pool, at, item| {
                        pool.header_mut(at).state.warm();
                        self.change_row(pool, at, item, &mut scratch);
                    },
                    |n| later.push(n),
                );
            });
        } else {
            later.extend(0..items.len());
        }
        part.policy.age(&mut part.pool, items.len());
        for n in later {
            let staged = probed.staged.get(&((range.start + n) as u32));
            self.change_other(state, &items[n], staged)?;
        }
        Ok(())
    }

    /// Changes a row that lies in DRAM.
    #[inline(always)]
    fn change_row(&mut self, pool: &mut Pool, at: u64, item: &Item, scratch: &mut [f32]) {
        let (header, numbers) = pool.row_mut(at);
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
        make_dirty(&self.engine.tier.log, table.floats, header, Some(self.turn.generation));
        self.effect.updated += 1;
    }

    /// Changes a row that is new, staged, or has moved since the probe.
    fn change_other(
        &mut self,
        state: &mut State,
        item: &Item,
        staged: Option<&Staged>,
    ) -> Result<()> {
        let engine = self.engine;
        let table = &self.target.table;
        let mut rejected = Vec::new();
        loop {
            let part = state.part(&engine.tier, table);
            let at = match part.find(item, |place| rejected.contains(&place)) {
                Found::Dram(at) => at,
                Found::Absent => match self.target.change {
                    Change::Remove => return Ok(()),
                    _ => self.create(state, item)?,
                },
                Found::Nvme(place) => match self.bring(state, item, place, staged)? {
                    Brought::Row(at) => at,
                    Brought::Done => return Ok(()),
                    Brought::Other => {
                        rejected.push(place);
                        continue;
                    }
                },
            };
            if matches!(self.target.change, Change::Remove) {
                return self.remove_row(state, item, at);
            }
            let mut scratch = vec![0.0; table.floats];
            let part = state.part(&engine.tier, table);
            self.change_row(&mut part.pool, at, item, &mut scratch);
            return Ok(());
        }
    }

    fn create(&mut self, state: &mut State, item: &Item) -> Result<u64> {
        let table = &self.target.table;
        let at = state.insert(&self.engine.tier, table, item)?;
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
        if state.remove(&engine.tier, table.id, item, location, self.turn.sequence)? {
            self.effect.removed += 1;
            engine.release_records(table, 1);
        }
        Ok(())
    }

    /// Brings the record at `place` into DRAM, from what was staged or from the device.
    fn bring(
        &mut self,
        state: &mut State,
        item: &Item,
        place: Place,
        staged: Option<&Staged>,
    ) -> Result<Brought> {
        let table = &self.target.table;
        let now_read;
        let staged = match staged.filter(|staged| staged.place == place) {
            Some(staged) => staged,
            None => match self.read_now(place, item.key)? {
                Some(staged) => {
                    now_read = staged;
                    &now_read
                }
                None => return Ok(Brought::Other),
            },
        };
        if matches!(self.target.change, Change::Remove) {
            if !self.turn.is_replay || staged.sequence < self.turn.sequence {
                self.remove_at(state, item, Location::nvme(place))?;
            }
            return Ok(Brought::Done);
        }
        let record = staged.view(item.key, table.id);
        let at = state.install(&self.engine.tier, table, item, place, &record)?;
        Ok(at.map_or(Brought::Other, Brought::Row))
    }

    /// The rare read under a stripe's lock: the row left DRAM, or moved, after the probe.
    fn read_now(&self, place: Place, key: u64) -> Result<Option<Staged>> {
        let table = &self.target.table;
        let read = Read { place, row_floats: table.floats as u32, table: table.id, tag: 0 };
        let mut outcome = Ok(None);
        let counts = self.engine.tier.log.read(self.pin, &mut [read], &mut |_, record| {
            outcome = record.map(|record| (record.key == key).then(|| Staged::new(place, &record)));
        });
        count_reads(std::iter::once(&**table), counts.device_reads, counts.bytes, true);
        outcome
    }
}

enum Brought {
    Row(u64),
    /// The row was removed where it lay.
    Done,
    /// The record is another key's.
    Other,
}
