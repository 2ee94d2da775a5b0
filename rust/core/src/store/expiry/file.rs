//! The file `EXPIRY`: the date that the store reckons with, since when rows are stamped, and the
//! steps of tables that count them. Replaced whole, and a hint: without it, or with an old one,
//! rows are taken for younger than they are.

use serde::{Deserialize, Serialize};

use crate::directory;
use crate::error::Result;
use crate::store::engine::Engine;
use crate::table::{Knot, Steps};
use crate::types::{Sequence, TableId};

const NAME: &str = "EXPIRY";
const VERSION: u32 = 1;
/// That of a thousand tables that count steps; a longer one is not ours.
const BYTES_MAX: u64 = 64 << 20;

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Document {
    version: u32,
    /// Unix seconds, as reckoned.
    date: u64,
    /// The date when the file was first written: rows without a stamp are taken as seen then.
    begun: u64,
    /// Calls up to here are in it.
    sequence: Sequence,
    tables: Vec<TableSteps>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct TableSteps {
    id: TableId,
    now: Option<i64>,
    /// Step and sequence, see `Knot`.
    knots: Vec<(i64, Sequence)>,
}

impl Engine {
    /// Goes on from what was stored. Nothing else runs yet.
    pub(in crate::store) fn load_expiry(&self) -> Result<()> {
        let path = match &*self.directory.lock() {
            Some(directory) => directory.file(NAME),
            None => return Ok(()),
        };
        let bytes = directory::read_small(&path, BYTES_MAX)?;
        let document = bytes.and_then(|bytes| decode(&bytes));
        let Some(Document { date, begun, sequence, tables, .. }) = document else {
            self.expiring.begin(self.clock.reckoned(), 0);
            return Ok(());
        };
        self.clock.resume(date);
        self.expiring.begin(begun, sequence);
        let catalog = self.catalog.read();
        for TableSteps { id, now, knots } in tables {
            let Some(table) = catalog.by_id.get(&id) else { continue };
            let knots = knots.into_iter().map(|(before, sequence)| Knot { before, sequence });
            if let Some(steps) = &mut *table.steps.lock() {
                steps.restore(now, knots);
            }
        }
        Ok(())
    }

    /// Stores what ages are told by, if any table has an expiry. Nobody who waits for it waits for
    /// rows: what it holds is copied first.
    pub(in crate::store) fn save_expiry(&self) -> Result<()> {
        let tables = self.expiring_tables();
        if tables.is_empty() {
            return Ok(());
        }
        let _alone = self.expiring.saving.lock();
        let (sequence, steps) = {
            let sequencer = self.sequencer.lock();
            let steps = |steps: &Steps| (steps.now(), steps.knots().collect::<Vec<Knot>>());
            let of_table = |id, known: Option<&Steps>| known.map(|known| (id, steps(known)));
            let all = tables.iter().filter_map(|t| of_table(t.id, t.steps.lock().as_ref()));
            (sequencer.last, all.collect::<Vec<_>>())
        };
        let tables = steps.into_iter().map(|(id, (now, knots))| {
            let knots = knots.into_iter().map(|knot| (knot.before, knot.sequence)).collect();
            TableSteps { id, now, knots }
        });
        let document = Document {
            version: VERSION,
            date: self.clock.reckoned(),
            begun: self.expiring.begun(),
            sequence,
            tables: tables.collect(),
        };
        let path = match &*self.directory.lock() {
            Some(directory) => directory.file(NAME),
            None => return Ok(()),
        };
        directory::replace(&path, &encode(&document))
    }

    /// Steps of a push that the journal holds, unless the file has them.
    pub(in crate::store) fn replay_step(&self, id: TableId, step: Option<i64>, sequence: Sequence) {
        if sequence <= self.expiring.stored() {
            return;
        }
        if let Some(table) = self.catalog.read().by_id.get(&id) {
            table.count_step(step, sequence);
        }
    }
}

/// A line of JSON, and a line with its checksum.
fn encode(document: &Document) -> Vec<u8> {
    // Numbers alone: nothing in it can fail to be written.
    let mut bytes = serde_json::to_vec(document).unwrap_or_default();
    bytes.push(b'\n');
    let crc = crc32c::crc32c(&bytes);
    bytes.extend_from_slice(format!("crc32c {crc:08x}\n").as_bytes());
    bytes
}

/// `None` for what is damaged, or another version's: it is written anew.
fn decode(bytes: &[u8]) -> Option<Document> {
    let end = bytes.iter().position(|&byte| byte == b'\n')? + 1;
    let (json, line) = bytes.split_at(end);
    if line != format!("crc32c {:08x}\n", crc32c::crc32c(json)).as_bytes() {
        return None;
    }
    let document: Document = serde_json::from_slice(json).ok()?;
    let is_sound = |table: &TableSteps| table.knots.is_sorted_by(|a, b| a.0 < b.0 && a.1 < b.1);
    (document.version == VERSION && document.tables.iter().all(is_sound)).then_some(document)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_damaged_is_taken_for_none() {
        let knots = vec![(1, 10), (2, 20)];
        let tables = vec![TableSteps { id: 3, now: Some(5), knots }];
        let document = Document { version: VERSION, date: 7, begun: 5, sequence: 20, tables };
        let bytes = encode(&document);
        assert_eq!(format!("{:?}", decode(&bytes)), format!("{:?}", Some(&document)));
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            assert!(decode(&damaged).is_none(), "byte {at}");
            assert!(decode(&bytes[..at]).is_none(), "cut at {at}");
        }
        let mut unsorted = document;
        unsorted.tables[0].knots = vec![(2, 10), (1, 20)];
        assert!(decode(&encode(&unsorted)).is_none());
    }
}
