//! The life of a slot: live bytes, victims, scans, freeing, pins, reuse, a full log, failures.

use super::*;
use crate::log::record::charge;
use crate::log::SegmentId;
use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};

/// Fills `segments` segments of 56-float rows and syncs.
fn fill(log: &Log, segments: u64, sequence: u64) -> Vec<Kept> {
    let rows = segments * 820;
    let kept: Vec<Kept> = (0..rows)
        .map(|key| append(log, Stream::Rows, 1, key, sequence, 56).expect("append"))
        .collect();
    log.sync().expect("sync");
    kept
}

fn segment_of(log: &Log, kept: &Kept) -> SegmentId {
    let slot = log.nvme.slots.of(kept.place).expect("slot");
    log.nvme.slots.id(slot, log.nvme.slots.incarnation(slot))
}

#[test]
fn victims_have_the_lowest_live_share() {
    let device = FaultyDevice::default();
    let log = open(&device, 16, LogEnd::default());
    let kept = fill(&log, 3, 1);
    assert_eq!(log.live_bytes(), kept.len() as u64 * charge(56));
    assert_eq!(log.victim(true), None);
    let segment = segment_of(&log, &kept[0]);
    let of_first = kept.iter().filter(|kept| segment_of(&log, kept) == segment);
    let dead: Vec<&Kept> = of_first.take(400).collect();
    dead.iter().for_each(|kept| log.release(kept.place, kept.floats));
    assert_eq!(log.victim(true), Some(segment));
    assert_eq!(log.victim(false), None, "three segments are what is being filled anyway");
    assert_eq!(log.live_bytes(), (kept.len() - dead.len()) as u64 * charge(56));
}

#[test]
fn scan_shows_every_record_and_tombstone() {
    let device = FaultyDevice::default();
    let log = open(&device, 64, LogEnd::default());
    let floats = |key: u64| [16, 2000, 56, 16000][key as usize % 4];
    let kept: Vec<Kept> = (0..200u64)
        .map(|k| append(&log, Stream::Rows, k as u32 % 3, k, k, floats(k)).expect("append"))
        .collect();
    let removed: HashSet<_> = (0..50u64)
        .map(|key| {
            log.append_tombstone(Stream::Rows, key as u32 % 3, key, 1000 + key).expect("append")
        })
        .collect();
    log.sync().expect("sync");
    let segments: HashSet<SegmentId> = kept.iter().map(|kept| segment_of(&log, kept)).collect();
    assert!(segments.len() > 3);
    let (mut rows, mut tombstones) = (0, 0);
    for &segment in &segments {
        log.scan(segment, &mut |place, table, record| {
            let record = record.expect("record");
            if record.tombstone {
                assert!(removed.contains(&place) && record.row.is_empty());
                assert_eq!((record.sequence, table), (1000 + record.key, record.key as u32 % 3));
                tombstones += 1;
            } else {
                let kept = &kept[record.key as usize];
                assert_eq!(
                    (place, table, record.sequence),
                    (kept.place, kept.table, kept.sequence)
                );
                assert_eq!(record.row, row(kept.key, kept.sequence, kept.floats));
                rows += 1;
            }
        })
        .expect("scan");
    }
    assert_eq!((rows, tombstones), (200, 50));
}

#[test]
fn scan_reports_damage_and_goes_on() {
    let device = FaultyDevice::default();
    let log = open(&device, 16, LogEnd::default());
    let kept = fill(&log, 1, 1);
    let segment = segment_of(&log, &kept[0]);
    device.damage(kept[0].place.offset() as usize - 20);
    device.damage(kept[20].place.offset() as usize + 40);
    let (mut good, mut bad) = (0, 0);
    log.scan(segment, &mut |_, _, record| match record {
        Ok(_) => good += 1,
        Err(error) => {
            assert_eq!(error.kind, ErrorKind::Corruption);
            bad += 1;
        }
    })
    .expect("scan");
    assert_eq!(bad, 2);
    assert!(good > 700, "{good}");
}

#[test]
fn a_freed_slot_is_reused_after_sync_and_pins() {
    let device = FaultyDevice::default();
    let log = open(&device, 16, LogEnd::default());
    let kept = fill(&log, 2, 1);
    let segment = segment_of(&log, &kept[0]);
    let used = log.used_bytes();
    let pin = log.pin();
    log.free(segment);
    log.free(segment);
    log.sync().expect("sync");
    assert_eq!(log.used_bytes(), used, "a pin is held");
    check(&log, &kept);
    drop(pin);
    let later = log.pin();
    log.sync().expect("sync");
    assert_eq!(log.used_bytes(), used - SEGMENT);
    drop(later);
    assert!(is_corruption(&log, &kept[0]));
    let again = fill(&log, 1, 2);
    assert_eq!(segment_of(&log, &again[0]).slot, segment.slot, "the lowest slot first");
    assert!(segment_of(&log, &again[0]).incarnation > segment.incarnation);
    check(&log, &again);
    log.free(segment);
    log.sync().expect("sync");
    check(&log, &again);
}

#[test]
fn compaction_gets_its_slots_back_without_sync() {
    let device = FaultyDevice::default();
    let log = open(&device, 12, LogEnd::default());
    for round in 0..30 {
        // Each round kills what the rounds before wrote, so that one slot after another is free.
        for key in 0..820u64 {
            append(&log, Stream::Rows, 1, key, round, 56).expect("append");
        }
        for segment in log.nvme.slots.written() {
            let (slot, incarnation) = (segment.slot, segment.incarnation);
            log.free(log.nvme.slots.id(slot, incarnation));
        }
    }
    assert!(log.used_bytes() < 12 * SEGMENT);
}

#[test]
fn tombstones_wait_for_everything_that_may_be_older() {
    let device = FaultyDevice::default();
    let log = open(&device, 16, LogEnd::default());
    let rows = append(&log, Stream::Rows, 1, 1, 1, 8).expect("append");
    let copies = append(&log, Stream::Compaction, 1, 2, 2, 8).expect("append");
    log.append_tombstone(Stream::Rows, 1, 2, 3).expect("append");
    log.sync().expect("sync");
    let later = append(&log, Stream::Rows, 1, 3, 4, 8).expect("append");
    log.sync().expect("sync");
    let [rows, copies, later] = [rows, copies, later].map(|kept| segment_of(&log, &kept));
    assert!(rows < copies && copies < later);
    assert!(!is_oldest(&log, rows), "compaction wrote beside it");
    log.free(copies);
    assert!(!is_oldest(&log, rows), "freed, but still on the device");
    log.sync().expect("sync");
    assert!(is_oldest(&log, rows), "what came later has nothing older");
}

#[test]
fn a_copied_tombstone_waits_for_nothing_that_is_younger() {
    let device = FaultyDevice::default();
    let log = open(&device, 16, LogEnd::default());
    let row = append(&log, Stream::Rows, 1, 1, 1, 8).expect("append");
    log.sync().expect("sync");
    log.append_tombstone(Stream::Rows, 1, 1, 2).expect("append");
    let beside = append(&log, Stream::Rows, 2, 1, 1, 8).expect("append");
    log.sync().expect("sync");
    append(&log, Stream::Rows, 1, 3, 4, 8).expect("append");
    log.sync().expect("sync");
    let [row, marked] = [row, beside].map(|kept| segment_of(&log, &kept));
    log.scan(marked, &mut |_, table, record| {
        let record = record.expect("record");
        if record.tombstone {
            log.copy_tombstone(table, &record).expect("append");
        }
    })
    .expect("scan");
    let copy = append(&log, Stream::Compaction, 2, 1, 1, 8).expect("append");
    log.free(marked);
    log.sync().expect("sync");
    assert!(!is_oldest(&log, segment_of(&log, &copy)), "the row that it marks is there");
    log.free(row);
    log.sync().expect("sync");
    assert!(is_oldest(&log, segment_of(&log, &copy)), "the third key came after the removal");
}

#[test]
fn short_segments_are_merged_and_victims_come_to_an_end() {
    for syncs in [false, true] {
        let device = FaultyDevice::default();
        let log = open(&device, 32, LogEnd::default());
        let mut kept = Vec::new();
        for key in 0..12u64 {
            kept.push(append(&log, Stream::Rows, 1, key, 1, 56).expect("append"));
            log.sync().expect("sync");
        }
        let mut rounds = 0;
        while let Some(segment) = log.victim(true) {
            rounds += 1;
            assert!(rounds < 100, "victims without end");
            log.scan(segment, &mut |_, table, record| {
                let key = record.expect("record").key;
                let copy = append(&log, Stream::Compaction, table, key, 1, 56).expect("append");
                kept[key as usize] = copy;
            })
            .expect("scan");
            log.free(segment);
            if syncs {
                log.sync().expect("sync");
            }
        }
        log.sync().expect("sync");
        check(&log, &kept);
        if !syncs {
            assert_eq!(log.used_bytes(), 4096 + SEGMENT, "all in one");
        }
    }
}

#[test]
fn a_full_log_refuses_rows_but_lets_compaction_go_on() {
    let device = FaultyDevice::default();
    let log = open(&device, 8, LogEnd::default());
    let mut kept = Vec::new();
    let error = loop {
        match append(&log, Stream::Rows, 1, kept.len() as u64, 1, 56) {
            Ok(record) => kept.push(record),
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind, ErrorKind::StoreFull);
    assert!(error.message.contains("nvme_bytes"), "{error}");
    check(&log, &kept);
    let segment = segment_of(&log, &kept[0]);
    let mut copied = Vec::new();
    log.scan(segment, &mut |_, table, record| {
        let key = record.expect("record").key;
        copied.push(append(&log, Stream::Compaction, table, key, 1, 56).expect("append"));
    })
    .expect("scan");
    log.free(segment);
    // The copies are in memory still: the append below syncs them to get the slot.
    kept.retain(|kept| log.nvme.slots.of(kept.place) != Some(segment.slot));
    append(&log, Stream::Compaction, 1, 7, 7, 56).expect("append");
    log.sync().expect("sync");
    check(&log, &kept);
    check(&log, &copied);
    assert!(device.image().len() as u64 <= config(8).capacity_bytes);
}

#[test]
fn the_journal_is_asked_before_rows_reach_the_device() {
    let device = FaultyDevice::default();
    let asked = Arc::new(AtomicU64::new(0));
    let (seen, at) = (asked.clone(), device.clone());
    let before_write = Arc::new(move |sequence: u64| {
        assert!(at.operations() <= 2, "nothing but the file header is written");
        seen.fetch_max(sequence, Ordering::Relaxed);
        Ok(())
    });
    let config = LogConfig { before_write, ..config(16) };
    let log = Log::open_on(Box::new(device), config, LogEnd::default()).expect("open");
    for sequence in [5, 99, 7] {
        append(&log, Stream::Rows, 1, sequence, sequence, 8).expect("append");
    }
    log.sync().expect("sync");
    assert_eq!(asked.load(Ordering::Relaxed), 99);
}

#[test]
fn the_first_failure_is_kept() {
    for fails_at in 0..2 {
        let device = FaultyDevice::default();
        let log = open(&device, 16, LogEnd::default());
        let kept = append(&log, Stream::Rows, 1, 1, 1, 8).expect("append");
        device.fail_after(fails_at);
        let error = log.sync().expect_err("the device fails");
        assert_eq!(error.kind, ErrorKind::Unavailable);
        for _ in 0..2 {
            let error = append(&log, Stream::Rows, 1, 2, 2, 8).expect_err("failed before");
            assert_eq!(error.kind, ErrorKind::Unavailable);
            assert!(error.message.contains("made to fail"), "{error}");
            assert_eq!(log.sync().expect_err("failed before").kind, ErrorKind::Unavailable);
        }
        check(&log, &[kept]);
    }
}

#[test]
fn a_failing_journal_keeps_rows_off_the_device() {
    let device = FaultyDevice::default();
    let before_write = Arc::new(|_| Err(crate::error::Error::unavailable("journal is gone")));
    let config = LogConfig { before_write, ..config(16) };
    let log = Log::open_on(Box::new(device.clone()), config, LogEnd::default()).expect("open");
    append(&log, Stream::Rows, 1, 1, 1, 8).expect("append");
    assert!(log.sync().expect_err("journal").message.contains("journal is gone"));
    assert_eq!(device.image().len(), 4096);
}

#[test]
fn appenders_that_wait_for_a_buffer_hear_of_a_failure() {
    let device = FaultyDevice::default();
    let log = open(&device, 64, LogEnd::default());
    device.fail_after(0);
    let failed = (0..100_000u64).find_map(|k| append(&log, Stream::Rows, 1, k, k, 500).err());
    assert_eq!(failed.expect("a failure").kind, ErrorKind::Unavailable);
}
