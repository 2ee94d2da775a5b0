//! Owned entries and short ways to write and read journals.
#![allow(clippy::unwrap_used, reason = "tests")]

mod crash;
mod damage;
mod golden;
mod power;
mod rotation;
mod round_trip;
mod sync;

use std::fs;
use std::path::Path;

use super::*;
use crate::error::ErrorKind;
use crate::scatter::Operation;
use crate::scratch::Scratch;
use crate::types::{Push, TableId};

const UUID: u128 = 0x0011_2233_4455_6677_8899_aabb_ccdd_eeff;
const EPOCH: Epoch = 3;
const NEW: JournalEnd = JournalEnd { generation: 0, offset: 0 };

/// An entry that owns its arrays. Floats are kept as bits: the journal must not change any.
#[derive(Debug, Clone, PartialEq)]
struct Owned {
    sequence: Sequence,
    what: What,
}

#[derive(Debug, Clone, PartialEq)]
enum What {
    Gradients(Push, Vec<Part>),
    Assign(Push, Part),
    Scatter(Push, Operation, Part),
    Import(Push, Part),
    Remove(Push, TableId, Vec<u64>),
    Sessions(Vec<SessionRecord>),
    Attach(u64, String),
    Create(TableId, String),
    Alter(TableId, String),
    Drop(TableId),
    Removed(u64, u64, u64),
}

#[derive(Debug, Clone, PartialEq)]
struct Part {
    table: TableId,
    rate: u32,
    keys: Vec<u64>,
    floats: Vec<u32>,
}

impl Part {
    fn new(part: &GradientPart<'_>) -> Self {
        Self {
            table: part.table,
            rate: part.learning_rate.to_bits(),
            keys: part.keys.to_vec(),
            floats: bytemuck::cast_slice(part.gradients).to_vec(),
        }
    }

    fn borrow(&self) -> GradientPart<'_> {
        GradientPart {
            table: self.table,
            learning_rate: f32::from_bits(self.rate),
            keys: &self.keys,
            gradients: bytemuck::cast_slice(&self.floats),
        }
    }
}

impl Owned {
    fn new(sequence: Sequence, entry: &Entry<'_>) -> Self {
        let what = match entry {
            Entry::Gradients { push, tables } => {
                What::Gradients(*push, tables.iter().map(Part::new).collect())
            }
            &Entry::Assign { push, table, keys, rows } => {
                let part = GradientPart { table, learning_rate: 0.0, keys, gradients: rows };
                What::Assign(push, Part::new(&part))
            }
            &Entry::Import { push, table, keys, rows } => {
                let part = GradientPart { table, learning_rate: 0.0, keys, gradients: rows };
                What::Import(push, Part::new(&part))
            }
            &Entry::Scatter { push, table, operation, keys, rows } => {
                let part = GradientPart { table, learning_rate: 0.0, keys, gradients: rows };
                What::Scatter(push, operation, Part::new(&part))
            }
            Entry::Remove { push, table, keys } => What::Remove(*push, *table, keys.to_vec()),
            Entry::Sessions { sessions, .. } => What::Sessions(sessions.clone()),
            Entry::Attach { session, client_id } => What::Attach(*session, (*client_id).to_owned()),
            &Entry::CreateTable { table, definition } => What::Create(table, definition.to_owned()),
            &Entry::AlterTable { table, definition } => What::Alter(table, definition.to_owned()),
            &Entry::DropTable { table } => What::Drop(table),
            &Entry::Removed { session, number, rows } => What::Removed(session, number, rows),
        };
        Self { sequence, what }
    }

    fn borrow(&self) -> Entry<'_> {
        match &self.what {
            What::Gradients(push, parts) => {
                let tables = parts.iter().map(Part::borrow).collect();
                Entry::Gradients { push: *push, tables }
            }
            What::Assign(push, part) => {
                let GradientPart { table, keys, gradients: rows, .. } = part.borrow();
                Entry::Assign { push: *push, table, keys, rows }
            }
            What::Import(push, part) => {
                let GradientPart { table, keys, gradients: rows, .. } = part.borrow();
                Entry::Import { push: *push, table, keys, rows }
            }
            What::Scatter(push, operation, part) => {
                let GradientPart { table, keys, gradients: rows, .. } = part.borrow();
                Entry::Scatter { push: *push, table, operation: *operation, keys, rows }
            }
            What::Remove(push, table, keys) => Entry::Remove { push: *push, table: *table, keys },
            What::Sessions(sessions) => Entry::Sessions { before: 0, sessions: sessions.clone() },
            What::Attach(session, client_id) => Entry::Attach { session: *session, client_id },
            What::Create(table, definition) => Entry::CreateTable { table: *table, definition },
            What::Alter(table, definition) => Entry::AlterTable { table: *table, definition },
            &What::Drop(table) => Entry::DropTable { table },
            &What::Removed(session, number, rows) => Entry::Removed { session, number, rows },
        }
    }
}

/// A gradients entry that is told from others by its sequence; `keys` rows of dim 3.
fn gradients(sequence: Sequence, keys: u64) -> Owned {
    let part = Part {
        table: 1,
        rate: 0.5f32.to_bits(),
        keys: (0..keys).map(|key| key + sequence * 1000).collect(),
        floats: (0..keys as u32 * 3).map(|x| (x as f32).to_bits()).collect(),
    };
    let push = Push { session: 7, number: sequence, step: Some(sequence as i64) };
    Owned { sequence, what: What::Gradients(push, vec![part]) }
}

fn sessions(sequence: Sequence) -> Owned {
    Owned { sequence, what: What::Sessions(Vec::new()) }
}

fn config(path: &Path, durability: Durability) -> JournalConfig {
    JournalConfig { directory: path.to_path_buf(), uuid: UUID, epoch: EPOCH, durability }
}

type Visited = Vec<(u32, Owned)>;

fn open_in(durability: Durability, path: &Path, known: JournalEnd) -> Result<(Journal, Visited)> {
    let mut journal = Journal::open(config(path, durability), known)?;
    let mut visited = Vec::new();
    journal.replay(&mut |stamp, entry| {
        visited.push((stamp.generation, Owned::new(stamp.sequence, &entry)));
        Ok(())
    })?;
    Ok((journal, visited))
}

fn open(path: &Path, known: JournalEnd) -> Result<(Journal, Visited)> {
    open_in(Durability::Process, path, known)
}

fn read(path: &Path) -> Visited {
    open(path, NEW).unwrap().1
}

fn append(journal: &Journal, entry: &Owned) -> Result<Position> {
    journal.append(&mut Frame::new(&entry.borrow())?, entry.sequence)
}

fn append_all(journal: &Journal, entries: &[Owned]) {
    for entry in entries {
        let position = append(journal, entry).unwrap();
        journal.commit(position).unwrap();
    }
}

/// A whole rotation; returns the new generation.
fn rotate(journal: &Journal, sessions: Vec<SessionRecord>, sequence: Sequence) -> Result<u32> {
    let next = journal.prepare()?;
    let generation = journal.switch(next, sessions, sequence)?;
    journal.sync()?;
    Ok(generation)
}

fn log(path: &Path, generation: u32) -> std::path::PathBuf {
    path.join(format!("journal/{generation:08}.log"))
}

fn length(path: &Path, generation: u32) -> u64 {
    fs::metadata(log(path, generation)).unwrap().len()
}

/// Appends entries one by one; returns where each begins and the last ends.
fn boundaries(path: &Path, journal: &Journal, entries: &[Owned]) -> Vec<u64> {
    let generation = journal.generation();
    let mut at = vec![length(path, generation)];
    for entry in entries {
        append_all(journal, std::slice::from_ref(entry));
        at.push(length(path, generation));
    }
    at
}
