//! Scrub: all that lies on the device is read and checked, so that damage is found while it can be
//! mended. A damaged segment is emptied, as compaction would: sound rows move, rows that are in
//! DRAM are written anew, and only what is live and nowhere else is lost.
//!
//! A pass goes over the slots of the log, in steps that name where the next one begins. In the
//! background it is paced in bytes a second, by a thread of its own; callers may run one beside it.

use std::collections::BTreeMap;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::damaged::{Damaged, Fate};
use super::engine::Engine;
use crate::error::{Error, ErrorKind, Result};
use crate::log::SegmentId;
use crate::types::{hash, TableId};

/// Findings of one step; a step ends once it has so many.
const FOUND_MAX: usize = 1000;
/// Pause of the thread when there was nothing to read.
const PAUSE: Duration = Duration::from_secs(1);

/// What one step of a scrub has read, and found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scrubbed {
    /// Where the next step begins. `None`: the log ends here.
    pub next: Option<u64>,
    /// Records and tombstones that are sound.
    pub records: u64,
    /// Bytes that were read.
    pub bytes: u64,
    /// Bytes that a whole pass reads, about.
    pub total_bytes: u64,
    /// What is not what was written.
    pub damaged: Vec<Damaged>,
}

/// The thread of the background, and what it has done since the store was opened.
#[derive(Default)]
pub(super) struct Scrub {
    pace: Mutex<Pace>,
    changed: Condvar,
    thread: Mutex<Option<JoinHandle<()>>>,
    /// Bytes read, whole passes, findings; those of callers' passes too.
    pub(super) bytes: AtomicU64,
    pub(super) passes: AtomicU64,
    pub(super) damaged: AtomicU64,
}

#[derive(Default)]
struct Pace {
    /// Bytes a second; 0: not at all.
    rate: u64,
    is_stopping: bool,
}

impl Scrub {
    /// Returns when `bytes` more may be read after `since`; false when the store closes.
    fn wait(&self, bytes: u64, since: Instant) -> bool {
        let mut pace = self.pace.lock();
        loop {
            if pace.is_stopping {
                return false;
            }
            if pace.rate == 0 {
                self.changed.wait(&mut pace);
                continue;
            }
            let pause = Duration::from_secs_f64(bytes as f64 / pace.rate as f64).max(PAUSE / 1000);
            if since.elapsed() >= pause {
                return true;
            }
            self.changed.wait_until(&mut pace, since + pause);
        }
    }

    /// Ends the thread, after the segment that it is in.
    pub(super) fn stop(&self) {
        self.pace.lock().is_stopping = true;
        self.changed.notify_all();
        if let Some(thread) = self.thread.lock().take() {
            // A panic has failed the store already, and said so.
            drop(thread.join());
        }
    }
}

impl Engine {
    /// Scrubs so many bytes a second in the background, 0: none.
    pub(super) fn set_scrub_rate(self: &Arc<Self>, rate: u64) -> Result<()> {
        self.scrub.pace.lock().rate = rate;
        self.scrub.changed.notify_all();
        let mut thread = self.scrub.thread.lock();
        if rate == 0 || thread.is_some() || self.scrub.pace.lock().is_stopping {
            return Ok(());
        }
        let engine = self.clone();
        let body = move || {
            if catch_unwind(AssertUnwindSafe(|| engine.scrub_for_ever())).is_err() {
                let text = "the scrub thread panicked; see what the process printed, and report it";
                engine.failure.break_off(&Error::unavailable(text));
            }
        };
        let started = std::thread::Builder::new().name("hps-scrub".into()).spawn(body);
        *thread = Some(started.map_err(|cause| {
            Error::unavailable(format!("cannot start the scrub thread: {cause}"))
        })?);
        Ok(())
    }

    /// Passes begin anywhere, so that a store which is opened often is scrubbed evenly.
    fn scrub_for_ever(&self) {
        let segments = self.tier.log.capacity_bytes() / self.tier.log.segment_bytes();
        let mut from = hash(self.clock.date()) % segments.max(1);
        let (mut bytes, mut since) = (self.tier.log.segment_bytes(), Instant::now());
        while self.scrub.wait(bytes, since) {
            since = Instant::now();
            let Ok(Some(_call)) = self.try_enter() else { continue };
            // What fails here fails those who need it too, and they tell.
            let step = self
                .scrub_step(from, 1)
                .unwrap_or_else(|_| Scrubbed { next: Some(from + 1), ..Scrubbed::default() });
            from = step.next.unwrap_or(0);
            let at_rest = self.scrub.pace.lock().rate.max(1);
            bytes = if step.bytes > 0 { step.bytes } else { at_rest };
        }
    }

    /// Checks segments from `from` on, at least one, until `bytes` were read.
    pub(super) fn scrub_step(&self, from: u64, bytes: u64) -> Result<Scrubbed> {
        let log = &self.tier.log;
        let mut step = Scrubbed { total_bytes: log.all_allocated_bytes(), ..Scrubbed::default() };
        let mut first = u32::try_from(from).unwrap_or(u32::MAX);
        while let Some((position, segment)) = log.written_from(first) {
            let is_enough = step.bytes >= bytes.max(1) || step.damaged.len() >= FOUND_MAX;
            if is_enough || self.is_closing.load(Relaxed) {
                step.next = Some(position.into());
                break;
            }
            self.scrub_segment(segment, &mut step)?;
            first = position + 1;
        }
        let scrub = &self.scrub;
        scrub.bytes.fetch_add(step.bytes, Relaxed);
        scrub.passes.fetch_add(u64::from(step.next.is_none()), Relaxed);
        scrub.damaged.fetch_add(step.damaged.len() as u64, Relaxed);
        Ok(step)
    }

    fn scrub_segment(&self, segment: SegmentId, step: &mut Scrubbed) -> Result<()> {
        let mut records: BTreeMap<TableId, u64> = BTreeMap::new();
        let verified = self.tier.log.verify(segment, &mut |_, table, record| {
            *records.entry(table).or_default() += u64::from(record.is_ok());
        });
        let Some(verified) = verified else { return Ok(()) };
        self.count_scan(&records, verified.counts);
        step.records += verified.records;
        step.bytes += verified.bytes;
        if verified.is_sound {
            return Ok(());
        }
        step.damaged.append(&mut self.empty(segment, verified.offset)?);
        Ok(())
    }

    /// Moves what is sound of a damaged segment elsewhere; its space is used again if that is all.
    fn empty(&self, segment: SegmentId, offset: u64) -> Result<Vec<Damaged>> {
        let outcome = self.failure.check().and_then(|()| {
            let _alone = self.compacting.lock();
            self.compact_segment(segment)
        });
        let fate = match outcome {
            Ok(found) if !found.is_empty() => return Ok(found),
            Ok(_) => Fate::Freed,
            Err(error) if matches!(error.kind, ErrorKind::StoreFull | ErrorKind::Unavailable) => {
                Fate::Left
            }
            Err(error) => return Err(error),
        };
        let damaged = Damaged { row: None, offset, fate };
        self.note_damaged(damaged.clone());
        Ok(vec![damaged])
    }
}
