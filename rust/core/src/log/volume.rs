//! One file of the log on one disk: what its callers' threads and its writer thread share.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;

use parking_lot::{Condvar, Mutex};

use super::header::FileHeader;
use super::pins::Pins;
use super::rarity::Ageing;
use super::recovery;
use super::segment::OpenSegment;
use super::slots::Slots;
use super::victim::{Demand, Rounds};
use super::writer::State;
use super::{LogConfig, LogEnd};
use crate::device::{AlignedBuffer, Device, PAGE};
use crate::directory;
use crate::error::{Error, ErrorKind, Result};
use crate::types::Sequence;

/// See the module. Thread safe.
pub(crate) struct Volume {
    pub(super) config: LogConfig,
    pub(super) device: Box<dyn Device>,
    pub(super) slots: Slots,
    /// Slots that may be filled; the file may hold more if its cap was lowered.
    pub(super) slots_max: u32,
    pub(super) streams: [Mutex<Option<OpenSegment>>; 2],
    pub(super) state: Mutex<State>,
    /// What the choice of victims remembers.
    pub(super) rounds: Mutex<Rounds>,
    /// The same, of segments here that keep the marks of the other volume.
    pub(super) elder_rounds: Mutex<Rounds>,
    pub(super) ageing: Mutex<Ageing>,
    /// To the writer thread: the queue or `closing` changed.
    pub(super) work: Condvar,
    /// To appenders and syncers: a buffer or slot came back, a segment was written, or a failure.
    pub(super) progress: Condvar,
    /// Of all volumes: who looks at a place may meet a row of any.
    pub(super) pins: Arc<Pins>,
    /// Of the cold volume: that of the data directory.
    pub(super) anchor: Option<Arc<Volume>>,
    /// Held while slots are erased, so that one thread does it at a time.
    pub(super) file_header: Mutex<(FileHeader, AlignedBuffer)>,
    pub(super) failure: OnceLock<Error>,
    pub(super) refused: AtomicU64,
    pub(super) bytes_read: AtomicU64,
    pub(super) bytes_written: AtomicU64,
    pub(super) thread: Mutex<Option<JoinHandle<()>>>,
}

impl Volume {
    /// Recovers what the device holds and starts the writer thread. `anchor`: the volume beside
    /// which this is the cold one.
    pub(super) fn open(
        device: Box<dyn Device>,
        config: LogConfig,
        known: LogEnd,
        anchor: Option<Arc<Self>>,
    ) -> Result<Arc<Self>> {
        let volume = Arc::new(recovery::recover(device, config, known, anchor)?);
        let thread = std::thread::Builder::new()
            .name("hybridps-log".to_owned())
            .spawn({
                let volume = volume.clone();
                move || volume.write_segments()
            })
            .map_err(|e| Error::unavailable(format!("cannot start the log's thread: {e}")))?;
        *volume.thread.lock() = Some(thread);
        Ok(volume)
    }

    /// Writes what is sealed already, forgets the rest, joins the writer thread.
    pub(super) fn stop(&self) {
        if let Some(thread) = self.thread.lock().take() {
            self.close();
            // If it panicked, its message is out already and nobody waits for it any more.
            let _ = thread.join();
        }
    }

    /// `floor`: traces of removals up to this sequence are not needed any more.
    pub(super) fn demand(&self, is_pressed: bool, floor: Sequence) -> Demand {
        let segment_bytes = self.slots.segment_bytes;
        let capacity_bytes = u64::from(self.slots_max) * segment_bytes;
        Demand { segment_bytes, capacity_bytes, is_pressed, floor }
    }

    /// Cap of the file.
    pub(crate) fn capacity_bytes(&self) -> u64 {
        self.config.capacity_bytes
    }

    /// Size of a slot.
    pub(crate) fn segment_bytes(&self) -> u64 {
        self.slots.segment_bytes
    }

    /// Bytes of the file that are taken: whole slots.
    pub(crate) fn used_bytes(&self) -> u64 {
        let taken = u64::from(self.state.lock().roster.taken());
        PAGE as u64 + taken * self.config.segment_bytes
    }

    /// Bytes of rows that are live, and so of slots that compaction can never win.
    pub(crate) fn live_bytes(&self) -> u64 {
        self.slots.live_bytes()
    }

    /// Bytes that are written in taken slots; about what the file takes on the file system.
    pub(crate) fn allocated_bytes(&self) -> u64 {
        PAGE as u64 + self.state.lock().roster.written_bytes()
    }

    /// The first failure of the device, for ever.
    ///
    /// # Errors
    /// `Unavailable`.
    pub(crate) fn check(&self) -> Result<()> {
        self.failure.get().map_or(Ok(()), |error| Err(error.clone()))
    }

    /// Why segments cannot be written now, though their slots are within the cap: the file system
    /// has no space. It is tried again until there is some.
    pub(crate) fn no_space(&self) -> Option<Error> {
        self.state.lock().no_space.clone()
    }

    /// Slots that can be filled now.
    pub(crate) fn free_segments(&self) -> u32 {
        self.state.lock().roster.available()
    }

    /// Segments that were freed and whose slots are not free yet.
    pub(crate) fn freed_segments(&self) -> u32 {
        self.state.lock().roster.freed()
    }

    pub(super) fn bytes_read(&self) -> u64 {
        self.bytes_read.load(Ordering::Relaxed)
    }

    pub(super) fn bytes_written(&self) -> u64 {
        self.bytes_written.load(Ordering::Relaxed)
    }

    /// Remembers the first failure and wakes everyone who waits. A file system that is full is no
    /// failure: what could not be written is still in memory.
    pub(super) fn fail(&self, error: &Error) -> Error {
        if error.kind == ErrorKind::StoreFull {
            return error.clone();
        }
        let text = format!(
            "log {} has failed and takes no more rows until it is opened again: {}",
            self.device.path().display(),
            error.message
        );
        let first = self.failure.get_or_init(|| Error::unavailable(text)).clone();
        let _state = self.state.lock();
        self.progress.notify_all();
        first
    }

    pub(super) fn write(&self, bytes: &[u8], offset: u64) -> Result<()> {
        self.device.write_at(bytes, offset).map_err(|cause| {
            if directory::is_full(&cause) {
                return directory::failed_write(self.device.path(), &cause);
            }
            Error::io(&format!("write at offset {offset} of"), self.device.path(), &cause)
        })?;
        self.bytes_written.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    pub(super) fn device_sync(&self) -> Result<()> {
        self.device.sync().map_err(|e| Error::io("sync", self.device.path(), &e))
    }
}
