//! Expiry: rows that nobody has seen for long, or that have become nothing, go by themselves.
//!
//! A walk over a table's buckets judges every row where it lies (`walk`) and removes what is due as
//! `remove` would (`removal`). Callers may walk a table at once; a thread does so all the time, for
//! a fraction of it (`thread`). What ages are told by outlives the process (`file`). See
//! docs/adr/0028-expiry.md.

mod file;
mod removal;
mod thread;
mod walk;

use std::time::{Duration, Instant};

pub(super) use self::thread::Expiring;
use super::engine::Engine;
use crate::error::Result;
use crate::expiry::{Expiry, Judgement};
use crate::table::Table;
use crate::types::{TableId, BUCKETS};

/// A step of a caller's walk begins no bucket after this.
const STEP: Duration = Duration::from_millis(250);

impl Engine {
    /// One step of a walk: judges the rows of buckets from `bucket` on, as of `now` (Unix seconds;
    /// `None`: the store's own clock), and removes what is due. Returns how many went, and where
    /// the next step begins; 4096 ends the walk.
    pub(super) fn expire(&self, id: TableId, bucket: u32, now: Option<u64>) -> Result<(u64, u32)> {
        let table = self.table(id)?;
        let Some(judgement) = self.judgement(&table, now) else { return Ok((0, BUCKETS)) };
        let (start, mut removed) = (Instant::now(), 0);
        for bucket in bucket..BUCKETS {
            if start.elapsed() >= STEP {
                return Ok((removed, bucket));
            }
            removed += self.expire_bucket(&table, bucket, &judgement)?;
        }
        Ok((removed, BUCKETS))
    }

    /// What is decided about rows now; `None` where nothing can be due.
    fn judgement(&self, table: &Table, now: Option<u64>) -> Option<Judgement> {
        match table.expiry()? {
            Expiry::After { seconds } => {
                let now = now.unwrap_or_else(|| self.clock.reckoned());
                let until = now.checked_sub(seconds)?;
                Some(Judgement::Seen { until, unstamped: self.expiring.begun() })
            }
            Expiry::AfterSteps { .. } => {
                let before = table.steps.lock().as_ref()?.bound();
                (before > 0).then_some(Judgement::Changed { before })
            }
            Expiry::BelowNorm { norm } => Some(Judgement::Short { norm: norm.into() }),
        }
    }
}

#[cfg(test)]
#[path = "../tests/expiry.rs"]
mod tests;
