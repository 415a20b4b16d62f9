//! Every resource that istiod sent in any scenario, on both protocols: accepted, or refused for a reason that is known.

use std::collections::BTreeSet;

use skiff_proto::google::protobuf::Any;

use super::super::recorded::{PROTOCOLS, responses, scenarios};
use super::super::{Kind, Resources, Response};

/// Scenario, kind, resource, and what is refused of it on purpose.
const REFUSED: [(&str, Kind, &str, &[&str]); 2] = [
    // What only makes sense behind iptables.
    ("15-redirect-compare", Kind::Listener, "127.0.0.2_9080", &["bind_to_port"]),
    ("15-redirect-compare", Kind::Listener, "virtualOutbound", &["use_original_dst"]),
];

fn resources(response: Response) -> (Kind, Vec<Any>) {
    let (type_url, resources) = match response {
        Response::Delta(delta) => {
            (delta.type_url, delta.resources.into_iter().map(|resource| resource.resource.unwrap()).collect())
        }
        Response::StateOfTheWorld(world) => (world.type_url, world.resources),
    };
    (Kind::of(&type_url).unwrap(), resources)
}

#[test]
fn everything_that_istiod_sent_is_accepted_or_refused_for_a_known_reason() {
    for protocol in PROTOCOLS {
        let (mut accepted, mut met) = (0, BTreeSet::new());
        for scenario in scenarios() {
            for (kind, resources) in responses(&scenario, protocol).into_iter().map(resources) {
                for any in resources {
                    let Err(all) = Resources::default().take(kind, &any, None) else {
                        accepted += 1;
                        continue;
                    };
                    for refused in all {
                        let known = REFUSED.iter().position(|(of, wanted, name, reasons)| {
                            let about = format!("{}: {}", refused.path, refused.reason);
                            *of == scenario
                                && *wanted == kind
                                && *name == refused.name
                                && reasons.iter().any(|reason| about.contains(reason))
                        });
                        met.insert(known.unwrap_or_else(|| panic!("{protocol:?} {scenario}: {refused}")));
                    }
                }
            }
        }
        assert_eq!(met.len(), REFUSED.len(), "{protocol:?}: what is not refused any more is no exception, {met:?}");
        assert!(accepted > 200, "{accepted}");
    }
}
