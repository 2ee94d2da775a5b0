//! The files of the journal: their names, their birth, their deletion. No entry is read here.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use crate::directory;
use crate::error::{Error, Result};
use crate::journal::entry::{Entry, Stamp};
use crate::journal::format::{file_header, Frame, FILE_HEADER};
use crate::vfs;

const FIRST: &str = "FIRST";
const FIRST_MAGIC: &[u8; 8] = b"HPSFIRST";
const FIRST_BYTES: usize = 24;
const ENDING: &str = ".log";

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

impl Files {
    /// Makes `journal` in the data directory if absent, and lists its files without a hole.
    ///
    /// # Errors
    /// `Corruption` naming the first file that is missing.
    pub(crate) fn open(data: &Path, uuid: u128, known: u32) -> Result<(Self, Vec<Listed>)> {
        let files = Self { directory: data.join("journal"), uuid };
        let directory = &files.directory;
        fs::create_dir_all(directory).map_err(|cause| Error::io("make", directory, &cause))?;
        directory::sync_directory(data)?;
        let first = files.read_first()?;
        let mut listed = Vec::new();
        for file in files.list()? {
            if file.generation < first {
                directory::remove_if_present(&files.path(file.generation))?;
            } else {
                listed.push(file);
            }
        }
        files.check_chain(&listed, first, known)?;
        Ok((files, listed))
    }

    /// Path of a file.
    pub(crate) fn path(&self, generation: u32) -> PathBuf {
        self.directory.join(format!("{generation:08}{ENDING}"))
    }

    /// The store whose files these are.
    pub(crate) fn uuid(&self) -> u128 {
        self.uuid
    }

    /// Makes a file that holds its header and `opening`, whole or not at all, and durable. The
    /// file bears its name only after `publish`.
    pub(crate) fn prepare(&self, stamp: Stamp, opening: &Entry<'_>) -> Result<NewFile> {
        let generation = stamp.generation;
        let path = self.path(generation);
        let mut frame = Frame::new(opening)?;
        let length = FILE_HEADER as u64 + frame.length();
        let header = file_header(self.uuid, generation);
        let (file, temporary) = directory::write_temporary(&path, |file| {
            let mut slices = frame.seal(stamp, FILE_HEADER as u64);
            slices.insert(0, &header);
            vfs::append(file, &slices)
        })?;
        Ok(NewFile { file, temporary, path, length })
    }

    /// Deletes the oldest files, in order, up to and with `last`, of those in `generations`.
    pub(crate) fn delete(&self, generations: &[u32], last: u32) -> Result<()> {
        let mut bytes = [0; FIRST_BYTES];
        bytes[..8].copy_from_slice(FIRST_MAGIC);
        bytes[8..12].copy_from_slice(&(last + 1).to_le_bytes());
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
        word(8).filter(|_| whole).ok_or_else(|| {
            Error::corruption(format!("{} is damaged: its crc does not hold", path.display()))
        })
    }

    /// Journal files by generation; deletes what a crash left half born.
    fn list(&self) -> Result<Vec<Listed>> {
        let io = |cause: std::io::Error| Error::io("list", &self.directory, &cause);
        let mut listed = Vec::new();
        for entry in fs::read_dir(&self.directory).map_err(io)? {
            let entry = entry.map_err(io)?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if name.ends_with(".tmp") {
                directory::remove_if_present(&entry.path())?;
            } else if let Some(generation) = name.strip_suffix(ENDING) {
                listed.push(self.listed(generation, &entry)?);
            }
        }
        listed.sort_unstable_by_key(|file| file.generation);
        Ok(listed)
    }

    fn listed(&self, name: &str, entry: &fs::DirEntry) -> Result<Listed> {
        let path = entry.path();
        let generation = name.parse().unwrap_or(0);
        if generation == 0 || path != self.path(generation) {
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

/// A file that is whole and durable but for its name.
pub(crate) struct NewFile {
    file: File,
    temporary: PathBuf,
    path: PathBuf,
    pub(crate) length: u64,
}

impl NewFile {
    /// Gives it its name. A failure leaves open whether it has it.
    pub(crate) fn publish(self) -> Result<File> {
        directory::publish(&self.temporary, &self.path)?;
        Ok(self.file)
    }
}
