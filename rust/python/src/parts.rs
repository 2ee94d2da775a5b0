//! Pushes that come in parts: collected until they are whole, then applied as one.
//!
//! One push at a time on a connection. The first part only announces it, so that the owner of the
//! connection can see to it that there is room; a push that is not gone on with is dropped by the
//! next one, or with its connection.

use std::sync::{Mutex, MutexGuard, PoisonError};

use hybridps_wire::{Batch, PushHeader};

use crate::hot::{bad_input, numbers, Failure};

/// A push with all its parts so far.
pub(crate) struct Collected {
    verb: u16,
    header: PushHeader,
    bytes: u64,
    /// In the order in which the tables were first named.
    pub(crate) tables: Vec<Columns>,
}

/// Keys and values of one table.
pub(crate) struct Columns {
    pub(crate) table: u32,
    pub(crate) keys: Vec<u64>,
    pub(crate) values: Vec<f32>,
}

/// The push that a connection collects.
#[derive(Default)]
pub(crate) struct Parts(Mutex<Option<Collected>>);

impl Parts {
    /// True while a push waits for further parts.
    pub(crate) fn is_collecting(&self) -> bool {
        self.slot().is_some()
    }

    /// Drops what was collected.
    pub(crate) fn forget(&self) {
        *self.slot() = None;
    }

    /// Takes a part in; the whole push if this was its last. What goes wrong ends the push.
    pub(crate) fn add(
        &self,
        verb: u16,
        header: PushHeader,
        batches: &[Batch<'_>],
    ) -> Result<Option<Collected>, Failure> {
        let mut slot = self.slot();
        if is_announcement(&header, batches) {
            *slot = Some(Collected { verb, header, bytes: 0, tables: Vec::new() });
            return Ok(None);
        }
        let known = slot.take().filter(|known| known.verb == verb && known.header == header);
        let mut collected = known.ok_or_else(|| {
            bad_input(format!(
                "a part of push {} came, which was not announced on this connection; send the push \
                 again from its first part",
                header.number
            ))
        })?;
        collected.take(batches)?;
        if collected.bytes == header.total {
            return Ok(Some(collected));
        }
        *slot = Some(collected);
        Ok(None)
    }

    fn slot(&self) -> MutexGuard<'_, Option<Collected>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The first part of a push holds nothing.
pub(crate) fn is_announcement(header: &PushHeader, batches: &[Batch<'_>]) -> bool {
    header.total > 0 && batches.iter().all(|batch| batch.keys.is_empty() && batch.blob.len == 0)
}

impl Collected {
    fn take(&mut self, batches: &[Batch<'_>]) -> Result<(), Failure> {
        for batch in batches {
            let values = numbers::<f32>("values", batch)?;
            self.bytes += size_of_val(batch.keys) as u64 + size_of_val(values) as u64;
            if self.bytes > self.header.total {
                return Err(bad_input(format!(
                    "the parts of push {} hold more than the {} bytes that were announced",
                    self.header.number, self.header.total
                )));
            }
            let columns = self.columns(batch.table);
            columns.take(batch.keys, values).map_err(|error| {
                Failure(format!("HybridPSError: no memory for a push in parts: {error}"))
            })?;
        }
        Ok(())
    }

    fn columns(&mut self, table: u32) -> &mut Columns {
        let known = self.tables.iter().position(|columns| columns.table == table);
        let at = known.unwrap_or_else(|| {
            self.tables.push(Columns { table, keys: Vec::new(), values: Vec::new() });
            self.tables.len() - 1
        });
        &mut self.tables[at]
    }
}

impl Columns {
    fn take(
        &mut self,
        keys: &[u64],
        values: &[f32],
    ) -> Result<(), std::collections::TryReserveError> {
        self.keys.try_reserve(keys.len())?;
        self.values.try_reserve(values.len())?;
        self.keys.extend_from_slice(keys);
        self.values.extend_from_slice(values);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use hybridps_wire::{Bytes, APPLY_GRADIENTS, ASSIGN};

    use super::*;

    const HEADER: PushHeader = PushHeader { number: 7, step: None, total: 2 * (8 + 8) };

    fn batch<'a>(table: u32, keys: &'a [u64], words: &'a [u64]) -> Batch<'a> {
        Batch { table, keys, blob: Bytes { words, len: words.len() * 8 } }
    }

    #[test]
    fn parts_become_one_push_when_the_last_has_come() {
        let parts = Parts::default();
        let add = |batches: &[Batch<'_>]| parts.add(APPLY_GRADIENTS, HEADER, batches);
        assert!(add(&[]).is_ok_and(|whole| whole.is_none()));
        assert!(add(&[batch(1, &[10], &[1])]).is_ok_and(|whole| whole.is_none()));
        assert!(parts.is_collecting());
        let whole = add(&[batch(2, &[], &[]), batch(1, &[11], &[2])]);
        let Ok(Some(whole)) = whole else { panic!("a whole push") };
        let tables: Vec<_> = whole.tables.iter().map(|c| (c.table, &c.keys[..])).collect();
        assert_eq!(tables, [(1, &[10, 11][..]), (2, &[])]);
        assert_eq!(whole.tables[0].values.len(), 4);
        assert!(!parts.is_collecting());
    }

    #[test]
    fn what_does_not_fit_together_ends_the_push() {
        let one = [batch(1, &[10], &[1])];
        let other = PushHeader { number: 8, ..HEADER };
        let parts = Parts::default();
        assert!(parts.add(APPLY_GRADIENTS, HEADER, &one).is_err(), "not announced");
        for (verb, header) in [(ASSIGN, HEADER), (APPLY_GRADIENTS, other)] {
            assert!(parts.add(APPLY_GRADIENTS, HEADER, &[]).is_ok());
            assert!(parts.add(verb, header, &one).is_err());
            assert!(!parts.is_collecting());
        }
        assert!(parts.add(APPLY_GRADIENTS, HEADER, &[]).is_ok());
        let much = [batch(1, &[1, 2, 3], &[1, 2, 3])];
        assert!(parts.add(APPLY_GRADIENTS, HEADER, &much).is_err());
        assert!(parts.add(APPLY_GRADIENTS, HEADER, &one).is_err(), "it has ended");
    }

    #[test]
    fn a_push_that_is_announced_anew_begins_anew() {
        let parts = Parts::default();
        let add = |batches: &[Batch<'_>]| parts.add(APPLY_GRADIENTS, HEADER, batches);
        let one = [batch(1, &[10], &[1])];
        for _ in 0..3 {
            assert!(add(&[]).is_ok_and(|whole| whole.is_none()));
            assert!(add(&one).is_ok_and(|whole| whole.is_none()));
        }
        assert!(add(&one).is_ok_and(|whole| whole.is_some()));
    }
}
