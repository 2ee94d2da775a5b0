//! A server's file of a checkpoint: all rows as of one moment, while calls go on.
//!
//! The moment is a call that touches every stripe and changes nothing. Once it has passed a stripe,
//! whoever is about to change a row that was not copied yet leaves what it was (`table/kept.rs`);
//! the copier takes the rest from where it lies, group by group of buckets. See docs/adr/0030.

mod copy;
mod delta;
mod moment;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, RwLock, RwLockReadGuard};

use self::copy::Copier;
use self::moment::Moment;
use super::engine::Engine;
use super::pressure::PATIENCE;
use crate::checkpoint::{
    self, open_shard, shard_file, shard_path, Checkpoint, Client, Progress, SavedTable,
    ShardSummary, ShardWriter, Tail, LINKS_MAX,
};
use crate::error::{Error, Result};

/// Most of DRAM that rows may take which were changed before they were copied: 1 / this.
const KEPT_SHARE: u64 = 64;
const KEPT_MIN: u64 = 256 << 10;
const KEPT_MAX: u64 = 64 << 20;
/// How often a checkpoint begins anew, of which a table was dropped meanwhile.
const ATTEMPTS: usize = 5;

/// What a checkpoint on its way shares with the calls.
#[derive(Default)]
pub(super) struct Saving {
    /// Held by the one checkpoint.
    running: Mutex<()>,
    /// Bytes of rows that were kept and are not written yet.
    kept: Arc<AtomicU64>,
    /// Bytes at which calls wait; 0: no checkpoint is on its way.
    limit: AtomicU64,
    waiting: Mutex<()>,
    has_room: Condvar,
    /// Held by training reads while they run, and alone while the moment passes the stripes.
    pub(super) training_reads: RwLock<()>,
    /// The earliest date that a training read notes from now on: that of the opening, raised at
    /// each moment, so that whatever is counted behind it has a later date.
    date_min: AtomicU64,
}

impl Saving {
    /// Of a store that is opened at this date.
    pub(super) fn new(opened: u64) -> Self {
        Self { date_min: AtomicU64::new(opened), ..Self::default() }
    }

    /// The date that a training read notes, where the clock says `now`. It never goes back.
    pub(super) fn date(&self, now: u64) -> u64 {
        now.max(self.date_min.load(Relaxed))
    }

    /// Calls that change rows wait here while too many were kept. The copier writes those first.
    pub(super) fn wait_for_room(&self) {
        if !self.is_full() {
            return;
        }
        let deadline = Instant::now() + PATIENCE;
        let mut waiting = self.waiting.lock();
        while self.is_full() {
            if self.has_room.wait_until(&mut waiting, deadline).timed_out() {
                return;
            }
        }
    }

    fn is_full(&self) -> bool {
        let limit = self.limit.load(Relaxed);
        limit > 0 && self.kept.load(Relaxed) > limit
    }

    /// Until it is dropped no moment passes.
    pub(super) fn training_read(&self) -> RwLockReadGuard<'_, ()> {
        self.training_reads.read()
    }

    fn set_limit(&self, bytes: u64) {
        self.limit.store(bytes, Relaxed);
        self.tell();
    }

    /// Calls that wait look again.
    fn tell(&self) {
        let _waiting = self.waiting.lock();
        self.has_room.notify_all();
    }
}

/// What is asked of one server.
#[derive(Debug, Clone)]
pub struct SaveRequest {
    /// Directory of checkpoints.
    pub path: PathBuf,
    /// The checkpoint, which was begun.
    pub id: String,
    /// The one to build on, if that is possible.
    pub parent: Option<String>,
    /// Bytes a second; 0: as fast as it goes.
    pub rate: u64,
}

/// The file of the parent, and of what moment it is.
struct Parent {
    id: String,
    tail: Tail,
}

impl Engine {
    /// Begins a checkpoint in `path`. Returns its id and the one to build on.
    pub(super) fn begin_checkpoint(
        &self,
        path: &Path,
        is_full: bool,
    ) -> Result<(String, Option<String>)> {
        let (id, newest) = checkpoint::begin(path, self.clock.date_ms())?;
        let fits = |newest: &Checkpoint| chain_length(path, newest) < LINKS_MAX;
        let parent = newest.filter(|newest| !is_full && fits(newest));
        Ok((id, parent.map(|parent| parent.id)))
    }

    pub(super) fn save(&self, request: &SaveRequest, progress: &Progress) -> Result<ShardSummary> {
        let Some(_running) = self.saving.running.try_lock() else {
            return Err(Error::unavailable(
                "a checkpoint of this server is on its way already; try again when it is done",
            ));
        };
        // What is counted must be known.
        self.load_rest()?;
        let parent = self.parent_of(request);
        for _ in 1..ATTEMPTS {
            if let Some(summary) = self.save_once(request, parent.as_ref(), progress)? {
                return Ok(summary);
            }
        }
        self.save_once(request, parent.as_ref(), progress)?.ok_or_else(|| {
            Error::unavailable(
                "tables were dropped, or damaged rows given up, whenever a checkpoint was made; \
                 make one while that rests",
            )
        })
    }

    /// The parent's file of this server, if a delta on it would be right: of this store, which has
    /// lost nothing since.
    fn parent_of(&self, request: &SaveRequest) -> Option<Parent> {
        let id = request.parent.as_ref()?;
        let (all, _) = checkpoint::checkpoints(&request.path).ok()?;
        let parent = all.into_iter().find(|checkpoint| checkpoint.id == *id)?;
        let name = shard_path(&request.path, id, self.config.shard);
        let summary = parent.shards.iter().find(|summary| name.ends_with(&summary.file))?;
        let tail = open_shard(&request.path, id, summary).ok()?.tail;
        self.fits(&tail).then(|| Parent { id: id.clone(), tail })
    }

    /// Whether what changed since then can be told.
    fn fits(&self, tail: &Tail) -> bool {
        let has_lost = {
            let file = self.superblock.lock();
            let known = file.current();
            tail.store != store_name(known.uuid) || known.history.has_lost_since(tail.sequence)
        };
        let is_told = !has_lost && self.refusal(tail.sequence).is_none();
        // Counts alone are told by the date.
        is_told && tail.seconds < self.saving.date_min.load(Relaxed)
    }

    /// `None`: it must begin anew.
    fn save_once(
        &self,
        request: &SaveRequest,
        parent: Option<&Parent>,
        progress: &Progress,
    ) -> Result<Option<ShardSummary>> {
        let path = shard_path(&request.path, &request.id, self.config.shard);
        let writer = ShardWriter::create(&path)?;
        let kept_max = (self.config.dram_bytes / KEPT_SHARE).clamp(KEPT_MIN, KEPT_MAX);
        // Rows give way for what is kept, and for the rows of two bundles.
        let _memory = self.ledger.hold(
            crate::ledger::Kind::Buffers,
            kept_max + 2 * copy::bundle_bytes(self.config.dram_bytes) as u64,
        );
        let moment = self.take_moment(parent, kept_max)?;
        let mut copier = Copier::new(self, &moment, writer, request.rate, progress);
        if !copier.run()? {
            return Ok(None);
        }
        let writer = copier.into_writer();
        let tail = self.tail_of(&moment, parent);
        // Behind the moment's end calls keep nothing any more.
        drop(moment);
        // What was told is whole only if nothing of it was forgotten meanwhile.
        let is_delta = tail.tables.iter().any(|table| table.since.is_some());
        if is_delta && parent.is_some_and(|parent| !self.fits(&parent.tail)) {
            drop(writer);
            return self.save_once(request, None, progress);
        }
        let (bytes, crc) = writer.finish(&tail)?;
        let tables = tail.tables.iter().map(|t| (t.spec.name.clone(), t.rows)).collect();
        let file = shard_file(self.config.shard);
        Ok(Some(ShardSummary { file, bytes, crc, is_delta, tables }))
    }

    fn tail_of(&self, moment: &Moment<'_>, parent: Option<&Parent>) -> Tail {
        let names: std::collections::HashMap<_, _> =
            moment.tables.iter().map(|saved| (saved.table.id, &saved.spec.name)).collect();
        let clients = moment.clients.iter().filter_map(|(client_id, steps)| {
            let named = |(id, &step)| names.get(id).map(|name| ((*name).clone(), step));
            let mut steps: Vec<_> = steps.iter().filter_map(named).collect();
            steps.sort_unstable();
            (!steps.is_empty()).then(|| Client { client_id: client_id.clone(), steps })
        });
        let tables = moment.tables.iter().map(|saved| SavedTable {
            id: saved.table.id,
            spec: saved.spec.clone(),
            rows: saved.rows,
            since: saved.taken.since.map(|since| since.sequence),
        });
        Tail {
            store: store_name(self.superblock.lock().current().uuid),
            sequence: moment.sequence,
            seconds: moment.seconds,
            incarnation: moment.incarnation,
            shard: self.config.shard,
            parent: parent.map(|parent| parent.id.clone()),
            tables: tables.collect(),
            clients: clients.collect(),
        }
    }
}

/// How many checkpoints one is built on, with itself.
fn chain_length(path: &Path, checkpoint: &Checkpoint) -> usize {
    let (all, _) = checkpoint::checkpoints(path).unwrap_or_default();
    let mut length = 1;
    let mut parent = checkpoint.parent.as_deref();
    while let Some(id) = parent.filter(|_| length < LINKS_MAX) {
        length += 1;
        parent = all.iter().find(|other| other.id == id).and_then(|other| other.parent.as_deref());
    }
    length
}

fn store_name(uuid: u128) -> String {
    format!("{uuid:032x}")
}

/// Pause between two looks of who waits.
const LOOK: Duration = Duration::from_millis(5);
