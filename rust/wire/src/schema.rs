//! What the connection must know of `schemas/hybridps.capnp`; a test holds the two together.

use std::sync::LazyLock;

/// Id of the interface `Gate`.
pub const INTERFACE_GATE: u64 = 0xf346_2651_5d5a_c4da;
/// Id of the interface `Session`.
pub const INTERFACE_SESSION: u64 = 0x939b_343e_97c4_e915;

/// Methods of `Session`, by ordinal, as the schema has them.
pub static VERBS: LazyLock<Vec<&'static str>> = LazyLock::new(|| methods(SCHEMA, "Session"));

const SCHEMA: &str = include_str!("../../../schemas/hybridps.capnp");

/// Names of the methods of an interface, by ordinal. The compiler of the schema refuses gaps.
fn methods<'a>(schema: &'a str, interface: &str) -> Vec<&'a str> {
    let code = |line: &'a str| line.split_once('#').map_or(line, |(code, _)| code).trim();
    let mut lines = schema.lines().map(code);
    lines.find(|line| line.starts_with(&format!("interface {interface} ")));
    let mut methods: Vec<(u16, &str)> = lines
        .take_while(|line| *line != "}")
        .filter_map(|line| {
            let (name, rest) = line.split_once(" @")?;
            let (ordinal, _) = rest.split_once(" (")?;
            Some((ordinal.parse().ok()?, name))
        })
        .collect();
    methods.sort_unstable();
    methods.into_iter().map(|(_, name)| name).collect()
}

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
/// As above.
pub const LOOKUP_POOLED: u16 = 18;
/// As above.
pub const SCATTER: u16 = 23;
/// As above.
pub const IMPORT_ROWS: u16 = 26;

/// Whether a verb is one of those above.
pub fn is_hot(verb: u16) -> bool {
    is_read(verb) || is_of_one_table(verb) || matches!(verb, APPLY_GRADIENTS | PREFETCH)
}

/// Whether a verb is a push whose params name one table.
pub(crate) fn is_of_one_table(verb: u16) -> bool {
    matches!(verb, ASSIGN | REMOVE | SCATTER | IMPORT_ROWS)
}

/// Whether a verb is answered with rows.
pub fn is_read(verb: u16) -> bool {
    matches!(verb, LOOKUP | LOOKUP_OR_INSERT | LOOKUP_POOLED)
}

/// How numbers of rows and gradients travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Dtype {
    /// As they are.
    #[default]
    Float32,
    /// Their upper half.
    Bfloat16,
    /// IEEE 754 binary16.
    Float16,
}

impl Dtype {
    /// By its name in the schema.
    pub fn parse(name: &str) -> Option<Self> {
        [Self::Float32, Self::Bfloat16, Self::Float16].into_iter().find(|d| d.name() == name)
    }

    /// Its name in the schema.
    pub fn name(self) -> &'static str {
        match self {
            Self::Float32 => "float32",
            Self::Bfloat16 => "bfloat16",
            Self::Float16 => "float16",
        }
    }

    /// Bytes of a number.
    pub fn bytes(self) -> usize {
        match self {
            Self::Float32 => 4,
            Self::Bfloat16 | Self::Float16 => 2,
        }
    }

    pub(crate) fn of(ordinal: u16) -> Option<Self> {
        [Self::Float32, Self::Bfloat16, Self::Float16].get(usize::from(ordinal)).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_verbs_are_those_of_the_schema_in_the_order_of_their_ordinals() {
        let schema = "interface Gate {\n  login @0 (token :Text) -> ();\n}\n\
            # interface Session, as told\ninterface Session {\n  # said @9 (x)\n\
            second @1 () -> ();\n  first @0 (many :List(A)) -> (x :B);\n}\n\
            interface Later {\n  other @0 () -> ();\n}\n";
        assert_eq!(methods(schema, "Session"), ["first", "second"]);
        assert_eq!(methods(schema, "Gate"), ["login"]);
        for (ordinal, name) in [
            (LOOKUP, "lookup"),
            (LOOKUP_OR_INSERT, "lookupOrInsert"),
            (APPLY_GRADIENTS, "applyGradients"),
            (HELLO, "hello"),
            (PREFETCH, "prefetch"),
            (ASSIGN, "assign"),
            (REMOVE, "remove"),
            (LOOKUP_POOLED, "lookupPooled"),
            (SCATTER, "scatter"),
            (IMPORT_ROWS, "importRows"),
        ] {
            assert_eq!(VERBS[usize::from(ordinal)], name);
        }
    }
}
