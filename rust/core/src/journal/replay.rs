//! Reading the journal: every entry once, in order, and the line between damage and a torn tail.
//!
//! Allocates no more than the file is long, whatever its bytes claim.

use std::fs::{File, OpenOptions};
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::journal::entry::{Entry, Stamp};
use crate::journal::files::{Files, Listed};
use crate::journal::format::{read_file_header, Header, ENTRY_HEADER, FILE_HEADER, VERSION};
use crate::journal::JournalEnd;
use crate::os;
use crate::types::Sequence;
use crate::vfs;

/// Small entries are read many at a time.
const BUFFER: usize = 1 << 20;

/// Who is shown the entries.
pub(crate) type Visit<'a> = &'a mut dyn FnMut(Stamp, Entry<'_>) -> Result<()>;

/// Where the journal really ends.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reached {
    pub(crate) offset: u64,
    pub(crate) sequence: Sequence,
}

/// Reads all files and cuts the torn tail of the newest.
///
/// # Errors
/// `Corruption` naming file and offset, `Config` for a newer format, and what `visit` returns.
pub(crate) fn replay(
    files: &Files,
    listed: &[Listed],
    known: JournalEnd,
    visit: Visit<'_>,
) -> Result<Reached> {
    let mut reached = Reached { offset: 0, sequence: 0 };
    let mut body = Vec::new();
    for (i, file) in listed.iter().enumerate() {
        let is_newest = i + 1 == listed.len();
        let mut scan = Scan::open(files, file, known, is_newest, reached.sequence)?;
        scan.run(visit, &mut body)?;
        reached = Reached { offset: scan.offset, sequence: scan.sequence };
        if reached.offset < file.length {
            cut(&scan.path, reached.offset)?;
        }
    }
    Ok(reached)
}

fn cut(path: &Path, offset: u64) -> Result<()> {
    OpenOptions::new()
        .write(true)
        .open(path)
        .and_then(|file| vfs::set_length(&file, offset).and_then(|()| vfs::sync_all(&file)))
        .map_err(|cause| Error::io("cut the torn tail of", path, &cause))
}

/// One file on its way from start to end.
struct Scan {
    path: PathBuf,
    generation: u32,
    reader: BufReader<File>,
    length: u64,
    /// Start of the next entry.
    offset: u64,
    sequence: Sequence,
    /// Damage before this offset is corruption; `None` if all damage is.
    floor: Option<u64>,
    /// The known end, if it lies in this file.
    known: Option<u64>,
}

/// What lies at an offset.
enum Found {
    Entry(Header),
    End,
    Damage(&'static str),
}

impl Scan {
    fn open(
        files: &Files,
        listed: &Listed,
        known: JournalEnd,
        is_newest: bool,
        sequence: Sequence,
    ) -> Result<Self> {
        let &Listed { generation, length } = listed;
        let path = files.path(generation);
        let file = File::open(&path).map_err(|cause| Error::io("open", &path, &cause))?;
        let known = (known.generation == generation).then_some(known.offset);
        let mut scan = Self {
            path,
            generation,
            reader: BufReader::with_capacity(BUFFER, file),
            length,
            offset: 0,
            sequence,
            floor: is_newest.then_some(known.unwrap_or(0)),
            known,
        };
        scan.read_file_header(files.uuid())?;
        if known.is_some_and(|end| length < end) {
            return Err(scan.corruption(&format!(
                "it ends at {length}, before the known end at {}",
                known.unwrap_or(0)
            )));
        }
        Ok(scan)
    }

    fn read_file_header(&mut self, store: u128) -> Result<()> {
        let mut bytes = [0; FILE_HEADER];
        if self.length < FILE_HEADER as u64 {
            return Err(self.corruption("its header is cut"));
        }
        self.read(&mut bytes)?;
        let found = read_file_header(&bytes);
        let (version, generation, uuid) =
            found.ok_or_else(|| self.corruption("its header is damaged"))?;
        if version != VERSION {
            return Err(Error::config(format!(
                "{} has format version {version}, this build reads version {VERSION}; use the \
                 version of hybridps that wrote it, or a later one",
                self.path.display()
            )));
        }
        if (generation, uuid) != (self.generation, store) {
            return Err(self.corruption(&format!(
                "its header names generation {generation} of store {uuid:032x}, expected {} of \
                 store {store:032x}",
                self.generation
            )));
        }
        self.offset = FILE_HEADER as u64;
        Ok(())
    }

    /// Visits entries up to the end or the torn tail.
    fn run(&mut self, visit: Visit<'_>, body: &mut Vec<u64>) -> Result<()> {
        let mut is_first = true;
        loop {
            let header = match self.next(body)? {
                Found::Entry(header) => header,
                Found::End if !is_first => break,
                Found::End => return Err(self.corruption("its first entry is missing")),
                Found::Damage(_) if !is_first && self.is_torn() => break,
                Found::Damage(what) => return Err(self.corruption(what)),
            };
            if header.is_sessions() != is_first {
                return Err(self.corruption("sessions do not stand first, and only there"));
            }
            let entry = header.decode(body).map_err(|what| self.corruption(what))?;
            self.pass(&header)?;
            visit(Stamp { generation: self.generation, sequence: self.sequence }, entry)?;
            is_first = false;
        }
        os::forget_pages(self.reader.get_ref(), 0, self.length);
        Ok(())
    }

    /// Whether damage here can be the unfinished end of an append.
    fn is_torn(&self) -> bool {
        self.floor.is_some_and(|floor| self.offset >= floor)
    }

    /// Reads header and body at the offset, without moving it.
    fn next(&mut self, body: &mut Vec<u64>) -> Result<Found> {
        let left = self.length - self.offset;
        if left == 0 {
            return Ok(Found::End);
        }
        if left < ENTRY_HEADER as u64 {
            return Ok(Found::Damage("the header of the entry is cut"));
        }
        let mut bytes = [0; ENTRY_HEADER];
        self.read(&mut bytes)?;
        let Some(header) = Header::read(&bytes, self.generation, self.offset) else {
            return Ok(Found::Damage("the header of the entry is damaged"));
        };
        if header.length % 8 != 0 {
            return Err(self.corruption("the length of the entry is no multiple of 8"));
        }
        if header.length > left - ENTRY_HEADER as u64 {
            return Ok(Found::Damage("the body of the entry is cut"));
        }
        // Not above the file's length, which was just compared.
        body.clear();
        body.resize((header.length / 8) as usize, 0);
        self.read(bytemuck::cast_slice_mut(body))?;
        if !header.matches(body) {
            return Ok(Found::Damage("the body of the entry is damaged"));
        }
        Ok(Found::Entry(header))
    }

    /// Moves past an entry.
    fn pass(&mut self, header: &Header) -> Result<()> {
        if header.sequence < self.sequence {
            return Err(
                self.corruption(&format!("sequence {} follows {}", header.sequence, self.sequence))
            );
        }
        let end = self.offset + ENTRY_HEADER as u64 + header.length;
        if let Some(known) = self.known.filter(|&known| self.offset < known && known < end) {
            return Err(self.corruption(&format!("the known end {known} lies in an entry")));
        }
        (self.offset, self.sequence) = (end, header.sequence);
        Ok(())
    }

    fn read(&mut self, bytes: &mut [u8]) -> Result<()> {
        self.reader.read_exact(bytes).map_err(|cause| Error::io("read", &self.path, &cause))
    }

    fn corruption(&self, what: &str) -> Error {
        Error::corruption(format!(
            "journal file {} is damaged at offset {}: {what}; restore the data directory from a \
             checkpoint",
            self.path.display(),
            self.offset
        ))
    }
}
