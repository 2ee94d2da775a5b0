//! Appending and reading back: from memory, from the device, through real files.

use super::*;
use crate::log::record::{record_bytes, ROW_FLOATS_MAX};
use crate::types::Disk;
use proptest::prelude::*;

#[test]
fn rows_come_back_from_memory_and_from_the_device() {
    let device = FaultyDevice::default();
    let log = open(&device, 16, LogEnd::default());
    let kept: Vec<Kept> = (0..3000u64)
        .map(|key| append(&log, Stream::Rows, key as u32 % 5, key, key + 1, 48).expect("append"))
        .collect();
    let counts = check(&log, &kept);
    assert!(counts.device_reads < 200, "the last segments are in memory: {counts:?}");
    log.sync().expect("sync");
    let counts = check(&log, &kept);
    let pages = (3000 * record_bytes(48)) as u64 / 4096;
    assert!(counts.bytes >= pages * 4096 && counts.bytes < (pages + 20) * 4096, "{counts:?}");
    assert!(counts.device_reads <= pages / 4 + 8, "neighbours are merged: {counts:?}");
    assert!(log.bytes_read() >= counts.bytes);
}

#[test]
fn a_page_is_read_once_for_all_its_records() {
    let device = FaultyDevice::default();
    let log = open(&device, 16, LogEnd::default());
    let kept: Vec<Kept> =
        (0..10u64).map(|k| append(&log, Stream::Rows, 1, k, k, 48).expect("append")).collect();
    log.sync().expect("sync");
    let counts = check(&log, &kept);
    assert_eq!((counts.device_reads, counts.bytes), (1, 4096));
}

#[test]
fn large_rows_take_pages_of_their_own() {
    let device = FaultyDevice::default();
    let log = open(&device, 16, LogEnd::default());
    let lengths = [1008, 1009, 3 * 4096, ROW_FLOATS_MAX, 1, 4096];
    let kept: Vec<Kept> = (0..120u64)
        .map(|k| append(&log, Stream::Rows, 1, k, k, lengths[k as usize % 6]).expect("append"))
        .collect();
    check(&log, &kept);
    log.sync().expect("sync");
    check(&log, &kept);
    let too_long = append(&log, Stream::Rows, 1, 1, 1, ROW_FLOATS_MAX + 1).expect_err("too long");
    assert_eq!(too_long.kind, ErrorKind::BadInput);
}

#[test]
fn a_record_longer_than_expected_is_read_again() {
    let device = FaultyDevice::default();
    let log = open(&device, 16, LogEnd::default());
    let kept = append(&log, Stream::Rows, 1, 3, 3, 5000).expect("append");
    log.sync().expect("sync");
    let short = |_| Read { row_floats: 4, ..read_of(&kept) };
    let mut found = Vec::new();
    let counts = log.read(&log.pin(), 1, &short, &mut |n, record| {
        found.push((n, record.expect("record").row.to_vec()));
    });
    assert_eq!(found, [(0, row(3, 3, 5000))]);
    assert_eq!(counts.device_reads, 2);
}

#[test]
fn the_wrong_table_or_place_is_corruption() {
    let device = FaultyDevice::default();
    let log = open(&device, 16, LogEnd::default());
    let kept = append(&log, Stream::Rows, 1, 3, 3, 48).expect("append");
    for in_memory in [true, false] {
        if !in_memory {
            log.sync().expect("sync");
        }
        assert!(is_corruption(&log, &Kept { table: 2, ..kept }));
        assert!(is_corruption(&log, &Kept { place: kept.place.plus(16), ..kept }));
        assert!(is_corruption(&log, &Kept { place: kept.place.plus(SEGMENT), ..kept }));
        assert!(is_corruption(&log, &Kept { place: Place::from_bits(0), ..kept }));
        assert!(is_corruption(
            &log,
            &Kept { place: Place::at(Disk::Nvme, Place::BYTES_MAX - 16), ..kept }
        ));
    }
}

#[test]
fn damage_names_file_offset_and_table() {
    let device = FaultyDevice::default();
    let log = open(&device, 16, LogEnd::default());
    let kept = append(&log, Stream::Rows, 11, 12345, 3, 48).expect("append");
    log.sync().expect("sync");
    device.damage(kept.place.offset() as usize + 100);
    let error = read_error(&log, &kept);
    assert_eq!(error.kind, ErrorKind::Corruption);
    let offset = format!("offset={}", kept.place.offset());
    for part in ["rows.log", offset.as_str(), "table=11"] {
        assert!(error.message.contains(part), "{error}");
    }
}

#[test]
fn threads_append_and_read_at_once() {
    let device = FaultyDevice::default();
    let log = open(&device, 64, LogEnd::default());
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let log = &log;
            scope.spawn(move || {
                let stream = if thread == 0 { Stream::Compaction } else { Stream::Rows };
                let mut kept = Vec::new();
                for i in 0..4000 {
                    let key = thread << 32 | i;
                    kept.push(append(log, stream, thread as u32 % 2, key, i, 40).expect("append"));
                    if i % 500 == 499 {
                        check(log, &kept);
                    }
                    if i == 2000 && thread == 3 {
                        log.sync().expect("sync");
                    }
                }
                check(log, &kept);
            });
        }
    });
}

#[test]
fn real_files_with_every_back_end() {
    for choice in ["", "threads"] {
        let name = format!("hybridps-log-{}-{choice}", std::process::id());
        let path = std::env::temp_dir().join(name);
        let device = crate::device::FileDevice::open_with(&path, 128, choice).expect("device");
        let config = LogConfig { path: path.clone(), ..config(64) };
        let log = Log::open_on(Box::new(device), config.clone(), LogEnd::default()).expect("open");
        let floats = |key: u64| if key % 97 == 0 { 3000 } else { 64 };
        let kept: Vec<Kept> = (0..20_000u64)
            .map(|k| append(&log, Stream::Rows, 1 + k as u32 % 3, k, k, floats(k)).expect("append"))
            .collect();
        check(&log, &kept);
        assert!(log.account_bytes() > 0 && !log.io_description().is_empty());
        let end = log.close().expect("close");
        let log = Log::open(config, end).expect("open");
        check(&log, &kept);
        drop(log);
        std::fs::remove_file(&path).expect("remove");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn any_mix_of_lengths_and_tables_round_trips(
        rows in prop::collection::vec(
            (0u32..40, prop_oneof![1usize..80, 900usize..1200, Just(9000)]),
            1..600,
        ),
        sync_at in 0usize..600,
    ) {
        let device = FaultyDevice::default();
        let log = open(&device, 128, LogEnd::default());
        let mut kept = Vec::new();
        for (i, &(table, floats)) in rows.iter().enumerate() {
            let stream = if i % 3 == 0 { Stream::Compaction } else { Stream::Rows };
            let (key, sequence) = (i as u64 * 77, i as u64);
            kept.push(append(&log, stream, table, key, sequence, floats).expect("append"));
            if i == sync_at {
                log.sync().expect("sync");
            }
        }
        check(&log, &kept);
        let end = log.close().expect("close");
        let log = open(&device, 128, end);
        check(&log, &kept);
    }
}
