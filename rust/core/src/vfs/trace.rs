//! What tests see of the door: every change of one directory in order, the images that a power cut
//! after any of them may leave, and changes that fail.
//!
//! The model of the disk: a file's bytes are on the device up to its last sync; of what came later
//! each sector is there or not, in any mixture, also lengths. A name is as of the directory's last
//! sync; of what came later each creation, renaming or deletion happened or did not.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::Arc;

use parking_lot::Mutex;

const SECTOR: usize = 512;

/// The inode of an open file, or a path of a trace.
pub(crate) type FileId = u64;

/// A change that has happened, or is about to.
#[derive(Debug, Clone)]
pub(crate) enum Change {
    Create {
        path: PathBuf,
    },
    Write {
        file: FileId,
        offset: Option<u64>,
        bytes: Vec<u8>,
    },
    SetLength {
        file: FileId,
        length: u64,
    },
    Punch {
        file: FileId,
        offset: u64,
        bytes: u64,
    },
    Sync {
        file: FileId,
    },
    Rename {
        from: PathBuf,
        to: PathBuf,
    },
    Remove {
        path: PathBuf,
    },
    SyncDirectory {
        path: PathBuf,
    },
    /// A note of the test: what was acknowledged by then.
    Mark(u64),
}

impl Change {
    pub(super) fn write(file: &File, slices: &[&[u8]], offset: Option<u64>) -> Self {
        Self::Write { file: id(file), offset, bytes: slices.concat() }
    }
}

/// Inode of an open file.
pub(super) fn id(file: &File) -> FileId {
    file.metadata().map_or(0, |meta| meta.ino())
}

/// A change with its place in the order.
#[derive(Debug)]
struct Step {
    change: Change,
    /// Which file, counted by creation: the system gives the inode of a deleted file to the next.
    file: usize,
    /// Changes before this one were over when it began: a sync covers those.
    begun_after: usize,
}

type Fault = dyn Fn(&Change) -> Option<i32> + Send + Sync;

#[derive(Default)]
struct State {
    steps: Vec<Step>,
    files: usize,
    /// Files by inode.
    by_id: HashMap<FileId, usize>,
    /// Asked before each change; an error number makes it fail.
    fault: Option<Arc<Fault>>,
    /// The next append stops after so many bytes, with this error number.
    short: Option<(usize, i32)>,
}

/// The trace of one directory.
#[derive(Clone)]
struct Trace {
    root: PathBuf,
    state: Arc<Mutex<State>>,
}

static TRACES: Mutex<Vec<Trace>> = Mutex::new(Vec::new());
/// How many: tests that trace nothing pay nothing.
static TRACED: AtomicUsize = AtomicUsize::new(0);

/// Traces a directory while it lives.
pub(crate) struct Traced(Trace);

impl Traced {
    /// Begins to trace `root`, an empty directory, by its absolute path.
    pub(crate) fn new(root: &Path) -> Self {
        let trace = Trace { root: root.to_owned(), state: Arc::default() };
        TRACES.lock().push(trace.clone());
        TRACED.fetch_add(1, SeqCst);
        Self(trace)
    }

    /// Adds a note.
    pub(crate) fn mark(&self, number: u64) {
        let mut state = self.0.state.lock();
        let begun_after = state.steps.len();
        state.steps.push(Step { change: Change::Mark(number), file: 0, begun_after });
    }

    /// Lets changes fail from now on, as `fault` says: with an error number. It may take its time:
    /// other changes go on meanwhile.
    pub(crate) fn fail(&self, fault: impl Fn(&Change) -> Option<i32> + Send + Sync + 'static) {
        self.0.state.lock().fault = Some(Arc::new(fault));
    }

    /// Lets the next append stop after `bytes` bytes.
    pub(crate) fn cut_append(&self, bytes: usize, number: i32) {
        self.0.state.lock().short = Some((bytes, number));
    }

    /// No change fails any more.
    pub(crate) fn heal(&self) {
        self.0.state.lock().fault = None;
    }

    /// The last note among the first `n` changes.
    pub(crate) fn marked(&self, n: usize) -> u64 {
        let state = self.0.state.lock();
        let mark = |step: &Step| match step.change {
            Change::Mark(number) => Some(number),
            _ => None,
        };
        state.steps[..n].iter().rev().find_map(mark).unwrap_or(0)
    }

    /// How many changes came before each cut that leaves something else than the one before.
    pub(crate) fn cuts(&self) -> Vec<usize> {
        let state = self.0.state.lock();
        let steps = state.steps.iter().enumerate();
        steps.filter(|(_, s)| !matches!(s.change, Change::Mark(_))).map(|(n, _)| n + 1).collect()
    }

    /// Builds in `to` what a power cut behind the first `n` changes may leave; `keep` decides of
    /// each unsynced sector, length and name whether it is there.
    pub(crate) fn image(&self, n: usize, to: &Path, keep: &mut dyn FnMut() -> bool) {
        self.image_but(n, to, None, keep);
    }

    /// The same, where what lies under `spared` is on another disk, which loses nothing.
    pub(crate) fn image_but(
        &self,
        n: usize,
        to: &Path,
        spared: Option<&Path>,
        keep: &mut dyn FnMut() -> bool,
    ) {
        let state = self.0.state.lock();
        let mut disk = Disk::default();
        for (index, step) in state.steps[..n].iter().enumerate() {
            disk.note(index, step);
        }
        drop(state);
        if let Some(spared) = spared {
            disk.sync_under(spared);
        }
        disk.lose_power(keep);
        disk.write(&self.0.root, to);
    }
}

impl Drop for Traced {
    fn drop(&mut self) {
        TRACED.fetch_sub(1, SeqCst);
        TRACES.lock().retain(|trace| !Arc::ptr_eq(&trace.state, &self.0.state));
    }
}

/// Does `work` and adds `change` to the trace of its directory, if there is one.
pub(super) fn record<T>(
    change: impl FnOnce() -> Change,
    work: impl FnOnce() -> io::Result<T>,
) -> io::Result<T> {
    if TRACED.load(SeqCst) == 0 {
        return work();
    }
    let change = change();
    let Some(trace) = trace_of(&change) else { return work() };
    let fault = trace.state.lock().fault.clone();
    if let Some(number) = fault.and_then(|fault| fault(&change)) {
        return Err(io::Error::from_raw_os_error(number));
    }
    let begun_after = trace.state.lock().steps.len();
    let done = work()?;
    trace.state.lock().add(change, begun_after);
    Ok(done)
}

/// How much an append is to write before it fails, and with what, if a test has asked for it.
pub(super) fn short(file: &File, slices: &[&[u8]]) -> Option<(Vec<u8>, io::Error)> {
    if TRACED.load(SeqCst) == 0 {
        return None;
    }
    let trace = trace_of(&Change::write(file, &[], None))?;
    let (bytes, number) = trace.state.lock().short.take()?;
    let mut part = slices.concat();
    part.truncate(bytes);
    Some((part, io::Error::from_raw_os_error(number)))
}

fn trace_of(change: &Change) -> Option<Trace> {
    let traces = TRACES.lock();
    let within = |path: &Path| traces.iter().find(|trace| path.starts_with(&trace.root)).cloned();
    match change {
        Change::Create { path }
        | Change::Remove { path }
        | Change::SyncDirectory { path }
        | Change::Rename { to: path, .. } => within(path),
        Change::Write { file, .. }
        | Change::SetLength { file, .. }
        | Change::Punch { file, .. }
        | Change::Sync { file } => {
            traces.iter().find(|trace| trace.state.lock().by_id.contains_key(file)).cloned()
        }
        Change::Mark(_) => None,
    }
}

impl State {
    fn add(&mut self, change: Change, begun_after: usize) {
        let file = match &change {
            Change::Create { path } => {
                self.files += 1;
                let id = std::fs::metadata(path).map_or(0, |meta| meta.ino());
                self.by_id.insert(id, self.files - 1);
                self.files - 1
            }
            Change::Write { file, .. }
            | Change::SetLength { file, .. }
            | Change::Punch { file, .. }
            | Change::Sync { file } => self.by_id[file],
            _ => 0,
        };
        self.steps.push(Step { change, file, begun_after });
    }
}

/// Bytes of one file: those on the device, and what was changed since.
#[derive(Default)]
struct Content {
    synced: Vec<u8>,
    length: u64,
    later: Vec<(usize, Edit)>,
}

enum Edit {
    Write(u64, Vec<u8>),
    Length(u64),
    Punch(u64, u64),
}

enum Naming {
    Give(PathBuf, usize),
    Move(PathBuf, PathBuf, usize),
    Take(PathBuf),
}

impl Naming {
    fn directory(&self) -> Option<&Path> {
        match self {
            Self::Give(path, _) | Self::Move(_, path, _) | Self::Take(path) => path.parent(),
        }
    }

    fn apply(&self, names: &mut BTreeMap<PathBuf, usize>) {
        match self {
            Self::Give(path, file) => drop(names.insert(path.clone(), *file)),
            Self::Move(from, to, file) => {
                names.remove(from);
                names.insert(to.clone(), *file);
            }
            Self::Take(path) => drop(names.remove(path)),
        }
    }
}

/// A disk that remembers what was synced.
#[derive(Default)]
struct Disk {
    files: Vec<Content>,
    /// As the running system sees them.
    names: BTreeMap<PathBuf, usize>,
    synced_names: BTreeMap<PathBuf, usize>,
    later_names: Vec<(usize, Naming)>,
}

impl Disk {
    fn note(&mut self, index: usize, step: &Step) {
        match &step.change {
            Change::Create { path } => {
                self.files.push(Content::default());
                self.rename(index, Naming::Give(path.clone(), step.file));
            }
            Change::Rename { from, to } => {
                let file = self.names[from];
                self.rename(index, Naming::Move(from.clone(), to.clone(), file));
            }
            Change::Remove { path } => self.rename(index, Naming::Take(path.clone())),
            Change::Write { offset, bytes, .. } => {
                let content = &mut self.files[step.file];
                let offset = offset.unwrap_or(content.length);
                content.length = content.length.max(offset + bytes.len() as u64);
                content.later.push((index, Edit::Write(offset, bytes.clone())));
            }
            Change::SetLength { length, .. } => {
                self.files[step.file].length = *length;
                self.files[step.file].later.push((index, Edit::Length(*length)));
            }
            Change::Punch { offset, bytes, .. } => {
                self.files[step.file].later.push((index, Edit::Punch(*offset, *bytes)));
            }
            Change::Sync { .. } => self.files[step.file].sync(step.begun_after),
            Change::SyncDirectory { path } => self.sync_names(path, step.begun_after),
            Change::Mark(_) => {}
        }
    }

    fn rename(&mut self, index: usize, naming: Naming) {
        naming.apply(&mut self.names);
        self.later_names.push((index, naming));
    }

    fn sync_names(&mut self, directory: &Path, before: usize) {
        for (index, naming) in std::mem::take(&mut self.later_names) {
            if index < before && naming.directory() == Some(directory) {
                naming.apply(&mut self.synced_names);
            } else {
                self.later_names.push((index, naming));
            }
        }
    }

    /// Everything under a directory is on the device.
    fn sync_under(&mut self, directory: &Path) {
        let is_under = |path: &Path| path.starts_with(directory);
        for (index, naming) in std::mem::take(&mut self.later_names) {
            if naming.directory().is_some_and(is_under) {
                naming.apply(&mut self.synced_names);
            } else {
                self.later_names.push((index, naming));
            }
        }
        for (_, &file) in self.names.iter().filter(|(path, _)| is_under(path)) {
            self.files[file].sync(usize::MAX);
        }
    }

    fn lose_power(&mut self, keep: &mut dyn FnMut() -> bool) {
        for (_, naming) in std::mem::take(&mut self.later_names) {
            if keep() {
                naming.apply(&mut self.synced_names);
            }
        }
        self.files.iter_mut().for_each(|content| content.tear(keep));
    }

    fn write(&self, root: &Path, to: &Path) {
        for (path, &file) in &self.synced_names {
            let path = to.join(path.strip_prefix(root).expect("only the root is traced"));
            let directory = path.parent().expect("a file lies in a directory");
            std::fs::create_dir_all(directory).expect("the image can be written");
            std::fs::write(&path, &self.files[file].synced).expect("the image can be written");
        }
    }
}

impl Content {
    /// Everything changed before change `before` is on the device.
    fn sync(&mut self, before: usize) {
        for (index, edit) in std::mem::take(&mut self.later) {
            if index < before {
                self.apply(&edit, &mut || true);
            } else {
                self.later.push((index, edit));
            }
        }
    }

    fn tear(&mut self, keep: &mut dyn FnMut() -> bool) {
        for (_, edit) in std::mem::take(&mut self.later) {
            self.apply(&edit, keep);
        }
    }

    fn apply(&mut self, edit: &Edit, keep: &mut dyn FnMut() -> bool) {
        match edit {
            Edit::Write(offset, bytes) => self.put(*offset as usize, bytes, keep),
            Edit::Length(length) => {
                if keep() {
                    self.synced.resize(*length as usize, 0);
                }
            }
            Edit::Punch(offset, bytes) => {
                let end = (*offset + *bytes).min(self.synced.len() as u64) as usize;
                if keep() && (*offset as usize) < end {
                    self.synced[*offset as usize..end].fill(0);
                }
            }
        }
    }

    /// Writes the sectors that are kept; a device writes whole ones.
    fn put(&mut self, offset: usize, bytes: &[u8], keep: &mut dyn FnMut() -> bool) {
        let mut at = offset;
        while at < offset + bytes.len() {
            let end = ((at / SECTOR + 1) * SECTOR).min(offset + bytes.len());
            if keep() {
                if self.synced.len() < end {
                    self.synced.resize(end, 0);
                }
                self.synced[at..end].copy_from_slice(&bytes[at - offset..end - offset]);
            }
            at = end;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super as vfs;
    use super::*;
    use crate::scratch::Scratch;

    /// What is left of a run with all, or nothing, of the unsynced changes.
    fn left(traced: &Traced, n: usize, keep: bool) -> BTreeMap<String, Vec<u8>> {
        let to = Scratch::in_memory();
        traced.image(n, to.path(), &mut || keep);
        let files = std::fs::read_dir(to.path()).expect("the image is a directory");
        let read = |entry: io::Result<std::fs::DirEntry>| {
            let entry = entry.expect("an entry");
            let bytes = std::fs::read(entry.path()).expect("a file");
            (entry.file_name().to_string_lossy().into_owned(), bytes)
        };
        files.map(read).collect()
    }

    /// Goal: a file replaced by way of a temporary one is whole under its name after any cut.
    #[test]
    fn a_file_that_is_replaced_holds_the_old_bytes_or_the_new() {
        let scratch = Scratch::in_memory();
        let traced = Traced::new(scratch.path());
        let path = scratch.path().join("small");
        crate::directory::replace(&path, b"old").expect("replace");
        let before = traced.cuts().len();
        crate::directory::replace(&path, b"newer").expect("replace");
        for n in before..=traced.cuts().len() {
            for keep in [false, true] {
                let bytes = left(&traced, n, keep).remove("small").expect("the name is durable");
                let done = n == traced.cuts().len();
                assert!(bytes == b"newer" || bytes == b"old" && !done, "{bytes:?} after {n}");
            }
        }
    }

    /// Goal: the model is not too kind. Method: bytes and names without their syncs may be gone.
    #[test]
    fn what_was_not_synced_may_be_lost_and_what_was_is_not() {
        let scratch = Scratch::in_memory();
        let traced = Traced::new(scratch.path());
        let file = vfs::create(&scratch.path().join("log")).expect("create");
        vfs::append(&file, &[b"one", b"two"]).expect("append");
        vfs::sync_data(&file).expect("sync");
        vfs::sync_directory(scratch.path()).expect("sync");
        vfs::append(&file, &[b"three"]).expect("append");
        let n = traced.cuts().len();
        assert_eq!(left(&traced, n, false)["log"], b"onetwo");
        assert_eq!(left(&traced, n, true)["log"], b"onetwothree");
        assert!(!left(&traced, 3, false).contains_key("log"), "its name was not synced");
        traced.fail(|change| matches!(change, Change::Sync { .. }).then_some(libc::EIO));
        assert_eq!(vfs::sync_data(&file).unwrap_err().raw_os_error(), Some(libc::EIO));
        traced.heal();
        vfs::sync_data(&file).expect("sync");
        assert_eq!(left(&traced, traced.cuts().len(), false)["log"], b"onetwothree");
    }
}
