//! RBAC policies. What cannot be evaluated here rejects the resource: a policy is never weakened.

use std::collections::BTreeMap;

use skiff_proto::envoy::config::rbac::v3 as pb;
use skiff_proto::envoy::extensions::filters::http::rbac::v3 as http;
use skiff_proto::envoy::extensions::path::r#match::uri_template::v3::UriTemplateMatchConfig;
use skiff_proto::envoy::r#type::matcher::v3 as matcher;
use skiff_proxy::config;

use super::outcome::{At, Outcome, each, invalid, maybe, required};
use super::{any, basic};

pub(super) fn http_filter(name: &str, message: &http::Rbac) -> Outcome<config::Rbac> {
    Ok(config::Rbac {
        name: name.to_owned(),
        rules: maybe(message.rules.as_ref(), "rules", rules)?,
        shadow_rules: maybe(message.shadow_rules.as_ref(), "shadow_rules", rules)?,
        shadow_stat_prefix: message.shadow_rules_stat_prefix.clone(),
    })
}

/// Rules under one action. Allow rules without policies deny everything, as in Envoy.
pub(super) fn rules(message: &pb::Rbac) -> Outcome<config::RbacRules> {
    let action = match pb::rbac::Action::try_from(message.action) {
        Ok(pb::rbac::Action::Allow) => config::RbacAction::Allow,
        Ok(pb::rbac::Action::Deny) => config::RbacAction::Deny,
        Ok(pb::rbac::Action::Log) => config::RbacAction::Log,
        Err(_) => return invalid("unknown action").at("action"),
    };
    let mut policies = BTreeMap::new();
    for (name, policy) in &message.policies {
        let at = format!("policies[{name:?}]");
        let permissions = each(&policy.permissions, "permissions", permission).at(&at)?;
        let principals = each(&policy.principals, "principals", principal).at(&at)?;
        policies.insert(name.clone(), config::Policy { permissions, principals });
    }
    Ok(config::RbacRules { action, policies })
}

fn permission(message: &pb::Permission) -> Outcome<config::Permission> {
    use config::Permission as To;
    use pb::permission::Rule;
    Ok(match required(message.rule.as_ref(), "rule")? {
        Rule::AndRules(set) => To::And(each(&set.rules, "rules", permission).at("and_rules")?),
        Rule::OrRules(set) => To::Or(each(&set.rules, "rules", permission).at("or_rules")?),
        Rule::NotRule(rule) => To::Not(Box::new(permission(rule).at("not_rule")?)),
        Rule::Any(true) => To::Any,
        Rule::Any(false) => return invalid("expected true").at("any"),
        Rule::Header(header) => To::Header(basic::header_matcher(header).at("header")?),
        Rule::UrlPath(path) => To::UrlPath(url_path(path).at("url_path")?),
        Rule::UriTemplate(extension) => {
            let config = required(extension.typed_config.as_ref(), "typed_config").at("uri_template")?;
            let template: UriTemplateMatchConfig = any::unpack(config).at("uri_template.typed_config")?;
            To::UriTemplate(template.path_template)
        }
        Rule::DestinationIp(range) => To::DestinationIp(basic::cidr(range).at("destination_ip")?),
        Rule::DestinationPort(port) => To::DestinationPort(basic::port(*port).at("destination_port")?),
        Rule::DestinationPortRange(range) => {
            let (Ok(start), Ok(end)) = (u16::try_from(range.start), u16::try_from(range.end)) else {
                return invalid("expected ports up to 65535").at("destination_port_range");
            };
            To::DestinationPortRange { start, end }
        }
        Rule::RequestedServerName(name) => To::RequestedServerName(basic::string_matcher(name).at("requested_server_name")?),
        Rule::Metadata(metadata) => To::Metadata(metadata_matcher(metadata).at("metadata")?),
        Rule::SourcedMetadata(sourced) => To::Metadata(sourced_metadata(sourced).at("sourced_metadata")?),
        Rule::Matcher(extension) => return invalid(format!("RBAC matcher {} is not supported", extension.name)).at("matcher"),
    })
}

fn principal(message: &pb::Principal) -> Outcome<config::Principal> {
    use config::Principal as To;
    use pb::principal::Identifier;
    Ok(match required(message.identifier.as_ref(), "identifier")? {
        Identifier::AndIds(set) => To::And(each(&set.ids, "ids", principal).at("and_ids")?),
        Identifier::OrIds(set) => To::Or(each(&set.ids, "ids", principal).at("or_ids")?),
        Identifier::NotId(id) => To::Not(Box::new(principal(id).at("not_id")?)),
        Identifier::Any(true) => To::Any,
        Identifier::Any(false) => return invalid("expected true").at("any"),
        Identifier::Authenticated(peer) => {
            To::Authenticated(maybe(peer.principal_name.as_ref(), "authenticated.principal_name", basic::string_matcher)?)
        }
        Identifier::DirectRemoteIp(range) => To::DirectRemoteIp(basic::cidr(range).at("direct_remote_ip")?),
        Identifier::RemoteIp(range) => To::RemoteIp(basic::cidr(range).at("remote_ip")?),
        Identifier::SourceIp(_) => return invalid("is deprecated: use direct_remote_ip or remote_ip").at("source_ip"),
        Identifier::Header(header) => To::Header(basic::header_matcher(header).at("header")?),
        Identifier::UrlPath(path) => To::UrlPath(url_path(path).at("url_path")?),
        Identifier::Metadata(metadata) => To::Metadata(metadata_matcher(metadata).at("metadata")?),
        Identifier::SourcedMetadata(sourced) => To::Metadata(sourced_metadata(sourced).at("sourced_metadata")?),
        Identifier::FilterState(_) => return invalid("is not supported").at("filter_state"),
        Identifier::Custom(extension) => return invalid(format!("principal {} is not supported", extension.name)).at("custom"),
    })
}

fn url_path(message: &matcher::PathMatcher) -> Outcome<config::StringMatcher> {
    let matcher::path_matcher::Rule::Path(path) = required(message.rule.as_ref(), "path")?;
    basic::string_matcher(path).at("path")
}

fn sourced_metadata(message: &pb::SourcedMetadata) -> Outcome<config::MetadataMatcher> {
    if message.metadata_source != pb::MetadataSource::Dynamic as i32 {
        return invalid("only DYNAMIC is supported").at("metadata_source");
    }
    metadata_matcher(required(message.metadata_matcher.as_ref(), "metadata_matcher")?).at("metadata_matcher")
}

pub(super) fn metadata_matcher(message: &matcher::MetadataMatcher) -> Outcome<config::MetadataMatcher> {
    use matcher::metadata_matcher::path_segment::Segment;
    let path = each(&message.path, "path", |segment| {
        let Segment::Key(key) = required(segment.segment.as_ref(), "key")?;
        Ok(key.clone())
    })?;
    let (value, form) = value_matcher(required(message.value.as_ref(), "value")?).at("value")?;
    Ok(config::MetadataMatcher { filter: message.filter.clone(), path, value, form, invert: message.invert })
}

/// A string, or one element of a list that is such a string: the two forms that istiod writes.
fn value_matcher(message: &matcher::ValueMatcher) -> Outcome<(config::StringMatcher, config::MetadataForm)> {
    use config::MetadataForm as Form;
    use matcher::value_matcher::MatchPattern;
    match required(message.match_pattern.as_ref(), "match_pattern")? {
        MatchPattern::StringMatch(string) => Ok((basic::string_matcher(string).at("string_match")?, Form::Text)),
        MatchPattern::ListMatch(list) => {
            let matcher::list_matcher::MatchPattern::OneOf(element) =
                required(list.match_pattern.as_ref(), "one_of").at("list_match")?;
            match &element.match_pattern {
                Some(MatchPattern::StringMatch(string)) => {
                    Ok((basic::string_matcher(string).at("list_match.one_of.string_match")?, Form::Element))
                }
                _ => invalid("expected string_match").at("list_match.one_of"),
            }
        }
        // `a == x or one_of(a) == x`, istiod's form for claims that may be a string or a list.
        MatchPattern::OrMatch(or) => {
            let mut all = each(&or.value_matchers, "value_matchers", value_matcher).at("or_match")?;
            match (all.pop(), all) {
                (Some((last, form)), rest) if rest.iter().all(|(other, _)| *other == last) => {
                    let one_form = rest.iter().all(|(_, other)| *other == form);
                    Ok((last, if one_form { form } else { Form::TextOrElement }))
                }
                _ => invalid("expected the same string in every alternative").at("or_match"),
            }
        }
        _ => invalid("expected string_match or list_match"),
    }
}
