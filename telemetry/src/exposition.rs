//! Gauges in the Prometheus text format, version 0.0.4.

/// Text of gauges that were computed for one scrape.
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

impl Exposition {
    /// Begins a gauge; its samples follow. One name is begun once.
    pub fn family(&mut self, name: &'static str, help: &'static str) -> Family<'_> {
        debug_assert!(!self.text.contains(&format!("# TYPE {name} ")), "{name} is begun twice");
        self.text.push_str("# HELP ");
        self.text.push_str(name);
        self.text.push(' ');
        self.text.push_str(help);
        self.text.push_str("\n# TYPE ");
        self.text.push_str(name);
        self.text.push_str(" gauge\n");
        Family { text: &mut self.text, name }
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl Family<'_> {
    /// Adds a sample.
    pub fn sample(&mut self, labels: &[(&str, &str)], value: f64) -> &mut Self {
        self.text.push_str(self.name);
        for (index, (name, value)) in labels.iter().enumerate() {
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
        if !labels.is_empty() {
            self.text.push('}');
        }
        self.text.push(' ');
        self.text.push_str(&value.to_string());
        self.text.push('\n');
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
        exposition.family("b", "A b").sample(&[], f64::from(u32::MAX));
        let expected = "# HELP a An a\n# TYPE a gauge\na 1.5\na{x=\"1\\n\\\\\\\"\",y=\"2\"} 0\n\
                        # HELP b A b\n# TYPE b gauge\nb 4294967295\n";
        assert_eq!(exposition.as_str(), expected);
    }
}
