//! Reads with a pool of threads: the fallback where io_uring is refused (containers, old kernels).

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{mpsc, Arc};
use std::thread::JoinHandle;

use parking_lot::{Condvar, Mutex};

use super::file::read_full;
use super::{AlignedBuffer, Extent, Reads, EXTENT_BYTES_MAX};

/// One thread keeps one read at the device; disks want at least 16.
const THREADS: usize = 16;
/// Extents of one job: few, so that a small batch still spreads over the threads.
const JOB_EXTENTS: usize = 4;
/// Jobs of one batch that are out at once; bounds its buffers at 2 MiB.
const JOBS_OUT: usize = 2 * THREADS;

struct Job {
    extents: Vec<Extent>,
    buffer: AlignedBuffer,
    done: mpsc::Sender<Done>,
}

struct Done {
    read: Vec<io::Result<usize>>,
    extents: Vec<Extent>,
    buffer: AlignedBuffer,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    closing: bool,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    work: Condvar,
    buffer_bytes: AtomicU64,
}

pub(super) struct ThreadReader {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl ThreadReader {
    pub(super) fn new(file: &Arc<File>) -> Self {
        let shared = Arc::new(Shared::default());
        let threads = (0..THREADS)
            .map(|_| {
                let (shared, file) = (shared.clone(), file.clone());
                std::thread::spawn(move || serve(&shared, &file))
            })
            .collect();
        Self { shared, threads }
    }

    pub(super) fn buffer_bytes(&self) -> u64 {
        self.shared.buffer_bytes.load(Ordering::Relaxed)
    }

    pub(super) fn read_batch(&self, reads: &mut dyn Reads) {
        let (done, results) = mpsc::channel();
        let (mut out, mut held) = (0, None);
        while out < JOBS_OUT {
            let Some(extents) = next_job(reads, &mut held) else { break };
            self.submit(extents, AlignedBuffer::new(EXTENT_BYTES_MAX), &done, true);
            out += 1;
        }
        while out > 0 {
            let job = results.recv().expect("this thread holds a sender, so the channel is open");
            let mut start = 0;
            for (extent, read) in job.extents.iter().zip(job.read) {
                reads.done(extent.number, read.map(|bytes| &job.buffer[start..start + bytes]));
                start += extent.bytes as usize;
            }
            match next_job(reads, &mut held) {
                Some(extents) => self.submit(extents, job.buffer, &done, false),
                None => {
                    self.shared.buffer_bytes.fetch_sub(EXTENT_BYTES_MAX as u64, Ordering::Relaxed);
                    out -= 1;
                }
            }
        }
    }

    fn submit(
        &self,
        extents: Vec<Extent>,
        buffer: AlignedBuffer,
        done: &mpsc::Sender<Done>,
        fresh: bool,
    ) {
        if fresh {
            self.shared.buffer_bytes.fetch_add(EXTENT_BYTES_MAX as u64, Ordering::Relaxed);
        }
        self.shared.queue.lock().jobs.push_back(Job { extents, buffer, done: done.clone() });
        self.shared.work.notify_one();
    }
}

impl Drop for ThreadReader {
    fn drop(&mut self) {
        self.shared.queue.lock().closing = true;
        self.shared.work.notify_all();
        for thread in self.threads.drain(..) {
            // A thread that panicked has been reported by its panic already.
            let _ = thread.join();
        }
    }
}

/// The next few reads, which fit one buffer together. One that does not is held for the next job.
fn next_job(reads: &mut dyn Reads, held: &mut Option<Extent>) -> Option<Vec<Extent>> {
    let mut job = Vec::with_capacity(JOB_EXTENTS);
    let mut room = EXTENT_BYTES_MAX;
    while job.len() < JOB_EXTENTS {
        let Some(extent) = held.take().or_else(|| reads.next()) else { break };
        if extent.bytes as usize > room {
            *held = Some(extent);
            break;
        }
        room -= extent.bytes as usize;
        job.push(extent);
    }
    (!job.is_empty()).then_some(job)
}

fn serve(shared: &Shared, file: &File) {
    loop {
        let mut queue = shared.queue.lock();
        let job = loop {
            if let Some(job) = queue.jobs.pop_front() {
                break job;
            }
            if queue.closing {
                return;
            }
            shared.work.wait(&mut queue);
        };
        drop(queue);
        run(file, job);
    }
}

fn run(file: &File, mut job: Job) {
    let mut read = Vec::with_capacity(job.extents.len());
    let mut start = 0;
    for extent in &job.extents {
        let end = start + extent.bytes as usize;
        read.push(read_full(file, &mut job.buffer[start..end], extent.offset));
        start = end;
    }
    // The reader may have gone with a panic of its visitor; nobody waits then.
    let _ = job.done.send(Done { read, extents: job.extents, buffer: job.buffer });
}
