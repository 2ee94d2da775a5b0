//! What changed: the rows and removals of some buckets of a table since a sequence, and up to which
//! sequence that holds; or a copy of them, if nothing is known of them yet.
//!
//! A follower applies what it is told in the order in which it is told, and asks next time from
//! where the answer ended: then it has every row as it is, or as it was a moment ago and will be
//! told again. Nothing is kept for it here, and it holds nobody up: under a stripe's lock a few
//! hundred rows are looked at or copied at a time, and no lock is held while a device is read or
//! the follower takes what it is told.
//!
//! `find` looks for what is newer, `tell` reads it, `page` gives as much as fits a message. See
//! docs/adr/0016-changes.md and docs/adr/0029-changes-by-pages-and-replicas.md.

mod find;
mod page;
mod tell;

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use self::find::Found;
pub use self::page::{ChangesPage, Cursor, PageQuery};
use self::tell::Teller;
use super::engine::Engine;
use super::pressure::PATIENCE;
use crate::error::{Error, Result};
use crate::history::Refusal;
use crate::table::Table;
use crate::types::{Sequence, TableId, BUCKETS};

/// What is asked.
#[derive(Debug, Clone)]
pub struct ChangesQuery {
    /// Table.
    pub table: TableId,
    /// Buckets [start, end). A range costs little more than one bucket of it, as long as it lies
    /// in one stripe: multiples of 256 buckets do.
    pub buckets: Range<u32>,
    /// All changes up to here are known; `None`: nothing is, and all rows are told.
    pub since: Option<Sequence>,
    /// What is told of a row.
    pub detail: Detail,
}

/// What is told of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detail {
    /// Its key and sequence. Changed rows on NVMe are not read, so one that was removed in this
    /// moment may still be told; its removal is told the next time.
    Keys,
    /// And its value, of `dim` numbers.
    Values,
    /// And its optimizer slots behind it.
    Rows,
}

/// Some of what changed. Removals come before all rows.
#[derive(Debug)]
pub struct ChangesPiece<'a> {
    /// Keys that were removed.
    pub removed: &'a [u64],
    /// Keys of rows; a key may come again later, and the last word on it is right.
    pub keys: &'a [u64],
    /// Sequence of each row.
    pub sequences: &'a [Sequence],
    /// Unix seconds when each row was last seen in training; empty for `Detail::Keys`.
    pub last_seen: &'a [u32],
    /// Training reads of each row; empty for `Detail::Keys`.
    pub frequency: &'a [u32],
    /// float32[n, dim], float32[n, dim + slots], or empty.
    pub rows: &'a [f32],
}

/// The end of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChangesEnd {
    /// All changes up to this sequence were told, and perhaps some later ones.
    UpTo(Sequence),
    /// Removals since then were forgotten: begin with `None`.
    TooOld,
    /// What is said to be known is ahead of the store, which lost its tail in a crash, or is
    /// another store: begin with `None`.
    Ahead,
}

/// What an answer has cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ChangesCost {
    /// Dirty rows in DRAM that were looked at.
    pub rows: u64,
    /// Segments of the log, and entries in them, that were looked at.
    pub segments: u64,
    /// See `segments`.
    pub entries: u64,
    /// Rows, and removals, that were told.
    pub told: u64,
}

/// Takes what is told, piece by piece. An error ends the answer.
pub type Tell<'a> = dyn FnMut(&ChangesPiece<'_>) -> Result<()> + 'a;

/// Bytes of one candidate, and most that one look may find: 1 / this of the memory of calls.
const KEY_BYTES: u64 = 2 * size_of::<(u64, Sequence)>() as u64;
const SHARE: u64 = 8;

/// One query on its way.
struct Following<'a> {
    engine: &'a Engine,
    table: Arc<Table>,
    detail: Detail,
    cost: ChangesCost,
}

impl Engine {
    pub(super) fn tell_changes(
        &self,
        query: &ChangesQuery,
        tell: &mut Tell<'_>,
    ) -> Result<(ChangesEnd, ChangesCost)> {
        let table = self.followed(query.table, query.since)?;
        let Range { start, end } = query.buckets;
        if start >= end || end > BUCKETS {
            return Err(Error::bad_input(format!(
                "table {:?}: no buckets {start} to {end}; give a range within 0 to {BUCKETS}",
                table.name()
            )));
        }
        if let Some(refusal) = query.since.and_then(|since| self.refusal(since)) {
            return Ok((refusal, ChangesCost::default()));
        }
        self.load_buckets(query.buckets.clone())?;
        let detail = query.detail;
        let mut following = Following { engine: self, table, detail, cost: ChangesCost::default() };
        let mut end = ChangesEnd::UpTo(Sequence::MAX);
        let stripe = self.tier.buckets_per_stripe;
        let mut start = query.buckets.start;
        while start < query.buckets.end {
            let next = ((start / stripe + 1) * stripe).min(query.buckets.end);
            let answer = match query.since {
                Some(since) => following.since(start..next, since, tell)?,
                None => following.copy(start..next, tell)?,
            };
            end = match (end, answer) {
                (ChangesEnd::UpTo(one), ChangesEnd::UpTo(other)) => {
                    ChangesEnd::UpTo(one.min(other))
                }
                (_, refusal) => return Ok((refusal, following.cost)),
            };
            start = next;
        }
        // Whose table was dropped meanwhile is not told that it is empty.
        self.table_itself(following.table.id)?;
        // What was forgotten meanwhile may have been missed.
        let refusal = query.since.and_then(|since| self.refusal(since));
        Ok((refusal.unwrap_or(end), following.cost))
    }

    /// Tells rows of one stripe by their keys, as they are when their turn comes.
    pub(super) fn tell_keys(
        &self,
        table: &Arc<Table>,
        keys: &[(u64, Sequence)],
        tell: &mut Tell<'_>,
    ) -> Result<()> {
        Teller::new(self, table, Detail::Rows).tell_rows(keys, tell)
    }

    /// Why changes since then cannot be told.
    pub(super) fn refusal(&self, since: Sequence) -> Option<ChangesEnd> {
        if since < self.tier.log.floor() {
            return Some(ChangesEnd::TooOld);
        }
        let history = self.superblock.lock().current().history.clone();
        history.check(since).err().map(|refusal| match refusal {
            Refusal::TooOld => ChangesEnd::TooOld,
            Refusal::Lost => ChangesEnd::Ahead,
        })
    }
}

impl Following<'_> {
    /// Changes in buckets of one stripe.
    fn since(
        &mut self,
        buckets: Range<u32>,
        since: Sequence,
        tell: &mut Tell<'_>,
    ) -> Result<ChangesEnd> {
        let ledger = &self.engine.ledger;
        let mut most = ledger.calls_max() / SHARE;
        loop {
            let deadline = Instant::now() + PATIENCE;
            let own = Teller::new(self.engine, &self.table, self.detail).bytes();
            let memory = ledger.hold_for_call(most + own, deadline)?;
            let found = match self.find(buckets.clone(), since, (most / KEY_BYTES) as usize)? {
                Found::All(newer) => newer,
                Found::Ahead => return Ok(ChangesEnd::Ahead),
                // Half of the buckets at a time, and of one bucket what all calls may hold.
                Found::TooMany if buckets.len() > 1 => {
                    drop(memory);
                    let middle = buckets.start + buckets.len() as u32 / 2;
                    let first = self.since(buckets.start..middle, since, tell)?;
                    let ChangesEnd::UpTo(first) = first else { return Ok(first) };
                    let second = self.since(middle..buckets.end, since, tell)?;
                    let ChangesEnd::UpTo(second) = second else { return Ok(second) };
                    return Ok(ChangesEnd::UpTo(first.min(second)));
                }
                Found::TooMany if 2 * most + own <= ledger.calls_max() => {
                    most *= 2;
                    continue;
                }
                Found::TooMany => return Err(self.too_many(buckets.start)),
            };
            let teller = Teller::new(self.engine, &self.table, self.detail);
            self.cost.told += teller.tell(&found, tell)?;
            return Ok(ChangesEnd::UpTo(found.up_to));
        }
    }

    fn too_many(&self, bucket: u32) -> Error {
        Error::store_full(format!(
            "table {:?}: more changed in bucket {bucket} than dram={} leaves memory to list; raise \
             dram",
            self.table.name(),
            self.engine.config.dram_bytes
        ))
    }
}
