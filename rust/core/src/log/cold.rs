//! The volume on the slower disk: how it is opened beside the other, and how rows get there.
//!
//! A record is copied, then synced, and only then named by an index: so wherever the power is cut,
//! a row is in one place at least, and a disk that fails has taken nothing that counted. The caller
//! keeps to that order; of rows that changed meanwhile the copy is dead from the start. A copy
//! carries the sequence of its original: of the two either may be found at an opening.
#![allow(dead_code, reason = "no store opens a second volume yet")]

use std::sync::Arc;

use super::{recovery, Log, LogConfig, LogEnd, Record, Stream, Volume};
use crate::device::{self, Device};
use crate::error::Result;
use crate::types::{Place, TableId};

impl Log {
    /// Opens or creates the cold volume, before anything is read or appended. It notes its known
    /// end itself.
    ///
    /// # Errors
    /// As `open`.
    pub(crate) fn open_cold(&mut self, config: LogConfig) -> Result<()> {
        recovery::check(&config)?;
        let device = device::open(&config.path, config.queue_depth)?;
        self.open_cold_on(device, config)
    }

    pub(super) fn open_cold_on(
        &mut self,
        device: Box<dyn Device>,
        config: LogConfig,
    ) -> Result<()> {
        let anchor = Some(self.nvme.clone());
        self.cold = Some(Volume::open(device, config, LogEnd::default(), anchor)?);
        Ok(())
    }

    /// The volume on the slower disk, if there is one.
    pub(crate) fn cold(&self) -> Option<&Arc<Volume>> {
        self.cold.as_ref()
    }
}

/// Of the cold volume. One thread at a time.
impl Volume {
    /// Copies a row that is live, under the lock of the row: what removes it later then knows that
    /// there may be a copy. Waits for nothing if `wait_for_buffer` has returned; the stream is that
    /// of compaction for what is here already.
    ///
    /// # Errors
    /// `StoreFull` if no slot is free, `Unavailable` after the device failed.
    pub(crate) fn copy(
        &self,
        stream: Stream,
        table: TableId,
        record: &Record<'_>,
    ) -> Result<Place> {
        self.append(stream, table, record, false, true)
    }

    /// Returns when all copies are on the device and known to be: from now on an index may name
    /// them, and damage in them is told.
    ///
    /// # Errors
    /// `Unavailable` after the device failed, `StoreFull` while its file system is full.
    pub(crate) fn settle(&self) -> Result<()> {
        let end = self.sync()?;
        let mut file_header = self.file_header.lock();
        let (header, page) = &mut *file_header;
        if header.synced >= end.incarnation {
            return Ok(());
        }
        header.synced = end.incarnation;
        header.revision += 1;
        header.put(page);
        self.write(page, 0).and_then(|()| self.device_sync()).map_err(|error| self.fail(&error))
    }

    /// Brings freed slots back whose rows are in newer records, on either disk.
    ///
    /// # Errors
    /// As `settle`.
    pub(crate) fn recall(&self) -> Result<()> {
        self.check()?;
        self.reclaim().map_err(|error| self.fail(&error))
    }
}
