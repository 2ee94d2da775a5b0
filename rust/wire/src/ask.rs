//! Calls that carry arrays, as a client asks them: a header, and where the arrays go behind it.

use crate::compose::Composer;
use crate::rpc::{self, Target};
use crate::schema::{
    is_of_one_table, Dtype, APPLY_GRADIENTS, ASSIGN, IMPORT_ROWS, INTERFACE_SESSION, LOOKUP,
    LOOKUP_OR_INSERT, LOOKUP_POOLED, PREFETCH, REMOVE, SCATTER,
};
use crate::verbs::{layout, place, BlobAt, Layout, PushHeader, KEY_BYTES};

/// What is asked. Each table comes with as many arrays as `arrays` names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ask {
    /// `lookup`.
    Lookup {
        /// Whether found flags come with the rows.
        want_found: bool,
        /// Of the rows.
        dtype: Dtype,
    },
    /// `lookupOrInsert`.
    LookupOrInsert {
        /// Of the rows.
        dtype: Dtype,
    },
    /// `lookupPooled`.
    LookupPooled {
        /// Bytes of a key, 4 or 8.
        key_bytes: u8,
        /// Of the rows.
        dtype: Dtype,
    },
    /// `applyGradients`.
    ApplyGradients {
        /// The push.
        push: PushHeader,
        /// Of the gradients.
        dtype: Dtype,
    },
    /// `prefetch`.
    Prefetch,
    /// `assign`, of one table.
    Assign(PushHeader),
    /// `scatter`, of one table.
    Scatter {
        /// The push.
        push: PushHeader,
        /// Its number in the schema.
        operation: u16,
    },
    /// `importRows`, of one table.
    ImportRows(PushHeader),
    /// `remove`, of one table.
    Remove(PushHeader),
}

/// A table id and the bytes of each of its arrays.
pub type Sizes = (u32, Vec<usize>);

impl Ask {
    /// Ordinal of the verb.
    pub fn verb(&self) -> u16 {
        match self {
            Self::Lookup { .. } => LOOKUP,
            Self::LookupOrInsert { .. } => LOOKUP_OR_INSERT,
            Self::LookupPooled { .. } => LOOKUP_POOLED,
            Self::ApplyGradients { .. } => APPLY_GRADIENTS,
            Self::Prefetch => PREFETCH,
            Self::Assign(_) => ASSIGN,
            Self::Remove(_) => REMOVE,
            Self::Scatter { .. } => SCATTER,
            Self::ImportRows(_) => IMPORT_ROWS,
        }
    }

    /// The arrays of a table, in order.
    pub fn arrays(&self) -> &'static [&'static str] {
        match self {
            Self::Lookup { .. } | Self::Prefetch | Self::Remove(_) => &["keys"],
            Self::LookupOrInsert { .. } => &["keys", "counts"],
            Self::LookupPooled { .. } => &["keys", "bags", "weights"],
            Self::ApplyGradients { .. } => &["keys", "gradients"],
            Self::Assign(_) | Self::Scatter { .. } | Self::ImportRows(_) => &["keys", "rows"],
        }
    }

    /// Whether its params name one table, not a list of them.
    pub fn is_of_one_table(&self) -> bool {
        is_of_one_table(self.verb())
    }

    /// The call. Its blobs are those of the first table, then those of the next.
    pub(crate) fn call(&self, question: u32, target: &Target, tables: &[Sizes]) -> Layout {
        let (mut composer, at) = rpc::call(question, target, INTERFACE_SESSION, self.verb());
        let blobs = match self {
            Self::Lookup { want_found, dtype } => {
                let flags = u64::from(*want_found) | dtype_word(*dtype) << 16;
                self.with_flags(&mut composer, at, flags, tables)
            }
            Self::LookupOrInsert { dtype } => {
                self.with_flags(&mut composer, at, dtype_word(*dtype), tables)
            }
            Self::LookupPooled { key_bytes, dtype } => {
                // A field with a default is stored as its difference from it.
                let keys = u64::from(*key_bytes ^ KEY_BYTES) << 16;
                self.with_flags(&mut composer, at, dtype_word(*dtype) | keys, tables)
            }
            Self::Prefetch => {
                let params = composer.structure(at, 0, 1);
                self.batches(&mut composer, params, tables)
            }
            Self::ApplyGradients { push, dtype } => {
                let params = composer.structure(at, 1, 2);
                composer.words[params] = dtype_word(*dtype);
                push_header(&mut composer, params + 1, push);
                self.batches(&mut composer, params + 2, tables)
            }
            Self::Assign(push) | Self::ImportRows(push) | Self::Remove(push) => {
                self.one_table(&mut composer, at, push, 0, tables)
            }
            Self::Scatter { push, operation } => {
                self.one_table(&mut composer, at, push, *operation, tables)
            }
        };
        layout(composer, blobs)
    }

    /// Params of one word and the tables.
    fn with_flags(
        &self,
        composer: &mut Composer,
        at: usize,
        flags: u64,
        tables: &[Sizes],
    ) -> Vec<BlobAt> {
        let params = composer.structure(at, 1, 1);
        composer.words[params] = flags;
        self.batches(composer, params + 1, tables)
    }

    /// A list of structs: the table in their data, a pointer for each array.
    fn batches(&self, composer: &mut Composer, at: usize, tables: &[Sizes]) -> Vec<BlobAt> {
        let arrays = self.arrays().len();
        let first = composer.list(at, tables.len(), 1, arrays as u16);
        let start = |n: usize| first + n * (1 + arrays);
        for (n, (table, _)) in tables.iter().enumerate() {
            composer.words[start(n)] = u64::from(*table);
        }
        let pointers = (0..tables.len()).flat_map(|n| (1..=arrays).map(move |a| start(n) + a));
        place(composer, pointers.zip(tables.iter().flat_map(|(_, sizes)| sizes.iter().copied())))
    }

    /// Params of one table: its id, an operation, the push, a pointer for each array.
    fn one_table(
        &self,
        composer: &mut Composer,
        at: usize,
        push: &PushHeader,
        operation: u16,
        tables: &[Sizes],
    ) -> Vec<BlobAt> {
        let arrays = self.arrays().len();
        let params = composer.structure(at, 1, 1 + arrays as u16);
        push_header(composer, params + 1, push);
        let Some((table, sizes)) = tables.first() else { return Vec::new() };
        composer.words[params] = u64::from(*table) | u64::from(operation) << 32;
        let pointers = (0..arrays).map(|a| params + 2 + a);
        place(composer, pointers.zip(sizes.iter().copied()))
    }
}

/// A dtype as the lowest 16 bits of a word.
fn dtype_word(dtype: Dtype) -> u64 {
    dtype as u64
}

fn push_header(composer: &mut Composer, at: usize, push: &PushHeader) {
    let header = composer.structure(at, 4, 0);
    composer.words[header] = push.number;
    composer.words[header + 1] = u64::from(push.step.is_some());
    composer.words[header + 2] = push.step.unwrap_or(0) as u64;
    composer.words[header + 3] = push.total;
}
