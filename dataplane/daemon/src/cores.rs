//! Which cores run reactors.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Reactors of one process; more is a mistake rather than a wish.
pub(crate) const CORES_MAX: usize = 1024;

/// A list of cores, such as `0,2-3`; not empty, without repetition, ascending.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<usize>", into = "Vec<usize>")]
pub(crate) struct CoreList(Vec<usize>);

/// Why a text is not a list of cores.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CoreListError {
    /// A part is neither a number nor a range.
    #[error("{part:?} is neither a core nor a range of cores; write for example 0,2-3")]
    Part {
        /// The part.
        part: String,
    },
    /// A range ends before it begins.
    #[error("the range {first}-{last} of cores ends before it begins")]
    Backwards {
        /// Its first.
        first: usize,
        /// Its last.
        last: usize,
    },
    /// A core is named twice.
    #[error("core {0} is named twice")]
    Twice(usize),
    /// None or too many.
    #[error("{0} cores are named; 1 to {CORES_MAX} are possible")]
    Count(usize),
}

impl CoreList {
    /// The cores.
    pub(crate) fn cores(&self) -> &[usize] {
        &self.0
    }

    /// The first `count` cores.
    ///
    /// # Errors
    /// [`CoreListError::Count`].
    pub(crate) fn first(count: usize) -> Result<Self, CoreListError> {
        Self::try_from((0..count.min(CORES_MAX + 1)).collect::<Vec<_>>())
    }
}

impl TryFrom<Vec<usize>> for CoreList {
    type Error = CoreListError;

    fn try_from(mut cores: Vec<usize>) -> Result<Self, CoreListError> {
        if cores.is_empty() || cores.len() > CORES_MAX {
            return Err(CoreListError::Count(cores.len()));
        }
        cores.sort_unstable();
        match cores.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(CoreListError::Twice(pair[0])),
            None => Ok(Self(cores)),
        }
    }
}

impl From<CoreList> for Vec<usize> {
    fn from(list: CoreList) -> Self {
        list.0
    }
}

impl FromStr for CoreList {
    type Err = CoreListError;

    fn from_str(text: &str) -> Result<Self, CoreListError> {
        let mut cores = Vec::new();
        for part in text.split(',') {
            let wrong = |_| CoreListError::Part { part: part.to_owned() };
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last): (usize, usize) = (first.parse().map_err(wrong)?, last.parse().map_err(wrong)?);
            if last < first {
                return Err(CoreListError::Backwards { first, last });
            }
            if last - first >= CORES_MAX || cores.len() > CORES_MAX {
                return Err(CoreListError::Count(cores.len().saturating_add(last - first)));
            }
            cores.extend(first..=last);
        }
        Self::try_from(cores)
    }
}

impl fmt::Display for CoreList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, core) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(f, "{comma}{core}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_and_ranges() {
        let cores = |text: &str| text.parse::<CoreList>().map(|list| list.0);
        assert_eq!(cores("0"), Ok(vec![0]));
        assert_eq!(cores("4,0-2"), Ok(vec![0, 1, 2, 4]));
        assert_eq!(cores("1,0-2"), Err(CoreListError::Twice(1)));
        assert_eq!(cores("3-1"), Err(CoreListError::Backwards { first: 3, last: 1 }));
        assert_eq!(cores(""), Err(CoreListError::Part { part: String::new() }));
        assert_eq!(cores("1,"), Err(CoreListError::Part { part: String::new() }));
        assert_eq!(cores("-1"), Err(CoreListError::Part { part: "-1".into() }));
        assert!(matches!(cores("0-99999999999"), Err(CoreListError::Count(_))));
        assert_eq!(CoreList::first(0), Err(CoreListError::Count(0)));
        assert_eq!(CoreList::first(3).unwrap().to_string(), "0,1,2");
    }
}
