//! The engine of hybridps: KV-Variable tables whose rows live in DRAM while hot and on NVMe while
//! warm. No Python, no async, no sockets.
//!
//! Floor plan, from the door down: `store` (verbs) > `table` > `log`, `journal` > `device`;
//! `types`, `error`, `spec`, `init`, `optimizer`, `batch` are leaves that any room may use.

mod batch;
mod error;
mod init;
mod optimizer;
mod spec;
mod store;
mod types;

pub use batch::{gather, sum_counts, sum_rows, Unique};
pub use error::{Error, ErrorKind, Result};
pub use init::initial_row;
pub use optimizer::is_finite;
pub use spec::{Initializer, Optimizer, TableChange, TableSpec};
pub use store::{
    Assign, Durability, GradientBatch, InsertBatch, LookupBatch, Push, PushOutcome, Store,
    StoreConfig, TableInfo,
};
pub use types::{bucket, hash, shard_of_bucket, Place, Sequence, TableId, BUCKETS};
