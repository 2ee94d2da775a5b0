//! The newest file: where entries are appended, whole or not at all.

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use crate::journal::entry::Stamp;
use crate::journal::format::Frame;
use crate::types::{Epoch, Sequence};
use crate::vfs;

/// Unit in which the kernel counts dirty bytes.
pub(crate) const PAGE: u64 = 4096;

/// The newest file, as its one appender sees it.
#[derive(Debug)]
pub(crate) struct Tail {
    /// Open for appending; shared with whoever syncs.
    pub(crate) file: Arc<File>,
    pub(crate) path: PathBuf,
    pub(crate) generation: u32,
    /// Length of the file.
    pub(crate) offset: u64,
    /// Bytes appended since the open, over all files: what positions count.
    pub(crate) position: u64,
    /// Of the last entry.
    pub(crate) sequence: Sequence,
    /// Of entries to come.
    pub(crate) epoch: Epoch,
    /// The file before, from the switch to this one until a sync has passed both.
    pub(crate) before: Option<Before>,
    /// The last page that was dirtied and not yet handed to a sync.
    dirty_page: Option<u64>,
}

/// A file that takes no more entries, and is not yet on the device.
#[derive(Debug)]
pub(crate) struct Before {
    pub(crate) file: Arc<File>,
    pub(crate) path: PathBuf,
    pub(crate) length: u64,
}

impl Tail {
    /// A tail whose file holds `offset` bytes of `stamp.generation`, the last entry as of its
    /// sequence.
    pub(crate) fn new(file: File, path: PathBuf, stamp: Stamp, offset: u64) -> Self {
        let Stamp { generation, sequence, epoch } = stamp;
        Self {
            file: Arc::new(file),
            path,
            generation,
            offset,
            position: 0,
            sequence,
            epoch,
            before: None,
            dirty_page: None,
        }
    }

    /// Writes an entry; returns the bytes of the pages it made dirty. On an error the file may
    /// hold a part of it: see `take_back`.
    pub(crate) fn append(&mut self, frame: &mut Frame<'_>, sequence: Sequence) -> io::Result<u64> {
        let stamp = Stamp { generation: self.generation, sequence, epoch: self.epoch };
        vfs::append(&self.file, &frame.seal(stamp, self.offset))?;
        let start = self.offset;
        self.offset += frame.length();
        self.position += frame.length();
        self.sequence = sequence;
        Ok(self.dirtied(start))
    }

    /// Removes what a failed append left.
    pub(crate) fn take_back(&self) -> io::Result<()> {
        vfs::set_length(&self.file, self.offset)
    }

    /// From now on all pages count as clean: a sync of the file begins.
    pub(crate) fn begin_sync(&mut self) {
        self.dirty_page = None;
    }

    fn dirtied(&mut self, start: u64) -> u64 {
        let (first, last) = (start / PAGE, (self.offset - 1) / PAGE);
        let known = u64::from(self.dirty_page == Some(first));
        self.dirty_page = Some(last);
        (last - first + 1 - known) * PAGE
    }
}

/// Bytes that making a new file of `length` bytes dirties.
pub(crate) fn pages(length: u64) -> u64 {
    length.next_multiple_of(PAGE)
}
