//! Goal: rows are found on whichever disk they are, and a power cut that takes unsynced writes of
//! each disk by itself loses no row. Method: a log on two devices in memory, with rows that are
//! changed, removed, compacted and copied to the cold volume in the order that it asks for; cuts
//! behind many changes of either device, and what is left compared with the promises.

use std::collections::BTreeMap;

use super::*;
use crate::device::Operation;
use crate::types::{Disk, BUCKETS};

const COLD_SLOTS: u64 = 12;

fn open_both(devices: &[FaultyDevice; 2], known: LogEnd) -> Log {
    let mut log = open(&devices[0], 24, known);
    log.open_cold_on(Box::new(devices[1].clone()), config(COLD_SLOTS)).expect("open cold");
    log
}

/// Copies a row to the cold volume; its place there.
fn copy(log: &Log, stream: Stream, kept: &Kept) -> Kept {
    let row = row(kept.key, kept.sequence, kept.floats);
    let (last_seen, frequency) = (kept.key as u32 ^ 5, kept.sequence as u32 ^ 9);
    let record = Record { key: kept.key, sequence: kept.sequence, last_seen, frequency, row: &row };
    let place = log.cold().expect("cold").copy(stream, kept.table, &record).expect("copy");
    assert_eq!(place.disk(), Disk::Cold);
    Kept { place, ..*kept }
}

#[test]
fn one_batch_reads_rows_of_both_disks() {
    let devices = [FaultyDevice::default(), FaultyDevice::default()];
    let log = open_both(&devices, LogEnd::default());
    let mut kept: Vec<Kept> =
        (0..3000).map(|key| append(&log, Stream::Rows, 1, key, 1, 56).expect("append")).collect();
    for kept in kept.iter_mut().filter(|kept| kept.key % 3 == 0) {
        let old = kept.place;
        *kept = copy(&log, Stream::Rows, kept);
        log.release(old, 56);
    }
    // From memory, then from the devices.
    check(&log, &kept);
    log.sync().expect("sync");
    log.cold().expect("cold").settle().expect("settle");
    let counts = check(&log, &kept);
    assert!(counts.device_reads > 0 && counts.device_reads < 3000 / 14);
    // One of another disk is not taken for it.
    let wrong = Kept { place: Place::at(Disk::Cold, kept[1].place.offset()), ..kept[1] };
    let mut found = None;
    log.read(&log.pin(), 1, &|_| read_of(&wrong), &mut |_, record| {
        found = Some(record.is_ok_and(|record| record.key == wrong.key));
    });
    assert_eq!(found, Some(false));
    let end = log.close().expect("close");
    let log = open_both(&devices, end);
    check(&log, &kept);
    let mut places: Vec<Place> = Vec::new();
    log.entries(0..BUCKETS, &mut |entry| places.push(entry.place)).expect("entries");
    assert!(kept.iter().all(|kept| places.contains(&kept.place)));
}

#[test]
fn incarnations_are_counted_over_both_disks() {
    let devices = [FaultyDevice::default(), FaultyDevice::default()];
    let log = open_both(&devices, LogEnd::default());
    let first = append(&log, Stream::Rows, 1, 1, 1, 8).expect("append");
    let cold = copy(&log, Stream::Rows, &first);
    log.cold().expect("cold").settle().expect("settle");
    log.append_tombstone(Stream::Rows, 1, 1, 2).expect("append");
    append(&log, Stream::Rows, 2, 9, 1, 8).expect("append");
    log.sync().expect("sync");
    let segments = log.segments().expect("segments");
    let (marked, copied) = (segments[0].0, segments[1].0);
    assert_eq!((marked.disk, copied.disk), (Disk::Nvme, Disk::Cold));
    assert!(!is_oldest(&log, marked), "the copy on the other disk is older than the removal");
    log.release(cold.place, 8);
    log.free(copied);
    log.sync().expect("sync");
    log.cold().expect("cold").recall().expect("recall");
    assert!(is_oldest(&log, marked));
}

#[test]
fn a_cold_slot_waits_for_what_replaced_its_rows_on_the_other_disk() {
    let devices = [FaultyDevice::default(), FaultyDevice::default()];
    let log = open_both(&devices, LogEnd::default());
    let cold = log.cold().expect("cold").clone();
    let first = append(&log, Stream::Rows, 1, 1, 1, 8).expect("append");
    log.sync().expect("sync");
    copy(&log, Stream::Rows, &first);
    cold.settle().expect("settle");
    let segment = log.segments().expect("segments")[1].0;
    let newer = append(&log, Stream::Rows, 1, 1, 2, 8).expect("append");
    log.free(segment);
    cold.recall().expect("recall");
    assert_eq!(cold.freed_segments(), 1, "the newer record is in memory only");
    log.sync().expect("sync");
    cold.recall().expect("recall");
    assert_eq!(cold.freed_segments(), 0);
    check(&log, &[newer]);
}

#[test]
fn a_cold_disk_that_fails_takes_nothing_with_it() {
    let devices = [FaultyDevice::default(), FaultyDevice::default()];
    let log = open_both(&devices, LogEnd::default());
    let kept: Vec<Kept> =
        (0..100).map(|key| append(&log, Stream::Rows, 1, key, 1, 56).expect("append")).collect();
    devices[1].fail_after(0);
    copy(&log, Stream::Rows, &kept[0]);
    let cold = log.cold().expect("cold");
    assert_eq!(cold.settle().expect_err("fails").kind, ErrorKind::Unavailable);
    assert!(cold.check().is_err() && log.check().is_ok());
    log.sync().expect("the other disk goes on");
    check(&log, &kept);
    append(&log, Stream::Rows, 1, 7, 2, 56).expect("append");
}

/// What was promised when so many changes of each device had been made: the sequence of each key.
struct Promise {
    operations: [usize; 2],
    end: LogEnd,
    sequences: BTreeMap<u64, u64>,
}

/// A run in which rows go down and come back; its promises.
fn run(devices: &[FaultyDevice; 2], seed: u64) -> Vec<Promise> {
    let log = open_both(devices, LogEnd::default());
    let cold = log.cold().expect("cold").clone();
    let mut random = seed;
    let mut next = |below: u64| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888);
        (random >> 33) % below
    };
    let mut index: BTreeMap<u64, Kept> = BTreeMap::new();
    let mut sequences = BTreeMap::new();
    let mut promises = Vec::new();
    for round in 0..60 {
        for sequence in round * 120 + 1..=(round + 1) * 120 {
            let key = next(900);
            let old = if next(9) == 0 {
                sequences.remove(&key);
                let old = index.remove(&key);
                if old.is_some() {
                    log.append_tombstone(Stream::Rows, 1, key, sequence).expect("append");
                }
                old
            } else {
                sequences.insert(key, sequence);
                let kept = append(&log, Stream::Rows, 1, key, sequence, 56).expect("append");
                index.insert(key, kept)
            };
            if let Some(old) = old {
                log.release(old.place, 56);
            }
        }
        // Some rows are demoted, whole segments of the cold volume are rewritten.
        let from = if next(3) == 0 { Disk::Cold } else { Disk::Nvme };
        let stream = if from == Disk::Cold { Stream::Compaction } else { Stream::Rows };
        let moved: Vec<Kept> =
            index.values().filter(|k| k.place.disk() == from && k.key % 4 == 0).copied().collect();
        let copies: Vec<Kept> = moved.iter().map(|kept| copy(&log, stream, kept)).collect();
        cold.settle().expect("settle");
        for (old, new) in moved.iter().zip(copies) {
            index.insert(new.key, new);
            log.release(old.place, 56);
        }
        log.sync().expect("sync");
        while log.free_segments() < 12 && compact(&log, &mut index) {}
        free_dead(&log);
        let end = log.sync().expect("sync");
        cold.recall().expect("recall");
        let operations = [devices[0].operations(), devices[1].operations()];
        promises.push(Promise { operations, end, sequences: sequences.clone() });
    }
    assert!(cold.used_bytes() <= 4096 + COLD_SLOTS * SEGMENT);
    promises
}

/// Rewrites the segment on NVMe with the most to win. False if there is none.
fn compact(log: &Log, index: &mut BTreeMap<u64, Kept>) -> bool {
    let Some(segment) = log.victim(true) else { return false };
    let elders = log.elders();
    log.scan(segment, &mut |place, table, record| {
        let record = record.expect("record");
        if record.tombstone {
            if !elders.are_gone(segment, table, record.horizon()) {
                log.copy_tombstone(table, &record).expect("append");
            }
        } else if let Some(kept) = index.get_mut(&record.key).filter(|kept| kept.place == place) {
            let Kept { table, key, sequence, floats, .. } = *kept;
            *kept = append(log, Stream::Compaction, table, key, sequence, floats).expect("append");
        }
    })
    .expect("scan");
    log.free(segment);
    if log.freed_segments() > 4 {
        log.sync().expect("sync");
    }
    true
}

/// Frees the segments on both disks in which nothing is live and no mark has to stay.
fn free_dead(log: &Log) {
    let volumes = [&log.nvme, log.cold().expect("cold")];
    let segments: Vec<_> = volumes.iter().flat_map(|volume| volume.slots.segments()).collect();
    for segment in segments {
        if segment.live_bytes == 0 && segment.state.is_written() && is_oldest(log, segment.id) {
            log.free(segment.id);
        }
    }
}

/// The newest record of each key that the log holds, as an opening would find it.
fn found(log: &Log) -> BTreeMap<u64, u64> {
    let mut newest: BTreeMap<u64, (u64, bool)> = BTreeMap::new();
    log.entries(0..BUCKETS, &mut |entry| {
        let this = (entry.sequence, !entry.tombstone);
        let newest = newest.entry(entry.key).or_insert(this);
        *newest = this.max(*newest);
    })
    .expect("entries");
    newest.into_iter().filter(|(_, v)| v.1).map(|(key, v)| (key, v.0)).collect()
}

#[test]
fn power_cuts_of_either_disk_lose_nothing_that_was_promised() {
    let devices = [FaultyDevice::default(), FaultyDevice::default()];
    let promises = run(&devices, 7);
    let traces = [devices[0].take_trace(), devices[1].take_trace()];
    let mut random = 99u64;
    for (n, promise) in promises.iter().enumerate() {
        // Of each disk: cut where the promise was made, with its unsynced writes lost or not.
        for losing in 0..4 {
            let images = [0, 1].map(|disk| {
                let trace: Vec<Operation> = traces[disk][..promise.operations[disk]].to_vec();
                FaultyDevice::crash_image(&trace, || {
                    random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    (losing >> disk & 1 == 0) || random >> 63 == 0
                })
            });
            let opened = images.map(FaultyDevice::new);
            let log = open_both(&opened, promise.end);
            let found = found(&log);
            let wrong = promise.sequences.iter().find(|(key, at)| found.get(key) != Some(at));
            assert_eq!(wrong, None, "promise {n}, losing {losing}");
            assert_eq!(
                found.len(),
                promise.sequences.len(),
                "promise {n}, losing {losing}: came back"
            );
        }
    }
}
