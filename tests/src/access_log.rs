//! A line of Istio's default access log, field by field.

/// The fields in their order, [Istio's names](https://istio.io/latest/docs/tasks/observability/logs/access-log/) in short.
const FIELDS: [&str; 22] = [
    "start_time",
    "request",
    "response_code",
    "response_flags",
    "response_code_details",
    "connection_termination_details",
    "upstream_transport_failure_reason",
    "bytes_received",
    "bytes_sent",
    "duration",
    "upstream_service_time",
    "x_forwarded_for",
    "user_agent",
    "request_id",
    "authority",
    "upstream_host",
    "upstream_cluster",
    "upstream_local_address",
    "downstream_local_address",
    "downstream_remote_address",
    "requested_server_name",
    "route_name",
];

/// A parsed line.
#[derive(Debug)]
pub struct AccessLogLine(Vec<String>);

impl AccessLogLine {
    /// Takes a line apart.
    ///
    /// # Panics
    /// When it does not have Istio's number of fields.
    pub fn parse(line: &str) -> Self {
        let mut fields = Vec::new();
        let mut rest = line;
        while !rest.is_empty() {
            let (end, skip) = match rest.as_bytes()[0] {
                b'[' => (']', 1),
                b'"' => ('"', 1),
                _ => (' ', 0),
            };
            let field = &rest[skip..];
            let length = field.find(end).unwrap_or(field.len());
            fields.push(field[..length].to_owned());
            rest = field[length..].trim_start_matches(end).trim_start_matches(' ');
        }
        assert_eq!(fields.len(), FIELDS.len(), "fields of {line}");
        Self(fields)
    }

    /// The field with this name.
    ///
    /// # Panics
    /// When Istio has no such field.
    pub fn get(&self, name: &str) -> &str {
        let index = FIELDS.iter().position(|field| *field == name);
        &self.0[index.unwrap_or_else(|| panic!("no field {name}"))]
    }

    /// Asserts fields by name.
    ///
    /// # Panics
    /// With the whole line, when one differs.
    pub fn assert(&self, expected: &[(&str, &str)]) {
        for (name, value) in expected {
            assert_eq!(self.get(name), *value, "{name} of {:?}", self.0);
        }
    }
}
