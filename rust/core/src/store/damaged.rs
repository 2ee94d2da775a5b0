//! What was found damaged: told to who asked for a scrub, and to the log of who runs the store.

use std::collections::VecDeque;

use super::engine::Engine;
use crate::table::Table;
use crate::types::Place;

/// Findings that wait to be told; of more the oldest are only counted.
const WAITING_MAX: usize = 64;

/// A part of a `rows.log` that is not what was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damaged {
    /// Table and key of the record; `None` where that cannot be told, or matters to no row.
    pub row: Option<(String, u64)>,
    /// Byte offset in the file.
    pub offset: u64,
    /// What became of it.
    pub fate: Fate,
}

/// What became of a damaged part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// The row is lost: its key answers `Corruption` until it is assigned or removed.
    Lost,
    /// The row was sound in DRAM, and was written anew.
    Rewritten,
    /// No row needs it. What is sound beside it was moved, and its space is used again.
    Freed,
    /// It stays as it is, for there was no room to move what is sound beside it, or the store takes
    /// no writes. No row of it is known to be lost.
    Left,
}

impl Fate {
    /// Its name, for reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Lost => "lost",
            Self::Rewritten => "rewritten",
            Self::Freed => "freed",
            Self::Left => "left",
        }
    }
}

impl Damaged {
    /// The record of a row.
    pub(super) fn row(table: &Table, key: u64, place: Place, fate: Fate) -> Self {
        Self { row: Some((table.name(), key)), offset: place.offset(), fate }
    }
}

/// Findings that were not told yet.
#[derive(Default)]
pub(super) struct Untold {
    waiting: VecDeque<Damaged>,
    left_out: u64,
}

impl Engine {
    /// Keeps a finding for who watches the store. Never waits.
    pub(super) fn note_damaged(&self, damaged: Damaged) {
        let mut untold = self.untold.lock();
        if untold.waiting.len() == WAITING_MAX {
            untold.waiting.pop_front();
            untold.left_out += 1;
        }
        untold.waiting.push_back(damaged);
    }

    /// What was found since the last time, and how many findings before that were left out.
    pub(super) fn take_damaged(&self) -> (Vec<Damaged>, u64) {
        let untold = std::mem::take(&mut *self.untold.lock());
        (untold.waiting.into(), untold.left_out)
    }
}
