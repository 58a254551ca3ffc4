//! The bytes of segments and sealed documents. Pure; `docs/control-plane-format.md` has the byte maps.

use crate::message::{EntryKind, LogEntry};
use crc_fast::{CrcAlgorithm, Digest, checksum};

/// The format version that this program writes.
pub(crate) const VERSION: u32 = 1;
/// The length of a segment's header.
pub(crate) const SEGMENT_HEADER: usize = 24;
/// The length of a record before its body.
pub(crate) const RECORD_HEADER: usize = 20;
/// The length of a sealed document before its payload.
pub(crate) const DOCUMENT_HEADER: usize = 24;
/// The longest body. A longer length is damage.
pub(crate) const BODY_MAX: usize = 64 << 20;

const SEGMENT_MAGIC: [u8; 8] = *b"BSLTRLOG";
const RECORD_MAGIC: [u8; 4] = *b"BREC";

/// CRC-32C.
pub(crate) fn crc(bytes: &[u8]) -> u32 {
    low32(checksum(CrcAlgorithm::Crc32Iscsi, bytes))
}

/// A 32-bit CRC as the library hands it out.
fn low32(value: u64) -> u32 {
    u32::try_from(value & u64::from(u32::MAX)).unwrap_or_default()
}

/// Reads little-endian numbers off the front of a slice.
pub(crate) struct Reader<'a>(pub(crate) &'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(length)?;
        self.0 = tail;
        Some(head)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    pub(crate) fn u8(&mut self) -> Option<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }
}

/// What is durable of raft besides the log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct HardState {
    pub(crate) term: u64,
    pub(crate) vote: u64,
    pub(crate) commit: u64,
}

/// One record of a segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Record {
    Entry(LogEntry),
    HardState(HardState),
    Reset { index: u64, term: u64 },
}

impl Record {
    fn body(&self) -> Vec<u8> {
        let mut body = Vec::new();
        match self {
            Record::Entry(entry) => {
                body.reserve(30 + entry.data.len() + entry.context.len());
                body.push(1);
                body.push(match entry.kind {
                    EntryKind::Command => 0,
                    EntryKind::Membership => 1,
                });
                body.extend_from_slice(&entry.term.to_le_bytes());
                body.extend_from_slice(&entry.index.to_le_bytes());
                body.extend_from_slice(&length32(entry.data.len()).to_le_bytes());
                body.extend_from_slice(&entry.data);
                body.extend_from_slice(&entry.context);
            }
            Record::HardState(state) => {
                body.push(2);
                body.extend_from_slice(&state.term.to_le_bytes());
                body.extend_from_slice(&state.vote.to_le_bytes());
                body.extend_from_slice(&state.commit.to_le_bytes());
            }
            Record::Reset { index, term } => {
                body.push(3);
                body.extend_from_slice(&index.to_le_bytes());
                body.extend_from_slice(&term.to_le_bytes());
            }
        }
        assert!(body.len() <= BODY_MAX, "a log record of {} bytes", body.len());
        body
    }

    fn parse(body: &[u8]) -> Option<Self> {
        let mut reader = Reader(body);
        let record = match reader.u8()? {
            1 => {
                let kind = match reader.u8()? {
                    0 => EntryKind::Command,
                    1 => EntryKind::Membership,
                    _ => return None,
                };
                let (term, index) = (reader.u64()?, reader.u64()?);
                let length = usize::try_from(reader.u32()?).ok()?;
                let data = reader.take(length)?.to_vec();
                let context = reader.take(reader.0.len())?.to_vec();
                Record::Entry(LogEntry { kind, term, index, data, context })
            }
            2 => Record::HardState(HardState {
                term: reader.u64()?,
                vote: reader.u64()?,
                commit: reader.u64()?,
            }),
            3 => Record::Reset { index: reader.u64()?, term: reader.u64()? },
            _ => return None,
        };
        reader.0.is_empty().then_some(record)
    }

    /// Appends the record to `buffer`, which begins at `base` of the segment.
    pub(crate) fn emit(&self, buffer: &mut Vec<u8>, sequence: u64, base: u64, synced: u64) {
        let body = self.body();
        let offset = base + buffer.len() as u64;
        buffer.extend_from_slice(&RECORD_MAGIC);
        buffer.extend_from_slice(&length32(body.len()).to_le_bytes());
        buffer.extend_from_slice(&record_crc(sequence, offset, synced, &body).to_le_bytes());
        buffer.extend_from_slice(&synced.to_le_bytes());
        buffer.extend_from_slice(&body);
    }
}

fn length32(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

fn record_crc(sequence: u64, offset: u64, synced: u64, body: &[u8]) -> u32 {
    let mut digest = Digest::new(CrcAlgorithm::Crc32Iscsi);
    digest.update(&sequence.to_le_bytes());
    digest.update(&offset.to_le_bytes());
    digest.update(&synced.to_le_bytes());
    digest.update(body);
    low32(digest.finalize())
}

/// A record that verified.
pub(crate) struct Parsed {
    pub(crate) record: Record,
    /// Where the next record begins.
    pub(crate) end: usize,
    /// Up to where the segment was synced when the record was written.
    pub(crate) synced: u64,
}

/// The record at `offset` of a segment; `None` when there is none that verifies.
pub(crate) fn parse_record(segment: &[u8], sequence: u64, offset: usize) -> Option<Parsed> {
    let mut reader = Reader(segment.get(offset..)?);
    if reader.take(4)? != RECORD_MAGIC {
        return None;
    }
    let length = usize::try_from(reader.u32()?).ok().filter(|length| *length <= BODY_MAX)?;
    let expected = reader.u32()?;
    let synced = reader.u64()?;
    let body = reader.take(length)?;
    if record_crc(sequence, offset as u64, synced, body) != expected {
        return None;
    }
    Some(Parsed { record: Record::parse(body)?, end: offset + RECORD_HEADER + length, synced })
}

/// Whether a record after `offset` verifies and says that `offset` had been synced: what is there was lost by the disk.
pub(crate) fn was_synced(segment: &[u8], sequence: u64, offset: usize) -> bool {
    let mut at = offset + 1;
    while let Some(found) = find(&segment[at.min(segment.len())..], &RECORD_MAGIC) {
        at += found;
        match parse_record(segment, sequence, at) {
            Some(parsed) if parsed.synced > offset as u64 => return true,
            Some(parsed) => at = parsed.end,
            None => at += 1,
        }
    }
    false
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

/// The header of a segment.
pub(crate) fn segment_header(sequence: u64) -> [u8; SEGMENT_HEADER] {
    let mut header = [0; SEGMENT_HEADER];
    header[..8].copy_from_slice(&SEGMENT_MAGIC);
    header[8..12].copy_from_slice(&VERSION.to_le_bytes());
    header[12..16].copy_from_slice(&crc(&sequence.to_le_bytes()).to_le_bytes());
    header[16..].copy_from_slice(&sequence.to_le_bytes());
    header
}

/// What a segment's or document's header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Header {
    Valid,
    /// Not what it should be.
    Damaged,
    /// Written by a later program.
    Version(u32),
}

/// Checks the header of a segment.
pub(crate) fn check_segment_header(segment: &[u8], sequence: u64) -> Header {
    let mut reader = Reader(segment);
    if reader.take(8) != Some(&SEGMENT_MAGIC) {
        return Header::Damaged;
    }
    match reader.u32() {
        Some(VERSION) => {}
        Some(found) => return Header::Version(found),
        None => return Header::Damaged,
    }
    let (Some(expected), Some(found)) = (reader.u32(), reader.u64()) else { return Header::Damaged };
    if found == sequence && expected == crc(&found.to_le_bytes()) { Header::Valid } else { Header::Damaged }
}

/// A sealed document around `payload`.
pub(crate) fn seal(magic: [u8; 8], payload: &[u8]) -> Vec<u8> {
    let mut sealed = Vec::with_capacity(DOCUMENT_HEADER + payload.len());
    sealed.extend_from_slice(&magic);
    sealed.extend_from_slice(&VERSION.to_le_bytes());
    sealed.extend_from_slice(&[0; 4]);
    sealed.extend_from_slice(&(payload.len() as u64).to_le_bytes());
    sealed.extend_from_slice(payload);
    let sum = crc(&sealed[16..]);
    sealed[12..16].copy_from_slice(&sum.to_le_bytes());
    sealed
}

/// The payload of a sealed document, or what is wrong with it.
pub(crate) fn unseal(magic: [u8; 8], sealed: &[u8]) -> Result<&[u8], Header> {
    let mut reader = Reader(sealed);
    if reader.take(8) != Some(&magic) {
        return Err(Header::Damaged);
    }
    match reader.u32() {
        Some(VERSION) => {}
        Some(found) => return Err(Header::Version(found)),
        None => return Err(Header::Damaged),
    }
    let (Some(expected), Some(length)) = (reader.u32(), reader.u64()) else { return Err(Header::Damaged) };
    if length != reader.0.len() as u64 || crc(&sealed[16..]) != expected {
        return Err(Header::Damaged);
    }
    Ok(reader.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_record() -> impl Strategy<Value = Record> {
        let bytes = || proptest::collection::vec(any::<u8>(), 0..64);
        prop_oneof![
            (any::<bool>(), any::<u64>(), any::<u64>(), bytes(), bytes()).prop_map(
                |(member, term, index, data, context)| {
                    let kind = if member { EntryKind::Membership } else { EntryKind::Command };
                    Record::Entry(LogEntry { kind, term, index, data, context })
                }
            ),
            (any::<u64>(), any::<u64>(), any::<u64>())
                .prop_map(|(term, vote, commit)| Record::HardState(HardState { term, vote, commit })),
            (any::<u64>(), any::<u64>()).prop_map(|(index, term)| Record::Reset { index, term }),
        ]
    }

    proptest! {
        #[test]
        fn records_survive_a_round_trip(records in proptest::collection::vec(any_record(), 1..8), sequence: u64) {
            let mut segment = segment_header(sequence).to_vec();
            for record in &records {
                record.emit(&mut segment, sequence, 0, 24);
            }
            let (mut at, mut read) = (SEGMENT_HEADER, Vec::new());
            while at < segment.len() {
                let parsed = parse_record(&segment, sequence, at).expect("a whole record");
                at = parsed.end;
                read.push(parsed.record);
            }
            prop_assert_eq!(read, records);
        }

        #[test]
        fn any_flipped_bit_is_noticed(record in any_record(), position: prop::sample::Index, bit in 0..8_u32) {
            let mut segment = segment_header(7).to_vec();
            record.emit(&mut segment, 7, 0, 24);
            let at = SEGMENT_HEADER + position.index(segment.len() - SEGMENT_HEADER);
            segment[at] ^= 1 << bit;
            prop_assert!(parse_record(&segment, 7, SEGMENT_HEADER).is_none());
        }

        #[test]
        fn a_record_is_valid_only_in_its_place(record in any_record()) {
            let mut buffer = Vec::new();
            record.emit(&mut buffer, 7, 24, 24);
            let mut segment = segment_header(7).to_vec();
            segment.extend_from_slice(&buffer);
            prop_assert!(parse_record(&segment, 7, 24).is_some());
            prop_assert!(parse_record(&segment, 8, 24).is_none());
            segment.insert(24, 0);
            prop_assert!(parse_record(&segment, 7, 25).is_none());
        }

        #[test]
        fn sealed_documents_notice_every_flip(payload in proptest::collection::vec(any::<u8>(), 0..64),
                                              position: prop::sample::Index, bit in 0..8_u32) {
            let mut sealed = seal(*b"BSLTIDEN", &payload);
            prop_assert_eq!(unseal(*b"BSLTIDEN", &sealed), Ok(&payload[..]));
            prop_assert!(unseal(*b"BSLTSNAP", &sealed).is_err());
            let at = position.index(sealed.len());
            sealed[at] ^= 1 << bit;
            prop_assert!(unseal(*b"BSLTIDEN", &sealed).is_err());
        }
    }
}
