//! RBAC of the data plane in Envoy's JSON form, to compare with what istiod sent.

use serde_json::{Map, Value, json};
use skiff_proxy::config::{MetadataForm, MetadataMatcher, Permission, Principal, Rbac, RbacAction, RbacRules};

use super::built::{header, text};

pub(super) fn filter(rbac: &Rbac) -> Value {
    let mut value = Map::new();
    value.extend(rbac.rules.as_ref().map(|rules| ("rules".to_owned(), self::rules(rules))));
    value.extend(rbac.shadow_rules.as_ref().map(|rules| ("shadow_rules".to_owned(), self::rules(rules))));
    value.insert("shadow_rules_stat_prefix".to_owned(), json!(rbac.shadow_stat_prefix));
    Value::Object(value)
}

fn rules(rules: &RbacRules) -> Value {
    let policies: Map<String, Value> = rules
        .policies
        .iter()
        .map(|(name, policy)| {
            let permissions: Vec<_> = policy.permissions.iter().map(permission).collect();
            let principals: Vec<_> = policy.principals.iter().map(principal).collect();
            (name.clone(), json!({ "permissions": permissions, "principals": principals }))
        })
        .collect();
    // ALLOW is the zero value, which protobuf JSON leaves out.
    match rules.action {
        RbacAction::Allow => json!({ "policies": policies }),
        RbacAction::Deny => json!({ "action": "DENY", "policies": policies }),
        RbacAction::Log => json!({ "action": "LOG", "policies": policies }),
    }
}

fn permission(permission: &Permission) -> Value {
    let all = |list: &[Permission]| json!({ "rules": list.iter().map(self::permission).collect::<Vec<_>>() });
    match permission {
        Permission::Any => json!({ "any": true }),
        Permission::And(list) => json!({ "and_rules": all(list) }),
        Permission::Or(list) => json!({ "or_rules": all(list) }),
        Permission::Not(inner) => json!({ "not_rule": self::permission(inner) }),
        Permission::Header(matcher) => json!({ "header": header(matcher) }),
        Permission::UrlPath(path) => json!({ "url_path": { "path": text(path) } }),
        Permission::UriTemplate(template) => {
            json!({ "uri_template": { "name": "uri-template", "typed_config": { "path_template": template } } })
        }
        Permission::DestinationPort(port) => json!({ "destination_port": port }),
        Permission::RequestedServerName(name) => json!({ "requested_server_name": text(name) }),
        other => panic!("{other:?}"),
    }
}

fn principal(principal: &Principal) -> Value {
    let all = |list: &[Principal]| json!({ "ids": list.iter().map(self::principal).collect::<Vec<_>>() });
    let block = |net: &ipnet::IpNet| json!({ "address_prefix": net.addr(), "prefix_len": net.prefix_len() });
    match principal {
        Principal::Any => json!({ "any": true }),
        Principal::And(list) => json!({ "and_ids": all(list) }),
        Principal::Or(list) => json!({ "or_ids": all(list) }),
        Principal::Not(inner) => json!({ "not_id": self::principal(inner) }),
        Principal::Authenticated(name) => json!({ "authenticated": { "principal_name": name.as_ref().map(text) } }),
        Principal::DirectRemoteIp(net) => json!({ "direct_remote_ip": block(net) }),
        Principal::RemoteIp(net) => json!({ "remote_ip": block(net) }),
        Principal::Header(matcher) => json!({ "header": header(matcher) }),
        Principal::UrlPath(path) => json!({ "url_path": { "path": text(path) } }),
        Principal::Metadata(MetadataMatcher { filter, path, value, form, .. }) => {
            let path: Vec<_> = path.iter().map(|key| json!({ "key": key })).collect();
            let text = json!({ "string_match": text(value) });
            let element = json!({ "list_match": { "one_of": text } });
            let value = match form {
                MetadataForm::Text => text,
                MetadataForm::Element => element,
                MetadataForm::TextOrElement => json!({ "or_match": { "value_matchers": [element, text] } }),
            };
            json!({ "metadata": { "filter": filter, "path": path, "value": value } })
        }
    }
}
