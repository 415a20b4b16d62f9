//! JWT authentication of the data plane in Envoy's JSON form, to compare with what istiod sent.

use serde_json::{Map, Value, json};
use skiff_proxy::config::{Jwks, JwtAuthn, JwtProvider, JwtRequirement, JwtRuleRequirement, PathMatch, RouteMatch};

/// Only what is set, as protobuf JSON has it.
fn message(fields: Vec<(&str, Value)>) -> Value {
    let set = |value: &Value| match value {
        Value::Null | Value::Bool(false) => false,
        Value::String(text) => !text.is_empty(),
        Value::Array(list) => !list.is_empty(),
        _ => true,
    };
    Value::Object(fields.into_iter().filter(|(_, value)| set(value)).map(|(name, value)| (name.to_owned(), value)).collect())
}

pub(super) fn filter(jwt: &JwtAuthn) -> Value {
    let providers: Map<_, _> = jwt.providers.iter().map(|(name, provider)| (name.clone(), self::provider(provider))).collect();
    let rules = jwt.rules.iter().map(|rule| {
        assert_eq!(rule.matches, RouteMatch::path(PathMatch::Prefix("/".into())));
        let JwtRuleRequirement::Inline(requires) = &rule.requires else { panic!("{rule:?}") };
        json!({ "match": { "prefix": "/" }, "requires": requirement(requires) })
    });
    json!({ "providers": providers, "rules": rules.collect::<Vec<_>>(), "bypass_cors_preflight": jwt.bypass_cors_preflight })
}

fn provider(provider: &JwtProvider) -> Value {
    let Jwks::Local(jwks) = &provider.jwks else { panic!("{provider:?}") };
    let from_headers = provider
        .from_headers
        .iter()
        .map(|from| message(vec![("name", json!(from.name)), ("value_prefix", json!(from.value_prefix))]));
    let claims = provider.claim_to_headers.iter().map(|to| json!({ "header_name": to.header, "claim_name": to.claim.join(".") }));
    message(vec![
        ("issuer", json!(provider.issuer)),
        ("audiences", json!(provider.audiences)),
        ("local_jwks", json!({ "inline_string": jwks.0 })),
        ("forward", json!(provider.forward)),
        ("from_headers", from_headers.collect()),
        ("from_params", json!(provider.from_params)),
        ("from_cookies", json!(provider.from_cookies)),
        ("forward_payload_header", json!(provider.forward_payload_header)),
        ("payload_in_metadata", json!(provider.payload_in_metadata)),
        ("normalize_payload_in_metadata", json!({ "space_delimited_claims": provider.space_delimited_claims })),
        ("claim_to_headers", claims.collect()),
    ])
}

fn requirement(requirement: &JwtRequirement) -> Value {
    let list = |all: &[JwtRequirement]| json!({ "requirements": all.iter().map(self::requirement).collect::<Vec<_>>() });
    match requirement {
        JwtRequirement::Provider { name, .. } => json!({ "provider_name": name }),
        JwtRequirement::Any(all) => json!({ "requires_any": list(all) }),
        JwtRequirement::All(all) => json!({ "requires_all": list(all) }),
        JwtRequirement::AllowMissing => json!({ "allow_missing": {} }),
        other => panic!("{other:?}"),
    }
}
