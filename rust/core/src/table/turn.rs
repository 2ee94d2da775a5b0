//! The lock of a stripe and the queue before it: mutating calls pass in the order of their tickets.
//!
//! A turn ends when its guard is dropped, and what is left of a call's tickets is passed on when
//! the call ends, however it ends: a panic must not keep all later calls waiting. It fails the
//! store instead, for the rows that it was changing may be half changed.

use std::collections::HashSet;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use super::stripe::State;
use crate::failure::{Failure, Watch};
use crate::ledger::Ledger;
use crate::sequence::Progress;
use crate::sync::{Condvar, Mutex, MutexGuard};
use crate::types::{bucket, Sequence};

/// A stripe and the queue before it.
pub(crate) struct Stripe {
    state: Mutex<State>,
    queue: Condvar,
    failure: Arc<Failure>,
}

/// Keys that a removal has passed, while it is in its turn. It gives the lock up to read records,
/// and a read may make a row of such a key anew: one that is newer than the removal, though that
/// has not passed the stripe yet.
pub(crate) struct Removed {
    /// From the removal on.
    since: Progress,
    /// All keys that it names are passed in buckets below this one, and these keys.
    below: u32,
    hashes: HashSet<u64>,
}

impl State {
    /// The removal `sequence`, in its turn, has passed all of its keys in buckets below this one.
    pub(crate) fn note_passed(&mut self, sequence: Sequence, below: u32) {
        let mut since = Progress::default();
        since.lift(sequence);
        let kept = self.removed.take().map_or(since, |removed| removed.since);
        self.removed = Some(Removed { since: kept, below, hashes: HashSet::new() });
    }

    /// It has removed the key of this hash, or has found that there is none.
    pub(crate) fn note_removed(&mut self, hash: u64) {
        if let Some(removed) = &mut self.removed {
            removed.hashes.insert(hash);
        }
    }

    /// The sequence of a row that a read makes now, for the key of this hash.
    pub(crate) fn create(&mut self, hash: u64) -> Sequence {
        match &mut self.removed {
            Some(own) if bucket(hash) < own.below || own.hashes.contains(&hash) => {
                own.since.create()
            }
            _ => self.progress.create(),
        }
    }
}

/// A locked stripe.
pub(crate) struct Guard<'a> {
    // Dropped in this order: whoever gets the lock next must not be acknowledged after a panic.
    _watch: Watch<'a>,
    state: MutexGuard<'a, State>,
    queue: &'a Condvar,
    /// In a turn: all calls up to here have been applied when it ends.
    turn: Option<Sequence>,
    #[cfg(test)]
    span: crate::effort::Span,
}

/// A call's places before the stripes that it touches.
pub(crate) struct Tickets<'a> {
    stripes: &'a [Stripe],
    sequence: Sequence,
    left: std::vec::IntoIter<(usize, u64)>,
}

impl Stripe {
    /// One of `stripes` equal ones, whose memory `ledger` accounts for.
    pub(crate) fn new(ledger: &Arc<Ledger>, stripes: usize, failure: Arc<Failure>) -> Self {
        let state = Mutex::new(State::new(ledger, stripes));
        Self { state, queue: Condvar::new(), failure }
    }

    pub(crate) fn lock(&self) -> Guard<'_> {
        self.guard(self.state.lock(), None)
    }

    /// `None` while another call holds it.
    pub(crate) fn try_lock(&self) -> Option<Guard<'_>> {
        self.state.try_lock().map(|state| self.guard(state, None))
    }

    fn guard<'a>(&'a self, state: MutexGuard<'a, State>, turn: Option<Sequence>) -> Guard<'a> {
        Guard {
            _watch: self.failure.watch(),
            state,
            queue: &self.queue,
            turn,
            #[cfg(test)]
            span: crate::effort::Span::begin(),
        }
    }

    /// Returns when all calls that drew a ticket below `ticket` have passed. Holds nobody up.
    pub(crate) fn wait_served(&self, ticket: u64) {
        let mut state = self.state.lock();
        while state.serving < ticket {
            self.queue.wait(&mut state);
        }
    }

    /// Locks when `ticket` is next in line; the turn of call `sequence` ends with the guard.
    fn lock_in_turn(&self, ticket: u64, sequence: Sequence) -> Guard<'_> {
        let mut state = self.state.lock();
        while state.serving != ticket {
            self.queue.wait(&mut state);
        }
        self.guard(state, Some(sequence))
    }
}

impl<'a> Tickets<'a> {
    /// `drawn`: stripes and tickets, in growing order of the stripes.
    pub(crate) fn new(stripes: &'a [Stripe], sequence: Sequence, drawn: Vec<(usize, u64)>) -> Self {
        Self { stripes, sequence, left: drawn.into_iter() }
    }

    /// Waits for the turn at the next stripe.
    pub(crate) fn next_turn(&mut self) -> Option<(usize, Guard<'a>)> {
        let (s, ticket) = self.left.next()?;
        Some((s, self.stripes[s].lock_in_turn(ticket, self.sequence)))
    }
}

impl Drop for Tickets<'_> {
    fn drop(&mut self) {
        while self.next_turn().is_some() {}
    }
}

impl Guard<'_> {
    /// A call that has locked the stripe takes its turn at once: nobody has a ticket before it.
    pub(crate) fn take_turn(guard: &mut Self, sequence: Sequence) {
        guard.turn = Some(sequence);
    }

    /// Gives the lock up for `work`; a turn is kept.
    pub(crate) fn unlocked<T>(guard: &mut Self, work: impl FnOnce() -> T) -> T {
        #[cfg(test)]
        guard.span.end();
        let done = MutexGuard::unlocked(&mut guard.state, work);
        #[cfg(test)]
        guard.span.again();
        done
    }

    /// Lets those pass who wait for the lock; a turn is kept.
    pub(crate) fn yield_lock(guard: &mut Self) {
        #[cfg(test)]
        guard.span.end();
        MutexGuard::bump(&mut guard.state);
        #[cfg(test)]
        guard.span.again();
    }
}

impl Deref for Guard<'_> {
    type Target = State;

    fn deref(&self) -> &State {
        &self.state
    }
}

impl DerefMut for Guard<'_> {
    fn deref_mut(&mut self) -> &mut State {
        &mut self.state
    }
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        if let Some(sequence) = self.turn {
            self.state.progress.lift(sequence);
            if let Some(removed) = self.state.removed.take() {
                self.state.progress.lift(removed.since.newest());
            }
            self.state.serving += 1;
            self.queue.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sequence::{call_of, next_call};

    /// Once such a row was older than the mark of the removal, and gone after a restart.
    #[test]
    fn a_row_that_is_made_anew_while_its_removal_goes_on_is_newer_than_that() {
        let (before, removal) = (next_call(0), next_call(next_call(0)));
        let stripes = [Stripe::new(&Ledger::new(8 << 20), 1, Arc::default())];
        stripes[0].lock().progress.lift(before);
        let mut tickets = Tickets::new(&stripes, removal, vec![(0, 0)]);
        let (_, mut state) = tickets.next_turn().expect("it is the first");
        let in_bucket = |bucket: u64| bucket << 52 | 7;
        state.note_passed(removal, 5);
        state.note_removed(in_bucket(9));
        let made = Guard::unlocked(&mut state, || {
            let mut state = stripes[0].lock();
            [in_bucket(2), in_bucket(9), in_bucket(9) + 1].map(|hash| state.create(hash))
        });
        assert_eq!(made.map(call_of), [removal, removal, before], "the last is still to come");
        drop(state);
        let next = stripes[0].lock().create(in_bucket(3));
        assert!(made.iter().all(|&made| made < next), "{next:#x} was given out before");
    }
}
