//! What channels ask a pool's owner, from any reactor, and what it answers.

use basalt_bdev::IoError;
use futures::SinkExt;
use futures::channel::{mpsc, oneshot};

use crate::id::VolumeId;
use crate::layout::Place;

/// Questions that wait for the owner; beyond it a question waits for its turn. Each that is under way has a place besides.
const QUEUE: usize = 64;

/// What a channel asks for.
#[derive(Clone, Debug)]
pub(crate) enum Ask {
    /// Fill the chunk of the map that holds this extent.
    Load { extent: u64 },
    /// Let these pieces of an extent be written: give each a place that is the volume's own. Of the first and the last only the
    /// units in `head` and `tail` are. With `together` all in one extent, and all of each piece.
    Write { extent: u64, pieces: u16, head: u16, tail: u16, together: bool },
    /// What was granted was written, or not. When that is answered it survives the end of the process; `durable` a power failure.
    Written { grant: u64, ok: bool, durable: bool },
    /// Let these pieces of an extent lie nowhere.
    Discard { extent: u64, pieces: u16, durable: bool },
    /// Make all durable that was written before.
    Sync,
}

/// What is asked, by whom.
#[derive(Debug)]
pub(crate) struct Message {
    pub(crate) volume: VolumeId,
    /// The fence at which the channel was opened.
    pub(crate) fence: u64,
    pub(crate) ask: Ask,
    pub(crate) reply: oneshot::Sender<Reply>,
}

pub(crate) type Reply = Result<Answer, IoError>;

/// What the owner answers.
#[derive(Debug)]
pub(crate) enum Answer {
    /// It is done.
    Done,
    /// These pieces may be written; then that is to be told.
    Granted(Grant),
}

/// The right to write pieces of an extent. Nobody else writes the extent through the owner meanwhile.
#[derive(Debug)]
pub(crate) struct Grant {
    pub(crate) id: u64,
    /// The pieces in order.
    pub(crate) targets: Vec<Target>,
}

/// Where a piece is to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) piece: usize,
    pub(crate) place: Place,
    pub(crate) fill: Fill,
    /// Units of it that hold nothing yet: those that are written in part only are filled up with zeroes.
    pub(crate) holes: u16,
}

/// What the rest of a piece must hold if only a part of it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fill {
    /// What is there.
    Keep,
    /// Nothing: it has not been written.
    Fresh,
    /// What is in this extent.
    Copy(Place),
}

/// The way to a pool's owner. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Port {
    sender: mpsc::Sender<Message>,
}

/// A port and the owner's end of it.
pub(crate) fn port() -> (Port, mpsc::Receiver<Message>) {
    let (sender, receiver) = mpsc::channel(QUEUE);
    (Port { sender }, receiver)
}

impl Port {
    /// Asks and waits for the answer.
    pub(crate) async fn ask(&self, volume: VolumeId, fence: u64, ask: Ask) -> Reply {
        let (reply, answer) = oneshot::channel();
        let message = Message { volume, fence, ask, reply };
        let mut sender = self.sender.clone();
        sender.send(message).await.map_err(|_| IoError::DeviceGone)?;
        answer.await.unwrap_or(Err(IoError::DeviceGone))
    }
}
