//! The one door through which the engine changes files: bytes, lengths, names, and their syncs.
//!
//! Log, journal, superblock, manifest and all that comes after them write through here and nowhere
//! else (a test of the house checks it). So a test can watch all of it at once: it keeps a trace of
//! the changes of one directory, builds what a power cut after any of them may leave there, and
//! lets changes fail. Nothing here knows what the files mean.

#[cfg(test)]
pub(crate) mod trace;

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, IoSlice, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

#[cfg(test)]
use trace::{record, Change};

/// Slices of one writev: IOV_MAX of Linux.
const SLICES: usize = 1024;

/// Outside tests nobody watches.
#[cfg(not(test))]
macro_rules! watched {
    ($work:expr, $($change:tt)*) => {
        $work
    };
}

/// Does `work`, unless a test lets it fail, and adds it to the trace.
#[cfg(test)]
macro_rules! watched {
    ($work:expr, $change:expr) => {
        record(|| $change, || $work)
    };
}

/// Makes the file `path`, which must not exist, for reading and appending.
pub(crate) fn create(path: &Path) -> io::Result<File> {
    let open = || OpenOptions::new().read(true).append(true).create_new(true).open(path);
    watched!(open(), Change::Create { path: path.to_owned() })
}

/// Makes the empty file `path` if it is absent.
pub(crate) fn create_if_absent(path: &Path) -> io::Result<()> {
    match create(path) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

/// Writes all of `bytes` at `offset`.
pub(crate) fn write_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    watched!(file.write_all_at(bytes, offset), Change::write(file, &[bytes], Some(offset)))
}

/// Adds all slices at the end of a file opened for appending, by gathered writes: nothing is copied
/// together. After an error some of the bytes may be there: see `set_length`.
pub(crate) fn append(file: &File, slices: &[&[u8]]) -> io::Result<()> {
    #[cfg(test)]
    if let Some((part, error)) = trace::short(file, slices) {
        return append(file, &[&part]).and(Err(error));
    }
    watched!(append_all(file, slices), Change::write(file, slices, None))
}

fn append_all(mut file: &File, slices: &[&[u8]]) -> io::Result<()> {
    let slices = slices.iter().filter(|slice| !slice.is_empty());
    let mut gathered: Vec<IoSlice<'_>> = slices.map(|s| IoSlice::new(s)).collect();
    let mut rest = &mut gathered[..];
    while !rest.is_empty() {
        let some = &rest[..rest.len().min(SLICES)];
        match file.write_vectored(some) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(written) => IoSlice::advance_slices(&mut rest, written),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Cuts a file, or lengthens it with zeros.
pub(crate) fn set_length(file: &File, length: u64) -> io::Result<()> {
    watched!(file.set_len(length), Change::SetLength { file: trace::id(file), length })
}

/// Frees a range of a file, which then reads as zeros; no effect where that is not supported.
pub(crate) fn punch(file: &File, offset: u64, bytes: u64) -> io::Result<()> {
    watched!(
        crate::os::punch_hole(file, offset, bytes),
        Change::Punch { file: trace::id(file), offset, bytes }
    )
}

/// fdatasync: bytes and length are on the device.
pub(crate) fn sync_data(file: &File) -> io::Result<()> {
    watched!(file.sync_data(), Change::Sync { file: trace::id(file) })
}

/// fsync: the same, and what else is known of the file; not its name.
pub(crate) fn sync_all(file: &File) -> io::Result<()> {
    watched!(file.sync_all(), Change::Sync { file: trace::id(file) })
}

/// Gives a file another name, in place of the one that has it. Durable with `sync_directory`.
pub(crate) fn rename(from: &Path, to: &Path) -> io::Result<()> {
    watched!(fs::rename(from, to), Change::Rename { from: from.to_owned(), to: to.to_owned() })
}

/// Deletes a file. Durable with `sync_directory`.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    watched!(fs::remove_file(path), Change::Remove { path: path.to_owned() })
}

/// Makes a directory. The trace of a test takes it for granted once a file in it is durable.
pub(crate) fn create_directory(path: &Path) -> io::Result<()> {
    fs::create_dir(path)
}

/// Deletes an empty directory.
pub(crate) fn remove_directory(path: &Path) -> io::Result<()> {
    fs::remove_dir(path)
}

/// Makes creations, renames and deletions in a directory durable.
pub(crate) fn sync_directory(path: &Path) -> io::Result<()> {
    let sync = || File::open(path)?.sync_all();
    watched!(sync(), Change::SyncDirectory { path: path.to_owned() })
}
