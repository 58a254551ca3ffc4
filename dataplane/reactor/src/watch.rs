use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::rc::Rc;

use crate::driver::SocketId;

/// Tokens of sockets to which something happened; see [`crate::Socket::watch`]. Cheap to clone.
#[derive(Clone, Default)]
pub struct ReadyList(Rc<RefCell<Vec<u64>>>);

impl ReadyList {
    /// An empty list.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Moves all tokens to the end of `tokens`. A token may be there more than once, and a socket may turn out to have nothing.
    pub fn take(&self, tokens: &mut Vec<u64>) {
        tokens.append(&mut self.0.borrow_mut());
    }

    /// True if there is no token.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.borrow().is_empty()
    }

    /// Adds a token: also for what its user wants to look at again.
    pub fn push(&self, token: u64) {
        let mut tokens = self.0.borrow_mut();
        if tokens.last() != Some(&token) {
            tokens.push(token);
        }
    }
}

impl fmt::Debug for ReadyList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReadyList").field("tokens", &self.0.borrow().len()).finish()
    }
}

/// Who wants to know of which socket.
#[derive(Default)]
pub(crate) struct Watches(BTreeMap<SocketId, (ReadyList, u64)>);

impl Watches {
    pub(crate) fn set(&mut self, socket: SocketId, list: &ReadyList, token: u64) {
        self.0.insert(socket, (list.clone(), token));
    }

    pub(crate) fn clear(&mut self, socket: SocketId) {
        self.0.remove(&socket);
    }

    /// Puts the tokens of these sockets into their lists.
    pub(crate) fn deliver(&self, ready: &mut Vec<SocketId>) {
        for socket in ready.drain(..) {
            if let Some((list, token)) = self.0.get(&socket) {
                list.push(*token);
            }
        }
    }
}
