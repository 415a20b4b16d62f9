//! Prometheus' text format and OpenMetrics, as far as one has to know them to put the one behind the other.
//!
//! A scraper throws a whole answer away when it cannot read one line. So what an application says is looked at line by line, and
//! left out altogether when one of them is none.

/// What an application said, without `# EOF` and ending with a new line, if every line of it is one.
///
/// # Errors
/// With the line that is not.
pub(super) fn checked(body: &[u8], open_metrics: bool) -> Result<&str, String> {
    let text = std::str::from_utf8(body).map_err(|error| format!("not UTF-8 at byte {}", error.valid_up_to()))?;
    let whole = text.trim_end_matches([' ', '\t', '\r', '\n']);
    let ended = whole.strip_suffix("# EOF").filter(|before| before.is_empty() || before.ends_with('\n'));
    if open_metrics && ended.is_none() {
        return Err("no # EOF at its end".to_owned());
    }
    if ended.is_none() && !text.is_empty() && !text.ends_with('\n') {
        return Err("its last line has no end".to_owned());
    }
    let text = ended.unwrap_or(text);
    for (index, line) in text.lines().enumerate() {
        let is_fine = match line.strip_prefix('#') {
            Some(comment) => comment.trim() != "EOF",
            None => line.trim().is_empty() && !open_metrics || is_sample(line.trim_end_matches('\r'), open_metrics),
        };
        if !is_fine {
            let start: String = line.chars().take(80).collect();
            return Err(format!("line {}: expected a sample, found {start:?}", index + 1));
        }
    }
    Ok(text)
}

/// Our own metrics, as they stand on a page with an application's: without empty lines, which OpenMetrics does not know, and the
/// process's under the names that istio-agent gives its own, since the application has those of Prometheus' clients too.
pub(super) fn ours(text: &str) -> String {
    let mut page = String::with_capacity(text.len() + 1024);
    for line in text.lines().filter(|line| !line.is_empty()) {
        let comment = ["# HELP ", "# TYPE "].into_iter().find(|prefix| line.starts_with(prefix)).unwrap_or_default();
        let rest = &line[comment.len()..];
        page.push_str(comment);
        if rest.starts_with("process_") {
            page.push_str("istio_agent_");
        }
        page.push_str(rest);
        page.push('\n');
    }
    page
}

/// `name{label="value",…} value [timestamp]`, in OpenMetrics with an exemplar behind ` # `.
fn is_sample(line: &str, open_metrics: bool) -> bool {
    let parsed = sample(line, open_metrics);
    parsed.is_some_and(|rest| rest.trim().is_empty())
}

fn sample(line: &str, open_metrics: bool) -> Option<&str> {
    let line = line.trim_start();
    let name = line.find(|char: char| !(char.is_ascii_alphanumeric() || matches!(char, '_' | ':'))).unwrap_or(line.len());
    let (name, rest) = line.split_at(name);
    // A name outside of ASCII stands in quotes among the labels.
    if name.starts_with(|char: char| char.is_ascii_digit()) || name.is_empty() && !rest.starts_with('{') {
        return None;
    }
    let rest = match rest.trim_start().strip_prefix('{') {
        Some(labels) => after_labels(labels)?,
        None => rest.strip_prefix([' ', '\t'])?,
    };
    let rest = numbers(rest)?;
    match rest.strip_prefix("# {") {
        Some(exemplar) if open_metrics => numbers(after_labels(exemplar)?),
        _ => Some(rest),
    }
}

/// What stands behind the closing brace.
fn after_labels(labels: &str) -> Option<&str> {
    let mut quoted = false;
    let mut chars = labels.char_indices();
    while let Some((at, char)) = chars.next() {
        match char {
            '\\' if quoted => _ = chars.next(),
            '"' => quoted = !quoted,
            '}' if !quoted => return labels.get(at + 1..),
            '=' | ',' | ' ' | '_' | '.' | ':' | '-' if !quoted => {}
            char if !quoted && !char.is_alphanumeric() => return None,
            _ => {}
        }
    }
    None
}

/// What stands behind a value and a timestamp, if there is one.
fn numbers(text: &str) -> Option<&str> {
    let text = text.trim_start();
    let (value, rest) = text.split_once([' ', '\t']).unwrap_or((text, ""));
    is_number(value).then_some(())?;
    let rest = rest.trim_start();
    let (time, behind) = rest.split_once([' ', '\t']).unwrap_or((rest, ""));
    Some(if is_number(time) { behind.trim_start() } else { rest })
}

/// Rust reads what Go does: `1e3`, `+Inf`, `NaN`.
fn is_number(text: &str) -> bool {
    text.parse::<f64>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_told_from_everything_else() {
        for good in [
            "up 1",
            "up{} 1",
            r#"http_requests_total{method="post",code="200"} 1027 1395066363000"#,
            r#"msdos_file_access_time_seconds{path="C:\\DIR\\FILE.TXT",error="Cannot find file:\n\"FILE.TXT\""} 1.458255915e9"#,
            "something_weird{problem=\"division by zero\"} +Inf -3982045",
            "a:b_c{x=\"}\",} NaN",
            r#"{"http.server.requests",code="200"} 3"#,
            "spaced   {a=\"b\"}   7  ",
        ] {
            assert!(is_sample(good, false), "{good}");
        }
        for bad in [
            "<html>",
            "up",
            "up one",
            "up 1 2 3",
            "1up 1",
            "up{a=\"b} 1",
            "up{a=\"b\"",
            r#"{"error": true}"#,
            "up{a=\"b\"} 1 # {x=\"y\"} 2",
            "  ",
            "up{<b>} 1",
        ] {
            assert!(!is_sample(bad, false), "{bad}");
        }
        let exemplar = r##"foo_bucket{le="10"} 17 # {trace_id="oHg5SJ#YRHA0"} 9.8 1520879607.789"##;
        assert!(is_sample(exemplar, true) && !is_sample(exemplar, false));
    }

    #[test]
    fn an_answer_is_taken_whole_or_not_at_all() {
        assert_eq!(checked(b"", false), Ok(""));
        assert_eq!(checked(b"# HELP a b\n\na 1\n", false), Ok("# HELP a b\n\na 1\n"));
        assert_eq!(checked(b"a 1\r\nb 2\r\n", false), Ok("a 1\r\nb 2\r\n"));
        assert_eq!(checked(b"a 1\n# EOF\n", false), Ok("a 1\n"), "a text that claims an end would end ours");
        assert_eq!(checked(b"a 1\n# EOF\r\n ", true), Ok("a 1\n"));
        assert_eq!(checked(b"# EOF", true), Ok(""));
        assert!(checked(b"a 1\n", true).unwrap_err().contains("# EOF"));
        assert!(checked(b"a 1\nb 2", false).unwrap_err().contains("no end"), "what breaks off may be a wrong number");
        assert!(checked(b"a 1\n# EOF\nb 2\n", false).unwrap_err().contains("line 2"));
        assert!(checked(b"a 1\n<html>\n", false).unwrap_err().contains("line 2: expected a sample, found \"<html>\""));
        assert!(checked(b"a 1\n\xff\n", false).unwrap_err().contains("byte 4"));
        assert!(checked(&[0; 64], false).is_err());
    }

    #[test]
    fn our_own_process_does_not_pass_for_the_applications() {
        let text = "# HELP process_threads Threads.\n# TYPE process_threads gauge\nprocess_threads 3\n\n# TYPE up gauge\nup 1\n";
        assert_eq!(
            ours(text),
            "# HELP istio_agent_process_threads Threads.\n# TYPE istio_agent_process_threads gauge\nistio_agent_process_threads 3\n# TYPE up gauge\nup 1\n"
        );
    }
}
