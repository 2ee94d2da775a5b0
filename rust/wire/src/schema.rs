//! What the connection must know of `schemas/hybridps.capnp`; a test holds the two together.

/// Id of the interface `Gate`.
pub const INTERFACE_GATE: u64 = 0xf346_2651_5d5a_c4da;
/// Id of the interface `Session`.
pub const INTERFACE_SESSION: u64 = 0x939b_343e_97c4_e915;

/// Methods of `Session`, by ordinal.
pub const VERBS: [&str; 18] = [
    "lookup",
    "lookupOrInsert",
    "applyGradients",
    "hello",
    "prefetch",
    "assign",
    "remove",
    "createTable",
    "table",
    "tables",
    "dropTable",
    "setLearningRate",
    "alter",
    "size",
    "keys",
    "tableStats",
    "stats",
    "flush",
];

pub(crate) const LOGIN: u16 = 0;
pub(crate) const HELLO: u16 = 3;

/// Ordinals of the verbs that carry arrays, which are read and answered without leaving Rust.
pub const LOOKUP: u16 = 0;
/// As above.
pub const LOOKUP_OR_INSERT: u16 = 1;
/// As above.
pub const APPLY_GRADIENTS: u16 = 2;
/// As above.
pub const PREFETCH: u16 = 4;
/// As above.
pub const ASSIGN: u16 = 5;
/// As above.
pub const REMOVE: u16 = 6;

/// Whether a verb is one of those above.
pub fn is_hot(verb: u16) -> bool {
    matches!(verb, LOOKUP | LOOKUP_OR_INSERT | APPLY_GRADIENTS | PREFETCH | ASSIGN | REMOVE)
}
