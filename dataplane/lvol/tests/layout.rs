//! The format of disks: round trips, damage, and images that earlier builds wrote.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::path::PathBuf;

use basalt_lvol::id::{ClusterId, DiskId, Epoch, Generation, PoolId, Revision, VolumeId};
use basalt_lvol::layout::{
    DamageReason, DiskGeometry, DiskRecord, EXTENT_BYTES, EncodedTable, EntrySource, HEADER_BYTES,
    PAGE_BYTES, Role, Run, Superblock, TableContent, TableError, TableHeader, TablePointer, VolumeFlags,
    VolumeIdentity, VolumeRecord, encode_table,
};
use proptest::prelude::*;

const AREA_BYTES: u64 = 2 << 20;

fn volume(id: u8, runs: Vec<Run>) -> VolumeRecord {
    let extents: u64 = runs.iter().map(|run| u64::from(run.extents)).sum();
    VolumeRecord {
        id: VolumeId::from_bytes([id; 16]),
        generation: Generation(u64::from(id) + 100),
        epoch: Epoch { incarnation: 1, counter: 7 },
        set_version: 0,
        name: format!("volume-{id}"),
        identity: VolumeIdentity {
            nqn: format!("nqn.2024-01.storage.basalt:volume-{id}"),
            nsid: 1,
            uuid: [id ^ 0x55; 16],
            nguid: [id ^ 0xaa; 16],
            serial: *b"BSLT0123456789ab    ",
        },
        size: extents * EXTENT_BYTES,
        block_bytes: 512,
        flags: VolumeFlags::default(),
        runs,
    }
}

fn disks() -> Vec<DiskRecord> {
    let lead = DiskGeometry::lead(1 << 30, 512).unwrap();
    let member = DiskGeometry::member(64 << 20, 512).unwrap();
    [(0x31, lead), (0x32, member)]
        .map(|(id, g)| DiskRecord {
            id: DiskId::from_bytes([id; 16]),
            device_bytes: g.device_bytes,
            data_offset: g.data_offset,
            extents: g.extents,
        })
        .to_vec()
}

fn encode(sequence: u64, volumes: &[VolumeRecord]) -> EncodedTable {
    let sources: Vec<EntrySource<'_>> = volumes.iter().map(EntrySource::Intact).collect();
    let content = TableContent {
        sequence,
        pool: PoolId::from_bytes([2; 16]),
        name: "nvme",
        revision: Revision { incarnation: 3, index: 42 },
        disks: &disks(),
        volumes: &sources,
    };
    encode_table(&content, AREA_BYTES).unwrap()
}

fn sample() -> Vec<VolumeRecord> {
    let long = (0..300).map(|i| Run { disk: 0, first: 2 * i + 200, extents: 1 }).collect();
    vec![
        volume(1, vec![Run { disk: 0, first: 0, extents: 64 }]),
        volume(2, long),
        volume(3, vec![Run { disk: 0, first: 64, extents: 3 }, Run { disk: 1, first: 0, extents: 63 }]),
    ]
}

/// All that a table says, or the first error above the entries.
type Decoded = (TableHeader, Vec<Result<VolumeRecord, DamageReason>>);

fn decode(bytes: &[u8]) -> Result<Decoded, TableError> {
    let header = TableHeader::decode(bytes, AREA_BYTES)?;
    let directory = header.decode_directory(&bytes[HEADER_BYTES..HEADER_BYTES + header.directory_bytes()])?;
    let entries = directory
        .iter()
        .map(|record| {
            let offset = usize::try_from(record.offset).unwrap();
            record.decode_entry(&bytes[offset..offset + record.bytes])
        })
        .collect();
    Ok((header, entries))
}

#[test]
fn a_table_reads_back_as_it_was_written() {
    let volumes = sample();
    let table = encode(9, &volumes);
    let (header, entries) = decode(&table.bytes).unwrap();
    assert_eq!(header.sequence, 9);
    assert_eq!(header.name, "nvme");
    assert_eq!(header.revision, Revision { incarnation: 3, index: 42 });
    assert_eq!(header.disks, disks());
    assert_eq!(header.checksum, table.header_checksum);
    assert_eq!(header.table_bytes(), table.bytes.len() as u64);
    assert_eq!(entries, volumes.into_iter().map(Ok).collect::<Vec<_>>());
}

#[test]
fn damage_anywhere_in_a_table_is_found_and_contained() {
    let volumes = sample();
    let table = encode(9, &volumes);
    let directory_end = 2 * PAGE_BYTES;
    for offset in 0..table.bytes.len() {
        let mut damaged = table.bytes.clone();
        damaged[offset] ^= 1 << (offset % 8);
        match decode(&damaged) {
            Err(error) => {
                assert!(offset < directory_end, "byte {offset} of an entry damaged the whole table: {error}");
            }
            Ok((_, entries)) => {
                assert!(offset >= directory_end, "damage at byte {offset} was not found");
                let hit = entries.iter().filter(|entry| **entry == Err(DamageReason::Checksum)).count();
                assert_eq!(hit, 1, "byte {offset}");
                assert_eq!(entries.iter().filter(|entry| entry.is_ok()).count(), 2);
            }
        }
    }
}

#[test]
fn a_damaged_entry_is_kept_as_it_was_found() {
    let volumes = sample();
    let mut bytes = encode(9, &volumes).bytes;
    let header = TableHeader::decode(&bytes, AREA_BYTES).unwrap();
    let directory =
        header.decode_directory(&bytes[HEADER_BYTES..HEADER_BYTES + header.directory_bytes()]).unwrap();
    let offset = usize::try_from(directory[1].offset).unwrap();
    bytes[offset + 77] ^= 0x10;
    let kept = &bytes[offset..offset + directory[1].bytes];
    let sources = [
        EntrySource::Intact(&volumes[0]),
        EntrySource::Kept(&directory[1], kept),
        EntrySource::Intact(&volumes[2]),
    ];
    let content = TableContent {
        sequence: 10,
        pool: header.pool,
        name: &header.name,
        revision: header.revision,
        disks: &header.disks,
        volumes: &sources,
    };
    let next = encode_table(&content, AREA_BYTES).unwrap();
    let (_, entries) = decode(&next.bytes).unwrap();
    assert_eq!(entries[1], Err(DamageReason::Checksum));
    let mut repaired = next.bytes;
    repaired[offset + 77] ^= 0x10;
    assert_eq!(decode(&repaired).unwrap().1[1].as_ref(), Ok(&volumes[1]));
}

#[test]
fn a_table_that_does_not_fit_is_refused() {
    let volumes: Vec<_> = (0..=255)
        .flat_map(|id| {
            let mut twin = volume(id, vec![Run { disk: 0, first: 0, extents: 1 }]);
            let mut other = twin.clone();
            other.id = VolumeId::from_bytes([&[id; 15][..], &[255]].concat().try_into().unwrap());
            twin.id = VolumeId::from_bytes([&[id; 15][..], &[0]].concat().try_into().unwrap());
            [twin, other]
        })
        .collect();
    let sources: Vec<EntrySource<'_>> = volumes.iter().map(EntrySource::Intact).collect();
    let content = TableContent {
        sequence: 1,
        pool: PoolId::from_bytes([2; 16]),
        name: "",
        revision: Revision::default(),
        disks: &disks(),
        volumes: &sources[..500],
    };
    assert!(encode_table(&content, AREA_BYTES).is_some());
    assert!(encode_table(&TableContent { volumes: &sources, ..content }, AREA_BYTES).is_none());
}

fn superblock(table: &EncodedTable) -> Superblock {
    Superblock {
        cluster: ClusterId::from_bytes([1; 16]),
        pool: PoolId::from_bytes([2; 16]),
        disk: DiskId::from_bytes([0x31; 16]),
        encryption_key: [0; 32],
        sequence: 9,
        role: Role::Lead,
        disk_index: 0,
        geometry: DiskGeometry::lead(1 << 30, 512).unwrap(),
        table: Some(TablePointer { bytes: table.bytes.len() as u64, header_checksum: table.header_checksum }),
        read_only: false,
    }
}

/// The bytes that version 0 wrote when it was new. Never regenerate them for a change of the code: raise the version instead.
/// `BASALT_WRITE_GOLDEN=1` writes missing files only.
fn golden(name: &str, current: &[u8]) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if !path.exists() && std::env::var_os("BASALT_WRITE_GOLDEN").is_some() {
        std::fs::write(&path, current).unwrap();
    }
    std::fs::read(&path).unwrap()
}

#[test]
fn golden_images_are_read_and_written_alike() {
    let volumes = sample();
    let table = encode(9, &volumes);
    let written = golden("v0-table.bin", &table.bytes);
    assert_eq!(decode(&written).unwrap().1, volumes.into_iter().map(Ok).collect::<Vec<_>>());
    assert_eq!(written, table.bytes);
    let page = superblock(&table).encode();
    let written = golden("v0-superblock.bin", &page);
    assert_eq!(Superblock::decode(&written, 1), Ok(superblock(&table)));
    assert_eq!(written, page);
}

proptest! {
    /// Foreign bytes give errors and never a panic, also where the checksums happen to be right.
    #[test]
    fn hostile_tables_never_panic(edits in prop::collection::vec((0usize..HEADER_BYTES + PAGE_BYTES, any::<u8>()), 1..12)) {
        let mut bytes = encode(9, &sample()).bytes;
        for (offset, value) in edits {
            bytes[offset] = value;
        }
        let sum = basalt_lvol::layout::checksum(&bytes[HEADER_BYTES..2 * HEADER_BYTES]);
        bytes[72..80].copy_from_slice(&sum.to_le_bytes());
        let sum = basalt_lvol::layout::checksum(&bytes[..HEADER_BYTES - 8]);
        bytes[HEADER_BYTES - 8..HEADER_BYTES].copy_from_slice(&sum.to_le_bytes());
        if let Ok(header) = TableHeader::decode(&bytes, AREA_BYTES) {
            prop_assert!(header.table_bytes() <= AREA_BYTES);
            let end = HEADER_BYTES + header.directory_bytes();
            if end <= bytes.len() {
                for record in header.decode_directory(&bytes[HEADER_BYTES..end]).unwrap_or_default() {
                    prop_assert!(record.offset + record.bytes as u64 <= header.table_bytes());
                }
            }
        }
    }
}
