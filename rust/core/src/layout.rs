//! How the numbers of a row lie in its 32-bit words: value first, then the optimizer's slots.
//!
//! A table's layout is named in the manifest, in journal entries that define it, and in every page
//! of the log that holds its rows; the ids are for all time (docs/format.md).

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Layouts that this program reads and writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub(crate) enum Layout {
    /// A number a word, IEEE 754 binary32.
    Float32,
}

/// Dtypes whose layouts have an id, and no reader yet.
const RESERVED: [(u32, &str); 3] = [(1, "bfloat16"), (2, "float16"), (3, "int8")];

impl Layout {
    /// Of the rows of a table of this dtype.
    ///
    /// # Errors
    /// `BadInput` naming the dtype, and what to give instead.
    pub(crate) fn of(dtype: &str) -> Result<Self> {
        if dtype == "float32" {
            return Ok(Self::Float32);
        }
        let is_reserved = RESERVED.iter().any(|&(_, name)| name == dtype);
        let why = if is_reserved { ", which is reserved and not supported yet" } else { "" };
        Err(Error::bad_input(format!("dtype is {dtype}{why}; give \"float32\"")))
    }

    /// Its id in files.
    pub(crate) const fn id(self) -> u32 {
        match self {
            Self::Float32 => 0,
        }
    }
}

impl TryFrom<u32> for Layout {
    /// What stands in the way, and the remedy.
    type Error = String;

    fn try_from(id: u32) -> std::result::Result<Self, String> {
        if id == Self::Float32.id() {
            return Ok(Self::Float32);
        }
        let name = RESERVED.iter().find(|&&(reserved, _)| reserved == id);
        let name = name.map_or("unknown", |&(_, name)| name);
        Err(format!(
            "layout {id} ({name}), this program reads layout 0 (float32); use the version of \
             hybridps that wrote it, or a later one"
        ))
    }
}

impl From<Layout> for u32 {
    fn from(layout: Layout) -> Self {
        layout.id()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_works_is_taken() {
        assert_eq!(Layout::of("float32").expect("the one that works").id(), 0);
        assert_eq!(Layout::try_from(0), Ok(Layout::Float32));
        for (id, name) in RESERVED {
            let refusal = Layout::try_from(id).expect_err("no reader");
            assert!(refusal.contains(&format!("layout {id} ({name})")), "{refusal}");
            let error = Layout::of(name).expect_err("no reader");
            assert!(error.message.contains("not supported yet"), "{error}");
        }
        assert!(Layout::try_from(77).expect_err("none").contains("unknown"));
        assert!(!Layout::of("float64").expect_err("no reader").message.contains("yet"));
    }
}
