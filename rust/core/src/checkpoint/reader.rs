//! Reading a server's file: its list first, then any bundle, checked.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::tail::{self, Bundle, BundleKind, Tail, FOOTER, HEAD};
use crate::columns::{words, Columns};
use crate::error::{Error, Result};

/// A file whose list is sound.
pub(crate) struct ShardReader {
    file: File,
    path: PathBuf,
    pub(crate) tail: Tail,
    bundles: Vec<Bundle>,
    /// Of each table and group, the positions of its bundles, in the order in which they count.
    places: BTreeMap<(u32, u16), Vec<u32>>,
    length: u64,
    crc: u32,
}

impl ShardReader {
    /// Reads and checks all but the rows.
    ///
    /// # Errors
    /// `Corruption` naming the file if it is missing or damaged.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let file = File::open(path)
            .map_err(|cause| corrupt(path, &format!("cannot be opened: {cause}")))?;
        let failed = |cause: std::io::Error| corrupt(path, &format!("cannot be read: {cause}"));
        let length = file.metadata().map_err(failed)?.len();
        if length < (HEAD.len() + FOOTER) as u64 {
            return Err(corrupt(path, &format!("has only {length} bytes")));
        }
        let (mut head, mut footer) = ([0; HEAD.len()], [0; FOOTER]);
        file.read_exact_at(&mut head, 0).map_err(failed)?;
        if head != *HEAD {
            return Err(corrupt(
                path,
                "does not begin like a file of a checkpoint of this version",
            ));
        }
        file.read_exact_at(&mut footer, length - FOOTER as u64).map_err(failed)?;
        let layout = tail::decode_footer(&footer, length).map_err(|what| corrupt(path, &what))?;
        let mut bytes = vec![0; layout.bytes];
        file.read_exact_at(&mut bytes, layout.end).map_err(failed)?;
        let (bundles, tail) = tail::decode(&bytes, &layout).map_err(|what| corrupt(path, &what))?;
        let mut places: BTreeMap<(u32, u16), Vec<u32>> = BTreeMap::new();
        for (n, bundle) in bundles.iter().enumerate() {
            places.entry((bundle.table, bundle.group)).or_default().push(n as u32);
        }
        for list in places.values_mut() {
            list.sort_by_key(|&n| bundles[n as usize].kind);
        }
        let crc = tail::footer_crc(&footer);
        Ok(Self { file, path: path.to_owned(), tail, bundles, places, length, crc })
    }

    /// Its length, and the checksum that stands for all of it.
    pub(crate) fn identity(&self) -> (u64, u32) {
        (self.length, self.crc)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// All bundles, in the order of the file.
    pub(crate) fn bundles(&self) -> &[Bundle] {
        &self.bundles
    }

    /// Position of a table in the tail.
    pub(crate) fn position(&self, name: &str) -> Option<usize> {
        self.tail.tables.iter().position(|table| table.spec.name == name)
    }

    /// Bundles of a table, by its position, and of a group, in the order in which they count.
    pub(crate) fn of(&self, table: usize, group: u32) -> impl Iterator<Item = &Bundle> {
        let list = self.places.get(&(table as u32, group as u16));
        list.into_iter().flatten().map(|&n| &self.bundles[n as usize])
    }

    /// Reads a bundle and checks it.
    ///
    /// # Errors
    /// `Corruption` naming the file.
    pub(crate) fn read(&self, bundle: &Bundle) -> Result<Vec<u8>> {
        // The list was checked: its lengths lie within the file.
        let mut bytes = vec![0; bundle.bytes as usize];
        self.file
            .read_exact_at(&mut bytes, bundle.offset)
            .map_err(|cause| corrupt(&self.path, &format!("cannot be read: {cause}")))?;
        if crc32c::crc32c(&bytes) != bundle.crc {
            let what = format!("fails a checksum at byte {}", bundle.offset);
            return Err(corrupt(&self.path, &what));
        }
        Ok(bytes)
    }

    /// Reads a bundle of rows.
    pub(crate) fn rows(&self, bundle: &Bundle) -> Result<Columns> {
        let floats = self.tail.tables[bundle.table as usize].spec.row_floats();
        Columns::decode(&self.read(bundle)?, bundle.rows as usize, floats)
            .map_err(|error| corrupt(&self.path, &error.message))
    }

    /// Reads a bundle of removed keys.
    pub(crate) fn removed(&self, bundle: &Bundle) -> Result<Vec<u64>> {
        debug_assert_eq!(bundle.kind, BundleKind::Removed);
        Ok(words(&self.read(bundle)?))
    }
}

/// An error that names a file of a checkpoint.
pub(super) fn corrupt(path: &Path, what: &str) -> Error {
    let path = path.display();
    Error::corruption(format!(
        "checkpoint file {path} {what}; restore another checkpoint, or bring the file back"
    ))
}
