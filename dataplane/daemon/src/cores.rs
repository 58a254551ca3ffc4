//! Which cores run reactors: what is asked for, and what this machine gives.

use std::fmt;
use std::io;
use std::str::FromStr;

use basalt_agent::{Problem, Reason};
use basalt_reactor::usable_cores;
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

/// The cores that the control plane wants reactors on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum WantedCores {
    /// That many, wherever; 1 to [`CORES_MAX`].
    Count(usize),
    /// Exactly these.
    List(CoreList),
}

impl WantedCores {
    /// That many cores, wherever.
    ///
    /// # Errors
    /// [`CoreListError::Count`].
    pub(crate) fn count(count: usize) -> Result<Self, CoreListError> {
        if (1..=CORES_MAX).contains(&count) {
            Ok(Self::Count(count))
        } else {
            Err(CoreListError::Count(count))
        }
    }

    /// Of the cores that can be had, those that come nearest to this, and whether they are it.
    fn of(&self, usable: &Usable) -> (Vec<usize>, bool) {
        match (self, usable) {
            (Self::Count(count), Usable::These(usable)) => {
                (usable.iter().copied().take(*count).collect(), *count <= usable.len())
            }
            (Self::List(list), Usable::These(usable)) => {
                let mut cores: Vec<usize> =
                    list.cores().iter().copied().filter(|core| usable.contains(core)).collect();
                let all = cores.len() == list.cores().len();
                if cores.is_empty() {
                    cores.extend(usable.first());
                }
                (cores, all)
            }
            (Self::Count(count), Usable::AnyOf(usable)) => {
                ((0..*count.min(usable)).collect(), count <= usable)
            }
            (Self::List(list), Usable::AnyOf(usable)) => {
                (list.cores().iter().copied().take(*usable).collect(), list.cores().len() <= *usable)
            }
        }
    }
}

impl fmt::Display for WantedCores {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Count(1) => f.write_str("1 core"),
            Self::Count(count) => write!(f, "{count} cores"),
            Self::List(list) if list.cores().len() == 1 => write!(f, "core {list}"),
            Self::List(list) => write!(f, "cores {list}"),
        }
    }
}

/// What a machine gives to reactors.
#[derive(Debug, Clone)]
enum Usable {
    /// Reactors are pinned, each to one of these.
    These(Vec<usize>),
    /// Reactors run wherever the system lets them, as many as there are cores; their numbers are names only.
    AnyOf(usize),
}

/// For people.
impl fmt::Display for Usable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::These(cores) => WantedCores::List(CoreList(cores.clone())).fmt(f),
            Self::AnyOf(count) => WantedCores::Count(*count).fmt(f),
        }
    }
}

/// The cores that reactors run on until the daemon ends, and how they were chosen.
#[derive(Debug, Clone)]
pub(crate) struct CoresInUse {
    cores: CoreList,
    /// What could be had when the daemon started; `None` if that does not matter, because a person at the machine named the cores.
    usable: Option<Usable>,
    /// They are not what was wanted.
    stand_in: bool,
}

impl CoresInUse {
    /// The cores that were named on this machine, whatever comes of it.
    pub(crate) fn named(cores: CoreList) -> Self {
        Self { cores, usable: None, stand_in: false }
    }

    /// The cores that the control plane wants as far as this machine has them: it could not be told better ones by a daemon that does not
    /// start. One where nothing was ever wanted.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) fn wanted(wanted: Option<&WantedCores>, pin: bool) -> io::Result<Self> {
        let one = WantedCores::Count(1);
        let wanted = wanted.unwrap_or(&one);
        let usable = usable_cores()?;
        Ok(Self::of(wanted, if pin { Usable::These(usable) } else { Usable::AnyOf(usable.len()) }))
    }

    fn of(wanted: &WantedCores, usable: Usable) -> Self {
        let (cores, as_wanted) = wanted.of(&usable);
        // No core at all cannot be, as this runs on one; should it be all the same, pinning says so.
        let cores = CoreList::try_from(cores).unwrap_or_else(|_| CoreList(vec![0]));
        Self { cores, usable: Some(usable), stand_in: !as_wanted }
    }

    /// The cores.
    pub(crate) fn cores(&self) -> &CoreList {
        &self.cores
    }

    /// What a person has to know, given what is wanted now. Cores that are wanted and can be had take effect at the next start, which is
    /// no problem.
    pub(crate) fn problem(&self, wanted: Option<&WantedCores>) -> Option<Problem> {
        let (usable, wanted) = (self.usable.as_ref()?, wanted?);
        let (cores, all) = wanted.of(usable);
        let now = if self.cores.cores().len() == 1 { "core" } else { "cores" };
        let message = if !all {
            format!(
                "{wanted} wanted, but the daemon can use only {usable} of its machine: reactors run on {now} {}; set spec.cores of \
                 the StorageNode to what the machine has and restart basaltd, or give basaltd those cores",
                self.cores
            )
        } else if self.stand_in && cores != self.cores.cores() {
            format!(
                "reactors run on {now} {}, because the machine had not what was wanted when basaltd started: restart basaltd to \
                 use {wanted}, wanted now",
                self.cores
            )
        } else {
            return None;
        };
        Some(Problem::new(Reason::CoresNotPossible, message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(text: &str) -> WantedCores {
        WantedCores::List(text.parse().unwrap())
    }

    #[test]
    fn cores_that_the_machine_lacks_are_made_do_without_and_told() {
        let chosen = |wanted: &WantedCores, usable: &[usize]| {
            let in_use = CoresInUse::of(wanted, Usable::These(usable.to_vec()));
            (in_use.cores().to_string(), in_use.problem(Some(wanted)).map(|problem| problem.message))
        };
        assert_eq!(chosen(&list("0-1"), &[0, 1]), ("0,1".into(), None));
        assert_eq!(chosen(&WantedCores::Count(2), &[4, 5, 6]), ("4,5".into(), None));
        let (cores, told) = chosen(&list("1-3"), &[0, 1]);
        assert_eq!(cores, "1", "those that are there");
        let told = told.unwrap();
        assert!(told.starts_with("cores 1,2,3 wanted") && told.contains("run on core 1;"), "{told}");
        let (cores, told) = chosen(&list("2-5"), &[0, 1]);
        assert_eq!(cores, "0", "the first one, if none is there");
        assert!(told.unwrap().contains("only cores 0,1"));
        let (cores, told) = chosen(&WantedCores::Count(3), &[2]);
        assert_eq!((cores.as_str(), told.is_some()), ("2", true));
    }

    #[test]
    fn a_corrected_wish_is_no_problem_once_it_is_in_effect() {
        let in_use = CoresInUse::of(&list("2-5"), Usable::These(vec![0, 1]));
        let told = in_use.problem(Some(&list("0-1"))).unwrap();
        assert!(told.message.contains("restart basaltd to use cores 0,1"), "{}", told.message);
        assert_eq!(in_use.problem(Some(&list("0"))), None, "that is what is in use");
        let corrected = CoresInUse::of(&list("0-1"), Usable::These(vec![0, 1]));
        assert_eq!(corrected.problem(Some(&list("0-1"))), None);
        assert_eq!(corrected.problem(Some(&list("1"))), None, "it takes effect at the next start");
        assert!(corrected.problem(Some(&list("7"))).is_some(), "it is told before the next start");
        assert_eq!(corrected.problem(None), None);
    }

    #[test]
    fn cores_that_were_named_here_are_not_judged() {
        let named = CoresInUse::named("7".parse().unwrap());
        assert_eq!(named.problem(Some(&list("900"))), None);
        let impossible = CoresInUse::wanted(Some(&list("1000")), true).unwrap();
        assert_eq!(impossible.cores().cores().len(), 1);
        assert!(impossible.problem(Some(&list("1000"))).is_some());
    }

    #[test]
    fn reactors_that_are_not_pinned_are_counted_only() {
        let unpinned = |wanted: &WantedCores, usable: usize| CoresInUse::of(wanted, Usable::AnyOf(usable));
        let two = unpinned(&list("700-701"), 2);
        assert_eq!((two.cores().to_string(), two.problem(Some(&list("700-701")))), ("700,701".into(), None));
        let many = WantedCores::count(1000).unwrap();
        let few = unpinned(&many, 2);
        assert_eq!(few.cores().to_string(), "0,1", "no more threads than cores");
        let told = few.problem(Some(&many)).unwrap().message;
        assert!(told.starts_with("1000 cores wanted, but the daemon can use only 2 cores of its"), "{told}");
        let impossible = CoresInUse::wanted(Some(&WantedCores::count(CORES_MAX).unwrap()), false).unwrap();
        assert!(impossible.cores().cores().len() < CORES_MAX);
        assert!(two.problem(Some(&list("1-3"))).is_some(), "it is told before the next start");
    }

    #[test]
    fn wishes_are_remembered_in_either_form() {
        for wanted in [WantedCores::count(3).unwrap(), list("1,3")] {
            let text = serde_json::to_string(&wanted).unwrap();
            assert_eq!(serde_json::from_str::<WantedCores>(&text).unwrap(), wanted);
        }
        assert_eq!(serde_json::from_str::<WantedCores>("[0,1]").unwrap(), list("0-1"));
        assert_eq!(WantedCores::count(0), Err(CoreListError::Count(0)));
    }

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
    }
}
