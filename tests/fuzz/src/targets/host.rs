//! The host's core: any answers to what it asks.

use basalt_nvme_wire::Cqe;
use basalt_nvme_wire::fabrics::DISCOVERY_NQN;
use basalt_nvmf_host::{Bringup, Data, Discover, HostOptions, Next};
use basalt_nvmf_transport::{HostId, Nqn};
use zerocopy::FromBytes;

use super::controller::{HOST, SUBSYSTEM};

/// Commands after which a host must have come to an end: it reads at most 1,024 namespaces, and a discovery log in pieces.
const COMMANDS_MAX: usize = 20_000;

/// First byte: what is brought up. Then answers: a completion each, and as much data as the command has room for.
pub(super) fn run(bytes: &[u8]) {
    play(bytes);
}

/// How many namespaces and subsystems the host found, once it got through.
fn play(bytes: &[u8]) -> Option<(usize, usize)> {
    let (kind, rest) = bytes.split_first()?;
    let mut answers = Answers(rest);
    let subsystem = if kind & 1 == 0 { SUBSYSTEM } else { DISCOVERY_NQN };
    let (subsystem, host) = (Nqn::new(subsystem).ok()?, Nqn::new(HOST).ok()?);
    let mut options = HostOptions::new(subsystem, host, HostId([3; 16]));
    options.io_queues = u16::from(kind >> 1 & 7);
    let mut bringup = Bringup::new(options);
    let mut commands = 0;
    loop {
        commands += 1;
        assert!(commands < COMMANDS_MAX, "it does not come to an end");
        match bringup.ask() {
            Ok(Next::Send(command)) => {
                let (cqe, data) = answers.next(&command.data)?;
                bringup.answer(&cqe, &data).ok()?;
            }
            Ok(Next::Wait) => {}
            Ok(Next::Done) => break,
            Err(error) => panic!("checked options: {error}"),
        }
    }
    let facts = bringup.facts();
    assert!(facts.namespaces.len() <= 1024 && facts.transfer_bytes_max >= 4096);
    let mut discover = Discover::new();
    while let Next::Send(command) = discover.ask() {
        commands += 1;
        assert!(commands < COMMANDS_MAX, "it does not come to an end");
        let (cqe, data) = answers.next(&command.data)?;
        discover.answer(&cqe, &data).ok()?;
    }
    assert!(discover.found().len() <= 65_536);
    Some((facts.namespaces.len(), discover.found().len()))
}

struct Answers<'a>(&'a [u8]);

impl Answers<'_> {
    fn next(&mut self, room: &Data) -> Option<(Cqe, Vec<u8>)> {
        let (cqe, rest) = Cqe::read_from_prefix(self.0).ok()?;
        let Data::ToHost(buffer) = room else {
            self.0 = rest;
            return Some((cqe, Vec::new()));
        };
        // A page's beginning; what does not come is zero.
        let (len, rest) = rest.split_first_chunk::<2>()?;
        let given = usize::from(u16::from_le_bytes(*len)).min(rest.len()).min(buffer.len());
        let mut data = rest[..given].to_vec();
        data.resize(buffer.len(), 0);
        self.0 = &rest[given..];
        Some((cqe, data))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::corpus::Corpus;

    #[test]
    fn the_corpus_leads_through_bringup_and_discovery() {
        let corpus = Corpus::load("bringup").unwrap();
        let found: Vec<_> = corpus.inputs().iter().map(|input| play(input)).collect();
        assert!(found.contains(&Some((0, 2))) && found.contains(&Some((1, 2))), "{found:?}");
    }
}
