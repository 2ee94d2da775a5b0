//! Which keys get a row. A table may ask that a key was read a number of times, or let chance
//! decide at each read. Until then the key is a candidate: its count takes four bytes, and nothing
//! else of it is kept.
//!
//! Who is admitted follows from the rule, the key and what was counted in its bucket, in order.
//! Budgets of DRAM, stripes and shards do not enter.

mod candidates;
mod file;

use serde::{Deserialize, Serialize};

pub(crate) use self::candidates::Candidates;
pub(crate) use self::file::{Block, Reader, Writer};
use crate::error::{Error, Result};
use crate::types::{hash, BUCKETS};

/// Most reads that a rule may ask for.
const READS_MAX: u32 = 1 << 16;
/// A key that chance has passed over so many times its mean wait is admitted: one in ten million.
const WAITS_MAX: f64 = 16.0;
/// Bits of what is kept of a candidate: its tag and its count.
const ENTRY_BITS: u32 = 32;
/// At most one key in so many may be taken for another, which admits it too early.
const ODDS: u64 = 100;

/// Which keys of a table get a row, by how they are read for training.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Admission {
    /// Those whose counts have come to `n`.
    MinCount {
        /// 1 to 65536.
        n: u32,
        /// Candidates that are remembered, about; beyond it the oldest are forgotten.
        capacity: u64,
    },
    /// Each occurrence with probability `p`: a pure function of seed, key and which occurrence of
    /// the key it is.
    Probability {
        /// 1/4096 to 1.
        p: f64,
        /// As above.
        capacity: u64,
    },
}

impl Admission {
    fn capacity(&self) -> u64 {
        match *self {
            Self::MinCount { capacity, .. } | Self::Probability { capacity, .. } => capacity,
        }
    }

    /// Occurrences that admit any key.
    fn most(&self) -> u32 {
        match *self {
            Self::MinCount { n, .. } => n,
            Self::Probability { p, .. } if p >= 1.0 => 1,
            Self::Probability { p, .. } => (WAITS_MAX / p).ceil() as u32,
        }
    }

    /// Refuses a rule that no table can have.
    ///
    /// # Errors
    /// `BadInput` naming the setting, the value and its range.
    pub(crate) fn check(&self) -> Result<()> {
        let bad = |name, value: String, allowed: String| {
            Err(Error::bad_input(format!("admission: {name} is {value}; give {allowed}")))
        };
        match *self {
            Self::MinCount { n, .. } if n == 0 || n > READS_MAX => {
                return bad("n", n.to_string(), format!("1 to {READS_MAX}"));
            }
            Self::Probability { p, .. }
                if !(WAITS_MAX / f64::from(READS_MAX)..=1.0).contains(&p) =>
            {
                return bad("p", p.to_string(), "1/4096 to 1".into());
            }
            _ => {}
        }
        let (capacity, most) = (self.capacity(), self.most());
        let tags = 1_u64 << (ENTRY_BITS - width_of(most));
        let capacity_max = tags / ODDS * u64::from(BUCKETS);
        if capacity == 0 || capacity > capacity_max {
            return bad(
                "capacity",
                capacity.to_string(),
                format!(
                    "1 to {capacity_max} for counts of up to {most}, which share 4 bytes a key"
                ),
            );
        }
        Ok(())
    }

    /// Most bytes that the candidates of a table take, when all buckets are full.
    pub(crate) fn bytes_max(&self) -> u64 {
        let of_bucket = 2 * generation_of(self.capacity()) * size_of::<u32>();
        u64::from(BUCKETS).saturating_mul((of_bucket + Candidates::BUCKET_BYTES) as u64)
    }
}

/// Bits that hold every count below `most`.
fn width_of(most: u32) -> u32 {
    (u32::BITS - (most - 1).leading_zeros()).max(1)
}

/// Candidates of one generation of a bucket. The two hold what falls into a bucket when `capacity`
/// keys are spread by their hash: the mean, and four standard deviations more.
fn generation_of(capacity: u64) -> usize {
    let mean = capacity as f64 / f64::from(BUCKETS);
    ((mean + 4.0 * mean.sqrt() + 4.0) / 2.0).ceil() as usize
}

/// An admission, ready for use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rule {
    most: u32,
    /// An occurrence whose number, drawn from 64 bits, is below it admits; 0: none does.
    chance: u64,
    seed: u64,
    width: u32,
    generation: usize,
}

impl Rule {
    pub(crate) fn new(admission: &Admission, seed: u64) -> Self {
        let chance = match *admission {
            Admission::MinCount { .. } => 0,
            // Exact: a product with a power of two.
            Admission::Probability { p, .. } => (p * 2.0_f64.powi(64)) as u64,
        };
        let most = admission.most();
        let generation = generation_of(admission.capacity());
        Self { most, chance, seed, width: width_of(most), generation }
    }

    /// Whether a key of this hash, of which `before` occurrences were counted, is admitted by one
    /// of the next `count`.
    fn admits(&self, hash: u64, before: u32, count: u32) -> bool {
        let after = before.saturating_add(count);
        let is_drawn = |n: u32| draw(self.seed, hash, n) < self.chance;
        count > 0 && (after >= self.most || self.chance > 0 && (before + 1..=after).any(is_drawn))
    }
}

/// A number for the n-th occurrence of a key.
fn draw(seed: u64, key_hash: u64, n: u32) -> u64 {
    hash(hash(seed ^ u64::from(n).wrapping_mul(0x9e37_79b9_7f4a_7c15)) ^ key_hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CAPACITY: u64 = 10_000_000;

    fn probability(p: f64, seed: u64) -> Rule {
        Rule::new(&Admission::Probability { p, capacity: CAPACITY }, seed)
    }

    /// Occurrences until a key is admitted.
    fn wait(rule: &Rule, key: u64) -> u32 {
        (1..).find(|&n| rule.admits(hash(key), n - 1, 1)).unwrap()
    }

    #[test]
    fn a_count_is_reached_at_once_or_step_by_step() {
        let rule = Rule::new(&Admission::MinCount { n: 5, capacity: CAPACITY }, 0);
        let admits = |before, count| rule.admits(7, before, count);
        assert!(admits(4, 1) && admits(0, 5) && admits(3, u32::MAX));
        assert!(!admits(0, 4) && !admits(3, 1) && !admits(4, 0));
    }

    /// Goal: chance admits as often as it says, at each occurrence, whatever came before. Method:
    /// waits of many keys have the mean and the share of ones of a geometric distribution.
    #[test]
    fn waits_for_chance_are_geometric() {
        for p in [0.002, 0.1, 0.5] {
            let rule = probability(p, 3);
            let waits: Vec<u32> = (0..20_000).map(|key| wait(&rule, key)).collect();
            let mean = waits.iter().map(|&n| f64::from(n)).sum::<f64>() / 20_000.0;
            assert!((mean * p - 1.0).abs() < 0.03, "p {p}: mean wait {mean}");
            let firsts = waits.iter().filter(|&&n| n == 1).count() as f64 / 20_000.0;
            assert!((firsts - p).abs() < 0.012, "p {p}: {firsts} at once");
        }
    }

    #[test]
    fn occurrences_of_one_call_count_like_those_of_many() {
        let rule = probability(0.05, 11);
        for key in 0..500 {
            let wait = wait(&rule, key);
            assert!(!rule.admits(hash(key), 0, wait - 1) && rule.admits(hash(key), 0, wait));
            assert!(rule.admits(hash(key), 0, u32::MAX));
        }
    }

    #[test]
    fn seeds_choose_others_and_certainty_chooses_all() {
        let of = |seed| -> Vec<u64> {
            let rule = probability(0.1, seed);
            (0..1000).filter(|&key| rule.admits(hash(key), 0, 1)).collect()
        };
        assert_eq!(of(1), of(1));
        assert_ne!(of(1), of(2));
        assert!((0..1000).all(|key| probability(1.0, 5).admits(hash(key), 0, 1)));
    }

    #[test]
    fn what_is_out_of_range_is_named() {
        let min_count = |n, capacity| Admission::MinCount { n, capacity }.check();
        let chance = |p| Admission::Probability { p, capacity: CAPACITY }.check();
        assert!(min_count(1, 1)
            .and(min_count(2, 1 << 30))
            .and(min_count(1 << 14, CAPACITY))
            .is_ok());
        assert!(min_count(1 << 16, 1000).and(chance(0.001)).and(chance(1.0)).is_ok());
        let text = |outcome: Result<()>| outcome.unwrap_err().message;
        assert_eq!(text(min_count(0, 9)), "admission: n is 0; give 1 to 65536");
        assert_eq!(text(min_count(65_537, 9)), "admission: n is 65537; give 1 to 65536");
        assert!(text(min_count(2, 0)).starts_with("admission: capacity is 0; give 1 to "));
        assert!(text(min_count(1 << 16, CAPACITY)).contains("give 1 to 2682880 for counts"));
        for p in [0.0, -0.5, 1.5, f64::NAN, f64::INFINITY, 0.0002] {
            assert!(text(chance(p)).ends_with("give 1/4096 to 1"), "{p}");
        }
        assert!(text(chance(0.0003)).contains("capacity is 10000000"), "tags would be too short");
    }
}
