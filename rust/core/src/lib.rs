//! The engine of hybridps: KV-Variable tables whose rows live in DRAM while hot and on NVMe while
//! warm. No Python, no async, no sockets.
//!
//! Floor plan, from the door down: `store` (verbs) > `table` > `log`, `journal` > `device`;
//! `directory`, `superblock`, `manifest` keep what a store is; `os`, `types`, `sequence`, `error`,
//! `failure`, `history`, `ledger`, `arena`, `spec`, `expiry`, `layout`, `init`, `optimizer`,
//! `batch`, `clock`, `effort` are leaves that any room may use.

mod admission;
mod arena;
mod batch;
mod checkpoint;
mod clock;
mod cold_directory;
mod columns;
mod device;
mod directory;
mod effort;
mod error;
mod expiry;
mod failure;
mod history;
mod image;
mod index;
mod init;
mod journal;
mod layout;
mod ledger;
mod log;
mod manifest;
mod optimizer;
mod os;
mod prefetch;
mod scatter;
#[cfg(all(test, feature = "schedules"))]
#[path = "schedules_tests.rs"]
mod schedules;
#[cfg(test)]
mod scratch;
mod sequence;
mod spec;
mod store;
mod superblock;
mod sync;
mod table;
mod types;
mod vfs;

pub use admission::Admission;
pub use batch::{gather, sum_counts, sum_rows, Unique};
pub use checkpoint::{
    checkpoints, prune, publish, verify, Checkpoint, Draft, Progress, ShardSummary, TakenKind,
};
pub use error::{Error, ErrorKind, Result};
pub use expiry::Expiry;
pub use failure::Health;
pub use init::initial_row;
pub use optimizer::{is_finite, GradientOptions};
pub use scatter::Operation;
pub use spec::{Initializer, Optimizer, TableChange, TableSpec};
pub use store::{
    needs, Assign, ChangesCost, ChangesEnd, ChangesPage, ChangesPiece, ChangesQuery, ColdConfig,
    Cursor, Damaged, Detail, Fate, GradientBatch, Import, InsertBatch, Inspected, LookupBatch,
    Needs, PageQuery, PooledBatch, PushOutcome, RestoreRequest, Restored, RowTier, SaveRequest,
    Scatter, Scrubbed, Snapshot, Statistics, Store, StoreConfig, TableInfo, Tell, POOL_BYTES,
};
pub use types::{
    bucket, hash, shard_of_bucket, Disk, Durability, Place, Push, Sequence, TableId, BUCKETS,
    WORKERS_SESSION,
};
