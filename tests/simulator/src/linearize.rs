//! Is there one order of operations that explains what all clients saw?
//!
//! The search is that of Wing and Gong (1993) with the memory of Lowe (2017): take any operation that was called before the
//! first remaining return, apply it to the model, and go back when a return is met whose operation has not been taken; a set
//! of (operations taken, state) that failed once is not tried again. An operation whose outcome its client never learned may
//! be taken at any point after its call, or never.

use std::collections::HashSet;
use std::fmt::Debug;
use std::hash::Hash;

/// How an object behaves when one operation runs after the other.
pub trait Model {
    /// What is asked of the object.
    type Operation: Debug;
    /// What it answers.
    type Answer: Debug;
    /// What it remembers.
    type State: Clone + Eq + Hash + Debug;

    /// The state before any operation.
    fn initial(&self) -> Self::State;

    /// Adds to `after` every state that `operation` may have left behind if it answered `answer` in `state`; none if it cannot
    /// have. `answer` is `None` when no client learned it: then the states after the operation took effect.
    fn step(
        &self,
        state: &Self::State,
        operation: &Self::Operation,
        answer: Option<&Self::Answer>,
        after: &mut Vec<Self::State>,
    );
}

/// One operation of a history: what was asked when, and what was answered when.
#[derive(Debug, Clone)]
pub struct Call<O, A> {
    /// Who asked; only for the report.
    pub client: u32,
    /// What was asked.
    pub operation: O,
    /// The position of the call among all calls and returns.
    pub called: u64,
    /// The position of the return and the answer; `None` if it is not known whether the operation took effect.
    pub returned: Option<(u64, A)>,
}

/// What the search found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// An order exists.
    Linearizable,
    /// None exists; `stuck` is the index of the operation (into the history given) whose return no order got past.
    Violation {
        /// The operation that no order could include in time.
        stuck: usize,
        /// The largest number of operations that some order explained.
        explained: usize,
    },
    /// The bound on steps was reached first.
    Undecided {
        /// The bound.
        steps: u64,
    },
}

/// A node of the list of calls and returns, linked by index. Node 0 is the head.
#[derive(Debug, Clone, Copy)]
struct Node {
    call: usize,
    /// The node of this call's return; `None` for returns, and for calls that never return.
    returns: Option<usize>,
    is_return: bool,
    previous: usize,
    next: usize,
}

const HEAD: usize = 0;

#[derive(Debug)]
struct List {
    nodes: Vec<Node>,
}

impl List {
    fn new<O, A>(history: &[Call<O, A>]) -> Self {
        let mut moments: Vec<(u64, bool, usize)> = Vec::with_capacity(history.len() * 2);
        for (index, call) in history.iter().enumerate() {
            moments.push((call.called, false, index));
            if let Some((at, _)) = &call.returned {
                assert!(*at > call.called, "a call returned before it was made");
                moments.push((*at, true, index));
            }
        }
        moments.sort_unstable();
        let head = Node { call: usize::MAX, returns: None, is_return: false, previous: HEAD, next: HEAD };
        let mut nodes = vec![head];
        let mut call_nodes = vec![HEAD; history.len()];
        for (_, is_return, call) in moments {
            let position = nodes.len();
            nodes.push(Node { call, returns: None, is_return, previous: position - 1, next: HEAD });
            nodes[position - 1].next = position;
            if is_return {
                nodes[call_nodes[call]].returns = Some(position);
            } else {
                call_nodes[call] = position;
            }
        }
        Self { nodes }
    }

    fn first(&self) -> usize {
        self.nodes[HEAD].next
    }

    fn unlink(&mut self, node: usize) {
        let Node { previous, next, .. } = self.nodes[node];
        self.nodes[previous].next = next;
        if next != HEAD {
            self.nodes[next].previous = previous;
        }
    }

    fn relink(&mut self, node: usize) {
        let Node { previous, next, .. } = self.nodes[node];
        self.nodes[previous].next = node;
        if next != HEAD {
            self.nodes[next].previous = node;
        }
    }

    /// Takes a call and its return out of the list.
    fn lift(&mut self, node: usize) {
        self.unlink(node);
        if let Some(returns) = self.nodes[node].returns {
            self.unlink(returns);
        }
    }

    /// Undoes the last [`List::lift`].
    fn unlift(&mut self, node: usize) {
        if let Some(returns) = self.nodes[node].returns {
            self.relink(returns);
        }
        self.relink(node);
    }
}

/// Which operations have been taken.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Taken(Box<[u64]>);

impl Taken {
    fn none(of: usize) -> Self {
        Self(vec![0; of.div_ceil(64)].into())
    }

    fn flip(&mut self, index: usize) {
        self.0[index / 64] ^= 1 << (index % 64);
    }
}

/// An operation that was taken, so that it can be undone.
struct Step<S> {
    /// The operation's node.
    node: usize,
    /// Which of the states after it was chosen.
    choice: usize,
    /// The state before it.
    before: S,
}

/// Searches for an order of `history` that `model` explains, in at most `steps_max` steps.
pub fn check<M: Model>(model: &M, history: &[Call<M::Operation, M::Answer>], steps_max: u64) -> Verdict {
    let mut list = List::new(history);
    let mut open = history.iter().filter(|call| call.returned.is_some()).count();
    let mut state = model.initial();
    let mut taken = Taken::none(history.len());
    let mut seen: HashSet<(Taken, M::State)> = HashSet::new();
    let mut order: Vec<Step<M::State>> = Vec::new();
    let mut after = Vec::new();
    let (mut explained, mut stuck) = (0, 0);
    let (mut at, mut choice) = (list.first(), 0);
    for _ in 0..steps_max {
        if open == 0 {
            return Verdict::Linearizable;
        }
        let node = list.nodes[at];
        if at == HEAD || node.is_return {
            // A return that nothing explains, or the end of the list: go back.
            if at != HEAD && order.len() >= explained {
                (explained, stuck) = (order.len(), node.call);
            }
            let Some(undone) = order.pop() else {
                return Verdict::Violation { stuck, explained };
            };
            let call = list.nodes[undone.node].call;
            state = undone.before;
            taken.flip(call);
            open += usize::from(history[call].returned.is_some());
            list.unlift(undone.node);
            (at, choice) = (undone.node, undone.choice + 1);
            continue;
        }
        let call = &history[node.call];
        after.clear();
        model.step(&state, &call.operation, call.returned.as_ref().map(|(_, answer)| answer), &mut after);
        taken.flip(node.call);
        let chosen = (choice..after.len()).find(|index| seen.insert((taken.clone(), after[*index].clone())));
        let Some(chosen) = chosen else {
            taken.flip(node.call);
            (at, choice) = (node.next, 0);
            continue;
        };
        open -= usize::from(call.returned.is_some());
        let before = std::mem::replace(&mut state, after.swap_remove(chosen));
        order.push(Step { node: at, choice: chosen, before });
        list.lift(at);
        (at, choice) = (list.first(), 0);
    }
    Verdict::Undecided { steps: steps_max }
}

#[cfg(test)]
mod tests {
    use super::*;
    use basalt_clock::{Random, SeededRandom};

    /// A register with write, read and compare-and-set.
    struct Register;

    #[derive(Debug, Clone)]
    enum Ask {
        Write(u32),
        Read,
        Swap(u32, u32),
        Either(u32, u32),
    }

    impl Model for Register {
        type Operation = Ask;
        type Answer = u32;
        type State = u32;

        fn initial(&self) -> u32 {
            0
        }

        fn step(&self, state: &u32, operation: &Ask, answer: Option<&u32>, after: &mut Vec<u32>) {
            match operation {
                Ask::Write(value) => after.push(*value),
                Ask::Read if answer.is_none_or(|read| read == state) => after.push(*state),
                Ask::Read => {}
                Ask::Swap(from, to) => {
                    let done = u32::from(from == state);
                    if answer.is_none_or(|said| *said == done) {
                        after.push(if done == 1 { *to } else { *state });
                    }
                }
                // Becomes one of two values, and nobody says which.
                Ask::Either(one, other) => after.extend([*one, *other]),
            }
        }
    }

    fn call(operation: Ask, called: u64, returned: Option<(u64, u32)>) -> Call<Ask, u32> {
        Call { client: 0, operation, called, returned }
    }

    fn verdict(history: &[Call<Ask, u32>]) -> Verdict {
        check(&Register, history, 100_000)
    }

    #[test]
    fn overlapping_operations_may_take_either_order() {
        for seen in [0, 7] {
            let history = [call(Ask::Write(7), 0, Some((3, 0))), call(Ask::Read, 1, Some((2, seen)))];
            assert_eq!(verdict(&history), Verdict::Linearizable);
        }
    }

    #[test]
    fn a_stale_read_is_refused() {
        let history = [call(Ask::Write(7), 0, Some((1, 0))), call(Ask::Read, 2, Some((3, 0)))];
        assert_eq!(verdict(&history), Verdict::Violation { stuck: 1, explained: 1 });
    }

    #[test]
    fn a_read_that_goes_back_in_time_is_refused() {
        let history = [
            call(Ask::Write(1), 0, Some((9, 0))),
            call(Ask::Read, 1, Some((2, 1))),
            call(Ask::Read, 3, Some((4, 0))),
        ];
        assert!(matches!(verdict(&history), Verdict::Violation { .. }));
    }

    #[test]
    fn a_lost_acknowledged_write_is_refused_and_a_lost_unknown_one_is_not() {
        let lost = [call(Ask::Write(1), 0, Some((1, 0))), call(Ask::Read, 4, Some((5, 0)))];
        assert!(matches!(verdict(&lost), Verdict::Violation { .. }));
        let unknown = [call(Ask::Write(1), 0, None), call(Ask::Read, 4, Some((5, 0)))];
        assert_eq!(verdict(&unknown), Verdict::Linearizable);
    }

    #[test]
    fn an_unknown_write_may_appear_late_but_not_vanish_again() {
        let late = [
            call(Ask::Write(1), 0, None),
            call(Ask::Read, 1, Some((2, 0))),
            call(Ask::Read, 3, Some((4, 1))),
        ];
        assert_eq!(verdict(&late), Verdict::Linearizable);
        let flicker = [
            call(Ask::Write(1), 0, None),
            call(Ask::Read, 1, Some((2, 1))),
            call(Ask::Read, 3, Some((4, 0))),
        ];
        assert!(matches!(verdict(&flicker), Verdict::Violation { .. }));
    }

    #[test]
    fn an_operation_that_is_applied_twice_is_refused() {
        // Two swaps from 0 both succeeded, though nothing put the 0 back.
        let history = [call(Ask::Swap(0, 1), 0, Some((3, 1))), call(Ask::Swap(0, 2), 1, Some((2, 1)))];
        assert!(matches!(verdict(&history), Verdict::Violation { .. }));
    }

    #[test]
    fn every_outcome_of_a_choice_is_tried_and_only_one_holds() {
        for seen in [4, 5] {
            let history = [
                call(Ask::Either(4, 5), 0, Some((1, 0))),
                call(Ask::Read, 2, Some((3, seen))),
                call(Ask::Read, 4, Some((5, seen))),
            ];
            assert_eq!(verdict(&history), Verdict::Linearizable);
        }
        let history = [
            call(Ask::Either(4, 5), 0, Some((1, 0))),
            call(Ask::Read, 2, Some((3, 4))),
            call(Ask::Read, 4, Some((5, 5))),
        ];
        assert!(matches!(verdict(&history), Verdict::Violation { .. }));
    }

    #[test]
    fn the_bound_ends_the_search() {
        let history = [call(Ask::Write(1), 0, Some((1, 0)))];
        assert_eq!(check(&Register, &history, 0), Verdict::Undecided { steps: 0 });
        assert_eq!(check(&Register, &[], 1), Verdict::Linearizable);
    }

    /// Runs random operations against a real register, each at a random point between its call and its return.
    fn random_history(seed: u64, operations: usize) -> Vec<Call<Ask, u32>> {
        let mut random = SeededRandom::new(seed);
        let mut register = 0;
        let mut history: Vec<Call<Ask, u32>> = Vec::new();
        let mut running: Vec<(usize, Option<u32>)> = Vec::new();
        let mut moment = 0;
        while history.len() < operations || !running.is_empty() {
            moment += 1;
            if history.len() < operations && running.len() < 6 && random.chance(1, 3) {
                let value = u32::try_from(random.below(5)).unwrap();
                let ask = match random.below(3) {
                    0 => Ask::Write(value),
                    1 => Ask::Read,
                    _ => Ask::Swap(value, value + 1),
                };
                running.push((history.len(), None));
                history.push(call(ask, moment, None));
                continue;
            }
            if running.is_empty() {
                continue;
            }
            let chosen = usize::try_from(random.below(running.len() as u64)).unwrap();
            let (index, answer) = running[chosen];
            match answer {
                None => {
                    let said = match history[index].operation {
                        Ask::Write(value) => {
                            register = value;
                            0
                        }
                        Ask::Read => register,
                        Ask::Swap(from, to) => {
                            let done = u32::from(register == from);
                            register = if done == 1 { to } else { register };
                            done
                        }
                        Ask::Either(one, _) => {
                            register = one;
                            0
                        }
                    };
                    running[chosen].1 = Some(said);
                    // Some clients never hear the answer.
                    if random.chance(1, 20) {
                        running.swap_remove(chosen);
                    }
                }
                Some(said) => {
                    history[index].returned = Some((moment, said));
                    running.swap_remove(chosen);
                }
            }
        }
        history
    }

    #[test]
    fn histories_of_a_real_register_are_linearizable() {
        for seed in 0..50 {
            let history = random_history(seed, 300);
            assert_eq!(check(&Register, &history, 1_000_000), Verdict::Linearizable, "seed {seed}");
        }
    }

    #[test]
    fn histories_with_one_forged_read_are_refused() {
        for seed in 0..50 {
            let mut history = random_history(seed, 100);
            let forged = history
                .iter_mut()
                .filter(|call| matches!(call.operation, Ask::Read))
                .filter_map(|call| call.returned.as_mut())
                .last();
            forged.unwrap().1 = 99;
            let verdict = check(&Register, &history, 1_000_000);
            assert!(matches!(verdict, Verdict::Violation { .. }), "seed {seed}: {verdict:?}");
        }
    }
}
