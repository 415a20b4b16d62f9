//! Which of the formats that a scraper takes are passed on to the application.

/// Prometheus' text format, which everybody speaks.
const TEXT: &str = "text/plain;version=0.0.4";
const OPEN_METRICS: &str = "application/openmetrics-text";

/// The `accept` header for the application: of what the scraper takes only that which can be put behind our text. A wildcard
/// stands for the plainest format of its kind, as in istio-agent. OpenMetrics ends the whole answer, so that only one may speak it.
pub(super) fn for_application(accept: Option<&str>, open_metrics: bool) -> String {
    let mut types: Vec<String> = Vec::new();
    for offer in accept.unwrap_or_default().split(',') {
        let mut parts = offer.split(';').map(str::trim);
        let kind = parts.next().unwrap_or_default().to_ascii_lowercase();
        let parameters = parts.filter(|part| !part.is_empty() && !part.to_ascii_lowercase().starts_with("q="));
        let taken = match kind.as_str() {
            "*/*" | "*" => TEXT.to_owned(),
            "application/*" if open_metrics => format!("{OPEN_METRICS};version=0.0.1"),
            "text/*" | "text/plain" => parameters.fold(kind, |all, part| format!("{all};{part}")),
            OPEN_METRICS if open_metrics => parameters.fold(kind, |all, part| format!("{all};{part}")),
            _ => continue,
        };
        if !types.contains(&taken) {
            types.push(taken);
        }
    }
    if types.is_empty() {
        return TEXT.to_owned();
    }
    // In the scraper's order; nine are more than anybody offers.
    let ranked = types.into_iter().take(9).enumerate().map(|(index, kind)| format!("{kind};q=0.{}", 9 - index));
    ranked.collect::<Vec<_>>().join(",")
}

/// Whether an answer of this type is OpenMetrics; its version if so.
pub(super) fn open_metrics_version(content_type: &str) -> Option<&'static str> {
    let mut parts = content_type.split(';').map(str::trim);
    if !parts.next()?.eq_ignore_ascii_case(OPEN_METRICS) {
        return None;
    }
    let version = parts.find_map(|part| part.strip_prefix("version="));
    Some(if version.map(|version| version.trim_matches('"')) == Some("1.0.0") { "1.0.0" } else { "0.0.1" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_can_be_merged_is_asked_for() {
        let prometheus = "application/vnd.google.protobuf;proto=x;q=0.6,application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
        assert_eq!(
            for_application(Some(prometheus), true),
            "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.9,text/plain;version=0.0.4;q=0.8"
        );
        assert_eq!(for_application(Some(prometheus), false), "text/plain;version=0.0.4;q=0.9");
        for nothing in [None, Some(""), Some("image/png"), Some("application/vnd.google.protobuf")] {
            assert_eq!(for_application(nothing, true), TEXT);
        }
        assert_eq!(for_application(Some("application/*"), true), "application/openmetrics-text;version=0.0.1;q=0.9");
    }

    #[test]
    fn formats_are_told_apart() {
        assert_eq!(open_metrics_version("application/openmetrics-text; version=1.0.0; charset=utf-8"), Some("1.0.0"));
        assert_eq!(open_metrics_version("application/openmetrics-text"), Some("0.0.1"));
        assert_eq!(open_metrics_version("text/plain; version=0.0.4"), None);
        assert_eq!(open_metrics_version(""), None);
    }
}
