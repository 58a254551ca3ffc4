//! Tables for people, JSON for programs.
#![allow(clippy::print_stdout, reason = "this is what the program is for")]

use std::io::{ErrorKind, Write as _};

use comfy_table::{Table, presets};
use serde_json::Value;

/// How to show what is found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// For people
    #[default]
    Table,
    /// For programs
    Json,
}

/// A table as kubectl draws them.
pub(crate) fn table<const N: usize>(header: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header.map(str::to_uppercase));
    table
}

/// Prints a table, or says that there is nothing to put into it.
pub(crate) fn print_table(table: &Table, none: &str) {
    if table.is_empty() {
        print_line(none);
    } else {
        print_line(&table.trim_fmt());
    }
}

/// Prints a line. Ends the program quietly when nobody reads any more, as behind `| head`.
pub(crate) fn print_line(line: &str) {
    let written = writeln!(std::io::stdout(), "{line}");
    match written {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::BrokenPipe => std::process::exit(0),
        Err(error) => {
            eprintln!("kubectl-basalt: cannot write to standard output: {error}");
            std::process::exit(1);
        }
    }
}

/// Prints a document.
pub(crate) fn print_json(value: &Value) -> anyhow::Result<()> {
    print_line(&serde_json::to_string_pretty(value)?);
    Ok(())
}

/// A size in the largest unit that leaves at least 1.
pub(crate) fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut unit = 0;
    let mut whole = bytes;
    while whole >= 1024 * 1024 {
        whole /= 1024;
        unit += 1;
    }
    format!("{}.{} {}", whole / 1024, whole % 1024 * 10 / 1024, UNITS[unit])
}

/// A number of things that are named with one more letter when they are many.
pub(crate) fn counted(count: usize, one: &str) -> String {
    if count == 1 { format!("1 {one}") } else { format!("{count} {one}s") }
}

/// A size as people write it: `4096`, `4k`, `64KiB`, `1GiB`.
pub(crate) fn parse_bytes(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|character: char| character.is_ascii_alphabetic());
    let shift = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "ki" | "kib" => 10,
        "m" | "mi" | "mib" => 20,
        "g" | "gi" | "gib" => 30,
        "t" | "ti" | "tib" => 40,
        unit => return Err(format!("{unit:?} is not a unit; use KiB, MiB, GiB or TiB")),
    };
    let number = digits.parse::<u64>().map_err(|_| format!("{text:?} is not a size such as 64MiB"))?;
    number.checked_mul(1 << shift).ok_or_else(|| format!("{text} is too large"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_shown_in_their_largest_unit() {
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1024), "1.0 KiB");
        assert_eq!(bytes(1536 << 20), "1.5 GiB");
        assert_eq!(bytes(1 << 60), "1.0 EiB");
        assert_eq!(bytes(u64::MAX), "15.9 EiB");
    }

    #[test]
    fn one_thing_is_named_as_one() {
        assert_eq!(
            ["0 volumes", "1 volume", "2 volumes"],
            [0, 1, 2].map(|count| counted(count, "volume")).as_slice()
        );
    }

    #[test]
    fn sizes_are_read_as_people_write_them() {
        assert_eq!(parse_bytes("4096"), Ok(4096));
        assert_eq!(parse_bytes("4k"), Ok(4096));
        assert_eq!(parse_bytes("1GiB"), Ok(1 << 30));
        for wrong in ["", "k", "1.5G", "1x", "99999999999999999999", "99999999T"] {
            assert!(parse_bytes(wrong).is_err(), "{wrong}");
        }
    }
}
