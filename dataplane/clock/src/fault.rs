//! Marks and planted bugs: how a simulation knows that it reached a rare place, and that its checkers would notice a bug.
//!
//! A *mark* names a place of interest in production code (`mark!("torn-tail")`). It does nothing unless a recorder is
//! installed on the current thread, which only a simulation does.
//!
//! A *planted bug* is a wrong branch that exists only when the crate is compiled with `--cfg basalt_planted`, and is taken
//! only when a test chose it at run time on the current thread. Without the flag `planted!` is the constant `false`, so a
//! release binary holds neither the branch nor its name.

use std::cell::RefCell;
use std::collections::BTreeMap;

thread_local! {
    static MARKS: RefCell<Option<BTreeMap<&'static str, u64>>> = const { RefCell::new(None) };
}

/// Notes that the named place was reached. A no-op unless [`record_marks`] was called on this thread.
#[inline]
pub fn reached(mark: &'static str) {
    MARKS.with(|marks| {
        if let Some(marks) = marks.borrow_mut().as_mut() {
            *marks.entry(mark).or_insert(0) += 1;
        }
    });
}

/// Starts to record marks on this thread, forgetting what was recorded before.
pub fn record_marks() {
    MARKS.with(|marks| *marks.borrow_mut() = Some(BTreeMap::new()));
}

/// Stops recording and returns how often each mark was reached on this thread.
pub fn take_marks() -> BTreeMap<&'static str, u64> {
    MARKS.with(|marks| marks.borrow_mut().take().unwrap_or_default())
}

/// Marks a place: `mark!("snapshot-installed")`.
#[macro_export]
macro_rules! mark {
    ($name:literal) => {
        $crate::fault::reached($name)
    };
}

/// True when the named bug is planted and chosen on this thread: `if planted!("vote-not-persisted") { ... }`.
///
/// Always `false`, and free, unless compiled with `--cfg basalt_planted`.
#[macro_export]
macro_rules! planted {
    ($name:literal) => {{
        #[cfg(basalt_planted)]
        let chosen = $crate::fault::is_planted(concat!("planted-bug:", $name));
        #[cfg(not(basalt_planted))]
        let chosen = false;
        chosen
    }};
}

#[cfg(basalt_planted)]
mod chosen {
    use std::cell::RefCell;

    thread_local! {
        static CHOSEN: RefCell<Option<String>> = const { RefCell::new(None) };
    }

    /// Chooses the bug (without the `planted-bug:` prefix) that this thread runs with; `None` chooses none.
    pub fn plant(bug: Option<&str>) {
        CHOSEN.with(|chosen| *chosen.borrow_mut() = bug.map(|name| format!("planted-bug:{name}")));
    }

    /// Whether the bug with this full name is chosen on this thread.
    pub fn is_planted(name: &'static str) -> bool {
        CHOSEN.with(|chosen| chosen.borrow().as_deref() == Some(name))
    }
}

#[cfg(basalt_planted)]
pub use chosen::{is_planted, plant};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_count_only_while_recorded() {
        crate::mark!("before");
        record_marks();
        crate::mark!("here");
        crate::mark!("here");
        let marks = take_marks();
        assert_eq!(marks.into_iter().collect::<Vec<_>>(), vec![("here", 2)]);
        crate::mark!("after");
        assert!(take_marks().is_empty());
    }

    #[test]
    fn nothing_is_planted_by_default() {
        assert!(!crate::planted!("some-bug"));
    }
}
