//! The data directory: made, owned by one process, and its small files replaced atomically.
//!
//! Holds no knowledge of what the files mean; see docs/format.md for their names.

use std::cmp::Ordering;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::os;
use crate::vfs;

/// The lock file.
const LOCK: &str = "LOCK";
/// Digits of a u32.
const PID_DIGITS: usize = 10;
/// The file that makes a directory a store.
pub(crate) const SUPERBLOCK: &str = "superblock";
/// The file of the tables.
pub(crate) const MANIFEST: &str = "MANIFEST";
/// What a directory without a superblock may hold: a creation that was cut short, and the folder
/// that file systems put into their root.
const BEFORE_SUPERBLOCK: [&str; 5] =
    [LOCK, MANIFEST, "MANIFEST.tmp", "superblock.tmp", "lost+found"];

/// What a directory is for: its name in messages, the file that shows it, what it may hold without.
pub(crate) struct Purpose {
    pub(crate) name: &'static str,
    pub(crate) marker: &'static str,
    pub(crate) before: &'static [&'static str],
}

/// The data directory of a store.
const DATA: Purpose =
    Purpose { name: "data directory", marker: SUPERBLOCK, before: &BEFORE_SUPERBLOCK };

/// A directory owned by this process until dropped.
#[derive(Debug)]
pub(crate) struct Directory {
    path: PathBuf,
    lock: File,
    owner: u32,
}

impl Directory {
    /// Makes the directory if absent and takes it.
    ///
    /// # Errors
    /// `Config` if it cannot be written, is in use, or holds files but no store.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        Self::open_for(&DATA, path)
    }

    /// The same, for a purpose of its own.
    ///
    /// # Errors
    /// As `open`.
    pub(crate) fn open_for(purpose: &Purpose, path: &Path) -> Result<Self> {
        let unusable = |action: &str, path: &Path, cause: &std::io::Error| {
            purpose.unusable(action, path, cause)
        };
        // The process may change its working directory later.
        let path = std::path::absolute(path).map_err(|cause| unusable("find", path, &cause))?;
        make(&path).map_err(|cause| unusable("make", &path, &cause))?;
        purpose.check_is_ours(&path)?;
        let lock = purpose.take_lock(&path)?;
        sync_directory(&path)?;
        Ok(Self { path, lock, owner: std::process::id() })
    }

    /// Where it is, absolute.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Path of the file `name` in it.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

impl Drop for Directory {
    /// Children of fork hold the lock's file open, perhaps for long: giving the lock back by call
    /// frees it nevertheless. A child that drops its copy must not do so.
    fn drop(&mut self) {
        if std::process::id() == self.owner {
            os::unlock(&self.lock);
        }
    }
}

/// Whether the directory holds a store, open or not; looks at nothing but names.
pub(crate) fn holds_store(path: &Path) -> bool {
    path.join(SUPERBLOCK).is_file()
}

/// Replaces the file `path` whole: after a crash it holds the old bytes or the new ones. Durable
/// on return.
///
/// # Errors
/// `StoreFull` when no space is left, `Unavailable` for other failures; the old file stays.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let (_, temporary) = write_temporary(path, |file| vfs::append(file, &[bytes]))?;
    publish(&temporary, path)
}

/// Writes `path`.tmp by `write` and fsyncs it; returns the open file and its path.
pub(crate) fn write_temporary(
    path: &Path,
    write: impl FnOnce(&File) -> std::io::Result<()>,
) -> Result<(File, PathBuf)> {
    let mut name = path.as_os_str().to_os_string();
    name.push(".tmp");
    let temporary = PathBuf::from(name);
    remove_if_present(&temporary)?;
    // Append mode, so that a journal file can be written on through the same handle.
    let file = vfs::create(&temporary).map_err(|cause| failed_write(&temporary, &cause))?;
    if let Err(cause) = write(&file).and_then(|()| vfs::sync_all(&file)) {
        let _ = vfs::remove(&temporary);
        return Err(failed_write(&temporary, &cause));
    }
    Ok((file, temporary))
}

/// Gives a fsynced temporary file its name, durably.
pub(crate) fn publish(temporary: &Path, path: &Path) -> Result<()> {
    vfs::rename(temporary, path).map_err(|cause| Error::io("rename to", path, &cause))?;
    sync_directory(path.parent().unwrap_or(Path::new(".")))
}

/// Makes creations, renames and deletions in a directory durable.
pub(crate) fn sync_directory(path: &Path) -> Result<()> {
    vfs::sync_directory(path).map_err(|cause| Error::io("fsync", path, &cause))
}

/// Deletes a file, if it is there. Durable only after `sync_directory`.
pub(crate) fn remove_if_present(path: &Path) -> Result<()> {
    match vfs::remove(path) {
        Err(cause) if cause.kind() != ErrorKind::NotFound => Err(Error::io("delete", path, &cause)),
        _ => Ok(()),
    }
}

/// Reads a whole file of at most `limit` bytes; `None` if it is absent.
///
/// # Errors
/// `Corruption` for a longer one, read no further than the limit.
pub(crate) fn read_small(path: &Path, limit: u64) -> Result<Option<Vec<u8>>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(cause) if cause.kind() == ErrorKind::NotFound => return Ok(None),
        Err(cause) => return Err(Error::io("open", path, &cause)),
    };
    let mut bytes = Vec::new();
    file.take(limit + 1)
        .read_to_end(&mut bytes)
        .map_err(|cause| Error::io("read", path, &cause))?;
    if bytes.len() as u64 > limit {
        let path = path.display();
        return Err(Error::corruption(format!("{path} is longer than {limit} bytes")));
    }
    Ok(Some(bytes))
}

/// Refuses a file of another format version than this program reads.
///
/// # Errors
/// `Config` naming the file, both versions and the remedy.
pub(crate) fn check_version(path: &Path, found: u32, reads: u32) -> Result<()> {
    let remedy = match found.cmp(&reads) {
        Ordering::Equal => return Ok(()),
        Ordering::Less => {
            "open it with the version of hybridps that wrote it, or give another \
                           directory"
        }
        Ordering::Greater => "use the version of hybridps that wrote it, or a later one",
    };
    let path = path.display();
    Err(Error::config(format!(
        "{path} has format version {found}, this program reads version {reads}; {remedy}"
    )))
}

/// The error of a failed write: no space is the user's to solve, all else means a failed device.
pub(crate) fn failed_write(path: &Path, cause: &std::io::Error) -> Error {
    if is_full(cause) {
        return Error::store_full(format!(
            "no space left to write {}; free space on its file system or lower the cap of its \
             files",
            path.display()
        ));
    }
    Error::io("write", path, cause)
}

/// Whether a write failed for want of space or quota.
pub(crate) fn is_full(cause: &std::io::Error) -> bool {
    matches!(cause.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT))
}

/// Makes a directory and those above it; what was made survives a power cut.
pub(crate) fn make(path: &Path) -> std::io::Result<()> {
    let missing = path.ancestors().take_while(|path| !path.exists()).count();
    fs::create_dir_all(path)?;
    path.ancestors().skip(1).take(missing).try_for_each(vfs::sync_directory)
}

impl Purpose {
    fn check_is_ours(&self, path: &Path) -> Result<()> {
        let entries = fs::read_dir(path).map_err(|cause| self.unusable("read", path, &cause))?;
        let mut foreign = None;
        for entry in entries {
            let entry = entry.map_err(|cause| self.unusable("read", path, &cause))?;
            let name = entry.file_name();
            if name == self.marker {
                return Ok(());
            }
            // A server's socket may lie here, and is bound before the store is opened.
            let is_socket = entry.file_type().is_ok_and(|kind| kind.is_socket());
            if !is_socket && !self.before.iter().any(|&known| name == known) {
                foreign = Some(name);
            }
        }
        let Some(name) = foreign else { return Ok(()) };
        let (what, marker) = (self.name, self.marker);
        Err(Error::config(format!(
            "{what} {} holds {name:?} but no {marker}, so it is not a store of ours or has lost \
             its {marker}; give an empty directory, or restore the file",
            path.display()
        )))
    }

    fn take_lock(&self, directory: &Path) -> Result<File> {
        let path = directory.join(LOCK);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(|cause| self.unusable("write to", directory, &cause))?;
        if !os::try_lock(&file).map_err(|cause| self.unusable("lock", directory, &cause))? {
            let mut pid = String::new();
            let _ = (&file).take(PID_DIGITS as u64).read_to_string(&mut pid);
            let pid = if pid.is_empty() { "unknown" } else { pid.trim_end() };
            return Err(Error::config(format!(
                "{} {} is in use by process {pid}; stop it or close its store, or give another \
                 directory",
                self.name,
                directory.display()
            )));
        }
        // Always as long, and never cut, so that a full disk does not keep an old store from
        // opening.
        file.write_all_at(format!("{:<PID_DIGITS$}", std::process::id()).as_bytes(), 0)
            .map_err(|cause| self.unusable("write to", directory, &cause))?;
        Ok(file)
    }

    fn unusable(&self, action: &str, path: &Path, cause: &std::io::Error) -> Error {
        Error::config(format!(
            "cannot {action} {} {}: {cause}; give a directory that this user may write, on a file \
             system with free space",
            self.name,
            path.display()
        ))
    }
}

#[cfg(test)]
#[path = "directory_tests.rs"]
mod tests;
