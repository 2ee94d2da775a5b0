//! The newest file: where entries are appended, whole or not at all.

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use crate::journal::entry::Stamp;
use crate::journal::format::Frame;
use crate::types::Sequence;
use crate::vfs;

/// Unit in which the kernel counts dirty bytes.
pub(crate) const PAGE: u64 = 4096;

/// The newest file, as its one appender sees it.
#[derive(Debug)]
pub(crate) struct Tail {
    /// Open for appending; shared with whoever syncs.
    pub(crate) file: Arc<TailFile>,
    pub(crate) path: PathBuf,
    pub(crate) generation: u32,
    /// Length of the file.
    pub(crate) offset: u64,
    /// Bytes appended since the open, over all files: what positions count.
    pub(crate) position: u64,
    /// Of the last entry.
    pub(crate) sequence: Sequence,
    /// The last page that was dirtied and not yet handed to a sync.
    dirty_page: Option<u64>,
}

impl Tail {
    /// A tail whose file holds `offset` synced bytes.
    pub(crate) fn new(
        file: File,
        path: PathBuf,
        generation: u32,
        offset: u64,
        sequence: Sequence,
    ) -> Self {
        let file = Arc::new(TailFile::new(file));
        Self { file, path, generation, offset, position: 0, sequence, dirty_page: None }
    }

    /// Writes an entry; returns the bytes of the pages it made dirty. On an error the file may
    /// hold a part of it: see `take_back`.
    pub(crate) fn append(&mut self, frame: &mut Frame<'_>, sequence: Sequence) -> io::Result<u64> {
        let stamp = Stamp { generation: self.generation, sequence };
        self.file.write_all(&frame.seal(stamp, self.offset))?;
        let start = self.offset;
        self.offset += frame.length();
        self.position += frame.length();
        self.sequence = sequence;
        Ok(self.dirtied(start))
    }

    /// Removes what a failed append left.
    pub(crate) fn take_back(&self) -> io::Result<()> {
        self.file.set_length(self.offset)
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

/// A file in append mode. Tests let its calls fail.
#[derive(Debug)]
pub(crate) struct TailFile {
    file: File,
    #[cfg(test)]
    pub(crate) faults: parking_lot::Mutex<Faults>,
}

/// Failures to come, by error number.
#[cfg(test)]
#[derive(Debug, Default)]
pub(crate) struct Faults {
    /// The next write stops after so many bytes.
    pub(crate) write: Option<(usize, i32)>,
    /// The next sync.
    pub(crate) sync: Option<i32>,
    /// The next truncation.
    pub(crate) truncate: Option<i32>,
    /// How long every sync takes at least.
    pub(crate) sync_delay: std::time::Duration,
    /// Syncs begun so far.
    pub(crate) syncs: u64,
}

impl TailFile {
    fn new(file: File) -> Self {
        Self {
            file,
            #[cfg(test)]
            faults: parking_lot::Mutex::default(),
        }
    }

    /// The open file.
    pub(crate) fn as_file(&self) -> &File {
        &self.file
    }

    /// fdatasync.
    pub(crate) fn sync(&self) -> io::Result<()> {
        #[cfg(test)]
        self.faulty_sync()?;
        vfs::sync_data(&self.file)
    }

    #[cfg(test)]
    fn faulty_sync(&self) -> io::Result<()> {
        let mut faults = self.faults.lock();
        faults.syncs += 1;
        let (delay, fault) = (faults.sync_delay, faults.sync.take());
        drop(faults);
        std::thread::sleep(delay);
        fault.map_or(Ok(()), |number| Err(io::Error::from_raw_os_error(number)))
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        #[cfg(test)]
        if let Some(number) = self.faults.lock().truncate.take() {
            return Err(io::Error::from_raw_os_error(number));
        }
        vfs::set_length(&self.file, length)
    }

    /// Appends all slices by gathered writes, without copying them together.
    fn write_all(&self, slices: &[&[u8]]) -> io::Result<()> {
        #[cfg(test)]
        if let Some((bytes, number)) = self.faults.lock().write.take() {
            let all = slices.concat();
            vfs::append(&self.file, &[&all[..bytes.min(all.len())]])?;
            return Err(io::Error::from_raw_os_error(number));
        }
        vfs::append(&self.file, slices)
    }
}
