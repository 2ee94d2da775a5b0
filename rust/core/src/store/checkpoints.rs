//! The verbs of checkpoints: part of the door.

use std::path::Path;

use super::{RestoreRequest, Restored, SaveRequest, Store};
use crate::checkpoint::{Progress, ShardSummary};
use crate::error::Result;

impl Store {
    /// Begins a checkpoint in the directory `path`, which is made if absent. Returns its id, and
    /// the one that it can be a delta on; `is_full`: none.
    ///
    /// # Errors
    /// `Config` if the directory cannot be used.
    pub fn begin_checkpoint(&self, path: &Path, is_full: bool) -> Result<(String, Option<String>)> {
        let _call = self.engine.enter_reading()?;
        self.engine.begin_checkpoint(path, is_full)
    }

    /// Writes this store's file of a checkpoint: all tables, settings and steps as of one moment,
    /// while calls go on. Ends soon, with an error, when the store is being closed. Calls that
    /// change rows wait while more of these than 1/64 of DRAM is not written yet.
    ///
    /// # Errors
    /// `Unavailable` if another one is on its way, or it was cancelled; `Corruption` naming a row
    /// that cannot be read; `StoreFull` if the directory's file system is full.
    pub fn save(&self, request: &SaveRequest, progress: &Progress) -> Result<ShardSummary> {
        let _call = self.engine.enter()?;
        self.engine.save(request, progress)
    }

    /// Reads tables of a checkpoint, of all servers' files what this one owns, and checks them. No
    /// call finds them until `commit_restore`. Log and DRAM must have room for them beside those
    /// that they replace.
    ///
    /// # Errors
    /// `BadInput` if there is no such checkpoint, `TableNotFound`, `TableMismatch` naming each
    /// difference, `Corruption` naming a file; `StoreFull`. Nothing has changed then.
    pub fn stage_restore(&self, request: &RestoreRequest, progress: &Progress) -> Result<Restored> {
        let _call = self.engine.enter()?;
        self.engine.stage_restore(request, progress)
    }

    /// The tables that were read replace those of their names, all at once; durable when it
    /// returns. Handles go on: an old id names the new table.
    ///
    /// # Errors
    /// `BadInput` if no restore waits for it; `StoreFull`.
    pub fn commit_restore(&self) -> Result<()> {
        let _call = self.engine.enter()?;
        self.engine.commit_restore()
    }

    /// Gives up what was read and not committed, if anything was.
    ///
    /// # Errors
    /// `Unavailable` when the device failed.
    pub fn give_up_restore(&self) -> Result<()> {
        let _call = self.engine.enter()?;
        self.engine.give_up_restore()
    }
}
