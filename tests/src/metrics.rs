//! Prometheus' text format, as far as counters and gauges go.

use std::collections::BTreeMap;

/// One scrape.
#[derive(Debug)]
pub struct Metrics(Vec<Sample>);

/// One series.
#[derive(Debug)]
pub struct Sample {
    /// Metric name.
    pub name: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Value.
    pub value: f64,
}

impl Metrics {
    /// Parses a scrape.
    ///
    /// # Panics
    /// On a line that is none of the format.
    pub fn parse(text: &str) -> Self {
        Self(text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).map(sample).collect())
    }

    /// The sum of all series of this name that have these labels; zero when there is none.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.series(name, labels).map(|sample| sample.value).sum()
    }

    /// The only series of this name with these labels.
    ///
    /// # Panics
    /// With what there is, when there is not exactly one.
    pub fn only(&self, name: &str, labels: &[(&str, &str)]) -> &Sample {
        let mut found = self.series(name, labels);
        match (found.next(), found.next()) {
            (Some(sample), None) => sample,
            _ => panic!("expected one {name} with {labels:?} among {:#?}", self.series(name, &[]).collect::<Vec<_>>()),
        }
    }

    fn series(&self, name: &str, labels: &[(&str, &str)]) -> impl Iterator<Item = &Sample> {
        let has = |sample: &Sample| labels.iter().all(|&(key, value)| sample.labels.get(key).is_some_and(|have| have == value));
        self.0.iter().filter(move |sample| sample.name == name && has(sample))
    }
}

fn sample(line: &str) -> Sample {
    let (series, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("no sample: {line}"));
    let (name, labels) = series.split_once('{').unwrap_or((series, ""));
    // No label value of a test holds the separator.
    let labels = labels.trim_end_matches('}').split("\",").filter_map(|pair| pair.split_once("=\""));
    let labels = labels.map(|(key, value)| (key.to_owned(), value.trim_end_matches('"').to_owned())).collect();
    Sample { name: name.to_owned(), labels, value: value.parse().unwrap_or_else(|_| panic!("no value: {line}")) }
}
