//! How a controller is brought up: Connect, enable, identify, ask for queues, look at namespaces.

use std::collections::VecDeque;

use basalt_dma::Buffer;
use basalt_nvme_wire::fabrics::{Command as Fabrics, parse_nqn};
use basalt_nvme_wire::feature::{FeatureId, QueueCount, event};
use basalt_nvme_wire::identify::{
    self, Cns, FUSES_COMPARE_AND_WRITE, IDENTIFY_LEN, IdentifyController, IdentifyNamespace, NamespaceId,
};
use basalt_nvme_wire::opcode::Admin;
use basalt_nvme_wire::register::{Capabilities, Configuration, ControllerStatus, Property};
use basalt_nvme_wire::{Cqe, Sqe};
use basalt_nvmf_transport::{ControllerId, QueueId};
use zerocopy::little_endian::U32;

use crate::command::{Command, Data};
use crate::error::BringupError;
use crate::options::{ADMIN_QUEUE_ENTRIES, HostOptions};
use crate::refusal::ConnectRefusal;

/// What a host learnt about a controller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControllerFacts {
    /// Its identifier.
    pub id: ControllerId,
    /// Its subsystem's name.
    pub subsystem: String,
    /// Serial number without padding.
    pub serial: String,
    /// Model number without padding.
    pub model: String,
    /// Bytes of data in a command capsule of an I/O queue.
    pub in_capsule_bytes: u32,
    /// Most bytes of data that one command moves.
    pub transfer_bytes_max: u32,
    /// Most entries of a queue.
    pub queue_entries_max: u16,
    /// I/O queues that the controller granted.
    pub io_queues: u16,
    /// Whether completed writes may be lost before a flush.
    pub volatile_cache: bool,
    /// Atomic write unit at power failure in blocks.
    pub atomic_blocks: u32,
    /// Most blocks of a [`FusedPair`](crate::FusedPair); none where the controller has no fused Compare and Write.
    pub compare_and_write_blocks: Option<u32>,
    /// Namespaces, ascending by number.
    pub namespaces: Vec<NamespaceFacts>,
}

/// What a host learnt about a namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamespaceFacts {
    /// Number.
    pub nsid: u32,
    /// Blocks.
    pub blocks: u64,
    /// Exponent of the block size in bytes.
    pub block_shift: u8,
    /// UUID, where it has one.
    pub uuid: Option<[u8; 16]>,
    /// NGUID, where it has one.
    pub nguid: Option<[u8; 16]>,
    /// ANA group, zero without ANA.
    pub ana_group: u32,
}

impl NamespaceFacts {
    /// Bytes.
    pub fn bytes(&self) -> u64 {
        self.blocks << self.block_shift
    }
}

/// What a state machine wants next.
#[derive(Debug)]
pub enum Next {
    /// Send this command and hand its outcome in.
    Send(Command),
    /// The controller is not ready yet: ask again a little later.
    Wait,
    /// Done.
    Done,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Connect,
    ReadCapabilities,
    Enable,
    AwaitReady,
    Controller,
    Queues,
    Events,
    ActiveNamespaces,
    Namespace(u32),
    Descriptors(u32),
    Done,
}

impl Step {
    const fn name(self) -> &'static str {
        match self {
            Step::Connect => "Connect",
            Step::ReadCapabilities => "Property Get (CAP)",
            Step::Enable => "Property Set (CC)",
            Step::AwaitReady => "Property Get (CSTS)",
            Step::Controller => "Identify Controller",
            Step::Queues => "Set Features (Number of Queues)",
            Step::Events => "Set Features (Asynchronous Event Configuration)",
            Step::ActiveNamespaces => "Identify (active namespaces)",
            Step::Namespace(_) => "Identify Namespace",
            Step::Descriptors(_) => "Identify (namespace descriptors)",
            Step::Done => "nothing",
        }
    }
}

/// Brings a controller up, one admin command after the other: [`Bringup::ask`], send it, [`Bringup::answer`].
#[derive(Debug)]
pub struct Bringup {
    options: HostOptions,
    step: Step,
    /// A discovery controller has neither queues nor namespaces.
    discovery: bool,
    /// The answer said "not yet".
    waiting: bool,
    unknown: VecDeque<u32>,
    facts: ControllerFacts,
}

/// Namespaces that a host looks at; a controller with more is not believed.
const NAMESPACES_MAX: usize = 1024;
/// Largest transfer of a controller that tells no limit.
const TRANSFER_BYTES_DEFAULT: u32 = 1 << 20;

impl Bringup {
    /// Begins; the transport has been set up.
    pub fn new(options: HostOptions) -> Self {
        let discovery = options.subsystem.as_str() == basalt_nvme_wire::fabrics::DISCOVERY_NQN;
        let facts = ControllerFacts {
            id: ControllerId(0),
            subsystem: String::new(),
            serial: String::new(),
            model: String::new(),
            in_capsule_bytes: 0,
            transfer_bytes_max: TRANSFER_BYTES_DEFAULT,
            queue_entries_max: 2,
            io_queues: 0,
            volatile_cache: false,
            atomic_blocks: 1,
            compare_and_write_blocks: None,
            namespaces: Vec::new(),
        };
        Self { options, step: Step::Connect, discovery, waiting: false, unknown: VecDeque::new(), facts }
    }

    /// What was learnt; complete once [`Next::Done`] came.
    pub fn facts(&self) -> &ControllerFacts {
        &self.facts
    }

    /// The next command.
    ///
    /// # Errors
    /// [`BringupError::Nonsense`] never comes for checked options.
    pub fn ask(&mut self) -> Result<Next, BringupError> {
        if std::mem::take(&mut self.waiting) {
            return Ok(Next::Wait);
        }
        let command = match self.step {
            Step::Connect => self
                .options
                .connect(QueueId::ADMIN, None, ADMIN_QUEUE_ENTRIES)
                .map_err(|_| BringupError::Nonsense { step: "Connect" })?,
            Step::ReadCapabilities => property(Property::Capabilities),
            Step::Enable => {
                let value = u64::from(Configuration::ENABLE.0);
                let offset = Property::Configuration as u32;
                bare(Fabrics::PropertySet { wide: false, offset, value }.emit(0))
            }
            Step::AwaitReady => property(Property::Status),
            Step::Controller => identify_command(Cns::Controller, 0),
            Step::Queues => {
                let queues = u32::from(self.options.io_queues.max(1));
                let counts = QueueCount { submission: queues, completion: queues };
                set_feature(FeatureId::NumberOfQueues, counts.emit())
            }
            Step::Events if self.discovery => {
                set_feature(FeatureId::AsyncEventConfig, event::DISCOVERY_CHANGE)
            }
            Step::Events => {
                set_feature(FeatureId::AsyncEventConfig, event::NAMESPACE_ATTRIBUTE | event::ANA_CHANGE)
            }
            Step::ActiveNamespaces => {
                let above = self.unknown.back().copied().unwrap_or(0);
                identify_command(Cns::ActiveNamespaces, above)
            }
            Step::Namespace(nsid) => identify_command(Cns::Namespace, nsid),
            Step::Descriptors(nsid) => identify_command(Cns::NamespaceDescriptors, nsid),
            Step::Done => return Ok(Next::Done),
        };
        Ok(Next::Send(command))
    }

    /// The answer to the command, with the data that it gave.
    ///
    /// # Errors
    /// Why the controller cannot be used.
    pub fn answer(&mut self, cqe: &Cqe, data: &[u8]) -> Result<(), BringupError> {
        if !cqe.status().is_success() {
            return Err(match self.step {
                Step::Connect => {
                    BringupError::Connect(Box::new(ConnectRefusal::new(&self.options, QueueId::ADMIN, cqe)))
                }
                step => BringupError::Refused { step: step.name(), status: cqe.status() },
            });
        }
        let nonsense = BringupError::Nonsense { step: self.step.name() };
        self.step = match self.step {
            Step::Connect => {
                let id = u16::try_from(cqe.dw0.get() & 0xffff).map_err(|_| nonsense)?;
                self.facts.id = ControllerId(id);
                Step::ReadCapabilities
            }
            Step::ReadCapabilities => {
                self.facts.queue_entries_max = Capabilities::parse(cqe.result()).queue_entries_max;
                Step::Enable
            }
            Step::Enable => Step::AwaitReady,
            Step::AwaitReady => self.await_ready(cqe)?,
            Step::Controller => {
                let page = identify::parse::<IdentifyController>(data).map_err(|_| nonsense)?;
                self.note_controller(page)?;
                if self.discovery { Step::Events } else { Step::Queues }
            }
            Step::Queues => {
                let granted = QueueCount::parse(cqe.dw0.get()).ok_or(nonsense)?;
                let queues =
                    granted.submission.min(granted.completion).min(u32::from(self.options.io_queues));
                self.facts.io_queues = u16::try_from(queues).unwrap_or(u16::MAX);
                Step::Events
            }
            Step::Events if self.discovery => Step::Done,
            Step::Events => Step::ActiveNamespaces,
            Step::ActiveNamespaces => self.note_active(data)?,
            Step::Namespace(nsid) => {
                let page = identify::parse::<IdentifyNamespace>(data).map_err(|_| nonsense)?;
                self.note_namespace(nsid, page)?
            }
            Step::Descriptors(_) => {
                self.note_descriptors(data);
                self.next_namespace()
            }
            Step::Done => Step::Done,
        };
        Ok(())
    }

    fn await_ready(&mut self, cqe: &Cqe) -> Result<Step, BringupError> {
        let status = ControllerStatus::parse(cqe.dw0.get());
        if status.fatal {
            return Err(BringupError::Fatal);
        }
        if status.ready {
            return Ok(Step::Controller);
        }
        self.waiting = true;
        Ok(Step::AwaitReady)
    }

    fn note_controller(&mut self, page: &IdentifyController) -> Result<(), BringupError> {
        let nonsense = BringupError::Nonsense { step: Step::Controller.name() };
        if page.cntlid.get() != self.facts.id.0 {
            return Err(nonsense);
        }
        self.facts.subsystem = parse_nqn(&page.subnqn).unwrap_or_default().to_owned();
        self.facts.serial = text(&page.sn);
        self.facts.model = text(&page.mn);
        if !self.discovery {
            // Capsule sizes in units of 16 bytes; a command takes the first 64.
            let capsule = page.ioccsz.get().checked_sub(4).ok_or(nonsense)?;
            self.facts.in_capsule_bytes = capsule.saturating_mul(16);
        }
        if page.mdts > 0 {
            // A power of two of pages; large ones do not fit, and are no limit.
            let pages = 1u32.checked_shl(u32::from(page.mdts)).unwrap_or(u32::MAX);
            self.facts.transfer_bytes_max = pages.saturating_mul(4096).min(TRANSFER_BYTES_DEFAULT);
        }
        self.facts.volatile_cache = page.vwc & 1 != 0;
        self.facts.atomic_blocks = u32::from(page.awupf.get()) + 1;
        let fuses = page.fuses.get() & FUSES_COMPARE_AND_WRITE != 0;
        self.facts.compare_and_write_blocks = fuses.then(|| u32::from(page.acwu.get()) + 1);
        Ok(())
    }

    fn note_active(&mut self, data: &[u8]) -> Result<Step, BringupError> {
        let numbers = data.chunks_exact(4).filter_map(|bytes| bytes.try_into().ok().map(u32::from_le_bytes));
        let before = self.unknown.len();
        for nsid in numbers.take_while(|nsid| *nsid != 0) {
            // Ascending, or the list would never end.
            if self.unknown.back().is_some_and(|last| *last >= nsid) || self.unknown.len() >= NAMESPACES_MAX {
                return Err(BringupError::Nonsense { step: Step::ActiveNamespaces.name() });
            }
            self.unknown.push_back(nsid);
        }
        let full = self.unknown.len() - before == IDENTIFY_LEN / 4;
        Ok(if full { Step::ActiveNamespaces } else { self.next_namespace() })
    }

    fn next_namespace(&mut self) -> Step {
        self.unknown.pop_front().map_or(Step::Done, Step::Namespace)
    }

    fn note_namespace(&mut self, nsid: u32, page: &IdentifyNamespace) -> Result<Step, BringupError> {
        let block_shift = page.block_shift();
        if page.nsze.get() == 0 {
            // Gone since the list was read.
            return Ok(self.next_namespace());
        }
        if !(9..=16).contains(&block_shift) {
            return Err(BringupError::Nonsense { step: Step::Namespace(nsid).name() });
        }
        self.facts.namespaces.push(NamespaceFacts {
            nsid,
            blocks: page.nsze.get(),
            block_shift,
            uuid: None,
            nguid: (page.nguid != [0; 16]).then_some(page.nguid),
            ana_group: page.anagrpid.get(),
        });
        Ok(Step::Descriptors(nsid))
    }

    fn note_descriptors(&mut self, data: &[u8]) {
        let Some(namespace) = self.facts.namespaces.last_mut() else { return };
        for id in NamespaceId::list(data) {
            match id {
                NamespaceId::Uuid(uuid) => namespace.uuid = Some(uuid),
                NamespaceId::Nguid(nguid) => namespace.nguid = Some(nguid),
                NamespaceId::Eui64(_) | NamespaceId::CommandSet(_) => {}
            }
        }
    }
}

fn bare(sqe: Sqe) -> Command {
    Command { sqe, data: Data::None }
}

fn property(property: Property) -> Command {
    bare(Fabrics::PropertyGet { wide: property.is_wide(), offset: property as u32 }.emit(0))
}

fn identify_command(cns: Cns, nsid: u32) -> Command {
    let mut sqe = Sqe::new(Admin::Identify.code(), 0);
    sqe.nsid = U32::new(nsid);
    sqe.cdw10 = U32::new(u32::from(cns.code()));
    Command { sqe, data: Data::ToHost(Buffer::zeroed(IDENTIFY_LEN)) }
}

fn set_feature(feature: FeatureId, value: u32) -> Command {
    let mut sqe = Sqe::new(Admin::SetFeatures.code(), 0);
    sqe.cdw10 = U32::new(u32::from(feature.code()));
    sqe.cdw11 = U32::new(value);
    bare(sqe)
}

fn text(field: &[u8]) -> String {
    String::from_utf8_lossy(field).trim_end_matches([' ', '\0']).to_owned()
}
