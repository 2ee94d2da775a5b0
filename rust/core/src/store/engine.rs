//! What the verbs and the maintenance thread share, and the small questions all of them ask.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, OnceLock};

use parking_lot::{Condvar, Mutex, RwLock, RwLockReadGuard};

use super::ahead::Ahead;
use super::candidates::CandidatesFile;
use super::config::StoreConfig;
use super::damaged::Untold;
use super::expiry::Expiring;
use super::flights::Flights;
use super::image::ImageFile;
use super::loading::Loading;
use super::order::Sequencer;
use super::recent::Recent;
use super::restore::Staging;
use super::running::Running;
use super::save::Saving;
use super::scrub::Scrub;
use super::session::Known;
use super::stats::Holds;
use crate::clock::Clock;
use crate::cold_directory::ColdDirectory;
use crate::directory::Directory;
use crate::error::{Error, ErrorKind, Result};
use crate::failure::{Failure, Health};
use crate::journal::Journal;
use crate::ledger::Ledger;
use crate::superblock::SuperblockFile;
use crate::table::{Stripe, Table, Tier};
use crate::types::{Durability, Sequence, TableId};

/// An open store.
pub(super) struct Engine {
    pub(super) config: StoreConfig,
    /// Given up, with its lock, by `close`.
    pub(super) directory: Mutex<Option<Directory>>,
    /// The same of the cold directory, if there is one.
    pub(super) cold: Mutex<Option<ColdDirectory>>,
    pub(super) tier: Tier,
    pub(super) stripes: Vec<Stripe>,
    pub(super) catalog: RwLock<Catalog>,
    pub(super) sequencer: Mutex<Sequencer>,
    /// Told when the sequencer's door is opened.
    pub(super) door: Condvar,
    /// Calls get sequences below this one: the superblock says so.
    pub(super) reserved: AtomicU64,
    /// Of the sequencer's sessions.
    pub(super) known_sessions: Known,
    pub(super) running: Running,
    pub(super) recent: Recent,
    pub(super) clock: Clock,
    /// Set once recovery has replayed it.
    pub(super) journal: Arc<OnceLock<Journal>>,
    pub(super) superblock: Mutex<SuperblockFile>,
    /// Bytes of the records of all rows, in any tier; bounded by `record_bytes_max`.
    pub(super) record_bytes: AtomicU64,
    pub(super) record_bytes_max: u64,
    /// Rows go down while live ones take this much of NVMe.
    pub(super) demotes_from: AtomicU64,
    /// And not before so many segments were begun.
    pub(super) demotes_again: AtomicU64,
    /// All memory that the store holds.
    pub(super) ledger: Arc<Ledger>,
    /// Look-ahead, and the reads that it and calls have at the device.
    pub(super) ahead: Ahead,
    pub(super) flights: Flights,
    pub(super) scrub: Scrub,
    pub(super) expiring: Expiring,
    /// What was found damaged, until it is told.
    pub(super) untold: Mutex<Untold>,
    pub(super) holds: Mutex<Holds>,
    /// What is missing of the index.
    pub(super) loading: Loading,
    /// The image of the index, if there is one.
    pub(super) image: Mutex<Option<ImageFile>>,
    pub(super) candidates: CandidatesFile,
    /// Held by every verb while it runs, so that `close` waits for those that are on their way.
    pub(super) is_open: RwLock<bool>,
    /// Calls that wait for the file system are given up.
    pub(super) is_closing: AtomicBool,
    pub(super) failure: Arc<Failure>,
    pub(super) wake: Wake,
    /// Journal files up to this generation are being written back; held during a checkpoint.
    pub(super) unfinished: Mutex<Option<u32>>,
    /// Held while a segment is compacted: by one thread at a time.
    pub(super) compacting: Mutex<()>,
    /// What a checkpoint on its way keeps.
    pub(super) saving: Saving,
    /// Tables that are filled from a checkpoint, and have replaced none yet.
    pub(super) staging: Mutex<Option<Staging>>,
    /// How often tables were replaced.
    pub(super) replacements: AtomicU64,
}

/// Tables by name and id.
#[derive(Default)]
pub(super) struct Catalog {
    pub(super) by_name: BTreeMap<String, TableId>,
    pub(super) by_id: HashMap<TableId, Arc<Table>>,
    pub(super) next_id: TableId,
    /// Sequence of the last change of tables that is in it.
    pub(super) as_of: Sequence,
    /// A table whose drop has its place in the order, and is not yet durable: reads find it.
    pub(super) leaving: Option<TableId>,
    /// Tables that are being filled: rows of them are kept, and no call finds them.
    pub(super) staged: HashSet<TableId>,
    /// Of ids that were given out, the table that has replaced theirs.
    pub(super) successors: HashMap<TableId, TableId>,
}

/// Tells the maintenance thread that there is work, and callers that there is room.
#[derive(Default)]
pub(super) struct Wake {
    pub(super) state: Mutex<WakeState>,
    pub(super) worker: Condvar,
    pub(super) callers: Condvar,
    /// Segments that were begun when compaction last came to an end.
    pub(super) begun_segments: AtomicU64,
}

#[derive(Default)]
pub(super) struct WakeState {
    pub(super) is_asked: bool,
    pub(super) is_stopping: bool,
}

impl Engine {
    /// The start of every verb that changes anything: fails when the store is closed or has failed.
    pub(super) fn enter(&self) -> Result<RwLockReadGuard<'_, bool>> {
        let call = self.enter_reading()?;
        self.failure.check().map(|()| call)
    }

    /// The start of every verb that only reads: rows are served although the device failed.
    pub(super) fn enter_reading(&self) -> Result<RwLockReadGuard<'_, bool>> {
        let is_open = self.is_open.read();
        if !*is_open {
            return Err(Error::unavailable("the store is closed; open it again"));
        }
        self.failure.check_reads().map(|()| is_open)
    }

    /// As `enter_reading`; `None` while the store is being closed.
    pub(super) fn try_enter(&self) -> Result<Option<RwLockReadGuard<'_, bool>>> {
        match self.is_open.try_read() {
            Some(is_open) if *is_open => self.failure.check_reads().map(|()| Some(is_open)),
            _ => Ok(None),
        }
    }

    /// Notes a failure after which nothing that is acknowledged would be sure to last.
    pub(super) fn fail(&self, error: &Error) {
        self.failure.stop_writes(error);
    }

    /// Notes an error of a call, if it was refused for want of room.
    pub(super) fn note_refusal(&self, error: &Error) {
        if error.kind == ErrorKind::StoreFull {
            self.failure.note_refusal(error);
        }
    }

    /// Whether all verbs are served, and why not.
    pub(super) fn health(&self) -> Health {
        if let Err(error) = self.check_devices() {
            self.fail(&error);
        }
        let log = &self.tier.log;
        match (self.failure.health(), log.no_space().or_else(|| log.cold_trouble())) {
            (Health::Ok, Some(error)) => Health::Degraded(error.message),
            (health, _) => health,
        }
    }

    /// Fails once a device has failed, also one that only a thread in the background has met.
    pub(super) fn check_devices(&self) -> Result<()> {
        self.tier.log.check()?;
        self.journal.get().map_or(Ok(()), Journal::check)
    }

    /// The table of this id, or what has replaced it.
    pub(super) fn table(&self, id: TableId) -> Result<Arc<Table>> {
        let catalog = self.catalog.read();
        let id = catalog.successors.get(&id).copied().unwrap_or(id);
        catalog.by_id.get(&id).cloned().ok_or_else(|| is_gone(id))
    }

    /// The table whose changes are asked for. What has replaced a table is another one, of which
    /// nothing is known to who knows that.
    pub(super) fn followed(&self, id: TableId, since: Option<Sequence>) -> Result<Arc<Table>> {
        since.map_or_else(|| self.table(id), |_| self.table_itself(id))
    }

    /// The table of this very id.
    pub(super) fn table_itself(&self, id: TableId) -> Result<Arc<Table>> {
        self.catalog.read().by_id.get(&id).cloned().ok_or_else(|| is_gone(id))
    }

    /// Whether a change may have a place in the order now: behind a drop it may not.
    pub(super) fn check_present(&self, id: TableId) -> Result<()> {
        let catalog = self.catalog.read();
        let is_present = catalog.by_id.contains_key(&id) && catalog.leaving != Some(id);
        is_present.then_some(()).ok_or_else(|| is_gone(id))
    }

    pub(super) fn journal(&self) -> &Journal {
        self.journal.get().expect("recovery sets the journal before any verb runs")
    }

    pub(super) fn is_journaled(&self) -> bool {
        self.config.durability != Durability::None
    }

    /// Bytes that one row of `table` takes on NVMe: its share of a page, and of a footer.
    pub(super) fn record_bytes_of(table: &Table) -> u64 {
        crate::log::footprint(table.floats)
    }
}

impl Wake {
    /// Lets callers that wait for room look again.
    pub(super) fn tell_callers(&self) {
        // Under the lock: whoever has looked waits by then.
        let _state = self.state.lock();
        self.callers.notify_all();
    }

    /// Asks the maintenance thread for a round.
    pub(super) fn ask(&self) {
        self.state.lock().is_asked = true;
        self.worker.notify_one();
    }
}

fn is_gone(id: TableId) -> Error {
    Error::table_not_found(format!(
        "table id {id} does not exist or was dropped; look its name up again"
    ))
}
