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

/// The first so many verbs are answered without leaving Rust.
pub const HOT_VERBS: u16 = 3;

pub(crate) const LOGIN: u16 = 0;
pub(crate) const LOOKUP: u16 = 0;
pub(crate) const LOOKUP_OR_INSERT: u16 = 1;
pub(crate) const APPLY_GRADIENTS: u16 = 2;
pub(crate) const HELLO: u16 = 3;
