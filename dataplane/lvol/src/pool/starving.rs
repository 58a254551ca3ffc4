//! Requests that wait for space, or for room in the metadata areas: they are refused once nothing that is under way can give it to them.
//!
//! What was freed can be used again once that is durable and no request is under way that looked at a map before. Nobody tells the
//! owner when such a request ends (that would cost each request something), so it is looked for, with pauses, while somebody waits.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use basalt_bdev::IoError;
use basalt_clock::{Instant, mark};

use super::grants::Verdict;
use super::journal::Until;
use super::owner::reply;
use super::{Inner, State, Volume};
use crate::port::Message;

/// The longest time that a request waits for space. It is reached only where a request is in the way that takes as long on its disk, or
/// never ends: then this one must not hang as well. Shorter than the timeouts of hosts (30 s).
const WAIT_MAX: Duration = Duration::from_secs(10);
/// Time between two looks; doubles up to the second as long as nothing comes of them.
const LOOK_MIN: Duration = Duration::from_micros(50);
const LOOK_MAX: Duration = Duration::from_millis(4);

/// What a request waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Want {
    /// A free extent.
    Space,
    /// Free pages in the metadata areas.
    Room,
}

/// A request that waits.
#[derive(Debug)]
pub(super) struct Starving {
    message: Message,
    want: Want,
    /// Counts those that came.
    number: u64,
    /// The last grant that was given before it came.
    grants: u64,
    /// When it is refused at the latest.
    until: Instant,
}

impl Inner {
    /// Lets a request wait until there is what it needs, or until it is certain that there will not be.
    pub(super) fn starve(self: &Rc<Self>, message: Message, want: Want) {
        {
            let mut state = self.state.borrow_mut();
            state.starved += 1;
            let (number, grants) = (state.starved, state.grants_made);
            let until = self.handle.now() + WAIT_MAX;
            state.starving.push_back(Starving { message, want, number, grants, until });
        }
        if self.relieving.replace(true) {
            return;
        }
        let inner = Rc::clone(self);
        drop(self.handle.spawn(async move {
            mark!("lvol-starving");
            inner.relieve().await;
        }));
    }

    /// Makes space and room until nobody waits for it any more.
    async fn relieve(self: &Rc<Self>) {
        let mut interval = LOOK_MIN;
        loop {
            let came = self.state.borrow().starved;
            self.make_space().await;
            if self.look_again(came) {
                interval = LOOK_MIN;
            }
            if self.state.borrow().starving.is_empty() {
                self.relieving.set(false);
                return;
            }
            self.handle.sleep(interval).await;
            interval = (2 * interval).min(LOOK_MAX);
        }
    }

    /// Makes durable what has to be before space or room can be used, and gives back what can be by now. If that fails the pool takes
    /// no change, which is what is answered then.
    async fn make_space(self: &Rc<Self>) {
        let (room, space) = {
            let state = self.state.borrow();
            let room = state.starving.iter().any(|one| one.want == Want::Room);
            (room, state.limbo.newest() > state.map_durable || state.refs.any_unsettled())
        };
        let made = match (room, space) {
            (true, _) => self.checkpoint().await,
            (false, true) => self.settle_maps(Until::Durable).await.map(drop),
            (false, false) => Ok(()),
        };
        if made.is_ok() {
            self.reclaim_ready().await;
        }
    }

    /// Judges all that wait once more; true if one has its answer. For those up to number `came` all was tried that can be.
    fn look_again(self: &Rc<Self>, came: u64) -> bool {
        let starving = std::mem::take(&mut self.state.borrow_mut().starving);
        let (now, mut answered) = (self.handle.now(), false);
        for Starving { message, number, grants, until, .. } in starving {
            match self.judge(message) {
                Verdict::Starve(message, want)
                    if now < until && (number > came || self.may_come(want, grants)) =>
                {
                    let one = Starving { message, want, number, grants, until };
                    self.state.borrow_mut().starving.push_back(one);
                    continue;
                }
                Verdict::Starve(message, _) => {
                    mark!("lvol-capacity-exceeded");
                    reply(message, Err(IoError::CapacityExceeded));
                }
                verdict => self.act(verdict),
            }
            answered = true;
        }
        answered
    }

    /// Whether something is under way that may give what is wanted; of grants those up to that one.
    fn may_come(&self, want: Want, grants: u64) -> bool {
        let state = self.state.borrow();
        if state.volumes.values().any(|volume| matches!(volume, Volume::Deleting(_))) {
            return true;
        }
        match want {
            Want::Space => self.returning.get() > 0 || self.growing.get() || state.space_may_come(grants),
            // The next checkpoint has to write less than this one had to.
            Want::Room => self.has_room_when_written(&state),
        }
    }
}

impl State {
    fn space_may_come(&self, grants: u64) -> bool {
        // A grant that fails gives its extent back; one that ends well may leave another one without a name.
        let granted = self.grants.first_key_value().is_some_and(|(first, _)| *first <= grants);
        granted || self.limbo.len() > 0 || self.refs.any_unsettled()
    }
}

/// Something is under way as long as this lives.
pub(super) struct UnderWay<'a>(&'a Cell<u32>);

impl<'a> UnderWay<'a> {
    pub(super) fn begin(count: &'a Cell<u32>) -> Self {
        count.set(count.get() + 1);
        Self(count)
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}
