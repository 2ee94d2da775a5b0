//! Goal: a scrub reads all that is on the device, finds whatever is not what was written, mends
//! what can be mended and names what cannot; inspect tells where a row is and changes nothing.
//!
//! Method: bytes of headers, footers and chosen records are flipped in `rows.log` of an open store;
//! all other rows are compared bit for bit with maps, then and after the next opening.

#![allow(clippy::unwrap_used, unreachable_pub, reason = "a test stops at what it did not expect")]

use std::collections::HashSet;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use hybridps_core::{
    Damaged, Durability, ErrorKind, Fate, Inspected, Optimizer, RowTier, Scrubbed, Store,
};

mod kit;
mod scratch;
use kit::{all_keys, assign, config, copy, insert, lookup, numbers, push, spec, stat, store_stat};
use kit::{Model, MIB};
use scratch::Scratch;

const DIM: u32 = 64;
const SEGMENT: u64 = 256 << 10;
const PAGE: u64 = 4096;
/// Far more rows than fit the DRAM.
const KEYS: u64 = 60_000;

fn open(scratch: &Scratch) -> Store {
    Store::open(config(scratch.path(), Durability::Process)).unwrap()
}

/// A store with rows in both tiers, all of them on the device too.
fn filled(scratch: &Scratch) -> (Store, Model) {
    let store = open(scratch);
    let mut model = Model::new(&store, spec("t", DIM, Optimizer::Sgd));
    let keys: Vec<u64> = (1..=KEYS).collect();
    for (number, keys) in (1..).zip(keys.chunks(3000)) {
        model.apply(&store, push(1, number), keys, number);
    }
    store.close().unwrap();
    let store = open(scratch);
    lookup(&store, model.table, model.dim(), &keys[..2000]).unwrap();
    (store, model)
}

fn all(store: &Store) -> Scrubbed {
    store.scrub(0, u64::MAX).unwrap()
}

fn one(store: &Store, model: &Model, key: u64) -> Inspected {
    store.inspect(model.table, &[key]).unwrap().remove(0)
}

/// A key whose row is served from `tier`.
fn key_in(store: &Store, model: &Model, tier: RowTier) -> u64 {
    let keys: Vec<u64> = (1..=KEYS).collect();
    let rows = store.inspect(model.table, &keys).unwrap();
    rows.iter().find(|row| row.tier == Some(tier)).unwrap().key
}

fn flip(path: &Path, offset: u64) {
    let file = std::fs::File::options().read(true).write(true).open(path.join("rows.log")).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 0x40], offset).unwrap();
}

/// First byte of the segment that holds an offset.
fn segment_of(offset: u64) -> u64 {
    PAGE + (offset - PAGE) / SEGMENT * SEGMENT
}

#[test]
fn a_sound_store_is_read_whole_in_any_number_of_steps() {
    let scratch = Scratch::new("scrub");
    let (store, model) = filled(&scratch);
    let (reads, read) =
        (stat(&store, model.table, "device_reads"), store_stat(&store, "device_bytes_read"));
    let whole = all(&store);
    assert_eq!((whole.next, &whole.damaged[..]), (None, &[][..]));
    assert!(whole.records >= KEYS && whole.bytes + 2 * PAGE >= whole.total_bytes, "{whole:?}");
    assert_eq!(stat(&store, model.table, "device_reads"), reads, "no caller waited for them");
    assert!(stat(&store, model.table, "background_reads") > 0);
    let read = store_stat(&store, "device_bytes_read") - read;
    assert!(read >= whole.bytes, "{read} bytes counted, {} read", whole.bytes);
    let (mut from, mut steps, mut records, mut bytes) = (Some(0), 0, 0, 0);
    while let Some(at) = from {
        let step = store.scrub(at, 1).unwrap();
        assert!(step.bytes <= SEGMENT && step.next.is_none_or(|next| next > at));
        (from, steps, records, bytes) =
            (step.next, steps + 1, records + step.records, bytes + step.bytes);
    }
    assert_eq!((records, bytes), (whole.records, whole.bytes));
    assert!(steps > 50, "{steps}");
    assert_eq!(store_stat(&store, "scrub_passes"), 2);
    model.check(&store);
}

#[test]
fn a_record_that_is_nowhere_else_is_named_until_it_is_assigned() {
    let scratch = Scratch::new("scrub");
    let (store, mut model) = filled(&scratch);
    let bad = key_in(&store, &model, RowTier::Nvme);
    let offset = one(&store, &model, bad).place.unwrap();
    flip(scratch.path(), offset + 40);
    let lost = Damaged { row: Some(("t".into(), bad)), offset, fate: Fate::Lost };
    assert_eq!(all(&store).damaged, std::slice::from_ref(&lost));
    assert_eq!(store.take_damaged(), (vec![lost.clone()], 0), "and told to who watches");
    assert_eq!(stat(&store, model.table, "corrupt_records"), 1);
    // It stays where it is, alone: the next pass finds it again and nothing else.
    assert_eq!(all(&store).damaged, [lost]);
    let told = one(&store, &model, bad);
    assert!(told.error.is_some() && told.tier == Some(RowTier::Nvme) && told.norm == 0.0);
    let outcome = lookup(&store, model.table, model.dim(), &[bad]);
    assert_eq!(outcome.unwrap_err().kind, ErrorKind::Corruption);
    let row = numbers(3, model.dim());
    assign(&store, push(1, 1000), model.table, &[bad], &row).unwrap();
    model.rows.insert(bad, row);
    // Its record matters to nobody now: the segment goes.
    let freed = all(&store).damaged;
    assert_eq!(freed.iter().map(|found| found.fate).collect::<Vec<_>>(), [Fate::Freed]);
    assert_eq!(all(&store).damaged, []);
    model.check(&store);
    store.close().unwrap();
    model.check(&open(&scratch));
}

#[test]
fn a_row_that_is_in_dram_is_written_anew() {
    let scratch = Scratch::new("scrub");
    let (store, model) = filled(&scratch);
    let key = key_in(&store, &model, RowTier::Dram);
    let offset = one(&store, &model, key).place.unwrap();
    flip(scratch.path(), offset + 40);
    let rewritten = Damaged { row: Some(("t".into(), key)), offset, fate: Fate::Rewritten };
    assert_eq!(all(&store).damaged, [rewritten]);
    let now = one(&store, &model, key).place.unwrap();
    assert_ne!(segment_of(now), segment_of(offset));
    assert_eq!(all(&store).damaged, []);
    store.flush().unwrap();
    let image = Scratch::new("image");
    copy(scratch.path(), image.path());
    model.check(&open(&image));
}

/// An opening would fail on them: a scrub in time spares that.
#[test]
fn a_damaged_header_or_footer_is_written_anew_elsewhere() {
    for at in [20, SEGMENT] {
        let scratch = Scratch::new("scrub");
        let (store, model) = filled(&scratch);
        let key = key_in(&store, &model, RowTier::Nvme);
        let segment = segment_of(one(&store, &model, key).place.unwrap());
        let bytes = std::fs::read(scratch.path().join("rows.log")).unwrap();
        // The footer is the last that is written of a segment.
        let end = bytes.len().min((segment + SEGMENT) as usize);
        let last = bytes[segment as usize..end].iter().rposition(|&byte| byte != 0).unwrap() as u64;
        flip(scratch.path(), segment + at.min(last));
        let damaged = all(&store).damaged;
        assert_eq!(damaged, [Damaged { row: None, offset: segment, fate: Fate::Freed }]);
        assert_eq!(all(&store).damaged, []);
        model.check(&store);
        store.close().unwrap();
        model.check(&open(&scratch));
    }
}

#[test]
fn damage_all_over_costs_what_it_hits() {
    let scratch = Scratch::new("scrub");
    let (store, mut model) = filled(&scratch);
    let keys: Vec<u64> = (1..=KEYS).step_by(1501).collect();
    let places = store.inspect(model.table, &keys).unwrap();
    places.iter().for_each(|row| flip(scratch.path(), row.place.unwrap() + 36));
    let damaged = all(&store).damaged;
    let named: HashSet<u64> = damaged.iter().map(|found| found.row.as_ref().unwrap().1).collect();
    assert_eq!(named, keys.iter().copied().collect());
    for (row, found) in places.iter().zip(&keys) {
        let fate =
            damaged.iter().find(|damaged| damaged.row.as_ref().unwrap().1 == *found).unwrap().fate;
        match row.tier {
            Some(RowTier::Dram) => assert_eq!(fate, Fate::Rewritten),
            _ => {
                assert_eq!(fate, Fate::Lost);
                model.rows.remove(found);
            }
        }
    }
    assert_eq!(stat(&store, model.table, "corrupt_records"), keys.len() as u64);
    let lost: Vec<u64> = keys.into_iter().filter(|key| !model.rows.contains_key(key)).collect();
    assert_eq!(store.remove(push(1, 1000), model.table, &lost).unwrap(), lost.len() as u64);
    model.check(&store);
}

#[test]
fn the_background_comes_round_and_ends_with_the_store() {
    let scratch = Scratch::new("scrub");
    let (store, model) = filled(&scratch);
    let bad = key_in(&store, &model, RowTier::Nvme);
    flip(scratch.path(), one(&store, &model, bad).place.unwrap() + 40);
    store.set_scrub_rate(1 << 40).unwrap();
    let end = Instant::now() + Duration::from_secs(60);
    while store_stat(&store, "scrub_passes") < 2 {
        assert!(Instant::now() < end, "it makes no progress");
        std::thread::sleep(Duration::from_millis(5));
    }
    store.set_scrub_rate(0).unwrap();
    let found = store.take_damaged().0;
    assert!(!found.is_empty() && found.iter().all(|found| found.row == Some(("t".into(), bad))));
    store.set_scrub_rate(1).unwrap();
    store.close().unwrap();
}

#[test]
fn a_slow_rate_reads_little() {
    let scratch = Scratch::new("scrub");
    let (store, _) = filled(&scratch);
    store.set_scrub_rate(1).unwrap();
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(store_stat(&store, "scrubbed_bytes"), 0);
    store.set_scrub_rate(1 << 40).unwrap();
    let end = Instant::now() + Duration::from_secs(60);
    while store_stat(&store, "scrubbed_bytes") == 0 {
        assert!(Instant::now() < end, "a rate that is raised counts at once");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn inspect_tells_what_is_stored_and_changes_nothing() {
    let scratch = Scratch::new("inspect");
    let (store, mut model) = filled(&scratch);
    let (dram, nvme) =
        (key_in(&store, &model, RowTier::Dram), key_in(&store, &model, RowTier::Nvme));
    insert(&store, model.table, model.dim(), &[dram, dram]).unwrap();
    model.apply(&store, push(1, 500), &[dram], 5);
    let before = store.table_stats(model.table).unwrap();
    let rows = store.inspect(model.table, &[nvme, u64::MAX, dram, nvme]).unwrap();
    assert_eq!(rows.iter().map(|row| row.key).collect::<Vec<_>>(), [nvme, u64::MAX, dram, nvme]);
    assert_eq!(
        rows.iter().map(|row| row.tier).collect::<Vec<_>>(),
        [Some(RowTier::Nvme), None, Some(RowTier::Dram), Some(RowTier::Nvme)]
    );
    for row in [&rows[0], &rows[2]] {
        let value = &model.rows[&row.key];
        let norm = value.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
        assert!((row.norm - norm).abs() < 1e-9 && row.error.is_none());
    }
    assert_eq!((rows[2].frequency, rows[0].frequency, rows[1].frequency), (2, 0, 0));
    assert!([&rows[0], &rows[2]].iter().all(|row| row.last_seen > 1_700_000_000));
    assert!(rows[2].is_dirty && !rows[0].is_dirty && rows[2].sequence > rows[0].sequence);
    assert!(rows[0].place.is_some() && rows[1].place.is_none() && rows[0] == rows[3]);
    let again = store.inspect(model.table, &[nvme, u64::MAX, dram, nvme]).unwrap();
    assert_eq!(again, rows, "looking is no visit, and brings nothing to DRAM");
    let after = store.table_stats(model.table).unwrap();
    for (before, after) in before.iter().zip(&after) {
        let counts_reads = ["background_reads", "device_bytes_read"].contains(&before.0);
        assert!(before == after || counts_reads, "{before:?} -> {after:?}");
    }
    let many: Vec<u64> = (0..=1 << 16).collect();
    assert_eq!(store.inspect(model.table, &many).unwrap_err().kind, ErrorKind::BadInput);
    assert_eq!(store.inspect(99, &[1]).unwrap_err().kind, ErrorKind::TableNotFound);
    assert_eq!(all_keys(&store, model.table).len() as u64, KEYS);
}

/// Scrubs, pushes that evict and compact, and reads run side by side; every row is right.
#[test]
fn a_scrub_beside_compaction_and_pushes_harms_nothing() {
    let scratch = Scratch::new("scrub");
    let (store, mut model) = filled(&scratch);
    let written = store_stat(&store, "device_bytes_written");
    let stop = AtomicBool::new(false);
    let (stop, store) = (&stop, &store);
    std::thread::scope(|scope| {
        let scrub = scope.spawn(move || {
            let mut passes = 0;
            while !stop.load(Relaxed) {
                assert_eq!(all(store).damaged, []);
                passes += 1;
            }
            passes
        });
        let mut number = 100;
        while store_stat(store, "device_bytes_written") < written + 60 * MIB {
            number += 1;
            let keys: Vec<u64> = (0..2000).map(|i| 1 + (number * 7919 + i * 17) % KEYS).collect();
            let keys: Vec<u64> = keys.into_iter().collect::<HashSet<_>>().into_iter().collect();
            model.apply(store, push(1, number), &keys, number);
        }
        stop.store(true, Relaxed);
        assert!(scrub.join().unwrap() > 0);
    });
    model.check(store);
}
