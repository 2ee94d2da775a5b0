//! How expired rows are removed: as `remove` does it, with an entry in the journal and a mark in
//! the log, but for keys that are judged once more when nothing can come between.
//!
//! Who removes keys by name journals their names before it sees the rows. A row that expires must
//! not have been seen meanwhile, and the journal must name those rows alone that do go. So the
//! door of the stripe is closed first: calls that change rows of it are not ordered for that time,
//! and those that were ordered pass. Then, under the locks of sequencer and stripe, the rows are
//! judged as they are, the entry is written, and the keys leave the index: all in one moment for
//! whoever reads or pushes.

use super::walk::{Due, Seen};
use crate::error::Result;
use crate::expiry::Judgement;
use crate::index::Location;
use crate::journal::{Entry, Frame, Position};
use crate::store::engine::Engine;
use crate::store::order::Sequencer;
use crate::table::{bury, Counters, Found, Guard, Item, State, Table};
use crate::types::{hash, Push, Sequence};

use parking_lot::MutexGuard;

/// What became of rows that were found due.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Removal {
    pub(super) removed: u64,
    /// Rows that were elsewhere by then: they are to be judged again.
    pub(super) moved: u64,
    /// To be committed.
    pub(super) position: Option<Position>,
}

/// A row to remove.
type Sentenced = (Item, Location);

/// While it lives no call is ordered that changes rows of its stripe.
struct Door<'a> {
    engine: &'a Engine,
}

impl Drop for Door<'_> {
    fn drop(&mut self) {
        self.engine.sequencer.lock().closed = None;
        self.engine.door.notify_all();
    }
}

impl Engine {
    /// Closes the door of stripe `s`; one is closed at a time.
    fn close_door(&self, s: usize) -> Door<'_> {
        let mut sequencer = self.sequencer.lock();
        while sequencer.closed.is_some() {
            self.door.wait(&mut sequencer);
        }
        sequencer.closed = Some(s);
        Door { engine: self }
    }

    /// The sequencer, when all calls have passed stripe `s` that were ordered for it.
    fn when_passed(&self, s: usize) -> MutexGuard<'_, Sequencer> {
        let mut ticket = self.sequencer.lock().tickets[s];
        loop {
            self.stripes[s].wait_served(ticket);
            let sequencer = self.sequencer.lock();
            // Who draws a ticket without changing rows passes the door.
            if sequencer.tickets[s] == ticket {
                return sequencer;
            }
            ticket = sequencer.tickets[s];
        }
    }

    /// Removes those rows of stripe `s` that are due still.
    pub(super) fn remove_due(
        &self,
        table: &Table,
        s: usize,
        due: &[Due],
        judgement: &Judgement,
    ) -> Result<Removal> {
        if due.is_empty() {
            return Ok(Removal::default());
        }
        self.wait_for_space()?;
        let _watch = self.failure.watch();
        let door = self.close_door(s);
        let mut sequencer = self.when_passed(s);
        self.check_present(table.id)?;
        let mut state = self.stripes[s].lock();
        let (sentenced, moved) = self.judge_again(&state, table, due, judgement);
        if sentenced.is_empty() {
            // The door opens under the sequencer's lock.
            drop((state, sequencer));
            return Ok(Removal { moved, ..Removal::default() });
        }
        let sequence = self.order_expiry(&mut sequencer, table, &sentenced)?;
        let _underway = self.running.enter(sequence);
        sequencer.tickets[s] += 1;
        Guard::take_turn(&mut state, sequence);
        let position = sequencer.position;
        drop(sequencer);
        drop(door);
        let removed = self.take_out(&mut state, table, &sentenced, sequence)?;
        Ok(Removal { removed, moved, position })
    }

    /// Which rows are due now, and where they are; and how many were elsewhere.
    fn judge_again(
        &self,
        state: &State,
        table: &Table,
        due: &[Due],
        judgement: &Judgement,
    ) -> (Vec<Sentenced>, u64) {
        let Some(part) = state.parts.get(&table.id) else { return (Vec::new(), 0) };
        let (mut sentenced, mut moved) = (Vec::with_capacity(due.len()), 0);
        for (due, index) in due.iter().zip(0..) {
            let item = Item { key: due.key, hash: hash(due.key), index };
            // Of places that the index names it is known of this one alone that it is the key's.
            let own = match due.seen {
                Seen::Record(place, incarnation) => {
                    Some(place).filter(|&place| self.tier.log.incarnation(place) == incarnation)
                }
                Seen::Dram => None,
            };
            match part.find(&item, |place| Some(place) != own) {
                Found::Dram(at) => {
                    let (header, numbers) = part.pool.row(at);
                    let value = &numbers[..table.dim];
                    if judgement.is_due(header.last_seen, header.sequence, value) {
                        sentenced.push((item, Location::dram(at)));
                    }
                }
                // What it was would have to be read for the checkpoint: the next walk finds it.
                Found::Nvme(_) if state.is_keeping(table.id) => {}
                Found::Nvme(place) => sentenced.push((item, Location::nvme(place))),
                Found::Absent => moved += 1,
            }
        }
        (sentenced, moved)
    }

    /// The removal's place in the order, once the journal has it.
    fn order_expiry(
        &self,
        sequencer: &mut Sequencer,
        table: &Table,
        sentenced: &[Sentenced],
    ) -> Result<Sequence> {
        let keys: Vec<u64> = sentenced.iter().map(|(item, _)| item.key).collect();
        // Nobody's session, and no number to remember.
        let push = Push { session: 0, number: 0, step: None };
        let entry = Entry::Remove { push, table: table.id, keys: &keys };
        let frame = self.is_journaled().then(|| Frame::new(&entry)).transpose()?;
        if frame.is_some() {
            Counters::add(&table.counters.journal_bytes, 8 * keys.len());
        }
        self.order_entry(sequencer, frame)
    }

    /// All keys leave the index before the lock may be given up; then the log is told. Nothing may
    /// fail any more. Returns how many went.
    fn take_out(
        &self,
        state: &mut Guard<'_>,
        table: &Table,
        sentenced: &[Sentenced],
        sequence: Sequence,
    ) -> Result<u64> {
        state.note_passed(sequence, 0);
        let mut left = Vec::with_capacity(sentenced.len());
        for (item, location) in sentenced {
            if let Some(has_record) = state.detach(&self.tier, table.id, item, *location) {
                state.note_removed(item.hash);
                left.push((item.key, has_record));
            }
        }
        state.shrink(table.id);
        let removed = left.len();
        self.release_records(table, removed);
        Counters::add(&table.counters.expired_rows, removed);
        let outcome = self.with_log_room(state, |_| {
            while let Some(&(key, has_record)) = left.last() {
                bury(&self.tier, table.id, key, has_record, sequence)?;
                left.pop();
            }
            Ok(())
        });
        outcome.inspect_err(|error| self.fail(error)).map(|()| removed as u64)
    }
}
