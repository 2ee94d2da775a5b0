//! The manifest: which tables exist, with their live settings.
//!
//! Replaced whole by every create, drop and alter (docs/adr/0001). Ids are never used again.

use std::collections::HashSet;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::directory::{self, Directory, MANIFEST};
use crate::error::{Error, Result};
use crate::spec::TableSpec;
use crate::types::TableId;

const VERSION: u32 = 1;
/// About 100,000 tables; a longer file is not ours.
const BYTES_MAX: u64 = 64 << 20;
/// "crc32c " + 8 digits + line feed.
const CRC_LINE: usize = 16;

/// All tables of a store.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Manifest {
    /// The id that the next table gets; only grows.
    pub(crate) next_table_id: TableId,
    /// In order of their ids.
    pub(crate) tables: Vec<ManifestTable>,
}

/// One table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ManifestTable {
    /// Names it in log and journal.
    pub(crate) id: TableId,
    /// With live settings.
    pub(crate) spec: TableSpec,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    version: u32,
    next_table_id: TableId,
    tables: Vec<ManifestTable>,
}

/// Read before the document, whose fields depend on it.
#[derive(Deserialize)]
struct Version {
    version: u32,
}

impl Default for Manifest {
    /// That of a new store.
    fn default() -> Self {
        Self { next_table_id: 1, tables: Vec::new() }
    }
}

impl Manifest {
    /// Reads the manifest of a store.
    ///
    /// # Errors
    /// `Corruption` if it is absent or damaged, `Config` if a newer version wrote it.
    pub(crate) fn load(directory: &Directory) -> Result<Self> {
        let path = directory.file(MANIFEST);
        let bytes =
            directory::read_small(&path, BYTES_MAX)?.ok_or_else(|| corrupt(&path, "is missing"))?;
        let json = check_crc(&bytes).ok_or_else(|| corrupt(&path, "fails its crc"))?;
        let syntax = |error: serde_json::Error| corrupt(&path, &format!("is malformed: {error}"));
        let Version { version } = serde_json::from_slice(json).map_err(syntax)?;
        if version != VERSION {
            return Err(Error::config(format!(
                "{} has format version {version}, this build reads version {VERSION}; use the \
                 version of hybridps that wrote it, or a later one",
                path.display()
            )));
        }
        let document: Document = serde_json::from_slice(json).map_err(syntax)?;
        let manifest = Self { next_table_id: document.next_table_id, tables: document.tables };
        manifest.check().map_err(|what| corrupt(&path, &what))?;
        Ok(manifest)
    }

    /// Replaces the stored manifest; on the device when it returns.
    ///
    /// # Errors
    /// `StoreFull`, `Unavailable`; the stored one stays then.
    pub(crate) fn save(&self, directory: &Directory) -> Result<()> {
        let path = directory.file(MANIFEST);
        let document = Document {
            version: VERSION,
            next_table_id: self.next_table_id,
            tables: self.tables.clone(),
        };
        let mut bytes = serde_json::to_vec(&document)
            .map_err(|error| Error::bad_input(format!("cannot write {path:?}: {error}")))?;
        bytes.push(b'\n');
        if bytes.len() as u64 > BYTES_MAX - CRC_LINE as u64 {
            return Err(Error::store_full(format!(
                "{} tables make {} longer than {BYTES_MAX} bytes; drop some first",
                self.tables.len(),
                path.display()
            )));
        }
        let crc = crc32c::crc32c(&bytes);
        bytes.extend_from_slice(format!("crc32c {crc:08x}\n").as_bytes());
        directory::replace(&path, &bytes)
    }

    fn check(&self) -> std::result::Result<(), String> {
        let mut names = HashSet::new();
        let mut last = 0;
        for ManifestTable { id, spec } in &self.tables {
            if *id <= last || *id >= self.next_table_id {
                return Err(format!(
                    "holds table id {id} after {last}, next is {}",
                    self.next_table_id
                ));
            }
            last = *id;
            if !names.insert(&spec.name) {
                return Err(format!("holds table {:?} twice", spec.name));
            }
            spec.check().map_err(|error| format!("holds a bad table id {id}: {error}"))?;
        }
        Ok(())
    }
}

/// The bytes before the last line, if that line is their crc.
fn check_crc(bytes: &[u8]) -> Option<&[u8]> {
    let (json, line) = bytes.split_at_checked(bytes.len().checked_sub(CRC_LINE)?)?;
    let expected = format!("crc32c {:08x}\n", crc32c::crc32c(json));
    (line == expected.as_bytes()).then_some(json)
}

fn corrupt(path: &Path, what: &str) -> Error {
    let path = path.display();
    Error::corruption(format!("{path} {what}; restore the data directory from a checkpoint"))
}

#[cfg(test)]
#[path = "manifest_tests.rs"]
mod tests;
