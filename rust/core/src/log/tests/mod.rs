//! Goal: every record that was appended is found again, unharmed, and nothing else is. Method:
//! a log over a device in memory (`faulty`), compared with a map.

mod cold;
mod crash;
mod life;
mod read;
mod reopen;
mod tombstones;

use std::sync::Arc;

use super::{Log, LogConfig, LogEnd, Read, Record, Stream};
use crate::device::FaultyDevice;
use crate::error::{ErrorKind, Result};
use crate::types::{Place, TableId};

pub(super) const SEGMENT: u64 = 256 << 10;

pub(super) fn config(slots: u64) -> LogConfig {
    LogConfig {
        path: "rows.log".into(),
        segment_bytes: SEGMENT,
        capacity_bytes: 4096 + (slots + u64::from(super::slots::SPARE)) * SEGMENT,
        buffers: 4,
        queue_depth: 128,
        before_write: Arc::new(|_| Ok(())),
    }
}

pub(super) fn open(device: &FaultyDevice, slots: u64, known: LogEnd) -> Log {
    Log::open_on(Box::new(device.clone()), config(slots), known).expect("open")
}

/// A row that no other (key, sequence) has.
pub(super) fn row(key: u64, sequence: u64, floats: usize) -> Vec<f32> {
    (0..floats).map(|i| (key * 31 + sequence * 7) as f32 + i as f32 * 0.5).collect()
}

/// A record as the tests remember it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Kept {
    pub(super) table: TableId,
    pub(super) key: u64,
    pub(super) sequence: u64,
    pub(super) floats: usize,
    pub(super) place: Place,
}

pub(super) fn append(
    log: &Log,
    stream: Stream,
    table: TableId,
    key: u64,
    sequence: u64,
    floats: usize,
) -> Result<Kept> {
    let row = row(key, sequence, floats);
    let (last_seen, frequency) = (key as u32 ^ 5, sequence as u32 ^ 9);
    let record = Record { key, sequence, last_seen, frequency, row: &row };
    let place = log.append(stream, table, &record)?;
    Ok(Kept { table, key, sequence, floats, place })
}

pub(super) fn read_of(kept: &Kept) -> Read {
    let Kept { table, floats, place, .. } = *kept;
    Read { place, row_floats: floats, table }
}

/// Whether all tombstones of the segment may be forgotten.
pub(super) fn is_oldest(log: &Log, segment: super::SegmentId) -> bool {
    let (elders, mut is_oldest) = (log.elders(), true);
    log.scan(segment, &mut |_, table, record| {
        let record = record.expect("record");
        is_oldest &= !record.tombstone || elders.are_gone(segment, table, record.horizon());
    })
    .expect("scan");
    is_oldest
}

/// Reads all of `kept` in one batch; each must be there, once, as it was appended.
pub(super) fn check(log: &Log, kept: &[Kept]) -> super::ReadCounts {
    let mut kept = kept.to_vec();
    kept.sort_by_key(|kept| kept.place);
    let mut seen = vec![0; kept.len()];
    let counts = log.read(&log.pin(), kept.len(), &|n| read_of(&kept[n]), &mut |n, record| {
        let wanted = &kept[n];
        let record = record.unwrap_or_else(|error| panic!("{wanted:?}: {error}"));
        assert_eq!((record.key, record.sequence), (wanted.key, wanted.sequence));
        assert_eq!(record.row, row(wanted.key, wanted.sequence, wanted.floats));
        assert_eq!(record.last_seen, wanted.key as u32 ^ 5);
        assert_eq!(record.frequency, wanted.sequence as u32 ^ 9);
        assert!(!record.tombstone);
        seen[n] += 1;
    });
    assert!(seen.iter().all(|&n| n == 1));
    counts
}

/// Reads one record that must fail.
pub(super) fn read_error(log: &Log, kept: &Kept) -> crate::error::Error {
    let mut found = None;
    log.read(&log.pin(), 1, &|_| read_of(kept), &mut |_, record| found = Some(record.err()));
    found.flatten().expect("an error")
}

pub(super) fn is_corruption(log: &Log, kept: &Kept) -> bool {
    read_error(log, kept).kind == ErrorKind::Corruption
}
