//! Goal: the index is a map, whatever its regions do meanwhile, and its memory follows its keys.
//! Method: random steps beside a `HashMap`; growth and shrinkage to the byte.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;
use crate::types::hash;

fn insert(index: &mut Index, key: u64, units: u64) {
    let slot = loop {
        match index.vacancy(hash(key)) {
            Some(slot) => break slot,
            None => assert!(index.grow(hash(key), 1)),
        }
    };
    index.insert(slot, hash(key), Location::dram(units));
}

fn find(index: &Index, key: u64, units: u64) -> Option<Slot> {
    index.find(hash(key), |location| location == Location::dram(units)).map(|found| found.0)
}

fn remove(index: &mut Index, key: u64, units: u64) {
    let slot = find(index, key, units).unwrap();
    index.remove(slot);
}

/// That the index holds what the model holds, bucket by bucket, in memory that it says it holds.
fn check(index: &Index, model: &HashMap<u64, u64>, buckets: u32) {
    assert_eq!(index.len(), model.len());
    assert!(model.iter().all(|(&key, &units)| find(index, key, units).is_some()));
    let sorted = |locations: &mut dyn Iterator<Item = Location>| {
        let mut units: Vec<u64> = locations.map(|l| l.resolve().unwrap()).collect();
        units.sort_unstable();
        units
    };
    let mut expected: Vec<u64> = model.values().copied().collect();
    expected.sort_unstable();
    assert_eq!(sorted(&mut index.locations()), expected);
    for own in 0..buckets {
        let is_own = |key: u64| bucket(hash(key)) & (buckets - 1) == own;
        let mut expected: Vec<u64> =
            model.iter().filter(|(&key, _)| is_own(key)).map(|(_, &units)| units).collect();
        expected.sort_unstable();
        assert_eq!(sorted(&mut index.bucket_locations(own)), expected);
    }
    let bytes: usize = index.regions.iter().map(|region| region.bytes()).sum();
    assert_eq!(index.region_bytes, bytes);
    assert_eq!(index.counts.iter().sum::<u32>() as usize, model.len());
}

#[derive(Debug, Clone)]
enum Step {
    Insert(u16),
    Remove(u16),
    Relocate(u16),
    /// Removes all but so many keys.
    Empty(u16),
}

fn step(keys: u16) -> impl Strategy<Value = Step> {
    prop_oneof![
        400 => (0..keys).prop_map(Step::Insert),
        150 => (0..keys).prop_map(Step::Remove),
        100 => (0..keys).prop_map(Step::Relocate),
        1 => (0..keys / 4).prop_map(Step::Empty),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    #[test]
    fn is_a_map(
        buckets in prop::sample::select(vec![1_u32, 4, 16]),
        steps in prop::collection::vec(step(1500), 1..3000),
    ) {
        let arena = Arena::scratch();
        let mut index = Index::new(arena.clone(), buckets);
        let mut model: HashMap<u64, u64> = HashMap::new();
        let mut next = 1;
        for step in steps {
            next += 1;
            match step {
                Step::Insert(key) if !model.contains_key(&key.into()) => {
                    insert(&mut index, key.into(), next);
                    model.insert(key.into(), next);
                }
                Step::Remove(key) => if let Some(units) = model.remove(&key.into()) {
                    remove(&mut index, key.into(), units);
                },
                Step::Relocate(key) => if let Some(units) = model.get_mut(&key.into()) {
                    let slot = find(&index, key.into(), *units).unwrap();
                    index.relocate(slot, Location::dram(next));
                    *units = next;
                },
                Step::Empty(left) => {
                    let gone: Vec<u64> = model.keys().copied().skip(left.into()).collect();
                    for key in gone {
                        remove(&mut index, key, model.remove(&key).unwrap());
                    }
                    check(&index, &model, buckets);
                }
                Step::Insert(_) => {}
            }
        }
        check(&index, &model, buckets);
        drop(index);
        prop_assert_eq!(arena.pages_taken(), 0);
    }
}

/// Removed entries once stayed as marks, which lengthened every later probe and the index.
#[test]
fn a_region_that_turns_over_keeps_its_size_and_its_lines_short() {
    let mut index = Index::new(Arena::scratch(), 16);
    let keys: Vec<u64> = (0..).filter(|&key| bucket(hash(key)) < 16).take(400_000).collect();
    let live = 20_000;
    keys[..live].iter().for_each(|&key| insert(&mut index, key, key + 1));
    let bytes = index.bytes();
    for n in live..keys.len() {
        remove(&mut index, keys[n - live], keys[n - live] + 1);
        insert(&mut index, keys[n], keys[n] + 1);
    }
    assert!(index.bytes() <= bytes * 11 / 10, "{bytes} -> {}", index.bytes());
    let mut probes = 0;
    for &key in &keys[keys.len() - live..] {
        let (slot, _) = index.find(hash(key), |l| l == Location::dram(key + 1)).unwrap();
        let count = index.regions[slot.region as usize].count();
        let home = home(fingerprint(hash(key)), count);
        probes += 1 + (slot.line as usize + count - home) % count;
    }
    assert!(probes < live * 3 / 2, "{probes} lines for {live} keys");
}

#[test]
fn memory_follows_the_keys_up_and_down() {
    let arena = Arena::scratch();
    let mut index = Index::new(arena.clone(), 64);
    let keys: Vec<u64> = (1..).filter(|&key| bucket(hash(key)) < 64).take(200_000).collect();
    let (mut sum, mut longest) = (0.0, 0);
    for (n, &key) in keys.iter().enumerate() {
        let before = index.bytes();
        let growth = index.growth_bytes(hash(key), 1);
        insert(&mut index, key, key);
        assert!(index.bytes() <= before + growth, "{before} + {growth} at {n} keys");
        longest = longest.max(growth);
        if n >= 500 {
            let each = index.bytes() as f64 / (n + 1) as f64;
            assert!(each <= 18.0, "{each} bytes a key at {n} keys");
            sum += each;
        }
    }
    let mean = sum / (keys.len() - 500) as f64;
    assert!(mean <= 12.0, "{mean} bytes a key");
    assert!(longest <= 128 << 10, "one growth takes {longest} bytes");
    for (n, &key) in keys.iter().enumerate() {
        remove(&mut index, key, key);
        let left = keys.len() - n - 1;
        assert!(index.bytes() <= 32 * left as u64 + 64 * 140, "{} at {left} keys", index.bytes());
    }
    assert!(index.bytes() < 100, "{}", index.bytes());
    assert_eq!(arena.pages_taken(), 0);
}

/// What is promised for new keys must hold when they come.
#[test]
fn what_new_keys_will_take_is_known_before() {
    let keys: Vec<u64> = (1..).filter(|&key| bucket(hash(key)) < 16).take(30_000).collect();
    for (held, new) in [(0, 1), (0, 3), (0, 400), (200, 60), (250, 3), (250, 5000), (20_000, 9000)]
    {
        let mut index = Index::new(Arena::scratch(), 16);
        keys[..held].iter().for_each(|&key| insert(&mut index, key, key));
        let hashes: Vec<u64> = keys[held..held + new].iter().map(|&key| hash(key)).collect();
        let (exact, most) = (index.bytes_with(&hashes), index.bytes_at_most(new));
        keys[held..held + new].iter().for_each(|&key| insert(&mut index, key, key));
        assert!(index.bytes() <= exact, "{held} + {new} keys: {} > {exact}", index.bytes());
        assert!(exact <= most, "{held} + {new} keys: {exact} > {most}");
    }
}

#[test]
fn a_few_keys_take_a_line() {
    let mut index = Index::new(Arena::scratch(), 256);
    (0..3).for_each(|key| insert(&mut index, key, key + 1));
    assert!(index.bytes() <= 80, "{}", index.bytes());
}

#[test]
fn tiers_do_not_mix() {
    assert_eq!(Location::nvme(Place::from_bits(7)).resolve(), Err(Place::from_bits(7)));
    assert_eq!(Location::dram(7).resolve(), Ok(7));
    assert_ne!(Location::nvme(Place::from_bits(7)), Location::dram(7));
}

/// Where one region serves all buckets, keys of other buckets with the same fingerprint are no
/// match: a reader of the log asks of a record's bucket alone.
#[test]
fn a_shared_region_tells_buckets_apart() {
    let mut index = Index::new(Arena::scratch(), 16);
    // Equal but for the top bits, which are the bucket.
    let hashes: Vec<u64> = (0..16).map(|own| own << 52 | 0x000a_bcde_f123_4567).collect();
    for (n, &hash) in hashes.iter().enumerate() {
        let slot = loop {
            match index.vacancy(hash) {
                Some(slot) => break slot,
                None => assert!(index.grow(hash, 1)),
            }
        };
        index.insert(slot, hash, Location::dram(n as u64 + 1));
    }
    assert!(index.is_shared());
    for (n, &hash) in hashes.iter().enumerate() {
        let found = index.find(hash, |_| true).map(|found| found.1);
        assert_eq!(found, Some(Location::dram(n as u64 + 1)));
    }
}
