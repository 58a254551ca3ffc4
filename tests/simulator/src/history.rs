//! What clients asked and what they were told, in the order of the one world.

use crate::linearize::Call;
use std::collections::BTreeMap;

/// The number of a recorded operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OperationId(usize);

/// Operations per key: a system is linearizable if and only if it is for each key by itself (Herlihy and Wing, 1990).
#[derive(Debug)]
pub struct History<K, O, A> {
    moment: u64,
    calls: Vec<(K, Call<O, A>)>,
}

impl<K, O, A> Default for History<K, O, A> {
    fn default() -> Self {
        Self { moment: 0, calls: Vec::new() }
    }
}

impl<K: Ord + Clone, O: Clone, A: Clone> History<K, O, A> {
    /// Records that `client` asked for `operation` on `key`.
    pub fn called(&mut self, client: u32, key: K, operation: O) -> OperationId {
        self.moment += 1;
        self.calls.push((key, Call { client, operation, called: self.moment, returned: None }));
        OperationId(self.calls.len() - 1)
    }

    /// Records the answer.
    ///
    /// # Panics
    /// If the operation was answered before.
    pub fn returned(&mut self, id: OperationId, answer: A) {
        self.moment += 1;
        let returned = &mut self.calls[id.0].1.returned;
        assert!(returned.is_none(), "an operation was answered twice");
        *returned = Some((self.moment, answer));
    }

    /// Records that an operation may, besides what its client was told, take effect a second time or late: an earlier attempt
    /// of it may still be under way.
    pub fn may_still_happen(&mut self, id: OperationId) {
        let (key, call) = &self.calls[id.0];
        let shadow = Call { returned: None, ..call.clone() };
        self.calls.push((key.clone(), shadow));
    }

    /// How many operations were called.
    pub fn len(&self) -> usize {
        self.calls.len()
    }

    /// Whether nothing was called.
    pub fn is_empty(&self) -> bool {
        self.calls.is_empty()
    }

    /// How many operations were answered.
    pub fn answered(&self) -> usize {
        self.calls.iter().filter(|(_, call)| call.returned.is_some()).count()
    }

    /// The history of each key, in order of the calls.
    pub fn per_key(&self) -> BTreeMap<K, Vec<Call<O, A>>> {
        let mut keys: BTreeMap<K, Vec<Call<O, A>>> = BTreeMap::new();
        for (key, call) in &self.calls {
            keys.entry(key.clone()).or_default().push(call.clone());
        }
        keys
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_apart_and_order_is_kept() {
        let mut history: History<&str, u32, u32> = History::default();
        let first = history.called(1, "a", 10);
        let second = history.called(2, "b", 20);
        history.returned(second, 21);
        let third = history.called(1, "a", 30);
        history.returned(third, 31);
        assert_eq!((history.len(), history.answered()), (3, 2));
        let keys = history.per_key();
        assert_eq!(keys["a"].len(), 2);
        assert_eq!(keys["b"][0].returned, Some((3, 21)));
        assert!(keys["a"][0].called < keys["a"][1].called && keys["a"][0].returned.is_none());
        history.returned(first, 11);
        assert_eq!(history.answered(), 3);
    }

    #[test]
    #[should_panic(expected = "answered twice")]
    fn an_answer_comes_once() {
        let mut history: History<(), (), ()> = History::default();
        let id = history.called(0, (), ());
        history.returned(id, ());
        history.returned(id, ());
    }
}
