//! How one volume name or one node name behaves when one operation runs after the other: the model against which histories
//! of clients are checked.

use crate::linearize::Model;
use basalt_model::{Refusal, VolumeId};

/// What an object is recognised by in a history: each client-made change carries a new one.
pub type Token = u64;

/// Stands for the UID of a Kubernetes object.
pub type Owner = u64;

/// The objects whose histories are checked, each by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// A volume name.
    Volume(u32),
    /// A node name.
    Node(u32),
}

/// What clients ask of one object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ask {
    /// Create a volume.
    Create {
        /// For this owner.
        owner: Owner,
        /// Of this size in bytes.
        size: u64,
        /// With these hosts.
        token: Token,
    },
    /// Change the hosts of a volume.
    Update {
        /// By this owner.
        owner: Owner,
        /// To these.
        token: Token,
    },
    /// Delete a volume.
    Delete {
        /// By this owner.
        owner: Owner,
    },
    /// Put a volume aside.
    Release {
        /// By this owner.
        owner: Owner,
    },
    /// Create or change a node.
    PutNode {
        /// By this owner.
        owner: Owner,
        /// With these labels.
        token: Token,
    },
    /// Remove a node.
    DeleteNode {
        /// By this owner.
        owner: Owner,
    },
    /// Read the object.
    Read,
}

/// What a client saw of an object.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Seen {
    /// A volume's identity.
    pub id: Option<VolumeId>,
    /// The owner.
    pub owner: Owner,
    /// A volume's size in bytes.
    pub size: u64,
    /// The last change.
    pub token: Token,
    /// Whether it is being deleted.
    pub deleting: bool,
}

/// What clients are told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    /// Done, to the volume of this identity if it is one.
    Done(Option<VolumeId>),
    /// Refused.
    Refused(Why),
    /// What there is.
    Seen(Option<Seen>),
}

/// Why it was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// The owner is another.
    Taken,
    /// The object is there with other properties.
    Different,
    /// It is being deleted.
    Going,
    /// It is not there.
    Missing,
    /// A reason that does not lie in the object itself, such as no room.
    Elsewhere,
}

impl Why {
    /// What a refusal says about the object.
    pub fn of(refusal: &Refusal) -> Self {
        match refusal {
            Refusal::NameTaken { .. } => Self::Taken,
            Refusal::Different { .. } => Self::Different,
            Refusal::BeingDeleted { .. } => Self::Going,
            Refusal::NoSuchVolume { .. } | Refusal::NoSuchNode { .. } => Self::Missing,
            _ => Self::Elsewhere,
        }
    }
}

/// An object at one moment: not there, or as it would be seen. An identity that no client has learned is `None`.
pub type Present = Option<Seen>;

/// The model of one volume name or node name.
#[derive(Debug, Clone, Copy)]
pub struct Object;

impl Model for Object {
    type Operation = Ask;
    type Answer = Told;
    type State = Present;

    fn initial(&self) -> Present {
        None
    }

    fn step(&self, state: &Present, ask: &Ask, told: Option<&Told>, after: &mut Vec<Present>) {
        step_present(state, ask, told, after);
        // The node of a volume that is going confirms at some moment that it is gone.
        if state.as_ref().is_some_and(|present| present.deleting) {
            step_present(&None, ask, told, after);
        }
    }
}

/// Pushes the state after, if `expected` is what was told or nobody knows what was told.
fn step_present(state: &Present, ask: &Ask, told: Option<&Told>, after: &mut Vec<Present>) {
    if let (Some(Told::Refused(Why::Elsewhere)), false) = (told, matches!(ask, Ask::Read)) {
        after.push(state.clone());
        return;
    }
    if matches!(ask, Ask::Read) {
        match told {
            None => after.push(state.clone()),
            Some(Told::Seen(seen)) => after.extend(learned(state, seen)),
            Some(Told::Done(_) | Told::Refused(_)) => {}
        }
        return;
    }
    let (expected, next) = change(state, ask);
    match (told, expected) {
        (None, _) => after.push(next),
        (Some(Told::Refused(why)), Err(expected)) if *why == expected => after.push(next),
        (Some(Told::Done(id)), Ok(present)) => match (next, present, id) {
            // A volume: the identity must be the one that is known, or becomes known now.
            (next, known, Some(id)) if known.is_none_or(|known| known == *id) => {
                after.push(next.map(|next| Seen { id: Some(*id), ..next }));
            }
            (next, None, None) => after.push(next),
            _ => {}
        },
        _ => {}
    }
}

/// What is known after a read that is possible.
fn learned(state: &Present, seen: &Present) -> Option<Present> {
    match (state, seen) {
        (None, None) => Some(None),
        (Some(present), Some(seen)) => {
            let same_id = present.id.is_none() || present.id == seen.id;
            let told = Seen { id: seen.id, ..present.clone() };
            (same_id && told == *seen).then_some(Some(told))
        }
        _ => None,
    }
}

/// The identity that a change is told about (if any is known), or why it is refused; and the state afterwards.
fn change(state: &Present, ask: &Ask) -> (Result<Option<VolumeId>, Why>, Present) {
    let refused = |why| (Err(why), state.clone());
    let Some(present) = state else {
        return match ask {
            Ask::Create { owner, size, token } => {
                let seen = Seen { id: None, owner: *owner, size: *size, token: *token, deleting: false };
                (Ok(None), Some(seen))
            }
            Ask::PutNode { owner, token } => {
                let seen = Seen { id: None, owner: *owner, size: 0, token: *token, deleting: false };
                (Ok(None), Some(seen))
            }
            _ => refused(Why::Missing),
        };
    };
    let done = |next: Present| (Ok(present.id), next);
    match ask {
        Ask::Create { .. } if present.deleting => refused(Why::Going),
        Ask::Create { owner, .. } if *owner != present.owner => refused(Why::Taken),
        Ask::Create { size, .. } if *size != present.size => refused(Why::Different),
        Ask::Create { .. } | Ask::Read => done(state.clone()),
        Ask::Update { owner, .. }
        | Ask::Delete { owner }
        | Ask::Release { owner }
        | Ask::PutNode { owner, .. }
        | Ask::DeleteNode { owner }
            if *owner != present.owner =>
        {
            refused(Why::Taken)
        }
        Ask::Update { .. } | Ask::Release { .. } if present.deleting => refused(Why::Going),
        Ask::Update { token, .. } | Ask::PutNode { token, .. } => {
            done(Some(Seen { token: *token, ..present.clone() }))
        }
        Ask::Delete { .. } => done(Some(Seen { deleting: true, ..present.clone() })),
        Ask::Release { .. } | Ask::DeleteNode { .. } => done(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linearize::{Call, Verdict, check};

    fn id(number: u128) -> VolumeId {
        VolumeId::from_random(number)
    }

    fn seen(number: u128, token: Token, deleting: bool) -> Told {
        Told::Seen(Some(Seen { id: Some(id(number)), owner: 1, size: 8, token, deleting }))
    }

    /// One client's operations, one after the other.
    fn sequential(steps: &[(Ask, Told)]) -> Verdict {
        let history: Vec<Call<Ask, Told>> = steps
            .iter()
            .zip(0..)
            .map(|((ask, told), at)| Call {
                client: 0,
                operation: ask.clone(),
                called: 2 * at,
                returned: Some((2 * at + 1, told.clone())),
            })
            .collect();
        check(&Object, &history, 10_000)
    }

    fn create(token: Token) -> Ask {
        Ask::Create { owner: 1, size: 8, token }
    }

    #[test]
    fn a_volumes_life() {
        let life = [
            (Ask::Read, Told::Seen(None)),
            (create(5), Told::Done(Some(id(1)))),
            (create(6), Told::Done(Some(id(1)))),
            (Ask::Read, seen(1, 5, false)),
            (Ask::Update { owner: 2, token: 9 }, Told::Refused(Why::Taken)),
            (Ask::Update { owner: 1, token: 7 }, Told::Done(Some(id(1)))),
            (Ask::Read, seen(1, 7, false)),
            (Ask::Delete { owner: 1 }, Told::Done(Some(id(1)))),
            (create(8), Told::Refused(Why::Going)),
            (Ask::Read, seen(1, 7, true)),
            (create(8), Told::Done(Some(id(2)))),
            (Ask::Read, seen(2, 8, false)),
        ];
        assert_eq!(sequential(&life), Verdict::Linearizable);
    }

    #[test]
    fn known_bad_histories_are_refused() {
        let lost_update = [
            (create(5), Told::Done(Some(id(1)))),
            (Ask::Update { owner: 1, token: 7 }, Told::Done(Some(id(1)))),
            (Ask::Read, seen(1, 5, false)),
        ];
        let created_twice = [(create(5), Told::Done(Some(id(1)))), (create(5), Told::Done(Some(id(2))))];
        let vanished = [(create(5), Told::Done(Some(id(1)))), (Ask::Read, Told::Seen(None))];
        let back_from_the_dead = [
            (create(5), Told::Done(Some(id(1)))),
            (Ask::Delete { owner: 1 }, Told::Done(Some(id(1)))),
            (Ask::Read, Told::Seen(None)),
            (Ask::Read, seen(1, 5, true)),
        ];
        let other_identity = [(create(5), Told::Done(Some(id(1)))), (Ask::Read, seen(2, 5, false))];
        for bad in [&lost_update[..], &created_twice, &vanished, &back_from_the_dead, &other_identity] {
            assert!(matches!(sequential(bad), Verdict::Violation { .. }), "{bad:?}");
        }
    }

    #[test]
    fn a_refusal_for_want_of_room_changes_nothing() {
        let history = [(create(5), Told::Refused(Why::Elsewhere)), (Ask::Read, Told::Seen(None))];
        assert_eq!(sequential(&history), Verdict::Linearizable);
    }
}
