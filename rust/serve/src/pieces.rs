//! Where a large reply is cut: into pieces that cost about the same to gather, whether a row of it
//! is one row of a table or the sum of many.

use crate::reads::{Reading, Sizes, Span};

/// Bytes of rows that are gathered, then sent. Measured (50,000 rows of 64 floats): below, visits
/// of stripes cost more; above, rows have left the cache before they are sent.
pub(crate) const PIECE_BYTES: usize = 1 << 19;
/// What gathers no more than this is one piece, and is not worth a second thread.
const WHOLE_MAX: usize = PIECE_BYTES + PIECE_BYTES / 2;
/// Rows whose bytes are a whole number of words, whatever their dim and dtype.
const ROWS_OF_WORDS: usize = 4;

/// The spans of each piece; none if the reply is better made at once. `sizes`: bytes of the rows
/// of each table; `costs`: of the rows that they are made of.
pub(crate) fn pieces(reading: &Reading<'_>, sizes: &Sizes, costs: &[usize]) -> Vec<Vec<Span>> {
    if costs.iter().sum::<usize>() <= WHOLE_MAX {
        return Vec::new();
    }
    let mut pieces = vec![Vec::new()];
    let mut room = PIECE_BYTES;
    for (table, (_, rows)) in reading.rows().into_iter().enumerate() {
        let (mut start, mut keys) = (0, 0..0);
        let (row, cost) = (sizes[table].0 / rows.max(1), costs[table] / rows.max(1));
        while start < rows {
            if room == 0 {
                pieces.push(Vec::new());
                room = PIECE_BYTES;
            }
            let count = (room / cost.max(1)).max(1).next_multiple_of(ROWS_OF_WORDS);
            let end = start + count.min(rows - start);
            keys = keys.end..keys.end + reading.keys_in(table, start..end);
            if let Some(piece) = pieces.last_mut() {
                let (rows, keys) = (start..end, keys.clone());
                piece.push(Span { table, bytes: rows.len() * row, rows, keys });
            }
            // A part of a table ends its piece, full or nearly.
            room = if end < rows { 0 } else { room.saturating_sub((end - start) * cost) };
            start = end;
        }
    }
    pieces
}
