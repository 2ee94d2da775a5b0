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
