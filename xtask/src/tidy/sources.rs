//! Source files: length, names, unsafe code, tests that are left out, notes to oneself.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::Finding;
use crate::workspace;

/// Lines of a file without its tests.
const LINES_MAX: usize = 600;
/// Names under which anything can be hidden.
const VAGUE_NAMES: &[&str] = &["common", "helper", "helpers", "manager", "misc", "util", "utils"];
/// The only folders that may hold unsafe code.
const UNSAFE_FOLDERS: &[&str] = &[
    "dataplane/device-nvme/",
    "dataplane/device-uring/",
    "dataplane/dma/",
    "dataplane/nvmf-rdma/",
    "dataplane/reactor/",
    "dataplane/tls/",
    "dataplane/vhost/",
];

pub(super) fn check() -> Result<Vec<Finding>> {
    let mut files = Vec::new();
    collect(workspace::root(), &mut files)?;
    files.sort();
    let mut findings = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let path = file.strip_prefix(workspace::root()).unwrap_or(&file);
        findings.extend(judge(path, &text));
    }
    Ok(findings)
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?;
    for entry in entries {
        let path = entry?.path();
        if path.is_symlink() {
            continue;
        }
        if path.is_dir() {
            if !workspace::is_untracked(&path) {
                collect(&path, files)?;
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    Ok(())
}

fn judge(path: &Path, text: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut report = |line: Option<usize>, message: String| {
        findings.push(Finding { path: path.to_owned(), line, message });
    };
    for part in path.iter().filter_map(|part| part.to_str()) {
        let stem = part.strip_suffix(".rs").unwrap_or(part);
        if VAGUE_NAMES.contains(&stem) {
            report(None, format!("`{stem}` says nothing: name the module after what it holds"));
        }
    }
    let length = product_lines(path, text);
    if length >= LINES_MAX {
        report(None, format!("{length} lines without tests; split it (limit {LINES_MAX})"));
    }
    let may_be_unsafe =
        path.to_str().is_some_and(|path| UNSAFE_FOLDERS.iter().any(|folder| path.starts_with(folder)));
    for (index, line) in text.lines().enumerate() {
        let line_number = Some(index + 1);
        let code = without_comment(line);
        if !may_be_unsafe && opens_unsafe(code) {
            report(line_number, "unsafe code outside of the crates that may hold it".to_owned());
        }
        if code.trim() == concat!("#[", "ignore]") {
            report(line_number, "a test that is left out says why".to_owned());
        }
        if let Some(note) = ["TODO", "FIXME"].into_iter().find(|note| notes_to_oneself(line, note)) {
            report(line_number, format!("{note}: do it, or write an issue"));
        }
    }
    findings
}

/// Lines before the test module; files of tests have none of their own.
fn product_lines(path: &Path, text: &str) -> usize {
    let is_test_file = path.iter().any(|part| part == "tests" || part == "benches")
        && !path.iter().any(|part| part == "src");
    if is_test_file || path.file_name().is_some_and(|name| name == "tests.rs") {
        return 0;
    }
    let lines: Vec<&str> = text.lines().collect();
    lines
        .windows(2)
        .position(|pair| pair[0].starts_with("#[cfg(test)]") && pair[1].starts_with("mod tests {"))
        .unwrap_or(lines.len())
}

fn without_comment(line: &str) -> &str {
    line.split_once("//").map_or(line, |(code, _)| code)
}

fn opens_unsafe(code: &str) -> bool {
    let opens = [" {", " fn", " impl", " extern", " trait"];
    let attribute = concat!("unsafe", "_code");
    opens.iter().any(|rest| code.contains(&format!("{}{rest}", concat!("un", "safe"))))
        || (code.contains(attribute) && (code.contains("allow(") || code.contains("expect(")))
}

fn notes_to_oneself(line: &str, note: &str) -> bool {
    line.split_once("//").is_some_and(|(_, comment)| {
        comment.contains(&format!("{note} ")) || comment.contains(&format!("{note}:"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(path: &str, text: &str) -> Vec<String> {
        judge(Path::new(path), text).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_good_file_has_no_findings() {
        assert_eq!(messages("cli/src/main.rs", "//! Doc.\nfn main() {}\n"), Vec::<String>::new());
    }

    #[test]
    fn long_files_are_found_and_tests_do_not_count() {
        let long = "x\n".repeat(LINES_MAX);
        assert_eq!(messages("a/src/b.rs", &long).len(), 1);
        let tested = format!("{}#[cfg(test)]\nmod tests {{\n{long}}}\n", "x\n".repeat(LINES_MAX - 1));
        assert_eq!(messages("a/src/b.rs", &tested), Vec::<String>::new());
        assert_eq!(messages("a/tests/b.rs", &long), Vec::<String>::new());
    }

    #[test]
    fn unsafe_code_is_found_outside_of_its_crates() {
        let text = concat!("let x = un", "safe { y() };\n");
        assert_eq!(
            messages("cli/src/a.rs", text),
            ["cli/src/a.rs:1: unsafe code outside of the crates that may hold it"]
        );
        assert_eq!(messages("dataplane/reactor/src/a.rs", text), Vec::<String>::new());
        assert_eq!(messages("cli/src/a.rs", &format!("// {text}")), Vec::<String>::new());
    }

    #[test]
    fn vague_names_ignored_tests_and_notes_are_found() {
        assert_eq!(messages("a/src/utils.rs", "").len(), 1);
        assert_eq!(messages("a/src/helpers/x.rs", "").len(), 1);
        assert_eq!(messages("a/src/x.rs", concat!("#[", "ignore]\n")).len(), 1);
        assert_eq!(messages("a/src/x.rs", "#[ignore = \"needs a cluster\"]\n"), Vec::<String>::new());
        assert_eq!(messages("a/src/x.rs", concat!("// TO", "DO: this\n")).len(), 1);
    }
}
