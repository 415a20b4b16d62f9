//! Watches files and folders, whatever way they are changed.
//!
//! Events of the file system are only hints: editors write a new file and rename it over the old one, Kubernetes swaps a
//! `..data` symlink, some file systems send no events at all. A hint, or else a poll, leads to comparing fingerprints of what
//! is watched, and only a difference is reported. All of it happens on a thread of its own, so that a slow file system never
//! stalls the agent.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use notify::event::{AccessKind, AccessMode, EventKind};
use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::mpsc as async_mpsc;

/// Quiet time after a hint before it is looked at: an editor's save is several events.
const DEBOUNCE: Duration = Duration::from_millis(100);
/// A file that is written without a pause is looked at after this.
const MAX_DEBOUNCE: Duration = Duration::from_secs(1);
/// How often it is looked at without a hint.
const POLL: Duration = Duration::from_secs(5);
/// Entries of a folder that are looked at.
const MAX_ENTRIES: usize = 4096;

/// Reports changes of files and folders. Dropping it ends the watching.
pub struct Watcher {
    changes: async_mpsc::Receiver<()>,
    // Owns the other end of the thread's channel: dropping it ends the thread.
    _hints: Hints,
}

/// The source of hints: events, or nothing where the system has none to give.
struct Hints {
    _events: Option<RecommendedWatcher>,
    _open: mpsc::SyncSender<()>,
}

impl Watcher {
    /// Starts to watch. A file may appear later; of a folder, the entries directly in it count, hidden ones excepted.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn new(paths: Vec<PathBuf>) -> io::Result<Self> {
        Self::with_poll(paths, POLL, true)
    }

    fn with_poll(paths: Vec<PathBuf>, poll: Duration, events: bool) -> io::Result<Self> {
        // One waiting hint is enough: whatever comes meanwhile is seen by the comparison it leads to.
        let (hint, hints) = mpsc::sync_channel(1);
        let (changed, changes) = async_mpsc::channel(1);
        let watcher = events.then(|| watch_events(&paths, hint.clone())).flatten();
        let before = fingerprint(&paths);
        thread::Builder::new()
            .name("skiff-watch".to_owned())
            .spawn(move || compare_on_hints(&paths, before, poll, &hints, &changed))?;
        Ok(Self { changes, _hints: Hints { _events: watcher, _open: hint } })
    }

    /// Waits for a change; several at once are one. Cancel safe. Never returns again if the watching thread is gone.
    pub async fn changed(&mut self) {
        if self.changes.recv().await.is_none() {
            std::future::pending::<()>().await;
        }
    }
}

fn watch_events(paths: &[PathBuf], hint: mpsc::SyncSender<()>) -> Option<RecommendedWatcher> {
    let on_event = move |event: notify::Result<notify::Event>| {
        // Reading is an event as well, and we read.
        let read =
            |kind: &EventKind| matches!(kind, EventKind::Access(access) if *access != AccessKind::Close(AccessMode::Write));
        if !event.is_ok_and(|event| read(&event.kind)) {
            let _ = hint.try_send(());
        }
    };
    let mut watcher = notify::recommended_watcher(on_event)
        .inspect_err(|error| tracing::warn!(%error, "no file events, polling every {POLL:?} instead"))
        .ok()?;
    for path in paths {
        // A file that is replaced has another inode, so it is its folder that is watched.
        let folder =
            if path.is_dir() { path } else { path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")) };
        if let Err(error) = watcher.watch(folder, RecursiveMode::NonRecursive) {
            tracing::debug!(folder = %folder.display(), %error, "no file events, polling every {POLL:?} instead");
        }
    }
    Some(watcher)
}

fn compare_on_hints(
    paths: &[PathBuf],
    mut before: Fingerprint,
    poll: Duration,
    hints: &mpsc::Receiver<()>,
    changed: &async_mpsc::Sender<()>,
) {
    loop {
        match hints.recv_timeout(poll) {
            Ok(()) => settle(hints),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        let now = fingerprint(paths);
        if now != before {
            before = now;
            // Full means that a change is waiting to be looked at already.
            let _ = changed.try_send(());
        }
    }
}

/// Waits until the hints stop.
fn settle(hints: &mpsc::Receiver<()>) {
    let started = Instant::now();
    while started.elapsed() < MAX_DEBOUNCE && hints.recv_timeout(DEBOUNCE).is_ok() {}
}

/// What tells one state of the watched files from another.
type Fingerprint = BTreeMap<PathBuf, Option<Mark>>;

/// Device, inode, size, modification and change time with nanoseconds, following links.
type Mark = (u64, u64, u64, i64, i64, i64, i64);

fn fingerprint(paths: &[PathBuf]) -> Fingerprint {
    let mut marks = Fingerprint::new();
    for path in paths {
        match fs::read_dir(path) {
            Ok(entries) => {
                let shown = entries.flatten().filter(|entry| !is_hidden(&entry.file_name())).take(MAX_ENTRIES);
                marks.extend(shown.map(|entry| entry.path()).map(|path| (path.clone(), mark(&path))));
            }
            Err(_) => {
                marks.insert(path.clone(), mark(path));
            }
        }
    }
    marks
}

fn mark(path: &Path) -> Option<Mark> {
    let meta = fs::metadata(path).ok()?;
    Some((meta.dev(), meta.ino(), meta.size(), meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec()))
}

/// Kubernetes' `..data`, editors' `.swp` files.
pub(crate) fn is_hidden(name: &OsStr) -> bool {
    name.as_encoded_bytes().starts_with(b".")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    const SOON: Duration = Duration::from_secs(10);

    async fn expect_change(watcher: &mut Watcher, what: &str) {
        tokio::time::timeout(SOON, watcher.changed()).await.unwrap_or_else(|_| panic!("no change seen: {what}"));
    }

    /// By events alone: the poll would come too late.
    fn by_events(path: &Path) -> Watcher {
        Watcher::with_poll(vec![path.to_owned()], SOON * 100, true).unwrap()
    }

    #[tokio::test]
    async fn a_folder_whose_files_come_change_and_go() {
        let folder = tempfile::tempdir().unwrap();
        let mut watcher = by_events(folder.path());
        let file = folder.path().join("a.yaml");
        fs::write(&file, "one").unwrap();
        expect_change(&mut watcher, "created").await;
        fs::write(&file, "two").unwrap();
        expect_change(&mut watcher, "written").await;
        fs::remove_file(&file).unwrap();
        expect_change(&mut watcher, "removed").await;
    }

    #[tokio::test]
    async fn a_file_that_an_editor_renames_over() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("mesh.yaml");
        fs::write(&file, "one").unwrap();
        let mut watcher = by_events(&file);
        for text in ["two", "six"] {
            fs::write(folder.path().join(".mesh.yaml.swp"), text).unwrap();
            fs::rename(folder.path().join(".mesh.yaml.swp"), &file).unwrap();
            expect_change(&mut watcher, text).await;
        }
    }

    #[tokio::test]
    async fn a_kubernetes_volume_that_swaps_its_data_link() {
        let folder = tempfile::tempdir().unwrap();
        let version = |name: &str| {
            fs::create_dir(folder.path().join(name)).unwrap();
            fs::write(folder.path().join(name).join("a.yaml"), name).unwrap();
            symlink(name, folder.path().join("..tmp")).unwrap();
            fs::rename(folder.path().join("..tmp"), folder.path().join("..data")).unwrap();
        };
        version("..one");
        symlink("..data/a.yaml", folder.path().join("a.yaml")).unwrap();
        let mut watcher = by_events(folder.path());
        version("..two");
        expect_change(&mut watcher, "swapped").await;
        assert_eq!(fs::read_to_string(folder.path().join("a.yaml")).unwrap(), "..two");
    }

    #[tokio::test]
    async fn polling_sees_changes_without_events() {
        let folder = tempfile::tempdir().unwrap();
        let mut watcher = Watcher::with_poll(vec![folder.path().to_owned()], Duration::from_millis(20), false).unwrap();
        fs::write(folder.path().join("a.yaml"), "one").unwrap();
        expect_change(&mut watcher, "polled").await;
    }

    #[tokio::test]
    async fn what_is_hidden_or_only_read_is_no_change() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.yaml");
        fs::write(&file, "one").unwrap();
        let mut watcher = by_events(folder.path());
        fs::write(folder.path().join(".a.yaml.swp"), "draft").unwrap();
        fs::read(&file).unwrap();
        assert!(tokio::time::timeout(DEBOUNCE * 4, watcher.changed()).await.is_err());
    }
}
