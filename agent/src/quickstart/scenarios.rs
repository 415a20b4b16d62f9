//! What `skiff quickstart --check` tries, as a table.

use http::Method;

use super::bookinfo::{DETAILS, Member, RATINGS};

/// One request and everything that must come of it.
pub(super) struct Scenario {
    pub(super) title: &'static str,
    /// What happens before the request.
    pub(super) before: Before,
    pub(super) call: Call,
    pub(super) expect: Expect,
    /// What the access-log line of each sidecar must hold.
    pub(super) logged: &'static [(&'static Member, &'static str)],
    /// Who must have seen whom on the wire: caller and callee.
    pub(super) identities: Option<(&'static Member, &'static Member)>,
}

pub(super) enum Before {
    Nothing,
    Stop(&'static Member),
    Start(&'static Member),
}

/// A plaintext request.
pub(super) struct Call {
    pub(super) method: Method,
    /// Which door it is sent to.
    pub(super) to: Door,
    pub(super) host: &'static str,
    pub(super) path: &'static str,
}

/// An address of a sidecar.
#[derive(Clone, Copy)]
pub(super) enum Door {
    /// Where its application goes out.
    EgressOf(&'static Member),
    /// Where the mesh comes in.
    IngressOf(&'static Member),
}

pub(super) enum Expect {
    /// An answer of the sidecar (`server: envoy`) with this status, and this in its body.
    Answer(u16, &'static str),
    /// The connection is closed without a byte.
    Refused,
}

const GET: Method = Method::GET;
const POST: Method = Method::POST;

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        title: "ratings calls details, in mutual TLS between the sidecars",
        before: Before::Nothing,
        call: Call { method: GET, to: Door::EgressOf(&RATINGS), host: "details.bookinfo:9080", path: "/details/0" },
        expect: Expect::Answer(200, "William Shakespeare"),
        logged: &[(&RATINGS, " 200 - via_upstream "), (&DETAILS, " 200 - via_upstream ")],
        identities: Some((&RATINGS, &DETAILS)),
    },
    Scenario {
        title: "details calls ratings, the other way round",
        before: Before::Nothing,
        call: Call { method: GET, to: Door::EgressOf(&DETAILS), host: "ratings.bookinfo:9080", path: "/ratings/0" },
        expect: Expect::Answer(200, "Reviewer1"),
        logged: &[(&DETAILS, " 200 - via_upstream "), (&RATINGS, " 200 - via_upstream ")],
        identities: Some((&DETAILS, &RATINGS)),
    },
    Scenario {
        title: "a host that the mesh does not know is not passed on (REGISTRY_ONLY)",
        before: Before::Nothing,
        call: Call { method: GET, to: Door::EgressOf(&RATINGS), host: "nobody.example:9080", path: "/" },
        expect: Expect::Answer(502, ""),
        logged: &[(&RATINGS, " 502 - direct_response ")],
        identities: None,
    },
    Scenario {
        title: "details lets ratings GET only: the AuthorizationPolicy refuses a POST",
        before: Before::Nothing,
        call: Call { method: POST, to: Door::EgressOf(&RATINGS), host: "details.bookinfo:9080", path: "/details/0" },
        expect: Expect::Answer(403, "RBAC: access denied"),
        logged: &[(&RATINGS, " 403 - via_upstream "), (&DETAILS, " 403 - rbac_access_denied_matched_policy[none] ")],
        identities: None,
    },
    Scenario {
        title: "plaintext into the mesh is refused (PeerAuthentication STRICT)",
        before: Before::Nothing,
        call: Call { method: GET, to: Door::IngressOf(&DETAILS), host: "details.bookinfo:9080", path: "/details/0" },
        expect: Expect::Refused,
        logged: &[(&DETAILS, " NR filter_chain_not_found ")],
        identities: None,
    },
    Scenario {
        title: "the details application stops: its sidecar answers for it",
        before: Before::Stop(&DETAILS),
        call: Call { method: GET, to: Door::EgressOf(&RATINGS), host: "details.bookinfo:9080", path: "/details/0" },
        expect: Expect::Answer(503, "upstream connect error or disconnect/reset before headers"),
        logged: &[(&RATINGS, " 503 "), (&DETAILS, " 503 URX,UF upstream_reset_before_response_started{")],
        identities: None,
    },
    Scenario {
        title: "the details application starts again",
        before: Before::Start(&DETAILS),
        call: Call { method: GET, to: Door::EgressOf(&RATINGS), host: "details.bookinfo:9080", path: "/details/0" },
        expect: Expect::Answer(200, "William Shakespeare"),
        logged: &[(&RATINGS, " 200 - via_upstream "), (&DETAILS, " 200 - via_upstream ")],
        identities: Some((&RATINGS, &DETAILS)),
    },
];

impl Door {
    pub(super) fn address(self) -> std::net::SocketAddr {
        match self {
            Self::EgressOf(member) => member.egress,
            Self::IngressOf(member) => member.ingress,
        }
    }
}
