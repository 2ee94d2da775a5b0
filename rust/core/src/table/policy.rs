//! Which rows stay in DRAM: those of the highest heat, of a sample.
//!
//! Rows carry their own heat (`heat`), which forgets slowly enough to know the frequent and fast
//! enough to follow the recent; that of absent rows is remembered in a sketch, so a row that comes
//! back goes on from there, and one that came once leaves first: a scan passes through. Victims are
//! the coldest of the rows that a hand sweeps over (as Redis samples; rows are taken where others
//! left, so the hand meets them in the order in which they came). No queues, no locks: memory is a
//! byte a row and four in the sketch, and the stripe holds the lock.

use std::sync::atomic::{AtomicU64, AtomicU8, Ordering::Relaxed};
use std::sync::Arc;

use super::heat::{Beat, Heat};
use super::pool::{Hand, Pool};
use super::row::RowState;
use super::sketch::Sketch;
use crate::effort;

/// Rows looked at for each one evicted.
const SWEEP: usize = 12;
/// Share of the rows that may be kept for batches which were announced: 1 / this.
const PLEDGED_SHARE: usize = 2;
/// Steps of heat above the threshold up to which a row may soon be a victim: four visits for one.
const AT_RISK: u8 = 16;
/// Rows looked at to tell how cold a table is.
const SAMPLE: usize = 16;

/// Visits of a stripe, and the beats that they drive: one pulse for all its tables, so that their
/// heats compare.
#[derive(Default)]
pub(crate) struct Pulse {
    visits: AtomicU64,
    beat: AtomicU8,
}

impl Pulse {
    pub(super) fn beat(&self) -> Beat {
        Beat::from_bits(self.beat.load(Relaxed))
    }

    fn note(&self, visits: usize) {
        self.visits.fetch_add(visits as u64, Relaxed);
    }

    /// Visits since the last beat.
    pub(super) fn visits(&self) -> u64 {
        self.visits.load(Relaxed)
    }

    /// So many visits were counted.
    pub(super) fn take(&self, visits: u64) {
        self.visits.fetch_sub(visits, Relaxed);
    }

    /// The next beat.
    pub(super) fn advance(&self) {
        self.beat.fetch_add(1, Relaxed);
    }
}

pub(crate) struct Policy {
    pulse: Arc<Pulse>,
    sketch: Sketch,
    /// Where victims are sought.
    hand: Hand,
    /// Where rows are kept from looking hot when they have been cold for long.
    broom: Hand,
    /// Heat is kept only once DRAM runs short: until then it decides nothing, and to write it into
    /// every row that is read would cost a fifth of a lookup.
    is_watching: bool,
    /// Heat of the hottest row in the last batch of victims: below it a row does not earn a place.
    threshold: Heat,
    /// Rows that are kept for batches which were announced.
    pledged: usize,
}

impl Policy {
    pub(super) fn new(pulse: Arc<Pulse>) -> Self {
        let threshold = Heat::coldest(pulse.beat());
        let (sketch, is_watching) = (Sketch::new(), false);
        Self {
            pulse,
            sketch,
            hand: Hand::default(),
            broom: Hand::default(),
            is_watching,
            threshold,
            pledged: 0,
        }
    }

    /// Bytes that it holds beside itself.
    pub(super) fn bytes(&self) -> u64 {
        self.sketch.bytes()
    }

    /// Rows will soon have to leave: from now on heat is kept.
    pub(crate) fn watch(&mut self) {
        self.is_watching = true;
    }

    /// The beat by which visited rows are warmed, if they are; `visits` are counted.
    #[inline(always)]
    pub(crate) fn visited(&self, visits: usize) -> Option<Beat> {
        if !self.is_watching {
            return None;
        }
        self.pulse.note(visits);
        Some(self.pulse.beat())
    }

    #[cfg(test)]
    pub(super) fn beat(&self) -> Beat {
        self.pulse.beat()
    }

    /// Sweeps the rows that are due at a beat.
    pub(super) fn sweep(&mut self, pool: &mut Pool) {
        let beat = self.pulse.beat();
        self.sketch.sweep(beat);
        self.threshold = self.threshold.kept(beat);
        effort::note(pool.capacity().div_ceil(Beat::ROUND));
        for _ in 0..pool.capacity().div_ceil(Beat::ROUND) {
            let Some(at) = pool.next(&mut self.broom) else { break };
            let state = &mut pool.header_mut(at).state;
            state.set_heat(state.heat().kept(beat));
        }
    }

    /// Notes an access to a row that is not in DRAM; true if it has earned a place there.
    pub(crate) fn is_admitted(&mut self, hash: u64) -> bool {
        let beat = self.pulse.beat();
        self.sketch.add(hash, beat).rank(beat) > self.threshold.rank(beat)
    }

    /// Whether a row that is not in DRAM was visited so often that the next visit earns it a place.
    pub(crate) fn is_warm(&self, hash: u64) -> bool {
        let beat = self.pulse.beat();
        self.sketch.estimate(hash, beat).rank(beat) > self.threshold.rank(beat)
    }

    /// Whether a row in DRAM is worth more than a single visit now.
    pub(crate) fn is_read_often(&self, state: RowState) -> bool {
        self.is_watching && state.heat().is_above_one_visit(self.pulse.beat())
    }

    /// A row was placed in DRAM: a visit, beside the heat that is remembered.
    pub(super) fn insert(&mut self, pool: &mut Pool, at: u64, hash: u64) {
        let beat = self.pulse.beat();
        let heat = self.sketch.estimate(hash, beat).warmed(beat);
        pool.header_mut(at).state.set_heat(heat);
    }

    /// A row was placed in DRAM that was not visited, but will be: its heat is what is remembered,
    /// and it stays until then.
    pub(super) fn expect(&mut self, pool: &mut Pool, at: u64, hash: u64) {
        let beat = self.pulse.beat();
        let state = &mut pool.header_mut(at).state;
        state.set_heat(self.sketch.estimate(hash, beat));
        self.pledge(state);
    }

    /// A row in DRAM will be visited: it stays until then. Hot rows stay anyway.
    #[inline(always)]
    pub(super) fn keep(&mut self, state: &mut RowState) {
        let beat = self.pulse.beat();
        if state.heat().rank(beat) <= self.threshold.rank(beat).saturating_add(AT_RISK) {
            self.pledge(state);
        }
    }

    fn pledge(&mut self, state: &mut RowState) {
        if self.is_watching && !state.is_pledged() {
            state.set_pledged(true);
            self.pledged += 1;
        }
    }

    /// The row was visited, or leaves: from now on it is judged as any other.
    #[inline(always)]
    pub(super) fn redeem(&mut self, state: &mut RowState) {
        if state.is_pledged() {
            state.set_pledged(false);
            self.pledged = self.pledged.saturating_sub(1);
        }
    }

    /// A row left DRAM: its heat is remembered.
    pub(super) fn remember(&mut self, hash: u64, heat: Heat, rows: usize) {
        self.is_watching = true;
        let beat = self.pulse.beat();
        self.sketch.reserve(rows, beat);
        self.sketch.raise(hash, heat, beat);
    }

    /// The pool has become smaller, to `rows`.
    pub(super) fn fit(&mut self, rows: usize) {
        self.sketch.fit(rows, self.pulse.beat());
    }

    /// Up to `n` rows to evict, the coldest of those swept over; at least one if there are any.
    pub(super) fn victims(&mut self, pool: &mut Pool, n: usize) -> Vec<u64> {
        let mut ranked = self.swept(pool, n.saturating_mul(SWEEP));
        let n = n.min(ranked.len());
        if n > 0 && n < ranked.len() {
            ranked.select_nth_unstable(n - 1);
        }
        ranked.truncate(n);
        if let Some(&(_, at)) = ranked.iter().max_by_key(|row| row.0) {
            self.threshold = pool.header(at).state.heat();
        }
        ranked.into_iter().map(|row| row.1).collect()
    }

    /// Rank of a row that is warmer than a quarter of the others. `None` if there are no rows.
    pub(super) fn coldness(&mut self, pool: &mut Pool) -> Option<u8> {
        let mut ranked = self.swept(pool, SAMPLE);
        let quarter = ranked.len() / 4;
        (!ranked.is_empty()).then(|| ranked.select_nth_unstable(quarter).1 .0)
    }

    /// The next `n` live rows, or all, with their ranks. Pledged rows are passed over while they
    /// are no more than their share; beyond it the first that are met are pledged no longer, which
    /// are those that waited longest. Where all are pledged one is as good as another.
    fn swept(&mut self, pool: &mut Pool, n: usize) -> Vec<(u8, u64)> {
        let (beat, rows) = (self.pulse.beat(), pool.capacity());
        let wanted = n.min(pool.len());
        let mut ranked = Vec::with_capacity(wanted);
        for step in 0..2 * rows {
            // In a second round only to find one.
            let is_again = step >= rows;
            if ranked.len() == wanted || (is_again && !ranked.is_empty()) {
                break;
            }
            let Some(at) = pool.next(&mut self.hand) else { break };
            let state = pool.header(at).state;
            if !state.is_live() {
                continue;
            }
            if !state.is_pledged() || is_again {
                ranked.push((state.heat().rank(beat), at));
            } else if self.pledged > pool.len() / PLEDGED_SHARE {
                self.redeem(&mut pool.header_mut(at).state);
            }
        }
        ranked
    }
}

#[cfg(test)]
#[path = "policy_tests.rs"]
mod tests;
