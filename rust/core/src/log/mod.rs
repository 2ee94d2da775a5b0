#![allow(missing_docs, dead_code, unused)]
use crate::error::Result;
use crate::types::*;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
pub(crate) struct LogConfig {
    pub(crate) path: PathBuf,
    pub(crate) segment_bytes: u64,
    pub(crate) capacity_bytes: u64,
    pub(crate) buffers: usize,
    pub(crate) queue_depth: u32,
    pub(crate) before_write: Arc<dyn Fn(Sequence) -> Result<()> + Send + Sync>,
}
#[derive(Clone, Copy)]
pub(crate) struct LogEnd {
    pub(crate) incarnation: u64,
}
#[derive(Clone, Copy)]
pub(crate) enum Stream {
    Rows,
    Compaction,
}
pub(crate) struct Record<'a> {
    pub(crate) key: u64,
    pub(crate) sequence: u64,
    pub(crate) last_seen: u32,
    pub(crate) frequency: u32,
    pub(crate) row: &'a [f32],
}
pub(crate) struct RecordView<'a> {
    pub(crate) table: TableId,
    pub(crate) key: u64,
    pub(crate) sequence: u64,
    pub(crate) last_seen: u32,
    pub(crate) frequency: u32,
    pub(crate) is_tombstone: bool,
    pub(crate) row: &'a [f32],
}
pub(crate) struct FooterEntry {
    pub(crate) table: TableId,
    pub(crate) key: u64,
    pub(crate) sequence: u64,
    pub(crate) place: Place,
    pub(crate) row_floats: u32,
    pub(crate) is_tombstone: bool,
}
pub(crate) struct Read {
    pub(crate) place: Place,
    pub(crate) row_floats: u32,
    pub(crate) table: TableId,
    pub(crate) tag: u32,
}
pub(crate) struct ReadCounts {
    pub(crate) device_reads: u64,
    pub(crate) bytes: u64,
}
#[derive(Clone, Copy)]
pub(crate) struct SegmentId(u32);
pub(crate) struct Pin<'a>(std::marker::PhantomData<&'a ()>);
type Stored = (TableId, u64, u64, u32, u32, Option<Vec<f32>>);
pub(crate) struct Log {
    config: LogConfig,
    rows: Mutex<BTreeMap<u64, Stored>>,
}
impl Log {
    pub(crate) fn open(config: LogConfig, _: LogEnd) -> Result<Self> {
        Ok(Self { config, rows: Mutex::default() })
    }
    fn put(&self, s: Stored) -> Result<Place> {
        let mut r = self.rows.lock();
        let p = r.last_key_value().map_or(256, |x| x.0 + 1);
        r.insert(p, s);
        Ok(Place(p))
    }
    pub(crate) fn append(&self, _: Stream, t: TableId, r: &Record<'_>) -> Result<Place> {
        self.put((t, r.key, r.sequence, r.last_seen, r.frequency, Some(r.row.to_vec())))
    }
    pub(crate) fn append_tombstone(
        &self,
        _: Stream,
        t: TableId,
        key: u64,
        sequence: u64,
    ) -> Result<Place> {
        self.put((t, key, sequence, 0, 0, None))
    }
    pub(crate) fn release(&self, p: Place, _: usize) {}
    pub(crate) fn adopt(&self, _: Place, _: usize) {}
    pub(crate) fn pin(&self) -> Pin<'_> {
        Pin(std::marker::PhantomData)
    }
    pub(crate) fn read(
        &self,
        _: &Pin<'_>,
        reads: &mut [Read],
        visit: &mut dyn FnMut(u32, Result<RecordView<'_>>),
    ) -> ReadCounts {
        let mut out = vec![];
        {
            let rows = self.rows.lock();
            for r in reads.iter() {
                out.push((r.tag, rows[&r.place.0].clone()));
            }
        }
        for (tag, s) in &out {
            visit(
                *tag,
                Ok(RecordView {
                    table: s.0,
                    key: s.1,
                    sequence: s.2,
                    last_seen: s.3,
                    frequency: s.4,
                    is_tombstone: false,
                    row: s.5.as_ref().unwrap(),
                }),
            );
        }
        ReadCounts { device_reads: out.len() as u64, bytes: 4096 * out.len() as u64 }
    }
    pub(crate) fn sync(&self) -> Result<LogEnd> {
        Ok(LogEnd { incarnation: 1 })
    }
    pub(crate) fn used_bytes(&self) -> u64 {
        0
    }
    pub(crate) fn live_bytes(&self) -> u64 {
        0
    }
    pub(crate) fn capacity_bytes(&self) -> u64 {
        self.config.capacity_bytes
    }
    pub(crate) fn segment_bytes(&self) -> u64 {
        self.config.segment_bytes
    }
    pub(crate) fn buffer_bytes(&self) -> u64 {
        0
    }
    pub(crate) fn bytes_read(&self) -> u64 {
        0
    }
    pub(crate) fn bytes_written(&self) -> u64 {
        0
    }
    pub(crate) fn victim(&self, _: f64) -> Option<SegmentId> {
        None
    }
    pub(crate) fn scan(
        &self,
        _: SegmentId,
        _: &mut dyn FnMut(Place, TableId, Result<RecordView<'_>>),
    ) -> Result<()> {
        Ok(())
    }
    pub(crate) fn is_oldest(&self, _: SegmentId) -> bool {
        false
    }
    pub(crate) fn free(&self, _: SegmentId) {}
    pub(crate) fn entries(&self, b: Range<u32>, visit: &mut dyn FnMut(FooterEntry)) -> Result<()> {
        for (p, s) in self.rows.lock().iter() {
            if b.contains(&bucket(hash(s.1))) {
                visit(FooterEntry {
                    table: s.0,
                    key: s.1,
                    sequence: s.2,
                    place: Place(*p),
                    row_floats: s.5.as_ref().map_or(0, |r| r.len() as u32),
                    is_tombstone: s.5.is_none(),
                });
            }
        }
        Ok(())
    }
}
