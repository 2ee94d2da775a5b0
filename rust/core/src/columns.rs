//! Rows side by side, column by column: what a checkpoint takes of rows, and how they lie in its
//! files.

use crate::error::{Error, Result};

/// Buckets whose rows are copied, and lie in a file, together.
pub(crate) const GROUP: u32 = 64;

/// Rows of one table, of as many numbers each.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Columns {
    pub(crate) keys: Vec<u64>,
    /// Unix seconds of the last training read.
    pub(crate) last_seen: Vec<u32>,
    /// Training reads.
    pub(crate) frequency: Vec<u32>,
    /// float32[n, numbers of a row].
    pub(crate) numbers: Vec<f32>,
}

/// Bytes of a row beside its numbers.
const HEAD_BYTES: usize = 16;

impl Columns {
    pub(crate) fn push(&mut self, key: u64, statistics: (u32, u32), numbers: &[f32]) {
        self.keys.push(key);
        self.last_seen.push(statistics.0);
        self.frequency.push(statistics.1);
        self.numbers.extend_from_slice(numbers);
    }

    pub(crate) fn len(&self) -> usize {
        self.keys.len()
    }

    /// Bytes of a row of so many numbers.
    pub(crate) const fn row_bytes(floats: usize) -> usize {
        HEAD_BYTES + 4 * floats
    }

    /// Bytes of all rows.
    pub(crate) fn bytes(&self) -> usize {
        HEAD_BYTES * self.keys.len() + 4 * self.numbers.len()
    }

    pub(crate) fn clear(&mut self) {
        self.keys.clear();
        self.last_seen.clear();
        self.frequency.clear();
        self.numbers.clear();
    }

    /// The columns one after the other, as bytes (little-endian machines alone are served).
    pub(crate) fn slices(&self) -> [&[u8]; 4] {
        [
            bytemuck::cast_slice(&self.keys),
            bytemuck::cast_slice(&self.last_seen),
            bytemuck::cast_slice(&self.frequency),
            bytemuck::cast_slice(&self.numbers),
        ]
    }

    /// The inverse, of `rows` rows of `floats` numbers.
    ///
    /// # Errors
    /// `Corruption` if that is not what there is.
    pub(crate) fn decode(bytes: &[u8], rows: usize, floats: usize) -> Result<Self> {
        if Some(bytes.len()) != rows.checked_mul(Self::row_bytes(floats)) {
            let (found, row) = (bytes.len(), Self::row_bytes(floats));
            let what = format!("{found} bytes are not {rows} rows of {row}");
            return Err(Error::corruption(what));
        }
        let (keys, rest) = bytes.split_at(8 * rows);
        let (last_seen, rest) = rest.split_at(4 * rows);
        let (frequency, numbers) = rest.split_at(4 * rows);
        Ok(Self {
            keys: words(keys),
            last_seen: words(last_seen),
            frequency: words(frequency),
            numbers: words(numbers),
        })
    }
}

/// The same bytes, as aligned words.
pub(crate) fn words<T: bytemuck::Pod>(bytes: &[u8]) -> Vec<T> {
    let mut words = vec![T::zeroed(); bytes.len() / size_of::<T>()];
    bytemuck::cast_slice_mut(&mut words).copy_from_slice(bytes);
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let mut rows = Columns::default();
        for n in 0..5_u32 {
            rows.push(u64::MAX - u64::from(n), (n, 7 * n), &[n as f32, f32::NAN, -0.0]);
        }
        let bytes = rows.slices().concat();
        assert_eq!((bytes.len(), rows.bytes()), (5 * 28, 5 * 28));
        let read = Columns::decode(&bytes, 5, 3).unwrap();
        assert_eq!(read.slices(), rows.slices());
        assert!(Columns::decode(&bytes, 4, 3).is_err());
        assert!(Columns::decode(&bytes, usize::MAX, 3).is_err());
    }
}
