//! How a host reads the discovery log page (oF 5.3).

use basalt_dma::Buffer;
use basalt_nvme_wire::fabrics::{DiscoveryEntry, DiscoveryHeader, parse_nqn};
use basalt_nvme_wire::log::{GetLogPage, LogId};
use basalt_nvme_wire::opcode::Admin;
use basalt_nvme_wire::{Cqe, Sqe, identify};

use crate::bringup::Next;
use crate::command::{Command, Data};
use crate::error::BringupError;

/// Where a subsystem can be reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiscoveredSubsystem {
    /// Its name.
    pub nqn: String,
    /// Transport type; 3 is TCP.
    pub transport: u8,
    /// Transport address.
    pub address: String,
    /// Transport service identifier: the port.
    pub service: String,
}

/// Records that a host reads; a log with more is not believed.
const RECORDS_MAX: u64 = 65_536;
/// Entries that one command reads.
const ENTRIES_PER_READ: u64 = 4;
/// Times that the log may change while it is read.
const RESTARTS_MAX: u32 = 8;

const HEADER_LEN: u64 = size_of::<DiscoveryHeader>() as u64;
const ENTRY_LEN: u64 = size_of::<DiscoveryEntry>() as u64;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Header,
    Entries,
    /// Has the log changed meanwhile?
    Check,
    Done,
}

/// Reads the discovery log page of a discovery controller that was brought up.
#[derive(Debug)]
pub struct Discover {
    step: Step,
    generation: u64,
    records: u64,
    restarts: u32,
    found: Vec<DiscoveredSubsystem>,
    read: u64,
}

impl Default for Discover {
    fn default() -> Self {
        Self::new()
    }
}

impl Discover {
    /// Begins.
    pub fn new() -> Self {
        Self { step: Step::Header, generation: 0, records: 0, restarts: 0, found: Vec::new(), read: 0 }
    }

    /// What was found; complete once [`Next::Done`] came.
    pub fn found(&self) -> &[DiscoveredSubsystem] {
        &self.found
    }

    /// The next command.
    pub fn ask(&self) -> Next {
        match self.step {
            Step::Header | Step::Check => Next::Send(read(0, HEADER_LEN)),
            Step::Entries => {
                let count = (self.records - self.read).min(ENTRIES_PER_READ);
                Next::Send(read(HEADER_LEN + self.read * ENTRY_LEN, count * ENTRY_LEN))
            }
            Step::Done => Next::Done,
        }
    }

    /// The answer to the command, with the data that it gave.
    ///
    /// # Errors
    /// Why the log cannot be read.
    pub fn answer(&mut self, cqe: &Cqe, data: &[u8]) -> Result<(), BringupError> {
        const STEP: &str = "Get Log Page (discovery)";
        if !cqe.status().is_success() {
            return Err(BringupError::Refused { step: STEP, status: cqe.status() });
        }
        let nonsense = BringupError::Nonsense { step: STEP };
        match self.step {
            Step::Header => {
                let header = identify::parse::<DiscoveryHeader>(data).map_err(|_| nonsense.clone())?;
                (self.generation, self.records) = (header.generation.get(), header.records.get());
                if self.records > RECORDS_MAX || header.format.get() != 0 {
                    return Err(nonsense);
                }
                self.step = if self.records == 0 { Step::Done } else { Step::Entries };
            }
            Step::Entries => {
                for bytes in data.chunks_exact(size_of::<DiscoveryEntry>()) {
                    let entry = identify::parse::<DiscoveryEntry>(bytes).map_err(|_| nonsense.clone())?;
                    self.found.push(subsystem(entry));
                    self.read += 1;
                }
                if self.read >= self.records {
                    self.step = Step::Check;
                }
            }
            Step::Check => {
                let header = identify::parse::<DiscoveryHeader>(data).map_err(|_| nonsense.clone())?;
                if header.generation.get() == self.generation {
                    self.step = Step::Done;
                } else if self.restarts < RESTARTS_MAX {
                    *self = Self { restarts: self.restarts + 1, ..Self::new() };
                } else {
                    return Err(nonsense);
                }
            }
            Step::Done => {}
        }
        Ok(())
    }
}

fn read(offset: u64, length: u64) -> Command {
    let mut sqe = Sqe::new(Admin::GetLogPage.code(), 0);
    GetLogPage {
        page: LogId::Discovery.code(),
        specific: 0,
        retain_event: false,
        length,
        offset,
        index_offset: false,
    }
    .emit(&mut sqe);
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    Command { sqe, data: Data::ToHost(Buffer::zeroed(length)) }
}

fn subsystem(entry: &DiscoveryEntry) -> DiscoveredSubsystem {
    let text = |field: &[u8]| String::from_utf8_lossy(field).trim_end_matches([' ', '\0']).to_owned();
    DiscoveredSubsystem {
        nqn: parse_nqn(&entry.subsystem_nqn).unwrap_or_default().to_owned(),
        transport: entry.transport,
        address: text(&entry.address),
        service: text(&entry.service),
    }
}
