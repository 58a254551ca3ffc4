//! A byte pipe in memory that cuts what it carries where its seed says.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::IoSliceMut;
use std::rc::Rc;

use basalt_clock::{Random, SeededRandom};
use basalt_dma::Segment;
use basalt_reactor::{Received, Sent, SocketError};

use crate::wire::Wire;

#[derive(Debug)]
struct Lane {
    bytes: VecDeque<u8>,
    ended: bool,
    /// Whoever reads it does not, and nothing more fits in.
    stopped: bool,
}

/// One end of a pipe.
#[derive(Debug, Clone)]
pub(super) struct End {
    incoming: Rc<RefCell<Lane>>,
    outgoing: Rc<RefCell<Lane>>,
    random: Rc<RefCell<SeededRandom>>,
    /// Most bytes that one call carries.
    chunk_max: u64,
}

/// Two ends that cut at random places, pieces of at most `chunk_max` bytes.
pub(super) fn pipe(seed: u64, chunk_max: u64) -> (End, End) {
    let lane = || Rc::new(RefCell::new(Lane { bytes: VecDeque::new(), ended: false, stopped: false }));
    let (there, back) = (lane(), lane());
    let random = Rc::new(RefCell::new(SeededRandom::new(seed)));
    let end = |incoming: &Rc<RefCell<Lane>>, outgoing: &Rc<RefCell<Lane>>| End {
        incoming: Rc::clone(incoming),
        outgoing: Rc::clone(outgoing),
        random: Rc::clone(&random),
        chunk_max,
    };
    (end(&there, &back), end(&back, &there))
}

impl End {
    fn chunk(&self) -> usize {
        usize::try_from(self.random.borrow_mut().within(1..self.chunk_max + 1)).unwrap()
    }

    /// Sends raw bytes to the other end.
    pub(super) fn inject(&self, bytes: &[u8]) {
        self.outgoing.borrow_mut().bytes.extend(bytes);
    }

    /// From now on nothing that the other end sends is taken.
    pub(super) fn stop_reading(&self) {
        self.incoming.borrow_mut().stopped = true;
    }

    /// Ends [`End::stop_reading`].
    pub(super) fn read_on(&self) {
        self.incoming.borrow_mut().stopped = false;
    }

    /// Everything that the other end has sent.
    pub(super) fn drain(&self) -> Vec<u8> {
        self.incoming.borrow_mut().bytes.drain(..).collect()
    }
}

impl Wire for End {
    fn receive(&self, targets: &mut [IoSliceMut<'_>]) -> Result<Received, SocketError> {
        let mut lane = self.incoming.borrow_mut();
        if lane.bytes.is_empty() {
            return Ok(if lane.ended { Received::End } else { Received::Nothing });
        }
        let mut left = self.chunk().min(lane.bytes.len());
        let mut count = 0;
        for target in targets {
            let part = left.min(target.len());
            for (place, byte) in target.iter_mut().zip(lane.bytes.drain(..part)) {
                *place = byte;
            }
            left -= part;
            count += part;
        }
        Ok(Received::Bytes(count))
    }

    fn send(&self, sources: &[Segment<'_>]) -> Result<Sent, SocketError> {
        if self.outgoing.borrow().stopped {
            return Ok(Sent::Nothing);
        }
        let mut bytes = Vec::new();
        sources.iter().for_each(|source| source.append_to(&mut bytes));
        let count = self.chunk().min(bytes.len());
        self.outgoing.borrow_mut().bytes.extend(&bytes[..count]);
        Ok(Sent::Bytes(count))
    }

    fn shutdown(&self) {
        self.outgoing.borrow_mut().ended = true;
    }

    fn has_peer_ended(&self) -> bool {
        self.incoming.borrow().ended
    }
}
