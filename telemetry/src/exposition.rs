//! Metrics in the Prometheus text format, version 0.0.4.

/// Text of metrics that were computed for one scrape.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Exposition {
    text: String,
}

/// All samples of one metric.
#[derive(Debug)]
pub struct Family<'a> {
    text: &'a mut String,
    name: &'static str,
}

/// All samples of one histogram.
#[derive(Debug)]
pub struct HistogramFamily<'a>(Family<'a>);

impl Exposition {
    /// Begins a gauge; its samples follow. One name is begun once.
    pub fn family(&mut self, name: &'static str, help: &'static str) -> Family<'_> {
        self.begin(name, help, "gauge")
    }

    /// Begins a counter; its samples follow. One name is begun once.
    pub fn counter(&mut self, name: &'static str, help: &'static str) -> Family<'_> {
        self.begin(name, help, "counter")
    }

    /// Begins a histogram; its samples follow. One name is begun once.
    pub fn histogram(&mut self, name: &'static str, help: &'static str) -> HistogramFamily<'_> {
        HistogramFamily(self.begin(name, help, "histogram"))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    fn begin(&mut self, name: &'static str, help: &str, kind: &str) -> Family<'_> {
        debug_assert!(!self.text.contains(&format!("# TYPE {name} ")), "{name} is begun twice");
        for part in ["# HELP ", name, " ", help, "\n# TYPE ", name, " ", kind, "\n"] {
            self.text.push_str(part);
        }
        Family { text: &mut self.text, name }
    }
}

impl Family<'_> {
    /// Adds a sample.
    pub fn sample(&mut self, labels: &[(&str, &str)], value: f64) -> &mut Self {
        self.line("", labels, None, value);
        self
    }

    fn line(&mut self, suffix: &str, labels: &[(&str, &str)], bound: Option<&str>, value: f64) {
        self.text.push_str(self.name);
        self.text.push_str(suffix);
        let bound = bound.map(|bound| ("le", bound));
        for (index, (name, value)) in labels.iter().copied().chain(bound).enumerate() {
            self.text.push(if index == 0 { '{' } else { ',' });
            self.text.push_str(name);
            self.text.push_str("=\"");
            for character in value.chars() {
                match character {
                    '\\' => self.text.push_str("\\\\"),
                    '"' => self.text.push_str("\\\""),
                    '\n' => self.text.push_str("\\n"),
                    other => self.text.push(other),
                }
            }
            self.text.push('"');
        }
        if !labels.is_empty() || bound.is_some() {
            self.text.push('}');
        }
        self.text.push(' ');
        self.text.push_str(&value.to_string());
        self.text.push('\n');
    }
}

impl HistogramFamily<'_> {
    /// Adds a sample: how many values did not exceed each bound, the bounds growing, then how many there are and their sum.
    pub fn sample(
        &mut self,
        labels: &[(&str, &str)],
        buckets: impl IntoIterator<Item = (f64, f64)>,
        count: f64,
        sum: f64,
    ) -> &mut Self {
        for (bound, below) in buckets {
            self.0.line("_bucket", labels, Some(&bound.to_string()), below);
        }
        self.0.line("_bucket", labels, Some("+Inf"), count);
        self.0.line("_sum", labels, None, sum);
        self.0.line("_count", labels, None, count);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_escaped_and_lines_are_whole() {
        let mut exposition = Exposition::default();
        exposition.family("a", "An a").sample(&[], 1.5).sample(&[("x", "1\n\\\""), ("y", "2")], 0.0);
        exposition.counter("b", "A b").sample(&[], f64::from(u32::MAX));
        let expected = "# HELP a An a\n# TYPE a gauge\na 1.5\na{x=\"1\\n\\\\\\\"\",y=\"2\"} 0\n\
                        # HELP b A b\n# TYPE b counter\nb 4294967295\n";
        assert_eq!(exposition.as_str(), expected);
    }

    #[test]
    fn a_histogram_ends_with_all_its_count_and_its_sum() {
        let mut exposition = Exposition::default();
        let buckets = [(0.000_008_192, 1.0), (2.0, 3.0)];
        exposition.histogram("a", "An a").sample(&[("x", "y")], buckets, 4.0, 5.5).sample(&[], [], 0.0, 0.0);
        let expected = "# HELP a An a\n# TYPE a histogram\n\
                        a_bucket{x=\"y\",le=\"0.000008192\"} 1\na_bucket{x=\"y\",le=\"2\"} 3\n\
                        a_bucket{x=\"y\",le=\"+Inf\"} 4\na_sum{x=\"y\"} 5.5\na_count{x=\"y\"} 4\n\
                        a_bucket{le=\"+Inf\"} 0\na_sum 0\na_count 0\n";
        assert_eq!(exposition.as_str(), expected);
    }
}
