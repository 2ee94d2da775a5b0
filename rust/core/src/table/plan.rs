//! The order in which a batch visits the store: keys grouped by stripe, each with its hash.

use std::ops::Range;

use crate::types::hash;

/// One key of a batch.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Item {
    pub(crate) key: u64,
    pub(crate) hash: u64,
    /// Position in the caller's arrays.
    pub(crate) index: u32,
}

/// All keys of one table's batch, stripe after stripe.
pub(crate) struct Plan {
    pub(crate) items: Vec<Item>,
    starts: Vec<u32>,
}

impl Plan {
    /// Groups `keys` for `stripes` (a power of two) by a counting sort on the top bits of the
    /// hash.
    pub(crate) fn new(keys: &[u64], stripes: usize) -> Self {
        Self::window(keys, 0, stripes)
    }

    /// As `new`, of keys that lie from `first` on in the caller's arrays.
    pub(crate) fn window(keys: &[u64], first: usize, stripes: usize) -> Self {
        let mut starts = vec![0_u32; stripes + 1];
        let stripe = |hash: u64| stripe_of(hash, stripes);
        for &key in keys {
            starts[stripe(hash(key)) + 1] += 1;
        }
        for s in 0..stripes {
            starts[s + 1] += starts[s];
        }
        let mut next = starts.clone();
        let mut items = vec![Item::default(); keys.len()];
        for (index, &key) in keys.iter().enumerate() {
            let hash = hash(key);
            let place = &mut next[stripe(hash)];
            items[*place as usize] = Item { key, hash, index: (first + index) as u32 };
            *place += 1;
        }
        Self { items, starts }
    }

    /// Positions in `items` that belong to stripe `s`.
    pub(crate) fn range(&self, s: usize) -> Range<usize> {
        self.starts[s] as usize..self.starts[s + 1] as usize
    }

    pub(crate) fn group(&self, s: usize) -> &[Item] {
        &self.items[self.range(s)]
    }
}

/// Stripe of a hash: the top bits, so a stripe holds whole buckets.
#[inline(always)]
pub(crate) fn stripe_of(hash: u64, stripes: usize) -> usize {
    (hash >> (64 - stripes.trailing_zeros())) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_hold_every_key_once_in_order() {
        let keys: Vec<u64> = (0..1000).map(|i| i % 700).collect();
        let plan = Plan::new(&keys, 16);
        let mut seen = vec![false; keys.len()];
        for s in 0..16 {
            for item in plan.group(s) {
                assert_eq!(stripe_of(item.hash, 16), s);
                assert_eq!(keys[item.index as usize], item.key);
                assert!(!std::mem::replace(&mut seen[item.index as usize], true));
            }
            assert!(plan.group(s).windows(2).all(|w| w[0].index < w[1].index));
        }
        assert!(seen.into_iter().all(|seen| seen));
    }
}
