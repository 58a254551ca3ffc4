use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt;
use std::rc::Rc;

use crate::driver::SocketId;

/// Tokens of sockets to which something happened; see [`crate::Socket::watch`]. Cheap to clone.
///
/// Holds each watched socket's token at most once, so it is never longer than there are watched sockets, apart from what its
/// user puts in.
#[derive(Clone, Default)]
pub struct ReadyList(Rc<RefCell<Vec<Entry>>>);

struct Entry {
    token: u64,
    /// Of the watch that put the token in: true while it is in the list.
    listed: Option<Rc<Cell<bool>>>,
}

impl ReadyList {
    /// An empty list.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Moves all tokens to the end of `tokens`, oldest first. A socket may turn out to have nothing.
    pub fn take(&self, tokens: &mut Vec<u64>) {
        for Entry { token, listed } in self.0.borrow_mut().drain(..) {
            if let Some(listed) = listed {
                listed.set(false);
            }
            tokens.push(token);
        }
    }

    /// True if there is no token.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.borrow().is_empty()
    }

    /// Adds a token: for what its user wants to look at again.
    pub fn push(&self, token: u64) {
        self.0.borrow_mut().push(Entry { token, listed: None });
    }
}

impl fmt::Debug for ReadyList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReadyList").field("tokens", &self.0.borrow().len()).finish()
    }
}

struct Watch {
    list: ReadyList,
    token: u64,
    listed: Rc<Cell<bool>>,
}

impl Watch {
    fn ready(&self) {
        if !self.listed.replace(true) {
            let entry = Entry { token: self.token, listed: Some(Rc::clone(&self.listed)) };
            self.list.0.borrow_mut().push(entry);
        }
    }
}

/// Who wants to know of which socket.
#[derive(Default)]
pub(crate) struct Watches(BTreeMap<SocketId, Watch>);

impl Watches {
    /// Sets a watch, which counts as ready once at once.
    pub(crate) fn set(&mut self, socket: SocketId, list: &ReadyList, token: u64) {
        let watch = Watch { list: list.clone(), token, listed: Rc::default() };
        watch.ready();
        self.0.insert(socket, watch);
    }

    pub(crate) fn clear(&mut self, socket: SocketId) {
        self.0.remove(&socket);
    }

    /// Puts the tokens of these sockets into their lists.
    pub(crate) fn deliver(&self, ready: &mut Vec<SocketId>) {
        for socket in ready.drain(..) {
            if let Some(watch) = self.0.get(&socket) {
                watch.ready();
            }
        }
    }
}
