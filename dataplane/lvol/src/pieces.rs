//! A request that is carried out piece by piece: its memory is cut along the pieces and joined again at its end.

use std::collections::VecDeque;

use basalt_bdev::{BlockCount, BlockSize, Completion, IoError, Lba, Operation, Request};
use basalt_dma::{Buffer, Lent, Payload};

use crate::volume::Mapping;

/// A request in pieces, one of which is under way at a time.
pub(crate) struct Pieces {
    operation: Operation,
    /// What comes next: a block of the volume, or for a flush the index of a disk.
    next: u64,
    /// Where it ends.
    end: u64,
    /// Length of the piece that is under way.
    piece: u64,
    memory: Memory,
    failure: Option<IoError>,
}

/// The memory of a request.
enum Memory {
    None,
    Lent { view: Lent, used: usize },
    Buffers { done: Vec<Part>, rest: VecDeque<Part>, taken: Vec<bool>, scattered: bool },
}

/// A buffer, and whether it is the continuation of the one before it.
struct Part {
    buffer: Buffer,
    continues: bool,
}

impl Pieces {
    /// A request that is to be carried out on a volume that lies on `disks` disks.
    pub(crate) fn new(request: Request, disks: usize) -> Self {
        let (next, end) = match request.operation {
            Operation::Flush => (0, disks as u64),
            _ => (request.lba.0, request.lba.0 + request.blocks.0),
        };
        let memory = Memory::of(request.payload);
        Self { operation: request.operation, next, end, piece: 0, memory, failure: None }
    }

    /// How the request ended, if it has.
    pub(crate) fn outcome(&self) -> Option<Result<(), IoError>> {
        match self.failure {
            Some(error) => Some(Err(error)),
            None => (self.next == self.end).then_some(Ok(())),
        }
    }

    /// The next piece as a request to a disk of the volume.
    pub(crate) fn next(&mut self, tag: u64, mapping: &Mapping, block: BlockSize) -> (usize, Request) {
        let operation = self.operation;
        if operation == Operation::Flush {
            self.piece = 1;
            let disk = usize::try_from(self.next).expect("an index of a disk");
            return (disk, Request::flush(tag));
        }
        let span = mapping.span(Lba(self.next));
        self.piece = span.end.min(self.end) - self.next;
        let blocks = BlockCount(self.piece);
        let payload = self.memory.take(block.bytes_of(blocks));
        (span.disk, Request { tag, operation, lba: span.target_of(Lba(self.next)), blocks, payload })
    }

    /// The piece was not taken: its memory comes back and it will be asked for again.
    pub(crate) fn put_back(&mut self, payload: Payload) {
        self.memory.put_back(payload);
    }

    /// The piece has ended.
    pub(crate) fn done(&mut self, completion: Completion) {
        self.memory.put_done(completion.payload);
        self.next += self.piece;
        if let Err(error) = completion.result {
            self.failure = Some(error);
        }
    }

    /// No further piece is begun.
    pub(crate) fn abort(&mut self) {
        self.failure = self.failure.or(Some(IoError::Aborted));
    }

    /// The request's memory, in the form in which it came.
    pub(crate) fn join(&mut self) -> Payload {
        std::mem::replace(&mut self.memory, Memory::None).join()
    }
}

impl Memory {
    fn of(payload: Payload) -> Self {
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

    /// Cuts off the next bytes.
    fn take(&mut self, bytes: u64) -> Payload {
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

    fn put_done(&mut self, payload: Payload) {
        if let Self::Buffers { done, taken, .. } = self {
            done.extend(parts(payload, taken));
        }
    }

    fn join(self) -> Payload {
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
