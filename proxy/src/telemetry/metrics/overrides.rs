//! What a Telemetry resource changes about Istio's metrics: metrics that are not recorded, labels that go, change or come.

use metrics::{Label, SharedString};

use super::labels::{UNKNOWN, shared};
use crate::config::{Attribute, Dimension, IstioMetric, MetricOverride};
use crate::stream_info::FormatContext;
use crate::telemetry::grpc_status;

/// Compiled [`MetricOverride`]s; empty where nothing is changed, as mostly.
#[derive(Debug, Default)]
pub(super) struct Overrides {
    attributes: Vec<Attribute>,
    metrics: Vec<(IstioMetric, Changes)>,
}

#[derive(Debug, Default)]
struct Changes {
    drop: bool,
    labels: Vec<(SharedString, Change)>,
}

#[derive(Clone, Debug)]
enum Change {
    Remove,
    Constant(SharedString),
    /// By its place in [`Overrides::attributes`].
    Attribute(usize),
}

impl Overrides {
    pub(super) fn compile(overrides: &[MetricOverride]) -> Self {
        let mut all = Self::default();
        for one in overrides {
            let mut changes: Vec<(SharedString, Change)> =
                one.tags_to_remove.iter().map(|name| (shared(name), Change::Remove)).collect();
            for (name, value) in &one.dimensions {
                let change = match value {
                    Dimension::Constant(text) => Change::Constant(shared(text)),
                    Dimension::Attribute(attribute) => Change::Attribute(all.attribute(attribute)),
                };
                changes.push((shared(name), change));
            }
            for &metric in IstioMetric::ALL.iter().filter(|&&metric| one.metric.is_none_or(|only| only == metric)) {
                let known = all.changes(metric);
                if one.drop {
                    known.drop = true;
                    continue;
                }
                for (name, change) in &changes {
                    known.labels.retain(|(other, _)| other != name);
                    known.labels.push((name.clone(), change.clone()));
                }
            }
        }
        all
    }

    fn attribute(&mut self, attribute: &Attribute) -> usize {
        self.attributes.iter().position(|known| known == attribute).unwrap_or_else(|| {
            self.attributes.push(attribute.clone());
            self.attributes.len() - 1
        })
    }

    fn changes(&mut self, metric: IstioMetric) -> &mut Changes {
        let at = self.metrics.iter().position(|(known, _)| *known == metric).unwrap_or_else(|| {
            self.metrics.push((metric, Changes::default()));
            self.metrics.len() - 1
        });
        &mut self.metrics[at].1
    }

    /// The values of all attributes, for [`Self::apply`].
    pub(super) fn attributes(&self, context: &FormatContext<'_>) -> Vec<String> {
        let value = |attribute: &Attribute| attribute.value(context).unwrap_or_else(|| UNKNOWN.to_owned());
        self.attributes.iter().map(value).collect()
    }

    /// The labels of a series; `None` when it is not recorded.
    pub(super) fn apply(&self, metric: IstioMetric, labels: &[Label], custom: &[String]) -> Option<Vec<Label>> {
        let Some((_, changes)) = self.metrics.iter().find(|(known, _)| *known == metric) else { return Some(labels.to_vec()) };
        if changes.drop {
            return None;
        }
        let value = |change: &Change| match change {
            Change::Remove => None,
            Change::Constant(text) => Some(text.clone()),
            Change::Attribute(at) => Some(shared(custom.get(*at).map_or(UNKNOWN, String::as_str))),
        };
        let changed = |label: &Label| match changes.labels.iter().find(|(name, _)| **name == *label.key()) {
            Some((name, change)) => value(change).map(|value| Label::new(name.clone(), value)),
            None => Some(label.clone()),
        };
        let mut all: Vec<Label> = labels.iter().filter_map(changed).collect();
        for (name, change) in &changes.labels {
            if !labels.iter().any(|label| label.key() == &**name) {
                all.extend(value(change).map(|value| Label::new(name.clone(), value)));
            }
        }
        Some(all)
    }
}

impl Attribute {
    /// What it is for this stream; `None` where there is none.
    fn value(&self, context: &FormatContext<'_>) -> Option<String> {
        let info = context.info;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let path = || context.request.map(|request| text(request.path()));
        let request = |name: &str| {
            let headers = &context.request?.headers;
            headers.joined(&crate::http::head::HeaderName::new(name)).map(|value| text(&value))
        };
        let san = |certificate: Option<&crate::tls::PeerCertificate>| certificate?.uri_san().map(str::to_owned);
        match self {
            Self::RequestPath => path(),
            Self::RequestUrlPath => path().map(|path| path.split('?').next().unwrap_or_default().to_owned()),
            Self::RequestQuery => path().map(|path| path.split_once('?').map_or("", |(_, query)| query).to_owned()),
            Self::RequestHost => context.request.map(|request| text(request.authority())),
            Self::RequestScheme => context.request.map(|request| request.scheme.as_str().to_owned()),
            Self::RequestMethod => context.request.map(|request| request.method.as_str().to_owned()),
            Self::RequestProtocol => info.protocol.map(|version| version.as_str().to_owned()),
            Self::RequestId => request("x-request-id"),
            Self::RequestUseragent => request("user-agent"),
            Self::RequestReferer => request("referer"),
            Self::RequestHeader(name) => request(name),
            Self::ResponseCode => (info.response_code != 0).then(|| info.response_code.to_string()),
            Self::ResponseCodeDetails => Some(info.details.to_string()).filter(|details| !details.is_empty()),
            Self::ResponseGrpcStatus => grpc_status(context).map(|status| status.to_string()),
            Self::ResponseHeader(name) => {
                let headers = &context.response?.headers;
                headers.joined(&crate::http::head::HeaderName::new(name)).map(|value| text(&value))
            }
            Self::SourceAddress => Some(info.remote.to_string()),
            Self::DestinationAddress => Some(info.connection.local.to_string()),
            Self::ConnectionMtls => Some(info.connection.is_mtls().to_string()),
            Self::ConnectionRequestedServerName => info.connection.server_name.as_deref().map(str::to_owned),
            Self::ConnectionTlsVersion => info.connection.tls_version.map(str::to_owned),
            Self::ConnectionUriSanPeerCertificate => san(info.connection.peer.as_deref()),
            Self::ConnectionUriSanLocalCertificate => san(info.connection.local_certificate.as_deref()),
            Self::UpstreamAddress => info.upstream_host.as_deref().map(str::to_owned),
            Self::XdsClusterName => info.upstream_cluster.as_deref().map(str::to_owned),
            Self::XdsRouteName => info.route_name.as_deref().map(str::to_owned),
        }
    }
}
