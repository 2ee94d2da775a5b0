//! Writing a server's file: bundles as they come, then the list of them. The file gets its name
//! when all of it is on the device.

use std::fs::File;
use std::path::{Path, PathBuf};

use super::tail::{self, Bundle, BundleKind, Tail, HEAD};
use crate::columns::Columns;
use crate::directory::{self, failed_write};
use crate::error::{Error, Result};
use crate::vfs;

/// Bytes after which what was written is sent to the device, so that little is left at the end.
const SYNC_BYTES: u64 = 64 << 20;

/// A file that is not whole yet. Deleted when dropped.
pub(crate) struct ShardWriter {
    file: File,
    path: PathBuf,
    temporary: PathBuf,
    bundles: Vec<Bundle>,
    end: u64,
    synced: u64,
    is_done: bool,
}

impl ShardWriter {
    /// Begins the file `path`.
    ///
    /// # Errors
    /// `StoreFull` if the file system is full, `Unavailable`.
    pub(crate) fn create(path: &Path) -> Result<Self> {
        let temporary = path.with_extension("tmp");
        directory::remove_if_present(&temporary)?;
        let file = vfs::create(&temporary).map_err(|cause| failed_write(&temporary, &cause))?;
        let (path, end) = (path.to_owned(), HEAD.len() as u64);
        let bundles = Vec::new();
        let writer = Self { file, path, temporary, bundles, end, synced: 0, is_done: false };
        writer.append(&[HEAD])?;
        Ok(writer)
    }

    /// Adds rows of the table at this position of the tail; all are of one group of buckets.
    pub(crate) fn add(
        &mut self,
        table: usize,
        group: u32,
        kind: BundleKind,
        rows: &Columns,
    ) -> Result<()> {
        self.add_slices((table, group, kind), rows.len(), &rows.slices())
    }

    /// Adds keys that were removed.
    pub(crate) fn add_removed(&mut self, table: usize, group: u32, keys: &[u64]) -> Result<()> {
        let bytes = bytemuck::cast_slice(keys);
        self.add_slices((table, group, BundleKind::Removed), keys.len(), &[bytes])
    }

    fn add_slices(
        &mut self,
        (table, group, kind): (usize, u32, BundleKind),
        rows: usize,
        slices: &[&[u8]],
    ) -> Result<()> {
        if rows == 0 {
            return Ok(());
        }
        let crc = slices.iter().fold(0, |crc, slice| crc32c::crc32c_append(crc, slice));
        let bytes = slices.iter().map(|slice| slice.len() as u64).sum();
        self.append(slices)?;
        let (table, group, rows, offset) = (table as u32, group as u16, rows as u32, self.end);
        self.bundles.push(Bundle { table, group, kind, rows, offset, bytes, crc });
        self.end += bytes;
        if self.end - self.synced > SYNC_BYTES {
            vfs::sync_data(&self.file).map_err(|cause| failed_write(&self.temporary, &cause))?;
            self.synced = self.end;
        }
        Ok(())
    }

    fn append(&self, slices: &[&[u8]]) -> Result<()> {
        vfs::append(&self.file, slices).map_err(|cause| failed_write(&self.temporary, &cause))
    }

    /// Ends the file, which has its name and is on the device then. Returns its length and the
    /// checksum that stands for all of it.
    pub(crate) fn finish(mut self, tail: &Tail) -> Result<(u64, u32)> {
        let bytes = tail::encode(&self.bundles, tail, self.end)?;
        self.append(&[&bytes])?;
        vfs::sync_all(&self.file).map_err(|cause| failed_write(&self.temporary, &cause))?;
        directory::publish(&self.temporary, &self.path)?;
        self.is_done = true;
        let crc = tail::footer_crc(&bytes);
        Ok((self.end + bytes.len() as u64, crc))
    }
}

impl Drop for ShardWriter {
    fn drop(&mut self) {
        if !self.is_done {
            // One that stays is of a checkpoint that never will be one.
            let _: std::result::Result<(), Error> = directory::remove_if_present(&self.temporary);
        }
    }
}
