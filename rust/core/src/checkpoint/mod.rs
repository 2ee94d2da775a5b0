//! Checkpoints as files: what a server writes of its rows, and how they are found again.
//!
//! A directory holds checkpoints, each a directory of its own: a file a server, and a manifest.
//! Until it is whole it has another name, so whatever bears a checkpoint's name was once whole; and
//! every byte of it is under a checksum. Nothing here knows stores, or what rows mean. The formats
//! are written down in docs/checkpoint.md.

mod chain;
mod directory;
mod manifest;
mod prune;
mod reader;
mod tail;
mod verify;
mod writer;

pub(crate) use self::chain::{Chain, LINKS_MAX};
pub(crate) use self::directory::{begin, open_shard, shard_file, shard_path};
pub use self::directory::{checkpoints, publish};
pub use self::manifest::{Checkpoint, Draft, ShardSummary, TakenKind};
pub use self::prune::prune;
pub(crate) use self::tail::{BundleKind, Client, SavedTable, Tail};
pub(crate) use self::verify::count_differs;
pub use self::verify::verify;
pub(crate) use self::writer::ShardWriter;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use crate::error::{Error, Result};

/// How far a long piece of work has come; and whether it is to go on.
#[derive(Debug, Default)]
pub struct Progress {
    done: AtomicU64,
    total: AtomicU64,
    is_cancelled: AtomicBool,
}

impl Progress {
    /// Bytes that are done, and about how many there will be.
    pub fn bytes(&self) -> (u64, u64) {
        let done = self.done.load(Relaxed);
        (done, self.total.load(Relaxed).max(done))
    }

    /// The work ends soon, with an error.
    pub fn cancel(&self) {
        self.is_cancelled.store(true, Relaxed);
    }

    pub(crate) fn expect(&self, bytes: u64) {
        self.total.fetch_add(bytes, Relaxed);
    }

    pub(crate) fn add(&self, bytes: u64) {
        self.done.fetch_add(bytes, Relaxed);
    }

    /// # Errors
    /// `Unavailable` once it was cancelled.
    pub(crate) fn check(&self) -> Result<()> {
        match self.is_cancelled.load(Relaxed) {
            true => Err(Error::unavailable("the work was given up by its caller")),
            false => Ok(()),
        }
    }
}
