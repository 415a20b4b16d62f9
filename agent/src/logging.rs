//! Diagnostic logs: to stderr, as text or JSON, with a level that can be changed while it runs.
//!
//! Access logs are not diagnostics: they go to stdout by the data plane's own writer.

use std::fmt;
use std::str::FromStr;

use tracing::Subscriber;
use tracing_subscriber::filter::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, reload};

/// Modules that may have a level of their own: more is a mistake of whoever calls the admin page in a loop.
const MAX_DIRECTIVES: usize = 64;

/// How a log line looks (`SKIFF_LOG_FORMAT`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Why a level or filter is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("log filter {filter:?}: {reason}")]
pub struct FilterError {
    filter: String,
    reason: String,
}

/// Changes the level of a running process (`/logging` of the admin page). Cheap to clone.
#[derive(Clone)]
pub struct LogControl(reload::Handle<EnvFilter, Registry>);

impl fmt::Debug for LogControl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LogControl").field(&self.current()).finish()
    }
}

impl LogControl {
    /// The filter in force, in env-filter syntax: `info,skiff_proxy::tls=debug`.
    pub fn current(&self) -> String {
        self.0.with_current(ToString::to_string).unwrap_or_default()
    }

    /// One level for everything: `trace`, `debug`, `info`, `warn`, `error`, `off`, and Envoy's `warning` and `critical`.
    ///
    /// # Errors
    /// When the word is not a level.
    pub fn set_level(&self, level: &str) -> Result<(), FilterError> {
        self.replace(level_name(level)?)
    }

    /// Levels of single modules in Envoy's form, `skiff_proxy::tls:debug,skiff_agent:warning`; the others keep theirs.
    ///
    /// # Errors
    /// When a pair is malformed, a word is not a level, or there are more than 64 modules; nothing is changed then.
    pub fn set_paths(&self, paths: &str) -> Result<(), FilterError> {
        let mut filter = self.current();
        for path in paths.split(',') {
            let (target, level) = path.rsplit_once(':').ok_or_else(|| refuse(path, "expected <module>:<level>"))?;
            if target.is_empty() || !target.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b':')) {
                return Err(refuse(path, "expected a module path such as skiff_proxy::tls"));
            }
            filter = format!("{filter},{target}={}", level_name(level)?);
        }
        self.replace(&filter)
    }

    fn replace(&self, filter: &str) -> Result<(), FilterError> {
        let parsed = parse(filter)?;
        if parsed.to_string().split(',').count() > MAX_DIRECTIVES {
            return Err(refuse(filter, "more than 64 modules have a level of their own"));
        }
        self.0.reload(parsed).map_err(|error| refuse(filter, &error.to_string()))
    }
}

/// Installs the log of the process. `filter` is `SKIFF_LOG`, in env-filter syntax.
///
/// # Errors
/// When the filter cannot be parsed, or a log is installed already.
pub fn init(filter: &str, format: Format) -> Result<LogControl, FilterError> {
    let (subscriber, control) = subscriber(filter, format, std::io::stderr)?;
    subscriber.try_init().map_err(|error| refuse(filter, &error.to_string()))?;
    Ok(control)
}

fn subscriber<W>(filter: &str, format: Format, writer: W) -> Result<(impl Subscriber + Send + Sync, LogControl), FilterError>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let (filter, handle) = reload::Layer::new(parse(filter)?);
    let lines = tracing_subscriber::fmt::layer().with_writer(writer).with_ansi(false);
    let lines = match format {
        Format::Text => lines.boxed(),
        Format::Json => lines.json().flatten_event(true).boxed(),
    };
    Ok((Registry::default().with(filter).with(lines), LogControl(handle)))
}

fn parse(filter: &str) -> Result<EnvFilter, FilterError> {
    EnvFilter::from_str(filter).map_err(|error| refuse(filter, &error.to_string()))
}

fn level_name(word: &str) -> Result<&'static str, FilterError> {
    Ok(match word {
        "trace" => "trace",
        "debug" => "debug",
        "info" => "info",
        "warn" | "warning" => "warn",
        "error" | "critical" => "error",
        "off" => "off",
        _ => return Err(refuse(word, "expected trace, debug, info, warn, error or off")),
    })
}

fn refuse(filter: &str, reason: &str) -> FilterError {
    FilterError { filter: filter.to_owned(), reason: reason.to_owned() }
}

/// A control that belongs to no installed log, for tests of what uses one.
#[cfg(test)]
pub(crate) fn detached() -> (impl Subscriber + Send + Sync, LogControl) {
    subscriber("info", Format::Text, std::io::sink).expect("a valid filter")
}

#[cfg(test)]
mod tests {
    use std::io::{self, Write};
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Lines {
        fn take(&self) -> String {
            String::from_utf8(std::mem::take(&mut *self.0.lock().unwrap())).unwrap()
        }
    }

    #[test]
    fn levels_change_while_it_runs() {
        let lines = Lines::default();
        let writer = lines.clone();
        let (subscriber, control) = subscriber("info", Format::Text, move || writer.clone()).unwrap();
        tracing::subscriber::with_default(subscriber, || {
            tracing::debug!("hidden");
            assert_eq!(lines.take(), "");
            control.set_paths("skiff_agent::logging:debug,other:warning").unwrap();
            tracing::debug!("shown");
            assert!(lines.take().contains("shown"));
            assert!(control.current().contains("other=warn"), "{}", control.current());
            control.set_level("critical").unwrap();
            tracing::warn!("hidden");
            assert_eq!(lines.take(), "");
            assert_eq!(control.current(), "error");
        });
    }

    #[test]
    fn a_bad_word_changes_nothing() {
        let (_subscriber, control) = subscriber("info", Format::Text, io::sink).unwrap();
        for bad in ["loud", "", "info,debug"] {
            assert!(control.set_level(bad).is_err(), "{bad:?}");
        }
        for bad in ["skiff_proxy", "skiff_proxy:loud", ":debug", "a=trace:debug", "a:debug,b"] {
            assert!(control.set_paths(bad).is_err(), "{bad:?}");
        }
        assert_eq!(control.current(), "info");
    }

    #[test]
    fn modules_with_a_level_of_their_own_are_bounded() {
        let (_subscriber, control) = subscriber("info", Format::Text, io::sink).unwrap();
        for module in 0..MAX_DIRECTIVES - 1 {
            control.set_paths(&format!("module{module}:debug")).unwrap();
        }
        assert!(control.set_paths("one_more:debug").is_err());
        control.set_paths("module1:trace").unwrap();
    }

    #[test]
    fn json_lines_are_json() {
        let lines = Lines::default();
        let writer = lines.clone();
        let (subscriber, _control) = subscriber("info", Format::Json, move || writer.clone()).unwrap();
        tracing::subscriber::with_default(subscriber, || tracing::info!(port = 9080, "bound"));
        let line: serde_json::Value = serde_json::from_str(&lines.take()).unwrap();
        assert_eq!((&line["message"], &line["port"]), (&"bound".into(), &9080.into()));
    }
}
