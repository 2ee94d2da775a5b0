//! Which rows stay in DRAM: frequency with ageing and remembered counts, and a recency window.
//!
//! The W-TinyLFU family (Einziger, Friedman, Manes: "TinyLFU: A Highly Efficient Cache Admission
//! Policy", 2017), arranged for batches: rows carry their own heat; the counts of absent rows are
//! remembered in a sketch; new rows wait in a first-in-first-out window, and what leaves it
//! competes with rows of the main part that a hand sweeps over. Ageing follows accesses: a second
//! hand halves one row's heat for every `AGEING` accesses. No locks here: the stripe holds one.

use std::collections::VecDeque;

use super::pool::{Hand, Pool};
use super::sketch::Sketch;

/// Accesses per row and halving.
const AGEING: usize = 10;
/// Rows that the ageing hand goes over at a time: one alone would wait for its line.
const AGEING_STEPS: usize = 32;
/// Rows of the main part looked at for each one evicted.
const SWEEP: usize = 6;
/// Share of rows in the window: 1 / this.
const WINDOW: usize = 16;

pub(crate) struct Policy {
    window: VecDeque<u64>,
    sketch: Sketch,
    sweep_hand: Hand,
    ageing_hand: Hand,
    /// Heat is kept only once DRAM runs short: until then it decides nothing, and to write it into
    /// every row that is read, and to age it, would cost a fifth of a lookup.
    is_watching: bool,
    accesses: usize,
    /// Heat of the hottest row in the last batch of victims: below it a row does not earn a place.
    threshold: u8,
}

impl Policy {
    pub(crate) fn new() -> Self {
        Self {
            window: VecDeque::new(),
            sketch: Sketch::new(),
            sweep_hand: Hand::default(),
            ageing_hand: Hand::default(),
            is_watching: false,
            accesses: 0,
            threshold: 0,
        }
    }

    /// Bytes that a pool of `rows` costs here, charged before they are used.
    pub(crate) fn bytes(rows: usize) -> u64 {
        (2 * window_max(rows) * size_of::<u64>()) as u64 + Sketch::bytes(rows)
    }

    /// Rows will soon have to leave: from now on heat is kept.
    pub(crate) fn watch(&mut self) {
        self.is_watching = true;
    }

    #[inline(always)]
    pub(crate) fn is_watching(&self) -> bool {
        self.is_watching
    }

    /// Counts `n` accesses and ages accordingly.
    pub(crate) fn age(&mut self, pool: &mut Pool, n: usize) {
        if !self.is_watching {
            return;
        }
        self.accesses += n;
        if self.accesses < AGEING * AGEING_STEPS {
            return;
        }
        let steps = (self.accesses / AGEING).min(pool.capacity());
        self.accesses %= AGEING;
        for _ in 0..steps {
            let Some(at) = pool.next(&mut self.ageing_hand) else { break };
            let state = &mut pool.header_mut(at).state;
            state.set_heat(state.heat() / 2);
        }
        self.sketch.age(steps, pool.capacity());
    }

    /// Notes an access to a row that is not in DRAM; true if it has earned a place there.
    pub(crate) fn is_admitted(&mut self, hash: u64) -> bool {
        self.sketch.add(hash) > self.threshold
    }

    /// A row was placed in DRAM: it waits in the window, with the heat that is remembered.
    pub(crate) fn insert(&mut self, pool: &mut Pool, at: u64, hash: u64) {
        let heat = self.sketch.estimate(hash).saturating_add(1);
        let state = &mut pool.header_mut(at).state;
        state.set_heat(heat);
        state.set_in_window(true);
        self.window.push_back(at);
        while self.window.len() > window_max(pool.capacity()) {
            if let Some(oldest) = self.window.pop_front() {
                pool.header_mut(oldest).state.set_in_window(false);
            }
        }
    }

    /// A row left DRAM: its heat is remembered.
    pub(crate) fn remember(&mut self, hash: u64, heat: u8, rows: usize) {
        self.is_watching = true;
        self.sketch.reserve(rows);
        self.sketch.raise(hash, heat);
    }

    /// Up to `n` rows to evict, coldest first; at least one if the pool holds any.
    pub(crate) fn victims(&mut self, pool: &mut Pool, n: usize) -> Vec<u64> {
        let mut candidates = self.leaving_window(pool, n);
        let fresh = candidates.len();
        self.sweep(pool, n, &mut candidates);
        if candidates.is_empty() {
            candidates.extend(self.window.iter().filter(|&&at| is_waiting(pool, at)).take(n));
            candidates.sort_unstable();
            candidates.dedup();
        }
        let heat = |at: u64| pool.header(at).state.heat();
        // Of equally warm rows the older, swept ones go first: new rows get their chance.
        let mut order: Vec<(u8, bool, u64)> =
            candidates.iter().enumerate().map(|(i, &at)| (heat(at), i < fresh, at)).collect();
        let n = n.min(order.len());
        if n < order.len() {
            order.select_nth_unstable(n);
        }
        self.threshold = order[..n].iter().map(|v| v.0).max().unwrap_or(0);
        let victims: Vec<u64> = order[..n].iter().map(|v| v.2).collect();
        self.settle(pool, &candidates[..fresh], &victims);
        victims
    }

    /// Rows at the old end of a window that is longer than its share.
    fn leaving_window(&mut self, pool: &Pool, n: usize) -> Vec<u64> {
        let mut leaving = Vec::new();
        let share = pool.capacity() / WINDOW;
        while leaving.len() < n && self.window.len() > share {
            let Some(at) = self.window.pop_front() else { break };
            if is_waiting(pool, at) {
                leaving.push(at);
            }
        }
        // A row that was removed and taken anew may be named twice.
        leaving.sort_unstable();
        leaving.dedup();
        leaving
    }

    fn sweep(&mut self, pool: &Pool, n: usize, candidates: &mut Vec<u64>) {
        let capacity = pool.capacity();
        let (wanted, mut seen) = (candidates.len() + n * SWEEP, 0);
        while seen < capacity && candidates.len() < wanted {
            let Some(at) = pool.next(&mut self.sweep_hand) else { break };
            seen += 1;
            let state = pool.header(at).state;
            if state.is_live() && !state.is_in_window() {
                candidates.push(at);
            }
        }
    }

    /// Rows that left the window and won join the main part.
    fn settle(&mut self, pool: &mut Pool, left: &[u64], victims: &[u64]) {
        for &at in left {
            pool.header_mut(at).state.set_in_window(false);
        }
        if !self.window.is_empty() && victims.iter().any(|at| self.window.front() == Some(at)) {
            self.window.retain(|at| !victims.contains(at));
        }
    }

    /// Rows were removed or their extent dropped: the window may name them no more.
    pub(crate) fn forget(&mut self, is_gone: impl Fn(u64) -> bool) {
        self.window.retain(|&at| !is_gone(at));
        self.sweep_hand = Hand::default();
        self.ageing_hand = Hand::default();
    }
}

/// While nothing is evicted the window passes its share; what is beyond this joins the main part.
fn window_max(rows: usize) -> usize {
    2 * rows / WINDOW + 8
}

fn is_waiting(pool: &Pool, at: u64) -> bool {
    let state = pool.header(at).state;
    state.is_live() && state.is_in_window()
}
