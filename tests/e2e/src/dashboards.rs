//! Queries of Grafana dashboards.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::Error;

/// One query of a panel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    /// The dashboard's file.
    pub file: PathBuf,
    /// The panel's title.
    pub panel: String,
    /// The query, with Grafana's variables replaced by what matches everything.
    pub expression: String,
    /// Whether the panel's description says that it may be empty (`May be empty`), as one of errors is on a good day.
    pub may_be_empty: bool,
}

/// The queries of all panels in the JSON files of `folder`.
///
/// # Errors
/// [`Error::File`] when a file cannot be read, [`Error::Failed`] when one is not JSON.
pub fn queries(folder: &Path) -> Result<Vec<Query>, Error> {
    let mut files: Vec<PathBuf> = fs::read_dir(folder)
        .map_err(Error::file("listing", folder))?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()
        .map_err(Error::file("listing", folder))?;
    files.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
    files.sort();
    let mut queries = Vec::new();
    for file in files {
        let bytes = fs::read(&file).map_err(Error::file("reading", &file))?;
        let dashboard: Value = serde_json::from_slice(&bytes).map_err(|error| Error::Failed {
            program: file.display().to_string(),
            message: error.to_string(),
        })?;
        collect(&dashboard, &file, &mut queries);
    }
    Ok(queries)
}

/// The names of our metrics in a query.
#[must_use]
pub fn metric_names(expression: &str) -> BTreeSet<String> {
    expression
        .split(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != ':')
        .filter(|word| word.starts_with("basalt_"))
        .map(str::to_owned)
        .collect()
}

/// Panels are objects with `targets`; rows hold panels of their own.
fn collect(value: &Value, file: &Path, queries: &mut Vec<Query>) {
    match value {
        Value::Object(object) => {
            for target in object.get("targets").and_then(Value::as_array).into_iter().flatten() {
                let Some(expression) = target["expr"].as_str() else { continue };
                let text = |key: &str| value[key].as_str().unwrap_or_default().to_owned();
                queries.push(Query {
                    file: file.to_owned(),
                    panel: text("title"),
                    expression: without_variables(expression),
                    may_be_empty: text("description").contains("May be empty"),
                });
            }
            object.values().for_each(|inner| collect(inner, file, queries));
        }
        Value::Array(list) => list.iter().for_each(|inner| collect(inner, file, queries)),
        _ => {}
    }
}

/// Intervals become half a minute, any other variable a pattern that matches everything.
fn without_variables(expression: &str) -> String {
    let mut text = String::new();
    let mut rest = expression;
    while let Some((before, after)) = rest.split_once('$') {
        text.push_str(before);
        let braced = after.starts_with('{');
        let after = after.strip_prefix('{').unwrap_or(after);
        let end = after
            .find(|c: char| if braced { c == '}' } else { !c.is_ascii_alphanumeric() && c != '_' })
            .unwrap_or(after.len());
        let (name, after) = after.split_at(end);
        text.push_str(if name.starts_with("__") { "30s" } else { ".*" });
        rest = if braced { after.strip_prefix('}').unwrap_or(after) } else { after };
    }
    text.push_str(rest);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_replaced() {
        for (before, after) in [
            ("rate(a[$__rate_interval])", "rate(a[30s])"),
            ("a{volume=~\"$volume\",node=~\"${node:regex}\"}", "a{volume=~\".*\",node=~\".*\"}"),
            ("plain", "plain"),
        ] {
            assert_eq!(without_variables(before), after);
        }
    }

    #[test]
    fn queries_are_found_in_panels_and_rows() {
        let dir = tempfile::tempdir().unwrap();
        let text = r#"{"panels": [
            {"title": "One", "targets": [{"expr": "basalt_a"}]},
            {"type": "row", "panels": [{"title": "Two", "description": "May be empty.", "targets": [{"expr": "basalt_b"}]}]}
        ]}"#;
        fs::write(dir.path().join("d.json"), text).unwrap();
        let found: Vec<_> = queries(dir.path())
            .unwrap()
            .into_iter()
            .map(|query| (query.panel, query.expression, query.may_be_empty))
            .collect();
        let query = |panel: &str, expression: &str, empty| (panel.to_owned(), expression.to_owned(), empty);
        assert_eq!(found, [query("One", "basalt_a", false), query("Two", "basalt_b", true)]);
    }

    #[test]
    fn names_of_metrics_are_found() {
        let names = metric_names("sum by (le) (rate(basalt_io_seconds_bucket{x=\"y\"}[5m])) / basalt_nodes");
        assert_eq!(names.into_iter().collect::<Vec<_>>(), ["basalt_io_seconds_bucket", "basalt_nodes"]);
    }
}
