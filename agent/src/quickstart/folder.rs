//! The folder of one quickstart: the Istio YAML to read and edit, and the access logs of a check. Gone when it ends.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;

use super::bookinfo::{DOCUMENTS, Member};

/// Removed with all that is in it when dropped.
#[derive(Debug)]
pub(super) struct Folder(PathBuf);

impl Folder {
    /// Only for us, and never one that somebody else has prepared: it must not exist yet.
    pub(super) fn create() -> io::Result<Self> {
        let path = std::env::temp_dir().join(format!("skiff-quickstart-{:08x}", fastrand::u32(..)));
        let named = |error: io::Error| io::Error::new(error.kind(), format!("cannot make {}: {error}", path.display()));
        DirBuilder::new().mode(0o700).create(&path).map_err(named)?;
        let folder = Self(path);
        fs::create_dir(folder.configuration())?;
        for (name, text) in DOCUMENTS {
            fs::write(folder.configuration().join(name), text)?;
        }
        Ok(folder)
    }

    /// Where the Istio YAML is.
    pub(super) fn configuration(&self) -> PathBuf {
        self.0.join("config")
    }

    /// Where the plane keeps its keys.
    pub(super) fn plane(&self) -> PathBuf {
        self.0.join("plane")
    }

    /// Where the token is that a member shows to the plane.
    pub(super) fn token(&self, member: &Member) -> PathBuf {
        self.0.join(format!("{}.jwt", member.name))
    }

    /// Where the sidecar of a member writes its access log during a check.
    pub(super) fn access_log(&self, member: &Member) -> PathBuf {
        self.0.join(format!("{}.log", member.name))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            tracing::warn!(folder = %self.0.display(), %error, "cannot remove the folder of the quickstart");
        }
    }
}
