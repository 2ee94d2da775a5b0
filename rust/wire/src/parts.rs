//! Pushes that come in parts: collected until they are whole, then applied as one.
//!
//! One push at a time on a connection. The first part only announces it, so that the owner of the
//! connection can see to it that there is room; a push that is not gone on with is dropped by the
//! next one, or with its connection.

use std::collections::TryReserveError;

use crate::verbs::{Batch, PushHeader, Refusal};

type Result<T> = std::result::Result<T, Refusal>;

/// The verb of a push, and the number of its operation, if it is a scatter.
pub type Pushed = (u16, u16);

/// A push with all its parts so far.
#[derive(Debug)]
pub struct Collected {
    what: Pushed,
    header: PushHeader,
    bytes: u64,
    /// In the order in which the tables were first named.
    pub tables: Vec<Columns>,
}

/// Keys and values of one table.
#[derive(Debug)]
pub struct Columns {
    /// Table id.
    pub table: u32,
    /// Keys.
    pub keys: Vec<u64>,
    /// Gradients or rows.
    pub values: Vec<f32>,
}

/// The push that a connection collects.
#[derive(Debug, Default)]
pub struct Parts(Option<Collected>);

impl Parts {
    /// True while a push waits for further parts.
    pub fn is_collecting(&self) -> bool {
        self.0.is_some()
    }

    /// Drops what was collected.
    pub fn forget(&mut self) {
        self.0 = None;
    }

    /// Takes a part in; the whole push if this was its last.
    ///
    /// # Errors
    /// The part belongs to no push that was announced, or holds more than was; the push has ended.
    pub fn add(
        &mut self,
        what: Pushed,
        header: PushHeader,
        batches: &[Batch<'_>],
    ) -> Result<Option<Collected>> {
        if is_announcement(&header, batches) {
            self.0 = Some(Collected { what, header, bytes: 0, tables: Vec::new() });
            return Ok(None);
        }
        let known = self.0.take().filter(|known| known.what == what && known.header == header);
        let mut collected = known.ok_or(Refusal::NotAnnounced { number: header.number })?;
        collected.take(batches)?;
        if collected.bytes == header.total {
            return Ok(Some(collected));
        }
        self.0 = Some(collected);
        Ok(None)
    }
}

/// The first part of a push holds nothing.
pub fn is_announcement(header: &PushHeader, batches: &[Batch<'_>]) -> bool {
    header.total > 0 && batches.iter().all(|batch| batch.keys.is_empty() && batch.blob.len == 0)
}

impl Collected {
    fn take(&mut self, batches: &[Batch<'_>]) -> Result<()> {
        let PushHeader { number, total, .. } = self.header;
        for batch in batches {
            self.bytes += (batch.keys.len() * 8 + batch.blob.len) as u64;
            if self.bytes > total {
                return Err(Refusal::TooLong { number, total });
            }
            let known = self.tables.iter().position(|columns| columns.table == batch.table);
            let at = known.unwrap_or(self.tables.len());
            if known.is_none() {
                let (table, keys, values) = (batch.table, Vec::new(), Vec::new());
                self.tables.push(Columns { table, keys, values });
            }
            let columns = &mut self.tables[at];
            columns.take(batch).map_err(|_| Refusal::NoMemory { number })?;
        }
        Ok(())
    }
}

impl Columns {
    fn take(&mut self, batch: &Batch<'_>) -> std::result::Result<(), TryReserveError> {
        let count = batch.blob.len / 4;
        self.keys.try_reserve(batch.keys.len())?;
        self.values.try_reserve(count + 1)?;
        self.keys.extend_from_slice(batch.keys);
        let end = self.values.len() + count;
        let halves = |&word: &u64| [word as u32, (word >> 32) as u32].map(f32::from_bits);
        self.values.extend(batch.blob.words.iter().flat_map(halves));
        // The last word may have been half full.
        self.values.truncate(end);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Bytes;
    use crate::schema::{APPLY_GRADIENTS, ASSIGN};

    const GRADIENTS: Pushed = (APPLY_GRADIENTS, 0);
    const HEADER: PushHeader = PushHeader { number: 7, step: None, total: 2 * (8 + 8) };

    fn batch<'a>(table: u32, keys: &'a [u64], words: &'a [u64]) -> Batch<'a> {
        Batch { table, keys, blob: Bytes { words, len: words.len() * 8 } }
    }

    #[test]
    fn parts_become_one_push_when_the_last_has_come() {
        let mut parts = Parts::default();
        let mut add = |batches: &[Batch<'_>]| parts.add(GRADIENTS, HEADER, batches);
        assert!(add(&[]).is_ok_and(|whole| whole.is_none()));
        assert!(add(&[batch(1, &[10], &[1])]).is_ok_and(|whole| whole.is_none()));
        let whole = add(&[batch(2, &[], &[]), batch(1, &[11], &[2])]);
        let Ok(Some(whole)) = whole else { panic!("a whole push") };
        let tables: Vec<_> = whole.tables.iter().map(|c| (c.table, &c.keys[..])).collect();
        assert_eq!(tables, [(1, &[10, 11][..]), (2, &[])]);
        // Two words were two numbers each.
        let one = f32::from_bits(1);
        assert_eq!(whole.tables[0].values, [one, 0.0, f32::from_bits(2), 0.0]);
        assert!(!parts.is_collecting());
    }

    #[test]
    fn what_does_not_fit_together_ends_the_push() {
        let one = [batch(1, &[10], &[1])];
        let other = PushHeader { number: 8, ..HEADER };
        let mut parts = Parts::default();
        assert!(parts.add(GRADIENTS, HEADER, &one).is_err(), "not announced");
        for (what, header) in
            [((ASSIGN, 0), HEADER), ((APPLY_GRADIENTS, 1), HEADER), (GRADIENTS, other)]
        {
            assert!(parts.add(GRADIENTS, HEADER, &[]).is_ok());
            assert!(parts.add(what, header, &one).is_err());
            assert!(!parts.is_collecting());
        }
        assert!(parts.add(GRADIENTS, HEADER, &[]).is_ok());
        let much = [batch(1, &[1, 2, 3], &[1, 2, 3])];
        assert!(parts.add(GRADIENTS, HEADER, &much).is_err());
        assert!(parts.add(GRADIENTS, HEADER, &one).is_err(), "it has ended");
    }

    #[test]
    fn a_push_that_is_announced_anew_begins_anew() {
        let mut parts = Parts::default();
        let mut add = |batches: &[Batch<'_>]| parts.add(GRADIENTS, HEADER, batches);
        let one = [batch(1, &[10], &[1])];
        for _ in 0..3 {
            assert!(add(&[]).is_ok_and(|whole| whole.is_none()));
            assert!(add(&one).is_ok_and(|whole| whole.is_none()));
        }
        assert!(add(&one).is_ok_and(|whole| whole.is_some()));
    }

    #[test]
    fn half_a_word_is_one_number() {
        let mut parts = Parts::default();
        let header = PushHeader { total: 2 * (8 + 4), ..HEADER };
        let word = u64::from(1.5f32.to_bits()) | 7 << 32;
        let half = |key| Batch { table: 1, keys: key, blob: Bytes { words: &[0], len: 4 } };
        let words = [word];
        let first = Batch { blob: Bytes { words: &words, len: 4 }, ..half(&[1]) };
        assert!(parts.add(GRADIENTS, header, &[]).is_ok());
        assert!(parts.add(GRADIENTS, header, &[first]).is_ok());
        let Ok(Some(whole)) = parts.add(GRADIENTS, header, &[half(&[2])]) else {
            panic!("a whole push")
        };
        assert_eq!(whole.tables[0].values, [1.5, 0.0]);
    }
}
