//! Opening again: what was synced is there, torn tails are not, damage is reported.

use super::*;
use crate::log::header::SegmentHeader;
use crate::log::FooterEntry;
use crate::types::{bucket, hash, BUCKETS};

fn fill(log: &Log, keys: std::ops::Range<u64>, sequence: u64) -> Vec<Kept> {
    let append = |key| append(log, Stream::Rows, key as u32 % 3, key, sequence, 40);
    keys.map(|key| append(key).expect("append")).collect()
}

fn entries(log: &Log, buckets: std::ops::Range<u32>) -> Vec<FooterEntry> {
    let mut entries = Vec::new();
    log.entries(buckets, &mut |entry| entries.push(entry)).expect("entries");
    entries
}

fn reopen(image: Vec<u8>, known: LogEnd) -> (FaultyDevice, Log) {
    let device = FaultyDevice::new(image);
    let log = open(&device, 32, known);
    (device, log)
}

#[test]
fn entries_name_every_record_by_bucket() {
    let device = FaultyDevice::default();
    let log = open(&device, 32, LogEnd::default());
    let kept = fill(&log, 0..5000, 1);
    let removed = log.append_tombstone(Stream::Rows, 1, 77, 9).expect("append");
    let end = log.close().expect("close");
    let (_, log) = reopen(device.image(), end);
    for buckets in [0..BUCKETS, 100..101, 4000..4096, 0..0] {
        let found = entries(&log, buckets.clone());
        let wanted = kept.iter().filter(|kept| buckets.contains(&bucket(hash(kept.key)))).count();
        let tombstones = found.iter().filter(|entry| entry.tombstone).count();
        assert_eq!(tombstones, usize::from(buckets.contains(&bucket(hash(77)))));
        assert_eq!(found.len() - tombstones, wanted, "{buckets:?}");
        for entry in found {
            if entry.tombstone {
                assert_eq!((entry.key, entry.sequence, entry.place), (77, 9, removed));
                continue;
            }
            let kept = kept[entry.key as usize];
            assert_eq!((entry.table, entry.place), (kept.table, kept.place));
            assert_eq!((entry.row_floats, entry.sequence), (40, 1));
        }
    }
    let places: Vec<_> =
        entries(&log, 0..BUCKETS).iter().map(|e| e.place.offset() / SEGMENT).collect();
    assert!(places.windows(2).all(|w| w[0] <= w[1]), "in growing incarnation");
    assert_eq!(log.live_bytes(), 0);
    kept.iter().for_each(|kept| log.adopt(kept.place, kept.floats));
    assert_eq!(log.live_bytes(), 5000 * 192);
}

#[test]
fn incarnations_grow_over_openings() {
    let mut image = Vec::new();
    let mut end = LogEnd::default();
    for round in 0..4 {
        let (device, log) = reopen(image, end);
        fill(&log, 0..10, round);
        let next = log.close().expect("close");
        assert!(next > end);
        (image, end) = (device.image(), next);
    }
    let (_, log) = reopen(image, end);
    let sequences: Vec<u64> = entries(&log, 0..BUCKETS).iter().map(|e| e.sequence).collect();
    assert_eq!(sequences.len(), 40);
    assert!(sequences.windows(2).all(|w| w[0] <= w[1]));
}

/// A log with one segment that is synced, and one behind it that is written only.
fn two_segments() -> (Vec<u8>, LogEnd, Vec<Kept>, Vec<Kept>) {
    let device = FaultyDevice::default();
    let log = open(&device, 32, LogEnd::default());
    let synced = fill(&log, 0..500, 1);
    let end = log.sync().expect("sync");
    let later = fill(&log, 1000..1400, 2);
    log.sync().expect("sync");
    (device.image(), end, synced, later)
}

fn header_at(image: &[u8], slot: u64) -> SegmentHeader {
    SegmentHeader::decode(&image[4096 + (slot * SEGMENT) as usize..]).expect("header")
}

#[test]
fn a_whole_segment_beyond_the_known_end_is_taken() {
    let (image, end, synced, later) = two_segments();
    let (_, log) = reopen(image, end);
    check(&log, &synced);
    check(&log, &later);
    assert_eq!(entries(&log, 0..BUCKETS).len(), 900);
}

#[test]
fn a_torn_segment_beyond_the_known_end_is_forgotten() {
    let (image, end, synced, later) = two_segments();
    let start = (4096 + SEGMENT) as usize;
    let written = header_at(&image, 1).written_bytes() as usize;
    for offset in (0..written).step_by(512) {
        // The padding behind the header carries nothing.
        if (512..4096).contains(&offset) {
            continue;
        }
        let sector = start + offset..start + offset + 512;
        if image[sector.clone()].iter().all(|&byte| byte == 0) {
            continue;
        }
        let mut torn = image.clone();
        torn[sector].fill(0);
        let (device, log) = reopen(torn, end);
        assert_eq!(entries(&log, 0..BUCKETS).len(), 500, "offset {offset}");
        check(&log, &synced[..20]);
        assert!(is_corruption(&log, &later[0]));
        // It stays forgotten when the known end has grown past it.
        let again = fill(&log, 0..1, 3);
        let end = log.close().expect("close");
        let (_, log) = reopen(device.image(), end);
        assert_eq!(entries(&log, 0..BUCKETS).len(), 501, "offset {offset}");
        check(&log, &again);
    }
}

#[test]
fn damage_before_the_known_end_is_reported() {
    let (image, _, _, later) = two_segments();
    let end = LogEnd { incarnation: header_at(&image, 1).incarnation };
    let start = (4096 + SEGMENT) as usize;
    let header = header_at(&image, 1);
    // The header: the footers cannot be listed, the records can still be read.
    let mut damaged = image.clone();
    damaged[start + 9] ^= 1;
    let (_, log) = reopen(damaged, end);
    let error = log.entries(0..BUCKETS, &mut |_| ()).expect_err("header");
    assert_eq!(error.kind, ErrorKind::Corruption);
    assert!(error.message.contains("slot=1"), "{error}");
    check(&log, &later);
    // The footer.
    let footer = start + header.footer_offset() as usize;
    for offset in (0..header.footer_bytes as usize).step_by(97) {
        let mut damaged = image.clone();
        damaged[footer + offset] ^= 1;
        let (_, log) = reopen(damaged, end);
        let error = log.entries(0..BUCKETS, &mut |_| ()).expect_err("footer");
        assert_eq!(error.kind, ErrorKind::Corruption);
        check(&log, &later);
    }
    // A record, a page header.
    for offset in [0, 8, 24, 31, 32, 191, -32 + 8, -32 + 20] {
        let mut damaged = image.clone();
        damaged[(later[0].place.offset() as i64 + offset) as usize] ^= 1;
        let (_, log) = reopen(damaged, end);
        assert!(is_corruption(&log, &later[0]), "offset {offset}");
        assert_eq!(entries(&log, 0..BUCKETS).len(), 900);
    }
}

#[test]
fn bytes_of_an_earlier_filling_are_never_taken() {
    // The slot holds a whole older segment; of the new one only the header reached the disk.
    let device = FaultyDevice::default();
    let log = open(&device, 32, LogEnd::default());
    let old = fill(&log, 0..500, 1);
    log.sync().expect("sync");
    let before = device.image();
    let slot = log.nvme.slots.info(0).header;
    log.free(log.nvme.slots.id(0, slot.incarnation));
    let end = log.sync().expect("sync");
    let new = fill(&log, 0..500, 2);
    log.sync().expect("sync");
    assert_eq!(new[0].place, old[0].place, "same slot, same place");
    let mut mixed = before;
    mixed[..8192].copy_from_slice(&device.image()[..8192]);
    let (_, log) = reopen(mixed.clone(), end);
    assert_eq!(entries(&log, 0..BUCKETS), []);
    // Even if the store believes it was synced, no old row passes for a new one.
    let (_, log) = reopen(mixed, LogEnd { incarnation: u64::MAX >> 8 });
    assert!(is_corruption(&log, &old[0]));
    assert!(log.entries(0..BUCKETS, &mut |_| ()).is_err());
}

#[test]
fn a_missing_file_or_other_settings_are_named() {
    let open_on = |image: Vec<u8>, config, known| {
        let opened = Log::open_on(Box::new(FaultyDevice::new(image)), config, known);
        opened.err().expect("refused")
    };
    let (image, end, _, _) = two_segments();
    assert_eq!(open_on(Vec::new(), config(32), end).kind, ErrorKind::Corruption);
    let other = LogConfig { segment_bytes: 2 * SEGMENT, ..config(32) };
    let error = open_on(image.clone(), other, end);
    assert_eq!(error.kind, ErrorKind::Config);
    assert!(error.message.contains("262144") && error.message.contains("524288"), "{error}");
    let mut headless = image;
    headless[0] ^= 1;
    headless[2048] ^= 1;
    assert_eq!(open_on(headless, config(32), end).kind, ErrorKind::Corruption);
    for bad in [
        LogConfig { segment_bytes: 5000, ..config(32) },
        LogConfig { segment_bytes: 128 << 20, ..config(32) },
        LogConfig { capacity_bytes: 1 << 20, ..config(32) },
        LogConfig { buffers: 3, ..config(32) },
    ] {
        assert_eq!(Log::open(bad, end).err().expect("refused").kind, ErrorKind::Config);
    }
}

#[test]
fn a_lowered_cap_keeps_rows_and_fills_no_more_slots() {
    let device = FaultyDevice::default();
    let log = open(&device, 32, LogEnd::default());
    let kept = fill(&log, 0..20_000, 1);
    let end = log.close().expect("close");
    let log = open(&device, 8, end);
    check(&log, &kept);
    assert_eq!(
        append(&log, Stream::Rows, 1, 1, 2, 8).expect_err("full").kind,
        ErrorKind::StoreFull
    );
    assert!(log.used_bytes() > config(8).capacity_bytes);
}
