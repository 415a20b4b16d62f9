//! The two workloads of `examples/bookinfo`, as the quickstart has to know them.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use crate::stand_in::Bookinfo;

/// The YAML of `examples/bookinfo`, by file name, with groups to join in the place of workloads that are written out.
pub(super) const DOCUMENTS: [(&str, &str); 5] = [
    ("mesh.yaml", include_str!("../../../examples/bookinfo/mesh.yaml")),
    ("security.yaml", include_str!("../../../examples/bookinfo/security.yaml")),
    ("services.yaml", include_str!("../../../examples/bookinfo/services.yaml")),
    ("sidecars.yaml", include_str!("../../../examples/bookinfo/sidecars.yaml")),
    ("onboarding.yaml", include_str!("onboarding.yaml")),
];

/// Namespace of both.
pub(super) const NAMESPACE: &str = "bookinfo";
/// Trust domain of `mesh.yaml`.
pub(super) const TRUST_DOMAIN: &str = "cluster.local";

/// A workload with its sidecar.
#[derive(Debug)]
pub struct Member {
    /// `app` label, and name of its service.
    pub name: &'static str,
    /// Kubernetes service account.
    pub service_account: &'static str,
    /// Which stand-in it is.
    pub app: Bookinfo,
    /// Where the application listens.
    pub app_address: SocketAddr,
    /// Where the mesh comes in.
    pub ingress: SocketAddr,
    /// Where the application goes out.
    pub egress: SocketAddr,
    /// Admin page of its sidecar.
    pub admin: SocketAddr,
}

/// Calls details.
pub const RATINGS: Member = Member {
    name: "ratings",
    service_account: "bookinfo-ratings",
    app: Bookinfo::Ratings,
    app_address: loopback(1, 9081),
    ingress: loopback(21, 9080),
    egress: loopback(2, 9080),
    admin: loopback(21, 15000),
};

/// Is called by ratings.
pub const DETAILS: Member = Member {
    name: "details",
    service_account: "bookinfo-details",
    app: Bookinfo::Details,
    app_address: loopback(1, 9082),
    ingress: loopback(31, 9080),
    egress: loopback(3, 9080),
    admin: loopback(31, 15000),
};

impl Member {
    /// Its identity, as certificates carry it.
    pub fn spiffe_id(&self) -> String {
        format!("spiffe://{TRUST_DOMAIN}/ns/{NAMESPACE}/sa/{}", self.service_account)
    }

    /// The short name that others call it by.
    pub(super) fn host(&self) -> String {
        format!("{}.{NAMESPACE}", self.name)
    }

    /// What a Host header says.
    pub(super) fn host_and_port(&self) -> String {
        format!("{}:{}", self.host(), self.ingress.port())
    }

    /// `ONBOARDING_CONFIG`: where it joins, and what as.
    pub(super) fn onboarding_configuration(&self, plane: SocketAddr) -> String {
        let configuration = serde_json::json!({
            "apiVersion": "config.agent.onboarding.tetrate.io/v1alpha1",
            "kind": "OnboardingConfiguration",
            "onboardingEndpoint": {"host": plane.ip(), "port": plane.port()},
            "workloadGroup": {"namespace": NAMESPACE, "name": self.name},
        });
        configuration.to_string()
    }
}

const fn loopback(last: u8, port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(127, 0, 0, last)), port)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_the_yaml() {
        let text = |file: &str| DOCUMENTS.iter().find(|(name, _)| *name == file).unwrap().1;
        for member in [&RATINGS, &DETAILS] {
            let sidecars = text("sidecars.yaml");
            assert!(sidecars.contains(&format!("bind: {}\n    defaultEndpoint: {}\n", member.ingress.ip(), member.app_address)));
            assert!(sidecars.contains(&format!("name: egress-http}}\n    bind: {}\n", member.egress.ip())));
            let groups = text("onboarding.yaml");
            assert!(groups.contains(&format!("metadata: {{name: {}, namespace: {NAMESPACE},", member.name)));
            assert!(groups.contains(&format!("serviceAccount: {}\n", member.service_account)));
            assert!(groups.contains(&format!("subjects: [{}]", member.name)));
            assert!(text("services.yaml").contains(&format!("hosts: [{}.svc.cluster.local]", member.host())));
        }
        assert!(text("security.yaml").contains(RATINGS.spiffe_id().strip_prefix("spiffe://").unwrap()));
        assert!(text("mesh.yaml").contains(&format!("trustDomain: {TRUST_DOMAIN}\n")));
    }
}
