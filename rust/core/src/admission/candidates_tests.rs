//! Goal: counts are exact where there is room for them; where not, the oldest go, and memory is
//! bounded. Method: maps beside, streams of far more keys than fit.

use std::collections::HashMap;

use super::super::Admission;
use super::*;
use crate::types::hash;

const ONE: u32 = 1;

fn rule(n: u32, capacity: u64) -> Rule {
    Rule::new(&Admission::MinCount { n, capacity }, 0)
}

/// A mix of frequent and rare keys, of which some repeat soon and others late.
fn stream(seed: u64) -> impl Iterator<Item = (u64, u32)> {
    let mut x = seed;
    (0..60_000).map(move |n: u64| {
        x = hash(x.wrapping_add(n));
        let range = 1 << (x % 17);
        (hash((x >> 20) % range), 1 + (x >> 60) as u32 % 3)
    })
}

/// Goal: with room for all of them counts are exact. Method: a map beside, for rules of every
/// width, with keys that are forgotten now and then.
#[test]
fn counts_are_those_of_a_map() {
    for n in [1, 2, 3, 5, 300, 5000] {
        let (rule, mut candidates) = (rule(n, 1_000_000), Candidates::new(BUCKETS));
        let mut counts: HashMap<u64, u32> = HashMap::new();
        for (step, (hash, count)) in stream(n.into()).enumerate() {
            if step % 11 == 0 {
                assert_eq!(candidates.forget(hash), counts.remove(&hash).unwrap_or(0));
                continue;
            }
            let before = counts.get(&hash).copied().unwrap_or(0);
            let is_admitted = before + count >= n;
            assert_eq!(candidates.admit(&rule, hash, 0), None, "nothing is no read");
            let admitted = candidates.admit(&rule, hash, count);
            assert_eq!(admitted, is_admitted.then_some(before), "n {n} step {step}");
            if is_admitted {
                counts.remove(&hash);
            } else {
                counts.insert(hash, before + count);
            }
        }
        assert_eq!(candidates.len(), counts.len());
    }
}

/// Goal: the memory of candidates is bounded by the capacity, at four bytes each and little more,
/// and what is remembered are the newest. Method: far more keys than fit, once each.
#[test]
fn the_oldest_are_forgotten_and_memory_is_bounded() {
    let capacity = 400_000;
    let admission = Admission::MinCount { n: 2, capacity };
    let (rule, mut candidates) = (rule(2, capacity), Candidates::new(BUCKETS));
    let mut most = 0;
    for key in 0..3 * capacity {
        assert_eq!(candidates.admit(&rule, hash(key), ONE), None, "key {key} came once");
        most = most.max(candidates.bytes());
    }
    assert!(most <= admission.bytes_max() + 4096, "{most} of {}", admission.bytes_max());
    let per_key = most as f64 / candidates.len() as f64;
    assert!(per_key < 5.5, "{per_key} bytes a key");
    let is_known = |&key: &u64| candidates.count(hash(key)) == 1;
    let newest = (3 * capacity - capacity / 3..3 * capacity).filter(is_known).count() as u64;
    assert_eq!(newest, capacity / 3, "younger than half of what fits");
    assert_eq!((0..capacity).filter(is_known).count(), 0, "two generations ago");
}

/// As many keys as the capacity says are all remembered, for small and large ones.
#[test]
fn what_fits_is_remembered() {
    for capacity in [100, 10_000, 300_000] {
        let (rule, mut candidates) = (rule(2, capacity), Candidates::new(BUCKETS));
        (0..capacity).for_each(|key| _ = candidates.admit(&rule, hash(key), ONE));
        let mut is_admitted = |key: &u64| candidates.admit(&rule, hash(*key), ONE).is_some();
        let admitted = (0..capacity).filter(&mut is_admitted).count();
        assert!(admitted as u64 * 1000 >= capacity * 999, "{admitted} of {capacity}");
    }
}

/// Goal: of keys that never came before at most one in a hundred passes for another. Method: the
/// shortest tags that a rule may have, and a bucket with its share of the capacity.
#[test]
fn few_are_taken_for_others() {
    let capacity = 2_682_880;
    let admission = Admission::MinCount { n: 1 << 16, capacity };
    assert!(admission.check().is_ok());
    let (rule, mut candidates) = (Rule::new(&admission, 0), Candidates::new(ONE));
    let hash_in_first = |key: u64| hash(key) >> BUCKET_BITS;
    let full = capacity / u64::from(BUCKETS);
    (0..full).for_each(|key| _ = candidates.admit(&rule, hash_in_first(key), ONE));
    let fresh = full..full + 100_000;
    let wrong = fresh.filter(|&key| candidates.count(hash_in_first(key)) > 0).count();
    assert!((800..=1150).contains(&wrong), "{wrong} of 100,000");
}

/// Goal: a rule with larger counts, and a file, keep what was counted. Method: both, beside a map.
#[test]
fn wider_counts_and_restored_ones_are_the_same() {
    let (mut candidates, small) = (Candidates::new(BUCKETS), rule(3, 100_000));
    let keys: Vec<u64> = (0..5000).map(hash).collect();
    for (n, &key) in keys.iter().enumerate() {
        candidates.admit(&small, key, 1 + n as u32 % 2);
    }
    let mut restored = Candidates::new(BUCKETS);
    // Of another width than what it is given.
    restored.admit(&rule(200, 100_000), keys[0], ONE);
    for n in 0..BUCKETS as usize {
        let ([young, old], width) = candidates.entries(n);
        restored.restore(n, [young.to_vec(), old.to_vec()], width);
    }
    candidates.admit(&rule(50_000, 100_000), hash(1 << 40), ONE);
    for candidates in [&candidates, &restored] {
        let count = |n: usize| candidates.count(keys[n]);
        assert!((0..5000).all(|n| count(n) == 1 + n as u32 % 2));
    }
    assert_eq!((candidates.len(), restored.len()), (5001, 5000));
}

#[test]
fn memory_comes_back_when_candidates_go() {
    let (rule, mut candidates) = (rule(2, 100_000), Candidates::new(16));
    let empty = candidates.bytes();
    (0..10_000).for_each(|key| _ = candidates.admit(&rule, hash(key), ONE));
    assert!(candidates.bytes() >= empty + 4 * candidates.len() as u64);
    (0..10_000).for_each(|key| _ = candidates.forget(hash(key)));
    assert_eq!((candidates.len(), candidates.bytes()), (0, empty));
}
