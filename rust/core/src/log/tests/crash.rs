//! Power cuts. Method: run a random history of appends, removals, syncs, compactions over a device
//! that keeps a trace; then, for a cut behind every change of the device, with every later sector
//! kept or lost at random, open what is left and compare with what the last sync before promised.

use std::collections::{BTreeMap, HashSet};

use super::*;
use crate::device::Operation;
use crate::log::FooterEntry;
use crate::types::BUCKETS;
use proptest::prelude::*;

const SLOTS: u64 = 24;
const KEYS: u64 = 600;

/// Latest version of a key: its sequence, and its length unless it was removed.
type Versions = BTreeMap<u64, (u64, Option<usize>)>;

/// What a return of `sync` promised.
#[derive(Clone)]
struct Promise {
    /// Changes of the device when it returned.
    operations: usize,
    end: LogEnd,
    versions: Versions,
}

/// A table over a log, as small as can be: an index, and greedy compaction.
struct Model {
    device: FaultyDevice,
    log: Log,
    index: BTreeMap<u64, Kept>,
    versions: Versions,
    /// All that was ever appended: nothing else may be found.
    appended: HashSet<(u64, u64)>,
    sequence: u64,
    promises: Vec<Promise>,
}

#[derive(Debug, Clone)]
enum Step {
    Put { keys: u64, from: u64, floats: usize },
    Remove { key: u64 },
    Sync,
    Compact,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let floats = prop_oneof![Just(40usize), Just(56), Just(2000)];
    let put = (1u64..200, 0..KEYS, floats).prop_map(|(keys, from, floats)| Step::Put {
        keys,
        from,
        floats,
    });
    let step = prop_oneof![
        6 => put,
        2 => (0..KEYS).prop_map(|key| Step::Remove { key }),
        2 => Just(Step::Sync),
        3 => Just(Step::Compact),
    ];
    prop::collection::vec(step, 20..60)
}

impl Model {
    fn new() -> Self {
        let device = FaultyDevice::default();
        let log = open(&device, SLOTS, LogEnd::default());
        let (index, versions, appended) = Default::default();
        Self { device, log, index, versions, appended, sequence: 0, promises: Vec::new() }
    }

    fn run(&mut self, step: &Step) {
        match *step {
            Step::Put { keys, from, floats } => {
                // Large rows by the dozen would fill the log with live rows.
                let keys = if floats > 1000 { keys / 20 + 1 } else { keys };
                (from..from + keys).for_each(|key| self.put(key % KEYS, floats));
            }
            Step::Remove { key } => self.remove(key),
            Step::Sync => self.sync(),
            Step::Compact => {
                self.compact(false);
            }
        }
        if self.log.free_segments() < 8 {
            while self.log.freed_segments() < 8 && self.compact(true) {}
            self.sync();
        }
    }

    fn put(&mut self, key: u64, floats: usize) {
        self.sequence += 1;
        self.appended.insert((key, self.sequence));
        let new = append(&self.log, Stream::Rows, 1, key, self.sequence, floats).expect("append");
        if let Some(old) = self.index.insert(key, new) {
            self.log.release(old.place, old.floats);
        }
        self.versions.insert(key, (self.sequence, Some(floats)));
    }

    fn remove(&mut self, key: u64) {
        let Some(old) = self.index.remove(&key) else { return };
        self.sequence += 1;
        self.appended.insert((key, self.sequence));
        self.log.append_tombstone(Stream::Rows, 1, key, self.sequence).expect("append");
        self.log.release(old.place, old.floats);
        self.versions.insert(key, (self.sequence, None));
    }

    fn sync(&mut self) {
        let end = self.log.sync().expect("sync");
        let operations = self.device.operations();
        self.promises.push(Promise { operations, end, versions: self.versions.clone() });
    }

    fn compact(&mut self, is_pressed: bool) -> bool {
        let Some(segment) = self.log.victim(is_pressed) else { return false };
        let elders = self.log.elders();
        let (log, index) = (&self.log, &mut self.index);
        log.scan(segment, &mut |place, table, record| {
            let record = record.expect("record");
            if record.tombstone {
                if !elders.are_gone(segment, table, record.horizon()) {
                    log.copy_tombstone(table, &record).expect("append");
                }
            } else if let Some(kept) = index.get_mut(&record.key) {
                if kept.place == place {
                    let (key, sequence, floats) = (kept.key, kept.sequence, kept.floats);
                    *kept = append(log, Stream::Compaction, table, key, sequence, floats)
                        .expect("append");
                }
            }
        })
        .expect("scan");
        log.free(segment);
        true
    }
}

/// Newest entry of each key, as recovery finds it.
fn recovered(log: &Log) -> BTreeMap<u64, FooterEntry> {
    let mut newest: BTreeMap<u64, FooterEntry> = BTreeMap::new();
    log.entries(0..BUCKETS, &mut |entry| {
        let known = newest.entry(entry.key).or_insert(entry);
        if entry.sequence >= known.sequence {
            *known = entry;
        }
    })
    .expect("no crash is damage");
    newest
}

/// Opens what a cut left and compares it with the last promise before.
fn check_cut(model: &Model, trace: &[Operation], keep: impl FnMut() -> bool) {
    let promise = model.promises.iter().rfind(|promise| promise.operations <= trace.len());
    let nothing = Promise { operations: 0, end: LogEnd::default(), versions: Versions::new() };
    let promise = promise.unwrap_or(&nothing);
    let device = FaultyDevice::new(FaultyDevice::crash_image(trace, keep));
    let log = open(&device, SLOTS, promise.end);
    let newest = recovered(&log);
    for (key, &(sequence, floats)) in &promise.versions {
        match newest.get(key) {
            Some(entry) => assert!(entry.sequence >= sequence, "key {key} went back"),
            // Its tombstone may be forgotten with everything that it covered.
            None => assert_eq!(floats, None, "key {key} is lost"),
        }
    }
    let mut kept = Vec::new();
    for entry in newest.values() {
        assert!(model.appended.contains(&(entry.key, entry.sequence)), "{entry:?} never was");
        let promised = promise.versions.get(&entry.key);
        let gone =
            promised.is_some_and(|&(sequence, row)| row.is_none() && entry.sequence < sequence);
        assert!(!gone, "{entry:?} came back");
        if !entry.tombstone {
            let FooterEntry { table, key, sequence, row_floats: floats, place, .. } = *entry;
            kept.push(Kept { table, key, sequence, floats, place });
        }
    }
    check(&log, &kept);
}

/// Random bits from a seed, so that a failure is repeated.
fn bits(mut seed: u64) -> impl FnMut() -> bool {
    move || {
        seed = crate::types::hash(seed.wrapping_add(0x9e37_79b9_7f4a_7c15));
        seed & 1 == 1
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 40, ..Default::default() })]
    #[test]
    fn every_cut_keeps_what_was_synced(steps in steps(), seed: u64) {
        let mut model = Model::new();
        steps.iter().for_each(|step| model.run(step));
        model.sync();
        let kept: Vec<Kept> = model.index.values().copied().collect();
        check(&model.log, &kept);
        let trace = model.device.take_trace();
        for cut in 0..=trace.len() {
            check_cut(&model, &trace[..cut], || true);
            check_cut(&model, &trace[..cut], || false);
            check_cut(&model, &trace[..cut], bits(seed ^ cut as u64));
        }
    }
}

#[test]
fn a_log_goes_on_after_crash_upon_crash() {
    let mut image = Vec::new();
    let mut end = LogEnd::default();
    let mut synced: Vec<Kept> = Vec::new();
    for round in 0..12u64 {
        let device = FaultyDevice::new(image);
        let before = device.image();
        let log = open(&device, 64, end);
        check(&log, &synced);
        let first: Vec<Kept> = (0..300)
            .map(|i| append(&log, Stream::Rows, 1, round * 1000 + i, round, 56).expect("append"))
            .collect();
        end = log.sync().expect("sync");
        synced.extend(first);
        let operations = device.operations();
        for i in 0..2000 {
            append(&log, Stream::Rows, 1, 1 << 40 | i, round, 56).expect("append");
        }
        log.sync().expect("sync");
        // All up to the first sync is there, of the rest what chance left; on top of what was.
        let mut trace = vec![Operation::Write { offset: 0, bytes: before }];
        trace.extend(device.take_trace());
        let rest = trace.split_off(operations + 1);
        trace.push(Operation::Sync);
        trace.extend(rest.into_iter().filter(|op| !matches!(op, Operation::Sync)));
        image = FaultyDevice::crash_image(&trace, bits(round));
    }
}

#[test]
fn a_freed_slot_is_not_seen_half_erased() {
    // Cuts within the erasure: the old segment is whole, or gone, never damage.
    let mut model = Model::new();
    (0..KEYS * 3).for_each(|key| model.put(key % KEYS, 56));
    model.sync();
    let written = model.log.nvme.slots.written();
    assert!(written.len() > 1);
    let first = model.device.operations();
    for header in &written[..1] {
        let segment = model.log.nvme.slots.id(header.slot, header.incarnation);
        assert!(model.log.victim(true).is_some());
        model.log.free(segment);
    }
    model.sync();
    let trace = model.device.take_trace();
    assert!(trace.len() > first + 2, "the slot was erased");
    for cut in first..=trace.len() {
        for seed in 0..16 {
            check_cut(&model, &trace[..cut], bits(seed));
        }
    }
}
