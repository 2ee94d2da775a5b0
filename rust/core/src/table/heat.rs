//! How often a row was visited of late, in one byte that cools by itself.
//!
//! Each visit counts 1 when it happens and half as much after a number of further visits of the
//! stripe; heat is the sum. It is kept as the logarithm of what the sum would have been at the
//! beginning (Cormode, Shkapenyuk, Srivastava, Xu: "Forward Decay", 2009): then nothing must be
//! done to cool it, a visit adds by a table, and rows of all tables of a stripe compare, whenever
//! each was visited last. With a half-life of several times the cache it ranks rows as LRFU does
//! (Lee et al., 2001), between least frequently and least recently used.

/// Steps of a doubling.
const STEPS: usize = 8;
/// Visits in which a visit comes to count half, for each row of the stripe in DRAM. In a simulation
/// over real traces (ADR 0009) 16 to 64 differ by less than a point; 4 forgets, more than 64
/// clings.
const HALF_LIFE: usize = 32;
/// Rank of what was never visited is 0, that of a single visit now this.
const ONCE: u8 = 160;
/// Ranks from here on are heats that came around: no row is visited so often.
const AROUND: u8 = 224;

/// Number of a beat of the pulse, of which there is one for every eighth of a half-life, in visits
/// of a stripe. It goes around, and so do heats.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Beat(u8);

/// Logarithm of the visits of a row, each decayed; in eighths of a doubling, and around and around.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Heat(u8);

/// Steps from a single visit to either end of `ADDED`. Beyond, one of the two does not count.
const REACH: usize = 36;
/// `8 * log2(2^(n / 8) + 1)`, rounded, for n from `-REACH` to `REACH`: a visit more.
const ADDED: [u8; 2 * REACH + 1] = [
    0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 4, 4, 4, 5, 5, 5, 6,
    6, 7, 7, 8, 8, 9, 9, 10, 10, 11, 11, 12, 13, 13, 14, 15, 15, 16, 17, 18, 19, 19, 20, 21, 22,
    23, 24, 24, 25, 26, 27, 28, 29, 30, 31, 32, 33, 34, 35, 36, 36,
];
/// Rank after a visit, by the rank before it.
const WARMED: [u8; 256] = {
    let mut ranks = [ONCE; 256];
    let mut rank = ONCE as usize - REACH;
    while rank < 256 {
        let added = rank + REACH - ONCE as usize;
        ranks[rank] = if added < ADDED.len() { ONCE + ADDED[added] } else { rank as u8 };
        rank += 1;
    }
    ranks
};

impl Beat {
    /// Beats in which every heat must have been looked at once, lest it comes around.
    pub(crate) const ROUND: usize = 64;

    /// Visits between two beats for a cache of `rows`.
    pub(crate) fn period(rows: usize) -> usize {
        (rows * HALF_LIFE / STEPS).max(16)
    }

    pub(crate) fn from_bits(bits: u8) -> Self {
        Self(bits)
    }

    #[cfg(test)]
    pub(crate) fn advance(&mut self) {
        self.0 = self.0.wrapping_add(1);
    }
}

impl Heat {
    /// Of what was never visited.
    pub(crate) fn coldest(beat: Beat) -> Self {
        Self::at(0, beat)
    }

    #[inline(always)]
    fn at(rank: u8, beat: Beat) -> Self {
        Self(beat.0.wrapping_add(rank).wrapping_sub(ONCE))
    }

    /// From 0 up; comparable between rows at one time.
    #[inline(always)]
    pub(crate) fn rank(self, beat: Beat) -> u8 {
        let rank = self.0.wrapping_sub(beat.0).wrapping_add(ONCE);
        if rank >= AROUND {
            0
        } else {
            rank
        }
    }

    /// More than a single visit now, and nothing before.
    pub(crate) fn is_above_one_visit(self, beat: Beat) -> bool {
        self.rank(beat) > ONCE
    }

    /// After a visit now.
    #[inline(always)]
    pub(crate) fn warmed(self, beat: Beat) -> Self {
        Self::at(WARMED[self.rank(beat) as usize], beat)
    }

    /// The same, but not colder than can be told from hot for `ROUND` beats more.
    pub(crate) fn kept(self, beat: Beat) -> Self {
        Self::at(self.rank(beat).max(Beat::ROUND as u8), beat)
    }

    pub(crate) fn bits(self) -> u8 {
        self.0
    }

    pub(crate) fn from_bits(bits: u8) -> Self {
        Self(bits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: heat is the decayed sum of visits, to its resolution. Method: random visits beside the
    /// sum in floating point.
    #[test]
    fn heat_is_the_decayed_sum_of_visits() {
        let (mut beat, mut heat, mut sum) = (Beat::default(), None, 0.0_f64);
        let mut random = 1_u64;
        for _ in 0..20_000 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            if random >> 62 == 0 {
                beat.advance();
                sum /= 2_f64.powf(1.0 / STEPS as f64);
            } else if sum < 15.0 {
                heat = Some(heat.unwrap_or(Heat::coldest(beat)).warmed(beat));
                sum += 1.0;
            }
            let Some(heat) = heat else { continue };
            let told = f64::from(heat.rank(beat)) - f64::from(ONCE);
            let off = told - sum.log2() * STEPS as f64;
            assert!(off.abs() < 6.0, "{told} of {sum}");
        }
    }

    #[test]
    fn a_row_that_is_looked_at_once_a_round_never_looks_hot() {
        let mut beat = Beat(200);
        let mut heat = (0..50).fold(Heat::coldest(beat), |heat, _| heat.warmed(beat));
        assert!(heat.rank(beat) > ONCE + 20 && heat.rank(beat) < AROUND);
        for n in 1..2000 {
            let before = heat.rank(beat);
            beat.advance();
            assert!(heat.rank(beat) <= before);
            if n % Beat::ROUND == 0 {
                heat = heat.kept(beat);
            }
        }
        assert!(heat.warmed(beat).rank(beat) == ONCE, "what is long ago counts nothing");
    }
}
