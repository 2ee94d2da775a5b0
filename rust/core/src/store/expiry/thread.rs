//! The thread that walks tables with an expiry, one bucket after the other, for an eighth of the
//! time at most; where rows fill what the log may hold, all the time.

use std::collections::HashMap;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::error::{Error, ErrorKind, Result};
use crate::expiry::Expiry;
use crate::store::engine::Engine;
use crate::table::Table;
use crate::types::{Sequence, TableId, BUCKETS};

/// Pause between two looks at what is due, and at the clock.
const PERIOD: Duration = Duration::from_secs(1);
/// Of a table's turn; then it is the next one's.
const TURN: Duration = Duration::from_millis(20);
/// A pause is so many times as long as the work before it.
const REST: u32 = 7;
/// Between the ends of two walks over a table: this part of its age, within bounds.
const WALKS_AN_AGE: u64 = 16;
const REST_MAX: Duration = Duration::from_secs(86_400);
/// The same, for those that do not go by age.
const REST_MIN: Duration = Duration::from_secs(2);
/// The same, while rows fill what the log may hold.
const REST_PRESSED: Duration = Duration::from_secs(10);
/// How often the date is stored while nothing else is.
const SAVE: Duration = Duration::from_secs(600);

/// The thread, and what ages are told by.
#[derive(Default)]
pub(in crate::store) struct Expiring {
    state: Mutex<ThreadState>,
    changed: Condvar,
    thread: Mutex<Option<JoinHandle<()>>>,
    /// Rows without a stamp are taken as seen at this Unix second.
    begun: AtomicU64,
    /// Calls up to here were in the file at the opening.
    stored: AtomicU64,
    /// Held while the file is written.
    pub(super) saving: Mutex<()>,
}

#[derive(Default)]
struct ThreadState {
    is_stopping: bool,
    is_asked: bool,
}

/// A table's walks, one after the other.
struct Walk {
    expiry: Option<Expiry>,
    bucket: u32,
    /// When the last one came to its end.
    ended: Option<Instant>,
    /// What the table had come to when the last one began; `None` before the first.
    came_to: Option<CameTo>,
}

/// Steps of a table, and bytes that pushes have changed.
type CameTo = (i64, u64);

impl Expiring {
    pub(super) fn begin(&self, begun: u64, stored: Sequence) {
        self.begun.store(begun, Relaxed);
        self.stored.store(stored, Relaxed);
    }

    pub(super) fn begun(&self) -> u64 {
        self.begun.load(Relaxed)
    }

    pub(super) fn stored(&self) -> Sequence {
        self.stored.load(Relaxed)
    }

    /// A table may have an expiry now.
    pub(in crate::store) fn ask(&self) {
        self.state.lock().is_asked = true;
        self.changed.notify_all();
    }

    /// Waits; without end if there is nothing to do. False when the store closes.
    fn wait(&self, pause: Option<Duration>) -> bool {
        let mut state = self.state.lock();
        let end = pause.map(|pause| Instant::now() + pause);
        while !state.is_stopping && !std::mem::take(&mut state.is_asked) {
            match end {
                None => self.changed.wait(&mut state),
                Some(end) if self.changed.wait_until(&mut state, end).timed_out() => break,
                Some(_) => {}
            }
        }
        !state.is_stopping
    }

    /// Ends the thread, after the bucket that it is at.
    pub(in crate::store) fn stop(&self) {
        self.state.lock().is_stopping = true;
        self.changed.notify_all();
        if let Some(thread) = self.thread.lock().take() {
            // A panic has failed the store already, and said so.
            drop(thread.join());
        }
    }
}

impl Engine {
    pub(in crate::store) fn start_expiring(self: &Arc<Self>) -> Result<()> {
        #[cfg(test)]
        if super::tests::IS_QUIET.get() {
            return Ok(());
        }
        let engine = self.clone();
        let body = move || {
            if catch_unwind(AssertUnwindSafe(|| engine.expire_for_ever())).is_err() {
                let text = "the expiry thread panicked; see what the process printed, and report \
                            it";
                engine.failure.break_off(&Error::unavailable(text));
            }
        };
        let started = std::thread::Builder::new().name("hps-expire".into()).spawn(body);
        *self.expiring.thread.lock() = Some(started.map_err(|cause| {
            Error::unavailable(format!("cannot start the expiry thread: {cause}"))
        })?);
        Ok(())
    }

    /// Tables that have an expiry.
    pub(super) fn expiring_tables(&self) -> Vec<Arc<Table>> {
        let catalog = self.catalog.read();
        catalog.by_id.values().filter(|table| table.expiry().is_some()).cloned().collect()
    }

    fn expire_for_ever(&self) {
        let mut walks: HashMap<TableId, Walk> = HashMap::new();
        let (mut pause, mut saved) = (None, None::<Instant>);
        while self.expiring.wait(pause) {
            let tables = self.expiring_tables();
            walks.retain(|id, _| tables.iter().any(|table| table.id == *id));
            pause = (!tables.is_empty()).then_some(PERIOD);
            if tables.is_empty() {
                continue;
            }
            // It is asked often, so that it keeps up with the date.
            self.clock.reckoned();
            if saved.is_none_or(|saved| saved.elapsed() >= SAVE) {
                saved = Some(Instant::now());
                self.tell_expiry(self.save_expiry());
            }
            let start = Instant::now();
            let is_busy = tables.iter().fold(false, |is_busy, table| {
                let walk = walks.entry(table.id).or_insert_with(|| Walk::new(table));
                if walk.expiry != table.expiry() {
                    *walk = Walk::new(table);
                }
                self.walk_on(table, walk) || is_busy
            });
            if is_busy {
                let rest = if self.is_pressed() { 0 } else { REST };
                pause = Some(start.elapsed() * rest);
            }
        }
    }

    /// A table's turn. True if there is more to do.
    fn walk_on(&self, table: &Arc<Table>, walk: &mut Walk) -> bool {
        let start = Instant::now();
        if walk.bucket == 0 {
            let came_to = came_to(table);
            let rest = if self.is_pressed() { REST_PRESSED } else { rest_of(table) };
            let is_early = walk.ended.is_some_and(|ended| start.duration_since(ended) < rest);
            if is_early || !walk.is_worth_it(came_to) {
                return false;
            }
            walk.came_to = Some(came_to);
        }
        let Some(judgement) = self.judgement(table, None) else { return false };
        while start.elapsed() < TURN && walk.bucket < BUCKETS {
            let Ok(Some(_call)) = self.try_enter() else { return false };
            if self.failure.check().is_err() {
                return false;
            }
            // What could not be done now is done by the next walk.
            self.tell_expiry(self.expire_bucket(table, walk.bucket, &judgement).map(drop));
            walk.bucket += 1;
        }
        if walk.bucket < BUCKETS {
            return true;
        }
        (walk.bucket, walk.ended) = (0, Some(Instant::now()));
        false
    }

    /// A failure that ends writes is told to those who write; a full store, to those who ask how it
    /// is.
    fn tell_expiry(&self, outcome: Result<()>) {
        match outcome {
            Err(error) if error.kind == ErrorKind::StoreFull => self.note_refusal(&error),
            // The table is gone, or what it needs cannot be read: callers are told.
            _ => {}
        }
    }

    /// Rows fill what the log may hold: new ones need the room of those that are due.
    fn is_pressed(&self) -> bool {
        self.record_bytes.load(Relaxed) > self.record_bytes_max / 10 * 9
    }
}

impl Walk {
    fn new(table: &Table) -> Self {
        Self { expiry: table.expiry(), bucket: 0, ended: None, came_to: None }
    }

    /// Whether a walk can find more than the last one.
    fn is_worth_it(&self, (steps, bytes): CameTo) -> bool {
        let Some(last) = self.came_to else { return true };
        match self.expiry {
            Some(Expiry::After { .. }) => true,
            Some(Expiry::AfterSteps { steps: span }) => {
                steps.abs_diff(last.0) >= (span / WALKS_AN_AGE).max(1)
            }
            Some(Expiry::BelowNorm { .. }) => bytes != last.1,
            None => false,
        }
    }
}

fn came_to(table: &Table) -> CameTo {
    let steps = table.steps.lock().as_ref().and_then(|steps| steps.now());
    (steps.unwrap_or(0), table.counters.bytes_updated.load(Relaxed))
}

fn rest_of(table: &Table) -> Duration {
    match table.expiry() {
        Some(Expiry::After { seconds }) => {
            Duration::from_millis(seconds * 1000 / WALKS_AN_AGE).clamp(PERIOD, REST_MAX)
        }
        _ => REST_MIN,
    }
}
