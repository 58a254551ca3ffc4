//! The memory of a request that is carried out piece by piece: cut along the pieces and joined again at its end.

use std::collections::VecDeque;

use basalt_dma::{Buffer, Lent, Payload};

/// The memory of a request.
pub(crate) enum Memory {
    None,
    Lent { view: Lent, used: usize },
    Buffers { done: Vec<Part>, rest: VecDeque<Part>, taken: Vec<bool>, scattered: bool },
}

/// A buffer, and whether it is the continuation of the one before it.
pub(crate) struct Part {
    buffer: Buffer,
    continues: bool,
}

impl Memory {
    /// A request's memory, of which nothing is used yet.
    pub(crate) fn of(payload: Payload) -> Self {
        let whole = |buffer| Part { buffer, continues: false };
        let (parts, scattered) = match payload {
            Payload::None => return Self::None,
            Payload::Lent(view) => return Self::Lent { view, used: 0 },
            Payload::Buffer(buffer) => (vec![buffer], false),
            Payload::Scattered(buffers) => (buffers, true),
        };
        let rest = parts.into_iter().map(whole).collect();
        Self::Buffers { done: Vec::new(), rest, taken: Vec::new(), scattered }
    }

    /// Cuts off the next bytes. What was cut off before is to be put back, or done, first.
    pub(crate) fn take(&mut self, bytes: u64) -> Payload {
        let mut missing = usize::try_from(bytes).unwrap_or(usize::MAX);
        match self {
            Self::None => Payload::None,
            Self::Lent { view, used } => {
                let piece = view.slice(*used, missing);
                *used += missing;
                Payload::Lent(piece)
            }
            Self::Buffers { rest, taken, .. } => {
                let mut piece = Vec::new();
                while missing > 0 {
                    let Some(Part { mut buffer, continues }) = rest.pop_front() else {
                        panic!("the payload's length was checked")
                    };
                    if buffer.len() > missing {
                        rest.push_front(Part { buffer: buffer.split_off(missing), continues: true });
                    }
                    missing -= buffer.len();
                    taken.push(continues);
                    piece.push(buffer);
                }
                match piece.len() {
                    1 => Payload::Buffer(piece.remove(0)),
                    _ => Payload::Scattered(piece),
                }
            }
        }
    }

    /// The piece was not used: it is cut off again next time.
    #[cfg(test)]
    fn put_back(&mut self, payload: Payload) {
        match self {
            Self::None => {}
            Self::Lent { used, .. } => *used -= payload.len(),
            Self::Buffers { rest, taken, .. } => {
                let parts: Vec<Part> = parts(payload, taken).collect();
                for part in parts.into_iter().rev() {
                    rest.push_front(part);
                }
            }
        }
    }

    /// The piece has done its service.
    pub(crate) fn put_done(&mut self, payload: Payload) {
        if let Self::Buffers { done, taken, .. } = self {
            done.extend(parts(payload, taken));
        }
    }

    /// The memory in the form in which it came.
    pub(crate) fn join(self) -> Payload {
        let (done, rest, scattered) = match self {
            Self::None => return Payload::None,
            Self::Lent { view, .. } => return Payload::Lent(view),
            Self::Buffers { done, rest, scattered, .. } => (done, rest, scattered),
        };
        let mut whole: Vec<Buffer> = Vec::new();
        for Part { buffer, continues } in done.into_iter().chain(rest) {
            match whole.last_mut() {
                Some(last) if continues => {
                    last.unsplit(buffer).expect("joined where it was cut");
                }
                _ => whole.push(buffer),
            }
        }
        if scattered { Payload::Scattered(whole) } else { Payload::Buffer(whole.remove(0)) }
    }
}

/// The buffers of a piece with what was noted when they were taken.
fn parts(payload: Payload, taken: &mut Vec<bool>) -> impl Iterator<Item = Part> {
    let buffers = match payload {
        Payload::Buffer(buffer) => vec![buffer],
        Payload::Scattered(buffers) => buffers,
        Payload::None | Payload::Lent(_) => Vec::new(),
    };
    assert_eq!(buffers.len(), taken.len(), "a disk gives back the memory that it got");
    let taken = std::mem::take(taken);
    buffers.into_iter().zip(taken).map(|(buffer, continues)| Part { buffer, continues })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sizes(payload: &Payload) -> Vec<usize> {
        payload.segments().map(|segment| segment.len()).collect()
    }

    #[test]
    fn one_buffer_is_cut_and_comes_back_whole() {
        let mut buffer = Buffer::zeroed(4 * 512);
        for (index, byte) in buffer.iter_mut().enumerate() {
            *byte = u8::try_from(index / 512).unwrap();
        }
        let start = buffer.as_ptr();
        let mut memory = Memory::of(buffer.into());
        let first = memory.take(512);
        memory.put_done(first);
        let second = memory.take(1024);
        assert_eq!(second.to_vec()[0], 1);
        memory.put_back(second);
        let second = memory.take(1024);
        memory.put_done(second);
        let last = memory.take(512);
        assert_eq!(last.to_vec(), vec![3; 512]);
        memory.put_done(last);
        let buffer = memory.join().into_buffer().unwrap();
        assert_eq!((buffer.as_ptr(), buffer.len(), buffer.capacity()), (start, 2048, 4096));
    }

    #[test]
    fn scattered_buffers_keep_their_shape() {
        let buffers = [512, 1024, 512].map(Buffer::zeroed).into();
        let mut memory = Memory::of(Payload::Scattered(buffers));
        let first = memory.take(1024);
        assert_eq!(sizes(&first), [512, 512]);
        memory.put_done(first);
        let second = memory.take(512);
        memory.put_done(second);
        assert_eq!(sizes(&memory.join()), [512, 1024, 512]);
    }

    #[test]
    fn views_are_cut_without_end() {
        let mut memory = Memory::of(Buffer::copy_of(b"abcdef").into_lent().into());
        assert_eq!(memory.take(2).to_vec(), b"ab");
        let piece = memory.take(3);
        assert_eq!(piece.to_vec(), b"cde");
        memory.put_back(piece);
        assert_eq!(memory.take(4).to_vec(), b"cdef");
        assert_eq!(memory.join().to_vec(), b"abcdef");
    }
}
