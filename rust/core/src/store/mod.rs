//! The verbs of a store, over its tables. The door of the engine: everything below is private.
//!
//! `read`, `stage`, `mutate` and `change` hold the walks, `order` and `running` their one order,
//! `fetch` the reads, `catalog` the tables, `recovery` opening and closing, `maintenance` the
//! thread that keeps journal and log within their caps; `save` and `restore` are checkpoints.

mod ahead;
mod candidates;
mod catalog;
mod change;
mod changes;
mod checkpoint;
mod checkpoints;
mod compaction;
mod config;
mod damaged;
mod demotion;
mod engine;
mod expiry;
mod fetch;
mod flights;
mod image;
mod inspect;
mod load;
mod loading;
mod maintenance;
mod merged;
mod mutate;
mod order;
mod pass;
mod peek;
mod pooled;
mod pressure;
mod read;
mod recent;
mod recovery;
mod replay;
mod rescue;
mod restore;
mod revisit;
mod running;
mod save;
mod scatter;
mod scrub;
mod session;
mod sizing;
mod source;
mod stage;
mod statistics;
mod stats;
mod tail;
#[cfg(test)]
mod tests;
mod unadmitted;
mod walk;
mod whole;
mod window;

use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::thread::JoinHandle;

use parking_lot::Mutex;

pub use self::changes::{
    ChangesCost, ChangesEnd, ChangesPage, ChangesPiece, ChangesQuery, Cursor, Detail, PageQuery,
    Tell,
};
pub use self::config::{ColdConfig, StoreConfig};
pub use self::damaged::{Damaged, Fate};
use self::engine::Engine;
pub use self::inspect::{Inspected, RowTier};
pub use self::pooled::{PooledBatch, POOL_BYTES};
pub use self::restore::{RestoreRequest, Restored};
pub use self::save::SaveRequest;
pub use self::scatter::Scatter;
pub use self::scrub::Scrubbed;
pub use self::sizing::{needs, Needs};
pub use self::statistics::Statistics;
pub use self::whole::Import;
use crate::error::{ErrorKind, Result};
use crate::failure::Health;
use crate::spec::{TableChange, TableSpec};
use crate::types::{Push, TableId};

/// A table as the store knows it.
#[derive(Debug, Clone)]
pub struct TableInfo {
    /// Names the table in every verb.
    pub id: TableId,
    /// The stored spec, live settings included.
    pub spec: TableSpec,
    /// Live settings in which an asked spec differs.
    pub warnings: Vec<String>,
}

/// One table's part of a `lookup`.
pub struct LookupBatch<'a> {
    /// Table.
    pub table: TableId,
    /// Keys; repeats are allowed and cost a probe each.
    pub keys: &'a [u64],
    /// float32[n, dim], written whole: absent keys give zeros.
    pub rows: &'a mut [f32],
    /// Empty, or n bytes: 1 where the key has a row.
    pub found: &'a mut [u8],
}

/// One table's part of a `lookup_or_insert`.
pub struct InsertBatch<'a> {
    /// Table.
    pub table: TableId,
    /// Keys; repeats are allowed.
    pub keys: &'a [u64],
    /// Empty (one each), or n counts.
    pub counts: &'a [u32],
    /// float32[n, dim], written whole.
    pub rows: &'a mut [f32],
}

/// One table's part of an `apply_gradients`.
pub struct GradientBatch<'a> {
    /// Table.
    pub table: TableId,
    /// Keys; repeats are summed in order before the optimizer runs.
    pub keys: &'a [u64],
    /// float32[n, dim].
    pub gradients: &'a [f32],
}

/// The rows of an `assign`.
pub struct Assign<'a> {
    /// Table.
    pub table: TableId,
    /// Keys; of repeats the last wins.
    pub keys: &'a [u64],
    /// float32[n, dim].
    pub rows: &'a [f32],
}

/// What became of a push.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PushOutcome {
    /// Applied now.
    Applied,
    /// Had been applied before, and is whole when this is returned; nothing changed now.
    Duplicate,
}

/// Counters by the names of the public API, at about one moment.
#[derive(Debug)]
pub struct Snapshot {
    /// Sums over all tables, and the limits.
    pub store: Vec<(&'static str, u64)>,
    /// Of each table, in order of the names; the same counters for all.
    pub tables: Vec<(String, Vec<(&'static str, u64)>)>,
}

/// A set of tables in one data directory. All verbs take `&self` and may be called from any
/// thread.
pub struct Store {
    engine: Arc<Engine>,
    maintenance: Mutex<Option<JoinHandle<()>>>,
}

impl Store {
    /// Opens the directory, creating it if absent, and recovers what was acknowledged.
    ///
    /// # Errors
    /// `Config` for a setting out of range or a directory that cannot be used; `Corruption` for
    /// damage before the known end of the store.
    pub fn open(config: StoreConfig) -> Result<Self> {
        let engine = Arc::new(Engine::open(config)?);
        let maintenance = Mutex::new(Some(maintenance::start(engine.clone())?));
        engine.start_loading()?;
        engine.start_expiring()?;
        engine.expiring.ask();
        Ok(Self { engine, maintenance })
    }

    /// Whether the directory holds a store, open or not. Changes nothing.
    pub fn exists(path: &std::path::Path) -> bool {
        crate::directory::holds_store(path)
    }

    /// The configuration it was opened with.
    pub fn config(&self) -> &StoreConfig {
        &self.engine.config
    }

    /// Meets a session; a new session of the same `client_id` takes over from the old one, whose
    /// later calls fail. Returns the session's last applied push number, 0 if none. Only a takeover
    /// costs a journal entry: other sessions are journaled with their first push.
    ///
    /// # Errors
    /// `Unavailable` when the session was taken over.
    pub fn attach(&self, session: u64, client_id: &str) -> Result<u64> {
        let _call = self.engine.enter()?;
        self.engine.attach(session, client_id)
    }

    /// Creates the table, or opens an equal one.
    ///
    /// # Errors
    /// `BadInput`, `TableMismatch`, `StoreFull`.
    pub fn create_table(&self, spec: &TableSpec) -> Result<TableInfo> {
        let _call = self.engine.enter()?;
        self.engine.create_table(spec)
    }

    /// Finds a table by name.
    ///
    /// # Errors
    /// `TableNotFound`.
    pub fn table(&self, name: &str) -> Result<TableInfo> {
        let _call = self.engine.enter_reading()?;
        self.engine.find_table(name)
    }

    /// Names of all tables, sorted.
    pub fn tables(&self) -> Vec<String> {
        self.engine.catalog.read().by_name.keys().cloned().collect()
    }

    /// Drops a table and all its rows.
    ///
    /// # Errors
    /// `TableNotFound`.
    pub fn drop_table(&self, name: &str) -> Result<()> {
        let _call = self.engine.enter()?;
        self.engine.drop_table(name)
    }

    /// The stored spec of a table.
    ///
    /// # Errors
    /// `TableNotFound` (also for a dropped table).
    pub fn spec(&self, table: TableId) -> Result<TableSpec> {
        let _call = self.engine.enter_reading()?;
        Ok(self.engine.table(table)?.spec())
    }

    /// Whether the table gives every key that is read for training a row.
    ///
    /// # Errors
    /// `TableNotFound`.
    pub fn admits_all(&self, table: TableId) -> Result<bool> {
        Ok(self.engine.table(table)?.admission().is_none())
    }

    /// Changes live settings. Rows above a lower DRAM cap have left when it returns.
    ///
    /// # Errors
    /// `TableNotFound`, `BadInput`; `StoreFull` when the settings are stored, but the log has no
    /// room for the rows, or the index alone passes the cap.
    pub fn alter(&self, table: TableId, change: &TableChange) -> Result<()> {
        let _call = self.engine.enter()?;
        self.engine.alter(table, change)
    }

    /// Reads rows; never inserts, changes no statistics.
    ///
    /// # Errors
    /// `TableNotFound`, `BadInput` for a wrong length, `Corruption` for a damaged row.
    pub fn lookup(&self, batches: &mut [LookupBatch<'_>]) -> Result<()> {
        let _call = self.engine.enter_reading()?;
        self.again(|| self.engine.lookup(batches))
    }

    /// As `lookup`, if it need not wait: for a device, or for another call that may wait for one.
    /// Else false, and nothing that was written to the batches counts. For threads that must not
    /// stand still.
    ///
    /// # Errors
    /// As `lookup`.
    pub fn try_lookup(&self, batches: &mut [LookupBatch<'_>]) -> Result<bool> {
        let Some(_call) = self.engine.try_enter()? else { return Ok(false) };
        self.again(|| self.engine.try_lookup(batches))
    }

    /// Reads rows for training: inserts absent keys at their initial row, counts, marks last use. A
    /// key that its table does not admit yet gets no row: its initial row is the answer.
    ///
    /// # Errors
    /// As `lookup`, and `StoreFull`.
    pub fn lookup_or_insert(&self, batches: &mut [InsertBatch<'_>]) -> Result<()> {
        let _call = self.engine.enter()?;
        self.again(|| self.engine.lookup_or_insert(batches))
    }

    /// As `lookup`, of keys of which many repeat: each is looked up once. Costs a few nanoseconds
    /// a key, and until it returns at most 24 bytes that are not counted as the store's.
    ///
    /// # Errors
    /// As `lookup`.
    pub fn lookup_merged(&self, batches: &mut [LookupBatch<'_>]) -> Result<()> {
        let _call = self.engine.enter_reading()?;
        self.again(|| self.engine.lookup_merged(batches))
    }

    /// As `lookup_or_insert`, of keys of which many repeat: their counts are summed. Costs as
    /// `lookup_merged`.
    ///
    /// # Errors
    /// As `lookup_or_insert`.
    pub fn lookup_or_insert_merged(&self, batches: &mut [InsertBatch<'_>]) -> Result<()> {
        let _call = self.engine.enter()?;
        self.again(|| self.engine.lookup_or_insert_merged(batches))
    }

    /// Runs the optimizer once per unique key. All or nothing. Keys without a row are created
    /// first; in a table with an admission they are left out, and counted.
    ///
    /// # Errors
    /// `TableNotFound`, `BadInput` (lengths, non-finite gradients, steps that do not grow),
    /// `StoreFull`, `Unavailable`.
    pub fn apply_gradients(
        &self,
        push: Push,
        batches: &[GradientBatch<'_>],
    ) -> Result<PushOutcome> {
        let _call = self.engine.enter()?;
        self.again(|| self.engine.apply_gradients(push, batches))
    }

    /// Sets values; absent keys get fresh slots, present ones keep theirs.
    ///
    /// # Errors
    /// As `apply_gradients`.
    pub fn assign(&self, push: Push, assign: &Assign<'_>) -> Result<PushOutcome> {
        let _call = self.engine.enter()?;
        self.again(|| self.engine.assign(push, assign))
    }

    /// Changes values by operands, in the order of the call; absent keys begin at their initial
    /// row, slots stay. A row that would not stay finite keeps its value and is counted.
    ///
    /// # Errors
    /// As `apply_gradients`; `BadInput` for a division by zero, too.
    pub fn scatter(&self, push: Push, scatter: &Scatter<'_>) -> Result<PushOutcome> {
        let _call = self.engine.enter()?;
        self.again(|| self.engine.scatter(push, scatter))
    }

    /// A page of whole rows in cells of the key space, as `changes_page` gives them, of about so
    /// many bytes; values alone, or with slots. No visit.
    ///
    /// # Errors
    /// As `changes_page`.
    pub fn export_rows(
        &self,
        table: TableId,
        cells: std::ops::Range<u64>,
        with_slots: bool,
        bytes: u64,
    ) -> Result<ChangesPage> {
        let _call = self.engine.enter_reading()?;
        self.engine.export_rows(table, cells, with_slots, bytes)
    }

    /// Sets rows with their statistics, and with their slots if they come along; else absent keys
    /// get fresh slots, and present ones keep theirs.
    ///
    /// # Errors
    /// As `apply_gradients`.
    pub fn import_rows(&self, push: Push, import: &Import<'_>) -> Result<PushOutcome> {
        let _call = self.engine.enter()?;
        self.again(|| self.engine.import_rows(push, import))
    }

    /// Removes rows, slots and statistics; returns how many there were. A repeated push removes
    /// nothing and returns what the first one did, if that is one of its session's last 256
    /// removals; else 0. In mode `none` removals of a process that was killed are not known.
    ///
    /// # Errors
    /// `TableNotFound`, `Unavailable`.
    pub fn remove(&self, push: Push, table: TableId, keys: &[u64]) -> Result<u64> {
        let _call = self.engine.enter()?;
        self.again(|| self.engine.remove(push, table, keys))
    }

    /// One step of a walk over a table that removes what its expiry says, as of `now` (Unix
    /// seconds; `None`: the store's clock, on which a jump of the date, or time in which the store
    /// was closed, passes no more than twice as fast as time). Judges buckets from `bucket` on for
    /// about a quarter of a second; returns how many rows went and where the next step begins, 4096
    /// at the end. A row that is read for training or pushed before it goes stays. A row on NVMe
    /// costs a read, of a background read's kind; none moves. Nothing expires in a table without
    /// an expiry.
    ///
    /// # Errors
    /// `TableNotFound`, `StoreFull`, `Unavailable`.
    pub fn expire(&self, table: TableId, bucket: u32, now: Option<u64>) -> Result<(u64, u32)> {
        let _call = self.engine.enter()?;
        self.engine.expire(table, bucket, now)
    }

    /// Rows of these keys will be needed: they are brought into DRAM in the background. Returns at
    /// once; a hint, which a full queue drops. Never inserts.
    ///
    /// # Errors
    /// `TableNotFound`.
    pub fn look_ahead(&self, table: TableId, keys: &[u64]) -> Result<()> {
        let _call = self.engine.enter()?;
        self.engine.look_ahead(table, keys)
    }

    /// Brings rows into DRAM, and returns when they are there; never inserts.
    ///
    /// # Errors
    /// `TableNotFound`.
    pub fn prefetch(&self, table: TableId, keys: &[u64]) -> Result<()> {
        let _call = self.engine.enter_reading()?;
        self.engine.prefetch(table, keys)
    }

    /// Rows of a table, in all tiers.
    ///
    /// # Errors
    /// `TableNotFound`.
    pub fn len(&self, table: TableId) -> Result<u64> {
        let _call = self.engine.enter_reading()?;
        self.engine.len(table)
    }

    /// Appends the keys of buckets [bucket, next) to `keys` and returns next; 4096 ends the walk.
    /// Keys that come or go meanwhile may or may not be seen. Reads footers, not rows.
    ///
    /// # Errors
    /// `TableNotFound`, `Corruption`.
    pub fn keys(&self, table: TableId, bucket: u32, keys: &mut Vec<u64>) -> Result<u32> {
        let _call = self.engine.enter_reading()?;
        self.engine.keys(table, bucket, keys)
    }

    /// Tells what changed in some buckets of a table since a sequence, with values on request: all
    /// rows that were made or changed and all keys that were removed, at least once each. Returns
    /// up to which sequence that holds, for the next query of these buckets, and what it has cost.
    /// With `since` None all rows are told. Costs what changed, and the dirty rows of a stripe.
    ///
    /// # Errors
    /// `TableNotFound`; `BadInput` for buckets that there are not; `Corruption` naming a row that
    /// cannot be read; `StoreFull` when there is no memory for it; what `tell` returns.
    pub fn changes(
        &self,
        query: &ChangesQuery,
        tell: &mut Tell<'_>,
    ) -> Result<(ChangesEnd, ChangesCost)> {
        let _call = self.engine.enter_reading()?;
        self.engine.tell_changes(query, tell)
    }

    /// As `changes`, as much as fits a message; the next page begins at its `next`.
    ///
    /// # Errors
    /// Those of `changes`; `Cursor` when changes since then cannot be told any more.
    pub fn changes_page(&self, query: &PageQuery) -> Result<ChangesPage> {
        let _call = self.engine.enter_reading()?;
        self.engine.changes_page(query)
    }

    /// Where the store is now: whoever knows all up to here, and asks for the changes since, misses
    /// none. Waits for the turns of calls that are ordered by now.
    ///
    /// # Errors
    /// `Unavailable`.
    pub fn cursor(&self) -> Result<Cursor> {
        let _call = self.engine.enter_reading()?;
        self.engine.cursor()
    }

    /// Counters of one table, by the names of the public API.
    ///
    /// # Errors
    /// `TableNotFound`.
    pub fn table_stats(&self, table: TableId) -> Result<Vec<(&'static str, u64)>> {
        let _call = self.engine.enter_reading()?;
        self.engine.table_stats(table)
    }

    /// Sums over all tables, and the limits. Device counters are those of the files.
    pub fn stats(&self) -> Vec<(&'static str, u64)> {
        self.engine.snapshot().store
    }

    /// Counters of the store and of every table. Each stripe is locked once, while a few numbers
    /// are added for each table.
    pub fn snapshot(&self) -> Snapshot {
        self.engine.snapshot()
    }

    /// Rows as they are stored, in the order of the keys; absent keys have no tier. No visit:
    /// counts and last use stay as they are, and no row moves. At most 65,536 keys; the rows on
    /// NVMe cost a read each, counted as in the background.
    ///
    /// # Errors
    /// `TableNotFound`, `BadInput` for more keys, `Unavailable` when a read fails. A damaged row is
    /// told in its place.
    pub fn inspect(&self, table: TableId, keys: &[u64]) -> Result<Vec<Inspected>> {
        let _call = self.engine.enter_reading()?;
        self.engine.inspect(table, keys)
    }

    /// What is known of rows beside their numbers, in the order of the keys. Costs as `inspect`.
    ///
    /// # Errors
    /// As `inspect`; `Corruption` for a damaged row.
    pub fn statistics(&self, table: TableId, keys: &[u64]) -> Result<Statistics> {
        let _call = self.engine.enter_reading()?;
        self.engine.statistics(table, keys)
    }

    /// One step of a scrub: reads and checks what lies on the device from `from` on (0: from the
    /// beginning), at least a segment, until `bytes` were read. Damaged segments are emptied: what
    /// is sound, or in DRAM, is written elsewhere. Rows that were never written are not looked at;
    /// `flush` before, for all.
    ///
    /// # Errors
    /// `Unavailable` when the store was closed or broke off.
    pub fn scrub(&self, from: u64, bytes: u64) -> Result<Scrubbed> {
        let _call = self.engine.enter_reading()?;
        self.engine.scrub_step(from, bytes)
    }

    /// Scrubs in the background from now on, so many bytes a second; 0 ends it.
    ///
    /// # Errors
    /// `Unavailable` if no thread can be started.
    pub fn set_scrub_rate(&self, bytes_s: u64) -> Result<()> {
        let _call = self.engine.enter_reading()?;
        self.engine.set_scrub_rate(bytes_s)
    }

    /// What was found damaged since the last time, by anyone; and how many findings before that
    /// were left out, since nobody asked. Each is told once.
    pub fn take_damaged(&self) -> (Vec<Damaged>, u64) {
        self.engine.take_damaged()
    }

    /// Whether all verbs are served, and why not. Costs two short locks; never waits for a device.
    pub fn health(&self) -> Health {
        self.engine.health()
    }

    /// How rows are read from NVMe, in words; a warning where the best way was refused.
    pub fn io_description(&self) -> String {
        self.engine.tier.log.io_description()
    }

    /// Returns when all that was acknowledged before is on the device.
    ///
    /// # Errors
    /// `Unavailable` when the device failed.
    pub fn flush(&self) -> Result<()> {
        let _call = self.engine.enter()?;
        self.engine.flush()
    }

    /// Does a call again whose table was replaced while it ran.
    fn again<T>(&self, mut call: impl FnMut() -> Result<T>) -> Result<T> {
        let before = self.engine.replacements.load(Ordering::Acquire);
        match call() {
            Err(error)
                if error.kind == ErrorKind::TableNotFound
                    && self.engine.replacements.load(Ordering::Acquire) != before =>
            {
                call()
            }
            outcome => outcome,
        }
    }

    /// Refuses new calls, waits for those that run, writes all rows back and gives the directory
    /// up; later calls fail with `Unavailable`. Idempotent: a second one waits for the first.
    ///
    /// # Errors
    /// As `flush`.
    pub fn close(&self) -> Result<()> {
        let mut maintenance = self.maintenance.lock();
        let Some(thread) = maintenance.take() else { return Ok(()) };
        self.engine.ahead.stop();
        self.engine.scrub.stop();
        self.engine.expiring.stop();
        self.engine.loading.stop();
        // Calls may wait for room in the log: the maintenance thread goes last.
        self.engine.is_closing.store(true, Ordering::Relaxed);
        *self.engine.is_open.write() = false;
        maintenance::stop(&self.engine, thread);
        self.engine.close()
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // A caller that wants to know of failures calls `close` first.
        drop(self.close());
    }
}
