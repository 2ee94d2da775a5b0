//! Goal: rows that go down to the slower disk are found again, whatever happens to that disk, both
//! caps hold, and a cold directory that is not the store's own is refused.
//!
//! Method: stores with the smallest budgets, more rows than NVMe may hold, beside a map of what
//! each row must be; sizes of files as the system tells them; changes of the cold directory that
//! fail; a row that changes between the copy and its name; kills.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use super::{push, spec};
use crate::error::{Error, ErrorKind};
use crate::failure::Health;
use crate::log::Stream;
use crate::scratch::Scratch;
use crate::store::demotion::Batch;
use crate::store::{Assign, ColdConfig, Fate, LookupBatch, RowTier, Store, StoreConfig};
use crate::types::{Disk, Durability, TableId};
use crate::vfs::trace::{Change, Traced};

const MIB: u64 = 1 << 20;
const DIM: usize = 256;
const STEP: u64 = 400;

fn config(data: &Path, cold: Option<(&Path, u64)>) -> StoreConfig {
    StoreConfig {
        path: data.to_path_buf(),
        dram_bytes: 8 * MIB,
        nvme_bytes: 64 * MIB,
        durability: Durability::Process,
        threads: 1,
        shard: (0, 1),
        cold: cold.map(|(path, cap_bytes)| ColdConfig { path: path.to_path_buf(), cap_bytes }),
    }
}

/// A store, and the number that every row must hold.
struct Beside {
    store: Store,
    table: TableId,
    rows: BTreeMap<u64, f32>,
    number: u64,
}

impl Beside {
    fn open(config: StoreConfig) -> Self {
        let store = Store::open(config).unwrap();
        let table = store.create_table(&spec("t", DIM as u32)).unwrap().id;
        Self { store, table, rows: BTreeMap::new(), number: 0 }
    }

    fn reopen(&mut self, config: StoreConfig) {
        self.store.close().unwrap();
        self.store = Store::open(config).unwrap();
    }

    fn assign(&mut self, keys: Vec<u64>) -> Result<(), Error> {
        let number = self.number + 1;
        let value = |key: &u64| (key % 1000 + number * 1000 % (1 << 22)) as f32;
        let rows: Vec<f32> = keys.iter().flat_map(|key| [value(key); DIM]).collect();
        let assign = Assign { table: self.table, keys: &keys, rows: &rows };
        self.store.assign(push(number), &assign)?;
        self.number = number;
        self.rows.extend(keys.iter().map(|key| (*key, value(key))));
        Ok(())
    }

    /// As a client that comes again when the store is full for the moment: patience is short in
    /// tests, and the machine may be busy.
    fn assign_all(&mut self, keys: Vec<u64>) {
        let end = Instant::now() + Duration::from_secs(60);
        while let Err(error) = self.assign(keys.clone()) {
            assert!(error.kind == ErrorKind::StoreFull && Instant::now() < end, "{error}");
        }
    }

    fn remove(&mut self, keys: &[u64]) {
        let number = self.number + 1;
        let end = Instant::now() + Duration::from_secs(60);
        let removed = loop {
            match self.store.remove(push(number), self.table, keys) {
                Ok(removed) => break removed,
                Err(error) => {
                    let is_full = error.kind == ErrorKind::StoreFull;
                    assert!(is_full && Instant::now() < end, "{error}");
                }
            }
        };
        self.number = number;
        let known = keys.iter().filter(|key| self.rows.remove(key).is_some()).count();
        assert_eq!(removed, known as u64);
    }

    fn fill(&mut self, keys: std::ops::Range<u64>) {
        for first in keys.clone().step_by(STEP as usize) {
            self.assign_all((first..(first + STEP).min(keys.end)).collect());
        }
    }

    fn stat(&self, name: &str) -> u64 {
        self.store.stats().iter().find(|stat| stat.0 == name).unwrap().1
    }

    /// All rows, and no others.
    fn check(&self) {
        let keys: Vec<u64> = self.rows.keys().copied().collect();
        for keys in keys.chunks(2000) {
            let (rows, found) = self.lookup(keys).unwrap();
            for ((key, row), found) in keys.iter().zip(rows.chunks(DIM)).zip(found) {
                let expected = self.rows[key];
                assert!(found == 1, "key {key} is lost");
                assert!(row.iter().all(|x| *x == expected), "{key}: {} not {expected}", row[0]);
            }
        }
        assert_eq!(self.store.len(self.table).unwrap(), keys.len() as u64);
        // Rows may be on their way from one tier to another while they are counted.
        let end = Instant::now() + Duration::from_secs(60);
        let sum = || -> u64 {
            ["rows_dram", "rows_nvme", "rows_cold"].map(|name| self.stat(name)).iter().sum()
        };
        while self.stat("keys") != sum() {
            assert!(Instant::now() < end, "tiers hold {} rows", sum());
            std::thread::yield_now();
        }
    }

    fn lookup(&self, keys: &[u64]) -> Result<(Vec<f32>, Vec<u8>), Error> {
        let (mut rows, mut found) = (vec![0.0; keys.len() * DIM], vec![0; keys.len()]);
        let batch = LookupBatch { table: self.table, keys, rows: &mut rows, found: &mut found };
        self.store.lookup(&mut [batch]).map(|()| (rows, found))
    }

    fn check_caps(&self) {
        let config = self.store.config();
        let cold = config.cold.as_ref().unwrap();
        assert!(taken(&config.path) <= config.nvme_bytes, "{} of NVMe", taken(&config.path));
        assert!(taken(&cold.path) <= cold.cap_bytes, "{} of the cold disk", taken(&cold.path));
        let dram = self.stat("dram_bytes");
        assert!(dram <= config.dram_bytes, "{dram} of DRAM");
    }

    /// Waits until something is so.
    fn until(&self, what: &str, is_so: impl Fn(&Self) -> bool) {
        let end = Instant::now() + Duration::from_secs(60);
        while !is_so(self) {
            assert!(Instant::now() < end, "{what}: {:?}", self.store.stats());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Bytes of files, as the system tells them.
fn taken(path: &Path) -> u64 {
    let entries = std::fs::read_dir(path).unwrap().filter_map(Result::ok);
    let size = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(meta) if meta.is_dir() => taken(&entry.path()),
        Ok(meta) => meta.blocks() * 512,
        // A file of the journal may go meanwhile.
        Err(_) => 0,
    };
    entries.map(size).sum()
}

#[test]
fn more_rows_than_nvme_may_hold_are_kept_over_all_tiers() {
    let (data, cold) = (Scratch::new(), Scratch::new());
    let config = || config(data.path(), Some((cold.path(), 64 * MIB)));
    let mut beside = Beside::open(config());
    const KEYS: u64 = 48_000;
    for first in (0..KEYS).step_by(4000) {
        beside.fill(first..first + 4000);
        beside.check_caps();
    }
    assert!(beside.stat("rows_cold") > 5_000, "{} rows went down", beside.stat("rows_cold"));
    assert!(beside.stat("cold_bytes") > 5 * MIB && beside.stat("cold_limit") == 64 * MIB);
    beside.check();
    for round in 0..6 {
        // Old rows are changed and removed wherever they are, new ones come.
        for n in 0..10 {
            let first = (round * 7919 + n * 4801) % (KEYS - 3 * STEP);
            beside.assign_all((first..first + STEP).collect());
            let gone: Vec<u64> = (first + 2 * STEP..first + 2 * STEP + 150).collect();
            beside.remove(&gone);
            beside.check_caps();
        }
        beside.check();
        if round % 2 == 0 {
            beside.reopen(config());
            // The index comes on demand.
            beside.check();
            beside.until("they are cold still", |beside| beside.stat("rows_cold") > 1000);
        }
    }
    // What is removed leaves both disks.
    let all: Vec<u64> = beside.rows.keys().copied().collect();
    all.chunks(1000).for_each(|keys| beside.remove(keys));
    beside.until("dead cold segments go", |beside| {
        beside.store.flush().unwrap();
        beside.stat("cold_bytes") < 4 * MIB
    });
    beside.reopen(config());
    assert_eq!(beside.stat("keys"), 0, "nothing came back");
}

#[test]
fn a_row_that_is_changed_comes_back_to_nvme_and_one_that_is_read_is_served() {
    let (data, cold) = (Scratch::new(), Scratch::new());
    let config = || config(data.path(), Some((cold.path(), 64 * MIB)));
    let mut beside = Beside::open(config());
    beside.store.engine.demotes_from.store(0, std::sync::atomic::Ordering::Relaxed);
    beside.fill(0..12_000);
    beside.until("rows go down", |beside| beside.stat("rows_cold") > 2000);
    let reads = beside.stat("device_reads");
    beside.check();
    assert!(beside.stat("device_reads") > reads);
    // All are changed, so nothing is where it was.
    beside.store.engine.demotes_from.store(u64::MAX, std::sync::atomic::Ordering::Relaxed);
    beside.fill(0..12_000);
    beside.reopen(config());
    beside.check();
    assert_eq!(beside.stat("rows_cold"), 0);
}

#[test]
fn what_was_removed_does_not_come_back_from_the_cold_disk() {
    let scratch = Scratch::in_memory();
    let [data, cold] = ["data", "cold"].map(|name| scratch.path().join(name));
    let traced = Traced::new(scratch.path());
    let mut beside = Beside::open(config(&data, Some((&cold, 64 * MIB))));
    let relaxed = std::sync::atomic::Ordering::Relaxed;
    beside.store.engine.demotes_from.store(0, relaxed);
    beside.fill(0..10_000);
    beside.until("rows go down", |beside| beside.stat("rows_cold") > 2000);
    beside.store.engine.demotes_from.store(u64::MAX, relaxed);
    let gone: Vec<u64> = (0..10_000).filter(|key| key % 3 > 0).collect();
    gone.chunks(1000).for_each(|keys| beside.remove(keys));
    beside.store.flush().unwrap();
    // Every segment on NVMe is rewritten, without the marks that nothing needs; nobody follows.
    let engine = &beside.store.engine;
    engine.raise_floor(engine.sequencer.lock().last).unwrap();
    // Nor does the journal tell of the removals any more.
    engine.checkpoint(false).unwrap();
    // Marks are needed while an older segment is there, so they go in a second round.
    for _ in 0..3 {
        let alone = engine.compacting.lock();
        for (segment, _) in engine.tier.log.segments().unwrap() {
            if segment.disk == Disk::Nvme {
                assert_eq!(engine.compact_segment(segment).unwrap(), []);
            }
        }
        drop(alone);
        beside.store.flush().unwrap();
    }
    // Killed there: what is in the index then comes from the footers of both.
    let image = Scratch::in_memory();
    traced.image(traced.cuts().last().copied().unwrap(), image.path(), &mut || true);
    let [data, cold] = ["data", "cold"].map(|name| image.path().join(name));
    beside.store.close().unwrap();
    beside.store = Store::open(config(&data, Some((&cold, 64 * MIB)))).unwrap();
    let (_, found) = beside.lookup(&gone).unwrap();
    assert_eq!(found.iter().filter(|&&found| found == 1).count(), 0, "they came back");
    beside.check();
}

#[test]
fn a_row_that_changes_before_its_copy_is_named_stays_changed() {
    let (data, cold_data) = (Scratch::new(), Scratch::new());
    // Whatever is flushed has a record then.
    let config = || StoreConfig {
        durability: Durability::None,
        ..config(data.path(), Some((cold_data.path(), 64 * MIB)))
    };
    let mut beside = Beside::open(config());
    beside.store.engine.demotes_from.store(u64::MAX, std::sync::atomic::Ordering::Relaxed);
    beside.fill(0..2000);
    beside.store.flush().unwrap();
    let engine = beside.store.engine.clone();
    engine.cold.lock().as_ref().unwrap().link().unwrap();
    let alone = engine.compacting.lock();
    let cold = engine.tier.log.cold().unwrap();
    let mut batch = Batch::new(&engine, cold, Stream::Rows, true);
    let segments = engine.tier.log.segments().unwrap();
    assert!(!segments.is_empty());
    assert!(segments.iter().all(|(segment, _)| batch.copy_segment(*segment).unwrap()));
    // Some get a newer record, some are only removed, some stay as they are.
    beside.assign_all((0..800).collect());
    beside.remove(&(800..1400).collect::<Vec<u64>>());
    beside.store.flush().unwrap();
    batch.settle().unwrap();
    drop(alone);
    // All leave DRAM.
    beside.reopen(config());
    beside.until("those that stayed are cold", |beside| beside.stat("rows_cold") == 600);
    beside.check();
}

#[test]
fn inspection_names_the_disk() {
    let (data, cold) = (Scratch::new(), Scratch::new());
    let mut beside = Beside::open(config(data.path(), Some((cold.path(), 64 * MIB))));
    beside.store.engine.demotes_from.store(0, std::sync::atomic::Ordering::Relaxed);
    beside.fill(0..12_000);
    beside.until("rows go down", |beside| beside.stat("rows_cold") > 2000);
    let keys: Vec<u64> = (0..12_000).collect();
    let rows = beside.store.inspect(beside.table, &keys).unwrap();
    let cold_rows: Vec<_> = rows.iter().filter(|row| row.tier == Some(RowTier::Cold)).collect();
    assert!(cold_rows.len() > 1000);
    let length = |key: u64| f64::from(beside.rows[&key]) * (DIM as f64).sqrt();
    for row in rows {
        let is_near = (row.norm - length(row.key)).abs() <= row.norm * 1e-5;
        assert!(is_near && row.error.is_none(), "{row:?}");
    }
    let reads = beside.stat("cold_reads");
    beside.check();
    assert!(beside.stat("cold_reads") > reads && beside.stat("device_reads") > 0);
}

#[test]
fn a_scrub_finds_what_is_damaged_on_the_cold_disk() {
    let (data, cold) = (Scratch::new(), Scratch::new());
    let config = || config(data.path(), Some((cold.path(), 64 * MIB)));
    let mut beside = Beside::open(config());
    beside.store.engine.demotes_from.store(0, std::sync::atomic::Ordering::Relaxed);
    beside.fill(0..12_000);
    beside.until("rows go down", |beside| beside.stat("rows_cold") > 2000);
    beside.store.close().unwrap();
    let path = cold.path().join("rows.log");
    let mut bytes = std::fs::read(&path).unwrap();
    let at = 4096 + 4096 + 32;
    let key = u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
    bytes[at + 100] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    beside.store = Store::open(config()).unwrap();
    let (mut from, mut damaged) = (Some(0), Vec::new());
    while let Some(first) = from {
        let mut step = beside.store.scrub(first, MIB).unwrap();
        damaged.append(&mut step.damaged);
        from = step.next;
    }
    let rows: Vec<_> = damaged.iter().map(|found| (found.row.clone(), found.fate)).collect();
    assert_eq!(rows, [(Some(("t".to_owned(), key)), Fate::Lost)]);
    beside.assign_all(vec![key]);
    beside.check();
}

#[test]
fn when_both_disks_are_full_new_rows_are_refused_and_reads_go_on() {
    let (data, cold) = (Scratch::new(), Scratch::new());
    let mut beside = Beside::open(config(data.path(), Some((cold.path(), 16 * MIB))));
    let refused = (0..300_000).step_by(STEP as usize).find_map(|first| {
        let error = beside.assign((first..first + STEP).collect()).err();
        beside.check_caps();
        error
    });
    let refused = refused.expect("an end");
    assert_eq!(refused.kind, ErrorKind::StoreFull);
    assert!(refused.message.contains("raise nvme or cold_cap"), "{refused}");
    // Three rows a page: 23,000 on NVMe alone.
    assert!(beside.rows.len() > 26_000, "{} rows", beside.rows.len());
    beside.until("rows go down", |beside| beside.stat("rows_cold") > 2_000);
    beside.check();
    let gone: Vec<u64> = beside.rows.keys().copied().step_by(2).collect();
    gone.chunks(1000).for_each(|keys| beside.remove(keys));
    beside.fill(1_000_000..1_004_000);
    beside.check();
    beside.check_caps();
}

#[test]
fn a_cold_disk_that_is_full_or_fails_costs_only_what_is_on_it() {
    for (number, comes_back) in [(libc::ENOSPC, true), (libc::EIO, false)] {
        let (data, cold) = (Scratch::new(), Scratch::new());
        let traced = Traced::new(cold.path());
        let mut beside = Beside::open(config(data.path(), Some((cold.path(), 64 * MIB))));
        beside.store.engine.demotes_from.store(u64::MAX, std::sync::atomic::Ordering::Relaxed);
        beside.fill(0..20_000);
        let is_write = |change: &Change| matches!(change, Change::Write { offset: Some(_), .. });
        traced.fail(move |change| is_write(change).then_some(number));
        beside.store.engine.demotes_from.store(0, std::sync::atomic::Ordering::Relaxed);
        beside.until("health tells of it", |beside| {
            matches!(beside.store.health(), Health::Degraded(_))
        });
        assert_eq!(beside.stat("rows_cold"), 0, "nothing that is not on the disk is named");
        // Calls go on as if there were no cold disk.
        beside.fill(15_000..24_000);
        beside.check();
        beside.store.flush().unwrap();
        traced.heal();
        if comes_back {
            beside.until("rows go down", |beside| beside.stat("rows_cold") > 2000);
            beside.until("it is well", |beside| beside.store.health() == Health::Ok);
        }
        beside.check();
        beside.reopen(config(data.path(), Some((cold.path(), 64 * MIB))));
        beside.check();
    }
}

#[test]
fn a_damaged_cold_record_is_told_and_the_others_are_served() {
    let (data, cold) = (Scratch::new(), Scratch::new());
    let config = || config(data.path(), Some((cold.path(), 64 * MIB)));
    let mut beside = Beside::open(config());
    beside.store.engine.demotes_from.store(0, std::sync::atomic::Ordering::Relaxed);
    beside.fill(0..12_000);
    beside.until("rows go down", |beside| beside.stat("rows_cold") > 2000);
    beside.store.close().unwrap();
    let path = cold.path().join("rows.log");
    let mut bytes = std::fs::read(&path).unwrap();
    // The first record of the first data page.
    let at = 4096 + 4096 + 32;
    let key = u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
    bytes[at + 100] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    beside.store = Store::open(config()).unwrap();
    let error = beside.lookup(&[key]).expect_err("it is damaged");
    assert_eq!(error.kind, ErrorKind::Corruption);
    assert!(error.message.contains(&cold.path().display().to_string()), "{error}");
    beside.assign_all(vec![key]);
    beside.check();
    // A header that was known is not taken for a torn one.
    beside.store.close().unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[4096 + 20] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    assert_eq!(Store::open(config()).err().expect("refused").kind, ErrorKind::Corruption);
}

/// The files of a directory, to be put back as they were.
fn files(path: &Path) -> Vec<(std::path::PathBuf, Vec<u8>)> {
    let entries = std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = entries
        .filter(|path| path.is_file() && !path.ends_with("LOCK"))
        .map(|path| (path.clone(), std::fs::read(&path).unwrap()))
        .collect();
    files.sort();
    files
}

#[test]
fn a_cold_directory_that_is_not_the_stores_own_is_refused() {
    let [data, cold, other_data, other_cold, empty] = std::array::from_fn(|_| Scratch::new());
    let own = || config(data.path(), Some((cold.path(), 64 * MIB)));
    // Without a row there it may be left away, or be another.
    Store::open(own()).unwrap().close().unwrap();
    Store::open(config(data.path(), None)).unwrap().close().unwrap();
    for (data, cold) in [(&data, &cold), (&other_data, &other_cold)] {
        let mut beside = Beside::open(config(data.path(), Some((cold.path(), 64 * MIB))));
        beside.store.engine.demotes_from.store(0, std::sync::atomic::Ordering::Relaxed);
        beside.fill(0..12_000);
        beside.until("rows go down", |beside| beside.stat("rows_cold") > 2000);
        beside.store.close().unwrap();
    }
    let foreign = Scratch::new();
    std::fs::write(foreign.path().join("holiday.jpg"), b"x").unwrap();
    let inside = data.path().join("cold");
    let before = (files(data.path()), files(cold.path()));
    let cases: [(Option<&Path>, &str); 7] = [
        (None, "has rows in a cold directory"),
        (Some(empty.path()), "holds no cold rows"),
        (Some(other_cold.path()), "belongs to another store"),
        (Some(foreign.path()), "holds no cold rows"),
        (Some(data.path()), "lie in one another"),
        (Some(&inside), "lie in one another"),
        (Some(data.path().parent().unwrap()), "lie in one another"),
    ];
    for (path, text) in cases {
        let wanted = path.map(|path| (path, 64 * MIB));
        let error = Store::open(config(data.path(), wanted)).err().expect(text);
        assert_eq!(error.kind, ErrorKind::Config, "{error}");
        assert!(error.message.contains(text), "{text}: {error}");
        assert!(before == (files(data.path()), files(cold.path())), "{text}: something changed");
    }
    assert!(files(empty.path()).is_empty() && !inside.exists());
    // A new store in a directory that holds something, and two stores at one directory.
    let fresh = Scratch::new();
    let error = Store::open(config(fresh.path(), Some((foreign.path(), 64 * MIB)))).err();
    assert!(error.expect("foreign files").message.contains("holiday.jpg"));
    let store = Store::open(own()).unwrap();
    let error = Store::open(config(fresh.path(), Some((cold.path(), 64 * MIB)))).err();
    assert!(error.expect("in use").message.contains("belongs to another store"));
    store.close().unwrap();
    // One that lost its log.
    let log = std::fs::read(cold.path().join("rows.log")).unwrap();
    std::fs::remove_file(cold.path().join("rows.log")).unwrap();
    assert_eq!(Store::open(own()).err().expect("no log").kind, ErrorKind::Corruption);
    std::fs::write(cold.path().join("rows.log"), log).unwrap();
    // A copy of another time, on either side.
    let (old_data, old_cold) = (files(data.path()), files(cold.path()));
    Store::open(own()).unwrap().close().unwrap();
    let new_cold = files(cold.path());
    let put = |files: &[(std::path::PathBuf, Vec<u8>)]| {
        files.iter().for_each(|(path, bytes)| std::fs::write(path, bytes).unwrap());
    };
    put(&old_cold);
    let error = Store::open(own()).err().expect("an old cold directory");
    assert!(error.message.contains("the cold directory is older"), "{error}");
    put(&new_cold);
    put(&old_data);
    let error = Store::open(own()).err().expect("an old data directory");
    assert!(error.message.contains("the data directory is older"), "{error}");
    put(&old_cold);
    Store::open(own()).unwrap().close().unwrap();
}
