use std::slice;

use crate::buffer::Buffer;
use crate::lent::Lent;
use crate::segment::Segment;
use crate::slab::RegionId;

/// The memory that a request takes along and its completion brings back.
#[derive(Debug, Default)]
pub enum Payload {
    /// No memory: the operation carries none, or a read lets the device choose (a lent view or a pool's buffer).
    #[default]
    None,
    /// One owned buffer.
    Buffer(Buffer),
    /// Several owned buffers, one after the other.
    Scattered(Vec<Buffer>),
    /// A view of memory with another owner: a source for writes, a possible answer to reads.
    Lent(Lent),
}

impl Payload {
    /// Bytes in all parts.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::None => 0,
            Self::Buffer(buffer) => buffer.len(),
            Self::Scattered(buffers) => buffers.iter().map(Buffer::len).sum(),
            Self::Lent(view) => view.len(),
        }
    }

    /// True if there is no byte.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The region of a pool that holds all of it, if it is in one piece.
    #[must_use]
    pub fn region(&self) -> Option<RegionId> {
        match self {
            Self::Buffer(buffer) => buffer.region(),
            Self::Lent(view) => view.region(),
            Self::None | Self::Scattered(_) => None,
        }
    }

    /// The parts in order, as sources of bytes.
    pub fn segments(&self) -> impl Iterator<Item = Segment<'_>> + Clone {
        let (buffers, view) = match self {
            Self::None => (&[][..], None),
            Self::Buffer(buffer) => (slice::from_ref(buffer), None),
            Self::Scattered(buffers) => (&buffers[..], None),
            Self::Lent(view) => (&[][..], Some(view)),
        };
        buffers.iter().map(|buffer| Segment::new(buffer)).chain(view.map(Segment::lent))
    }

    /// The owned parts in order, to be written to; none for a lent view.
    pub fn buffers_mut(&mut self) -> &mut [Buffer] {
        match self {
            Self::Buffer(buffer) => slice::from_mut(buffer),
            Self::Scattered(buffers) => buffers,
            Self::None | Self::Lent(_) => &mut [],
        }
    }

    /// The one contiguous owned buffer, if that is what it is.
    #[must_use]
    pub fn into_buffer(self) -> Option<Buffer> {
        match self {
            Self::Buffer(buffer) => Some(buffer),
            Self::None | Self::Scattered(_) | Self::Lent(_) => None,
        }
    }

    /// Copies bytes from `offset` on into all of `target`.
    ///
    /// # Panics
    /// If the payload ends before `target` is full.
    pub fn copy_to(&self, mut offset: usize, target: &mut [u8]) {
        if let Self::Lent(view) = self {
            view.copy_to(offset, target);
            return;
        }
        let buffers = match self {
            Self::Buffer(buffer) => slice::from_ref(buffer),
            Self::Scattered(buffers) => &buffers[..],
            Self::None | Self::Lent(_) => &[],
        };
        let mut rest = target;
        for buffer in buffers {
            let from = offset.min(buffer.len());
            offset -= from;
            let count = rest.len().min(buffer.len() - from);
            let (now, later) = rest.split_at_mut(count);
            now.copy_from_slice(&buffer[from..from + count]);
            rest = later;
        }
        assert!(rest.is_empty(), "copy beyond the end of a payload");
    }

    /// A copy of all bytes.
    #[must_use]
    pub fn to_vec(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.len()];
        self.copy_to(0, &mut bytes);
        bytes
    }
}

impl From<Buffer> for Payload {
    fn from(buffer: Buffer) -> Self {
        Self::Buffer(buffer)
    }
}

impl From<Lent> for Payload {
    fn from(view: Lent) -> Self {
        Self::Lent(view)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(payload: &Payload) -> Vec<u8> {
        let mut all = Vec::new();
        payload.segments().for_each(|segment| segment.append_to(&mut all));
        all
    }

    #[test]
    fn every_form_gives_its_bytes_in_order() {
        let scattered =
            Payload::Scattered(vec![Buffer::copy_of(b"ab"), Buffer::default(), Buffer::copy_of(b"cde")]);
        assert_eq!(bytes(&scattered), b"abcde");
        assert_eq!(scattered.to_vec(), b"abcde");
        let mut middle = [0; 3];
        scattered.copy_to(1, &mut middle);
        assert_eq!(&middle, b"bcd");
        let lent = Payload::from(Buffer::copy_of(b"xyz").into_lent());
        assert_eq!((bytes(&lent), lent.to_vec()), (b"xyz".to_vec(), b"xyz".to_vec()));
        assert!(Payload::None.is_empty() && bytes(&Payload::None).is_empty());
    }

    #[test]
    #[should_panic(expected = "beyond the end of a payload")]
    fn copying_too_much_is_a_bug() {
        Payload::from(Buffer::copy_of(b"ab")).copy_to(1, &mut [0; 2]);
    }

    #[test]
    fn lent_buffers_come_back_when_no_one_looks() {
        let lent = Buffer::copy_of(b"1234").into_lent();
        let other = lent.clone();
        assert_eq!(other.slice(1, 2).to_vec(), b"23");
        assert_eq!(other.slice(1, 2).still(), Some(&b"23"[..]));
        let lent = lent.try_into_buffer().unwrap_err();
        drop(other);
        assert_eq!(&lent.try_into_buffer().unwrap()[..], b"1234");
    }

    #[test]
    fn a_payload_is_small() {
        assert!(size_of::<Payload>() <= 32, "{}", size_of::<Payload>());
    }
}
