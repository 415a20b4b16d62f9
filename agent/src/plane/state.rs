//! The folder that keeps the plane's keys across restarts and crashes.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Larger than any file we write.
const MAX_FILE_BYTES: u64 = 64 * 1024;

/// A folder of small private files, held by one process at a time. Each file is replaced as a whole, so that after a crash it
/// is either the old one or the new one.
#[derive(Debug)]
pub struct StateFolder {
    path: PathBuf,
    /// Held for its advisory lock, which the kernel lifts when the process ends, however it ends.
    _lock: File,
}

/// Why the plane's state cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The system says no.
    #[error("{action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another plane uses the folder.
    #[error("{} is in use by another plane", .0.display())]
    InUse(PathBuf),
    /// Others could read a key or put another in its place.
    #[error("{} has mode {mode:04o}: {danger}; run chmod {wanted:04o} on it after checking who had access", path.display())]
    Permissions {
        /// The file or folder.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
        /// What they allow.
        danger: &'static str,
        /// What they should be.
        wanted: u32,
    },
    /// The content is not what we wrote.
    #[error("{} is corrupt: {reason}; restore it from a backup, or remove it to start a new mesh root", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A root made now would be useless once the clock is right.
    #[error(
        "this machine's clock is not set ({0} s after 1970): the mesh root would have the wrong validity; set it (NTP) first"
    )]
    Clock(u64),
    /// Cryptography failed.
    #[error("cannot make a key or certificate: {0}")]
    Crypto(String),
}

impl StateFolder {
    /// Opens the folder, made with mode 0700 when it is missing, and locks it.
    ///
    /// # Errors
    /// When it cannot be made or locked, or when others may write to it.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, StateError> {
        let path = path.into();
        let io = |action, path: &Path| {
            let path = path.to_owned();
            move |source| StateError::Io { action, path, source }
        };
        DirBuilder::new().recursive(true).mode(0o700).create(&path).map_err(io("cannot make the folder", &path))?;
        let mode = fs::metadata(&path).map_err(io("cannot look at", &path))?.permissions().mode() & 0o7777;
        if mode & 0o022 != 0 {
            return Err(StateError::Permissions { path, mode, danger: "others could replace the keys in it", wanted: 0o700 });
        }
        let lock_path = path.join("lock");
        let lock = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&lock_path);
        let lock = lock.map_err(io("cannot open", &lock_path))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path, _lock: lock }),
            Err(fs::TryLockError::WouldBlock) => Err(StateError::InUse(path)),
            Err(fs::TryLockError::Error(source)) => Err(StateError::Io { action: "cannot lock", path: lock_path, source }),
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The whole file, or `None` when there is none.
    ///
    /// # Errors
    /// When it cannot be read, or when others could have read or changed it.
    pub fn read(&self, name: &str) -> Result<Option<String>, StateError> {
        let path = self.path.join(name);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(StateError::Io { action: "cannot open", path, source }),
        };
        let io = |source| StateError::Io { action: "cannot read", path: path.clone(), source };
        let mode = file.metadata().map_err(io)?.permissions().mode() & 0o7777;
        if mode & 0o077 != 0 {
            let danger = "others can read or change the key in it";
            return Err(StateError::Permissions { path, mode, danger, wanted: 0o600 });
        }
        let mut text = String::new();
        let read = file.take(MAX_FILE_BYTES + 1).read_to_string(&mut text);
        match read {
            Ok(length) if length as u64 <= MAX_FILE_BYTES => Ok(Some(text)),
            Ok(_) => Err(self.corrupt(name, "larger than 64 KiB")),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => Err(self.corrupt(name, "not text")),
            Err(error) => Err(io(error)),
        }
    }

    /// Replaces the file as a whole, mode 0600; on disk when this returns.
    ///
    /// # Errors
    /// When the system refuses; the old file is still there.
    pub fn write(&self, name: &str, contents: &str) -> Result<(), StateError> {
        let path = self.path.join(name);
        self.replace(&path, contents).map_err(|source| StateError::Io { action: "cannot write", path, source })
    }

    fn replace(&self, path: &Path, contents: &str) -> io::Result<()> {
        let mut temporary = path.to_owned().into_os_string();
        temporary.push(".new");
        // What a crash left behind may be anything; made anew, mode and content are ours.
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        file.write_all(contents.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        // Without this the rename itself could be lost with the power.
        File::open(&self.path)?.sync_all()
    }

    /// An error that names a file of this folder.
    pub(crate) fn corrupt(&self, name: &str, reason: impl Into<String>) -> StateError {
        StateError::Corrupt { path: self.path.join(name), reason: reason.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_private_and_replaced_as_a_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/state");
        let state = StateFolder::open(&path).unwrap();
        assert_eq!(state.read("ca.pem").unwrap(), None);
        // What a kill in the middle of a write leaves.
        fs::write(path.join("ca.pem.new"), "half a ke").unwrap();
        assert_eq!(state.read("ca.pem").unwrap(), None);
        state.write("ca.pem", "one").unwrap();
        state.write("ca.pem", "two").unwrap();
        assert_eq!(state.read("ca.pem").unwrap().unwrap(), "two");
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(&path.join("ca.pem"))), (0o700, 0o600));
        assert!(!path.join("ca.pem.new").exists());
    }

    #[test]
    fn a_folder_belongs_to_one_plane() {
        let folder = tempfile::tempdir().unwrap();
        let first = StateFolder::open(folder.path()).unwrap();
        assert!(matches!(StateFolder::open(folder.path()), Err(StateError::InUse(_))));
        drop(first);
        StateFolder::open(folder.path()).unwrap();
    }

    #[test]
    fn files_and_folders_open_to_others_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateFolder::open(folder.path()).unwrap();
        state.write("ca.pem", "key").unwrap();
        fs::set_permissions(folder.path().join("ca.pem"), fs::Permissions::from_mode(0o640)).unwrap();
        let error = state.read("ca.pem").unwrap_err().to_string();
        assert!(error.contains("mode 0640") && error.contains("chmod 0600"), "{error}");
        drop(state);
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o770)).unwrap();
        assert!(matches!(StateFolder::open(folder.path()), Err(StateError::Permissions { mode: 0o770, .. })));
    }
}
