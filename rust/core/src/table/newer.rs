//! Rows that are newer than a sequence: dirty ones by their marks, a few at a time, so that nobody
//! waits long for the stripe. All others have a record in the log that says so.

use std::ops::Range;

use super::stripe::State;
use crate::arena::Mark;
use crate::types::{bucket, hash, Sequence, TableId};

/// How far a look at the dirty rows of a part has come.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Look {
    /// Of the part: rows that moved since are looked at again.
    era: u64,
    at: (usize, usize),
    /// Rows that were looked at.
    pub(crate) rows: u64,
}

impl State {
    /// Looks at some of the dirty rows of a table, `rows_max` or a few more, and appends keys and
    /// sequences of those in `buckets` that are newer than `since`. True when all were looked at;
    /// then every newer row that was there when the look began is found, or has left for the log.
    pub(crate) fn newer_rows(
        &self,
        table: TableId,
        buckets: &Range<u32>,
        since: Sequence,
        rows_max: u64,
        look: &mut Look,
        found: &mut Vec<(u64, Sequence)>,
    ) -> bool {
        let Some(part) = self.parts.get(&table) else { return true };
        if look.era != part.era {
            *look = Look { era: part.era, at: (0, 0), rows: look.rows };
        }
        let end = look.rows + rows_max;
        while let Some(group) = part.pool.next_marked(Mark::Dirty, look.at) {
            if look.rows >= end {
                return false;
            }
            let rows = group.rows();
            look.rows += rows.len() as u64;
            look.at = group.after();
            for header in rows.into_iter().map(|at| part.pool.header(at)) {
                let is_newer = header.state.is_dirty() && header.sequence > since;
                if is_newer && buckets.contains(&bucket(hash(header.key))) {
                    found.push((header.key, header.sequence));
                }
            }
        }
        true
    }
}
