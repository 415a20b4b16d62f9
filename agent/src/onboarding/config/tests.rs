//! The rules of both configurations, and the published examples.

use std::time::Duration;

use super::*;

/// As the published guide has it, with the comma that JSON does not allow.
const SAMPLE: &str = r#"{
  "apiVersion": "config.agent.onboarding.tetrate.io/v1alpha1",
  "kind": "OnboardingConfiguration",
  "onboardingEndpoint": {
    "host": "abcdef-123456789.us-east-1.elb.amazonaws.com",
  },
  "workload": {
    "labels": {
      "version": "v5"
    }
  },
  "workloadGroup": {
    "name": "app",
    "namespace": "app-namespace"
  }
}
"#;

const MINIMAL: &str = "\
apiVersion: config.agent.onboarding.tetrate.io/v1alpha1
kind: OnboardingConfiguration
onboardingEndpoint:
  host: onboarding.example
workloadGroup: {namespace: bookinfo, name: ratings}
";

fn parse(text: &str) -> Result<OnboardingConfiguration, String> {
    OnboardingConfiguration::parse("ONBOARDING_CONFIG", text).map_err(|error| error.to_string())
}

#[test]
fn the_published_example_is_read_with_its_trailing_comma() {
    assert!(serde_json::from_str::<serde_json::Value>(SAMPLE).is_err(), "it is no JSON");
    let configuration = parse(SAMPLE).unwrap();
    assert_eq!(configuration.endpoint.host, "abcdef-123456789.us-east-1.elb.amazonaws.com");
    assert_eq!(configuration.endpoint.port, 15443);
    assert_eq!(configuration.endpoint.security, TransportSecurity::Tls { sni: None, insecure_skip_verify: false });
    assert_eq!(configuration.labels, [("version".to_owned(), "v5".to_owned())].into());
    assert_eq!(configuration.workload_group, GroupName { namespace: "app-namespace".to_owned(), name: "app".to_owned() });
    assert_eq!(configuration.connected_over, ConnectedOver::Vpc);
    // What jq makes of it, and what the console makes of that.
    let compact: String = SAMPLE.split_whitespace().collect();
    assert_eq!(parse(&compact).unwrap(), configuration);
}

#[test]
fn everything_that_can_be_said_is_read() {
    let text = format!(
        "{MINIMAL}workload: {{labels: {{app.kubernetes.io/name: ratings, empty: ''}}}}\nsettings: {{connectedOver: INTERNET}}\n"
    );
    let endpoint = "host: 2001:db8::1\n  port: 443\n  transportSecurity: {tls: {sni: plane.example, insecureSkipVerify: true}}\n";
    let configuration = parse(&text.replace("host: onboarding.example\n", endpoint)).unwrap();
    assert_eq!((configuration.endpoint.host.as_str(), configuration.endpoint.port), ("2001:db8::1", 443));
    let tls = TransportSecurity::Tls { sni: Some("plane.example".to_owned()), insecure_skip_verify: true };
    assert_eq!(configuration.endpoint.security, tls);
    assert_eq!(configuration.connected_over, ConnectedOver::Internet);
    let with =
        |endpoint: &str| parse(&MINIMAL.replace("onboarding.example", &format!("h.example\n  {endpoint}"))).unwrap().endpoint;
    assert_eq!(with("transportSecurity: {none: {}}").security, TransportSecurity::None);
    for default in ["port: 0", "transportSecurity:", "transportSecurity: {}", "transportSecurity: {tls: {sni: ''}}"] {
        let endpoint = with(default);
        let tls = TransportSecurity::Tls { sni: None, insecure_skip_verify: false };
        assert_eq!((endpoint.port, endpoint.security), (15443, tls), "{default}");
    }
}

#[test]
fn every_fault_is_told_with_variable_field_value_and_expectation() {
    for (from, to, expected) in [
        ("kind: OnboardingConfiguration\n", "", "ONBOARDING_CONFIG: kind: missing: expected OnboardingConfiguration"),
        ("kind: Onboarding", "kind: Agent", "kind: \"AgentConfiguration\": expected OnboardingConfiguration"),
        (
            "v1alpha1",
            "v1",
            "apiVersion: \"config.agent.onboarding.tetrate.io/v1\": expected config.agent.onboarding.tetrate.io/v1alpha1",
        ),
        ("onboardingEndpoint", "endpoint", "ONBOARDING_CONFIG:3: endpoint: unknown field, expected one of"),
        ("  host: onboarding.example\n", "", "onboardingEndpoint.host: missing"),
        (
            "onboarding.example",
            "https://a",
            "ONBOARDING_CONFIG:4: onboardingEndpoint.host: \"https://a\": expected a DNS name or an IP address",
        ),
        (
            "onboarding.example",
            "a\n  port: 65536",
            "ONBOARDING_CONFIG:5: onboardingEndpoint.port: 65536: expected a port from 1 to 65535",
        ),
        ("onboarding.example", "a\n  port: -1", "onboardingEndpoint.port: -1: expected a port from 1 to 65535"),
        ("onboarding.example", "a\n  port: abc", "onboardingEndpoint.port: \"abc\": expected"),
        ("onboarding.example", "a\n  tls: {}", "onboardingEndpoint.tls: unknown field"),
        (
            "onboarding.example",
            "a\n  transportSecurity: {tls: {mode: SIMPLE}}",
            "onboardingEndpoint.transportSecurity.tls.mode: unknown field",
        ),
        (
            "onboarding.example",
            "a\n  transportSecurity: {tls: {}, none: {}}",
            "onboardingEndpoint.transportSecurity: expected one of tls, none, not both",
        ),
        (
            "onboarding.example",
            "a\n  transportSecurity: {tls: {sni: 'a b'}}",
            "transportSecurity.tls.sni: \"a b\": expected a DNS name",
        ),
        ("name: ratings", "name: Ratings", "workloadGroup.name: \"Ratings\": expected the name of a Kubernetes object"),
        (", name: ratings", "", "workloadGroup.name: missing"),
        ("workloadGroup: {namespace: bookinfo, name: ratings}\n", "", "workloadGroup: missing"),
        ("workloadGroup:", "workload: {labels: {version: 5}}\nworkloadGroup:", "workload.labels.version: 5: expected a string"),
        (
            "workloadGroup:",
            "workload: {labels: {a b: c}}\nworkloadGroup:",
            "workload.labels: \"a b\": expected the key of a Kubernetes label",
        ),
        ("workloadGroup:", "workload: {labels: {a: 'b c'}}\nworkloadGroup:", "workload.labels: a: \"b c\": expected at most 63"),
        ("workloadGroup:", "settings: {connectedOver: WAN}\nworkloadGroup:", "settings.connectedOver: \"WAN\": expected one of"),
        ("workloadGroup:", "stabilization: {}\nworkloadGroup:", "stabilization: unknown field"),
    ] {
        let text = MINIMAL.replace(from, to);
        assert_ne!(text, MINIMAL, "{from}");
        let error = parse(&text).unwrap_err();
        assert!(error.starts_with("ONBOARDING_CONFIG:") && error.contains(expected), "{to:?}: {error}\nexpected {expected}");
        assert!(!error.contains('\n'), "{error}");
    }
    for bad in ["", "{", "# nothing", "[]", "text", "a: 1\n---\nb: 2"] {
        let error = parse(bad).unwrap_err();
        assert!(error.starts_with("ONBOARDING_CONFIG:"), "{bad:?}: {error}");
    }
}

const AGENT: &str = "apiVersion: config.agent.onboarding.tetrate.io/v1alpha1\nkind: AgentConfiguration\n";

fn parse_agent(text: &str) -> Result<AgentConfiguration, String> {
    AgentConfiguration::parse("AGENT_CONFIG", &format!("{AGENT}{text}")).map_err(|error| error.to_string())
}

#[test]
fn an_agent_configuration_that_says_nothing_is_the_default() {
    let spelled_out =
        "host: {auto: {}}\nsidecar: {istio: {}, stdout: {filename: /dev/stdout}, stderr: {filename: /dev/stderr}}\n";
    for text in ["", "host:\nsidecar:\nsettings:\n", spelled_out] {
        assert_eq!(parse_agent(text).unwrap(), AgentConfiguration::default(), "{text}");
    }
    let default = AgentConfiguration::default();
    assert_eq!((default.first_retry.as_secs(), default.retry_cap.as_secs(), default.plugin_timeout.as_secs()), (1, 15, 30));
    assert_eq!(parse_agent("sidecar: {istio: {revision: canary}}").unwrap().revision, "canary");
}

#[test]
fn an_agent_configuration_names_plugins_interfaces_and_intervals() {
    let configuration = parse_agent(
        "host:
  custom:
    credential:
    - plugin: {name: jwt, path: /opt/jwt, env: [{name: A, value: b}], args: [--once]}
    hostinfo: {basic: {networkInterfaces: {include: ['^eth'], exclude: [docker]}}}
settings: {connection: {timeout: 5s, retryPolicy: {exponentialBackoff: {initialInterval: 100ms, maxInterval: 1.5s}}}}
",
    )
    .unwrap();
    let Platform::Custom { credentials, host: HostInfo::Basic(interfaces) } = configuration.platform else { panic!("custom") };
    assert_eq!((credentials.len(), credentials[0].name.as_str(), credentials[0].path.as_str()), (1, "jwt", "/opt/jwt"));
    assert_eq!((interfaces.include[0].as_str(), interfaces.exclude[0].as_str()), ("^eth", "docker"));
    let intervals = (configuration.plugin_timeout, configuration.first_retry, configuration.retry_cap);
    assert_eq!(intervals, (Duration::from_secs(5), Duration::from_millis(100), Duration::from_millis(1500)));
    let plugin = "host: {custom: {credential: [{plugin: {name: jwt}}], hostinfo: {plugin: {name: host}}}}";
    assert!(matches!(parse_agent(plugin).unwrap().platform, Platform::Custom { host: HostInfo::Plugin(_), .. }));
    assert_eq!(parse_agent("host: {aws: {ec2: {}}}").unwrap().platform, Platform::Ec2);
    assert_eq!(parse_agent("host: {aws: {ecs: {}}}").unwrap().platform, Platform::Ecs);
}

#[test]
fn faults_of_an_agent_configuration_are_told() {
    for (text, expected) in [
        ("hosts: {}", "AGENT_CONFIG:3: hosts: unknown field"),
        ("host: {auto: {}, aws: {ec2: {}}}", "host: expected one of auto, custom, aws, not several"),
        ("host: {aws: {}}", "host: aws: expected exactly one of ec2, ecs"),
        ("host: {custom: {}}", "host.custom.credential: missing"),
        ("host: {custom: {credential: []}}", "host: custom.credential: expected at least one"),
        ("host: {custom: {credential: [{plugin: {name: ''}}]}}", "host.custom.credential[0].plugin.name: \"\": expected a name"),
        ("host: {custom: {credential: [{plugin: {}}]}}", "host.custom.credential[0].plugin.name: missing"),
        (
            "host: {custom: {credential: [{plugin: {name: a}}], hostinfo: {basic: {networkInterfaces: {include: ['(']}}}}}",
            "networkInterfaces.include[0]: \"(\": expected a regular expression",
        ),
        ("sidecar: {istio: {revision: Canary}}", "sidecar.istio.revision: \"Canary\": expected at most 56"),
        (
            "sidecar: {stdout: {filename: /var/log/a}}",
            "sidecar.stdout.filename: \"/var/log/a\": skiff writes to /dev/stdout only",
        ),
        ("settings: {connection: {timeout: 0s}}", "settings.connection.timeout: 0ns: expected at least 1ms"),
        ("settings: {connection: {timeout: 3}}", "settings.connection.timeout: 3: expected"),
        (
            "settings: {connection: {retryPolicy: {exponentialBackoff: {initialInterval: 2s, maxInterval: 1s}}}}",
            "initialInterval 2s is longer than maxInterval 1s",
        ),
    ] {
        let error = parse_agent(text).unwrap_err();
        assert!(error.starts_with("AGENT_CONFIG:") && error.contains(expected), "{text}: {error}\nexpected {expected}");
    }
}

fn root() -> String {
    rcgen::generate_simple_self_signed(["ca.example".to_owned()]).unwrap().cert.pem()
}

#[test]
fn root_certificates_are_read_in_all_three_spellings() {
    let bundle = root() + &root();
    let expected = parse_root_certificates("ONBOARDING_AGENT_ROOT_CERTS", &bundle).unwrap();
    let unix = bundle.replace("\r\n", "\n");
    for (spelling, text) in [
        ("line breaks", unix.clone()),
        ("CRLF", unix.replace('\n', "\r\n")),
        ("escaped", unix.replace('\n', "\\n")),
        ("escaped CRLF", unix.replace('\n', "\\r\\n")),
        ("folded by a console", unix.replace('\n', " ")),
        ("with remarks", format!("subject=CN = a\n{unix}")),
    ] {
        assert_eq!(parse_root_certificates("ONBOARDING_AGENT_ROOT_CERTS", &text).unwrap(), expected, "{spelling}");
    }
}

#[test]
fn what_is_no_root_certificate_is_refused_without_being_repeated() {
    let pem = root();
    let key = rcgen::KeyPair::generate().unwrap().serialize_pem();
    for (text, expected) in [
        (String::new(), "holds no certificate"),
        ("MIIC".to_owned(), "holds no certificate"),
        (key.clone(), "holds a PRIVATE KEY: expected certificates only"),
        (format!("{pem}{key}"), "holds a PRIVATE KEY"),
        (pem.replace("-----END", "-----"), "certificate 1 has no end"),
        (pem.replace("MII", "!!!"), "certificate 1 is no base64"),
        (format!("{pem}-----BEGIN CERTIFICATE-----\nMIIC\n-----END CERTIFICATE-----\n"), "certificate 2: "),
    ] {
        let error = parse_root_certificates("ONBOARDING_AGENT_ROOT_CERTS", &text).unwrap_err().to_string();
        assert!(error.starts_with("ONBOARDING_AGENT_ROOT_CERTS: ") && error.contains(expected), "{error}");
        let secret = key.lines().nth(1).unwrap();
        assert!(!error.contains(secret) && !error.contains('\n'), "{error}");
    }
}

#[test]
fn variables_go_before_files_and_nothing_is_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let read = |variables: &[(&str, &'static str)]| {
        Settings::read(|name| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| *value), folder.path())
    };
    assert_eq!(read(&[("AGENT_CONFIG", "{")]).unwrap(), None, "nothing says that it is to be onboarded");
    let settings = read(&[("ONBOARDING_CONFIG", MINIMAL)]).unwrap().unwrap();
    assert_eq!((settings.agent, settings.roots), (AgentConfiguration::default(), None));
    let error = read(&[("ONBOARDING_CONFIG", MINIMAL), ("ONBOARDING_AGENT_ROOT_CERTS", "x")]).unwrap_err().to_string();
    assert!(error.starts_with("ONBOARDING_AGENT_ROOT_CERTS: "), "{error}");

    fs::write(folder.path().join("onboarding.config.yaml"), MINIMAL.replace("ratings", "reviews")).unwrap();
    fs::write(folder.path().join("agent.config.yaml"), format!("{AGENT}sidecar: {{istio: {{revision: canary}}}}")).unwrap();
    let settings = read(&[]).unwrap().unwrap();
    assert_eq!((settings.onboarding.workload_group.name.as_str(), settings.agent.revision.as_str()), ("reviews", "canary"));
    let settings = read(&[("ONBOARDING_CONFIG", MINIMAL)]).unwrap().unwrap();
    assert_eq!(settings.onboarding.workload_group.name, "ratings");
    fs::write(folder.path().join("agent.config.yaml"), "{").unwrap();
    let error = read(&[]).unwrap_err().to_string();
    assert!(error.contains("agent.config.yaml:1: "), "{error}");
}
