//! The order in which a batch visits the store: keys grouped by stripe, each with its hash.

use std::ops::Range;

use crate::types::{bucket, hash, BUCKETS};

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

    /// Cuts the buckets into runs that hold at most `most` of `keys` each, so that a plan of some
    /// keys at a time can be made of any number. One bucket is never cut.
    pub(crate) fn windows(keys: &[u64], most: usize) -> Vec<Range<u32>> {
        if keys.len() <= most {
            return std::iter::once(0..BUCKETS).collect();
        }
        let mut counts = vec![0_u32; BUCKETS as usize];
        keys.iter().for_each(|&key| counts[bucket(hash(key)) as usize] += 1);
        let (mut windows, mut start, mut held) = (Vec::new(), 0, 0);
        for (bucket, &count) in counts.iter().enumerate() {
            if held > 0 && held + count as usize > most {
                windows.push(start..bucket as u32);
                (start, held) = (bucket as u32, 0);
            }
            held += count as usize;
        }
        windows.push(start..BUCKETS);
        windows
    }

    /// As `new`, of the keys of these buckets.
    pub(crate) fn of(keys: &[u64], buckets: Range<u32>, stripes: usize) -> Self {
        if buckets == (0..BUCKETS) {
            return Self::new(keys, stripes);
        }
        let placed = keys.iter().copied().zip(0..);
        Self::grouped(placed.filter(|(key, _)| buckets.contains(&bucket(hash(*key)))), stripes)
    }

    /// As `new`, of keys that lie from `first` on in the caller's arrays.
    pub(crate) fn window(keys: &[u64], first: usize, stripes: usize) -> Self {
        Self::grouped(keys.iter().copied().zip(first as u32..), stripes)
    }

    /// As `new`, of the keys at these positions of `keys`.
    pub(crate) fn of_some(keys: &[u64], positions: &[u32], stripes: usize) -> Self {
        Self::grouped(positions.iter().map(|&at| (keys[at as usize], at)), stripes)
    }

    /// Groups keys, each with its position in the caller's arrays.
    fn grouped(keys: impl Iterator<Item = (u64, u32)> + Clone, stripes: usize) -> Self {
        let mut starts = vec![0_u32; stripes + 1];
        let stripe = |hash: u64| stripe_of(hash, stripes);
        for (key, _) in keys.clone() {
            starts[stripe(hash(key)) + 1] += 1;
        }
        for s in 0..stripes {
            starts[s + 1] += starts[s];
        }
        let mut next = starts.clone();
        let mut items = vec![Item::default(); starts[stripes] as usize];
        for (key, index) in keys {
            let hash = hash(key);
            let place = &mut next[stripe(hash)];
            items[*place as usize] = Item { key, hash, index };
            *place += 1;
        }
        Self { items, starts }
    }

    /// Positions in `items` that belong to stripe `s`.
    pub(crate) fn range(&self, s: usize) -> Range<usize> {
        self.starts[s] as usize..self.starts[s + 1] as usize
    }

    pub(crate) fn stripes(&self) -> usize {
        self.starts.len() - 1
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

    /// Key by key in the order of the whole plan's stripes, whatever the windows.
    #[test]
    fn windows_hold_what_the_whole_plan_holds() {
        let keys: Vec<u64> = (0..5000).map(|i| i * 77 % 3000).collect();
        let whole = Plan::new(&keys, 16);
        for most in [1, 7, 500, 4999, 5000] {
            let windows = Plan::windows(&keys, most);
            assert!(windows.windows(2).all(|pair| pair[0].end == pair[1].start));
            assert_eq!((windows[0].start, windows[windows.len() - 1].end), (0, BUCKETS));
            let mut groups = vec![Vec::new(); 16];
            for buckets in windows {
                let plan = Plan::of(&keys, buckets.clone(), 16);
                let own = |item: &Item| bucket(item.hash);
                let is_one = plan.items.iter().map(own).min() == plan.items.iter().map(own).max();
                assert!(plan.items.len() <= most || is_one, "{} of {most}", plan.items.len());
                for (s, group) in groups.iter_mut().enumerate() {
                    group.extend(plan.group(s).iter().map(|item| (item.index, item.key)));
                }
            }
            for (s, group) in groups.iter_mut().enumerate() {
                group.sort_unstable();
                let expected = whole.group(s).iter().map(|item| (item.index, item.key));
                assert!(group.iter().copied().eq(expected));
            }
        }
    }
}
