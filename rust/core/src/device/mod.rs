//! Bytes on a disk: batches of reads, large writes, sync, punch. Knows no segment and no record.
//!
//! Every offset and length given to a device is a multiple of `PAGE`, every buffer aligned to it,
//! because the file is opened past the page cache.

mod aligned;
#[cfg(test)]
mod faulty;
mod file;
mod threads;
#[cfg(target_os = "linux")]
mod uring;

use std::io;
use std::path::Path;

pub(crate) use aligned::{bytes_as_floats, floats_as_bytes, AlignedBuffer};
#[cfg(test)]
pub(crate) use faulty::{FaultyDevice, Operation};
pub(crate) use file::FileDevice;

use crate::error::Result;

/// Unit of offsets and lengths: the physical sector of the disks that we know, or a multiple.
pub(crate) const PAGE: usize = 4096;
/// Longest extent of a batch; readers cut their buffers into pieces of this size.
pub(crate) const EXTENT_BYTES_MAX: usize = 16 * PAGE;

/// A contiguous read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Extent {
    /// Byte offset in the file.
    pub(crate) offset: u64,
    /// Length, at most `EXTENT_BYTES_MAX`.
    pub(crate) bytes: u32,
    /// Names the read when it is done. No two that are at the device have the same.
    pub(crate) number: u32,
}

/// Reads that a device shall do. They are asked for as it has room for them, so that a batch of any
/// length takes no memory, and come back in any order.
pub(crate) trait Reads {
    /// The next one; `None`: there are no more.
    fn next(&mut self) -> Option<Extent>;

    /// What became of read `number`: its bytes, fewer than asked at the file's end alone. Called
    /// once for each.
    fn done(&mut self, number: u32, read: io::Result<&[u8]>);
}

/// None of the reads that are still to come can be done.
fn refuse_all(reads: &mut dyn Reads, error: &io::Error) {
    while let Some(extent) = reads.next() {
        reads.done(extent.number, Err(again(error)));
    }
}

/// The same error, for another read.
fn again(error: &io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(code) => io::Error::from_raw_os_error(code),
        None => io::Error::new(error.kind(), error.to_string()),
    }
}

/// What the log needs of a disk.
pub(crate) trait Device: Send + Sync {
    /// Does all of the reads, on the calling thread's behalf. Thread safe.
    fn read_batch(&self, reads: &mut dyn Reads);
    /// One sequential read into an aligned buffer; returns fewer bytes only at the file's end.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Writes all of an aligned buffer. Durable after the next `sync`.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Makes all writes that returned before durable.
    fn sync(&self) -> io::Result<()>;
    /// Gives a range back to the file system where that is supported; it then reads as zeros.
    fn punch(&self, offset: u64, bytes: u64) -> io::Result<()>;
    /// Length of the file.
    fn length(&self) -> io::Result<u64>;
    /// The path, for error texts.
    fn path(&self) -> &Path;
    /// How reads are done, with a warning where that is not the best way.
    fn description(&self) -> String;
    /// Bytes of buffers held at this moment.
    fn buffer_bytes(&self) -> u64;
}

/// Opens or creates the file at `path` with the best back end that the system offers.
///
/// # Errors
/// `Unavailable` if the file cannot be opened, `Config` if `HYBRIDPS_IO` asks for a back end that
/// does not exist or is refused here.
pub(crate) fn open(path: &Path, queue_depth: u32) -> Result<Box<dyn Device>> {
    Ok(Box::new(FileDevice::open(path, queue_depth)?))
}

/// Reads that are known beforehand, and what is done with each.
pub(crate) struct ReadList<I, F> {
    extents: I,
    done: F,
}

impl<I, F> ReadList<I, F>
where
    I: Iterator<Item = Extent>,
    F: FnMut(u32, io::Result<&[u8]>),
{
    pub(crate) fn new(extents: impl IntoIterator<IntoIter = I>, done: F) -> Self {
        Self { extents: extents.into_iter(), done }
    }
}

impl<I, F> Reads for ReadList<I, F>
where
    I: Iterator<Item = Extent>,
    F: FnMut(u32, io::Result<&[u8]>),
{
    fn next(&mut self) -> Option<Extent> {
        self.extents.next()
    }

    fn done(&mut self, number: u32, read: io::Result<&[u8]>) {
        (self.done)(number, read);
    }
}
