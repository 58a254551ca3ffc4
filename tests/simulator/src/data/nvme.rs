//! Volumes over NVMe/TCP: the production target on the node, the production initiator on the host's machine.

use crate::data::node::Target;
use crate::data::volume::{Ask, Connector, End, HostVolume, Io, Local, VolumeIo};
use crate::event;
use basalt_agent::Exporter;
use basalt_agent::nvme_tcp::NvmeTcpExporter;
use basalt_dma::Buffer;
use basalt_nvme_wire::identify::{self, Cns, IDENTIFY_LEN, IdentifyNamespace};
use basalt_nvme_wire::log::{AsyncEvent, GetLogPage, LogId};
use basalt_nvme_wire::opcode::Admin;
use basalt_nvme_wire::pdu::Digests;
use basalt_nvme_wire::{ReadWrite, Sqe, Status, dsm};
use basalt_nvmf_host::{Command, Data, HostOptions, IoCommand, NamespaceFacts};
use basalt_nvmf_target::{Target as Subsystems, TargetOptions};
use basalt_nvmf_tcp::host::{AsyncIoQueue, Controller, TcpHostOptions, connect};
use basalt_nvmf_tcp::{TcpTarget, TcpTargetOptions};
use basalt_nvmf_transport::{HostId, Nqn};
use basalt_reactor::Handle;
use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// How long a host waits for a command before it gives the whole queue up.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(8);

/// How long a controller waits for a sign of life.
const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// The most commands of a queue.
const QUEUE_ENTRIES: u16 = 33;

/// Makes a target for each run of a node.
#[derive(Debug, Default)]
pub struct NvmeTarget;

impl Target for NvmeTarget {
    fn exporter(&self, handle: &Handle) -> Rc<dyn Exporter> {
        let target = Subsystems::new(TargetOptions::default());
        let listener = TcpTarget::start(handle, Arc::clone(&target), TcpTargetOptions::default());
        Rc::new(NvmeTcpExporter::new(handle, target, Rc::new(listener), Vec::new()))
    }
}

/// Connects to one address as one host.
pub struct NvmeConnector {
    /// Where the target listens.
    pub address: SocketAddr,
    /// The host's NQN.
    pub host: String,
    /// The host's identifier.
    pub host_id: [u8; 16],
    /// Digests that are asked for.
    pub digests: Digests,
}

impl NvmeConnector {
    fn options(&self, volume: &HostVolume) -> Option<TcpHostOptions> {
        let subsystem = Nqn::new(&volume.nqn).ok()?;
        let mut host = HostOptions::new(subsystem, Nqn::new(&self.host).ok()?, HostId(self.host_id));
        host.io_queue_entries = QUEUE_ENTRIES;
        host.keep_alive = KEEP_ALIVE;
        host.command_timeout = COMMAND_TIMEOUT;
        Some(TcpHostOptions { address: self.address, host, digests: self.digests })
    }
}

impl Connector for NvmeConnector {
    fn connect(&self, handle: &Handle, volume: &Rc<HostVolume>) -> Local<Option<Rc<dyn VolumeIo>>> {
        let (options, handle, number) = (self.options(volume), handle.clone(), volume.number);
        Box::pin(async move {
            let (controller, queues) = match connect(&handle, &options?).await {
                Ok(connected) => connected,
                Err(error) => {
                    event!("volume {number} is not to be had: {error}");
                    return None;
                }
            };
            let namespace = controller.facts().namespaces.first()?.clone();
            let queue = queues.into_iter().next()?.into_async(&handle);
            let (controller, blocks) = (RefCell::new(Some(Rc::new(controller))), Cell::new(namespace.blocks));
            Some(Rc::new(NvmeIo { controller, queue, namespace, blocks: Rc::new(blocks) }) as Rc<dyn VolumeIo>)
        })
    }
}

struct NvmeIo {
    controller: RefCell<Option<Rc<Controller>>>,
    queue: AsyncIoQueue,
    /// As it was when it was connected.
    namespace: NamespaceFacts,
    /// Its size now.
    blocks: Rc<Cell<u64>>,
}

impl NvmeIo {
    fn command(&self, io: &Io) -> Option<Command> {
        let fua = io.ask == Ask::Write { fua: true };
        let count = u32::try_from(io.count).ok()?;
        let fields = ReadWrite {
            first_block: io.first,
            block_count: count,
            fua,
            limited_retry: false,
            deallocate: false,
            protection: 0,
        };
        let nsid = self.namespace.nsid;
        let length = usize::try_from(io.count << self.namespace.block_shift).ok()?;
        let payload = || Data::ToController(Buffer::copy_of(&io.data).into());
        Some(match io.ask {
            Ask::Read => IoCommand::Read(fields).with(nsid, Data::ToHost(Buffer::zeroed(length))),
            Ask::Write { .. } => IoCommand::Write(fields).with(nsid, payload()),
            Ask::Flush => IoCommand::Flush.with(nsid, Data::None),
            Ask::WriteZeroes => IoCommand::WriteZeroes(fields).with(nsid, Data::None),
            Ask::Compare => IoCommand::Compare(fields).with(nsid, payload()),
            Ask::Discard => {
                let range =
                    dsm::Range { context: 0.into(), block_count: count.into(), first_block: io.first.into() };
                Command::deallocate(nsid, &[range])
            }
        })
    }
}

fn changed_namespaces() -> Command {
    let length = 4096;
    let page = LogId::ChangedNamespaces.code();
    let wanted =
        GetLogPage { page, specific: 0, retain_event: false, length, offset: 0, index_offset: false };
    let mut sqe = Sqe::new(Admin::GetLogPage.code(), 0);
    wanted.emit(&mut sqe);
    Command { sqe, data: Data::ToHost(Buffer::zeroed(usize::try_from(length).unwrap_or(0))) }
}

fn identify_namespace(nsid: u32) -> Command {
    let mut sqe = Sqe::new(Admin::Identify.code(), 0);
    sqe.nsid = nsid.into();
    sqe.cdw10 = u32::from(Cns::Namespace.code()).into();
    Command { sqe, data: Data::ToHost(Buffer::zeroed(IDENTIFY_LEN)) }
}

impl VolumeIo for NvmeIo {
    fn block_bytes(&self) -> u64 {
        1 << self.namespace.block_shift
    }

    fn blocks(&self) -> u64 {
        self.blocks.get()
    }

    fn look_again(&self) -> Option<Local<bool>> {
        let controller = self.controller.borrow().clone()?;
        let told = controller.take_events().events.contains(&AsyncEvent::NamespaceAttributeChanged);
        let (blocks, nsid) = (Rc::clone(&self.blocks), self.namespace.nsid);
        told.then(|| {
            Box::pin(async move {
                // Reading the page lets the next event come.
                if controller.admin(changed_namespaces()).await.is_err() {
                    return false;
                }
                let Ok((cqe, page)) = controller.admin(identify_namespace(nsid)).await else { return false };
                let page = page.to_vec();
                // One that is not there any more is one whose connections end.
                if cqe.status().is_success()
                    && let Ok(page) = identify::parse::<IdentifyNamespace>(&page)
                    && page.nsze.get() > 0
                {
                    blocks.set(page.nsze.get());
                }
                true
            }) as Local<bool>
        })
    }

    fn volatile_cache(&self) -> bool {
        self.controller.borrow().as_ref().is_none_or(|controller| controller.facts().volatile_cache)
    }

    fn identity(&self) -> String {
        let controller = self.controller.borrow();
        let facts = controller.as_ref().map(|controller| controller.facts());
        let words =
            facts.map(|facts| (facts.subsystem.as_str(), facts.serial.as_str(), facts.model.as_str()));
        let NamespaceFacts { nsid, uuid, nguid, .. } = self.namespace;
        format!("{words:?} namespace {nsid} {uuid:?} {nguid:?}")
    }

    fn run(&self, io: Io) -> Local<End> {
        let (queue, command) = (self.queue.clone(), self.command(&io));
        // The connection lives as long as a command is under way.
        let controller = self.controller.borrow().clone();
        Box::pin(async move {
            let Some(command) = command else { return End::Failed("no such command".to_owned()) };
            let Ok(outcome) = queue.run(command, Some(COMMAND_TIMEOUT)).await else { return End::Lost };
            drop(controller);
            match outcome.result {
                Err(_) => End::Lost,
                Ok(cqe) if cqe.status().is_success() && io.ask == Ask::Read => {
                    End::Done(outcome.payload.to_vec())
                }
                Ok(cqe) if cqe.status().is_success() => End::Done(Vec::new()),
                Ok(cqe) if cqe.status().bare() == Status::COMPARE_FAILURE => End::Differs,
                Ok(cqe) => End::Failed(format!("{:?}", cqe.status())),
            }
        })
    }

    fn close(&self) -> Local<()> {
        let controller = self.controller.borrow_mut().take();
        Box::pin(async move {
            if let Some(controller) = controller
                && let Err(error) = controller.shut_down().await
            {
                event!("a connection does not end in good order: {error}");
            }
        })
    }
}
