//! The manifest: which tables exist, with their live settings, as of a sequence.
//!
//! Replaced whole by every create, drop and alter, once the journal has its entry on the device
//! (docs/adr/0020). Ids are never used again.

use std::collections::HashSet;
use std::fs::OpenOptions;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::directory::{self, Directory, MANIFEST};
use crate::error::{Error, Result};
use crate::layout::Layout;
use crate::spec::TableSpec;
use crate::types::{Sequence, TableId};
use crate::vfs;

const VERSION: u32 = 2;
/// About 100,000 tables; a longer file is not ours.
const BYTES_MAX: u64 = 64 << 20;
/// "crc32c " + 8 digits + line feed.
const CRC_LINE: usize = 16;

/// All tables of a store.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Manifest {
    /// Of the last change of tables that is in it; 0 in a new store.
    pub(crate) sequence: Sequence,
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
    /// Of its rows.
    pub(crate) layout: Layout,
    /// With live settings.
    pub(crate) spec: TableSpec,
    /// Ids of the tables that it replaced: handles that were given out name it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) formerly: Vec<TableId>,
    /// It is being filled, to replace the one of its name, or to be it: no table until then.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) is_staged: bool,
}

/// A manifest whose room on the device is taken: only a failing device keeps it from being
/// published. Gone when dropped.
pub(crate) struct Draft {
    manifest: Manifest,
    path: PathBuf,
    /// `None` once it was published.
    temporary: Option<PathBuf>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    version: u32,
    sequence: Sequence,
    next_table_id: TableId,
    tables: Vec<ManifestTable>,
}

/// Read before the document, whose fields depend on it.
#[derive(Deserialize)]
struct Version {
    version: u32,
}

/// Read before the specs, which depend on it.
#[derive(Deserialize)]
struct Layouts {
    tables: Vec<LayoutOf>,
}

#[derive(Deserialize)]
struct LayoutOf {
    id: TableId,
    layout: u32,
}

impl Default for Manifest {
    /// That of a new store.
    fn default() -> Self {
        Self { sequence: 0, next_table_id: 1, tables: Vec::new() }
    }
}

impl Manifest {
    /// Reads the manifest of a store.
    ///
    /// # Errors
    /// `Corruption` if it is absent or damaged, `Config` if another version wrote it, or if rows of
    /// a table have a layout that this one does not read.
    pub(crate) fn load(directory: &Directory) -> Result<Self> {
        let path = directory.file(MANIFEST);
        let bytes =
            directory::read_small(&path, BYTES_MAX)?.ok_or_else(|| corrupt(&path, "is missing"))?;
        let json = check_crc(&bytes).ok_or_else(|| corrupt(&path, "fails its crc"))?;
        let syntax = |error: serde_json::Error| corrupt(&path, &format!("is malformed: {error}"));
        let Version { version } = serde_json::from_slice(json).map_err(syntax)?;
        directory::check_version(&path, version, VERSION)?;
        let Layouts { tables } = serde_json::from_slice(json).map_err(syntax)?;
        for LayoutOf { id, layout } in tables {
            let path = path.display();
            Layout::try_from(layout)
                .map_err(|why| Error::config(format!("{path}: table id {id} has {why}")))?;
        }
        let Document { sequence, next_table_id, tables, .. } =
            serde_json::from_slice(json).map_err(syntax)?;
        let manifest = Self { sequence, next_table_id, tables };
        manifest.check().map_err(|what| corrupt(&path, &what))?;
        Ok(manifest)
    }

    /// Replaces the stored manifest; on the device when it returns.
    ///
    /// # Errors
    /// `StoreFull`, `Unavailable`; the stored one stays then.
    pub(crate) fn save(&self, directory: &Directory) -> Result<()> {
        let sequence = self.sequence;
        self.clone().draft(directory)?.publish(sequence)
    }

    /// Takes the room that it needs on the device, whatever its sequence will be.
    ///
    /// # Errors
    /// `StoreFull`, `Unavailable`; nothing changed then.
    pub(crate) fn draft(mut self, directory: &Directory) -> Result<Draft> {
        let path = directory.file(MANIFEST);
        self.sequence = Sequence::MAX;
        let bytes = self.encode(&path)?;
        let (_, temporary) =
            directory::write_temporary(&path, |file| vfs::append(file, &[&bytes]))?;
        Ok(Draft { manifest: self, path, temporary: Some(temporary) })
    }

    fn encode(&self, path: &Path) -> Result<Vec<u8>> {
        let document = Document {
            version: VERSION,
            sequence: self.sequence,
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
        Ok(bytes)
    }

    fn check(&self) -> std::result::Result<(), String> {
        let mut names = HashSet::new();
        let mut last = 0;
        for table in &self.tables {
            let id = table.id;
            if id <= last || id >= self.next_table_id {
                return Err(format!(
                    "holds table id {id} after {last}, next is {}",
                    self.next_table_id
                ));
            }
            last = id;
            if !table.is_staged && !names.insert(&table.spec.name) {
                return Err(format!("holds table {:?} twice", table.spec.name));
            }
            table.check()?;
        }
        Ok(())
    }
}

impl Draft {
    /// Makes it the stored manifest, as of `sequence`; on the device when it returns.
    ///
    /// # Errors
    /// `Unavailable`: which one is stored is not known then.
    pub(crate) fn publish(mut self, sequence: Sequence) -> Result<()> {
        self.manifest.sequence = sequence;
        let bytes = self.manifest.encode(&self.path)?;
        let Some(temporary) = self.temporary.take() else { return Ok(()) };
        // Over what was written before, and no longer than that: it needs no more room.
        OpenOptions::new()
            .write(true)
            .open(&temporary)
            .and_then(|file| {
                vfs::write_at(&file, &bytes, 0)?;
                vfs::set_length(&file, bytes.len() as u64)?;
                vfs::sync_all(&file)
            })
            .map_err(|cause| Error::io("write", &temporary, &cause))?;
        directory::publish(&temporary, &self.path)
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            // One that stays is overwritten by the next.
            let _ = directory::remove_if_present(temporary);
        }
    }
}

impl ManifestTable {
    /// The table `id` as `spec` has it.
    ///
    /// # Errors
    /// `BadInput` for a dtype without a layout.
    pub(crate) fn new(id: TableId, spec: TableSpec) -> Result<Self> {
        let layout = Layout::of(&spec.dtype)?;
        Ok(Self { id, layout, spec, formerly: Vec::new(), is_staged: false })
    }

    /// As it stands in a manifest, for the journal.
    pub(crate) fn to_text(&self) -> Result<String> {
        serde_json::to_string(self).map_err(|error| {
            Error::bad_input(format!("table {:?} cannot be written: {error}", self.spec.name))
        })
    }

    /// The inverse; else what is wrong with the text.
    pub(crate) fn from_text(text: &str) -> std::result::Result<Self, String> {
        let table: Self = serde_json::from_str(text).map_err(|error| error.to_string())?;
        table.check().map(|()| table)
    }

    fn check(&self) -> std::result::Result<(), String> {
        let Self { id, layout, spec, .. } = self;
        spec.check().map_err(|error| format!("holds a bad table id {id}: {error}"))?;
        match Layout::of(&spec.dtype) {
            Ok(of_dtype) if of_dtype == *layout => Ok(()),
            _ => Err(format!("holds table id {id} of layout {} and {}", layout.id(), spec.dtype)),
        }
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
