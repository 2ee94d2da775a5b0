//! What one mutating call leaves in the journal.

use crate::types::{Push, Sequence, TableId};

/// One mutating call. Written from the caller's slices, read into slices of the reader's buffer.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Entry<'a> {
    /// `apply_gradients`.
    Gradients {
        /// Its place in the store's order.
        sequence: Sequence,
        /// Who, and which push.
        push: Push,
        /// All tables of the call.
        tables: Vec<GradientPart<'a>>,
    },
    /// `assign`.
    Assign {
        /// Its place in the store's order.
        sequence: Sequence,
        /// Who, and which push.
        push: Push,
        /// Table.
        table: TableId,
        /// Keys; of repeats the last wins.
        keys: &'a [u64],
        /// float32[n, dim].
        rows: &'a [f32],
    },
    /// `remove`.
    Remove {
        /// Its place in the store's order.
        sequence: Sequence,
        /// Who, and which push.
        push: Push,
        /// Table.
        table: TableId,
        /// Keys; absent ones are no error.
        keys: &'a [u64],
    },
    /// All sessions at the start of a file, in place of what older files say about them.
    Sessions {
        /// The last sequence given out.
        sequence: Sequence,
        /// Every live session.
        sessions: Vec<SessionRecord>,
    },
    /// `attach`: from here on the session is the one of its client.
    Attach {
        /// Its place in the store's order.
        sequence: Sequence,
        /// The new session.
        session: u64,
        /// Empty if the client gave none.
        client_id: &'a str,
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
    /// Unix seconds.
    pub(crate) last_used: u64,
    /// Last step of each table that has one.
    pub(crate) steps: Vec<(TableId, i64)>,
}

impl Entry<'_> {
    /// Its place in the store's order.
    pub(crate) fn sequence(&self) -> Sequence {
        match *self {
            Self::Gradients { sequence, .. }
            | Self::Assign { sequence, .. }
            | Self::Remove { sequence, .. }
            | Self::Sessions { sequence, .. }
            | Self::Attach { sequence, .. } => sequence,
        }
    }
}
