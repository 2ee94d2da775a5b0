//! The manifest of a checkpoint: written last, so that whatever has one was whole.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::reader::corrupt;
use crate::directory;
use crate::error::{Error, Result};

const VERSION: u32 = 1;
const BYTES_MAX: u64 = 64 << 20;
/// "crc32c " + 8 digits + line feed.
const CRC_LINE: usize = 16;

/// Whether a checkpoint holds all rows, or those that changed since its parent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TakenKind {
    /// All rows.
    Full,
    /// What changed since the parent, of some tables at least.
    Delta,
}

/// A checkpoint, as its manifest describes it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Checkpoint {
    version: u32,
    /// Its directory's name; greater for later ones.
    pub id: String,
    /// All rows, or what changed.
    pub kind: TakenKind,
    /// The one that it is a delta on.
    pub parent: Option<String>,
    /// The trainer's step, if one was given.
    pub step: Option<i64>,
    /// Whatever the caller gave.
    pub extra: serde_json::Value,
    /// Unix seconds.
    pub created: f64,
    /// Rows of each table, on all servers.
    pub tables: BTreeMap<String, u64>,
    /// Of all its files but this one.
    pub bytes: u64,
    /// A file for each server, in order.
    pub shards: Vec<ShardSummary>,
}

/// One server's file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ShardSummary {
    /// File name.
    pub file: String,
    /// Its length.
    pub bytes: u64,
    /// The checksum that stands for all of it.
    pub crc: u32,
    /// Whether some of its tables hold only what changed.
    pub is_delta: bool,
    /// Rows of each table on that server.
    pub tables: BTreeMap<String, u64>,
}

/// What is said of a checkpoint whose files are whole.
#[derive(Debug, Clone, Deserialize)]
pub struct Draft {
    /// See `Checkpoint`.
    pub parent: Option<String>,
    /// See `Checkpoint`.
    pub step: Option<i64>,
    /// See `Checkpoint`.
    #[serde(default)]
    pub extra: serde_json::Value,
    /// Of every server, in order.
    pub shards: Vec<ShardSummary>,
}

impl Checkpoint {
    pub(super) fn new(id: &str, draft: Draft) -> Self {
        let Draft { parent, step, extra, shards } = draft;
        let is_delta = parent.is_some() && shards.iter().any(|shard| shard.is_delta);
        let mut tables = BTreeMap::new();
        for (name, rows) in shards.iter().flat_map(|shard| &shard.tables) {
            *tables.entry(name.clone()).or_default() += rows;
        }
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        Self {
            version: VERSION,
            id: id.to_owned(),
            kind: if is_delta { TakenKind::Delta } else { TakenKind::Full },
            parent: parent.filter(|_| is_delta),
            step,
            extra,
            created: since.map_or(0.0, |since| since.as_secs_f64()),
            tables,
            bytes: shards.iter().map(|shard| shard.bytes).sum(),
            shards,
        }
    }

    /// Reads the manifest `path` of the checkpoint `id`; `None` if there is no such file.
    ///
    /// # Errors
    /// `Corruption` naming it if it is damaged; `Config` if another version wrote it.
    pub(super) fn load(path: &Path, id: &str) -> Result<Option<Self>> {
        let Some(bytes) = directory::read_small(path, BYTES_MAX)? else { return Ok(None) };
        let json = check_crc(&bytes).ok_or_else(|| corrupt(path, "fails its checksum"))?;
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        let malformed = |error: serde_json::Error| corrupt(path, &format!("is malformed: {error}"));
        let Version { version } = serde_json::from_slice(json).map_err(malformed)?;
        directory::check_version(path, version, VERSION)?;
        let found: Self = serde_json::from_slice(json).map_err(malformed)?;
        if found.id != id {
            return Err(corrupt(path, &format!("is of the checkpoint {:?}", found.id)));
        }
        Ok(Some(found))
    }

    pub(super) fn encode(&self) -> Result<Vec<u8>> {
        let mut bytes = serde_json::to_vec_pretty(self)
            .map_err(|error| Error::bad_input(format!("extra cannot be written: {error}")))?;
        bytes.push(b'\n');
        if bytes.len() as u64 > BYTES_MAX - CRC_LINE as u64 {
            let (found, most) = (bytes.len(), BYTES_MAX);
            return Err(Error::bad_input(format!(
                "the manifest of the checkpoint takes {found} bytes, of {most}; give a smaller \
                 extra"
            )));
        }
        let crc = crc32c::crc32c(&bytes);
        bytes.extend_from_slice(format!("crc32c {crc:08x}\n").as_bytes());
        Ok(bytes)
    }
}

/// The bytes before the last line, if that line is their checksum.
fn check_crc(bytes: &[u8]) -> Option<&[u8]> {
    let (json, line) = bytes.split_at_checked(bytes.len().checked_sub(CRC_LINE)?)?;
    let expected = format!("crc32c {:08x}\n", crc32c::crc32c(json));
    (line == expected.as_bytes()).then_some(json)
}
