//! Remembered heat of keys whose rows are not in DRAM: a count-min sketch, two places a key, whose
//! counters are heats: they cool by themselves, and only what would soon be too old to be told from
//! new is swept.

use super::heat::{Beat, Heat};

pub(crate) struct Sketch {
    counters: Vec<Heat>,
    hand: usize,
}

/// Counters for each row that the pool holds.
const PER_ROW: usize = 4;
const LEAST: usize = 64;

impl Sketch {
    pub(crate) fn new() -> Self {
        Self { counters: Vec::new(), hand: 0 }
    }

    /// Bytes that it holds.
    pub(crate) fn bytes(&self) -> u64 {
        self.counters.capacity() as u64
    }

    /// Bytes of a sketch for a pool of `rows`.
    pub(crate) fn bytes_for(rows: usize) -> u64 {
        (rows * PER_ROW).max(LEAST) as u64
    }

    /// Sizes it for a pool of `rows`; a far larger or smaller one starts from nothing.
    pub(crate) fn reserve(&mut self, rows: usize, beat: Beat) {
        let (wanted, now) = (Self::bytes_for(rows) as usize, self.counters.len());
        if now < wanted - wanted / 4 || now > 2 * wanted {
            self.counters = vec![Heat::coldest(beat); wanted];
            self.hand = 0;
        }
    }

    /// Gives memory back that is too much for a pool of `rows`: it starts from nothing then.
    pub(crate) fn fit(&mut self, rows: usize, beat: Beat) {
        if rows == 0 {
            self.counters = Vec::new();
        } else if !self.counters.is_empty() {
            self.reserve(rows, beat);
        }
    }

    fn places(&self, hash: u64) -> [usize; 2] {
        // The stripe is told by the top bits: they are the same for all.
        let spread = hash.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let place =
            |bits: u64| (((bits & 0xffff_ffff) * self.counters.len() as u64) >> 32) as usize;
        [place(hash), place(spread >> 32)]
    }

    /// What is remembered of a key.
    pub(crate) fn estimate(&self, hash: u64, beat: Beat) -> Heat {
        if self.counters.is_empty() {
            return Heat::coldest(beat);
        }
        let [a, b] = self.places(hash).map(|at| self.counters[at]);
        if a.rank(beat) < b.rank(beat) {
            a
        } else {
            b
        }
    }

    /// Notes one access; returns the heat after it.
    pub(crate) fn add(&mut self, hash: u64, beat: Beat) -> Heat {
        let heat = self.estimate(hash, beat).warmed(beat);
        self.raise(hash, heat, beat);
        heat
    }

    /// Lifts the estimate to at least `heat`.
    pub(crate) fn raise(&mut self, hash: u64, heat: Heat, beat: Beat) {
        if self.counters.is_empty() {
            return;
        }
        for at in self.places(hash) {
            let counter = &mut self.counters[at];
            if counter.rank(beat) < heat.rank(beat) {
                *counter = heat;
            }
        }
    }

    /// Sweeps the share of all counters that must be swept at each beat.
    pub(crate) fn sweep(&mut self, beat: Beat) {
        for _ in 0..self.counters.len().div_ceil(Beat::ROUND) {
            self.hand = if self.hand + 1 < self.counters.len() { self.hand + 1 } else { 0 };
            let counter = &mut self.counters[self.hand];
            *counter = counter.kept(beat);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::types::hash;

    fn sketch(rows: usize) -> (Sketch, Beat) {
        let (mut sketch, beat) = (Sketch::new(), Beat::default());
        sketch.reserve(rows, beat);
        (sketch, beat)
    }

    /// Goal: an estimate is never below the heat of the key, and seldom above it. Method: a skewed
    /// stream of as many keys as the sketch is made for, beside a map.
    #[test]
    fn estimates_are_heats_from_above_and_mostly_exact() {
        let (mut sketch, beat) = sketch(4096);
        let mut heats: HashMap<u64, Heat> = HashMap::new();
        for n in 0..40_000_u64 {
            let key = (n * n * 31) % 4093 % (1 + n % 4096);
            let heat = heats.entry(key).or_insert(Heat::coldest(beat));
            *heat = heat.warmed(beat);
            assert!(sketch.add(hash(key), beat).rank(beat) >= heat.rank(beat));
        }
        let rank = |key: u64| sketch.estimate(hash(key), beat).rank(beat);
        let over = heats.iter().filter(|(&key, heat)| rank(key) > heat.rank(beat)).count();
        assert!(heats.len() > 2000 && over * 6 < heats.len(), "{over} of {}", heats.len());
        let once = Heat::coldest(beat).warmed(beat).rank(beat);
        let fresh = (1 << 40..(1 << 40) + 1000).filter(|&key| rank(key) > once).count();
        assert!(fresh < 300, "{fresh} of 1000 keys that never came are taken for hot ones");
    }

    #[test]
    fn what_is_remembered_cools_and_is_swept_before_it_looks_new() {
        let (mut sketch, mut beat) = sketch(100);
        (0..20).for_each(|_| _ = sketch.add(hash(1), beat));
        let mut before = sketch.estimate(hash(1), beat).rank(beat);
        for _ in 0..1000 {
            beat.advance();
            sketch.sweep(beat);
            let rank = sketch.estimate(hash(1), beat).rank(beat);
            assert!(rank <= before.max(Beat::ROUND as u8), "{before} -> {rank}");
            before = rank;
        }
    }

    #[test]
    fn an_empty_sketch_remembers_nothing_and_a_far_larger_one_begins_anew() {
        let beat = Beat::default();
        let cold = Heat::coldest(beat);
        let mut sketch = Sketch::new();
        assert_eq!(sketch.add(hash(1), beat), cold.warmed(beat));
        assert_eq!(sketch.estimate(hash(1), beat), cold);
        sketch.sweep(beat);
        sketch.reserve(1000, beat);
        assert_eq!(sketch.bytes(), Sketch::bytes_for(1000));
        let heat = sketch.add(hash(1), beat);
        sketch.reserve(900, beat);
        assert_eq!(sketch.estimate(hash(1), beat), heat, "much the same size changes nothing");
        sketch.fit(100, beat);
        assert_eq!(sketch.bytes(), Sketch::bytes_for(100));
        sketch.fit(0, beat);
        assert_eq!(sketch.bytes(), 0);
        sketch.fit(100, beat);
        assert_eq!(sketch.bytes(), 0, "it is made by the first eviction");
        sketch.reserve(100_000, beat);
        assert_eq!(sketch.estimate(hash(1), beat), cold);
    }
}
