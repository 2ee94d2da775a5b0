//! Reading the journal: every entry once, in order, and the line between damage and a torn tail.
//!
//! Allocates no more than the file is long, whatever its bytes claim.

use std::fs::{File, OpenOptions};
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use crate::directory;
use crate::error::{Error, ErrorKind, Result};
use crate::journal::decode::Header;
use crate::journal::entry::{Entry, Stamp};
use crate::journal::files::{Chain, Files, Listed};
use crate::journal::format::{read_file_header, ENTRY_HEADER, FILE_HEADER, VERSION};
use crate::journal::JournalEnd;
use crate::os;
use crate::types::{Epoch, Sequence};
use crate::vfs;

/// Small entries are read many at a time.
const BUFFER: usize = 1 << 20;

/// Who is shown the entries.
pub(crate) type Visit<'a> = &'a mut dyn FnMut(Stamp, Entry<'_>) -> Result<()>;

/// How far the reading came.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reached {
    /// Start of the next entry in the file.
    pub(crate) offset: u64,
    pub(crate) sequence: Sequence,
    pub(crate) epoch: Epoch,
}

/// Reads all files and cuts the torn tail of the newest; settles what became of a rotation that was
/// cut short. No entry may be of a later epoch than `epoch`.
///
/// # Errors
/// `Corruption` naming file and offset, `Config` for another format, and what `visit` returns.
pub(crate) fn replay(
    files: &Files,
    chain: &mut Chain,
    known: JournalEnd,
    epoch: Epoch,
    visit: Visit<'_>,
) -> Result<Reached> {
    let mut reached = Reached { offset: 0, sequence: 0, epoch: 0 };
    let mut body = Vec::new();
    for (i, &file) in chain.listed.iter().enumerate() {
        let is_newest = i + 1 == chain.listed.len();
        let known = (known.generation == file.generation).then_some(known.offset);
        let source = Source { path: files.path(file.generation), file, is_newest, known, epoch };
        reached = read(files, source, reached, visit, &mut body)?;
    }
    let Some(file) = chain.next.take() else { return Ok(reached) };
    let path = files.next_path(file.generation);
    let mut source = Source { path, file, is_newest: true, known: None, epoch };
    if !follows(files, source.clone(), reached)? {
        files.delete_next(file.generation)?;
        return Ok(reached);
    }
    // Before any of it is replayed: what comes of its entries must not outlive them.
    files.publish(file.generation)?;
    chain.listed.push(file);
    source.path = files.path(file.generation);
    read(files, source, reached, visit, &mut body)
}

/// Reads one file, which goes on from `reached`, and cuts its torn tail.
fn read(
    files: &Files,
    source: Source,
    reached: Reached,
    visit: Visit<'_>,
    body: &mut Vec<u64>,
) -> Result<Reached> {
    let mut scan = Scan::open(files, source, reached)?;
    scan.run(visit, body)?;
    if scan.reached.offset < scan.source.file.length {
        cut(&scan.source.path, scan.reached.offset)?;
    }
    Ok(scan.reached)
}

/// Whether a next file goes on where the one before it ended. Else that one lost its end in the
/// crash, or nothing had come to this one yet: nothing in it was promised.
fn follows(files: &Files, next: Source, reached: Reached) -> Result<bool> {
    let mut scan = match Scan::open(files, next, reached) {
        Err(error) if error.kind == ErrorKind::Corruption => return Ok(false),
        scan => scan?,
    };
    let mut body = Vec::new();
    let Found::Entry(header) = scan.next(&mut body)? else { return Ok(false) };
    let first = header.decode(&body);
    Ok(matches!(first, Ok(Entry::Sessions { before, .. }) if before == reached.offset))
}

fn cut(path: &Path, offset: u64) -> Result<()> {
    OpenOptions::new()
        .write(true)
        .open(path)
        .and_then(|file| vfs::set_length(&file, offset).and_then(|()| vfs::sync_all(&file)))
        .map_err(|cause| Error::io("cut the torn tail of", path, &cause))
}

/// A file to read, and what is known of it.
#[derive(Debug, Clone)]
struct Source {
    path: PathBuf,
    file: Listed,
    /// Its end may be torn.
    is_newest: bool,
    /// The known end, if it lies in this file.
    known: Option<u64>,
    /// Of no entry a later one.
    epoch: Epoch,
}

/// One file on its way from start to end.
struct Scan {
    source: Source,
    reader: BufReader<File>,
    reached: Reached,
    /// Where the file before ended; 0 if none was read.
    before: u64,
}

/// What lies at an offset.
enum Found {
    Entry(Header),
    End,
    Damage(&'static str),
}

impl Scan {
    fn open(files: &Files, source: Source, before: Reached) -> Result<Self> {
        let path = &source.path;
        let file = File::open(path).map_err(|cause| Error::io("open", path, &cause))?;
        let reader = BufReader::with_capacity(BUFFER, file);
        let reached = Reached { offset: 0, ..before };
        let mut scan = Self { source, reader, reached, before: before.offset };
        scan.read_file_header(files.uuid())?;
        let length = scan.source.file.length;
        if let Some(end) = scan.source.known.filter(|&end| length < end) {
            let what = format!("it ends at {length}, before the known end at {end}");
            return Err(scan.corruption(&what));
        }
        Ok(scan)
    }

    fn read_file_header(&mut self, store: u128) -> Result<()> {
        let mut bytes = [0; FILE_HEADER];
        if self.source.file.length < FILE_HEADER as u64 {
            return Err(self.corruption("its header is cut"));
        }
        self.fill(&mut bytes)?;
        let found = read_file_header(&bytes);
        let (version, generation, uuid) =
            found.ok_or_else(|| self.corruption("its header is damaged"))?;
        directory::check_version(&self.source.path, version, VERSION)?;
        let expected = self.source.file.generation;
        if (generation, uuid) != (expected, store) {
            return Err(self.corruption(&format!(
                "its header names generation {generation} of store {uuid:032x}, expected \
                 {expected} of store {store:032x}",
            )));
        }
        self.reached.offset = FILE_HEADER as u64;
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
            self.check_first(&entry)?;
            let Reached { sequence, epoch, .. } = self.reached;
            visit(Stamp { generation: self.source.file.generation, sequence, epoch }, entry)?;
            is_first = false;
        }
        os::forget_pages(self.reader.get_ref(), 0, self.source.file.length);
        Ok(())
    }

    /// The first entry says how long the file before was.
    fn check_first(&self, entry: &Entry<'_>) -> Result<()> {
        match *entry {
            Entry::Sessions { before, .. } if self.before > 0 && before != self.before => Err(self
                .corruption(&format!(
                    "it goes on from offset {before} of the file before, which ends at {}",
                    self.before
                ))),
            _ => Ok(()),
        }
    }

    /// Whether damage here can be the unfinished end of an append.
    fn is_torn(&self) -> bool {
        self.source.is_newest && self.reached.offset >= self.source.known.unwrap_or(0)
    }

    /// Reads header and body at the offset, without moving it.
    fn next(&mut self, body: &mut Vec<u64>) -> Result<Found> {
        let offset = self.reached.offset;
        let left = self.source.file.length - offset;
        if left == 0 {
            return Ok(Found::End);
        }
        if left < ENTRY_HEADER as u64 {
            return Ok(Found::Damage("the header of the entry is cut"));
        }
        let mut bytes = [0; ENTRY_HEADER];
        self.fill(&mut bytes)?;
        let Some(header) = Header::read(&bytes, self.source.file.generation, offset) else {
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
        self.fill(bytemuck::cast_slice_mut(body))?;
        if !header.matches(body) {
            return Ok(Found::Damage("the body of the entry is damaged"));
        }
        Ok(Found::Entry(header))
    }

    /// Moves past an entry.
    fn pass(&mut self, header: &Header) -> Result<()> {
        let Reached { offset, sequence, epoch } = self.reached;
        if header.sequence < sequence {
            let what = format!("sequence {} follows {sequence}", header.sequence);
            return Err(self.corruption(&what));
        }
        if header.epoch < epoch || header.epoch > self.source.epoch {
            let what = format!(
                "epoch {} follows {epoch}, and the superblock knows of {} at most",
                header.epoch, self.source.epoch
            );
            return Err(self.corruption(&what));
        }
        let end = offset + ENTRY_HEADER as u64 + header.length;
        if let Some(known) = self.source.known.filter(|&known| offset < known && known < end) {
            return Err(self.corruption(&format!("the known end {known} lies in an entry")));
        }
        self.reached = Reached { offset: end, sequence: header.sequence, epoch: header.epoch };
        Ok(())
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<()> {
        self.reader.read_exact(bytes).map_err(|cause| Error::io("read", &self.source.path, &cause))
    }

    fn corruption(&self, what: &str) -> Error {
        Error::corruption(format!(
            "journal file {} is damaged at offset {}: {what}; restore the data directory from a \
             checkpoint",
            self.source.path.display(),
            self.reached.offset
        ))
    }
}
