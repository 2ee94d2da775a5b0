//! The one order of mutating calls. Under the sequencer's lock a call gets its sequence, its entry
//! in the journal and a ticket for each stripe that it touches, and nothing else is done there: the
//! entry's bytes and their checksum are made before, rows are changed after.
//!
//! Here too it is found out that a push was made before. Such a duplicate is acknowledged when
//! every call that was ordered before it is applied, its original among them.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::Arc;

use super::engine::Engine;
use super::mutate::{Change, Target};
use super::running::Underway;
use super::scatter::Operands;
use super::session::{Sessions, Verdict};
use super::stage::Call;
use super::PushOutcome;
use crate::error::{Error, ErrorKind, Result};
use crate::journal::{Entry, Frame, GradientPart, Position};
use crate::sequence::next_call;
use crate::table::{Counters, Table, Tickets};
use crate::types::{Push, Sequence, TableId};

/// Whoever holds its lock decides what comes next.
pub(super) struct Sequencer {
    pub(super) last: Sequence,
    /// Next ticket of each stripe.
    pub(super) tickets: Vec<u64>,
    pub(super) sessions: Sessions,
    /// End of the last journal entry.
    pub(super) position: Option<Position>,
    /// No call that changes rows of this stripe is ordered now: see `Engine::close_door`.
    pub(super) closed: Option<usize>,
}

/// A call's place in the order.
pub(super) struct Turn {
    pub(super) sequence: Sequence,
    pub(super) generation: u32,
    pub(super) position: Option<Position>,
    /// What the rows are stamped with that it changes.
    pub(super) seen: u32,
}

/// A call with its place in the order.
pub(super) struct Ordered<'a> {
    pub(super) turn: Turn,
    pub(super) tickets: Tickets<'a>,
    /// Targets that were not applied before.
    pub(super) applies: Vec<bool>,
    /// Until it is dropped duplicates of the call wait.
    pub(super) _underway: Underway<'a>,
}

/// What becomes of a push.
pub(super) enum Decision<T> {
    Apply(T),
    /// It was made before; all calls before this sequence are to be applied first.
    Duplicate(Sequence),
}

/// A call ready for its place in the order.
pub(super) struct Ready<'c, 'a> {
    push: Push,
    call: &'c Call<'a>,
    applies: Vec<bool>,
    /// `None` in a store without a journal.
    frame: Option<Frame<'c>>,
}

impl<'c, 'a> Ready<'c, 'a> {
    /// Lays out the journal entry of the targets that apply.
    pub(super) fn new(
        engine: &Engine,
        push: Push,
        call: &'c Call<'a>,
        applies: Vec<bool>,
    ) -> Result<Self> {
        engine.check_entry_size(&call.targets)?;
        let entry = || journal_entry(push, &call.targets, &applies);
        let frame = engine.is_journaled().then(|| Frame::new(&entry())).transpose()?;
        Ok(Self { push, call, applies, frame })
    }

    /// The same, of a call that comes right before `push`, of the same session.
    pub(super) fn before(engine: &Engine, push: Push, call: &'c Call<'a>) -> Result<Self> {
        // Number 0 is noted nowhere: the push itself is still to come.
        let own = Push { number: 0, step: None, ..push };
        Self::new(engine, own, call, vec![true; call.targets.len()])
    }
}

impl Engine {
    pub(super) fn attach(&self, session: u64, client_id: &str) -> Result<u64> {
        if client_id.is_empty() && !self.known_sessions.read().contains(&session) {
            // A newcomer, of whom nothing is kept before its first push: it waits for nobody.
            return Ok(0);
        }
        let mut sequencer = self.sequencer.lock();
        let uptime = self.clock.seconds();
        let (last, is_new_owner) = sequencer.sessions.attach(session, client_id, uptime)?;
        if is_new_owner && self.is_journaled() {
            let frame = Frame::new(&Entry::Attach { session, client_id })?;
            self.order_entry(&mut sequencer, Some(frame))?;
        } else if last == 0 {
            return Ok(0);
        }
        let (position, next) = (sequencer.position, sequencer.last + 1);
        drop(sequencer);
        if last > 0 {
            // Of a session that comes back: what it reads next has seen all its pushes.
            self.running.wait_before(next);
        }
        self.commit(position)?;
        Ok(last)
    }

    /// Whether the push was made before. Decides for good only under the lock under which the call
    /// is ordered.
    pub(super) fn decide(&self, push: Push, tables: &[Arc<Table>]) -> Result<Decision<Vec<bool>>> {
        self.decide_locked(&self.sequencer.lock(), push, tables)
    }

    fn decide_locked(
        &self,
        sequencer: &Sequencer,
        push: Push,
        tables: &[Arc<Table>],
    ) -> Result<Decision<Vec<bool>>> {
        let name = |id| {
            let table = tables.iter().find(|table| table.id == id);
            table.map_or_else(String::new, |table| table.name())
        };
        let ids: Vec<TableId> = tables.iter().map(|table| table.id).collect();
        Ok(match sequencer.sessions.decide(push, &ids, name)? {
            Verdict::Duplicate => Decision::Duplicate(sequencer.last + 1),
            Verdict::Apply(applies) => Decision::Apply(applies),
        })
    }

    /// Acknowledges a push that was made before: it is applied and committed when this returns.
    /// Returns how many rows it removed, if it was a removal.
    pub(super) fn acknowledge(
        &self,
        push: Push,
        tables: &[Arc<Table>],
        before: Sequence,
    ) -> Result<(PushOutcome, u64)> {
        self.running.wait_before(before);
        let (position, removed) = {
            let sequencer = self.sequencer.lock();
            (sequencer.position, sequencer.sessions.removal(push))
        };
        self.commit(position)?;
        self.failure.check()?;
        for table in tables {
            Counters::add(&table.counters.duplicate_pushes, 1);
        }
        Ok((PushOutcome::Duplicate, removed))
    }

    /// Gives `ready` its place in the order, right after its repair, if it needs one.
    pub(super) fn order<'a>(
        &'a self,
        repair: Option<Ready<'_, '_>>,
        mut ready: Ready<'_, '_>,
    ) -> Result<Decision<(Option<Ordered<'a>>, Ordered<'a>)>> {
        let mut sequencer = self.sequencer.lock();
        while sequencer.closed.is_some_and(|s| ready.call.touches(s)) {
            self.door.wait(&mut sequencer);
        }
        // Of a table that was dropped meanwhile nothing is applied.
        ready.call.targets.iter().try_for_each(|t| self.check_present(t.table.id))?;
        match self.decide_locked(&sequencer, ready.push, &ready.call.tables())? {
            Decision::Duplicate(before) => return Ok(Decision::Duplicate(before)),
            Decision::Apply(applies) if applies != ready.applies => {
                // Its client was taken over just now: rare enough to lay the entry out again.
                ready = Ready::new(self, ready.push, ready.call, applies)?;
            }
            Decision::Apply(_) => {}
        }
        let Some(repair) = repair else {
            return Ok(Decision::Apply((None, self.take_place(&mut sequencer, ready)?)));
        };
        let first = self.take_place(&mut sequencer, repair)?;
        let ordered = self.take_place(&mut sequencer, ready);
        // The journal says already that the rows are removed.
        let ordered = ordered.inspect_err(|error| self.fail(error))?;
        Ok(Decision::Apply((Some(first), ordered)))
    }

    /// The sequence of the next call, of those that were set aside.
    fn next_call(&self, sequencer: &Sequencer) -> Result<Sequence> {
        let sequence = next_call(sequencer.last);
        if sequence < self.reserved.load(Relaxed) {
            return Ok(sequence);
        }
        Err(Error::unavailable(
            "no sequences are set aside: the superblock was not written in time",
        ))
    }

    /// The next place in the order, once the journal has it.
    fn take_place(&self, sequencer: &mut Sequencer, ready: Ready<'_, '_>) -> Result<Ordered<'_>> {
        let Ready { push, call, applies, frame } = ready;
        let mut generation = 0;
        let sequence = self.order_entry(sequencer, frame)?;
        if self.is_journaled() {
            generation = self.journal().generation();
            for target in &call.targets {
                Counters::add(&target.table.counters.journal_bytes, target.bytes() as usize);
            }
        }
        let ids: Vec<TableId> = call.targets.iter().map(|target| target.table.id).collect();
        sequencer.sessions.note(push, &ids, self.clock.seconds());
        for (target, _) in call.targets.iter().zip(&applies).filter(|(_, &applies)| applies) {
            if matches!(target.change, Change::Gradients(..)) {
                target.table.count_step(push.step, sequence);
            }
        }
        let tickets = self.draw_tickets(sequencer, sequence, call);
        let (position, seen) = (sequencer.position, self.clock.stamp());
        let turn = Turn { sequence, generation, position, seen };
        Ok(Ordered { turn, tickets, applies, _underway: self.running.enter(sequence) })
    }

    /// Gives an entry the next place in the order, once the journal has it; `None` in a store
    /// without a journal, where the place is given all the same.
    pub(super) fn order_entry(
        &self,
        sequencer: &mut Sequencer,
        frame: Option<Frame<'_>>,
    ) -> Result<Sequence> {
        let sequence = self.next_call(sequencer)?;
        if let Some(mut frame) = frame {
            let appended = self.journal().append(&mut frame, sequence);
            sequencer.position = Some(appended.inspect_err(|error| self.note_refusal(error))?);
        }
        sequencer.last = sequence;
        Ok(sequence)
    }

    /// Keeps how many rows a removal found, for when it comes again. Returns what is to be
    /// committed before it is acknowledged.
    pub(super) fn note_removal(&self, push: Push, rows: u64) -> Result<Option<Position>> {
        let Push { session, number, .. } = push;
        let mut sequencer = self.sequencer.lock();
        sequencer.sessions.note_removal(session, number, rows);
        if self.is_journaled() {
            let mut frame = Frame::new(&Entry::Removed { session, number, rows })?;
            match self.journal().append(&mut frame, sequencer.last) {
                Ok(position) => sequencer.position = Some(position),
                // The rows are removed: only the next process will not know how many there were.
                Err(error) if error.kind == ErrorKind::StoreFull => self.note_refusal(&error),
                Err(error) => return Err(error),
            }
        }
        Ok(sequencer.position)
    }

    pub(super) fn draw_tickets(
        &self,
        sequencer: &mut Sequencer,
        sequence: Sequence,
        call: &Call<'_>,
    ) -> Tickets<'_> {
        let mut drawn = Vec::new();
        for (s, next) in sequencer.tickets.iter_mut().enumerate() {
            if call.touches(s) {
                drawn.push((s, *next));
                *next += 1;
            }
        }
        Tickets::new(&self.stripes, sequence, drawn)
    }

    /// Returns when the promise of the durability mode holds up to `position`.
    pub(super) fn commit(&self, position: Option<Position>) -> Result<()> {
        let Some(position) = position else { return Ok(()) };
        self.journal().commit(position)?;
        if self.journal().bytes() > self.config.journal_bytes() {
            self.wake.ask();
        }
        Ok(())
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
}

fn journal_entry<'a>(push: Push, targets: &'a [Target<'_>], applies: &[bool]) -> Entry<'a> {
    if let [Target { table, keys, change: Change::Rows(rows), .. }] = targets {
        return Entry::Assign { push, table: table.id, keys, rows };
    }
    if let [Target { table, keys, change: Change::Remove, .. }] = targets {
        return Entry::Remove { push, table: table.id, keys };
    }
    if let [Target { table, keys, change: Change::Whole(rows, _), .. }] = targets {
        return Entry::Import { push, table: table.id, keys, rows };
    }
    if let [Target { table, change: Change::Scatter(operands), .. }] = targets {
        let Operands { operation, keys, rows, .. } = *operands;
        return Entry::Scatter { push, table: table.id, operation, keys, rows };
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
    Entry::Gradients { push, tables }
}
