//! `skiff check xds`: what skiff would make of recorded responses and config dumps, resource by resource, offline.

use std::fmt;
use std::path::Path;

use prost::{Message, Name};
use serde_json::Value as Json;
use skiff_proto::envoy::config::cluster::v3::Cluster;
use skiff_proto::envoy::config::endpoint::v3::ClusterLoadAssignment;
use skiff_proto::envoy::config::listener::v3::Listener;
use skiff_proto::envoy::config::route::v3::RouteConfiguration;
use skiff_proto::envoy::service::discovery::v3::{DeltaDiscoveryResponse, DiscoveryResponse};
use skiff_proto::google::protobuf::Any;

use super::resources::{Kind, Resources};
use crate::translate::envoy::{self, Rejected};

/// Larger files are refused.
const MAX_FILE_BYTES: u64 = 256 * 1024 * 1024;
/// Nesting of a config dump that is looked into.
const MAX_DEPTH: usize = 16;

/// What became of the resources of a file.
#[derive(Debug, Default)]
pub struct Report {
    /// Type and name of what would be served.
    pub accepted: Vec<(Kind, String)>,
    /// What would be answered with a NACK.
    pub rejected: Vec<Rejected>,
    /// Types that skiff does not ask for.
    pub skipped: Vec<String>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (kind, name) in &self.accepted {
            writeln!(f, "accepted: {} {name:?}", kind.short())?;
        }
        for rejected in &self.rejected {
            writeln!(f, "rejected: {rejected}")?;
        }
        for skipped in &self.skipped {
            writeln!(f, "skipped: {skipped}")?;
        }
        write!(f, "{} accepted, {} rejected, {} skipped", self.accepted.len(), self.rejected.len(), self.skipped.len())
    }
}

/// Reads a response of either protocol (binary) or a config dump (JSON).
///
/// # Errors
/// When the file cannot be read or is none of these.
pub fn check(path: &Path) -> Result<Report, String> {
    let wrong = |reason: &dyn fmt::Display| format!("{}: {reason}", path.display());
    let size = std::fs::metadata(path).map_err(|error| wrong(&error))?.len();
    if size > MAX_FILE_BYTES {
        return Err(wrong(&format!("expected at most {MAX_FILE_BYTES} bytes, found {size}")));
    }
    let bytes = std::fs::read(path).map_err(|error| wrong(&error))?;
    let mut report = Report::default();
    if bytes.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'{')
        && let Ok(dump) = serde_json::from_slice::<Json>(&bytes)
    {
        let _descriptors = envoy::descriptors();
        report.walk(&dump, 0);
        return Ok(report);
    }
    let resources = response(&bytes)
        .ok_or_else(|| wrong(&"expected a DiscoveryResponse or DeltaDiscoveryResponse in binary, or a config dump in JSON"))?;
    for (name, any) in resources {
        report.take(&any, name.as_deref());
    }
    Ok(report)
}

/// The resources of a response. Both protocols use the same field numbers: only what is inside tells them apart.
fn response(bytes: &[u8]) -> Option<Vec<(Option<String>, Any)>> {
    let is_type = |type_url: &str| type_url.starts_with("type.googleapis.com/");
    if let Ok(world) = DiscoveryResponse::decode(bytes)
        && is_type(&world.type_url)
        && world.resources.iter().all(|any| is_type(&any.type_url))
    {
        return Some(world.resources.into_iter().map(|any| (None, any)).collect());
    }
    let delta = DeltaDiscoveryResponse::decode(bytes).ok().filter(|delta| is_type(&delta.type_url))?;
    let named = delta.resources.into_iter().filter_map(|resource| Some((Some(resource.name), resource.resource?)));
    Some(named.collect())
}

impl Report {
    fn take(&mut self, any: &Any, name: Option<&str>) {
        let Some(kind) = Kind::of(&any.type_url) else {
            return self.skipped.push(format!("{} {:?}", any.type_url, name.unwrap_or_default()));
        };
        match Resources::default().take(kind, any, name.filter(|name| !name.is_empty())) {
            Ok((name, _)) => self.accepted.push((kind, name.to_string())),
            Err(all) => self.rejected.extend(all),
        }
    }

    /// Finds the resources in a config dump, wherever they stand.
    fn walk(&mut self, json: &Json, depth: usize) {
        match json {
            Json::Object(object) => {
                match object.get("@type").and_then(Json::as_str).and_then(Kind::of) {
                    Some(kind) => return self.take_json(kind, object),
                    None if depth < MAX_DEPTH => {}
                    None => return,
                }
                object.values().for_each(|value| self.walk(value, depth + 1));
            }
            Json::Array(items) if depth < MAX_DEPTH => items.iter().for_each(|item| self.walk(item, depth + 1)),
            _ => {}
        }
    }

    fn take_json(&mut self, kind: Kind, object: &serde_json::Map<String, Json>) {
        let mut object = object.clone();
        object.remove("@type");
        let name = ["name", "cluster_name", "clusterName"].iter().find_map(|&key| object.get(key)?.as_str().map(str::to_owned));
        let encoded = match kind {
            Kind::Cluster => encode::<Cluster>(object),
            Kind::Endpoints => encode::<ClusterLoadAssignment>(object),
            Kind::Listener => encode::<Listener>(object),
            Kind::Routes => encode::<RouteConfiguration>(object),
        };
        match encoded {
            Ok(value) => self.take(&Any { type_url: kind.type_url(), value }, None),
            Err(all) => self.rejected.extend(envoy::rejected(&kind.type_url(), &name.unwrap_or_default(), all)),
        }
    }
}

fn encode<T: Message + Name + Default>(object: serde_json::Map<String, Json>) -> Result<Vec<u8>, Vec<envoy::Invalid>> {
    envoy::from_json::<T>(&Json::Object(object)).map(|message| message.encode_to_vec())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use serde_json::json;

    use super::*;

    fn recorded(name: &str) -> PathBuf {
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("testdata/xds").join(name)
    }

    #[test]
    fn responses_of_both_protocols_are_told_apart() {
        for (name, count) in [("delta/002-CDS-dresp.bin", 9), ("sotw/002-CDS-resp.bin", 9), ("sotw/008-LDS-resp.bin", 2)] {
            let report = check(&recorded(name)).unwrap();
            assert_eq!((report.accepted.len(), report.rejected.len()), (count, 0), "{name}: {report}");
        }
    }

    #[test]
    fn a_config_dump_is_searched_for_resources() {
        let cluster =
            |name: &str, timeout: &str| json!({"@type": Kind::Cluster.type_url(), "name": name, "connect_timeout": timeout});
        let dump = json!({"configs": [{
            "@type": "type.googleapis.com/envoy.admin.v3.ClustersConfigDump",
            "dynamic_active_clusters": [{"cluster": cluster("good", "1s")}, {"cluster": cluster("bad", "1 s")}],
        }]});
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), dump.to_string()).unwrap();
        let report = check(file.path()).unwrap();
        assert_eq!(report.accepted, [(Kind::Cluster, "good".to_owned())]);
        assert!(report.to_string().contains("rejected: Cluster \"bad\": connect_timeout"), "{report}");
    }

    #[test]
    fn what_is_neither_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), [0xff; 64]).unwrap();
        assert!(check(file.path()).unwrap_err().contains("expected a DiscoveryResponse"));
    }
}
