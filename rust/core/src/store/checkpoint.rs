//! Checkpoints: rows that only old journal files hold are written back, then those files go.
//!
//! No call waits for one. Once the calls that were ordered before the rotation have passed a
//! stripe, no row of it comes to need the old files any more; those that do are written back a few
//! at a time, each step under the stripe's lock for less than a millisecond, outside of any turn.

use super::engine::Engine;
use super::pressure::Patience;
use crate::error::{ErrorKind, Result};
use crate::superblock::Superblock;
use crate::table::{State, Tickets};

/// Bytes that one step writes back under a stripe's lock, and rows at most and at least.
const STEP_BYTES: usize = 256 << 10;
const STEP_ROWS_MAX: usize = 256;
const STEP_ROWS_MIN: usize = 4;

impl Engine {
    /// Runs `work` on every stripe after all calls ordered so far. Each stripe gets a turn of its
    /// own, so that no call waits longer than for one stripe.
    pub(super) fn for_each_stripe_in_turn(
        &self,
        mut work: impl FnMut(&mut State) -> Result<()>,
    ) -> Result<()> {
        for s in 0..self.stripes.len() {
            let mut tickets = {
                let mut sequencer = self.sequencer.lock();
                sequencer.tickets[s] += 1;
                let drawn = vec![(s, sequencer.tickets[s] - 1)];
                Tickets::new(&self.stripes, sequencer.last, drawn)
            };
            if let Some((_, mut state)) = tickets.next_turn() {
                work(&mut state)?;
            }
        }
        Ok(())
    }

    /// Writes back what the older journal files are needed for, then deletes them. `all` writes
    /// every dirty row, training counts included.
    ///
    /// # Errors
    /// `StoreFull` when log or file system have no room: the next checkpoint goes on from there.
    pub(super) fn checkpoint(&self, all: bool) -> Result<()> {
        let mut unfinished = self.unfinished.lock();
        let generation = match *unfinished {
            Some(generation) if !all => generation,
            _ => self.rotate()?,
        };
        *unfinished = Some(generation);
        let last = self.sequencer.lock().last;
        self.write_back((!all).then_some(generation))?;
        self.write_superblock(false)?;
        // They have passed all stripes; a removal has told the new file what it found, too.
        self.running.wait_before(last + 1);
        self.journal().drop_through(generation)?;
        *unfinished = None;
        Ok(())
    }

    /// Begins a journal file; returns the generation of the one before. Whatever is ordered later
    /// needs the new file.
    fn rotate(&self) -> Result<u32> {
        let next = self.journal().prepare()?;
        let new = {
            // A change of tables whose entry is in the old file is in the manifest then.
            let _definitions = self.directory.lock();
            let mut sequencer = self.sequencer.lock();
            let records = sequencer.sessions.records(self.clock.seconds());
            self.journal().switch(next, records, sequencer.last)?
        };
        // Pushes go on meanwhile.
        self.journal().sync()?;
        Ok(new - 1)
    }

    /// Writes back rows that need a journal file up to `generation` (for `None` all that were dirty
    /// at the time of the call), keeping them in DRAM.
    fn write_back(&self, generation: Option<u32>) -> Result<()> {
        let tickets = self.sequencer.lock().tickets.clone();
        let rows_max = self.step_rows();
        for (stripe, ticket) in self.stripes.iter().zip(tickets) {
            stripe.wait_served(ticket);
            // Rows that are made dirty meanwhile need a later file; without one they could be met
            // again and again, so that the last of as many steps as it takes writes all.
            let rows = stripe.lock().rows();
            let mut steps = rows / rows_max + 1;
            let mut patience = Patience::new(self, false);
            loop {
                self.tier.log.wait_for_buffer()?;
                let rows_max = if steps > 0 { rows_max } else { usize::MAX };
                let step = stripe.lock().write_back(&self.tier, generation, rows_max);
                match step {
                    Ok(true) => break,
                    Ok(false) => steps = steps.saturating_sub(1),
                    Err(error) if error.kind == ErrorKind::StoreFull => {
                        patience.make_log_room(error)?;
                    }
                    Err(error) => return Err(error),
                }
                if self.log_free() < self.log_reserve() {
                    self.compact()?;
                }
                std::thread::yield_now();
            }
        }
        Ok(())
    }

    /// Rows of one step: those of the widest table decide.
    fn step_rows(&self) -> usize {
        let catalog = self.catalog.read();
        let floats = catalog.by_id.values().map(|table| table.floats).max().unwrap_or(1);
        (STEP_BYTES / (4 * floats)).clamp(STEP_ROWS_MIN, STEP_ROWS_MAX)
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
            self.write_back(None)?;
        }
        self.write_superblock(false)
    }
}
