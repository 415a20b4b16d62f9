//! The definitions of the onboarding API's kinds for Kubernetes. Their schemas and the types in [`super::objects`] are the same
//! thing said twice; the tests hold them together.

/// For `kubectl apply`: OnboardingPolicy and WorkloadAutoRegistration.
pub const CRDS: &str = include_str!("../../manifests/crds.yaml");

#[cfg(test)]
mod tests {
    use serde_json::{Map, Value as Json, json};

    use super::*;
    use crate::plane::objects::{Object, OnboardingPolicySpec, RegistrationSpec, Spec};

    /// The schema of a kind, and its names.
    fn definition<S: Spec>() -> Json {
        let all: Vec<Json> = serde_saphyr::from_multiple(CRDS).unwrap();
        let found = all.into_iter().find(|definition| definition["spec"]["names"]["kind"] == S::KIND).expect(S::KIND);
        let (group, version) = S::API_VERSIONS[0].split_once('/').unwrap();
        let spec = &found["spec"];
        assert_eq!((&spec["group"], &spec["versions"][0]["name"]), (&json!(group), &json!(version)));
        assert_eq!(found["metadata"]["name"], format!("{}.{group}", spec["names"]["plural"].as_str().unwrap()));
        spec["versions"][0]["schema"]["openAPIV3Schema"].clone()
    }

    /// A value with everything that the schema knows; of alternatives the one of this number.
    fn sample(schema: &Json, name: &str, alternative: usize) -> Json {
        if let Some(first) = schema["enum"].get(0) {
            return first.clone();
        }
        match schema["type"].as_str().unwrap() {
            "object" => {
                let mut fields: Map<String, Json> = Map::new();
                for (name, field) in schema["properties"].as_object().into_iter().flatten() {
                    fields.insert(name.clone(), sample(field, name, alternative));
                }
                if let Some(alternatives) = schema["oneOf"].as_array() {
                    let required = |choice: &Json| choice["required"][0].as_str().unwrap().to_owned();
                    let kept = required(&alternatives[alternative % alternatives.len()]);
                    alternatives
                        .iter()
                        .map(required)
                        .filter(|other| *other != kept)
                        .for_each(|other| drop(fields.remove(&other)));
                }
                if schema["additionalProperties"].is_object() {
                    fields.insert("any".to_owned(), sample(&schema["additionalProperties"], "", alternative));
                }
                Json::Object(fields)
            }
            "array" => json!([sample(&schema["items"], name, alternative)]),
            "integer" => json!(1),
            "string" => match (schema["pattern"].as_str(), schema["format"].as_str(), name) {
                (Some("^[0-9]{12}$"), ..) => json!("123456789012"),
                (Some(r"^https://\S+$"), ..) => json!("https://a.example"),
                (None, Some("date-time"), _) => json!("2026-11-29T15:49:33Z"),
                (None, None, "ip") => json!("10.0.0.1"),
                (None, None, _) => json!("x"),
                other => panic!("{name}: a sample of {other:?}"),
            },
            other => panic!("{name}: a sample of {other}"),
        }
    }

    fn is_read_whole<S: Spec>(alternative: usize) {
        let schema = definition::<S>();
        let mut object = sample(&schema, "", alternative);
        object["apiVersion"] = json!(S::API_VERSIONS[0]);
        object["kind"] = json!(S::KIND);
        object["metadata"] = json!({"name": "a", "namespace": "b"});
        let read: Object<S> = serde_json::from_value(object.clone()).unwrap_or_else(|error| panic!("{error}: {object}"));
        assert_eq!(serde_json::to_value(&read).unwrap(), object);
    }

    #[test]
    fn what_a_schema_knows_the_types_know() {
        for alternative in 0..2 {
            is_read_whole::<OnboardingPolicySpec>(alternative);
            is_read_whole::<RegistrationSpec>(alternative);
        }
    }

    /// Removes every field once: where the schema allows that, so do the types.
    #[test]
    fn what_a_schema_requires_the_types_require() {
        fn without_each(schema: &Json, value: &Json, check: &mut dyn FnMut(Json, bool, &str)) {
            match value {
                Json::Object(fields) => {
                    for (name, field) in fields {
                        let required = |list: &Json| list.as_array().is_some_and(|list| list.contains(&json!(name)));
                        let is_choice =
                            schema["oneOf"].as_array().is_some_and(|all| all.iter().any(|one| required(&one["required"])));
                        let mut rest = fields.clone();
                        rest.remove(name);
                        check(Json::Object(rest), required(&schema["required"]) || is_choice, name);
                        let inner = if schema["properties"][name].is_object() {
                            &schema["properties"][name]
                        } else {
                            &schema["additionalProperties"]
                        };
                        without_each(inner, field, &mut |changed, required, path| {
                            let mut fields = fields.clone();
                            fields.insert(name.clone(), changed);
                            check(Json::Object(fields), required, &format!("{name}.{path}"));
                        });
                    }
                }
                Json::Array(items) => {
                    let minimum = schema["minItems"].as_u64().unwrap_or(0) > 0;
                    check(json!([]), minimum, "[]");
                    for item in items {
                        without_each(&schema["items"], item, &mut |changed, required, path| {
                            check(json!([changed]), required, path);
                        });
                    }
                }
                _ => {}
            }
        }
        fn compare<S: Spec>(alternative: usize, except: &[&str]) {
            let schema = definition::<S>();
            let spec = &schema["properties"]["spec"];
            without_each(spec, &sample(spec, "", alternative), &mut |changed, required, path| {
                if except.contains(&path) {
                    return;
                }
                let read = serde_json::from_value::<S>(changed.clone());
                assert_eq!(read.is_err(), required, "{} {path}: {:?}", S::KIND, read.err());
            });
        }
        for alternative in 0..2 {
            // In and NotIn need values, which a schema cannot say without repeating every operator.
            let values = "allow.onboardTo.workloadGroupSelector.matchExpressions.values";
            compare::<OnboardingPolicySpec>(alternative, &[values, &format!("{values}.[]")]);
            // A registration is checked where it arrives.
            compare::<RegistrationSpec>(alternative, &["registration.host.addresses.[]"]);
        }
    }
}
