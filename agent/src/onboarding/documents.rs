//! The documents that a plane sends, put together: all of them first, then what has changed, in parts of a few kilobytes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use skiff_proto::skiff::onboarding::v1alpha1 as proto;

use crate::sidecar::{Document, PushedDocuments};

/// As many as a plane reads from a folder, and those that it makes itself.
const MAX_DOCUMENTS: usize = 8192;
/// As for a plane's documents on disk.
const MAX_BYTES: usize = 32 * 1024 * 1024;

/// What has been told, and what is being told.
#[derive(Debug, Default)]
pub struct Assembly {
    version: String,
    current: PushedDocuments,
    coming: Option<Coming>,
}

/// A version of which not every part has come.
#[derive(Debug)]
struct Coming {
    version: String,
    documents: BTreeMap<PathBuf, String>,
    /// Documents that are not as they were: what comes of them now goes on with them.
    begun: BTreeSet<PathBuf>,
    bytes: usize,
}

impl Assembly {
    /// The version that is complete; empty before there is one.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Forgets a version that is not complete, as its stream has ended.
    pub fn interrupt(&mut self) {
        self.coming = None;
    }

    /// Takes a message; all documents, once a new version is complete.
    ///
    /// # Errors
    /// When it is the difference to a version that was not told, or is too much.
    pub fn take(&mut self, told: proto::Documents) -> Result<PushedDocuments, String> {
        let proto::Documents { version, documents, since, removed, more } = told;
        if !version.is_empty() && version == self.version {
            return Ok(None);
        }
        let mut coming = match self.coming.take() {
            Some(coming) if coming.version == version => coming,
            _ => self.begin(version, &since)?,
        };
        for name in removed {
            coming.documents.remove(&PathBuf::from(name));
        }
        for proto::Document { name, yaml } in documents {
            coming.bytes += yaml.len();
            let name = PathBuf::from(name);
            if coming.begun.insert(name.clone()) {
                coming.documents.insert(name, yaml);
            } else {
                coming.documents.entry(name).or_default().push_str(&yaml);
            }
        }
        if coming.documents.len() > MAX_DOCUMENTS || coming.bytes > MAX_BYTES {
            return Err(format!("{} documents, {} bytes of them new", coming.documents.len(), coming.bytes));
        }
        if more {
            self.coming = Some(coming);
            return Ok(None);
        }
        let documents: Arc<[Document]> = coming.documents.into_iter().collect();
        self.version = coming.version;
        self.current = Some(documents.clone());
        Ok(Some(documents))
    }

    fn begin(&self, version: String, since: &str) -> Result<Coming, String> {
        let documents = match &self.current {
            _ if since.is_empty() => BTreeMap::new(),
            Some(current) if since == self.version => current.iter().cloned().collect(),
            _ => return Err(format!("what has changed since version {since:?}, which is not the one before")),
        };
        Ok(Coming { version, documents, begun: BTreeSet::new(), bytes: 0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(version: &str, since: &str, documents: &[(&str, &str)], removed: &[&str], more: bool) -> proto::Documents {
        let owned = |text: &&str| (*text).to_owned();
        let documents = documents.iter().map(|(name, yaml)| proto::Document { name: owned(name), yaml: owned(yaml) });
        proto::Documents {
            version: version.to_owned(),
            documents: documents.collect(),
            since: since.to_owned(),
            removed: removed.iter().map(owned).collect(),
            more,
        }
    }

    fn shown(documents: &PushedDocuments) -> Vec<String> {
        documents.iter().flat_map(|all| all.iter()).map(|(name, yaml)| format!("{}={yaml}", name.display())).collect()
    }

    #[test]
    fn parts_and_differences_make_a_whole() {
        let mut assembly = Assembly::default();
        let first = assembly.take(told("1", "", &[("b", "bb"), ("a", "a")], &[], true)).unwrap();
        assert!(first.is_none() && assembly.version().is_empty(), "half a configuration is none");
        let first = assembly.take(told("1", "", &[("a", "nd"), ("c", "c")], &[], false)).unwrap();
        assert_eq!(shown(&first), ["a=and", "b=bb", "c=c"]);
        assert!(assembly.take(told("1", "", &[("a", "again")], &[], false)).unwrap().is_none(), "it is known");
        let second = assembly.take(told("2", "1", &[("a", "new")], &["b"], false)).unwrap();
        assert_eq!((shown(&second), assembly.version()), (vec!["a=new".to_owned(), "c=c".to_owned()], "2"));
        let third = assembly.take(told("3", "", &[("d", "d")], &[], false)).unwrap();
        assert_eq!(shown(&third), ["d=d"], "all is told anew");
    }

    #[test]
    fn what_was_interrupted_counts_for_nothing() {
        let mut assembly = Assembly::default();
        assembly.take(told("1", "", &[("a", "a")], &[], false)).unwrap();
        assembly.take(told("2", "1", &[("a", "half")], &[], true)).unwrap();
        assembly.interrupt();
        let again = assembly.take(told("2", "1", &[("a", "whole")], &[], false)).unwrap();
        assert_eq!(shown(&again), ["a=whole"]);
        assembly.take(told("3", "2", &[("a", "half")], &[], true)).unwrap();
        let newer = assembly.take(told("4", "2", &[("b", "b")], &[], false)).unwrap();
        assert_eq!(shown(&newer), ["a=whole", "b=b"], "a newer version has come between");
    }

    #[test]
    fn what_cannot_be_put_together_is_refused() {
        let mut assembly = Assembly::default();
        assert!(assembly.take(told("2", "1", &[("a", "a")], &[], false)).unwrap_err().contains("\"1\""));
        let large = "x".repeat(MAX_BYTES / 2 + 1);
        assembly.take(told("1", "", &[("a", &large)], &[], true)).unwrap();
        assert!(assembly.take(told("1", "", &[("b", &large)], &[], false)).is_err());
        assert!(assembly.version().is_empty());
    }
}
