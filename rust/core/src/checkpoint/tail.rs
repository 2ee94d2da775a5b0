//! What a server's file says of itself, behind its rows: which bundles there are, and of which
//! moment of which store they are.

use serde::{Deserialize, Serialize};

use crate::columns::GROUP;
use crate::error::{Error, Result};
use crate::spec::TableSpec;
use crate::types::{Sequence, TableId, BUCKETS};

/// First bytes of a file.
pub(super) const HEAD: &[u8; 16] = b"HPSCKPT\x01rows    ";
const FOOTER_MAGIC: &[u8; 8] = b"HPSCKEND";
pub(super) const FOOTER: usize = 48;
const BUNDLE: usize = 40;
/// A longer description is not ours: about 100,000 tables.
const DESCRIPTION_MAX: u64 = 256 << 20;

/// Rows, or removed keys, of one table in a group of buckets: read and checked at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bundle {
    /// Position among the tables of the file.
    pub(crate) table: u32,
    /// Number of the group: buckets [64 n, 64 n + 64).
    pub(crate) group: u16,
    pub(crate) kind: BundleKind,
    /// Rows, or keys.
    pub(crate) rows: u32,
    pub(crate) offset: u64,
    pub(crate) bytes: u64,
    pub(crate) crc: u32,
}

/// What a bundle holds. Of what one file says of a key the first in this order counts, and of two
/// bundles of one kind the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum BundleKind {
    /// Rows that were changed while the others were copied, as they were before.
    Kept,
    /// Rows that were copied.
    Copied,
    /// Keys that were removed since the parent.
    Removed,
}

/// The words about a file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Tail {
    /// Of the store, as 32 hexadecimal digits.
    pub(crate) store: String,
    /// Its moment.
    pub(crate) sequence: Sequence,
    /// The date then, in unix seconds.
    pub(crate) seconds: u64,
    /// What was written to the log before has an incarnation below this one.
    pub(crate) incarnation: u64,
    /// The server's shard, and how many there are.
    pub(crate) shard: (u32, u32),
    /// The checkpoint that tables with `since` are deltas on.
    pub(crate) parent: Option<String>,
    pub(crate) tables: Vec<SavedTable>,
    /// How far each client had come.
    pub(crate) clients: Vec<Client>,
}

/// One table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct SavedTable {
    pub(crate) id: TableId,
    pub(crate) spec: TableSpec,
    /// Rows that it had on this server.
    pub(crate) rows: u64,
    /// Moment of the parent, if the file holds only what changed since.
    pub(crate) since: Option<Sequence>,
}

/// A client that names itself, and its last step in each table of the file, by name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Client {
    pub(crate) client_id: String,
    pub(crate) steps: Vec<(String, i64)>,
}

impl BundleKind {
    fn code(self) -> u8 {
        self as u8
    }

    fn of(code: u8) -> Option<Self> {
        [Self::Kept, Self::Copied, Self::Removed].into_iter().find(|kind| kind.code() == code)
    }
}

impl Bundle {
    fn encode(&self, to: &mut Vec<u8>) {
        to.extend(self.table.to_le_bytes());
        to.extend(self.group.to_le_bytes());
        to.extend([self.kind.code(), 0]);
        to.extend(self.rows.to_le_bytes());
        to.extend(self.crc.to_le_bytes());
        to.extend(self.offset.to_le_bytes());
        to.extend(self.bytes.to_le_bytes());
        to.extend([0; 8]);
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        Some(Self {
            table: word(bytes, 0) as u32,
            group: word(bytes, 4) as u16,
            kind: BundleKind::of(*bytes.get(6)?)?,
            rows: word(bytes, 8) as u32,
            crc: (word(bytes, 8) >> 32) as u32,
            offset: word(bytes, 16),
            bytes: word(bytes, 24),
        })
    }
}

/// Eight bytes, of which the caller may cut some off.
fn word(bytes: &[u8], at: usize) -> u64 {
    bytes[at..].iter().take(8).rev().fold(0, |word, &byte| word << 8 | u64::from(byte))
}

/// Bundles, description and footer of a file whose bundles end at `end`.
pub(super) fn encode(bundles: &[Bundle], tail: &Tail, end: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(bundles.len() * BUNDLE + 4096);
    bundles.iter().for_each(|bundle| bundle.encode(&mut bytes));
    let description = serde_json::to_vec(tail)
        .map_err(|error| Error::bad_input(format!("a checkpoint cannot be described: {error}")))?;
    bytes.extend_from_slice(&description);
    let crc = crc32c::crc32c(&bytes);
    let mut footer = Vec::with_capacity(FOOTER);
    footer.extend(FOOTER_MAGIC);
    footer.extend(end.to_le_bytes());
    footer.extend((bundles.len() as u64).to_le_bytes());
    footer.extend((description.len() as u64).to_le_bytes());
    footer.extend(crc.to_le_bytes());
    footer.extend([0; 8]);
    footer.extend(crc32c::crc32c(&footer).to_le_bytes());
    debug_assert_eq!(footer.len(), FOOTER);
    bytes.extend(footer);
    Ok(bytes)
}

/// Where the parts of a tail lie, from the footer of a file of `length` bytes.
pub(super) struct Layout {
    pub(super) end: u64,
    pub(super) bytes: usize,
    bundles: usize,
    crc: u32,
}

/// Reads a footer; else what is wrong.
pub(super) fn decode_footer(footer: &[u8], length: u64) -> std::result::Result<Layout, String> {
    let (head, crc) = footer.split_at(FOOTER - 4);
    if crc != crc32c::crc32c(head).to_le_bytes() {
        return Err("fails the checksum of its end".into());
    }
    if !head.starts_with(FOOTER_MAGIC) {
        return Err("is no file of a checkpoint".into());
    }
    let (end, bundles, description) = (word(head, 8), word(head, 16), word(head, 24));
    let bytes = bundles.checked_mul(BUNDLE as u64).and_then(|n| n.checked_add(description));
    let whole = bytes.and_then(|bytes| end.checked_add(bytes)?.checked_add(FOOTER as u64));
    if whole != Some(length) || description > DESCRIPTION_MAX || end < HEAD.len() as u64 {
        return Err(format!("has {length} bytes, which its end contradicts"));
    }
    let crc = word(head, 32) as u32;
    Ok(Layout {
        end,
        bytes: (bundles * BUNDLE as u64 + description) as usize,
        bundles: bundles as usize,
        crc,
    })
}

/// Reads bundles and description; else what is wrong. Bundles fill the file without a gap, so no
/// byte is without a checksum.
pub(super) fn decode(
    bytes: &[u8],
    layout: &Layout,
) -> std::result::Result<(Vec<Bundle>, Tail), String> {
    if crc32c::crc32c(bytes) != layout.crc {
        return Err("fails the checksum of its list of rows".into());
    }
    let (list, description) = bytes.split_at(layout.bundles * BUNDLE);
    let tail: Tail = serde_json::from_slice(description)
        .map_err(|error| format!("has a malformed description: {error}"))?;
    let mut at = HEAD.len() as u64;
    let mut bundles = Vec::with_capacity(layout.bundles);
    for bytes in list.chunks_exact(BUNDLE) {
        let is_sound = |bundle: &Bundle| {
            let is_known = (bundle.table as usize) < tail.tables.len();
            is_known && u32::from(bundle.group) < BUCKETS / GROUP && bundle.offset == at
        };
        let bundle =
            Bundle::decode(bytes).filter(is_sound).ok_or("lists rows that there are not")?;
        at = at.checked_add(bundle.bytes).ok_or("lists rows beyond its end")?;
        bundles.push(bundle);
    }
    if at != layout.end {
        return Err("has bytes that its list does not name".into());
    }
    Ok((bundles, tail))
}

/// The checksum in a footer: it stands for the whole file.
pub(super) fn footer_crc(bytes: &[u8]) -> u32 {
    let crc = bytes.len() - 4;
    word(bytes, crc) as u32
}
