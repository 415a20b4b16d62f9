//! What the control plane sent, as it was sent: the admin page shows it as Envoy's `/config_dump`.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use super::packed::{Packed, Packer};
use super::resources::Kind;

/// Refused resources of a kind that are remembered.
const MAX_REFUSED: usize = 256;
/// A larger refused resource is remembered without its content.
const MAX_REFUSED_BYTES: usize = 64 * 1024;

/// Every resource that was accepted last, and those that were refused since, by kind and name. Cheap to clone; all clones are one.
#[derive(Clone, Default)]
pub struct Originals(Arc<Mutex<[Kept; 4]>>);

impl fmt::Debug for Originals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Originals")
    }
}

/// A resource as it is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    /// Its name.
    pub name: String,
    /// The version that is in force.
    pub accepted: Option<Content>,
    /// A later one that was refused.
    pub refused: Option<Refusal>,
}

/// A version of a resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content {
    /// Of the response that it came with.
    pub version: Arc<str>,
    /// When it came.
    pub at: SystemTime,
    /// The message, encoded.
    pub bytes: Vec<u8>,
}

/// A version that was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What is wrong with it.
    pub reason: String,
    /// What it was; empty where that is not known.
    pub content: Content,
}

/// A response of the control plane.
#[derive(Debug)]
struct Origin {
    version: Arc<str>,
    at: SystemTime,
}

#[derive(Debug)]
struct Original {
    origin: Arc<Origin>,
    message: Arc<Packed>,
}

/// The resources of a kind.
#[derive(Debug)]
struct Kept {
    current: Arc<Origin>,
    packer: Packer,
    accepted: BTreeMap<Arc<str>, Original>,
    refused: BTreeMap<Box<str>, (String, Original)>,
}

impl Default for Kept {
    fn default() -> Self {
        let current = Arc::new(Origin { version: "".into(), at: SystemTime::UNIX_EPOCH });
        Self { current, packer: Packer::default(), accepted: BTreeMap::new(), refused: BTreeMap::new() }
    }
}

impl Originals {
    /// What follows belongs to a response with this version.
    pub(super) fn begin(&self, kind: Kind, version: &str) {
        self.lock()[kind as usize].current = Arc::new(Origin { version: version.into(), at: SystemTime::now() });
    }

    /// A resource is in force from now on.
    pub(super) fn accept(&self, kind: Kind, name: &Arc<str>, bytes: &[u8]) -> Arc<Packed> {
        let kept = &mut self.lock()[kind as usize];
        kept.refused.remove(&**name);
        let original = kept.original(bytes);
        let message = Arc::clone(&original.message);
        kept.accepted.insert(Arc::clone(name), original);
        message
    }

    /// A resource that is in force was sent again: it keeps its version and its time, as in Envoy.
    pub(super) fn confirm(&self, kind: Kind, name: &str) {
        self.lock()[kind as usize].refused.remove(name);
    }

    /// A resource was refused; the version before it stays.
    pub(super) fn refuse(&self, kind: Kind, name: &str, bytes: &[u8], reason: String) {
        let kept = &mut self.lock()[kind as usize];
        if kept.refused.len() < MAX_REFUSED || kept.refused.contains_key(name) {
            let bytes = if bytes.len() > MAX_REFUSED_BYTES { &[] } else { bytes };
            let original = kept.original(bytes);
            kept.refused.insert(name.into(), (reason, original));
        }
    }

    pub(super) fn remove(&self, kind: Kind, name: &str) {
        let kept = &mut self.lock()[kind as usize];
        kept.accepted.remove(name);
        kept.refused.remove(name);
    }

    pub(super) fn retain(&self, kind: Kind, wanted: impl Fn(&str) -> bool) {
        let kept = &mut self.lock()[kind as usize];
        kept.accepted.retain(|name, _| wanted(name));
        kept.refused.retain(|name, _| wanted(name));
    }

    /// The first resource whose name follows `name`: who shows thousands of them holds one at a time.
    pub fn after(&self, kind: Kind, name: Option<&str>) -> Option<Shown> {
        let kept = &self.lock()[kind as usize];
        let from = (name.map_or(Bound::Unbounded, Bound::Excluded), Bound::Unbounded);
        let accepted = kept.accepted.range::<str, _>(from).next().map(|(name, _)| &**name);
        let refused = kept.refused.range::<str, _>(from).next().map(|(name, _)| &**name);
        let name = [accepted, refused].into_iter().flatten().min()?;
        Some(Shown {
            name: name.to_string(),
            accepted: kept.accepted.get(name).map(Original::content),
            refused: kept
                .refused
                .get(name)
                .map(|(reason, original)| Refusal { reason: reason.clone(), content: original.content() }),
        })
    }

    /// The version of the last response about this kind, and when it came; `None` before the first.
    pub fn version(&self, kind: Kind) -> Option<(Arc<str>, SystemTime)> {
        let Origin { version, at } = &*self.lock()[kind as usize].current;
        (*at != SystemTime::UNIX_EPOCH).then(|| (version.clone(), *at))
    }

    fn lock(&self) -> MutexGuard<'_, [Kept; 4]> {
        // Every entry is complete when it is put in: a panic leaves nothing half-done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    fn original(&mut self, bytes: &[u8]) -> Original {
        Original { origin: Arc::clone(&self.current), message: self.packer.pack(bytes) }
    }
}

impl Original {
    fn content(&self) -> Content {
        Content { version: Arc::clone(&self.origin.version), at: self.origin.at, bytes: self.message.unpack() }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use prost::Message;
    use skiff_proto::envoy::config::cluster::v3::Cluster;
    use skiff_proto::envoy::service::discovery::v3::DeltaDiscoveryResponse;

    use super::*;

    fn names(originals: &Originals, kind: Kind) -> Vec<String> {
        let mut names: Vec<String> = Vec::new();
        while let Some(shown) = originals.after(kind, names.last().map(String::as_str)) {
            names.push(shown.name);
        }
        names
    }

    #[test]
    fn what_went_in_comes_out_with_the_version_that_brought_it() {
        let originals = Originals::default();
        assert_eq!(originals.version(Kind::Cluster), None);
        originals.begin(Kind::Cluster, "1");
        originals.accept(Kind::Cluster, &"a".into(), b"first");
        originals.accept(Kind::Cluster, &"b".into(), b"");
        originals.begin(Kind::Cluster, "2");
        originals.confirm(Kind::Cluster, "a");
        originals.accept(Kind::Cluster, &"b".into(), b"changed");
        let shown = originals.after(Kind::Cluster, None).unwrap().accepted.unwrap();
        assert_eq!((shown.bytes.as_slice(), &*shown.version), (b"first".as_slice(), "1"), "the same again is no new version");
        let shown = originals.after(Kind::Cluster, Some("a")).unwrap().accepted.unwrap();
        assert_eq!((shown.bytes.as_slice(), &*shown.version), (b"changed".as_slice(), "2"));
        assert_eq!(&*originals.version(Kind::Cluster).unwrap().0, "2");
        originals.remove(Kind::Cluster, "a");
        originals.retain(Kind::Cluster, |name| name != "b");
        assert_eq!(originals.after(Kind::Cluster, None), None);
    }

    #[test]
    fn a_refused_version_stands_beside_the_one_that_stays() {
        let originals = Originals::default();
        originals.begin(Kind::Routes, "1");
        originals.accept(Kind::Routes, &"9080".into(), b"good");
        originals.begin(Kind::Routes, "2");
        originals.refuse(Kind::Routes, "9080", b"bad", "timeout: is negative".to_owned());
        originals.refuse(Kind::Routes, "9081", &[7; MAX_REFUSED_BYTES + 1], "unknown".to_owned());
        assert_eq!(names(&originals, Kind::Routes), ["9080", "9081"]);
        let shown = originals.after(Kind::Routes, None).unwrap();
        assert_eq!(shown.accepted.unwrap().bytes, b"good");
        let refusal = shown.refused.unwrap();
        assert_eq!((refusal.content.bytes.as_slice(), &*refusal.content.version), (b"bad".as_slice(), "2"));
        let unknown = originals.after(Kind::Routes, Some("9080")).unwrap();
        assert!(unknown.accepted.is_none() && unknown.refused.unwrap().content.bytes.is_empty());
        originals.confirm(Kind::Routes, "9080");
        assert_eq!(originals.after(Kind::Routes, None).unwrap().refused, None);
        for number in 0..2 * MAX_REFUSED {
            originals.refuse(Kind::Listener, &number.to_string(), b"", String::new());
        }
        assert_eq!(names(&originals, Kind::Listener).len(), MAX_REFUSED);
    }

    /// The budget of a whole service is 4 KiB; this is the cluster's share of it.
    #[test]
    fn a_thousand_clusters_of_istiods_take_less_than_250_bytes_each() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/xds/delta/002-CDS-dresp.bin");
        let response = DeltaDiscoveryResponse::decode(fs::read(file).unwrap().as_slice()).unwrap();
        let clusters = response.resources.iter().map(|resource| resource.resource.as_ref().unwrap().value.as_slice());
        let largest = clusters.clone().max_by_key(|bytes| bytes.len()).unwrap();
        let originals = Originals::default();
        for bytes in clusters {
            originals.accept(Kind::Cluster, &Cluster::decode(bytes).unwrap().name.into(), bytes);
        }
        let recorded = Cluster::decode(largest).unwrap().name;
        let host = recorded.rsplit('|').next().unwrap().to_owned();
        for number in 0..1000 {
            // The same length, so that the message stays one.
            let other = format!("{number:0>width$}", width = host.len());
            let mut bytes = largest.to_vec();
            for at in 0..bytes.len() - host.len() {
                if bytes[at..].starts_with(host.as_bytes()) {
                    bytes[at..at + host.len()].copy_from_slice(other.as_bytes());
                }
            }
            originals.accept(Kind::Cluster, &Cluster::decode(bytes.as_slice()).unwrap().name.into(), &bytes);
        }
        let kept = &originals.lock()[Kind::Cluster as usize];
        let each = |of: &dyn Fn(&Original) -> usize| kept.accepted.values().map(of).sum::<usize>() / kept.accepted.len();
        let (raw, packed) = (each(&|original| original.message.unpack().len()), each(&|original| original.message.size()));
        println!("a cluster: {raw} bytes as sent, {packed} packed");
        assert!(raw > 1000 && packed < 250, "{raw} bytes became {packed}");
    }
}
