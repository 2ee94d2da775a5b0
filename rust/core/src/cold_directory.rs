//! The cold directory: whose it is, and that it is the one which the data directory knows.
//!
//! In it, the file `COLD` says to which store it belongs. In the data directory a file of the same
//! name says, from before the first row goes down, which cold directory holds the rest of the rows
//! and how often that was opened. So one that is missing, another store's, or a copy of another
//! time is refused before anything is changed. Layouts: docs/format.md.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use parking_lot::Mutex;

use crate::directory::{self, Directory, Purpose};
use crate::error::{Error, Result};
use crate::log;

/// Name of both files.
const FILE: &str = "COLD";
/// Name of the log in the cold directory.
const LOG: &str = "rows.log";
const PURPOSE: Purpose =
    Purpose { name: "cold directory", marker: FILE, before: &["LOCK", "COLD.tmp", "lost+found"] };
const VERSION: u32 = 1;
/// Longest of the two files.
const FILE_BYTES_MAX: u64 = 8192;

/// The cold directory of an open store, owned by this process until dropped.
pub(crate) struct ColdDirectory {
    directory: Directory,
    id: u128,
    /// Size of a segment of its log, fixed at its creation.
    pub(crate) segment_bytes: u64,
    /// Openings of its log, this one counted.
    generation: u64,
    /// The file in the data directory, and whether it knows of this opening.
    link: PathBuf,
    is_linked: Mutex<bool>,
}

impl ColdDirectory {
    /// Takes the cold directory of the store `store` whose data directory is `data`, or makes it.
    /// `wanted`: the path, and the size of a segment if it is new. `None` if there is none.
    ///
    /// # Errors
    /// `Config` if it is not the one that the data directory knows, or cannot be used; `Corruption`
    /// if its files are damaged. Then nothing was changed.
    pub(crate) fn open(
        data: &Directory,
        store: u128,
        wanted: Option<(&Path, u64)>,
    ) -> Result<Option<Self>> {
        let link_path = data.file(FILE);
        let link = read(&link_path, Link::decode)?;
        let Some((path, segment_bytes)) = wanted else {
            return link.map_or(Ok(None), |link| Err(link.is_needed(data.path())));
        };
        check_apart(data.path(), path)?;
        let owner = read(&path.join(FILE), Owner::decode)?;
        check_owner(data.path(), path, store, link.as_ref(), owner.as_ref())?;
        let directory = Directory::open_for(&PURPOSE, path)?;
        let found = log::generation(&directory.file(LOG))?;
        let (owner, next) = match (link, owner) {
            (Some(link), Some(owner)) => {
                let next = link.next(data.path(), directory.path(), found)?;
                next.write(&link_path)?;
                (owner, next.generation)
            }
            (_, owner) => (adopt(&directory, data.path(), store, owner, segment_bytes)?, 1),
        };
        Ok(Some(Self {
            id: owner.id,
            segment_bytes: owner.segment_bytes,
            generation: next,
            is_linked: Mutex::new(next > 1),
            directory,
            link: link_path,
        }))
    }

    /// Path of its log.
    pub(crate) fn log(&self) -> PathBuf {
        self.directory.file(LOG)
    }

    /// Its log was opened.
    ///
    /// # Errors
    /// `StoreFull`, `Unavailable` if the data directory cannot be written.
    pub(crate) fn note_opened(&self) -> Result<()> {
        if *self.is_linked.lock() {
            self.write_link()?;
        }
        Ok(())
    }

    /// Rows are about to go there: from now on the store is not opened without it.
    ///
    /// # Errors
    /// As `note_opened`.
    pub(crate) fn link(&self) -> Result<()> {
        let mut is_linked = self.is_linked.lock();
        if !*is_linked {
            // The name of the log must last as long as what names it.
            directory::sync_directory(self.directory.path())?;
            self.write_link()?;
            *is_linked = true;
        }
        Ok(())
    }

    fn write_link(&self) -> Result<()> {
        let (generation, path) = (self.generation, self.directory.path().to_owned());
        Link { id: self.id, generation, is_opened: true, path }.write(&self.link)
    }
}

/// Whose a cold directory is.
struct Owner {
    store: u128,
    /// Drawn when it was made.
    id: u128,
    segment_bytes: u64,
}

/// What the data directory knows of its cold directory.
struct Link {
    id: u128,
    /// Openings of its log; the last of them may have been cut short if not `is_opened`.
    generation: u64,
    is_opened: bool,
    /// Where it was.
    path: PathBuf,
}

impl Owner {
    const MAGIC: &'static [u8; 8] = b"HPSCOLDO";

    fn encode(&self) -> Vec<u8> {
        let mut bytes = begin(Self::MAGIC, 0);
        bytes.extend(self.store.to_le_bytes());
        bytes.extend(self.id.to_le_bytes());
        bytes.extend(self.segment_bytes.to_le_bytes());
        close(bytes)
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (_, rest) = content(bytes, Self::MAGIC)?;
        Some(Self {
            store: u128::from_le_bytes(rest.get(..16)?.try_into().ok()?),
            id: u128::from_le_bytes(rest.get(16..32)?.try_into().ok()?),
            segment_bytes: u64::from_le_bytes(rest.get(32..)?.try_into().ok()?),
        })
    }
}

impl Link {
    const MAGIC: &'static [u8; 8] = b"HPSCOLDL";

    fn encode(&self) -> Vec<u8> {
        let mut bytes = begin(Self::MAGIC, self.is_opened.into());
        bytes.extend(self.id.to_le_bytes());
        bytes.extend(self.generation.to_le_bytes());
        bytes.extend(self.path.as_os_str().as_bytes());
        close(bytes)
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (flags, rest) = content(bytes, Self::MAGIC)?;
        Some(Self {
            id: u128::from_le_bytes(rest.get(..16)?.try_into().ok()?),
            generation: u64::from_le_bytes(rest.get(16..24)?.try_into().ok()?),
            is_opened: flags != 0,
            path: OsString::from_vec(rest.get(24..)?.to_vec()).into(),
        })
    }

    fn write(&self, path: &Path) -> Result<()> {
        directory::replace(path, &self.encode())
    }

    fn is_needed(&self, data: &Path) -> Error {
        Error::config(format!(
            "store {} has rows in a cold directory, last seen at {}: open it with cold set to that",
            data.display(),
            self.path.display()
        ))
    }

    /// What is to be known of the next opening, if the log in `cold` is the one of the last.
    fn next(self, data: &Path, cold: &Path, found: Option<u64>) -> Result<Self> {
        let (data, cold) = (data.display(), cold.display());
        let Some(found) = found else {
            return Err(Error::corruption(format!(
                "cold directory {cold} of store {data} has lost its {LOG}, or the header of that \
                 is damaged: restore it, or the store from a checkpoint"
            )));
        };
        let was_cut_short = !self.is_opened && found + 1 == self.generation;
        if found == self.generation || was_cut_short {
            return Ok(Self { generation: found + 1, is_opened: false, ..self });
        }
        let (older, newer) = match found < self.generation {
            true => ("cold directory", "data directory"),
            false => ("data directory", "cold directory"),
        };
        Err(Error::config(format!(
            "cold directory {cold} is of another time than data directory {data}: the {older} is \
             older than the {newer} (opening {found} of {}); give both as they were last used \
             together",
            self.generation
        )))
    }
}

/// Refuses a directory that is not the one which the data directory names, or another store's.
fn check_owner(
    data: &Path,
    cold: &Path,
    store: u128,
    link: Option<&Link>,
    owner: Option<&Owner>,
) -> Result<()> {
    let (data, path) = (data.display(), cold.display());
    match (link, owner) {
        (_, Some(owner)) if owner.store != store => Err(Error::config(format!(
            "cold directory {path} belongs to another store than {data}: give this store's own, or \
             an empty directory"
        ))),
        (Some(link), Some(owner)) if owner.id != link.id => Err(Error::config(format!(
            "cold directory {path} is not the one that holds the cold rows of store {data}, which \
             was last seen at {}: give that",
            link.path.display()
        ))),
        (Some(link), None) => Err(Error::config(format!(
            "cold directory {path} holds no cold rows, but store {data} has some, last seen at {}: \
             give the directory that holds them",
            link.path.display()
        ))),
        _ => Ok(()),
    }
}

/// Makes an empty directory this store's: also one of which an earlier making was cut short, or
/// to which no row ever went.
fn adopt(
    directory: &Directory,
    data: &Path,
    store: u128,
    owner: Option<Owner>,
    segment_bytes: u64,
) -> Result<Owner> {
    let log = directory.file(LOG);
    let length = std::fs::metadata(&log).map_or(0, |metadata| metadata.len());
    if owner.is_some() && length > crate::device::PAGE as u64 {
        return Err(Error::config(format!(
            "cold directory {} holds rows of which data directory {} knows nothing: that is older \
             than it; give both as they were last used together, or an empty directory",
            directory.path().display(),
            data.display()
        )));
    }
    directory::remove_if_present(&log)?;
    let id = owner.map_or_else(crate::superblock::random_uuid, |owner| Ok(owner.id))?;
    let owner = Owner { store, id, segment_bytes };
    directory::replace(&directory.file(FILE), &owner.encode())?;
    Ok(owner)
}

/// Each must be on its own: one inside the other would count, and be counted, twice.
fn check_apart(data: &Path, cold: &Path) -> Result<()> {
    let (real_data, real_cold) = (real(data), real(cold));
    if real_data.starts_with(&real_cold) || real_cold.starts_with(&real_data) {
        return Err(Error::config(format!(
            "cold directory {} and data directory {} lie in one another; give one on another disk",
            cold.display(),
            data.display()
        )));
    }
    Ok(())
}

/// The path without links, as far as it exists.
fn real(path: &Path) -> PathBuf {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let known = path.ancestors().find_map(|above| Some((above, above.canonicalize().ok()?)));
    match known {
        Some((above, real)) => match path.strip_prefix(above) {
            Ok(rest) if !rest.as_os_str().is_empty() => real.join(rest),
            _ => real,
        },
        None => path,
    }
}

fn read<T>(path: &Path, decode: impl Fn(&[u8]) -> Option<T>) -> Result<Option<T>> {
    let Some(bytes) = directory::read_small(path, FILE_BYTES_MAX)? else { return Ok(None) };
    if let Some(version) = bytes.get(8..12).filter(|version| **version != VERSION.to_le_bytes()) {
        let is_whole = bytes.starts_with(b"HPSCOLD") && is_whole(&bytes);
        if is_whole {
            return Err(Error::config(format!(
                "{} has format version {version:?}, this build reads version {VERSION}; use the \
                 version of hybridps that wrote it, or a later one",
                path.display()
            )));
        }
    }
    decode(&bytes)
        .map(Some)
        .ok_or_else(|| Error::corruption(format!("{} is damaged: restore it", path.display())))
}

fn begin(magic: &[u8; 8], flags: u32) -> Vec<u8> {
    [&magic[..], &VERSION.to_le_bytes(), &flags.to_le_bytes()].concat()
}

fn close(mut bytes: Vec<u8>) -> Vec<u8> {
    let crc = crc32c::crc32c(&bytes);
    bytes.extend(crc.to_le_bytes());
    bytes
}

fn is_whole(bytes: &[u8]) -> bool {
    let crc = bytes.split_last_chunk::<4>();
    crc.is_some_and(|(content, crc)| crc32c::crc32c(content).to_le_bytes() == *crc)
}

/// Flags and content of a file that is whole.
fn content<'a>(bytes: &'a [u8], magic: &[u8; 8]) -> Option<(u32, &'a [u8])> {
    if !is_whole(bytes) || !bytes.starts_with(magic) {
        return None;
    }
    let flags = u32::from_le_bytes(bytes.get(12..16)?.try_into().ok()?);
    Some((flags, bytes.get(16..bytes.len() - 4)?))
}

#[cfg(test)]
#[path = "cold_directory_tests.rs"]
mod tests;
