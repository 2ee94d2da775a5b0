//! A device in memory for tests: it keeps a trace of all changes, makes the images that a crash
//! after any of them may leave, and fails on demand.

use std::io;
use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;

use super::{Device, Reads};

const SECTOR: usize = 512;

/// A change, in the order in which the device was asked.
#[derive(Debug, Clone)]
pub(crate) enum Operation {
    Write { offset: u64, bytes: Vec<u8> },
    Sync,
    Punch { offset: u64, bytes: u64 },
}

#[derive(Default)]
struct State {
    image: Vec<u8>,
    trace: Vec<Operation>,
    fail_from: Option<usize>,
}

/// A handle; clones share the device.
#[derive(Clone, Default)]
pub(crate) struct FaultyDevice(Arc<Mutex<State>>);

impl FaultyDevice {
    /// A device that holds `image`.
    pub(crate) fn new(image: Vec<u8>) -> Self {
        Self(Arc::new(Mutex::new(State { image, ..State::default() })))
    }

    /// Bytes as a reader sees them now.
    pub(crate) fn image(&self) -> Vec<u8> {
        self.0.lock().image.clone()
    }

    /// Changes so far.
    pub(crate) fn operations(&self) -> usize {
        self.0.lock().trace.len()
    }

    /// Changes so far, taken out.
    pub(crate) fn take_trace(&self) -> Vec<Operation> {
        std::mem::take(&mut self.0.lock().trace)
    }

    /// All changes fail from the `n`-th on, counted from now.
    pub(crate) fn fail_after(&self, n: usize) {
        let mut state = self.0.lock();
        state.fail_from = Some(state.trace.len() + n);
    }

    /// Inverts one byte.
    pub(crate) fn damage(&self, offset: usize) {
        self.0.lock().image[offset] ^= 0xff;
    }

    /// What the disk may hold after a power cut behind `trace`, from an empty disk: all that was
    /// synced, and of each later change each sector or not, as `keep` says.
    pub(crate) fn crash_image(trace: &[Operation], mut keep: impl FnMut() -> bool) -> Vec<u8> {
        let synced = trace.iter().rposition(|op| matches!(op, Operation::Sync)).unwrap_or(0);
        let mut image = Vec::new();
        for (index, operation) in trace.iter().enumerate() {
            let (offset, bytes) = match operation {
                Operation::Sync => continue,
                Operation::Write { offset, bytes } => (*offset as usize, bytes.clone()),
                Operation::Punch { offset, bytes } => (*offset as usize, vec![0; *bytes as usize]),
            };
            for (sector, chunk) in bytes.chunks(SECTOR).enumerate() {
                if index < synced || keep() {
                    put(&mut image, chunk, offset + sector * SECTOR);
                }
            }
        }
        image
    }

    fn change(&self, operation: Operation) -> io::Result<()> {
        let mut state = self.0.lock();
        if state.fail_from.is_some_and(|n| state.trace.len() >= n) {
            return Err(io::Error::other("made to fail by the test"));
        }
        match &operation {
            Operation::Write { offset, bytes } => put(&mut state.image, bytes, *offset as usize),
            Operation::Sync => {}
            Operation::Punch { offset, bytes } => {
                let end = (offset + bytes).min(state.image.len() as u64) as usize;
                let start = (*offset as usize).min(end);
                state.image[start..end].fill(0);
            }
        }
        state.trace.push(operation);
        Ok(())
    }
}

fn put(image: &mut Vec<u8>, bytes: &[u8], offset: usize) {
    let end = offset + bytes.len();
    if image.len() < end {
        image.resize(end, 0);
    }
    image[offset..end].copy_from_slice(bytes);
}

impl Device for FaultyDevice {
    fn read_batch(&self, reads: &mut dyn Reads) {
        // A few at a time, each few back to front: the order is not promised.
        loop {
            let few: Vec<_> = std::iter::from_fn(|| reads.next()).take(7).collect();
            for extent in few.iter().rev() {
                let mut buffer = super::AlignedBuffer::new(extent.bytes as usize);
                let read = self.read_at(&mut buffer[..extent.bytes as usize], extent.offset);
                reads.done(extent.number, read.map(|bytes| &buffer[..bytes]));
            }
            if few.is_empty() {
                return;
            }
        }
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        assert_eq!((buffer.as_ptr() as usize | offset as usize) % super::PAGE, 0, "not aligned");
        let state = self.0.lock();
        let start = (offset as usize).min(state.image.len());
        let bytes = buffer.len().min(state.image.len() - start);
        buffer[..bytes].copy_from_slice(&state.image[start..start + bytes]);
        Ok(bytes)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let unaligned = bytes.as_ptr() as usize | bytes.len() | offset as usize;
        assert_eq!(unaligned % super::PAGE, 0, "not aligned");
        self.change(Operation::Write { offset, bytes: bytes.to_vec() })
    }

    fn sync(&self) -> io::Result<()> {
        self.change(Operation::Sync)
    }

    fn punch(&self, offset: u64, bytes: u64) -> io::Result<()> {
        self.change(Operation::Punch { offset, bytes })
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.0.lock().image.len() as u64)
    }

    fn path(&self) -> &Path {
        Path::new("rows.log")
    }

    fn description(&self) -> String {
        "memory".to_owned()
    }

    fn buffer_bytes(&self) -> u64 {
        0
    }
}
