//! One thread that writes the lines of all workers.
//!
//! Every sink has a queue, bounded in lines and in bytes: whole lines in one buffer, which the writer swaps for an empty
//! one and writes with one system call. The first line of a batch wakes the writer if it sleeps; it then waits a few
//! milliseconds for company, so that a busy proxy pays one wake-up for hundreds of lines and a quiet one still sees a line
//! after about [`BATCH_WINDOW`].

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, Thread};
use std::time::Duration;

use metrics::Counter;

use crate::config::AccessLogSink;

/// How long the writer waits after the first line of a batch.
const BATCH_WINDOW: Duration = Duration::from_millis(5);
/// Between attempts on a stream that would block.
const RETRY: Duration = Duration::from_millis(1);
/// How long a drop of the writer waits for the last lines.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// A buffer above this is given back after it has been written.
const KEPT_CAPACITY: usize = 256 * 1024;

/// Bounds of each sink's queue.
#[derive(Clone, Copy, Debug)]
pub struct LogOptions {
    /// Lines waiting above which further ones are dropped.
    pub max_lines: usize,
    /// Bytes waiting above which further lines are dropped.
    pub max_bytes: usize,
}

impl Default for LogOptions {
    fn default() -> Self {
        Self { max_lines: 8 * 1024, max_bytes: 8 * 1024 * 1024 }
    }
}

/// Owns the sinks and the thread that writes them. Dropping it writes what is queued, for a second at the most.
#[derive(Debug)]
pub struct LogWriter {
    shared: Arc<Shared>,
}

/// A place for lines; clones share one queue.
#[derive(Clone, Debug)]
pub(super) struct Sink {
    queue: Arc<Queue>,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    options: LogOptions,
    sinks: Mutex<BTreeMap<AccessLogSink, Arc<Queue>>>,
    /// Lines that were not written: queue full, or the sink failed.
    dropped: Counter,
    /// The writer has found nothing to do and sleeps, or is about to.
    asleep: AtomicBool,
    reopen: AtomicBool,
    stop: AtomicBool,
    /// Rounds asked for by [`LogWriter::flush`], and rounds done.
    flush_wanted: AtomicU64,
    flush_done: Mutex<u64>,
    flushed: Condvar,
    thread: OnceLock<Thread>,
}

#[derive(Debug)]
struct Queue {
    pending: Mutex<Batch>,
    /// Only the writer thread takes this lock while it is running.
    target: Mutex<Target>,
}

/// Whole lines, in order.
#[derive(Debug, Default)]
struct Batch {
    bytes: Vec<u8>,
    lines: usize,
}

#[derive(Debug)]
struct Target {
    place: AccessLogSink,
    file: File,
    /// A failed write ended in the middle of a line: the next batch begins with a line feed.
    torn: bool,
}

impl LogWriter {
    /// Starts the thread. `dropped` counts lines that are lost (`skiff_access_log_dropped_total`).
    ///
    /// # Errors
    /// When the thread cannot be created.
    pub fn start(options: LogOptions, dropped: Counter) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            options,
            sinks: Mutex::default(),
            dropped,
            asleep: AtomicBool::new(false),
            reopen: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            flush_wanted: AtomicU64::new(0),
            flush_done: Mutex::default(),
            flushed: Condvar::new(),
            thread: OnceLock::new(),
        });
        let writer = Arc::clone(&shared);
        let handle = thread::Builder::new().name("access-log".to_owned()).spawn(move || writer.run())?;
        // Nothing has been logged before, so the first line finds the thread.
        let _ = shared.thread.set(handle.thread().clone());
        Ok(Self { shared })
    }

    /// The sink for `place`, opened now if it is not in use yet.
    ///
    /// # Errors
    /// When the file cannot be opened or created.
    pub(super) fn sink(&self, place: &AccessLogSink) -> io::Result<Sink> {
        let mut sinks = lock(&self.shared.sinks);
        let queue = match sinks.get(place) {
            Some(queue) => Arc::clone(queue),
            None => {
                let target = Target::open(place)?;
                let queue = Arc::new(Queue { pending: Mutex::default(), target: Mutex::new(target) });
                sinks.insert(place.clone(), Arc::clone(&queue));
                queue
            }
        };
        Ok(Sink { queue, shared: Arc::clone(&self.shared) })
    }

    /// Opens every file again, for log rotation; lines that are queued already go to the new file. A file that cannot be
    /// opened again keeps the old one.
    pub fn reopen(&self) {
        self.shared.reopen.store(true, Ordering::Release);
        self.shared.wake();
    }

    /// Writes everything logged so far; false when that takes longer than `timeout`.
    pub fn flush(&self, timeout: Duration) -> bool {
        let shared = &self.shared;
        let wanted = shared.flush_wanted.fetch_add(1, Ordering::AcqRel) + 1;
        shared.unpark();
        let done = lock(&shared.flush_done);
        let wait = shared.flushed.wait_timeout_while(done, timeout, |done| *done < wanted);
        !wait.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }
}

impl Drop for LogWriter {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.flush(CLOSE_TIMEOUT);
    }
}

impl Sink {
    /// Queues one whole line, or drops and counts it.
    pub(super) fn push(&self, line: &[u8]) {
        let options = &self.shared.options;
        let mut pending = lock(&self.queue.pending);
        if pending.lines >= options.max_lines || pending.bytes.len() + line.len() > options.max_bytes {
            drop(pending);
            return self.shared.dropped.increment(1);
        }
        let half_full = |batch: &Batch| batch.lines > options.max_lines / 2 || batch.bytes.len() > options.max_bytes / 2;
        let before = half_full(&pending);
        pending.bytes.extend_from_slice(line);
        pending.lines += 1;
        let (first, filling) = (pending.lines == 1, !before && half_full(&pending));
        drop(pending);
        if filling {
            self.shared.unpark();
        } else if first {
            self.shared.wake();
        }
    }
}

impl Shared {
    /// Wakes the writer if it sleeps; costs one atomic exchange otherwise.
    fn wake(&self) {
        if self.asleep.swap(false, Ordering::SeqCst) {
            self.unpark();
        }
    }

    /// Wakes the writer even out of the time in which it waits for more lines.
    fn unpark(&self) {
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }

    /// The writer thread.
    fn run(&self) {
        let mut spare = Vec::new();
        loop {
            self.sleep_until_needed();
            // Read before the queues are: whoever asked has logged already.
            let wanted = self.flush_wanted.load(Ordering::Acquire);
            let stop = self.stop.load(Ordering::Acquire);
            if self.reopen.swap(false, Ordering::AcqRel) {
                self.reopen_all();
            }
            for queue in self.queues() {
                queue.write(&mut spare, self);
            }
            *lock(&self.flush_done) = wanted;
            self.flushed.notify_all();
            if stop {
                return;
            }
        }
    }

    /// Sleeps while there is nothing to write, then for the time of a batch.
    fn sleep_until_needed(&self) {
        loop {
            self.asleep.store(true, Ordering::SeqCst);
            // Who pushed before the store did not wake us: their lines have to be seen now.
            if self.is_urgent() || self.reopen.load(Ordering::SeqCst) || self.has_lines() {
                break;
            }
            thread::park();
        }
        self.asleep.store(false, Ordering::SeqCst);
        if !self.is_urgent() {
            thread::park_timeout(BATCH_WINDOW);
        }
    }

    fn is_urgent(&self) -> bool {
        self.stop.load(Ordering::Acquire) || *lock(&self.flush_done) < self.flush_wanted.load(Ordering::Acquire)
    }

    fn has_lines(&self) -> bool {
        lock(&self.sinks).values().any(|queue| lock(&queue.pending).lines > 0)
    }

    /// The queues; those that no configuration uses any more are closed once they are empty.
    fn queues(&self) -> Vec<Arc<Queue>> {
        let mut sinks = lock(&self.sinks);
        sinks.retain(|_, queue| Arc::strong_count(queue) > 1 || lock(&queue.pending).lines > 0);
        sinks.values().cloned().collect()
    }

    fn reopen_all(&self) {
        for (place, queue) in &*lock(&self.sinks) {
            let AccessLogSink::File(path) = place else { continue };
            match Target::open(place) {
                Ok(target) => *lock(&queue.target) = target,
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "access log is not reopened, the old file goes on");
                }
            }
        }
    }
}

impl Queue {
    /// Writes what is pending. `spare` is an empty buffer that is swapped in, and given back empty.
    fn write(&self, spare: &mut Vec<u8>, shared: &Shared) {
        let lines = {
            let mut pending = lock(&self.pending);
            std::mem::swap(&mut pending.bytes, spare);
            std::mem::take(&mut pending.lines)
        };
        if lines > 0 {
            let failed = lock(&self.target).write(spare, shared);
            if failed > 0 {
                shared.dropped.increment(failed);
            }
        }
        spare.clear();
        if spare.capacity() > KEPT_CAPACITY {
            *spare = Vec::new();
        }
    }
}

impl Target {
    fn open(place: &AccessLogSink) -> io::Result<Self> {
        let file = match place {
            AccessLogSink::Stdout => File::from(io::stdout().as_fd().try_clone_to_owned()?),
            AccessLogSink::Stderr => File::from(io::stderr().as_fd().try_clone_to_owned()?),
            // Records are no lines.
            AccessLogSink::OpenTelemetry(_) => return Err(ErrorKind::Unsupported.into()),
            AccessLogSink::File(path) => OpenOptions::new().append(true).create(true).open(path)?,
        };
        Ok(Self { place: place.clone(), file, torn: false })
    }

    /// Writes a batch; how many of its lines were lost.
    fn write(&mut self, batch: &[u8], shared: &Shared) -> u64 {
        // A large write to a pipe is not atomic: the program's own messages on the same stream wait for the batch to end.
        let _stdout = (self.place == AccessLogSink::Stdout).then(|| io::stdout().lock());
        let _stderr = (self.place == AccessLogSink::Stderr).then(|| io::stderr().lock());
        if self.torn && self.file.write_all(b"\n").is_ok() {
            self.torn = false;
        }
        let mut written = 0;
        while written < batch.len() {
            match self.file.write(&batch[written..]) {
                Ok(0) => break,
                Ok(count) => written += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // Somebody else made the stream non-blocking. While we wait the queue fills up and then drops lines.
                Err(error) if error.kind() == ErrorKind::WouldBlock && !shared.stop.load(Ordering::Acquire) => {
                    thread::sleep(RETRY);
                }
                Err(_) => break,
            }
        }
        let lost = &batch[written..];
        self.torn |= !lost.is_empty() && written > 0 && batch[written - 1] != b'\n';
        lost.iter().filter(|byte| **byte == b'\n').count() as u64
    }
}

/// A poisoned lock only means that a thread died elsewhere: the data are plain and stay usable.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
