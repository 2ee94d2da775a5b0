//! What one mutating call leaves in the journal.

use crate::scatter::Operation;
use crate::types::{Epoch, Push, Sequence, TableId};

/// Where an entry stands: told by its header, not by its body, so that the body can be laid out and
/// its checksum computed before the call has its place in the order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp {
    /// Of its file.
    pub(crate) generation: u32,
    /// In the store's order.
    pub(crate) sequence: Sequence,
    /// In which it was written: each primary of a shard has its own.
    pub(crate) epoch: Epoch,
}

/// One mutating call, or what one found. Written from the caller's slices, read into slices of the
/// reader's buffer.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Entry<'a> {
    /// `apply_gradients`.
    Gradients {
        /// Who, and which push.
        push: Push,
        /// All tables of the call.
        tables: Vec<GradientPart<'a>>,
    },
    /// `assign`.
    Assign {
        /// Who, and which push.
        push: Push,
        /// Table.
        table: TableId,
        /// Keys; of repeats the last wins.
        keys: &'a [u64],
        /// float32[n, dim].
        rows: &'a [f32],
    },
    /// `scatter`.
    Scatter {
        /// Who, and which push.
        push: Push,
        /// Table.
        table: TableId,
        /// What is done with the operands.
        operation: Operation,
        /// The key of each operand; equal ones lie side by side.
        keys: &'a [u64],
        /// float32[n, dim], applied to a key's row in this order.
        rows: &'a [f32],
    },
    /// `import_rows`.
    Import {
        /// Who, and which push.
        push: Push,
        /// Table.
        table: TableId,
        /// Keys, each once.
        keys: &'a [u64],
        /// float32[n, width]: numbers, then statistics as bits of two uint32.
        rows: &'a [f32],
    },
    /// `remove`.
    Remove {
        /// Who, and which push.
        push: Push,
        /// Table.
        table: TableId,
        /// Keys; absent ones are no error.
        keys: &'a [u64],
    },
    /// All sessions at the start of a file, in place of what older files say about them. Its
    /// sequence is the last one given out.
    Sessions {
        /// Length of the file before; 0 if there is none.
        before: u64,
        /// Every live session.
        sessions: Vec<SessionRecord>,
    },
    /// `attach`: from here on the session is the one of its client.
    Attach {
        /// The new session.
        session: u64,
        /// Empty if the client gave none.
        client_id: &'a str,
    },
    /// `create_table`.
    CreateTable {
        /// Its id, which no table had before.
        table: TableId,
        /// What it is, as the manifest says it.
        definition: &'a str,
    },
    /// `alter`.
    AlterTable {
        /// Table.
        table: TableId,
        /// What it is from here on, as the manifest says it.
        definition: &'a str,
    },
    /// `drop_table`.
    DropTable {
        /// Table.
        table: TableId,
    },
    /// How many rows a removal found, once it has passed all its keys. Its sequence is the last one
    /// given out.
    Removed {
        /// Whose removal.
        session: u64,
        /// Which of its pushes.
        number: u64,
        /// Rows that there were.
        rows: u64,
    },
}

/// One table's part of a `Gradients` entry.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct GradientPart<'a> {
    /// Table.
    pub(crate) table: TableId,
    /// In force at the call.
    pub(crate) learning_rate: f32,
    /// Keys that the optimizer ran on.
    pub(crate) keys: &'a [u64],
    /// float32[n, dim].
    pub(crate) gradients: &'a [f32],
}

/// What the store knows of a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SessionRecord {
    /// The session.
    pub(crate) session: u64,
    /// Its client; empty if it gave none.
    pub(crate) client_id: String,
    /// Last applied push, 0 if none.
    pub(crate) number: u64,
    /// Seconds by the clock of sessions, which runs while the store is open.
    pub(crate) last_used: u64,
    /// Last step of each table that has one.
    pub(crate) steps: Vec<(TableId, i64)>,
    /// Numbers of its last removals, with how many rows each found.
    pub(crate) removals: Vec<(u64, u64)>,
}
