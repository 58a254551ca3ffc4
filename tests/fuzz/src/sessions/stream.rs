//! A hostile host that sends bytes, whatever they are.

use std::time::Duration;

use basalt_dma::Segment;
use basalt_reactor::{Received, Sent, Socket};

use super::legitimate::Legitimate;
use super::rig::Rig;

/// The length that a PDU's header says; at least a header.
pub(super) fn length(bytes: &[u8]) -> Option<usize> {
    let header = bytes.first_chunk::<8>()?;
    Some((u32::from_le_bytes([header[4], header[5], header[6], header[7]]) as usize).clamp(8, 1 << 20))
}

/// Sends what the peer takes; the rest is dropped, as by a host that dies.
pub(super) fn send(socket: &Socket, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        match socket.send(&[Segment::new(bytes)]) {
            Ok(Sent::Bytes(count)) if count > 0 => bytes = &bytes[count..],
            _ => return,
        }
    }
}

/// Everything that has come; true at the end of the connection.
pub(super) fn receive(socket: &Socket, into: &mut Vec<u8>) -> bool {
    let mut buffer = [0; 4096];
    loop {
        match socket.receive(&mut buffer) {
            Ok(Received::Bytes(count)) => into.extend_from_slice(&buffer[..count]),
            Ok(Received::Nothing) => return false,
            Ok(Received::End) | Err(_) => return true,
        }
    }
}

/// Time after which everything that a silent host may keep is taken from it: time to connect, keep alive, termination.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

/// The world after a hostile host: it falls silent, then it is gone.
pub(super) fn aftermath(mut rig: Rig, legitimate: Legitimate, sockets: Vec<Socket>) {
    let before = legitimate.commands();
    rig.pass(PATIENCE);
    legitimate.check(before);
    drop(sockets);
    rig.pass(Duration::from_secs(6));
    assert_eq!(rig.connections(), 2, "the hostile host's connections are left");
    legitimate.finish(&mut rig);
    rig.pass(Duration::from_secs(1));
    rig.assert_freed();
}

/// First two bytes: where the second connection's part begins. Both parts are sent PDU by PDU, as their headers
/// say; what comes back is read.
pub fn hostile_stream(input: &[u8]) {
    play(input);
}

/// How many bytes each connection got back.
fn play(input: &[u8]) -> Vec<usize> {
    let mut rig = Rig::new(1);
    let legitimate = Legitimate::start(&mut rig, 1);
    let (head, rest) = input.split_at(input.len().min(2));
    let at = head.first_chunk::<2>().map_or(0, |at| usize::from(u16::from_le_bytes(*at)));
    let (first, second) = rest.split_at(at.min(rest.len()));
    let (mut sockets, mut got) = (Vec::new(), Vec::new());
    for part in [first, second] {
        let Ok(socket) = rig.hostile().connect(rig.address) else { panic!("no socket") };
        rig.pass(Duration::from_millis(2));
        let mut answers = Vec::new();
        let mut rest = part;
        while !rest.is_empty() {
            let (pdu, behind) = rest.split_at(length(rest).unwrap_or(rest.len()).min(rest.len()));
            rest = behind;
            send(&socket, pdu);
            // The answer first, so that transfer tags are those that were recorded.
            rig.pass(Duration::from_millis(4));
            receive(&socket, &mut answers);
        }
        sockets.push(socket);
        got.push(answers.len());
    }
    aftermath(rig, legitimate, sockets);
    got
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::corpus::Corpus;

    #[test]
    fn an_undamaged_stream_is_answered_on_both_connections() {
        for input in Corpus::load("hostile-stream").unwrap().inputs() {
            let got = play(input);
            assert!(got[0] > 10_000 && got[1] > 10_000, "bytes that came back: {got:?}");
        }
    }
}
