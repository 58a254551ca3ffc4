//! Volumes without a network: hosts run on the node's own reactor and use the volume's block device.

use crate::data::node::Target;
use crate::data::volume::{Ask, Connector, End, HostVolume, Io, Local, VolumeIo};
use basalt_agent::{Export, ExportError, Exporter, LocalFuture};
use basalt_bdev::{AsyncChannel, BlockCount, BlockDevice, IoError, Lba, Operation, Request};
use basalt_dma::{Buffer, Payload};
use basalt_lvol::id::VolumeId;
use basalt_reactor::{Handle, SocketError};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// A volume that is served.
struct Served {
    volume: VolumeId,
    device: Arc<dyn BlockDevice>,
    serial: [u8; 20],
    uuid: [u8; 16],
    under_way: Rc<Cell<u32>>,
}

/// What the present run of a node serves, by NQN.
#[derive(Default)]
pub struct Registry {
    served: RefCell<BTreeMap<String, Served>>,
}

/// A target without a network.
#[derive(Default)]
pub struct DirectTarget {
    /// Shared with the hosts.
    pub registry: Rc<Registry>,
}

struct DirectExporter {
    registry: Rc<Registry>,
    handle: Handle,
}

impl Target for DirectTarget {
    fn exporter(&self, handle: &Handle) -> Rc<dyn Exporter> {
        self.registry.served.borrow_mut().clear();
        Rc::new(DirectExporter { registry: Rc::clone(&self.registry), handle: handle.clone() })
    }
}

impl Exporter for DirectExporter {
    fn export(&self, export: Export) -> LocalFuture<Result<(), ExportError>> {
        let served = Served {
            volume: export.volume,
            device: export.device,
            serial: export.serial,
            uuid: export.uuid,
            under_way: Rc::default(),
        };
        self.registry.served.borrow_mut().entry(export.nqn).or_insert(served);
        Box::pin(async { Ok(()) })
    }

    fn withdraw(&self, volume: VolumeId) -> LocalFuture<Result<(), ExportError>> {
        let mut served = self.registry.served.borrow_mut();
        let nqn = served.iter().find(|(_, served)| served.volume == volume).map(|(nqn, _)| nqn.clone());
        let withdrawn = nqn.and_then(|nqn| served.remove(&nqn));
        let handle = self.handle.clone();
        Box::pin(async move {
            while withdrawn.as_ref().is_some_and(|served| served.under_way.get() > 0) {
                handle.sleep(Duration::from_millis(1)).await;
            }
            Ok(())
        })
    }

    fn listen(&self, _bind: SocketAddr, advertise: SocketAddr) -> LocalFuture<Result<SocketAddr, SocketError>> {
        Box::pin(async move { Ok(advertise) })
    }

    fn unlisten(&self, _bind: SocketAddr) -> LocalFuture<()> {
        Box::pin(async {})
    }
}

/// Connects to what the registry serves.
pub struct DirectConnector {
    /// What is served.
    pub registry: Rc<Registry>,
}

impl Connector for DirectConnector {
    fn connect(&self, handle: &Handle, volume: &Rc<HostVolume>) -> Local<Option<Rc<dyn VolumeIo>>> {
        let served = self.registry.served.borrow();
        let io = served.get(&volume.nqn).and_then(|served| {
            let channel = served.device.open(handle).ok()?;
            let io = DirectIo {
                registry: Rc::clone(&self.registry),
                nqn: volume.nqn.clone(),
                channel: AsyncChannel::new(handle, channel),
                device: Arc::clone(&served.device),
                under_way: Rc::clone(&served.under_way),
                identity: format!("{:?} {:?}", served.serial, served.uuid),
            };
            Some(Rc::new(io) as Rc<dyn VolumeIo>)
        });
        Box::pin(async move { io })
    }
}

struct DirectIo {
    registry: Rc<Registry>,
    nqn: String,
    channel: AsyncChannel,
    device: Arc<dyn BlockDevice>,
    under_way: Rc<Cell<u32>>,
    identity: String,
}

impl VolumeIo for DirectIo {
    fn block_bytes(&self) -> u64 {
        self.device.info().block_size().bytes_of(BlockCount(1))
    }

    fn blocks(&self) -> u64 {
        self.device.info().blocks().0
    }

    fn volatile_cache(&self) -> bool {
        self.device.info().volatile_write_cache()
    }

    fn identity(&self) -> String {
        self.identity.clone()
    }

    fn run(&self, io: Io) -> Local<End> {
        if !self.registry.served.borrow().contains_key(&self.nqn) {
            return Box::pin(async { End::Lost });
        }
        let (lba, blocks) = (Lba(io.first), BlockCount(io.count));
        let length = usize::try_from(io.count * self.block_bytes()).unwrap_or(0);
        let request = match io.ask {
            Ask::Read => Request::read(0, lba, blocks, Buffer::zeroed(length)),
            Ask::Write { fua: false } => Request::write(0, lba, blocks, Buffer::copy_of(&io.data)),
            Ask::Write { fua: true } => Request::write_durably(0, lba, blocks, Buffer::copy_of(&io.data)),
            Ask::Flush => Request::flush(0),
            Ask::WriteZeroes => Request::write_zeroes(0, lba, blocks),
            Ask::Discard => Request::unmap(0, lba, blocks),
            Ask::Compare => {
                let payload = Payload::from(Buffer::copy_of(&io.data));
                Request { tag: 0, operation: Operation::Compare, lba, blocks, payload }
            }
        };
        let (channel, under_way) = (self.channel.clone(), Rc::clone(&self.under_way));
        under_way.set(under_way.get() + 1);
        Box::pin(async move {
            let completion = channel.run(request).await;
            under_way.set(under_way.get() - 1);
            match completion.result {
                Ok(()) if io.ask == Ask::Read => End::Done(completion.payload.to_vec()),
                Ok(()) => End::Done(Vec::new()),
                Err(IoError::Miscompare) => End::Differs,
                Err(error) => End::Failed(error.to_string()),
            }
        })
    }

    fn close(&self) -> Local<()> {
        Box::pin(async {})
    }
}
