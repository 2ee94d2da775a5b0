//! Checkpoints: rows that only old journal files hold are written back, then those files go. And
//! what else visits every stripe in the order of calls.

use super::engine::Engine;
use crate::error::Result;
use crate::superblock::Superblock;
use crate::table::{State, Tickets};

impl Engine {
    /// Runs `work` on every stripe after all calls ordered so far. Each stripe gets a turn of its
    /// own, so that no call waits longer than for one stripe, and the log is given room before.
    pub(super) fn for_each_stripe_in_turn(
        &self,
        mut work: impl FnMut(&mut State) -> Result<()>,
    ) -> Result<()> {
        for s in 0..self.stripes.len() {
            if self.log_free() < self.log_reserve() {
                self.compact()?;
            }
            let mut tickets = {
                let mut sequencer = self.sequencer.lock();
                sequencer.tickets[s] += 1;
                let drawn = vec![(s, sequencer.tickets[s] - 1)];
                Tickets::new(&self.stripes, sequencer.last, drawn)
            };
            if let Some((_, mut state)) = tickets.next_turn() {
                self.with_log_room(&mut state, |state| work(state))?;
            }
        }
        Ok(())
    }

    /// Writes back what the older journal files are needed for, then deletes them. `all` writes
    /// every dirty row, training counts included.
    pub(super) fn checkpoint(&self, all: bool) -> Result<()> {
        // Leaves little to sync to the rotation, which holds every push up.
        self.journal().sync()?;
        let generation = {
            let mut sequencer = self.sequencer.lock();
            let old = self.journal().generation();
            let (records, last) =
                (sequencer.sessions.records(self.clock.seconds()), sequencer.last);
            self.journal().rotate(records, last)?;
            old
        };
        let bound = (!all).then_some(generation);
        self.for_each_stripe_in_turn(|state| {
            state.write_back(&self.tier, bound, usize::MAX).map(drop)
        })?;
        self.write_superblock(false)?;
        self.journal().drop_through(generation)
    }

    /// Syncs log and journal and notes their ends.
    pub(super) fn write_superblock(&self, clean: bool) -> Result<()> {
        let log = self.tier.log.sync()?;
        let journal = self.journal().sync()?;
        let last = self.sequencer.lock().last;
        let mut file = self.superblock.lock();
        // Of two at once the later may come first: known ends never go back.
        let known = file.current().clone();
        let next = Superblock {
            next_sequence: known.next_sequence.max(last + 1),
            log_incarnation_end: known.log_incarnation_end.max(log.incarnation),
            journal: known.journal.max(journal),
            clean,
            ..known
        };
        file.write(next)
    }

    pub(super) fn flush(&self) -> Result<()> {
        if !self.is_journaled() {
            self.for_each_stripe_in_turn(|state| {
                state.write_back(&self.tier, None, usize::MAX).map(drop)
            })?;
        }
        self.write_superblock(false)
    }
}
