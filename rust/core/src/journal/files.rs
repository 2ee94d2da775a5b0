//! The files of the journal: their names, their birth, their deletion. No entry is read here.
//!
//! The next file is NNNNNNNN.next while the one before it may not be on the device, and bears its
//! own name from then on: see docs/format.md.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use crate::directory;
use crate::error::{Error, Result};
use crate::journal::entry::{Entry, Stamp};
use crate::journal::format::{file_header, Frame, FILE_HEADER, VERSION};
use crate::vfs;

const FIRST: &str = "FIRST";
const FIRST_MAGIC: &[u8; 8] = b"HPSFIRST";
const FIRST_BYTES: usize = 24;
const ENDING: &str = ".log";
const NEXT: &str = ".next";

/// The directory `journal` of one store.
#[derive(Debug)]
pub(crate) struct Files {
    directory: PathBuf,
    uuid: u128,
}

/// A journal file by name and length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Listed {
    pub(crate) generation: u32,
    pub(crate) length: u64,
}

/// The files that an opening found.
#[derive(Debug)]
pub(crate) struct Chain {
    /// Oldest first.
    pub(crate) listed: Vec<Listed>,
    /// The one behind them, if a rotation was cut short.
    pub(crate) next: Option<Listed>,
}

impl Files {
    /// Makes `journal` in the data directory if absent, and lists its files without a hole.
    ///
    /// # Errors
    /// `Corruption` naming the first file that is missing.
    pub(crate) fn open(data: &Path, uuid: u128, known: u32) -> Result<(Self, Chain)> {
        let files = Self { directory: data.join("journal"), uuid };
        let directory = &files.directory;
        fs::create_dir_all(directory).map_err(|cause| Error::io("make", directory, &cause))?;
        directory::sync_directory(data)?;
        let first = files.read_first()?;
        let mut chain = files.list()?;
        let needed = chain.listed.partition_point(|file| file.generation < first);
        for file in chain.listed.drain(..needed) {
            directory::remove_if_present(&files.path(file.generation))?;
        }
        files.check_chain(&chain.listed, first, known)?;
        Ok((files, chain))
    }

    /// Path of a file.
    pub(crate) fn path(&self, generation: u32) -> PathBuf {
        self.directory.join(format!("{generation:08}{ENDING}"))
    }

    /// Path of a file while it is the next one.
    pub(crate) fn next_path(&self, generation: u32) -> PathBuf {
        self.directory.join(format!("{generation:08}{NEXT}"))
    }

    /// The store whose files these are.
    pub(crate) fn uuid(&self) -> u128 {
        self.uuid
    }

    /// Makes the first file of a journal, with its header and `opening`, whole or not at all, and
    /// durable. Returns its length too.
    pub(crate) fn create(&self, stamp: Stamp, opening: &Entry<'_>) -> Result<(File, u64)> {
        let path = self.path(stamp.generation);
        let mut frame = Frame::new(opening)?;
        let header = file_header(self.uuid, stamp.generation);
        let (file, temporary) = directory::write_temporary(&path, |file| {
            let mut slices = frame.seal(stamp, FILE_HEADER as u64);
            slices.insert(0, &header);
            vfs::append(file, &slices)
        })?;
        directory::publish(&temporary, &path)?;
        Ok((file, FILE_HEADER as u64 + frame.length()))
    }

    /// Makes a next file that holds its header alone; nothing of it is durable yet.
    pub(crate) fn create_next(&self, generation: u32) -> Result<NextFile> {
        let path = self.next_path(generation);
        directory::remove_if_present(&path)?;
        let file = vfs::create(&path).map_err(|cause| directory::failed_write(&path, &cause))?;
        let next = NextFile { file, path, generation };
        let header = file_header(self.uuid, generation);
        match vfs::append(&next.file, &[&header]) {
            Ok(()) => Ok(next),
            Err(cause) => Err(self.discard(next, &cause)),
        }
    }

    /// The error of a next file that could not be written, and is not wanted any more.
    pub(crate) fn discard(&self, next: NextFile, cause: &std::io::Error) -> Error {
        // Were it still there at the next opening: it goes on from no file as long as this one.
        let _ = directory::remove_if_present(&next.path);
        directory::failed_write(&next.path, cause)
    }

    /// Gives the next file its own name, durably: all bytes of the one before it, and its first
    /// entry, are on the device by now.
    pub(crate) fn publish(&self, generation: u32) -> Result<()> {
        directory::publish(&self.next_path(generation), &self.path(generation))
    }

    /// Deletes a next file of which nothing counts, durably: what is appended from here on must
    /// not be met by it again.
    pub(crate) fn delete_next(&self, generation: u32) -> Result<()> {
        directory::remove_if_present(&self.next_path(generation))?;
        directory::sync_directory(&self.directory)
    }

    /// Deletes the oldest files, in order, up to and with `last`, of those in `generations`.
    pub(crate) fn delete(&self, generations: &[u32], last: u32) -> Result<()> {
        let mut bytes = [0; FIRST_BYTES];
        bytes[..8].copy_from_slice(FIRST_MAGIC);
        bytes[8..12].copy_from_slice(&(last + 1).to_le_bytes());
        bytes[12..16].copy_from_slice(&VERSION.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..20]);
        bytes[20..].copy_from_slice(&crc.to_le_bytes());
        directory::replace(&self.directory.join(FIRST), &bytes)?;
        for &generation in generations {
            directory::remove_if_present(&self.path(generation))?;
        }
        directory::sync_directory(&self.directory)
    }

    fn read_first(&self) -> Result<u32> {
        let path = self.directory.join(FIRST);
        let Some(bytes) = directory::read_small(&path, FIRST_BYTES as u64)? else { return Ok(1) };
        let word = |at: usize| bytes.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes);
        let whole = bytes.len() == FIRST_BYTES
            && bytes.starts_with(FIRST_MAGIC)
            && word(20) == Some(crc32c::crc32c(&bytes[..20]));
        let (first, version) = word(8).zip(word(12)).filter(|_| whole).ok_or_else(|| {
            Error::corruption(format!("{} is damaged: its crc does not hold", path.display()))
        })?;
        // Version 1 had zeros there.
        directory::check_version(&path, version.max(1), VERSION)?;
        Ok(first)
    }

    /// Journal files by generation; deletes what a crash left half born.
    fn list(&self) -> Result<Chain> {
        let io = |cause: std::io::Error| Error::io("list", &self.directory, &cause);
        let (mut listed, mut nexts) = (Vec::new(), Vec::new());
        for entry in fs::read_dir(&self.directory).map_err(io)? {
            let entry = entry.map_err(io)?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if name.ends_with(".tmp") {
                directory::remove_if_present(&entry.path())?;
            } else if let Some(generation) = name.strip_suffix(ENDING) {
                listed.push(self.listed(generation, &entry, Self::path)?);
            } else if let Some(generation) = name.strip_suffix(NEXT) {
                nexts.push(self.listed(generation, &entry, Self::next_path)?);
            }
        }
        listed.sort_unstable_by_key(|file| file.generation);
        let newest = listed.last().map_or(0, |file| file.generation);
        let follows = |next: &Listed| Some(next.generation) == newest.checked_add(1);
        let (mut next, stale): (Vec<_>, Vec<_>) = nexts.into_iter().partition(follows);
        for file in stale {
            directory::remove_if_present(&self.next_path(file.generation))?;
        }
        Ok(Chain { listed, next: next.pop() })
    }

    fn listed(
        &self,
        name: &str,
        entry: &fs::DirEntry,
        path_of: impl Fn(&Self, u32) -> PathBuf,
    ) -> Result<Listed> {
        let path = entry.path();
        let generation = name.parse().unwrap_or(0);
        if generation == 0 || path != path_of(self, generation) {
            let path = path.display();
            return Err(Error::corruption(format!(
                "{path} is not the name of a journal file; move it elsewhere"
            )));
        }
        let meta = entry.metadata().map_err(|cause| Error::io("stat", &path, &cause))?;
        Ok(Listed { generation, length: meta.len() })
    }

    fn check_chain(&self, listed: &[Listed], first: u32, known: u32) -> Result<()> {
        if listed.is_empty() && first == 1 && known == 0 {
            return Ok(());
        }
        let newest = listed.last().map_or(first, |file| file.generation).max(known);
        let mut present = listed.iter().map(|file| file.generation);
        match (first..=newest).find(|&generation| present.next() != Some(generation)) {
            None => Ok(()),
            Some(missing) => Err(Error::corruption(format!(
                "journal file {} is missing, files {first} to {newest} are needed; restore it, or \
                 the data directory from a checkpoint",
                self.path(missing).display()
            ))),
        }
    }
}

/// A file that is to follow the newest one; it holds its header alone.
#[derive(Debug)]
pub(crate) struct NextFile {
    pub(crate) file: File,
    path: PathBuf,
    pub(crate) generation: u32,
}
