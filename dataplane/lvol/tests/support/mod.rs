//! A reactor that needs no machine, and disks in memory.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::missing_panics_doc,
    reason = "shared by several tests, which may panic"
)]

pub mod late;

use std::future::Future;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use basalt_bdev::{AsyncChannel, BlockCount, BlockDevice, BlockSize, IoError, Lba};
use basalt_device_mem::{ImageDevice, RamDevice};
use basalt_dma::Buffer;
use basalt_lvol::id::{ClusterId, Epoch, Generation, Revision, VolumeId};
use basalt_lvol::layout::{DiskLayout, EXTENT_BYTES, VolumeIdentity};
use basalt_lvol::{CreateError, NewPool, NewPoolDisk, NewSnapshot, NewVolume, Pool, PoolDisk};
use basalt_reactor::sim::{World, WorldOptions};
use basalt_reactor::{Handle, Progress, Reactor, ReactorOptions};

/// Runs a future on a reactor of a simulated world; `seed` determines its randomness.
pub fn run<T: 'static, F: Future<Output = T> + 'static>(seed: u64, body: impl FnOnce(Handle) -> F) -> T {
    let world = World::new(seed, WorldOptions::default());
    let node = world.add_node(IpAddr::from([10, 0, 0, 1]));
    let options = ReactorOptions { buffer_bytes: 32 << 20, ..ReactorOptions::default() };
    let mut reactor = Reactor::new(Box::new(world.driver(node)), &options);
    let handle = reactor.handle();
    let mut task = handle.spawn(body(handle.clone()));
    let mut idle = 0;
    let end = world.now() + Duration::from_secs(3600);
    loop {
        let turn = reactor.turn();
        if let Some(output) = task.take_output() {
            return output;
        }
        let next = turn.next_timer.into_iter().chain(world.next_event()).min();
        match (turn.progress, next) {
            (Progress::Busy, _) => idle = 0,
            (Progress::Idle, Some(next)) => world.advance_to(next.max(world.now())),
            (Progress::Idle, None) => idle += 1,
        }
        assert!(idle < 10_000, "the test waits for something that never happens");
        assert!(
            world.now() < end,
            "the test waits for something that never happens, within an hour of its time"
        );
    }
}

pub const CLUSTER: ClusterId = ClusterId(uuid::Uuid::from_u128(0xc1));
pub const MIB: u64 = 1 << 20;

pub fn ram(bytes: u64) -> Arc<dyn BlockDevice> {
    Arc::new(RamDevice::new("ram", uuid::Uuid::nil(), BlockSize::B512, bytes).unwrap())
}

/// A disk with a write cache in one of its lives.
pub fn in_life(content: Vec<u8>, life: u64) -> Arc<ImageDevice> {
    Arc::new(ImageDevice::new(Arc::new(content), BlockSize::B512, true).with_cache_lifetime(life))
}

pub fn named(name: &str, device: &Arc<dyn BlockDevice>) -> PoolDisk {
    PoolDisk { name: name.into(), device: Arc::clone(device) }
}

pub fn named_all(devices: &[Arc<dyn BlockDevice>]) -> Vec<PoolDisk> {
    devices.iter().enumerate().map(|(index, device)| named(&format!("disk-{index}"), device)).collect()
}

pub async fn create(handle: &Handle, devices: &[Arc<dyn BlockDevice>]) -> Result<Pool, CreateError> {
    let disks = named_all(devices);
    let disks = disks.into_iter().map(|disk| NewPoolDisk { disk, overwrite_foreign_data: false }).collect();
    create_of(handle, disks, EXTENT_BYTES).await
}

pub async fn create_of(
    handle: &Handle,
    disks: Vec<NewPoolDisk>,
    extent_bytes: u64,
) -> Result<Pool, CreateError> {
    create_as(handle, disks, extent_bytes, DiskLayout::Concatenated).await
}

pub async fn create_as(
    handle: &Handle,
    disks: Vec<NewPoolDisk>,
    extent_bytes: u64,
    layout: DiskLayout,
) -> Result<Pool, CreateError> {
    let revision = Revision { incarnation: 1, index: 5 };
    let new = NewPool { cluster: CLUSTER, name: "pool".into(), revision, extent_bytes, layout, disks };
    Pool::create(handle, new).await
}

pub fn volume_id(number: u8) -> VolumeId {
    VolumeId(uuid::Uuid::from_u128(0x7000 + u128::from(number)))
}

pub fn volume(number: u8, size: u64) -> NewVolume {
    NewVolume {
        id: volume_id(number),
        generation: Generation(10),
        epoch: Epoch { incarnation: 1, counter: 1 },
        name: format!("volume-{number}"),
        identity: VolumeIdentity {
            nqn: format!("nqn.2026-01.storage.basalt:volume:{number}"),
            nsid: 1,
            uuid: [number; 16],
            nguid: [number; 16],
            serial: *b"BSLT0000000000000000",
        },
        size,
        thin: false,
        hidden: false,
    }
}

pub fn thin(number: u8, size: u64) -> NewVolume {
    NewVolume { thin: true, ..volume(number, size) }
}

pub fn snapshot(number: u8) -> NewSnapshot {
    let NewVolume { id, generation, epoch, name, identity, .. } = volume(number, 0);
    NewSnapshot { id, generation, epoch, name, identity }
}

/// An open device in bytes.
pub struct Bytes {
    channel: AsyncChannel,
    block: BlockSize,
}

impl Bytes {
    pub fn open(handle: &Handle, device: &dyn BlockDevice) -> Self {
        let channel = AsyncChannel::new(handle, device.open(handle).unwrap());
        Self { channel, block: device.info().block_size() }
    }

    fn range(&self, offset: u64, len: u64) -> (Lba, BlockCount) {
        (Lba(self.block.blocks_in(offset).0), self.block.blocks_in(len))
    }

    pub async fn read(&self, offset: u64, len: usize) -> Result<Vec<u8>, IoError> {
        let (lba, blocks) = self.range(offset, len as u64);
        Ok(self.channel.read(lba, blocks, Buffer::zeroed(len)).await?.to_vec())
    }

    pub async fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), IoError> {
        let (lba, blocks) = self.range(offset, bytes.len() as u64);
        self.channel.write(lba, blocks, Buffer::copy_of(bytes), false).await.map(drop)
    }

    pub async fn write_durably(&self, offset: u64, bytes: &[u8]) -> Result<(), IoError> {
        let (lba, blocks) = self.range(offset, bytes.len() as u64);
        self.channel.write(lba, blocks, Buffer::copy_of(bytes), true).await.map(drop)
    }

    pub async fn flush(&self) -> Result<(), IoError> {
        self.channel.flush().await
    }

    pub async fn unmap(&self, offset: u64, len: u64) -> Result<(), IoError> {
        let (lba, blocks) = self.range(offset, len);
        self.channel.unmap(lba, blocks).await
    }

    pub async fn write_zeroes(&self, offset: u64, len: u64) -> Result<(), IoError> {
        let (lba, blocks) = self.range(offset, len);
        self.channel.write_zeroes(lba, blocks).await
    }
}

/// Kinds of pages, as they are written.
pub const ROOT: u16 = 1;
pub const DIRECTORY: u16 = 2;
pub const VOLUME: u16 = 3;
pub const NODE: u16 = 4;
pub const LEAF: u16 = 5;
pub const OVERFLOW: u16 = 6;

/// Byte offsets of the pages of a kind on a disk, the latest first; of several with one sequence number in their order.
pub async fn pages_of(handle: &Handle, disk: &dyn BlockDevice, kind: u16) -> Vec<(u64, Vec<u8>)> {
    let bytes = Bytes::open(handle, disk);
    let mut found = Vec::new();
    for offset in (MIB..disk.info().bytes()).step_by(4096) {
        let page = bytes.read(offset, 4096).await.unwrap();
        if page.starts_with(b"BSLTPAGE") && page[8..10] == kind.to_le_bytes() {
            found.push((offset, page));
        }
    }
    let sequence = |page: &[u8]| u64::from_le_bytes(page[16..24].try_into().unwrap());
    found.sort_by_key(|(_, page)| std::cmp::Reverse(sequence(page)));
    found
}

/// Byte offset of the page of a volume that was written last.
pub async fn page_of_volume(handle: &Handle, disk: &dyn BlockDevice, id: VolumeId) -> u64 {
    let pages = pages_of(handle, disk, VOLUME).await;
    pages.into_iter().find(|(_, page)| page[64..80] == id.to_bytes()).unwrap().0
}

/// Changes one bit of a disk.
pub async fn flip(handle: &Handle, disk: &dyn BlockDevice, offset: u64) {
    let bytes = Bytes::open(handle, disk);
    let sector = offset / 512 * 512;
    let mut content = bytes.read(sector, 512).await.unwrap();
    content[usize::try_from(offset - sector).unwrap()] ^= 0x04;
    bytes.write(sector, &content).await.unwrap();
}
