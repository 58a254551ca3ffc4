//! A hostile controller: our host connects to it, and gets bytes, whatever they are.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use basalt_nvme_wire::pdu::{Digests, FLAG_SUCCESS, Kind};
use basalt_reactor::{Listener, Socket};

use super::relay::work;
use super::rig::{HOSTILE_HOST, HOSTILE_SUBSYSTEM, Rig};
use super::stream::{length, receive, send};

/// A connection of our host, and what it is still to be told.
struct Victim<'a> {
    socket: Socket,
    unread: Vec<u8>,
    rest: &'a [u8],
}

/// First four bytes: where the parts of the second and third connection begin. Each part is a controller's stream; of it one answer is
/// sent for each PDU of the host.
pub fn hostile_controller(input: &[u8]) {
    play(input);
}

/// How many commands of the host's I/O queue succeeded.
fn play(input: &[u8]) -> u32 {
    let mut rig = Rig::new(3);
    let Ok(listener) = rig.hostile().listen(rig.hostile_address) else { panic!("no listener") };
    let digests = Digests { header: input.len() & 1 == 1, data: input.len() & 2 == 2 };
    let mut options = Rig::options(rig.hostile_address, HOSTILE_SUBSYSTEM, HOSTILE_HOST, digests);
    options.host.command_timeout = Duration::from_secs(2);
    let ended = Rc::<Cell<Option<u32>>>::default();
    let (handle, tell) = (rig.legitimate(), Rc::clone(&ended));
    let on = handle.clone();
    let _task = handle.spawn(async move { tell.set(Some(work(&on, &options, true).await.succeeded)) });
    let (head, rest) = input.split_at(input.len().min(4));
    let at = |byte: usize| {
        let bytes = [head.get(byte).copied().unwrap_or(0), head.get(byte + 1).copied().unwrap_or(0)];
        usize::from(u16::from_le_bytes(bytes)).min(rest.len())
    };
    let (first, second) = (at(0).min(at(2)), at(0).max(at(2)));
    let mut parts = vec![&rest[second..], &rest[first..second], &rest[..first]];
    let mut victims: Vec<Victim<'_>> = Vec::new();
    // Every command has its time limit, and there are few: after this long it must have given up.
    const STEPS: u32 = 6_000;
    for _ in 0..STEPS {
        rig.pass(Duration::from_millis(10));
        accept(&listener, &mut victims, &mut parts);
        victims.iter_mut().for_each(Victim::answer);
        if let Some(succeeded) = ended.get() {
            return succeeded;
        }
    }
    panic!("the host neither succeeds nor gives up");
}

fn accept<'a>(listener: &Listener, victims: &mut Vec<Victim<'a>>, parts: &mut Vec<&'a [u8]>) {
    while let Ok(Some(socket)) = listener.accept() {
        victims.push(Victim { socket, unread: Vec::new(), rest: parts.pop().unwrap_or_default() });
    }
}

impl Victim<'_> {
    fn answer(&mut self) {
        receive(&self.socket, &mut self.unread);
        while let Some(length) = length(&self.unread) {
            if self.unread.len() < length {
                return;
            }
            self.unread.drain(..length);
            self.say_next();
        }
    }

    /// Sends PDUs up to one that ends an answer.
    fn say_next(&mut self) {
        while !self.rest.is_empty() {
            let take = length(self.rest).unwrap_or(self.rest.len()).min(self.rest.len());
            let (pdu, rest) = self.rest.split_at(take);
            self.rest = rest;
            send(&self.socket, pdu);
            let ends = match Kind::from_code(pdu[0]) {
                Some(Kind::ControllerData) => pdu.get(1).is_some_and(|flags| flags & FLAG_SUCCESS != 0),
                _ => true,
            };
            if ends {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::corpus::Corpus;

    #[test]
    fn an_undamaged_stream_leads_through_the_whole_session() {
        for input in Corpus::load("hostile-controller").unwrap().inputs() {
            assert!(play(input) >= 4, "the host does not get far");
        }
    }
}
