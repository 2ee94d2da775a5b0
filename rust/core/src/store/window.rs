//! What many journal entries do to one table, sorted by row.
//!
//! A row depends on its own entries alone. So the entries of a window are collected first; then
//! each row is read once, in the order of the log, and changed by its own, in their order. The
//! result is bit for bit that of one entry after the other.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::Arc;

use super::mutate::Change;
use super::whole::Written;
use crate::log::RecordView;
use crate::scatter::{scatter, Operation};
use crate::sequence::before_call;
use crate::table::Table;
use crate::types::{hash, Place, Push, Sequence};

/// What a row takes in a window: its key, its list, its entry in the map, its place in the order.
const ROW_BYTES: u64 = 72;
/// What a key takes there at most, beside its floats, in one entry.
pub(super) const KEY_BYTES: u64 = ROW_BYTES + size_of::<Next>() as u64;
/// The end of a list.
const NONE: u32 = u32::MAX;

/// Passes a hash through: keys are looked up by theirs, which needs no other.
#[derive(Default)]
pub(super) struct Hashed(u64);

impl Hasher for Hashed {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.write_u64(byte.into()));
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// Entries of one table, and for each key that they name a list of what they do to it.
pub(super) struct Window {
    pub(super) table: Arc<Table>,
    /// What rows are stamped with that are changed: entries do not say when they were made, so a
    /// row is younger than it might be, and expires no sooner than it should.
    seen: u32,
    lists: Vec<List>,
    slots: HashMap<u64, u32, BuildHasherDefault<Hashed>>,
    pieces: Vec<Piece>,
    changes: Vec<Next>,
    /// Gradients, or new values, of each change.
    floats: Vec<f32>,
}

/// The changes of one key.
struct List {
    key: u64,
    first: u32,
    last: u32,
}

/// One change of one key: change n takes the floats of its piece at n, less those before.
struct Next {
    piece: u32,
    next: u32,
    /// It removed a row. Stays set when the window is merged again.
    has_removed: AtomicBool,
}

/// One entry's changes of the table, of all its keys or of some neighbouring ones.
struct Piece {
    sequence: Sequence,
    action: Action,
    first_change: usize,
    first_float: usize,
}

#[derive(Clone, Copy)]
enum Action {
    Gradients(f32),
    Rows,
    /// Of so many numbers each.
    Whole(usize),
    Scatter(Operation),
    Remove(Push),
}

impl Window {
    pub(super) fn new(table: Arc<Table>, seen: u32) -> Self {
        Self {
            table,
            seen,
            lists: Vec::new(),
            slots: HashMap::default(),
            pieces: Vec::new(),
            changes: Vec::new(),
            floats: Vec::new(),
        }
    }

    /// Collects what one entry does, as far as `room` bytes reach, but of one key at least. Returns
    /// how many keys were taken, and the bytes that they take.
    pub(super) fn collect(
        &mut self,
        (sequence, push): (Sequence, Push),
        change: Change<'_>,
        keys: &[u64],
        room: u64,
    ) -> (usize, u64) {
        let dim = self.table.dim;
        let (action, floats, width) = match change {
            Change::Gradients(rate, rows) => (Action::Gradients(rate), rows, dim),
            Change::Rows(rows) => (Action::Rows, rows, dim),
            Change::Whole(rows, width) => (Action::Whole(width), rows, width),
            Change::Scatter(operands) => (Action::Scatter(operands.operation), operands.rows, dim),
            Change::Remove => (Action::Remove(push), &[][..], 0),
        };
        let (first_change, first_float) = (self.changes.len(), self.floats.len());
        let change_bytes = (size_of::<Next>() + 4 * width) as u64;
        let mut bytes = 0;
        for (n, &key) in keys.iter().enumerate() {
            // The operands of a key are one change: they stay together.
            let goes_on = matches!(action, Action::Scatter(_)) && n > 0 && keys[n - 1] == key;
            if bytes >= room && bytes > 0 && !goes_on {
                break;
            }
            let rows = self.lists.len();
            self.add(key);
            bytes += change_bytes + (self.lists.len() - rows) as u64 * ROW_BYTES;
        }
        let taken = self.changes.len() - first_change;
        self.floats.extend_from_slice(&floats[..taken * width]);
        self.pieces.push(Piece { sequence, action, first_change, first_float });
        (taken, bytes)
    }

    /// Adds a change of the coming piece to the key's list.
    fn add(&mut self, key: u64) {
        let (own, piece) = (self.changes.len() as u32, self.pieces.len() as u32);
        let has_removed = AtomicBool::new(false);
        self.changes.push(Next { piece, next: NONE, has_removed });
        let rows = self.lists.len() as u32;
        let slot = *self.slots.entry(hash(key)).or_insert(rows);
        match self.lists.get_mut(slot as usize) {
            Some(list) => {
                self.changes[list.last as usize].next = own;
                list.last = own;
            }
            None => self.lists.push(List { key, first: own, last: own }),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Forgets the entries.
    pub(super) fn clear(&mut self) {
        self.lists.clear();
        self.slots.clear();
        self.pieces.clear();
        self.changes.clear();
        self.floats.clear();
    }

    /// Sequence of the newest entry.
    pub(super) fn last(&self) -> Sequence {
        self.pieces.last().map_or(0, |piece| piece.sequence)
    }

    /// The removals of a merged window, with how many rows each removed.
    pub(super) fn removals(&self) -> impl Iterator<Item = (Push, u64)> + '_ {
        let ends = self.pieces.iter().skip(1).map(|piece| piece.first_change);
        let ends = ends.chain([self.changes.len()]);
        self.pieces.iter().zip(ends).filter_map(|(piece, end)| {
            let Action::Remove(push) = piece.action else { return None };
            let changes = &self.changes[piece.first_change..end];
            let removed = changes.iter().filter(|change| change.has_removed.load(Relaxed));
            Some((push, removed.count() as u64))
        })
    }

    /// Keys that the entries name, by number.
    pub(super) fn rows(&self) -> usize {
        self.lists.len()
    }

    pub(super) fn key(&self, row: u32) -> u64 {
        self.lists[row as usize].key
    }

    /// Asks for the changes of a row ahead of their use.
    pub(super) fn prefetch(&self, row: u32) {
        let Some(list) = self.lists.get(row as usize) else { return };
        let change = &self.changes[list.first as usize];
        crate::prefetch::read(std::ptr::from_ref(change).cast());
        // Exact unless removals stand among the entries: a hint may be wrong.
        crate::prefetch::row(&self.floats, self.table.dim, list.first);
    }

    /// Applies a row's changes in order.
    pub(super) fn apply(&self, n: u32, row: &mut Row, numbers: &mut [f32], scratch: &mut [f32]) {
        let mut at = self.lists[n as usize].first;
        while at != NONE {
            let change = &self.changes[at as usize];
            let piece = &self.pieces[change.piece as usize];
            let width = match piece.action {
                Action::Whole(width) => width,
                _ => self.table.dim,
            };
            let start = piece.first_float + (at as usize - piece.first_change) * width;
            let floats = || &self.floats[start..start + width];
            let (table, sequence) = (&*self.table, piece.sequence);
            let (mut last, before) = (change, row.sequence);
            match piece.action {
                Action::Gradients(rate) => {
                    row.step(table, sequence, rate, floats(), numbers, scratch);
                }
                Action::Rows => {
                    row.set(table, sequence, floats(), numbers);
                }
                Action::Whole(_) => {
                    let written = Written::of(floats());
                    row.import(table, (sequence, self.seen), &written, numbers);
                }
                Action::Scatter(operation) => {
                    let end;
                    (last, end) = self.same_piece(at);
                    let operands = &self.floats[start..start + (end - at) as usize * table.dim];
                    row.scatter(table, sequence, (operation, operands), numbers, scratch);
                }
                Action::Remove(_) if row.remove(sequence) => {
                    change.has_removed.store(true, Relaxed);
                }
                Action::Remove(_) => {}
            }
            // A row that was made for a change which it refused has not been seen.
            let is_changed = row.sequence == sequence && before < sequence;
            if is_changed && !matches!(piece.action, Action::Whole(_)) {
                row.last_seen = self.seen;
            }
            at = last.next;
        }
    }

    /// The last of a row's changes that follow change `at` in its piece, side by side, and the
    /// number behind it.
    fn same_piece(&self, at: u32) -> (&Next, u32) {
        let (mut last, mut end) = (&self.changes[at as usize], at + 1);
        while last.next == end && self.changes[end as usize].piece == last.piece {
            (last, end) = (&self.changes[end as usize], end + 1);
        }
        (last, end)
    }
}

/// Whether a key has a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Life {
    Absent,
    Present,
    /// Its record cannot be read; key and sequence are known from the footer.
    Damaged,
}

/// A row on its way through a window. Its numbers lie beside it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Row {
    pub(super) key: u64,
    /// Its record before the window.
    pub(super) place: Option<Place>,
    pub(super) sequence: Sequence,
    pub(super) last_seen: u32,
    pub(super) frequency: u32,
    pub(super) life: Life,
    /// Differs from the record.
    pub(super) is_changed: bool,
}

impl Row {
    pub(super) fn absent(key: u64) -> Self {
        Self {
            key,
            place: None,
            sequence: 0,
            last_seen: 0,
            frequency: 0,
            life: Life::Absent,
            is_changed: false,
        }
    }

    /// Becomes what its record says.
    pub(super) fn read(&mut self, place: Place, record: &RecordView<'_>, numbers: &mut [f32]) {
        self.place = Some(place);
        self.sequence = record.sequence;
        (self.last_seen, self.frequency) = (record.last_seen, record.frequency);
        self.life = Life::Present;
        numbers.copy_from_slice(record.row);
    }

    fn step(
        &mut self,
        table: &Table,
        sequence: Sequence,
        rate: f32,
        gradient: &[f32],
        numbers: &mut [f32],
        scratch: &mut [f32],
    ) {
        self.create(table, sequence, numbers);
        if self.life == Life::Damaged || self.sequence >= sequence {
            return;
        }
        if table.optimizer.step_one(rate, table.gradients, numbers, gradient, scratch) {
            (self.sequence, self.is_changed) = (sequence, true);
        }
    }

    /// Sets the first numbers of the row; false if it stays as it is.
    fn set(
        &mut self,
        table: &Table,
        sequence: Sequence,
        first: &[f32],
        numbers: &mut [f32],
    ) -> bool {
        self.create(table, sequence, numbers);
        if self.sequence >= sequence {
            return false;
        }
        if self.life == Life::Damaged {
            // Where they are all of the row, nothing of the damaged record is needed.
            if first.len() < table.floats {
                return false;
            }
            self.life = Life::Present;
        }
        numbers[..first.len()].copy_from_slice(first);
        (self.sequence, self.is_changed) = (sequence, true);
        true
    }

    fn import(
        &mut self,
        table: &Table,
        (sequence, now): (Sequence, u32),
        written: &Written<'_>,
        numbers: &mut [f32],
    ) {
        if self.set(table, sequence, written.numbers, numbers) {
            (self.frequency, self.last_seen) = (written.frequency, written.seen(now));
        }
    }

    fn scatter(
        &mut self,
        table: &Table,
        sequence: Sequence,
        (operation, operands): (Operation, &[f32]),
        numbers: &mut [f32],
        scratch: &mut [f32],
    ) {
        self.create(table, sequence, numbers);
        if self.life == Life::Damaged || self.sequence >= sequence {
            return;
        }
        if scatter(operation, &mut numbers[..table.dim], operands, scratch) {
            (self.sequence, self.is_changed) = (sequence, true);
        }
    }

    /// False if there was nothing to remove. A trace is left all the same: there may have been a
    /// row that a read had made, of which the files knew nothing.
    fn remove(&mut self, sequence: Sequence) -> bool {
        if self.sequence >= sequence {
            return false;
        }
        let was_there = self.life != Life::Absent;
        (self.life, self.sequence, self.is_changed) = (Life::Absent, sequence, true);
        was_there
    }

    /// A key without a row gets the initial one, as of just before this entry.
    fn create(&mut self, table: &Table, sequence: Sequence, numbers: &mut [f32]) {
        if self.life == Life::Absent {
            table.initial_row(self.key, numbers);
            (self.life, self.sequence, self.is_changed) =
                (Life::Present, before_call(sequence), true);
            (self.last_seen, self.frequency) = (0, 0);
        }
    }
}
