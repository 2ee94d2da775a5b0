//! The engine of hybridps: KV-Variable tables whose rows live in DRAM while hot and on NVMe while
//! warm. No Python, no async, no sockets.
//!
//! Floor plan, from the door down: `store` (verbs) > `table` > `log`, `journal` > `device`;
//! `directory`, `superblock`, `manifest` keep what a store is; `os`, `types`, `error`, `spec`,
//! `init`, `optimizer`, `batch` are leaves that any room may use.

mod batch;
#[allow(dead_code, reason = "the store's verbs call it")]
mod directory;
mod error;
mod init;
#[allow(dead_code, unused_imports, reason = "the store's verbs call it")]
mod journal;
#[allow(dead_code, reason = "the store's verbs call it")]
mod manifest;
mod optimizer;
#[allow(dead_code, reason = "the store's verbs call it")]
mod os;
#[cfg(test)]
mod scratch;
mod spec;
mod store;
#[allow(dead_code, reason = "the store's verbs call it")]
mod superblock;
mod types;

pub use batch::{gather, sum_rows, Unique};
pub use error::{Error, ErrorKind, Result};
pub use init::initial_row;
pub use optimizer::is_finite;
pub use spec::{Initializer, Optimizer, TableChange, TableSpec};
pub use store::{
    Assign, Durability, GradientBatch, InsertBatch, LookupBatch, Push, PushOutcome, Store,
    StoreConfig, TableInfo,
};
pub use types::{bucket, hash, shard_of_bucket, Place, Sequence, TableId, BUCKETS};
