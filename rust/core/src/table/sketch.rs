//! Remembered counts of keys whose rows are not in DRAM: a count-min sketch of 8-bit counters, two
//! rows, conservative update, halved by a hand that follows the pool's.

pub(crate) struct Sketch {
    counters: Vec<u8>,
    hand: usize,
    owed: usize,
}

/// Counters for each row that the pool holds.
const PER_ROW: usize = 2;

impl Sketch {
    pub(crate) fn new() -> Self {
        Self { counters: Vec::new(), hand: 0, owed: 0 }
    }

    /// Bytes of a sketch for a pool of `rows`.
    pub(crate) fn bytes(rows: usize) -> u64 {
        counters(rows) as u64
    }

    /// Sizes the sketch for a pool of `rows`; a larger one starts from nothing.
    pub(crate) fn reserve(&mut self, rows: usize) {
        let wanted = counters(rows);
        if self.counters.len() < wanted {
            self.counters = vec![0; wanted];
            self.hand = 0;
        }
    }

    fn places(&self, hash: u64) -> [usize; 2] {
        let mask = self.counters.len() - 1;
        [hash as usize & mask, (hash.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize & mask]
    }

    pub(crate) fn estimate(&self, hash: u64) -> u8 {
        if self.counters.is_empty() {
            return 0;
        }
        let [a, b] = self.places(hash);
        self.counters[a].min(self.counters[b])
    }

    /// Counts one access; returns the new estimate.
    pub(crate) fn add(&mut self, hash: u64) -> u8 {
        let heat = self.estimate(hash).saturating_add(1);
        self.raise(hash, heat);
        heat
    }

    /// Lifts the estimate to at least `heat`.
    pub(crate) fn raise(&mut self, hash: u64, heat: u8) {
        if self.counters.is_empty() {
            return;
        }
        for at in self.places(hash) {
            self.counters[at] = self.counters[at].max(heat);
        }
    }

    /// Halves the share of counters that `steps` of `rows` is.
    pub(crate) fn age(&mut self, steps: usize, rows: usize) {
        if self.counters.is_empty() || rows == 0 {
            return;
        }
        self.owed += steps * self.counters.len();
        let due = self.owed / rows;
        self.owed %= rows;
        for _ in 0..due.min(self.counters.len()) {
            self.hand = (self.hand + 1) & (self.counters.len() - 1);
            self.counters[self.hand] /= 2;
        }
    }
}

fn counters(rows: usize) -> usize {
    (rows * PER_ROW).next_power_of_two().max(64)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn hash(key: u64) -> u64 {
        crate::types::hash(key)
    }

    fn sketch(rows: usize) -> Sketch {
        let mut sketch = Sketch::new();
        sketch.reserve(rows);
        sketch
    }

    /// Goal: an estimate is never below the count, and seldom above it. Method: a skewed stream of
    /// as many keys as the sketch is made for, beside a map.
    #[test]
    fn estimates_are_counts_from_above_and_mostly_exact() {
        let mut sketch = sketch(4096);
        let mut counts: HashMap<u64, u8> = HashMap::new();
        for n in 0..40_000_u64 {
            let key = (n * n * 31) % 4093 % (1 + n % 4096);
            let count = counts.entry(key).or_default();
            *count = count.saturating_add(1);
            assert!(sketch.add(hash(key)) >= *count);
        }
        let over = counts.iter().filter(|(&key, &count)| sketch.estimate(hash(key)) > count);
        let (over, all) = (over.count(), counts.len());
        assert!(all > 2000 && over * 5 < all, "{over} of {all} keys are estimated too high");
        let fresh = (1 << 40..(1 << 40) + 1000).filter(|&key| sketch.estimate(hash(key)) > 8);
        assert!(fresh.count() < 300, "keys that never came are taken for hot ones");
    }

    #[test]
    fn counts_saturate_and_raise_only_lifts() {
        let mut sketch = sketch(64);
        for _ in 0..300 {
            sketch.add(hash(1));
        }
        assert_eq!(sketch.estimate(hash(1)), 255);
        sketch.raise(hash(1), 7);
        assert_eq!(sketch.estimate(hash(1)), 255);
        sketch.raise(hash(2), 9);
        assert!(sketch.estimate(hash(2)) >= 9);
    }

    /// A hand that goes round once halves every counter once, in whatever steps it goes.
    #[test]
    fn ageing_halves_once_a_round() {
        for step in [1, 7, 100] {
            let mut sketch = sketch(100);
            (0..50).for_each(|key| sketch.raise(hash(key), 200));
            for first in (0..100).step_by(step) {
                sketch.age(step.min(100 - first), 100);
            }
            assert!((0..50).all(|key| sketch.estimate(hash(key)) == 100), "steps of {step}");
        }
    }

    #[test]
    fn an_empty_sketch_remembers_nothing_and_a_larger_one_begins_anew() {
        let mut sketch = Sketch::new();
        assert_eq!((sketch.add(hash(1)), sketch.estimate(hash(1))), (1, 0));
        sketch.age(10, 0);
        sketch.reserve(1000);
        assert_eq!(sketch.counters.len() as u64, Sketch::bytes(1000));
        sketch.raise(hash(1), 5);
        sketch.reserve(10);
        assert_eq!(sketch.estimate(hash(1)), 5, "a smaller wish changes nothing");
        sketch.reserve(100_000);
        assert_eq!(sketch.estimate(hash(1)), 0);
    }
}
