//! Auto-registration and health, as istiod keeps them in WorkloadEntries.

use std::collections::BTreeSet;
use std::sync::Mutex;

use skiff_proto::envoy::config::core::v3::Node;
use skiff_proto::google::protobuf::value::Kind;
use tokio::sync::watch;
use tonic::Status;

/// A WorkloadEntry that a sidecar brought about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// `<group>-<address>`.
    pub name: String,
    /// A stream is open; without one it is deleted after a grace period.
    pub connected: bool,
    /// What the application's health is, once it was reported.
    pub healthy: Option<bool>,
}

#[derive(Debug, Default)]
pub(super) struct Registry {
    /// `None`: every group exists.
    groups: Mutex<Option<BTreeSet<String>>>,
    entries: watch::Sender<Vec<Entry>>,
}

impl Registry {
    pub(super) fn groups(&self, names: &[&str]) {
        *self.groups.lock().unwrap() = Some(names.iter().map(|name| (*name).to_owned()).collect());
    }

    pub(super) fn entries(&self) -> watch::Receiver<Vec<Entry>> {
        self.entries.subscribe()
    }

    /// A stream opens; the name of the entry that it belongs to.
    pub(super) fn connect(&self, node: &Node) -> Result<Option<String>, Status> {
        let metadata = |key: &str| {
            let value = node.metadata.as_ref()?.fields.get(key)?.kind.as_ref()?;
            if let Kind::StringValue(text) = value { Some(text.clone()) } else { None }
        };
        let Some(group) = metadata("AUTO_REGISTER_GROUP") else { return Ok(None) };
        let exists = self.groups.lock().unwrap().as_ref().is_none_or(|groups| groups.contains(&group));
        if !exists {
            return Err(Status::failed_precondition(format!("cannot find WorkloadGroup bookinfo/{group}")));
        }
        let name = format!("{group}-{}", metadata("INSTANCE_IPS").unwrap_or_default());
        self.entries.send_modify(|entries| match entries.iter_mut().find(|entry| entry.name == name) {
            Some(entry) => entry.connected = true,
            None => entries.push(Entry { name: name.clone(), connected: true, healthy: None }),
        });
        Ok(Some(name))
    }

    pub(super) fn report(&self, name: &str, healthy: bool) {
        self.edit(name, |entry| entry.healthy = Some(healthy));
    }

    pub(super) fn disconnect(&self, name: &str) {
        self.edit(name, |entry| entry.connected = false);
    }

    fn edit(&self, name: &str, edit: impl FnOnce(&mut Entry)) {
        self.entries.send_modify(|entries| {
            if let Some(entry) = entries.iter_mut().find(|entry| entry.name == name) {
                edit(entry);
            }
        });
    }
}
