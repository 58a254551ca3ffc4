//! Sizes as users write them.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Sizes are multiples of this many bytes: the allocation unit of a pool.
const GRANULE: u64 = 1 << 20;

/// A size in bytes as a Kubernetes quantity with a binary suffix (`512Mi`, `10Gi`, `2Ti`, `1Pi`) or as a plain number.
///
/// Keeps what the user wrote; [`Size::bytes`] says what it means. Fractions (`1.5Gi`) and decimal suffixes (`10G`) are
/// refused: the first hides rounding, and the second is never a multiple of the allocation unit that the user expects.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Size {
    /// A plain number of bytes.
    Bytes(u64),
    /// A quantity.
    Text(String),
}

/// Why a [`Size`] means nothing.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SizeError {
    /// Not a whole number with a known suffix.
    #[error("{0:?} is not a size: write a whole number with Mi, Gi, Ti or Pi, for example 10Gi")]
    Malformed(String),
    /// More than 2^64 - 1 bytes.
    #[error("{0:?} is larger than any volume can be: at most 1Pi")]
    TooLarge(String),
    /// Not a positive multiple of the allocation unit.
    #[error("{0} bytes is not a positive multiple of 1Mi: round it, for example to {1}")]
    NotAMultiple(u64, String),
}

impl Size {
    /// The size in bytes.
    ///
    /// # Errors
    /// When the text is no size or not a positive multiple of 1 MiB. The CRD's rules refuse the same at `kubectl apply`.
    pub fn bytes(&self) -> Result<u64, SizeError> {
        let bytes = match self {
            Self::Bytes(bytes) => *bytes,
            Self::Text(text) => parse(text)?,
        };
        if bytes == 0 || bytes % GRANULE != 0 {
            let rounded = bytes.div_ceil(GRANULE).max(1).saturating_mul(GRANULE);
            return Err(SizeError::NotAMultiple(bytes, format_bytes(rounded)));
        }
        Ok(bytes)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes(bytes) => write!(f, "{bytes}"),
            Self::Text(text) => f.write_str(text),
        }
    }
}

/// `int-or-string` is what Kubernetes' own quantities are, so `size: 1073741824` and `size: 1Gi` both pass kubectl.
impl JsonSchema for Size {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Size".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "x-kubernetes-int-or-string": true })
    }
}

/// Writes a number of bytes as the shortest exact quantity: `512Mi`, `10Gi`, or the plain number.
#[must_use]
pub fn format_bytes(bytes: u64) -> String {
    const UNITS: [(u32, &str); 5] = [(50, "Pi"), (40, "Ti"), (30, "Gi"), (20, "Mi"), (10, "Ki")];
    for (shift, suffix) in UNITS {
        if bytes != 0 && bytes.trailing_zeros() >= shift {
            return format!("{}{suffix}", bytes >> shift);
        }
    }
    bytes.to_string()
}

fn parse(text: &str) -> Result<u64, SizeError> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, suffix) = text.split_at(digits);
    let shift = match suffix {
        "" => 0,
        "Mi" => 20,
        "Gi" => 30,
        "Ti" => 40,
        "Pi" => 50,
        _ => return Err(SizeError::Malformed(text.to_owned())),
    };
    if number.is_empty() {
        return Err(SizeError::Malformed(text.to_owned()));
    }
    let number: u64 = number.parse().map_err(|_| SizeError::TooLarge(text.to_owned()))?;
    number.checked_mul(1 << shift).ok_or_else(|| SizeError::TooLarge(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text(text: &str) -> Result<u64, SizeError> {
        Size::Text(text.to_owned()).bytes()
    }

    #[test]
    fn what_users_write() {
        assert_eq!(text("512Mi"), Ok(512 << 20));
        assert_eq!(text("10Gi"), Ok(10 << 30));
        assert_eq!(text("1048576"), Ok(1 << 20));
        assert_eq!(Size::Bytes(3 << 20).bytes(), Ok(3 << 20));
    }

    #[test]
    fn what_is_refused_and_what_to_do_about_it() {
        for wrong in ["", "Gi", "1.5Gi", "-1Gi", "10G", "1 Gi", "ten", "1gi"] {
            assert_eq!(text(wrong), Err(SizeError::Malformed(wrong.to_owned())));
        }
        assert_eq!(text("99999999999Pi"), Err(SizeError::TooLarge("99999999999Pi".to_owned())));
        assert_eq!(text("0"), Err(SizeError::NotAMultiple(0, "1Mi".to_owned())));
        assert_eq!(text("1048577"), Err(SizeError::NotAMultiple(1_048_577, "2Mi".to_owned())));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(granules in 1_u64..(1 << 40)) {
            let bytes = granules << 20;
            prop_assert_eq!(text(&format_bytes(bytes)), Ok(bytes));
        }
    }
}
